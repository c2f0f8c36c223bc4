"""The worker's connections: added conninfo settings, timeouts for answers, durable commits."""

from collections.abc import Callable
from time import monotonic

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from notify_worker.database.connections import LIMITS, answer_within, connect, is_transaction_pooled, pool, with_limits
from tests.support.store_calls import Connection, Row, Worker, outcome

# A conninfo


def test_an_empty_conninfo_is_given_every_limit() -> None:
    assert conninfo_to_dict(with_limits("")) == LIMITS


def test_settings_of_the_conninfo_win() -> None:
    given = "host=db.example dbname=shop connect_timeout=60 keepalives_idle=100 target_session_attrs=any"

    limited = conninfo_to_dict(with_limits(given))

    assert limited == LIMITS | conninfo_to_dict(given)


@pytest.mark.parametrize(
    "several",
    [
        "host=one.example,two.example",
        "hostaddr=192.0.2.1,192.0.2.2",
        "postgresql://me:secret@one.example:5432,two.example:5433/shop",
    ],
)
def test_with_several_hosts_the_one_that_takes_writes_is_chosen(several: str) -> None:
    limited = conninfo_to_dict(with_limits(several))

    assert limited["target_session_attrs"] == "read-write"
    assert limited.items() >= conninfo_to_dict(several).items()


def test_with_several_hosts_in_pghost_the_one_that_takes_writes_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "one.example,two.example")

    assert conninfo_to_dict(with_limits("dbname=shop"))["target_session_attrs"] == "read-write"


@pytest.mark.parametrize(
    ("variable", "given", "name"),
    [("PGTARGETSESSIONATTRS", "any", "target_session_attrs"), ("PGCONNECT_TIMEOUT", "60", "connect_timeout")],
)
def test_libpqs_variables_win(monkeypatch: pytest.MonkeyPatch, variable: str, given: str, name: str) -> None:
    monkeypatch.setenv(variable, given)

    assert name not in conninfo_to_dict(with_limits("host=one.example,two.example"))


# A connection


async def test_a_database_that_is_reached_directly_is_not_transaction_pooled(database: str) -> None:
    assert not await is_transaction_pooled(database)


async def test_a_late_answer_raises_an_operational_error_and_closes_the_connection(database: str) -> None:
    async with await connect(database) as connection:
        began = monotonic()

        with pytest.raises(psycopg.OperationalError):
            async with answer_within(connection, 0.2):
                await connection.execute("select pg_sleep(30)")

        assert monotonic() - began < 2
        assert connection.closed


async def test_an_answer_that_comes_in_time_leaves_the_connection_open(database: str) -> None:
    async with await connect(database) as connection:
        async with answer_within(connection, 0.2):
            await connection.execute("select 1")

        await connection.execute("select pg_sleep(0.4)")
        assert not connection.closed


async def test_a_statement_that_takes_too_long_is_cancelled_by_the_server(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_worker.database.connections.STATEMENT_WITHIN", 0.2)
    async with pool(database, min_size=1) as ours, ours.connection(timeout=10) as connection:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await connection.execute("select pg_sleep(30)")


async def test_an_idle_connection_that_the_server_ended_fails_once_and_is_replaced(
    database: str, connection: Connection
) -> None:
    async with pool(database, min_size=1) as ours:
        async with ours.connection(timeout=10) as first:
            pid = first.info.backend_pid
        connection.execute("select pg_terminate_backend(%s, 5000)", [pid])

        with pytest.raises(psycopg.OperationalError):
            async with ours.connection(timeout=10) as first:
                await first.execute("select 1")

        async with ours.connection(timeout=10) as second:
            assert second.info.backend_pid != pid


# A commit

Act = Callable[[Connection, Worker, Row], object]


def to_claim(connection: Connection, worker: Worker, claimed: Row) -> None:
    assert len(connection.claim(worker)) == 1


def to_record(connection: Connection, worker: Worker, claimed: Row) -> None:
    assert connection.record(worker, outcome(claimed, verdict="sent")) == 1


def to_mark(connection: Connection, worker: Worker, claimed: Row) -> None:
    assert connection.mark_started(claimed) == [claimed["delivery_id"]]


@pytest.mark.parametrize("default", ["off", "local"])
@pytest.mark.parametrize("act", [to_claim, to_record, to_mark])
def test_commits_around_a_request_are_durable_whatever_the_default(
    database: str, connection: Connection, act: Act, default: str
) -> None:
    set_default(connection, default)
    with Connection.connect(database, autocommit=True) as session:
        worker = session.register_worker()
        session.insert()
        claimed = session.claim_one(worker)
        session.insert()
        assert session.value("show synchronous_commit") == default

        with session.transaction():
            act(session, worker, claimed)
            within = session.value("show synchronous_commit")

        assert within == "on"
        assert session.value("show synchronous_commit") == default


@pytest.mark.parametrize("chosen", ["on", "remote_write", "remote_apply"])
def test_a_default_that_is_durable_stays(database: str, connection: Connection, chosen: str) -> None:
    set_default(connection, chosen)
    with Connection.connect(database) as session:
        session.insert()

        session.claim_one(session.register_worker())

        assert session.value("show synchronous_commit") == chosen


def set_default(connection: Connection, default: str) -> None:
    database = Identifier(connection.info.dbname)
    connection.execute(SQL("alter database {} set synchronous_commit = {}").format(database, default))
