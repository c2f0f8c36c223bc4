"""A real PostgreSQL for every test that asks for one, and a database of its own for each.

Rollback would not do: NOTIFY and `skip locked` need commits. Tests of pure Python ask for none of this, and start none.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import LiteralString

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from notify_worker import schema
from notify_worker.dev import postgres

MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 1 << 30
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
}


def pytest_configure() -> None:
    """Forget what the developer's shell says: no test may reach a database or an account that is not the test's own."""
    for name in list(os.environ):
        if name.startswith(("NOTIFY_WORKER_", "PG")) or name == "GOOGLE_APPLICATION_CREDENTIALS":
            del os.environ[name]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The conninfo of a server: TEST_DATABASE_URL, else an embedded one that is gone with the tests."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    with TemporaryDirectory(prefix="notify-worker-", dir=memory()) as home:
        Path(home).chmod(0o711)  # under root the server runs as nobody, who has to pass through
        with postgres.start(Path(home), FAST) as started:
            yield started.conninfo


def memory() -> Path | None:
    """A folder in memory, where there is one with room; a container's is often too small."""
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH_MEMORY
    return MEMORY if roomy else None


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """The name of a migrated database. Nobody may connect to it, since that would be in the way of cloning it."""
    with created(server) as name:
        schema.migrate(make_conninfo(server, dbname=name))
        administer(server, "alter database {} with is_template true allow_connections false", name)
        yield name
        administer(server, "alter database {} with is_template false", name)


@pytest.fixture
def database(server: str, template: str) -> Iterator[str]:
    """The conninfo of a fresh database with our schema."""
    with created(server, template) as name:
        yield make_conninfo(server, dbname=name)


@pytest.fixture
def empty_database(server: str) -> Iterator[str]:
    """The conninfo of a fresh database without our schema."""
    with created(server) as name:
        yield make_conninfo(server, dbname=name)


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    """A connection to `database` that commits each statement."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@contextmanager
def created(server: str, template: str = "template1") -> Iterator[str]:
    """Create a database and give its name; drop it at the end, whoever is still connected."""
    name = f"test_{token_hex(4)}"
    administer(server, "create database {} template {} strategy file_copy", name, template)
    try:
        yield name
    finally:
        administer(server, "drop database {} with (force)", name)


def administer(server: str, statement: LiteralString, *names: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(SQL(statement).format(*map(Identifier, names)))
