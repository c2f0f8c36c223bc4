"""The verbs that ask the database: send one notification, read the state of things, change what waits."""

import json
from typing import Any

import click

from notify_worker.cli import output
from notify_worker.cli.verb import EXIT_FAILED, EXIT_OK, Pair, Verb
from notify_worker.errors import NotifyWorkerError
from notify_worker.model import ADDRESS_KINDS

NOTIFICATION = "An event_id, or else the number of a notification."
PROJECT = "The name of a project."


@click.command(cls=Verb, example="notify-worker send --receiver u_42 --title Hello --wait")
@click.option("--receiver", metavar="ID", help="The application's user id: all live devices.")
@click.option("--token", metavar="ADDRESS", help="An FCM registration token.")
@click.option("--fid", metavar="ADDRESS", help="A Firebase Installation ID.")
@click.option("--topic", metavar="ADDRESS", help="An FCM topic.")
@click.option("--condition", metavar="ADDRESS", help="A condition over FCM topics.")
@click.option("--event-id", metavar="ID", help="The event; a second notification of the same event is not inserted.")
@click.option("--campaign", metavar="NAME", help="The campaign that has the content.")
@click.option("--title", metavar="TEXT")
@click.option("--body", metavar="TEXT")
@click.option("--image", metavar="URL")
@click.option("--priority", metavar="PRIORITY", help="high or normal.")
@click.option("--project", metavar="NAME")
@click.option(
    "--param", "params", type=Pair(), multiple=True, metavar="NAME=VALUE", help="Fills {NAME} of the campaign."
)
@click.option("--data", type=Pair(), multiple=True, metavar="NAME=VALUE", help="Goes to the app with the message.")
@click.option("--wait", is_flag=True, help="Wait until it is settled, and print its story.")
@click.pass_context
def send(ctx: click.Context, /, *, wait: bool, **given: Any) -> int:
    """Insert one notification.

    Give exactly one of --receiver, --token, --fid, --topic and --condition. With --wait it exits with 1 unless the
    notification was sent.
    """
    columns = columns_of(ctx, given)

    from notify_worker.cli import database  # noqa: PLC0415
    from notify_worker.producer import defer  # noqa: PLC0415

    with database.connect() as connection:
        notification_id = defer(connection, **columns)
        if notification_id is None:
            print(f'the event "{given["event_id"]}" is there already: nothing to do')
            return EXIT_OK
        print(f"notification {notification_id}")
        return database.wait_until_settled(connection, notification_id) if wait else EXIT_OK


def columns_of(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that the options of `send` give. Raises UsageError: it has no address, or several."""
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
    from notify_worker.cli import database  # noqa: PLC0415

    with database.connect() as connection:
        row = connection.execute("select * from notify_worker.status").fetchone()
    assert row is not None
    if as_json:
        print(json.dumps({name: output.in_seconds(value) for name, value in row.items()}))
    elif output.is_terminal():
        output.print_table(["", ""], [(name.replace("_", " "), value) for name, value in row.items()])
    else:
        for name, value in row.items():
            print(f"{name.replace('_', ' '):<16}  {'-' if value is None else value}")


@click.command(cls=Verb, example="notify-worker explain order:42:paid")
@click.argument("notification", help=NOTIFICATION)
def explain(notification: str) -> None:
    """Tell what happened to a notification, and what it waits for."""
    from notify_worker.cli import database  # noqa: PLC0415

    with database.connect() as connection:
        known = database.print_story(connection, notification) or (
            database.is_number(notification) and database.print_story(connection, int(notification))
        )
    if not known:
        raise database.not_found(notification)


@click.command(cls=Verb, example="notify-worker history u_42 --since yesterday")
@click.argument("receiver", help="The application's user id.")
@click.option("--since", default="-infinity", metavar="TIME", help="Such as 2027-01-02, or yesterday.")
def history(receiver: str, since: str) -> None:
    """Tell what became of a receiver's notifications, and why.

    One line each, the newest first.
    """
    from notify_worker.cli import database  # noqa: PLC0415

    with database.connect() as connection:
        rows = connection.execute(
            """
            select at, event_id, notification_id, campaign, state, reason
            from notify_worker.history(%s, %s::text::timestamptz)
                as told (at, event_id, notification_id, campaign, state, reason)
            """,
            [receiver, since],
        ).fetchall()
    if output.is_terminal():
        columns = ("at", "notification_id", "event_id", "campaign", "state", "reason")
        output.print_table(
            ["at", "notification", "event", "campaign", "state", "reason"],
            [[f"{row['at'].astimezone():%Y-%m-%d %H:%M:%S}", *(row[name] for name in columns[1:])] for row in rows],
        )
        return
    for row in rows:
        event = f" (event {row['event_id']})" if row["event_id"] else ""
        campaign = f", campaign {row['campaign']}" if row["campaign"] else ""
        output.print_line(
            f"{output.timestamp(row['at'])}  notification {row['notification_id']}{event}{campaign}: "
            f"{row['state']}: {row['reason']}"
        )


@click.command(cls=Verb, example="notify-worker retry --project default --since yesterday")
@click.argument("notification", required=False, help=NOTIFICATION)
@click.option("--delivery", type=int, metavar="NUMBER", help="Retry this delivery alone.")
@click.option("--project", metavar="NAME", help="Retry all dead letters of a project.")
@click.option(
    "--since", default="-infinity", metavar="TIME", help="With --project: such as 2027-01-02 09:00, or yesterday."
)
def retry(notification: str | None, delivery: int | None, project: str | None, since: str) -> None:
    """Make what failed due again, with a fresh budget of attempts.

    Takes a notification, one delivery, or all that failed in a project since a time.
    """
    if [notification, delivery, project].count(None) != 2:
        raise NotifyWorkerError(
            "retry takes one of: a notification, --delivery NUMBER, --project NAME (with --since TIME)"
        )
    from notify_worker.cli import database  # noqa: PLC0415

    with database.connect() as connection:
        if delivery is not None:
            retried = database.retry_delivery(connection, delivery)
        elif project is not None:
            retried = database.retry_dead_letters(connection, project, since)
        else:
            retried = database.retry_notification(connection, notification or "")
    print(f"{retried} deliveries are due again; those of a notification that never had any come with its next claim")


@click.command(cls=Verb, example="notify-worker cancel order:42:paid")
@click.argument("notification", help=NOTIFICATION)
def cancel(notification: str) -> int:
    """Cancel a notification that was not sent yet.

    Exit code 0: nothing of it was sent, and it will not arrive. 1: it may have been sent, or may still be.
    """
    from notify_worker.cli import database  # noqa: PLC0415

    with database.connect() as connection:
        number = database.find_notification(connection, notification)
        cancelled = database.count(connection, "select notify_worker.cancel(%s::bigint)", number)
    if cancelled:
        print("cancelled: nothing of it was sent, and it will not arrive")
        return EXIT_OK
    print(
        "too late: it was sent or settled before, or a worker holds it; nothing more of it is started. "
        f"Its story: notify-worker explain {number}"
    )
    return EXIT_FAILED


@click.command(cls=Verb, example='notify-worker pause default "a new key is on its way"')
@click.argument("project", help=PROJECT)
@click.argument("reason", help="Shown to everyone who asks about the project's notifications.")
def pause(project: str, reason: str) -> None:
    """Send nothing of a project until it is resumed."""
    from notify_worker.cli import database  # noqa: PLC0415

    with database.connect() as connection:
        connection.execute("select notify_worker.pause(%s, %s)", [project, reason])
    print(f"project {project} is paused until: notify-worker resume {project}")


@click.command(cls=Verb, example="notify-worker resume default")
@click.argument("project", help=PROJECT)
def resume(project: str) -> None:
    """End every pause of a project, including those that workers began."""
    from notify_worker.cli import database  # noqa: PLC0415

    with database.connect() as connection:
        connection.execute("select notify_worker.resume(%s)", [project])
    print(f"project {project} sends again")


@click.command(cls=Verb, example='notify-worker prune --older-than "90 days"')
@click.option("--older-than", required=True, metavar="INTERVAL", help='Such as "90 days".')
def prune(older_than: str) -> None:
    """Delete notifications that settled longer ago than an interval, and their history.

    Works in small transactions.
    """
    import asyncio  # noqa: PLC0415

    from notify_worker.cli import database  # noqa: PLC0415

    deleted = asyncio.run(database.prune(older_than))
    print(f"{deleted} notifications deleted")


VERBS = (send, status, explain, history, retry, cancel, pause, resume, prune)
