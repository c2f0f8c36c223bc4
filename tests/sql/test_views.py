"""`status`, `dead_letters` and `history` for every state of a notification."""

from collections.abc import Callable
from datetime import timedelta
from typing import LiteralString

import pytest

from tests.support.store_calls import (
    FAILED,
    FUTURE,
    GIVEN_UP,
    LATER,
    RETRY,
    SENT,
    SHORT_LEASE,
    UNKNOWN,
    UNREGISTERED,
    Connection,
    Row,
    Worker,
    cancel,
    without_code,
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

Prepare = Callable[[Connection, Worker], int]


def status(connection: Connection) -> Row:
    return connection.row("select * from notify_worker.status")


def tell(connection: Connection, worker: Worker, *came_to: Row, **columns: object) -> int:
    """Send a notification to as many devices of a receiver as there are outcomes, one for each."""
    prepared = connection.insert_for_devices(len(came_to), **columns)
    connection.send(worker, *came_to)
    return prepared


def test_the_status_of_an_empty_installation_counts_nothing(connection: Connection) -> None:
    assert status(connection) == EMPTY
    assert list(status(connection)) == list(EMPTY)


def test_a_scheduled_notification_is_pending_and_then_due(connection: Connection) -> None:
    connection.insert(send_at=FUTURE)
    connection.insert()
    late = connection.insert(priority="high")
    connection.execute(
        "update notify_worker.notifications set due_at = now() - interval '90 seconds' where id = %s", [late]
    )

    now = status(connection)

    assert now.items() >= {"pending": 3, "due": 2, "leased": 0, "orphans": 0}.items()
    assert timedelta(seconds=90) <= now["oldest_due_for"] < timedelta(seconds=120)


def test_a_paused_notification_is_pending_and_not_due(connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders'), ('empty')")
    connection.insert(project="orders")
    connection.execute("select notify_worker.pause(name, 'x') from notify_worker.projects where name <> 'default'")

    assert status(connection) == EMPTY | {"pending": 1, "paused_projects": 2}


def test_a_notification_of_an_unknown_project_is_due_until_it_is_settled(connection: Connection) -> None:
    connection.insert(project="no_such")

    assert status(connection)["due"] == 1


def test_a_claimed_notification_is_leased(connection: Connection, worker: Worker) -> None:
    for _ in range(3):
        connection.insert()
    connection.claim(worker, most=2)

    assert status(connection).items() >= {"pending": 3, "due": 1, "leased": 2, "orphans": 0, "workers": 1}.items()


def test_a_notification_of_a_lost_or_frozen_worker_is_an_orphan(database: str, connection: Connection) -> None:
    connection.insert()
    left = connection.register_worker()
    connection.claim(left)
    frozen_with = connection.insert()
    connection.claim(connection.register_worker(SHORT_LEASE))
    connection.unregister_worker(left)
    connection.await_end_of_lease(frozen_with)

    now = status(connection)

    assert now.items() >= {"pending": 2, "due": 1, "leased": 1, "orphans": 2, "workers": 1}.items()


def test_held_notifications_are_counted(connection: Connection) -> None:
    tell(connection, connection.register_worker(), UNKNOWN, on_unknown="hold")

    assert status(connection) == EMPTY | {"held": 1, "workers": 1}


def test_dead_letters_are_counted_per_delivery(connection: Connection, worker: Worker) -> None:
    tell(connection, worker, FAILED, without_code(FAILED), UNREGISTERED, without_code(UNREGISTERED), GIVEN_UP)
    connection.insert(campaign="no_such")
    connection.claim(worker)

    assert status(connection) == EMPTY | {"dead_letters": 4, "workers": 1}


def test_sent_notifications_count_for_a_minute(connection: Connection, worker: Worker) -> None:
    tell(connection, worker, SENT, SENT, FAILED)
    assert status(connection)["sent_last_minute"] == 2

    connection.execute("update notify_worker.stored_attempts set recorded_at = recorded_at - interval '61 seconds'")

    assert status(connection)["sent_last_minute"] == 0


def test_workers_are_counted_until_they_unregister(connection: Connection) -> None:
    one, _ = connection.register_worker(), connection.register_worker()
    connection.unregister_worker(one)

    assert status(connection)["workers"] == 1


def fill(connection: Connection, columns: LiteralString, values: LiteralString, count: int) -> None:
    connection.execute(
        f"""
        insert into notify_worker.notifications (kind, address, title, {columns})
        select 'topic', 'news', 'Hello', {values} from generate_series(1, {count})
        """
    )


def test_counts_stop_at_a_hundred_thousand(connection: Connection) -> None:
    connection.execute("alter table notify_worker.notifications disable trigger user")
    connection.register_worker()
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


def test_the_oldest_due_is_found_behind_a_hundred_thousand_others(connection: Connection) -> None:
    connection.execute("alter table notify_worker.notifications disable trigger user")
    fill(connection, "project, due_at", "'a', now()", CAP + 1)
    fill(connection, "project, due_at", "'b', now() - interval '1 hour'", 1)

    assert status(connection)["oldest_due_for"] >= timedelta(hours=1)


DEAD_LETTERS: LiteralString = "select * from notify_worker.dead_letters order by notification_id, delivery_id"


def test_a_dead_letter_names_notification_receiver_and_reason(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    number = tell(connection, worker, FAILED, SENT, event_id="order:42:paid", campaign="sale")

    (letter,) = connection.rows(DEAD_LETTERS)

    failed = connection.deliveries(number)[0]
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


def test_a_failure_without_a_delivery_is_a_dead_letter(connection: Connection) -> None:
    number = connection.insert(campaign="no_such")
    connection.claim(connection.register_worker())

    (letter,) = connection.rows(DEAD_LETTERS)

    assert (letter["delivery_id"], letter["notification_id"], letter["attempts"]) == (None, number, 0)
    assert letter["error"] == 'there is no campaign "no_such"'
    assert letter["failed_at"] is not None


def test_an_unsendable_retry_is_one_dead_letter(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    number = tell(connection, worker, RETRY, campaign="sale")
    connection.execute("delete from notify_worker.campaigns")
    connection.claim(worker)

    (letter,) = connection.rows(DEAD_LETTERS)

    assert letter["delivery_id"] == connection.deliveries(number)[0]["id"]
    assert (letter["attempts"], letter["error"]) == (1, 'there is no campaign "sale"')


def test_the_reason_of_a_dead_letter_has_no_code_of_another_reason(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    tell(connection, worker, RETRY, campaign="sale")
    connection.execute("delete from notify_worker.campaigns")
    connection.claim(worker)

    assert connection.rows(DEAD_LETTERS)[0]["error_code"] is None


def cancelled(connection: Connection, worker: Worker) -> int:
    number = tell(connection, worker, LATER)
    cancel(connection, number)
    return number


def expired(connection: Connection, worker: Worker) -> int:
    number = tell(connection, worker, RETRY)
    connection.execute("update notify_worker.notifications set expires_at = now()")
    connection.claim(worker)
    return number


def retried(connection: Connection, worker: Worker) -> int:
    number = tell(connection, worker, FAILED)
    connection.retry(number)
    return number


def of_no_one(connection: Connection, worker: Worker) -> int:
    number = connection.insert(receiver_id="nobody")
    connection.claim(worker)
    return number


def prepared(*came_to: Row, **columns: object) -> Prepare:
    return lambda connection, worker: tell(connection, worker, *came_to, **columns)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(prepared(SENT), id="sent"),
        pytest.param(prepared(LATER), id="waits for a retry"),
        pytest.param(prepared(UNREGISTERED), id="unregistered"),
        pytest.param(prepared(without_code(UNREGISTERED)), id="unregistered, without a code"),
        pytest.param(prepared(SENT, UNREGISTERED), id="sent beside an unregistered device"),
        pytest.param(prepared(UNKNOWN, on_unknown="hold"), id="held"),
        cancelled,
        expired,
        retried,
        of_no_one,
    ],
)
def test_only_failures_are_dead_letters(connection: Connection, prepare: Prepare) -> None:
    prepare(connection, connection.register_worker())

    assert connection.rows(DEAD_LETTERS) == []


HISTORY: LiteralString = "select * from notify_worker.history('u_42')"


def of_no_campaign(connection: Connection, worker: Worker) -> int:
    number = connection.insert(receiver_id="u_42", campaign="no_such")
    connection.claim(worker)
    return number


def without_a_device(connection: Connection, worker: Worker) -> int:
    number = connection.insert(receiver_id="u_42")
    connection.claim(worker)
    return number


def leased(connection: Connection, worker: Worker) -> int:
    connection.register_device("u_42", "fcm:phone")
    number = connection.insert(receiver_id="u_42")
    connection.claim(worker)
    return number


def due(connection: Connection, worker: Worker) -> int:
    return connection.insert(receiver_id="u_42")


def scheduled(connection: Connection, worker: Worker) -> int:
    return connection.insert(receiver_id="u_42", send_at=FUTURE)


def cancelled_unsent(connection: Connection, worker: Worker) -> int:
    number = due(connection, worker)
    cancel(connection, number)
    return number


@pytest.mark.parametrize(
    ("prepare", "state", "reason"),
    [
        (prepared(SENT), "sent", "FCM has accepted it"),
        (prepared(SENT, FAILED), "sent", "FCM has accepted it"),
        (prepared(FAILED, UNREGISTERED), "failed", "it is"),
        (prepared(GIVEN_UP), "failed", "FCM is busy"),
        (prepared(UNREGISTERED), "unreachable", "it is gone"),
        (
            prepared(UNKNOWN, on_unknown="hold"),
            "held",
            "it is unknown whether FCM has it; it is for a person to decide",
        ),
        (prepared(LATER), "pending", "FCM is busy, due at "),
        (prepared(without_code(FAILED)), "failed", "it is wrong"),
        (prepared(without_code(GIVEN_UP)), "failed", "FCM is busy"),
        (prepared(without_code(UNREGISTERED)), "unreachable", "it is gone"),
        (prepared(without_code(UNKNOWN)), "failed", "no answer came"),
        (prepared(without_code(LATER)), "pending", "FCM is busy, due at "),
        (of_no_campaign, "failed", 'there is no campaign "no_such"'),
        (without_a_device, "unreachable", "the receiver has no live device"),
        (expired, "expired", "it expired before it could be sent"),
        (cancelled, "cancelled", "it was cancelled by a call"),
        (cancelled_unsent, "cancelled", "it was cancelled by a call"),
        (leased, "pending", "a worker has leased it"),
        (due, "pending", "it is due"),
        (scheduled, "pending", "due at 2100-01-01"),
        (retried, "pending", "it is due"),
    ],
)
def test_the_history_of_a_receiver_shows_states_and_reasons(
    connection: Connection, prepare: Prepare, state: str, reason: str
) -> None:
    number = prepare(connection, connection.register_worker())

    (line,) = connection.rows(HISTORY)

    assert (line["notification_id"], line["state"]) == (number, state)
    assert line["reason"].startswith(reason)


def test_a_history_has_a_line_for_each_notification_of_the_receiver_the_newest_first(
    connection: Connection, worker: Worker
) -> None:
    first = tell(connection, worker, SENT, FAILED, event_id="order:42:paid", title="Hello")
    second = connection.insert(receiver_id="u_42", campaign="sale")
    connection.insert(receiver_id="u_43")
    connection.insert(address="fcm:device-0")

    newest, oldest = connection.rows(HISTORY)

    assert (newest["notification_id"], newest["event_id"], newest["campaign"]) == (second, None, "sale")
    assert (oldest["notification_id"], oldest["event_id"], oldest["campaign"]) == (first, "order:42:paid", None)
    assert oldest["at"] <= newest["at"]
    assert list(newest) == ["at", "event_id", "notification_id", "campaign", "state", "reason"]


def test_a_history_starts_at_the_given_time(connection: Connection) -> None:
    old, new = connection.insert(receiver_id="u_42"), connection.insert(receiver_id="u_42")
    connection.execute(
        "update notify_worker.notifications set created_at = now() - interval '2 days' where id = %s", [old]
    )

    since = connection.rows("select notification_id from notify_worker.history('u_42', now() - interval '1 day')")

    assert since == [{"notification_id": new}]
    assert connection.rows("select * from notify_worker.history('nobody')") == []


def test_a_delivery_shows_no_more_than_the_end_of_its_address(connection: Connection) -> None:
    connection.register_device("u_42", "a-secret-address-0815")
    connection.insert(receiver_id="u_42")
    connection.claim(connection.register_worker())

    assert connection.value("select address from notify_worker.deliveries") == "s-0815"


def test_a_worker_is_listed_until_it_unregisters(connection: Connection, worker: Worker) -> None:
    (alive,) = connection.rows("select * from notify_worker.workers")

    connection.unregister_worker(worker)

    assert (alive["name"], alive["host"], alive["pid"]) == (worker.name, "here", connection.info.backend_pid)
    assert connection.rows("select * from notify_worker.workers") == []
