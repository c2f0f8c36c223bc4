"""The producer: inserts notifications on the caller's own connection, in the caller's transaction.

Other languages write the same `insert into notify_worker.notifications`. CONTRACT.md describes its columns and constraints.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import datetime
from operator import itemgetter
from typing import Any, Literal, TypedDict, Unpack

from notify_worker.errors import did_you_mean
from notify_worker.model import Json


class Columns(TypedDict, total=False):
    """The columns of `notifications` that a caller may give. One left out gets the column's default.

    CONTRIBUTING.md lists what else a new column needs.
    """

    event_id: str | None
    receiver_id: str | None
    kind: Literal["token", "fid", "topic", "condition"] | None
    address: str | None
    campaign: str | None
    title: str | None
    body: str | None
    image: str | None
    params: Mapping[str, Json] | None
    data: Mapping[str, str] | None
    message: Mapping[str, Json] | None
    priority: Literal["high", "normal"] | None
    send_at: datetime | None
    expires_at: datetime | None
    on_unknown: Literal["resend", "hold"]
    project: str
    traceparent: str | None


JSON_COLUMNS = ("params", "data", "message")
TIMES = ("send_at", "expires_at")
TYPES = {**dict.fromkeys(JSON_COLUMNS, "jsonb"), **dict.fromkeys(TIMES, "timestamptz")}
DEFAULTS = {"on_unknown": "'resend'", "project": "'default'"}


def defer(connection: Any, **columns: Unpack[Columns]) -> int | None:
    """Insert one notification in the caller's transaction: sent after COMMIT, discarded by ROLLBACK.

    Args:
        connection: A psycopg connection, or another DB-API connection whose parameter style is `%s`. It is not committed.
        event_id: Your id of the event, at most 512 bytes. A second notification of the same event is not inserted.
        receiver_id: Your user id: the notification goes to all devices that are registered for it. Give either this, or
            `kind` and `address`.
        kind: `token`, `fid`, `topic` or `condition`.
        address: An FCM registration token, a Firebase installation ID, a topic's name or a condition over topics.
        campaign: The campaign with the content, where this notification has none of its own.
        title: The title, as it is shown.
        body: The text, as it is shown.
        image: The URL of an image.
        params: The values of the campaign's `{placeholders}`.
        data: Strings for the app.
        message: Fields to merge into FCM's message: `android`, `apns`, `webpush`, `fcm_options`, as in
            firebase.google.com/docs/reference/fcm/rest/v1/projects.messages
        priority: `normal` (the default), or `high`, which has a lane of its own.
        send_at: Not sent before this time; default: at once. Give an aware datetime, in any time zone: PostgreSQL takes a
            naive one to be in the time zone of the session.
        expires_at: Not sent after this time; default: after the project's `expires_after`. An aware datetime, as above.
        on_unknown: What to do if it is unknown whether FCM has the message: `resend` it (the default), which may show it
            twice, or `hold` it until somebody decides.
        project: The name of a row of `projects`. Default: `default`.
        traceparent: Stored for a later release.

    Returns:
        The id of the notification, or None if there is one of this `event_id` already.

    Raises:
        TypeError: A keyword is not a column of a caller's.
        psycopg.errors.CheckViolation: The database refuses the row; `diag.constraint_name` is the constraint, which
            CONTRACT.md explains. The transaction has failed then. Another driver raises its own error.

    Example:
        with psycopg.connect() as connection:
            connection.execute("update orders set paid_at = now() where id = 42")
            defer(connection, event_id="order:42:paid", receiver_id="u_42", title="Order 42 is paid")
    """
    statement, values = insert(columns)
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement, values, **unprepared(cursor))
        notification_id: int | None = only_value(cursor.fetchone())
        return notification_id


async def defer_async(connection: Any, **columns: Unpack[Columns]) -> int | None:
    """Insert one notification in the caller's transaction: `defer` for a psycopg.AsyncConnection.

    Args:
        connection: A psycopg.AsyncConnection. It is not committed.
        columns: As in `defer`.

    Returns:
        The id of the notification, or None if there is one of this `event_id` already.

    Raises:
        TypeError: A keyword is not a column of a caller's.
        psycopg.errors.CheckViolation: The database refuses the row, as in `defer`.

    Example:
        async with await psycopg.AsyncConnection.connect() as connection:
            await defer_async(connection, event_id="order:42:paid", receiver_id="u_42", title="Order 42 is paid")
    """
    statement, values = insert(columns)
    async with connection.cursor() as cursor:
        await cursor.execute(statement, values, **unprepared(cursor))
        notification_id: int | None = only_value(await cursor.fetchone())
        return notification_id


def defer_many(connection: Any, rows: Iterable[Columns]) -> list[int | None]:
    """Insert many notifications by one statement, in the caller's transaction: sent after COMMIT, discarded by ROLLBACK.

    The statement sends at most one wake-up. It inserts in the order of the `event_id`s, so that two callers who publish the
    same events never deadlock.

    Args:
        connection: A psycopg connection, or another DB-API connection whose parameter style is `%s`. It is not committed.
        rows: The columns of each notification, as in `defer`. No rows: nothing is executed.

    Returns:
        The ids in the order of the rows; None for a row whose `event_id` is there already, also in an earlier row.

    Raises:
        TypeError: A row has a key that is not a column of a caller's, or a value that JSON can't hold.
        psycopg.errors.CheckViolation: The database refuses a row, as in `defer`; none is inserted.

    Example:
        with psycopg.connect() as connection:
            defer_many(connection, [{"receiver_id": user, "campaign": "restock"} for user in ("u_7", "u_8")])
    """
    given = list(rows)
    if not given:
        return []
    statement, values = insert_many(given)
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement, values, **unprepared(cursor))
        return in_order(given, cursor.fetchall())


async def defer_many_async(connection: Any, rows: Iterable[Columns]) -> list[int | None]:
    """Insert many notifications by one statement: `defer_many` for a psycopg.AsyncConnection.

    Args:
        connection: A psycopg.AsyncConnection. It is not committed.
        rows: The columns of each notification, as in `defer`.

    Returns:
        The ids in the order of the rows; None for a row whose `event_id` is there already, also in an earlier row.

    Raises:
        TypeError: A row has a key that is not a column of a caller's, or a value that JSON can't hold.
        psycopg.errors.CheckViolation: The database refuses a row, as in `defer`; none is inserted.

    Example:
        async with await psycopg.AsyncConnection.connect() as connection:
            await defer_many_async(connection, [{"receiver_id": "u_7", "title": "Hello"}])
    """
    given = list(rows)
    if not given:
        return []
    statement, values = insert_many(given)
    async with connection.cursor() as cursor:
        await cursor.execute(statement, values, **unprepared(cursor))
        return in_order(given, await cursor.fetchall())


def unprepared(cursor: Any) -> dict[str, bool]:
    """Keep psycopg from preparing our statement: behind PgBouncer, it may next run in a session that has not prepared it."""
    return {"prepare": False} if type(cursor).__module__.partition(".")[0] == "psycopg" else {}


def insert(columns: Columns) -> tuple[str, list[Any]]:
    """Return the INSERT of one row, and its values."""
    check_names(columns)
    marks = ", ".join("%s::jsonb" if name in JSON_COLUMNS else "%s" for name in columns)
    values = [
        json.dumps(value) if name in JSON_COLUMNS and value is not None else value for name, value in columns.items()
    ]
    row = f"({', '.join(columns)})\nvalues ({marks})" if columns else "default values"
    statement = f"insert into notify_worker.notifications {row}\non conflict (event_id) do nothing\nreturning id"
    return statement, values


def insert_many(rows: list[Columns]) -> tuple[str, list[Any]]:
    """Return the INSERT of many rows, passed as one JSON array. Their ids grow in the order of the select."""
    for row in rows:
        check_names(row)
    names = [name for name in Columns.__annotations__ if any(name in row for row in rows)]
    types = ", ".join(f"{name} {TYPES.get(name, 'text')}" for name in names)
    values = ", ".join(f"coalesce({name}, {DEFAULTS[name]})" if name in DEFAULTS else name for name in names)
    statement = (
        f"insert into notify_worker.notifications ({', '.join(names)})\n"
        f"select {values}\n"
        f"from rows from (jsonb_to_recordset(%s::jsonb) as (event_id_ text, {types}))\n"
        f"    with ordinality as given (event_id_, {', '.join(names)}, number)\n"
        "order by event_id_ nulls first, number\n"
        "on conflict (event_id) do nothing\n"
        "returning json_build_array(id, event_id)::text"
    )
    array = [{"event_id_": row.get("event_id"), **with_times_as_text(row)} for row in rows]
    return statement, [json.dumps(array)]


def with_times_as_text(row: Columns) -> dict[str, Any]:
    """Return a row with its times as text; json.dumps refuses any other value that is not JSON."""
    return {
        name: value.isoformat() if name in TIMES and isinstance(value, datetime) else value
        for name, value in row.items()
    }


def in_order(rows: list[Columns], inserted: Iterable[Any]) -> list[int | None]:
    """Return the id of each row: by its event (the first of several rows), or in order if it has none."""
    ids = sorted((json.loads(only_value(row)) for row in inserted), key=itemgetter(0))
    by_event = {event_id: id_ for id_, event_id in ids if event_id is not None}
    without_event = iter([id_ for id_, event_id in ids if event_id is None])
    return [
        by_event.pop(str(event_id), None) if (event_id := row.get("event_id")) is not None else next(without_event)
        for row in rows
    ]


def check_names(columns: Columns) -> None:
    """Raise TypeError for a name that is not a column of a caller's; it suggests the closest one."""
    known = Columns.__annotations__
    for name in columns:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"There are: {', '.join(known)}.")
            raise TypeError(f'notifications have no column "{name}" that a caller gives. {hint}')


def only_value(row: Any) -> Any:
    """Return the only column of a row, whatever row type the caller's connection has. None stays None."""
    if row is None or isinstance(row, int | str):
        return row
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]
