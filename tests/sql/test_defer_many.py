"""Many notifications in one statement: ids in the order of the rows, one wake-up, all or none."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any, cast

import psycopg
import pytest
from psycopg.errors import CheckViolation
from psycopg.rows import RowFactory, TupleRow, dict_row, namedtuple_row, scalar_row

from notify_worker.producer import JSON_COLUMNS, Columns, defer, defer_many, defer_many_async
from tests.support.store_calls import Connection, Row, at_once, connected

AT = datetime(2027, 1, 2, 9, tzinfo=UTC)
HELLO: Columns = {"receiver_id": "u_42", "title": "Hello"}


@pytest.fixture
async def async_connection(database: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        yield connection


def event(event_id: str | int | None, **columns: Any) -> Columns:
    """A row with an event."""
    return {**HELLO, "event_id": event_id, **columns}  # type: ignore[typeddict-item]


def outbox(connection: Connection) -> list[Row]:
    return connection.rows("select * from notify_worker.notifications order by id")


def events(connection: Connection) -> dict[int, str | None]:
    """The event of each id."""
    return {row["id"]: row["event_id"] for row in outbox(connection)}


def titles(connection: Connection) -> dict[int, str]:
    return {row["id"]: row["title"] for row in outbox(connection)}


# ── ids ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ids_come_in_the_order_of_the_rows(connection: Connection) -> None:
    names = [f"order:{number}" for number in range(200)]
    random.Random(7).shuffle(names)

    ids = defer_many(connection, [event(name) for name in names])

    stored = events(connection)
    assert len(stored) == 200
    assert [stored[id_] for id_ in ids if id_] == names


def test_rows_without_an_event_get_ids_in_their_order_among_those_with_one(connection: Connection) -> None:
    given = [event(f"order:{number}" if number % 3 else None, title=f"no. {number}") for number in range(60)]
    random.Random(7).shuffle(given)
    del given[-1]["event_id"]

    ids = defer_many(connection, given)

    stored = titles(connection)
    assert [stored[id_] for id_ in ids if id_] == [row["title"] for row in given]


def test_an_event_that_exists_gives_none_in_its_place(connection: Connection) -> None:
    defer(connection, **event("b", title="first"))

    ids = defer_many(connection, [event("a"), event("b", title="second"), event("c")])

    assert ids[1] is None
    assert events(connection) == {1: "b", ids[0]: "a", ids[2]: "c"}
    assert titles(connection)[1] == "first"


def test_the_first_row_of_a_repeated_event_counts(connection: Connection) -> None:
    ids = defer_many(
        connection, [event("b"), event("a", title="one"), event("a", title="two"), event("a", title="three")]
    )

    assert ids[2:] == [None, None]
    assert titles(connection) == {ids[0]: "Hello", ids[1]: "one"}


@pytest.mark.parametrize("name", ["", " ", "null", "ä", "100 %s {x}", 'say "hi"', "a\nb", "🔔"])
def test_an_event_may_have_any_name(connection: Connection, name: str) -> None:
    ids = defer_many(connection, [event(None), event(name), event(None), event(name)])

    assert ids[3] is None
    assert events(connection) == {ids[0]: None, ids[1]: name, ids[2]: None}


def test_an_event_may_be_a_number_as_with_defer(connection: Connection) -> None:
    assert defer(connection, **event(7)) == 1

    ids = defer_many(connection, [event(42), event(7), event(43)])

    assert ids[1] is None
    assert events(connection) == {1: "7", ids[0]: "42", ids[2]: "43"}


def test_no_rows_make_no_statement() -> None:
    assert defer_many(None, []) == []


def test_rows_may_come_from_a_generator(connection: Connection) -> None:
    assert defer_many(connection, (event(name) for name in "ba")) == [2, 1]


def test_defer_many_commits_nothing_by_itself(database: str, connection: Connection) -> None:
    with Connection.connect(database) as callers:
        defer_many(callers, [event("a"), event("b")])
        callers.rollback()
        defer_many(callers, [event("c")])
        assert outbox(connection) == []

    assert [*events(connection).values()] == ["c"]


# ── columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

MIXED: list[Columns] = [
    {"receiver_id": "u_1", "campaign": "restock", "params": {"item": "tent", "left": 3, "none": None}},
    {"kind": "topic", "address": "news", "title": "100 %", "priority": "high", "on_unknown": "hold"},
    {"receiver_id": "u_2", "body": "", "data": {"%s": 'a "b" \\ c'}, "project": "other", "send_at": AT},
    {"receiver_id": "u_3", "message": {"android": {"ttl": "60s"}}, "params": None, "event_id": None},
    {"receiver_id": "u_4", "title": "Zoë 🔔", "expires_at": AT, "traceparent": "00-0af7-b7ad-01", "image": "https://x"},
]


def test_each_row_equals_that_of_defer(database: str, connection: Connection) -> None:
    given = MIXED
    assert set(Columns.__annotations__) == {name for row in given for name in row}

    many = defer_many(connection, given)
    one_by_one = [defer(connection, **row) for row in given]

    stored = {row.pop("id"): {name: row[name] for name in Columns.__annotations__} for row in outbox(connection)}
    assert [stored[id_] for id_ in many if id_] == [stored[id_] for id_ in one_by_one if id_]


def test_a_row_that_lacks_a_column_keeps_its_default(connection: Connection) -> None:
    defer_many(connection, [HELLO, {**HELLO, "on_unknown": "hold"}, {**HELLO, "project": "other"}])

    assert [(row["on_unknown"], row["project"]) for row in outbox(connection)] == [
        ("resend", "default"),
        ("hold", "default"),
        ("resend", "other"),
    ]


def test_none_is_null_in_json_columns_too_and_never_the_json_null(connection: Connection) -> None:
    defer_many(connection, [{**HELLO, "params": None, "data": None, "message": None}, {**HELLO, "params": {"a": 1}}])

    assert [[row[name] for name in JSON_COLUMNS] for row in outbox(connection)] == [[None] * 3, [{"a": 1}, None, None]]
    assert connection.value("select count(*) from notify_worker.notifications where params is null") == 1


def test_a_send_at_without_a_zone_is_in_the_connections_time_zone(connection: Connection) -> None:
    connection.execute("set timezone = 'Asia/Tokyo'")
    in_new_york = AT.astimezone(timezone(timedelta(hours=-5)))
    naive = AT.replace(tzinfo=None)

    defer_many(connection, [{**HELLO, "send_at": moment} for moment in (AT, in_new_york, naive)])
    defer(connection, **event(None, send_at=naive))

    as_in_tokyo = AT - timedelta(hours=9)
    assert [row["send_at"] for row in outbox(connection)] == [AT, AT, as_in_tokyo, as_in_tokyo]


@pytest.mark.parametrize("column", JSON_COLUMNS)
def test_defer_many_refuses_the_same_json_as_defer(connection: Connection, column: str) -> None:
    row: Any = {**HELLO, column: {"at": AT}}

    with pytest.raises(TypeError, match="not JSON serializable"):
        defer(connection, **row)
    with pytest.raises(TypeError, match="not JSON serializable"):
        defer_many(connection, [row])


def test_a_value_of_a_wrong_type_is_a_type_error(connection: Connection) -> None:
    wrong: Any = {**HELLO, "title": object()}

    with pytest.raises(TypeError, match="object"):
        defer_many(connection, [wrong])


# ── all or none ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thousand_rows_send_one_wakeup(connection: Connection) -> None:
    ids = defer_many(connection, [event(f"order:{number}") for number in range(1_000)])

    assert (len(set(ids)), connection.wakeups()) == (1_000, 1)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("reciever_id", "Did you mean receiver_id?"), ("due_at", ""), ('title) values (1); drop table "x"; --', "")],
)
def test_an_unknown_column_in_any_row_is_a_type_error(connection: Connection, wrong: str, hint: str) -> None:
    given: Any = [HELLO, HELLO, {"title": "Hello", wrong: "x"}]

    with pytest.raises(TypeError) as caught:
        defer_many(connection, given)

    assert str(caught.value).startswith(f'notifications have no column "{wrong}" that a caller gives.')
    assert str(caught.value).endswith(hint)
    assert outbox(connection) == []


BAD: list[tuple[dict[str, Any], str]] = [
    ({"receiver_id": "u_42"}, "notifications_content"),
    ({}, "notifications_one_target"),
    ({"title": "Hello", "kind": "pigeon", "address": "loft"}, "notifications_kind"),
    ({**HELLO, "data": {"n": 1}}, "notifications_data"),
    ({**HELLO, "params": [1]}, "notifications_params"),
    ({**HELLO, "priority": "urgent"}, "notifications_priority"),
    ({**HELLO, "event_id": "e" * 513}, "notifications_event_id"),
    ({**HELLO, "send_at": AT, "expires_at": AT}, "notifications_expire_after_sending"),
]


@pytest.mark.parametrize(("bad", "rule"), BAD, ids=[rule for _, rule in BAD])
def test_one_refused_row_refuses_them_all_and_names_its_rule(connection: Connection, bad: Any, rule: str) -> None:
    with pytest.raises(CheckViolation) as caught:
        defer_many(connection, [event("a"), bad, event("z")])

    assert caught.value.diag.constraint_name == rule
    assert (outbox(connection), connection.wakeups()) == ([], 0)


def test_after_a_savepoint_the_business_transaction_goes_on(database: str, connection: Connection) -> None:
    with Connection.connect(database) as callers:
        defer(callers, **event("before"))
        with pytest.raises(CheckViolation), callers.transaction():
            defer_many(callers, [event("a"), {"receiver_id": "u_42"}])
        defer_many(callers, [event("after")])

    assert [*events(connection).values()] == ["before", "after"]


# ── many at once ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_eight_producers_of_the_same_events_publish_each_once_without_deadlock(
    database: str, connection: Connection
) -> None:
    names = [f"order:{number}" for number in range(50)]

    def publish(seed: int) -> list[int | None]:
        mine = random.Random(seed).sample(names, len(names))
        with connected(database) as publisher:
            ids: list[int | None] = []
            for _ in range(5):
                ids += defer_many(publisher, [event(name) for name in mine])
            return ids

    found = at_once(*(partial(publish, seed) for seed in range(8)))

    assert sorted(id_ for ids in found for id_ in ids if id_) == sorted(events(connection))
    assert sorted(str(name) for name in events(connection).values()) == sorted(names)


# ── whose connection ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("factory", [dict_row, namedtuple_row, scalar_row])
def test_the_callers_connection_may_have_any_row_factory(connection: Connection, factory: Any) -> None:
    connection.row_factory = cast("RowFactory[TupleRow]", factory)

    ids = defer_many(connection, [event("b"), event(None), event("a"), event("a")])

    assert ids[3] is None
    assert events(connection) == {ids[0]: "b", ids[1]: None, ids[2]: "a"}


@pytest.mark.parametrize("factory", [None, dict_row])
async def test_defer_many_async_does_what_defer_many_does(
    async_connection: psycopg.AsyncConnection[Any], connection: Connection, factory: Any
) -> None:
    if factory:
        async_connection.row_factory = factory

    ids = await defer_many_async(async_connection, [event("b"), event(None), event("a", send_at=AT), event("a")])

    assert ids[3] is None
    assert events(connection) == {ids[0]: "b", ids[1]: None, ids[2]: "a"}
    assert connection.wakeups() == 1
    assert await defer_many_async(async_connection, []) == []


async def test_defer_many_async_refuses_what_defer_many_refuses(
    async_connection: psycopg.AsyncConnection[Any], connection: Connection
) -> None:
    wrong: Any = {"reciever_id": "u_42"}

    with pytest.raises(TypeError, match="Did you mean receiver_id"):
        await defer_many_async(async_connection, [HELLO, wrong])
    with pytest.raises(CheckViolation, match="has no content"):
        await defer_many_async(async_connection, [HELLO, {"receiver_id": "u_42"}])

    assert outbox(connection) == []


@pytest.mark.parametrize("cursor", ["cursor", "RealDictCursor", "NamedTupleCursor", "DictCursor"])
def test_defer_many_takes_a_psycopg2_connection(database: str, connection: Connection, cursor: str) -> None:
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2 is not here, and no dependency")
    extras = pytest.importorskip("psycopg2.extras")
    factory = getattr(extras, cursor, psycopg2.extensions.cursor)

    with psycopg2.connect(database, cursor_factory=factory) as callers:
        ids = defer_many(callers, [event("b", title="100 %"), event(None), event("a", params={"n": 1}), event("a")])
        with pytest.raises(psycopg2.errors.CheckViolation, match="has no content"):
            defer_many(callers, [event("c"), {"receiver_id": "u_42"}])
        callers.rollback()
        again = defer_many(callers, [event("b"), event("c")])
    callers.close()

    assert ids[3] is None
    assert [id_ is not None for id_ in again] == [True, True], "what was rolled back is not there"
    assert sorted(str(name) for name in events(connection).values()) == ["b", "c"]
