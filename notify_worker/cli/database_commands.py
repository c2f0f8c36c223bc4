"""The verbs that use the database: send a notification, show what happened, retry, cancel, pause and prune."""

import json
from datetime import timedelta
from typing import Any

import click

from notify_worker.cli import database
from notify_worker.cli.verb import EXIT_FAILED, EXIT_OK, Pair, Verb
from notify_worker.errors import NotifyWorkerError
from notify_worker.model import ADDRESS_KINDS
from notify_worker.producer import defer

NOTIFICATION = "An event_id, or the id of a notification."
PROJECT = "The name of a project."


@click.command(cls=Verb, example="notify-worker send --receiver u_42 --title Hello --wait")
@click.option("--receiver", metavar="ID", help="Your user id: goes to all of the user's devices.")
@click.option("--token", metavar="ADDRESS", help="An FCM registration token.")
@click.option("--fid", metavar="ADDRESS", help="A Firebase Installation ID.")
@click.option("--topic", metavar="ADDRESS", help="An FCM topic.")
@click.option("--condition", metavar="ADDRESS", help="A condition over FCM topics.")
@click.option("--event-id", metavar="ID", help="Your id of the event; a second notification with it is not inserted.")
@click.option("--campaign", metavar="NAME", help="The campaign with the content.")
@click.option("--title", metavar="TEXT", help="Its title; wins over the campaign's.")
@click.option("--body", metavar="TEXT", help="Its body; wins over the campaign's.")
@click.option("--image", metavar="URL", help="Its image; wins over the campaign's.")
@click.option("--priority", metavar="PRIORITY", help="high or normal.")
@click.option("--project", metavar="NAME", help="Its project, if not default.")
@click.option(
    "--param", "params", type=Pair(), multiple=True, metavar="NAME=VALUE", help="Fills {NAME} in the campaign."
)
@click.option("--data", type=Pair(), multiple=True, metavar="NAME=VALUE", help="Sent to the app with the message.")
@click.option("--wait", is_flag=True, help="Wait until it is settled or held, then print what happened.")
@click.pass_context
def send(ctx: click.Context, /, *, wait: bool, **given: Any) -> int:
    """Insert one notification.

    Give exactly one of --receiver, --token, --fid, --topic and --condition. With --wait, the exit code is 1 unless the
    notification was sent.
    """
    columns = columns_of(ctx, given)
    with database.connect() as connection:
        notification_id = defer(connection, **columns)
        if notification_id is None:
            print(f'the event "{given["event_id"]}" exists already: nothing was inserted')
            return EXIT_OK
        print(f"notification {notification_id}")
        return database.wait_until_settled(connection, notification_id) if wait else EXIT_OK


def columns_of(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that the options of `send` give. Raises UsageError unless they give exactly one address."""
    columns = {name: value for name, value in given.items() if value not in (None, ())}
    addresses = [name for name in ("receiver", *ADDRESS_KINDS) if name in columns]
    if len(addresses) != 1:
        raise click.UsageError("give exactly one of --receiver, --token, --fid, --topic and --condition", ctx)
    kind, address = addresses[0], columns.pop(addresses[0])
    columns |= {"receiver_id": address} if kind == "receiver" else {"kind": kind, "address": address}
    return columns | {name: dict(columns[name]) for name in ("params", "data") if name in columns}


@click.command(cls=Verb, example="notify-worker status --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, as_json: bool) -> None:
    """Show how many notifications are pending, due, leased, orphaned, held or given up.

    Counts stop at 100,000.
    """
    with database.connect() as connection:
        row = connection.execute("select * from notify_worker.status").fetchone()
    assert row is not None
    if as_json:
        print(json.dumps(row, default=timedelta.total_seconds))
    elif database.is_terminal():
        database.print_table(["", ""], [(name.replace("_", " "), value) for name, value in row.items()])
    else:
        for name, value in row.items():
            print(f"{name.replace('_', ' '):<16}  {'-' if value is None else value}")


@click.command(cls=Verb, example="notify-worker explain order:42:paid")
@click.argument("notification", help=NOTIFICATION)
def explain(notification: str) -> None:
    """Show what happened to a notification, and what it waits for."""
    with database.connect() as connection:
        known = database.print_story(connection, notification) or (
            database.is_id(notification) and database.print_story(connection, int(notification))
        )
    if not known:
        raise database.not_found(notification)


@click.command(cls=Verb, example="notify-worker history u_42 --since yesterday")
@click.argument("receiver", help="Your user id.")
@click.option("--since", default="-infinity", metavar="TIME", help="For example 2027-01-02, or yesterday.")
def history(receiver: str, since: str) -> None:
    """Show a receiver's notifications, and why each was or was not sent.

    One line each, newest first.
    """
    with database.connect() as connection:
        rows = connection.execute(
            """
            select at, event_id, notification_id, campaign, state, reason
            from notify_worker.history(%s, %s::text::timestamptz)
                as told (at, event_id, notification_id, campaign, state, reason)
            """,
            [receiver, since],
        ).fetchall()
    if database.is_terminal():
        columns = ("at", "notification_id", "event_id", "campaign", "state", "reason")
        database.print_table(
            ["at", "notification", "event", "campaign", "state", "reason"],
            [[f"{row['at'].astimezone():%Y-%m-%d %H:%M:%S}", *(row[name] for name in columns[1:])] for row in rows],
        )
        return
    for row in rows:
        event = f" (event {row['event_id']})" if row["event_id"] else ""
        campaign = f", campaign {row['campaign']}" if row["campaign"] else ""
        database.print_line(
            f"{database.timestamp(row['at'])}  notification {row['notification_id']}{event}{campaign}: "
            f"{row['state']}: {row['reason']}"
        )


@click.command(cls=Verb, example="notify-worker retry --project default --since yesterday")
@click.argument("notification", required=False, help=NOTIFICATION)
@click.option("--delivery", type=int, metavar="NUMBER", help="Retry only this delivery.")
@click.option("--project", metavar="NAME", help="Retry all failed deliveries of a project.")
@click.option(
    "--since", default="-infinity", metavar="TIME", help="With --project: for example 2027-01-02 09:00, or yesterday."
)
def retry(notification: str | None, delivery: int | None, project: str | None, since: str) -> None:
    """Make failed deliveries due again, with a fresh budget of attempts.

    Give a notification, --delivery, or --project for all deliveries that failed in a project since a time.
    """
    if [notification, delivery, project].count(None) != 2:
        raise NotifyWorkerError(
            "retry takes one of: a notification, --delivery NUMBER, --project NAME (with --since TIME)"
        )
    with database.connect() as connection:
        if delivery is not None:
            retried = database.retry_delivery(connection, delivery)
        elif project is not None:
            retried = database.value(
                connection, "select notify_worker.retry_dead_letters(%s, %s::text::timestamptz)", project, since
            )
        else:
            number = database.find_notification(connection, notification or "")
            retried = database.value(connection, "select notify_worker.retry(%s::bigint)", number)
    print(f"{retried} deliveries are due again; a notification that has none yet gets its own with the next claim")


@click.command(cls=Verb, example="notify-worker cancel order:42:paid")
@click.argument("notification", help=NOTIFICATION)
def cancel(notification: str) -> int:
    """Cancel a notification that has not been sent yet.

    Exit code 0: nothing was sent, and it will not arrive. 1: it may have been sent, or may still arrive.
    """
    with database.connect() as connection:
        number = database.find_notification(connection, notification)
        cancelled = database.value(connection, "select notify_worker.cancel(%s::bigint)", number)
    if cancelled:
        print("cancelled: nothing of it was sent, and it will not arrive")
        return EXIT_OK
    print(
        "too late: it has settled, or may have been sent, or a worker has leased it; no further delivery is started. "
        f"Its story: notify-worker explain {number}"
    )
    return EXIT_FAILED


@click.command(cls=Verb, example='notify-worker pause default "a new key is on its way"')
@click.argument("project", help=PROJECT)
@click.argument("reason", help="Shown by explain and history for the project's notifications.")
def pause(project: str, reason: str) -> None:
    """Stop sending a project's notifications until it is resumed."""
    with database.connect() as connection:
        connection.execute("select notify_worker.pause(%s, %s)", [project, reason])
    print(f"project {project} is paused until: notify-worker resume {project}")


@click.command(cls=Verb, example="notify-worker resume default")
@click.argument("project", help=PROJECT)
def resume(project: str) -> None:
    """End all pauses of a project, including those that workers opened."""
    with database.connect() as connection:
        connection.execute("select notify_worker.resume(%s)", [project])
    print(f"project {project} sends again")


@click.command(cls=Verb, example='notify-worker prune --older-than "90 days"')
@click.option("--older-than", required=True, metavar="INTERVAL", help='For example "90 days".')
def prune(older_than: str) -> None:
    """Delete notifications that settled longer ago than an interval.

    Deletes in small transactions, oldest first. Of the history, whole months that are older are dropped.
    """
    import asyncio  # noqa: PLC0415

    deleted = asyncio.run(database.prune(older_than))
    print(f"{deleted} notifications deleted")


VERBS = (send, status, explain, history, retry, cancel, pause, resume, prune)
