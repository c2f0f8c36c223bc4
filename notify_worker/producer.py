"""The Python door: an INSERT on the caller's own connection, in the transaction that it is in anyway."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from difflib import get_close_matches
from operator import itemgetter
from typing import Any, Literal, TypedDict, Unpack

from notify_worker.model import Json


class Columns(TypedDict, total=False):
    """The columns of `notifications` that are the caller's."""

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
MOMENTS = ("send_at", "expires_at")
TYPES = {**dict.fromkeys(JSON_COLUMNS, "jsonb"), **dict.fromkeys(MOMENTS, "timestamptz")}
DEFAULTS = {"on_unknown": "'resend'", "project": "'default'"}


def defer(connection: Any, **columns: Unpack[Columns]) -> int | None:
    """Wish for a notification, in the caller's transaction: it is sent if that commits, and never was if it rolls back.

    `connection` is a psycopg connection, or another DB-API connection that takes `%s`. Returns the notification's id, or
    None where the `event_id` is already there. Raises TypeError for a column that is not the caller's, and the driver's
    own error (psycopg.errors.CheckViolation, with the constraint's name) for what the database refuses.
    """
    statement, values = insert(columns)
    cursor = connection.cursor()
    try:
        cursor.execute(statement, values, **unprepared(cursor))
        found: int | None = only_value(cursor.fetchone())
        return found
    finally:
        cursor.close()


async def defer_async(connection: Any, **columns: Unpack[Columns]) -> int | None:
    """Do what `defer` does on a psycopg.AsyncConnection."""
    statement, values = insert(columns)
    async with connection.cursor() as cursor:
        await cursor.execute(statement, values, **unprepared(cursor))
        found: int | None = only_value(await cursor.fetchone())
        return found


def defer_many(connection: Any, rows: Iterable[Columns]) -> list[int | None]:
    """Wish for many notifications by one statement, which rings one bell.

    Returns the ids in the order of the rows, None where an `event_id` is already there. Inserts in the order of the
    `event_id`s, so that two who publish the same events never deadlock. Raises what `defer` raises; then none is inserted.
    """
    given = list(rows)
    if not given:
        return []
    statement, values = insert_many(given)
    cursor = connection.cursor()
    try:
        cursor.execute(statement, values, **unprepared(cursor))
        return in_order(given, cursor.fetchall())
    finally:
        cursor.close()


async def defer_many_async(connection: Any, rows: Iterable[Columns]) -> list[int | None]:
    """Do what `defer_many` does on a psycopg.AsyncConnection."""
    given = list(rows)
    if not given:
        return []
    statement, values = insert_many(given)
    async with connection.cursor() as cursor:
        await cursor.execute(statement, values, **unprepared(cursor))
        return in_order(given, await cursor.fetchall())


def unprepared(cursor: Any) -> dict[str, bool]:
    """Keep psycopg from preparing our statement: behind PgBouncer the next session may be one that does not know it."""
    return {"prepare": False} if type(cursor).__module__.partition(".")[0] == "psycopg" else {}


def insert(columns: Columns) -> tuple[str, list[Any]]:
    """Write the INSERT of one row, with the columns that are given."""
    check_names(columns)
    marks = ", ".join("%s::jsonb" if name in JSON_COLUMNS else "%s" for name in columns)
    values = [
        json.dumps(value) if name in JSON_COLUMNS and value is not None else value for name, value in columns.items()
    ]
    what = f"({', '.join(columns)})\nvalues ({marks})" if columns else "default values"
    statement = f"insert into notify_worker.notifications {what}\non conflict (event_id) do nothing\nreturning id"
    return statement, values


def insert_many(rows: list[Columns]) -> tuple[str, list[Any]]:
    """Write the INSERT of many rows, which travel as one JSON array; their ids grow in the order of the select."""
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
    array = [{"event_id_": row.get("event_id"), **with_moments_as_text(row)} for row in rows]
    return statement, [json.dumps(array)]


def with_moments_as_text(row: Columns) -> dict[str, Any]:
    """Write a row's moments as JSON can have them; what else is no JSON stays, and is refused."""
    return {
        name: value.isoformat() if name in MOMENTS and isinstance(value, datetime) else value
        for name, value in row.items()
    }


def in_order(rows: list[Columns], inserted: Iterable[Any]) -> list[int | None]:
    """Give each row its id: by its event, the first of several; those without an event by their order."""
    ids = sorted((json.loads(only_value(row)) for row in inserted), key=itemgetter(0))
    by_event = {event_id: id_ for id_, event_id in ids if event_id is not None}
    without_event = iter([id_ for id_, event_id in ids if event_id is None])
    return [
        by_event.pop(str(event_id), None) if (event_id := row.get("event_id")) is not None else next(without_event)
        for row in rows
    ]


def check_names(columns: Columns) -> None:
    """Refuse what is no column of the caller's. Raises TypeError, which suggests the nearest name."""
    for name in columns:
        if name not in Columns.__annotations__:
            nearest = get_close_matches(name, Columns.__annotations__, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise TypeError(f'notifications have no column "{name}" that a caller gives.{hint}')


def only_value(row: Any) -> Any:
    """Read the one column of the one row, whatever the caller's connection makes of rows."""
    if row is None or isinstance(row, int | str):
        return row
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]
