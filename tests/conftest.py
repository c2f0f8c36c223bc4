"""A real PostgreSQL for every test that asks for one, and a database of its own for each.

Rollback would not do: NOTIFY and `skip locked` need commits. Tests of pure Python ask for none of this, and start none.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from psycopg.conninfo import make_conninfo

from notify_worker.database import schema
from notify_worker.dev import postgres
from tests.support.server import FAST, administer, created, forget_the_shell, memory
from tests.support.shop import Shop, a_shop
from tests.support.store_calls import Connection, Worker


def pytest_configure() -> None:
    forget_the_shell()


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
def connection(database: str) -> Iterator[Connection]:
    """A connection to `database` that commits each statement."""
    with Connection.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def worker(connection: Connection) -> Worker:
    """A registered worker, alive as long as `connection`."""
    return connection.register_worker()


@pytest.fixture
def shop(server: str, template: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop on a database of its own, without a worker yet."""
    with a_shop(server, template, tmp_path) as shop:
        yield shop
