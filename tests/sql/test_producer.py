"""`defer` on a real database: one INSERT in the caller's own transaction, on any kind of connection."""

import datetime
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg.errors import CheckViolation
from psycopg.rows import RowFactory, dict_row, namedtuple_row, scalar_row, tuple_row

from notify_worker import defer, defer_async
from notify_worker.producer import JSON_COLUMNS, Columns


def rows(connection: psycopg.Connection[Any], columns: str = "id") -> list[tuple[Any, ...]]:
    """What the outbox holds, as rows of these columns."""
    query = f"select {columns} from notify_worker.notifications order by id"
    return connection.cursor(row_factory=tuple_row).execute(query.encode()).fetchall()


@pytest.fixture
async def async_connection(database: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """An asynchronous connection that commits each statement."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        yield connection


def test_defer_returns_the_id_of_the_notification(connection: psycopg.Connection) -> None:
    first = defer(connection, receiver_id="u_42", title="Hello")
    second = defer(connection, receiver_id="u_42", title="Hello")

    assert rows(connection) == [(first,), (second,)]


def test_an_event_that_exists_gives_none_and_changes_nothing(connection: psycopg.Connection) -> None:
    first = defer(connection, event_id="order:42:paid", receiver_id="u_42", title="Hello")

    again = defer(connection, event_id="order:42:paid", receiver_id="u_43", title="Goodbye")

    assert again is None
    assert rows(connection, "id, receiver_id, title") == [(first, "u_42", "Hello")]


def test_a_rollback_leaves_no_notification_and_no_wakeup(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        assert defer(connection, receiver_id="u_42", title="Hello") is not None
        assert len(rows(connection)) == 1

    assert rows(connection) == []
    assert connection.execute("select from notify_worker.procrastinate_jobs").fetchall() == []


def test_defer_commits_nothing_by_itself(database: str, connection: psycopg.Connection) -> None:
    with psycopg.connect(database) as callers:
        defer(callers, receiver_id="u_42", title="Hello")
        assert rows(connection) == []

        callers.commit()

    assert len(rows(connection)) == 1


async def test_defer_async_does_what_defer_does(
    async_connection: psycopg.AsyncConnection, connection: psycopg.Connection
) -> None:
    first = await defer_async(async_connection, event_id="e", receiver_id="u_42", title="Hello", data={"a": "1"})
    again = await defer_async(async_connection, event_id="e", receiver_id="u_42", title="Hello")
    async with async_connection.transaction(force_rollback=True):
        await defer_async(async_connection, receiver_id="u_42", title="Rolled back")

    assert again is None
    assert rows(connection, "id, title, data") == [(first, "Hello", {"a": "1"})]


async def test_defer_async_refuses_what_defer_refuses(async_connection: psycopg.AsyncConnection) -> None:
    with pytest.raises(TypeError, match="Did you mean receiver_id"):
        await defer_async(async_connection, reciever_id="u_42", title="Hello")  # type: ignore[call-arg]
    with pytest.raises(CheckViolation, match="has no content"):
        await defer_async(async_connection, receiver_id="u_42")


@pytest.mark.parametrize("factory", [dict_row, namedtuple_row, scalar_row])
def test_the_callers_connection_may_have_any_row_factory(
    connection: psycopg.Connection, factory: RowFactory[Any]
) -> None:
    connection.row_factory = factory

    first = defer(connection, event_id="e", receiver_id="u_42", title="Hello")
    again = defer(connection, event_id="e", receiver_id="u_42", title="Hello")

    assert rows(connection) == [(first,)]
    assert again is None


async def test_an_async_connection_may_have_another_row_factory(async_connection: psycopg.AsyncConnection[Any]) -> None:
    async_connection.row_factory = dict_row

    assert await defer_async(async_connection, receiver_id="u_42", title="Hello") == 1


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("reciever_id", "Did you mean receiver_id?"),
        ("receiver", "Did you mean receiver_id?"),
        ("parameters", "Did you mean params?"),
        ("due_at", ""),
        ("id", ""),
        ('title) values (1); drop table "x"; --', ""),
    ],
)
def test_an_unknown_column_is_a_type_error_with_the_closest_name(
    connection: psycopg.Connection, wrong: str, hint: str
) -> None:
    with pytest.raises(TypeError) as caught:
        defer(connection, **{"title": "Hello", wrong: "x"})  # type: ignore[arg-type]

    assert str(caught.value).startswith(f'notifications have no column "{wrong}" that a caller gives.')
    assert str(caught.value).endswith(hint)
    assert rows(connection) == []


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"receiver_id": "u_42"}, "notifications_content"),
        ({"title": "Hello"}, "notifications_one_target"),
        ({"receiver_id": "u_42", "kind": "token", "address": "a", "title": "Hello"}, "notifications_one_target"),
        ({"receiver_id": "u_42", "title": "Hello", "data": {"n": 1}}, "notifications_data"),
        ({"receiver_id": "u_42", "title": "Hello", "data": {"notification_id": "1"}}, "notifications_data_keys"),
        ({"receiver_id": "u_42", "title": "Hello", "priority": "urgent"}, "notifications_priority"),
        ({"receiver_id": "u_42", "title": "Hello", "params": [1]}, "notifications_params"),
    ],
)
def test_a_refused_row_names_its_rule_and_no_address(
    connection: psycopg.Connection, columns: Columns, rule: str
) -> None:
    with pytest.raises(CheckViolation) as caught:
        defer(connection, **columns)

    assert caught.value.diag.constraint_name == rule
    assert caught.value.diag.message_hint
    assert caught.value.diag.message_detail is None


def test_a_notification_without_columns_is_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(CheckViolation):
        defer(connection)


def test_json_columns_take_python_values(connection: psycopg.Connection) -> None:
    defer(
        connection,
        receiver_id="u_42",
        campaign="order_paid",
        params={"order_id": 42, "name": "Zoë 🔔", "paid": True, "none": None},
        data={"%s": "100 %"},
        message={"android": {"notification": {"title_loc_args": ["a", 'b"', "c'"]}}},
    )

    assert rows(connection, "params, data, message") == [
        (
            {"order_id": 42, "name": "Zoë 🔔", "paid": True, "none": None},
            {"%s": "100 %"},
            {"android": {"notification": {"title_loc_args": ["a", 'b"', "c'"]}}},
        )
    ]


def test_none_is_null_in_json_columns_too_and_never_the_json_null(connection: psycopg.Connection) -> None:
    defer(connection, receiver_id="u_42", title="Hello", params=None, data=None, message=None, campaign=None)

    assert rows(connection, "params is null, data is null, message is null, campaign is null") == [(True,) * 4]


def test_defer_stores_every_column_that_a_caller_may_give(connection: psycopg.Connection) -> None:
    at = datetime.datetime(2027, 1, 2, 9, tzinfo=datetime.UTC)
    values: dict[str, Any] = {
        "event_id": "e",
        "kind": "topic",
        "address": "news",
        "campaign": "restock",
        "title": "Back",
        "body": "It is back",
        "image": "https://shop.example/tent.png",
        "params": {"item": "tent"},
        "data": {"item": "7"},
        "message": {"android": {"ttl": "60s"}},
        "priority": "high",
        "send_at": at,
        "expires_at": at + datetime.timedelta(hours=1),
        "on_unknown": "hold",
        "project": "other",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }

    defer(connection, **values)

    assert set(values) == set(Columns.__annotations__) - {"receiver_id"}
    assert set(JSON_COLUMNS) <= set(values)
    assert rows(connection, ", ".join(values)) == [tuple(values.values())]


@pytest.mark.parametrize(
    ("module", "cursor"),
    [("psycopg2.extensions", "cursor"), ("psycopg2.extras", "RealDictCursor"), ("psycopg2.extras", "NamedTupleCursor")],
)
def test_defer_takes_a_psycopg2_connection(
    database: str, connection: psycopg.Connection, module: str, cursor: str
) -> None:
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2 is not here, and no dependency")
    factory = getattr(pytest.importorskip(module), cursor)

    with psycopg2.connect(database, cursor_factory=factory) as callers:
        first = defer(callers, event_id="e", receiver_id="u_42", title="100 %", data={"a": "1"})
        again = defer(callers, event_id="e", receiver_id="u_42", title="100 %", params=None)
        with pytest.raises(psycopg2.errors.CheckViolation, match="has no content"):
            defer(callers, receiver_id="u_42")
        callers.rollback()
        defer(callers, event_id="e", receiver_id="u_42", title="100 %", data={"a": "1"})
    callers.close()

    assert again is None
    assert first is not None
    assert rows(connection, "title, data") == [("100 %", {"a": "1"})]
