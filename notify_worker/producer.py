"""The Python door: one INSERT on the caller's own connection, in the transaction that it is in anyway."""

import json
from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches
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


def defer(connection: Any, **columns: Unpack[Columns]) -> int | None:
    """Wish for a notification, in the caller's transaction: it is sent if that commits, and never was if it rolls back.

    `connection` is a psycopg connection, or another DB-API connection that takes `%s`. Returns the notification's id, or
    None where the `event_id` is already there. Raises TypeError for a column that is not the caller's, and the driver's
    own error (psycopg.errors.CheckViolation, with the constraint's name) for what the database refuses.
    """
    statement, values = insert(columns)
    cursor = connection.cursor()
    try:
        cursor.execute(statement, values)
        return only_value(cursor.fetchone())
    finally:
        cursor.close()


async def defer_async(connection: Any, **columns: Unpack[Columns]) -> int | None:
    """Do what `defer` does on a psycopg.AsyncConnection."""
    statement, values = insert(columns)
    async with connection.cursor() as cursor:
        await cursor.execute(statement, values)
        return only_value(await cursor.fetchone())


def insert(columns: Columns) -> tuple[str, list[Any]]:
    """Write the one INSERT of this package, with the columns that are given."""
    for name in columns:
        if name not in Columns.__annotations__:
            nearest = get_close_matches(name, Columns.__annotations__, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise TypeError(f'notifications have no column "{name}" that a caller gives.{hint}')
    marks = ", ".join("%s::jsonb" if name in JSON_COLUMNS else "%s" for name in columns)
    values = [
        json.dumps(value) if name in JSON_COLUMNS and value is not None else value for name, value in columns.items()
    ]
    what = f"({', '.join(columns)})\nvalues ({marks})" if columns else "default values"
    statement = (
        f"insert into notify_worker.notifications {what}\n"
        "on conflict (event_id) do nothing\n"
        "returning id"
    )
    return statement, values


def only_value(row: Any) -> int | None:
    """Read the one column of the one row, whatever the caller's connection makes of rows."""
    if row is None:
        return None
    if isinstance(row, int):
        return row
    value: int = next(iter(row.values())) if isinstance(row, Mapping) else row[0]
    return value
