"""What `status`, `dead_letters` and `history` show of every kind of story."""

from collections.abc import Callable
from datetime import timedelta
from typing import LiteralString

import psycopg
import pytest

from tests.support.store_calls import (
    A_MOMENT,
    FAILED,
    FUTURE,
    GIVEN_UP,
    LATER,
    RETRY,
    SENT,
    UNKNOWN,
    UNREGISTERED,
    Row,
    Worker,
    await_end_of_lease,
    cancel,
    claim,
    deliveries,
    insert,
    insert_for_devices,
    register,
    register_worker,
    retry,
    row,
    rows,
    send,
    unregister_worker,
    value,
)

CAP = 100_000


EMPTY = {
    "pending": 0,
    "due": 0,
    "leased": 0,
    "orphans": 0,
    "oldest_due_for": None,
    "held": 0,
    "dead_letters": 0,
    "workers": 0,
    "paused_projects": 0,
    "sent_last_minute": 0,
}

Prepare = Callable[[psycopg.Connection, Worker], int]


def status(connection: psycopg.Connection) -> Row:
    return row(connection, "select * from notify_worker.status")


def tell(connection: psycopg.Connection, worker: Worker, *came_to: Row, **columns: object) -> int:
    """A receiver is told on as many devices, each of which comes to something."""
    told = insert_for_devices(connection, len(came_to), **columns)
    send(connection, worker, *came_to)
    return told


def test_where_nothing_is_nothing_is_counted(connection: psycopg.Connection) -> None:
    assert status(connection) == EMPTY
    assert list(status(connection)) == list(EMPTY)


def test_what_waits_is_pending_and_what_has_come_is_due(connection: psycopg.Connection) -> None:
    insert(connection, send_at=FUTURE)
    insert(connection)
    late = insert(connection, priority="high")
    connection.execute(
        "update notify_worker.notifications set due_at = now() - interval '90 seconds' where id = %s", [late]
    )

    now = status(connection)

    assert now.items() >= {"pending": 3, "due": 2, "leased": 0, "orphans": 0}.items()
    assert timedelta(seconds=90) <= now["oldest_due_for"] < timedelta(seconds=120)


def test_what_is_paused_is_pending_and_not_due(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders'), ('empty')")
    insert(connection, project="orders")
    connection.execute("select notify_worker.pause(name, 'x') from notify_worker.projects where name <> 'default'")

    assert status(connection) == EMPTY | {"pending": 1, "paused_projects": 2}


def test_what_is_of_no_project_is_due_until_it_is_settled(connection: psycopg.Connection) -> None:
    insert(connection, project="no_such")

    assert status(connection)["due"] == 1


def test_what_a_worker_has_in_hand_is_leased(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    for _ in range(3):
        insert(connection)
    claim(connection, worker, most=2)

    assert status(connection).items() >= {"pending": 3, "due": 1, "leased": 2, "orphans": 0, "workers": 1}.items()


def test_what_a_worker_that_left_or_froze_has_in_hand_is_an_orphan(
    database: str, connection: psycopg.Connection
) -> None:
    insert(connection)
    left = register_worker(connection)
    claim(connection, left)
    frozen_with = insert(connection)
    claim(connection, register_worker(connection, A_MOMENT))
    unregister_worker(connection, left)
    await_end_of_lease(connection, frozen_with)

    now = status(connection)

    assert now.items() >= {"pending": 2, "due": 1, "leased": 1, "orphans": 2, "workers": 1}.items()


def test_what_is_held_is_counted_for_a_person_to_decide(connection: psycopg.Connection) -> None:
    tell(connection, register_worker(connection), UNKNOWN, on_unknown="hold")

    assert status(connection) == EMPTY | {"held": 1, "workers": 1}


def test_dead_letters_are_counted_a_delivery_each(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    tell(connection, worker, FAILED, UNREGISTERED, GIVEN_UP)
    insert(connection, campaign="no_such")
    claim(connection, worker)

    assert status(connection) == EMPTY | {"dead_letters": 3, "workers": 1}


def test_what_was_sent_counts_for_a_minute(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    tell(connection, worker, SENT, SENT, FAILED)
    assert status(connection)["sent_last_minute"] == 2

    connection.execute("update notify_worker.stored_attempts set recorded_at = recorded_at - interval '61 seconds'")

    assert status(connection)["sent_last_minute"] == 0


def test_workers_are_counted_until_they_leave(connection: psycopg.Connection) -> None:
    one, _ = register_worker(connection), register_worker(connection)
    unregister_worker(connection, one)

    assert status(connection)["workers"] == 1


def fill(connection: psycopg.Connection, columns: LiteralString, values: LiteralString, count: int) -> None:
    connection.execute(
        f"""
        insert into notify_worker.notifications (kind, address, title, {columns})
        select 'topic', 'news', 'Hello', {values} from generate_series(1, {count})
        """
    )


def test_counts_stop_at_a_hundred_thousand(connection: psycopg.Connection) -> None:
    connection.execute("alter table notify_worker.notifications disable trigger user")
    register_worker(connection)
    fill(connection, "due_at", "now()", CAP + 1)
    fill(connection, "due_at, lease, leased_by", "now() + '1 minute', gen_random_uuid(), 4711", CAP + 1)
    fill(connection, "state", "'held'", CAP + 1)
    fill(connection, "state, settled_at, settled_reason", "'failed', now(), 'x'", CAP + 1)
    connection.execute(
        """
        insert into notify_worker.stored_attempts
            (delivery_id, notification_id, number, lease, worker, started_at, verdict)
        select number, number, 1, gen_random_uuid(), 'x', now(), 'sent' from generate_series(1, %s) as number
        """,
        [CAP + 1],
    )

    now = status(connection)

    capped = ("pending", "due", "leased", "orphans", "held", "dead_letters", "sent_last_minute")
    assert [now[name] for name in capped] == [CAP] * len(capped)


def test_what_is_due_the_longest_is_found_behind_a_hundred_thousand_of_another_project(
    connection: psycopg.Connection,
) -> None:
    connection.execute("alter table notify_worker.notifications disable trigger user")
    fill(connection, "project, due_at", "'a', now()", CAP + 1)
    fill(connection, "project, due_at", "'b', now() - interval '1 hour'", 1)

    assert status(connection)["oldest_due_for"] >= timedelta(hours=1)


DEAD_LETTERS: LiteralString = "select * from notify_worker.dead_letters order by notification_id, delivery_id"


def test_a_dead_letter_says_what_failed_for_whom_and_why(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    worker = register_worker(connection)
    number = tell(connection, worker, FAILED, SENT, event_id="order:42:paid", campaign="sale")

    (letter,) = rows(connection, DEAD_LETTERS)

    failed = deliveries(connection, number)[0]
    assert letter == {
        "delivery_id": failed["id"],
        "notification_id": number,
        "event_id": "order:42:paid",
        "receiver_id": "u_42",
        "campaign": "sale",
        "project": "default",
        "attempts": 1,
        "error_code": "INVALID_ARGUMENT",
        "error": "it is wrong",
        "failed_at": failed["settled_at"],
    }


def test_what_never_came_to_a_delivery_is_a_dead_letter_too(connection: psycopg.Connection) -> None:
    number = insert(connection, campaign="no_such")
    claim(connection, register_worker(connection))

    (letter,) = rows(connection, DEAD_LETTERS)

    assert (letter["delivery_id"], letter["notification_id"], letter["attempts"]) == (None, number, 0)
    assert letter["error"] == 'there is no campaign "no_such"'
    assert letter["failed_at"] is not None


def test_what_can_no_longer_be_sent_after_a_try_is_one_dead_letter(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    worker = register_worker(connection)
    number = tell(connection, worker, RETRY, campaign="sale")
    connection.execute("delete from notify_worker.campaigns")
    claim(connection, worker)

    (letter,) = rows(connection, DEAD_LETTERS)

    assert letter["delivery_id"] == deliveries(connection, number)[0]["id"]
    assert (letter["attempts"], letter["error"]) == (1, 'there is no campaign "sale"')


def test_the_reason_of_a_dead_letter_has_no_code_of_another_reason(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    worker = register_worker(connection)
    tell(connection, worker, RETRY, campaign="sale")
    connection.execute("delete from notify_worker.campaigns")
    claim(connection, worker)

    assert rows(connection, DEAD_LETTERS)[0]["error_code"] is None


def cancelled(connection: psycopg.Connection, worker: Worker) -> int:
    number = tell(connection, worker, LATER)
    cancel(connection, number)
    return number


def expired(connection: psycopg.Connection, worker: Worker) -> int:
    number = tell(connection, worker, RETRY)
    connection.execute("update notify_worker.notifications set expires_at = now()")
    claim(connection, worker)
    return number


def retried(connection: psycopg.Connection, worker: Worker) -> int:
    number = tell(connection, worker, FAILED)
    retry(connection, number)
    return number


def of_no_one(connection: psycopg.Connection, worker: Worker) -> int:
    number = insert(connection, receiver_id="nobody")
    claim(connection, worker)
    return number


def told(*came_to: Row, **columns: object) -> Prepare:
    return lambda connection, worker: tell(connection, worker, *came_to, **columns)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(told(SENT), id="sent"),
        pytest.param(told(LATER), id="waits for a retry"),
        pytest.param(told(UNREGISTERED), id="unregistered"),
        pytest.param(told(SENT, UNREGISTERED), id="sent beside an unregistered device"),
        pytest.param(told(UNKNOWN, on_unknown="hold"), id="held"),
        cancelled,
        expired,
        retried,
        of_no_one,
    ],
)
def test_what_was_not_given_up_on_is_no_dead_letter(connection: psycopg.Connection, prepare: Prepare) -> None:
    prepare(connection, register_worker(connection))

    assert rows(connection, DEAD_LETTERS) == []


HISTORY: LiteralString = "select * from notify_worker.history('u_42')"


def of_no_campaign(connection: psycopg.Connection, worker: Worker) -> int:
    number = insert(connection, receiver_id="u_42", campaign="no_such")
    claim(connection, worker)
    return number


def without_a_device(connection: psycopg.Connection, worker: Worker) -> int:
    number = insert(connection, receiver_id="u_42")
    claim(connection, worker)
    return number


def leased(connection: psycopg.Connection, worker: Worker) -> int:
    register(connection, "u_42", "fcm:phone")
    number = insert(connection, receiver_id="u_42")
    claim(connection, worker)
    return number


def due(connection: psycopg.Connection, worker: Worker) -> int:
    return insert(connection, receiver_id="u_42")


def scheduled(connection: psycopg.Connection, worker: Worker) -> int:
    return insert(connection, receiver_id="u_42", send_at=FUTURE)


def cancelled_unsent(connection: psycopg.Connection, worker: Worker) -> int:
    number = due(connection, worker)
    cancel(connection, number)
    return number


@pytest.mark.parametrize(
    ("prepare", "state", "reason"),
    [
        (told(SENT), "sent", "FCM has accepted it"),
        (told(SENT, FAILED), "sent", "FCM has accepted it"),
        (told(FAILED, UNREGISTERED), "failed", "it is"),
        (told(GIVEN_UP), "failed", "FCM is busy"),
        (told(UNREGISTERED), "unreachable", "it is gone"),
        (told(UNKNOWN, on_unknown="hold"), "held", "it is unknown whether FCM has it; it is for a person to decide"),
        (told(LATER), "pending", "FCM is busy, due at "),
        (of_no_campaign, "failed", 'there is no campaign "no_such"'),
        (without_a_device, "unreachable", "the receiver has no live device"),
        (expired, "expired", "it expired before it could be sent"),
        (cancelled, "cancelled", "it was cancelled by a call"),
        (cancelled_unsent, "cancelled", "it was cancelled by a call"),
        (leased, "pending", "a worker holds it"),
        (due, "pending", "it is due"),
        (scheduled, "pending", "due at 2100-01-01"),
        (retried, "pending", "it is due"),
    ],
)
def test_the_history_of_a_receiver_says_what_became_of_it_and_why(
    connection: psycopg.Connection, prepare: Prepare, state: str, reason: str
) -> None:
    number = prepare(connection, register_worker(connection))

    (line,) = rows(connection, HISTORY)

    assert (line["notification_id"], line["state"]) == (number, state)
    assert line["reason"].startswith(reason)


def test_a_history_has_a_line_for_each_notification_of_the_receiver_the_newest_first(
    connection: psycopg.Connection,
) -> None:
    worker = register_worker(connection)
    first = tell(connection, worker, SENT, FAILED, event_id="order:42:paid", title="Hello")
    second = insert(connection, receiver_id="u_42", campaign="sale")
    insert(connection, receiver_id="u_43")
    insert(connection, address="fcm:device-0")

    newest, oldest = rows(connection, HISTORY)

    assert (newest["notification_id"], newest["event_id"], newest["campaign"]) == (second, None, "sale")
    assert (oldest["notification_id"], oldest["event_id"], oldest["campaign"]) == (first, "order:42:paid", None)
    assert oldest["at"] <= newest["at"]
    assert list(newest) == ["at", "event_id", "notification_id", "campaign", "state", "reason"]


def test_a_history_begins_when_it_is_asked_to(connection: psycopg.Connection) -> None:
    old, new = insert(connection, receiver_id="u_42"), insert(connection, receiver_id="u_42")
    connection.execute(
        "update notify_worker.notifications set created_at = now() - interval '2 days' where id = %s", [old]
    )

    since = rows(connection, "select notification_id from notify_worker.history('u_42', now() - interval '1 day')")

    assert since == [{"notification_id": new}]
    assert rows(connection, "select * from notify_worker.history('nobody')") == []


def test_a_delivery_shows_no_more_than_the_end_of_its_address(connection: psycopg.Connection) -> None:
    register(connection, "u_42", "a-secret-address-0815")
    insert(connection, receiver_id="u_42")
    claim(connection, register_worker(connection))

    assert value(connection, "select address from notify_worker.deliveries") == "s-0815"


def test_a_worker_is_among_the_workers_while_it_lives(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    (alive,) = rows(connection, "select * from notify_worker.workers")

    unregister_worker(connection, worker)

    assert (alive["name"], alive["host"], alive["pid"]) == (worker.name, "here", connection.info.backend_pid)
    assert rows(connection, "select * from notify_worker.workers") == []
