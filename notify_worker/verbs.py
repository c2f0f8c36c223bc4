"""The verbs of the command line that ask the database: one function each, which prints, and returns the exit code."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from notify_worker import schema
from notify_worker.connections import APPLICATION_NAME
from notify_worker.errors import NotifyWorkerError
from notify_worker.model import ADDRESS_KINDS
from notify_worker.producer import Columns, defer
from notify_worker.settings import Settings
from notify_worker.store import Store

WELL, FAILED = 0, 1
ASK_EVERY = 0.05
"""Seconds between two looks of `send --wait`."""
SILENT_FOR = 2.0
"""Seconds after which `send --wait` says what it waits for."""
COLUMNS = ("event_id", "campaign", "title", "body", "image", "priority", "project")

Connection = psycopg.Connection[dict[str, Any]]


def verified() -> str:
    """Return the conninfo of the database that the environment names, if its schema is this release's."""
    conninfo = Settings.from_env().database_url
    schema.verify(conninfo)
    return conninfo


@contextmanager
def database() -> Iterator[Connection]:
    """Connect to the database that the environment names, if its schema is this release's."""
    conninfo = Settings.from_env().database_url
    schema.verify(conninfo)
    with psycopg.connect(
        conninfo, autocommit=True, row_factory=dict_row, application_name=f"{APPLICATION_NAME} cli"
    ) as connection:
        yield connection


def send(options: argparse.Namespace) -> int:
    """Insert one notification, and with --wait say what became of it."""
    with database() as connection:
        notification_id = defer(connection, **columns_of(options))
        if notification_id is None:
            print(f'the event "{options.event_id}" is there already: nothing to do')
            return WELL
        print(f"notification {notification_id}")
        return wait_for(connection, notification_id) if options.wait else WELL


def columns_of(options: argparse.Namespace) -> Columns:
    """Turn the options of `send` into columns."""
    columns: dict[str, Any] = {name: getattr(options, name) for name in COLUMNS if getattr(options, name) is not None}
    if options.receiver is not None:
        columns["receiver_id"] = options.receiver
    for kind in ADDRESS_KINDS:
        if (address := getattr(options, kind)) is not None:
            columns |= {"kind": kind, "address": address}
    if options.param:
        columns["params"] = dict(options.param)
    if options.data:
        columns["data"] = dict(options.data)
    return columns  # type: ignore[return-value]


def wait_for(connection: Connection, notification_id: int) -> int:
    """Wait until a notification is settled or held, tell its story, and say whether it was sent."""
    say_so_at = monotonic() + SILENT_FOR
    while (state := state_of(connection, notification_id)) == "pending":
        if monotonic() > say_so_at:
            print("waiting; how it stands:", file=sys.stderr)
            print(*stands(connection, notification_id), sep="\n", file=sys.stderr)
            say_so_at = float("inf")
        sleep(ASK_EVERY)
    tell(connection, notification_id)
    return WELL if state == "sent" else FAILED


def stands(connection: Connection, notification_id: int) -> Iterator[str]:
    """Say what a pending notification waits for."""
    story = connection.execute("select what from notify_worker.explain(%s::bigint)", [notification_id]).fetchall()
    yield from (line["what"] for line in story[-1:])
    if not connection.execute("select from notify_worker.workers").fetchall():
        yield "no worker is alive: notify-worker worker"


def state_of(connection: Connection, notification_id: int) -> str | None:
    """Read how a notification stands."""
    row = connection.execute(
        "select state from notify_worker.notifications where id = %s", [notification_id]
    ).fetchone()
    return row["state"] if row else None


def explain(options: argparse.Namespace) -> int:
    """Tell what happened to a notification, one line a thing, and how it stands."""
    with database() as connection:
        told = tell(connection, options.notification) or (
            is_number(options.notification) and tell(connection, int(options.notification))
        )
    if not told:
        raise no_such(options.notification)
    return WELL


def tell(connection: Connection, notification: str | int) -> bool:
    """Print the story of a notification, by its event or its number; say whether there is one."""
    statement: LiteralString = (
        "select at, what from notify_worker.explain(%s::bigint)"
        if isinstance(notification, int)
        else "select at, what from notify_worker.explain(%s::text)"
    )
    lines = connection.execute(statement, [notification]).fetchall()
    for line in lines:
        print(one_line(f"{moment(line['at'])}  {line['what']}"))
    return bool(lines)


def found(connection: Connection, notification: str) -> int:
    """Find a notification by its event_id, else by its number. Raises NotifyWorkerError: there is none."""
    row = connection.execute(
        "select id from notify_worker.notifications where event_id = %s", [notification]
    ).fetchone()
    if row is None and is_number(notification):
        row = connection.execute("select id from notify_worker.notifications where id = %s", [notification]).fetchone()
    if row is None:
        raise no_such(notification)
    number: int = row["id"]
    return number


def is_number(text: str) -> bool:
    """Tell whether this can be the number of a notification."""
    return text.isascii() and text.isdecimal() and len(text) < 19


def no_such(notification: str) -> NotifyWorkerError:
    """Say that there is no such notification."""
    return NotifyWorkerError(f'there is no notification of the event "{notification}", nor with this number')


def one_line(text: str) -> str:
    """Write what producers and FCM have put into words as one line that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def moment(at: datetime) -> str:
    """Write a time as this machine's clock would show it."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S.%f}"


def history(options: argparse.Namespace) -> int:
    """Tell what became of a receiver's notifications, and why: one line each, the newest first."""
    with database() as connection:
        rows = connection.execute(
            "select * from notify_worker.history(%s, %s::text::timestamptz)", [options.receiver, options.since]
        )
        for row in rows:
            event = f" (event {row['event_id']})" if row["event_id"] else ""
            campaign = f", campaign {row['campaign']}" if row["campaign"] else ""
            number = row["notification_id"]
            print(
                one_line(
                    f"{moment(row['at'])}  notification {number}{event}{campaign}: {row['state']}: {row['because']}"
                )
            )
    return WELL


def cancel(options: argparse.Namespace) -> int:
    """Take a notification back. Exit 0: nothing of it was sent, and it will not arrive; 1: it may have, or may yet."""
    with database() as connection:
        number = found(connection, options.notification)
        row = connection.execute("select notify_worker.cancel(%s::bigint) as taken_back", [number]).fetchone()
        if row is not None and row["taken_back"]:
            print("cancelled: nothing of it was sent, and it will not arrive")
            return WELL
        print(
            "too late: it was sent or settled before, or a worker holds it; nothing more of it is started. "
            f"Its story: notify-worker explain {number}"
        )
    return FAILED


def retry(options: argparse.Namespace) -> int:
    """Put a notification, a delivery, or all that failed in a project since a time back in line, with a fresh budget."""
    ways = (options.notification, options.delivery, options.project)
    if sum(way is not None for way in ways) != 1:
        raise NotifyWorkerError(
            "retry takes one of: a notification, --delivery NUMBER, --project NAME (with --since TIME)"
        )
    with database() as connection:
        if options.delivery is not None:
            known = connection.execute(
                "select from notify_worker.deliveries where id = %s", [options.delivery]
            ).fetchone()
            if known is None:
                raise NotifyWorkerError(f"there is no delivery {options.delivery}")
            row = connection.execute("select notify_worker.retry_delivery(%s) as again", [options.delivery]).fetchone()
        elif options.project is not None:
            row = connection.execute(
                "select notify_worker.retry_dead_letters(%s, %s::text::timestamptz) as again",
                [options.project, options.since],
            ).fetchone()
        else:
            number = found(connection, options.notification)
            row = connection.execute("select notify_worker.retry(%s::bigint) as again", [number]).fetchone()
    again = row["again"] if row else 0
    print(f"{again} deliveries are due again; those of a notification that never had any come with its next claim")
    return WELL


def pause(options: argparse.Namespace) -> int:
    """Send nothing of a project until somebody resumes it."""
    with database() as connection:
        connection.execute("select notify_worker.pause(%s, %s)", [options.project, options.because])
    print(f"project {options.project} is paused until: notify-worker resume {options.project}")
    return WELL


def resume(options: argparse.Namespace) -> int:
    """End every pause and breaker of a project."""
    with database() as connection:
        connection.execute("select notify_worker.resume(%s)", [options.project])
    print(f"project {options.project} sends again")
    return WELL


def status(options: argparse.Namespace) -> int:
    """Say how things stand: what is pending, due, leased, orphaned, held, given up on. Counts stop at 100,000."""
    with database() as connection:
        row = connection.execute("select * from notify_worker.status").fetchone()
    assert row is not None
    if options.json:
        print(json.dumps({name: seconds(value) for name, value in row.items()}))
        return WELL
    for name, value in row.items():
        print(f"{name.replace('_', ' '):<16}  {'-' if value is None else value}")
    return WELL


def seconds(value: object) -> object:
    """Write a length of time as JSON has it: seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def prune(options: argparse.Namespace) -> int:
    """Delete what settled longer ago than an interval, in small transactions, and the months of the history before that."""
    deleted = asyncio.run(pruned(verified(), options.older_than))
    print(f"{deleted} notifications deleted")
    return WELL


async def pruned(conninfo: str, older_than: str) -> int:
    """Let the store prune, as the task does."""
    async with Store(conninfo, application_name=f"{APPLICATION_NAME} cli") as store:
        return await store.prune(older_than)
