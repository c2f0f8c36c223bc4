"""Connections to the database, with timeouts: when the network goes silent, statements fail instead of waiting."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import environ
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool

from notify_worker.model import UNREADABLE, Json

LIMITS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""libpq's parameters, unless the conninfo sets them: its defaults wait for hours for a lost host. In seconds;
`tcp_user_timeout` in milliseconds: postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"""
STATEMENT_WITHIN = 15.0
"""Seconds after which the server cancels a statement (`statement_timeout`)."""
ANSWER_WITHIN = 18.0
"""Seconds without an answer after which the network counts as silent, and the connection is closed."""
CHECK_WITHIN = 2.0
"""Seconds in which an idle connection of a pool has to answer before it is used."""
APPLICATION_NAME = "notify-worker"
"""The sessions' name in pg_stat_activity; each kind except the store's adds a word."""
CONNECTION_WITHIN = 1.0
"""Seconds to wait for a connection of a pool; every caller tries again."""


def with_limits(conninfo: str) -> str:
    """Add `LIMITS` to a conninfo, unless it sets them. With several hosts, connect to the one that accepts writes."""
    given = conninfo_to_dict(conninfo)
    ours = dict(LIMITS)
    hosts = given.get("host") or given.get("hostaddr") or environ.get("PGHOST") or environ.get("PGHOSTADDR") or ""
    if "," in str(hosts) and "PGTARGETSESSIONATTRS" not in environ:
        ours["target_session_attrs"] = "read-write"
    if "PGCONNECT_TIMEOUT" in environ:
        del ours["connect_timeout"]
    return make_conninfo(conninfo, **{name: value for name, value in ours.items() if name not in given})


def pool(conninfo: str, **options: Any) -> AsyncConnectionPool:
    """Return a pool that reconnects without growing waits, so that it is back as soon as the database is."""
    ours: dict[str, Any] = {
        "open": False,
        "timeout": CONNECTION_WITHIN,
        "reconnect_timeout": 0.0,
        "configure": configure,
    }
    return AsyncConnectionPool(with_limits(conninfo), **(ours | options))


@asynccontextmanager
async def answer_within(connection: AsyncConnection[Any], seconds: float) -> AsyncIterator[None]:
    """Close a connection that does not answer within `seconds`; the statement raises psycopg.OperationalError at once.

    Cancelling would take longer, since psycopg then asks the server, over the same silent network, to end the statement.
    """
    timer = asyncio.get_running_loop().call_later(seconds, force_close, connection)
    try:
        yield
    finally:
        timer.cancel()


def force_close(connection: AsyncConnection[Any]) -> None:
    """Shut down the socket of a connection."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


async def check(connection: AsyncConnection[Any]) -> None:
    """Check a connection of a pool. Raises psycopg.OperationalError."""
    async with answer_within(connection, CHECK_WITHIN):
        await AsyncConnectionPool.check_connection(connection)


def without_detail(error: psycopg.Error) -> psycopg.Error:
    """Return the error without its DETAIL, which may hold a whole row: procrastinate logs what a job raises."""
    return type(error)(first_line(error))


async def configure(connection: AsyncConnection[Any], application_name: str = APPLICATION_NAME) -> None:
    """Configure a connection: autocommit, our search_path, UTC, and a limit for each statement."""
    await configure_pooled(connection)
    async with answer_within(connection, ANSWER_WITHIN):
        if await backend_pid(connection) != connection.info.backend_pid:
            connection.prepare_threshold = None  # a pooler, which may change the session
        await connection.execute(
            """
            select
                set_config('search_path', 'notify_worker, pg_catalog, pg_temp', false),
                set_config('application_name', %s, false),
                set_config('timezone', 'UTC', false),
                set_config('statement_timeout', %s, false)
            """,
            [application_name, str(int(1000 * STATEMENT_WITHIN))],
        )


async def configure_pooled(connection: AsyncConnection[Any]) -> None:
    """Configure a connection without changing its session, which others share behind a transaction pooler."""
    set_json_loads(loads, connection)
    await connection.set_autocommit(True)


async def is_transaction_pooled(conninfo: str) -> bool:
    """Return True behind a transaction-mode pooler such as PgBouncer's. Raises psycopg.OperationalError.

    Opens two connections and checks whether one backend serves both.
    """
    async with await connect(conninfo) as first:
        its = await backend_pid(first)
        if its == first.info.backend_pid:
            return False  # no pooler
        async with await connect(conninfo) as second:
            for _ in range(5):
                async with second.transaction():
                    taken = await backend_pid(second)
                    if taken == its or await backend_pid(first) != its:
                        return True
                if await backend_pid(first) != its:  # a pooler hands out the session that was returned last
                    return True
    return False


async def connect(conninfo: str) -> AsyncConnection[Any]:
    """Connect with `LIMITS`. Raises psycopg.OperationalError."""
    return await AsyncConnection.connect(with_limits(conninfo), autocommit=True, prepare_threshold=None)


async def backend_pid(connection: AsyncConnection[Any]) -> int:
    """Return the process id of the session that runs this connection's next statement."""
    cursor = await connection.execute("select pg_backend_pid()")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


class Number(float):
    """A number that keeps its text: 19.90 is not shown as 19.9."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


def loads(text: str | bytes) -> Json:
    """Parse JSON. Return `UNREADABLE` instead of raising, since one row of many must not break the others."""
    try:
        return json.loads(text, parse_float=Number)
    except (ValueError, RecursionError):
        return UNREADABLE


def summary(error: BaseException) -> str:
    """Return an error's type and message in one line, without the DETAIL, which may hold an address."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the primary message of a PostgreSQL error."""
    message = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return message or str(error).partition("\n")[0]
