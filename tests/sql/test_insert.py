"""An INSERT is refused by a named rule, and only for reasons that the row itself shows."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import LiteralString

import pytest
from psycopg.errors import CheckViolation, UniqueViolation

from tests.support.store_calls import Connection, at_once, await_lock, connected

ADDRESS = "fcm:a-secret-address"
NINE = datetime(2100, 1, 1, 9, tzinfo=UTC)
TEN = datetime(2100, 1, 1, 10, tzinfo=UTC)
TO_TOKEN = {"kind": "token", "address": ADDRESS}
NO_CONTENT = {"title": None}

PUBLISH: LiteralString = """
    insert into notify_worker.notifications (event_id, receiver_id, title)
    values (%s, 'u_42', 'Paid')
    on conflict (event_id) do nothing
    returning id
"""


@pytest.mark.parametrize(
    ("rule", "columns"),
    [
        ("notifications_one_target", {"receiver_id": None}),
        ("notifications_one_target", {"receiver_id": "u_42", **TO_TOKEN}),
        ("notifications_one_target", {"receiver_id": "u_42", "kind": "token"}),
        ("notifications_one_target", {"receiver_id": "u_42", "address": ADDRESS}),
        ("notifications_one_target", {"kind": "token", "address": None}),
        ("notifications_one_target", {"kind": None, "address": ADDRESS}),
        ("notifications_kind", {"kind": "email", "address": ADDRESS}),
        ("notifications_kind", {"kind": "", "address": ADDRESS}),
        ("notifications_content", {**TO_TOKEN, **NO_CONTENT}),
        ("notifications_content", {**TO_TOKEN, **NO_CONTENT, "image": "https://example.org/a.png", "params": {"a": 1}}),
        ("notifications_priority", {**TO_TOKEN, "priority": "urgent"}),
        ("notifications_on_unknown", {**TO_TOKEN, "on_unknown": "drop"}),
        ("notifications_on_unknown", {**TO_TOKEN, "on_unknown": None}),
        ("notifications_event_id", {**TO_TOKEN, "event_id": "x" * 513}),
        ("notifications_event_id", {**TO_TOKEN, "event_id": "ä" * 256 + "x"}),
        ("notifications_expire_after_sending", {**TO_TOKEN, "send_at": TEN, "expires_at": NINE}),
        ("notifications_expire_after_sending", {**TO_TOKEN, "send_at": NINE, "expires_at": NINE}),
        ("notifications_params", {**TO_TOKEN, "params": [ADDRESS]}),
        ("notifications_message", {**TO_TOKEN, "message": [ADDRESS]}),
        ("notifications_data", {**TO_TOKEN, "data": ["a"]}),
        ("notifications_data", {**TO_TOKEN, "data": {"order_id": 42}}),
        ("notifications_data", {**TO_TOKEN, "data": {"fine": "a", "order_id": None}}),
        ("notifications_data", {**TO_TOKEN, "data": {"order": {"id": "42"}}}),
        ("notifications_data", {**TO_TOKEN, "data": {"orders": ["42"]}}),
        ("notifications_data", {**TO_TOKEN, "data": {"orders": []}}),
        ("notifications_data_keys", {**TO_TOKEN, "data": {"from": "a"}}),
        ("notifications_data_keys", {**TO_TOKEN, "data": {"message_type": "a"}}),
        ("notifications_data_keys", {**TO_TOKEN, "data": {"notification": "a"}}),
        ("notifications_data_keys", {**TO_TOKEN, "data": {"notification_id": "a"}}),
        ("notifications_data_keys", {**TO_TOKEN, "data": {"fine": "a", "google.sent_time": "a"}}),
        ("notifications_data_keys", {**TO_TOKEN, "data": {"gcm.n.e": "a"}}),
    ],
)
def test_a_bad_row_is_refused_by_a_named_rule_with_a_hint_and_without_its_address(
    connection: Connection, rule: str, columns: dict[str, object]
) -> None:
    with pytest.raises(CheckViolation) as refused:
        connection.insert(**columns)

    diagnosis = refused.value.diag
    assert diagnosis.constraint_name == rule
    assert (diagnosis.schema_name, diagnosis.table_name) == ("notify_worker", "notifications")
    assert diagnosis.message_hint
    assert ADDRESS not in f"{refused.value} {diagnosis.message_detail} {diagnosis.message_hint} {diagnosis.context}"


@pytest.mark.parametrize(
    "columns",
    [
        {"priority": None},
        {"priority": "normal"},
        {"data": {}},
        {"data": {"order": "{order_id}", "from_whom": "a", "Google": "a", "": ""}},
        {"title": "{name} and {{braces}}", "body": "%s %% :word \\"},
        {"event_id": "x" * 512},
        {"event_id": "ä" * 256},
        {"event_id": ""},
        {"receiver_id": "사용자 42", "title": "🎪 텐트"},
        {"kind": "fid", "address": "cX1"},
        {"kind": "topic", "address": "tents"},
        {"kind": "condition", "address": "'tents' in topics || 'boats' in topics"},
        {"title": None, "campaign": "order_paid", "params": {"order_id": 42, "more": [None, {"a": 1}]}},
        {"title": None, "body": "only a body"},
        {"title": None, "data": {"only": "data"}},
        {"title": None, "message": {"android": {"ttl": "60s"}}},
        {"send_at": NINE},
        {"send_at": NINE, "expires_at": TEN},
        {"expires_at": datetime(2000, 1, 1, tzinfo=UTC)},
        {"on_unknown": "hold"},
        {"project": "of nobody"},
    ],
    ids=str,
)
def test_a_valid_row_is_accepted_unchanged(connection: Connection, columns: dict[str, object]) -> None:
    stored = connection.notification(connection.insert(**columns))

    assert {name: stored[name] for name in columns} == columns
    assert stored["state"] == "pending"


def test_only_high_priority_has_the_fast_lane(connection: Connection) -> None:
    priorities = ("high", "normal", None)

    lanes = [connection.notification(connection.insert(priority=priority))["lane"] for priority in priorities]

    assert lanes == [0, 1, 1]


def test_a_notification_is_due_when_it_is_to_be_sent(connection: Connection) -> None:
    later = connection.notification(connection.insert(send_at=NINE))
    at_once = connection.notification(connection.insert())

    assert later["due_at"] == NINE
    assert at_once["due_at"] == at_once["created_at"]


def test_after_a_savepoint_the_business_transaction_goes_on(connection: Connection) -> None:
    connection.execute("create table orders (id int)")

    with connection.transaction():
        connection.execute("insert into orders values (42)")
        with suppress(CheckViolation), connection.transaction():
            connection.insert(priority="urgent")
        connection.execute("insert into orders values (43)")

    assert connection.value("select count(*) from orders") == 2
    assert connection.value("select count(*) from notify_worker.notifications") == 0


def test_an_order_that_names_a_missing_campaign_commits(connection: Connection) -> None:
    connection.execute("create table orders (id int)")

    with connection.transaction():
        connection.execute("insert into orders values (42)")
        connection.insert(receiver_id="u_42", campaign="no_such", project="no_such")

    assert connection.value("select count(*) from orders") == 1


def test_one_bad_row_refuses_its_whole_statement(connection: Connection) -> None:
    with pytest.raises(CheckViolation):
        connection.execute(
            "insert into notify_worker.notifications (receiver_id, title) values ('u_1', 'Paid'), ('u_2', null)"
        )

    assert connection.value("select count(*) from notify_worker.notifications") == 0


def test_copy_is_checked_as_insert_is(connection: Connection) -> None:
    copy = "copy notify_worker.notifications (receiver_id, title, priority) from stdin"

    with pytest.raises(CheckViolation) as refused, connection.cursor() as cursor, cursor.copy(copy) as rows_to_copy:
        rows_to_copy.write_row(("u_1", "Paid", "urgent"))

    assert refused.value.diag.constraint_name == "notifications_priority"


def test_an_event_that_is_published_again_changes_nothing(connection: Connection) -> None:
    first = connection.rows(PUBLISH, "order:42:paid")

    again = connection.rows(PUBLISH, "order:42:paid")

    assert len(first) == 1
    assert again == []
    assert connection.value("select count(*) from notify_worker.notifications") == 1


def test_without_on_conflict_a_second_event_is_an_error_with_a_name(connection: Connection) -> None:
    connection.insert(event_id="order:42:paid")

    with pytest.raises(UniqueViolation) as refused:
        connection.insert(event_id="order:42:paid")

    assert refused.value.diag.constraint_name == "notifications_event_once"


def test_rows_without_an_event_are_not_deduplicated(connection: Connection) -> None:
    assert connection.insert() != connection.insert()


def test_the_same_event_from_eight_connections_at_once_is_one_row(database: str) -> None:
    def publish() -> int:
        with Connection.connect(database) as producer:
            return len(producer.rows(PUBLISH, "order:42:paid"))

    published = at_once(*[publish] * 8)

    assert sorted(published) == [0] * 7 + [1]


@pytest.mark.parametrize(("first_ends", "published"), [("commit", 0), ("rollback", 1)])
def test_the_second_of_two_transactions_with_one_event_waits_for_the_first(
    database: str, connection: Connection, first_ends: LiteralString, published: int
) -> None:
    with connected(database) as first, connected(database) as second, ThreadPoolExecutor(1) as thread:
        first.execute("begin")
        first.rows(PUBLISH, "order:42:paid")

        waiting = thread.submit(second.rows, PUBLISH, "order:42:paid")
        await_lock(connection, second.info.backend_pid)
        first.execute(first_ends)

        assert len(waiting.result(10)) == published
    assert connection.value("select count(*) from notify_worker.notifications") == 1
