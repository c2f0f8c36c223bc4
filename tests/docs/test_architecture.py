"""Imports run one way, importing stays cheap, and every module has a docstring."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

import notify_worker

CHECKOUT = Path(__file__).parents[2]
FOLDERS = ("notify_worker", "alembic", "sql", "tests", "chaos", "benchmarks")


def files(*suffixes: str) -> list[Path]:
    """Our own files with one of these suffixes."""
    found = [path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*") if path.suffix in suffixes]
    assert found
    return found


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def test_imports_run_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")

    checked = subprocess.run(
        [lint, "--no-cache", "--no-logo"], cwd=CHECKOUT, check=False, stdout=subprocess.PIPE, text=True
    )

    assert checked.returncode == 0, checked.stdout
    assert "5 kept, 0 broken" in checked.stdout


ARCHITECTURE = "docs/how-it-works/architecture.md"


def code_spans(page: str) -> set[str]:
    """What a page writes in backticks."""
    return set(re.findall(r"`([^`\n]+)`", (CHECKOUT / page).read_text(encoding="utf-8").replace("```", "")))


@pytest.mark.parametrize("page", [ARCHITECTURE, "CONTRIBUTING.md"])
def test_a_page_for_contributors_names_functions_and_modules_that_exist(page: str) -> None:
    ours = [path for path in files(".py", ".sql") if "tests" not in path.parts or "support" in path.parts]
    known = set(re.findall(r"\w+", "".join(path.read_text(encoding="utf-8") for path in ours)))
    known |= set(re.findall(r"\w+", (CHECKOUT / ".justfile").read_text(encoding="utf-8")))
    modules = {name(path.with_suffix("")) for path in ours}
    named = {span for span in code_spans(page) if re.fullmatch(r"[\w./]*_[\w./]*|\w+/\w+", span)}

    missing = {
        span
        for span in named
        if not (CHECKOUT / span).exists()
        and modules.isdisjoint({f"notify_worker/{span}", f"sql/functions/{span}"})
        and not set(span.split(".")) <= known
    }

    assert named
    assert missing == set()


@pytest.mark.parametrize("folder", ["process", "pipeline", "senders", "database"])
def test_the_tree_on_the_architecture_page_has_every_module(folder: str) -> None:
    tree = (CHECKOUT / ARCHITECTURE).read_text(encoding="utf-8").split("```")[1]

    modules = {path.stem for path in (CHECKOUT / "notify_worker" / folder).glob("*.py")} - {"__init__"}

    assert modules <= set(re.findall(r"\w+", tree))


def test_importing_the_package_imports_no_worker_and_no_driver() -> None:
    """psycopg is not imported either: a producer may have another driver."""
    code = "import sys, notify_worker; print(*{name.partition('.')[0] for name in sys.modules})"

    imported = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)

    expensive = {"alembic", "sqlalchemy", "aiohttp", "httpx", "google", "procrastinate", "tenacity", "psycopg"}
    assert "notify_worker" in imported.stdout.split()
    assert expensive.isdisjoint(imported.stdout.split())


def test_the_public_names_are_those_that_are_declared_and_no_others() -> None:
    public = [
        each
        for each, value in vars(notify_worker).items()
        if not each.startswith("_") and not isinstance(value, ModuleType)
    ]

    assert sorted(public) == sorted(notify_worker.__all__)
    assert len(public) <= 15


def test_every_module_has_a_docstring() -> None:
    modules = {name(path): ast.parse(path.read_text(encoding="utf-8")) for path in files(".py")}

    silent = [path for path, module in modules.items() if module.body and not ast.get_docstring(module)]

    assert silent == []


def test_no_test_module_imports_from_another() -> None:
    """What tests share lies in tests/support, and fixtures in a conftest.py."""
    found = [
        f"{name(path)} imports {imported}"
        for path in files(".py")
        for imported in imports(ast.parse(path.read_text(encoding="utf-8")))
        if re.fullmatch(r"(tests\.(?!support\.)|.*\btest_).*", imported)
    ]

    assert found == []


def imports(module: ast.Module) -> list[str]:
    """Name the modules that a module imports, each with what it takes from there."""
    return [
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]


def test_nothing_is_left_to_be_done_later() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")

    left = [
        f"{name(path)}:{number}"
        for path in files(".py", ".sql", ".mako")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(mark in line for mark in marks)
    ]

    assert left == []


def test_our_folder_of_revisions_is_no_package() -> None:
    """A package would shadow the library alembic."""
    assert (CHECKOUT / "alembic" / "env.py").exists()
    assert not (CHECKOUT / "alembic" / "__init__.py").exists()


def test_a_function_that_runs_with_its_owners_rights_pins_its_path(connection: psycopg.Connection) -> None:
    open_to_all = connection.execute(
        r"""
        select oid::regprocedure::text
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace
            and proname not like 'procrastinate\_%'
            and prosecdef
            and not exists (
                select from unnest(proconfig) as setting
                where setting = 'search_path=pg_catalog, notify_worker, pg_temp'
            )
        """
    ).fetchall()

    assert open_to_all == []
