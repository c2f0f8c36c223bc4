"""What the verbs ask the database: the connection, finding a notification, its story, waiting until it is settled."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from notify_worker.cli.output import one_line, print_line, timestamp
from notify_worker.cli.verb import EXIT_FAILED, EXIT_OK
from notify_worker.database import schema
from notify_worker.database.connections import APPLICATION_NAME
from notify_worker.database.store import Store
from notify_worker.errors import NotifyWorkerError
from notify_worker.settings import Settings

POLL_INTERVAL = 0.05
"""Seconds between two polls of `send --wait`."""
SILENT_FOR = 2.0
"""Seconds after which `send --wait` prints what the notification waits for."""

Connection = psycopg.Connection[dict[str, Any]]


def verified_conninfo() -> str:
    """Return the conninfo that the environment gives. Raises SchemaMismatch: its schema is missing or too old."""
    conninfo = Settings.from_env().database_url
    schema.verify(conninfo)
    return conninfo


@contextmanager
def connect() -> Iterator[Connection]:
    """Connect to the database that the environment names; each statement commits. Raises SchemaMismatch as above."""
    with psycopg.connect(
        verified_conninfo(), autocommit=True, row_factory=dict_row, application_name=f"{APPLICATION_NAME} cli"
    ) as connection:
        yield connection


def wait_until_settled(connection: Connection, notification_id: int) -> int:
    """Wait until a notification is settled or held, print its story, and return EXIT_OK if it was sent."""
    explain_at = monotonic() + SILENT_FOR
    while (state := state_of(connection, notification_id)) == "pending":
        if monotonic() > explain_at:
            print("waiting; the state so far:", file=sys.stderr)
            print(*reasons_to_wait(connection, notification_id), sep="\n", file=sys.stderr)
            explain_at = float("inf")
        sleep(POLL_INTERVAL)
    print_story(connection, notification_id)
    return EXIT_OK if state == "sent" else EXIT_FAILED


def reasons_to_wait(connection: Connection, notification_id: int) -> Iterator[str]:
    """Yield what a pending notification waits for, one line each."""
    story = connection.execute("select what from notify_worker.explain(%s::bigint)", [notification_id]).fetchall()
    yield from (one_line(line["what"]) for line in story[-1:])
    if not connection.execute("select from notify_worker.workers").fetchall():
        yield "no worker is alive: notify-worker worker"


def state_of(connection: Connection, notification_id: int) -> str | None:
    """Return the state of a notification; None: it does not exist any more."""
    row = connection.execute(
        "select state from notify_worker.notifications where id = %s", [notification_id]
    ).fetchone()
    return row["state"] if row else None


def print_story(connection: Connection, notification: str | int) -> bool:
    """Print the story of a notification, by its event (str) or number (int), a line each; return whether it exists."""
    statement: LiteralString = (
        "select at, what from notify_worker.explain(%s::bigint)"
        if isinstance(notification, int)
        else "select at, what from notify_worker.explain(%s::text)"
    )
    lines = connection.execute(statement, [notification]).fetchall()
    for line in lines:
        print_line(f"{timestamp(line['at'])}  {line['what']}")
    return bool(lines)


def find_notification(connection: Connection, notification: str) -> int:
    """Return the number of a notification, by its event_id or else by its number. Raises NotifyWorkerError: none has it."""
    row = connection.execute(
        "select id from notify_worker.notifications where event_id = %s", [notification]
    ).fetchone()
    if row is None and is_number(notification):
        row = connection.execute("select id from notify_worker.notifications where id = %s", [notification]).fetchone()
    if row is None:
        raise not_found(notification)
    number: int = row["id"]
    return number


def is_number(text: str) -> bool:
    """Return True if this can be the number of a notification."""
    return text.isascii() and text.isdecimal() and len(text) < 19


def not_found(notification: str) -> NotifyWorkerError:
    """Return the error for a notification that does not exist."""
    return NotifyWorkerError(f'there is no notification of the event "{notification}", nor with this number')


def retry_delivery(connection: Connection, delivery: int) -> int:
    """Retry one delivery, and return how many are due again. Raises NotifyWorkerError: it does not exist."""
    known = connection.execute("select from notify_worker.deliveries where id = %s", [delivery]).fetchone()
    if known is None:
        raise NotifyWorkerError(f"there is no delivery {delivery}")
    return count(connection, "select notify_worker.retry_delivery(%s)", delivery)


def retry_dead_letters(connection: Connection, project: str, since: str) -> int:
    """Retry what failed in a project since a time that PostgreSQL can read; return how many are due again."""
    return count(connection, "select notify_worker.retry_dead_letters(%s, %s::text::timestamptz)", project, since)


def retry_notification(connection: Connection, notification: str) -> int:
    """Retry a notification; return how many deliveries are due again. Raises NotifyWorkerError: it does not exist."""
    return count(connection, "select notify_worker.retry(%s::bigint)", find_notification(connection, notification))


def count(connection: Connection, statement: LiteralString, *values: object) -> int:
    """Return the number that a function returns."""
    row = connection.execute(statement, values).fetchone()
    return int(next(iter(row.values()))) if row else 0


async def prune(older_than: str) -> int:
    """Delete what settled longer ago than an interval, as the task does; return how many notifications."""
    async with Store(verified_conninfo(), application_name=f"{APPLICATION_NAME} cli") as store:
        return await store.prune(older_than)
