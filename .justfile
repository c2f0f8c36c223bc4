# Recipes for https://just.systems; `just` lists them.

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

_default:
    @just --list --justfile {{justfile()}}

# Check style, formatting, types and imports
lint:
    ruff check
    ruff format --check
    mypy
    lint-imports

# Run the tests; `just test -n0 -q tests/unit` for some of them
test *arguments:
    pytest {{arguments}}

# Write sql/tables.sql anew, from a migrated database
schema:
    python -m tests.support.schema_sql

# Build the site into docs/_build, strictly
docs:
    sphinx-build --fail-on-warning --keep-going docs docs/_build

# Kill, restart and fail over at random; `just chaos 1` for all of it
chaos share="0.1":
    CHAOS_SHARE={{share}} pytest -n0 -s -m chaos

# Do what CI does, from scratch
ci:
    .ci/run
