"""The verbs' access to the database, and how they print what they read: lines into a pipe, tables on a terminal.

psycopg and rich are imported where they are first needed: `--help` and shell completion need neither.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias

from notify_worker.cli.verb import EXIT_FAILED, EXIT_OK
from notify_worker.errors import NotifyWorkerError
from notify_worker.settings import Settings

if TYPE_CHECKING:
    import psycopg

Connection: TypeAlias = "psycopg.Connection[dict[str, Any]]"

APPLICATION_NAME = "notify-worker cli"
POLL_INTERVAL = 0.05
"""Seconds between two polls of `send --wait`."""
SILENT_FOR = 2.0
"""Seconds after which `send --wait` prints what the notification waits for."""
STYLES = {"sent": "green", "failed": "red", "unreachable": "red", "pending": "yellow", "held": "magenta"}
"""Colours of the states of a notification."""


def verified_conninfo() -> str:
    """Return the conninfo from the environment. Raises SchemaMismatch if its schema is not this release's."""
    from notify_worker.database import schema  # noqa: PLC0415

    conninfo = Settings.from_env().database_url
    schema.verify(conninfo)
    return conninfo


@contextmanager
def connect() -> Iterator[Connection]:
    """Connect to the database in autocommit mode. Raises SchemaMismatch if its schema is not this release's."""
    import psycopg  # noqa: PLC0415
    from psycopg.rows import dict_row  # noqa: PLC0415

    with psycopg.connect(
        verified_conninfo(), autocommit=True, row_factory=dict_row, application_name=APPLICATION_NAME
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
    """Return the state of a notification; None if it no longer exists."""
    row = connection.execute(
        "select state from notify_worker.notifications where id = %s", [notification_id]
    ).fetchone()
    return row["state"] if row else None


def print_story(connection: Connection, notification: str | int) -> bool:
    """Print the story of a notification, given by its event_id (str) or id (int). Return whether it exists."""
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
    """Return the id of a notification, given by its event_id or else its id. Raises NotifyWorkerError if none has it."""
    row = connection.execute(
        "select id from notify_worker.notifications where event_id = %s", [notification]
    ).fetchone()
    if row is None and is_id(notification):
        row = connection.execute("select id from notify_worker.notifications where id = %s", [notification]).fetchone()
    if row is None:
        raise not_found(notification)
    notification_id: int = row["id"]
    return notification_id


def is_id(text: str) -> bool:
    """Return True if a text can be the id of a notification."""
    return text.isascii() and text.isdecimal() and len(text) < 19


def not_found(notification: str) -> NotifyWorkerError:
    """Return the error for a notification that does not exist."""
    return NotifyWorkerError(f'there is no notification with the event_id or id "{notification}"')


def retry_delivery(connection: Connection, delivery: int) -> int:
    """Retry one delivery; return how many are due again. Raises NotifyWorkerError if it does not exist."""
    if connection.execute("select from notify_worker.deliveries where id = %s", [delivery]).fetchone() is None:
        raise NotifyWorkerError(f"there is no delivery {delivery}")
    return value(connection, "select notify_worker.retry_delivery(%s)", delivery)


def value(connection: Connection, statement: LiteralString, *values: object) -> int:
    """Return the number or boolean that a function returns."""
    row = connection.execute(statement, values).fetchone()
    return int(next(iter(row.values()))) if row else 0


async def prune(older_than: str) -> int:
    """Delete notifications that settled longer ago than an interval, as the task does. Return how many."""
    from notify_worker.database.store import Store  # noqa: PLC0415

    async with Store(verified_conninfo(), application_name=APPLICATION_NAME) as store:
        return await store.prune(older_than)


def is_terminal() -> bool:
    """Return True if stdout is a terminal."""
    return sys.stdout.isatty()


def print_line(text: str) -> None:
    """Print text from the database as one line."""
    print(one_line(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, with a heading unless all its names are empty. States are coloured; rich honours NO_COLOR."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, show_header=any(columns))
    for row in rows:
        cells = [one_line("-" if cell is None else str(cell)) for cell in row]
        styles = [
            STYLES.get(cell, "") if column == "state" else "" for column, cell in zip(columns, cells, strict=True)
        ]
        table.add_row(*(Text(cell, style, overflow="fold") for cell, style in zip(cells, styles, strict=True)))
    Console().print(table)


def one_line(text: str) -> str:
    """Replace unprintable characters: no text of a producer or of FCM may break a line or control a terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def timestamp(at: datetime) -> str:
    """Format a time in this machine's time zone."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S.%f}"
