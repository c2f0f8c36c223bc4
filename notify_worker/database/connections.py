"""How this process speaks to the database: with limits, so that a network that goes silent is a failure and not a wait."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import environ
from typing import Any, Self

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
"""What libpq is told, where the conninfo says nothing else: without it a host that is gone is waited for, for hours.
In seconds, and milliseconds: postgresql.org/docs/current/libpq-connect.html"""
STATEMENT_WITHIN = 15.0
"""Seconds that a statement may take; the server ends it then."""
ANSWER_WITHIN = 18.0
"""Seconds until an answer has to be there: else the network is silent, and the connection of no more use."""
CHECK_WITHIN = 2.0
"""Seconds in which an idle connection has to show that it is one."""
APPLICATION_NAME = "notify-worker"
"""What pg_stat_activity says of our sessions; each kind but the store's adds a word."""
CONNECTION_WITHIN = 1.0
"""Seconds that a pool's connection is waited for; whoever asked asks again."""


def with_limits(conninfo: str) -> str:
    """Add to a conninfo what it does not say itself. Of several hosts, the one that takes writes."""
    given = conninfo_to_dict(conninfo)
    ours = dict(LIMITS)
    hosts = given.get("host") or given.get("hostaddr") or environ.get("PGHOST") or environ.get("PGHOSTADDR") or ""
    if "," in str(hosts) and "PGTARGETSESSIONATTRS" not in environ:
        ours["target_session_attrs"] = "read-write"
    if "PGCONNECT_TIMEOUT" in environ:
        del ours["connect_timeout"]
    return make_conninfo(conninfo, **{name: value for name, value in ours.items() if name not in given})


def pool(conninfo: str, **options: Any) -> AsyncConnectionPool:
    """Make a pool whose connections come back as soon as the database does: it never waits longer between two tries."""
    ours: dict[str, Any] = {
        "open": False,
        "timeout": CONNECTION_WITHIN,
        "reconnect_timeout": 0.0,
        "configure": configure,
    }
    return AsyncConnectionPool(with_limits(conninfo), **(ours | options))


@asynccontextmanager
async def answer_within(connection: AsyncConnection[Any], seconds: float) -> AsyncIterator[None]:
    """Force a connection closed that does not answer in time: what waits for it raises psycopg.OperationalError at once.

    To cancel would take longer: psycopg then asks the server, over the same silent network, to end the statement.
    """
    timer = asyncio.get_running_loop().call_later(seconds, force_close, connection)
    try:
        yield
    finally:
        timer.cancel()


def force_close(connection: AsyncConnection[Any]) -> None:
    """Close the wire beneath a connection."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        wire.shutdown(socket.SHUT_RDWR)


async def check(connection: AsyncConnection[Any]) -> None:
    """Check a connection of a pool. Raises psycopg.OperationalError."""
    async with answer_within(connection, CHECK_WITHIN):
        await AsyncConnectionPool.check_connection(connection)


def without_detail(error: psycopg.Error) -> psycopg.Error:
    """Leave out the DETAIL, which may hold a whole row: procrastinate logs whatever a job of it raises."""
    return type(error)(first_line(error))


async def configure(connection: AsyncConnection[Any], application_name: str = APPLICATION_NAME) -> None:
    """Make a connection ours: one statement a transaction, our schema's names, and an end for what takes too long."""
    await configure_pooled(connection)
    async with answer_within(connection, ANSWER_WITHIN):
        if await session_of(connection) != connection.info.backend_pid:
            connection.prepare_threshold = None  # somebody stands in between: it may yet give us another session
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
    """Make a connection ours as far as the other users of a pooler's session don't feel it."""
    set_json_loads(loads, connection)
    await connection.set_autocommit(True)


async def is_transaction_pooled(conninfo: str) -> bool:
    """Return True behind a transaction-mode pooler such as PgBouncer's.

    Opens two connections and checks whether one backend serves both.

    Raises:
        psycopg.OperationalError: The database is away.
    """
    async with await connect(conninfo) as first:
        its = await session_of(first)
        if its == first.info.backend_pid:
            return False  # nobody stands in between
        async with await connect(conninfo) as second:
            for _ in range(5):
                async with second.transaction():
                    taken = await session_of(second)
                    if taken == its or await session_of(first) != its:
                        return True
                if await session_of(first) != its:  # what was given back last is given out first
                    return True
    return False


async def connect(conninfo: str) -> AsyncConnection[Any]:
    """Connect, with limits. Raises psycopg.OperationalError."""
    return await AsyncConnection.connect(with_limits(conninfo), autocommit=True, prepare_threshold=None)


async def session_of(connection: AsyncConnection[Any]) -> int:
    """Name the session that a statement of this connection finds."""
    cursor = await connection.execute("select pg_backend_pid()")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


class Number(float):
    """A number as it was written: a price of 19.90 is not 19.9."""

    def __new__(cls, text: str) -> Self:
        """Keep the text beside the value."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


def loads(text: str | bytes) -> Json:
    """Read JSON; what can't be read is said to be so, since it stands in one row among many."""
    try:
        return json.loads(text, parse_float=Number)
    except (ValueError, RecursionError):
        return UNREADABLE


def summary(error: BaseException) -> str:
    """Return an error in one line: its type, and its message without the DETAIL, which may hold an address."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; of one of Postgres's, its primary message."""
    message = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return message or str(error).partition("\n")[0]
