"""What `retry`, `retry_delivery` and `retry_dead_letters` make due again with a fresh budget, and what they leave alone."""

from collections.abc import Callable
from datetime import timedelta
from typing import LiteralString

import pytest
from psycopg.errors import ObjectInUse

from tests.support.store_calls import (
    FAILED,
    FUTURE,
    GIVEN_UP,
    LATER,
    PAST,
    RETRY,
    SENT,
    UNKNOWN,
    UNREGISTERED,
    Connection,
    Row,
    Worker,
    at_once,
    connected,
    outcome,
    without_code,
)

Prepare = Callable[[Connection, Worker], int]


def retry_delivery(connection: Connection, delivery: Row) -> int:
    return int(connection.value("select notify_worker.retry_delivery(%s)", delivery["id"]))


def states(connection: Connection, number: int) -> list[str]:
    return [each["state"] for each in connection.deliveries(number)]


def came_to(*rounds: Row, **columns: object) -> Prepare:
    """A notification to one device whose attempts had these outcomes, one after the other."""

    def prepare(connection: Connection, worker: Worker) -> int:
        number = connection.insert_for_devices(1, **columns)
        for became in rounds:
            connection.send(worker, became)
        return number

    return prepare


def expired_between_two_attempts(connection: Connection, worker: Worker) -> int:
    number = came_to(RETRY, expires_at=FUTURE)(connection, worker)
    connection.execute("update notify_worker.notifications set expires_at = now()")
    assert connection.claim(worker) == []
    return number


def expired_by_its_projects_rule(connection: Connection, worker: Worker) -> int:
    number = came_to(RETRY)(connection, worker)
    connection.execute("update notify_worker.notifications set created_at = now() - interval '2 days'")
    assert connection.claim(worker) == []
    return number


def cancelled_between_two_attempts(connection: Connection, worker: Worker) -> int:
    number = came_to(RETRY)(connection, worker)
    connection.execute("select notify_worker.cancel(%s::bigint)", [number])
    return number


ENDED = [
    pytest.param(came_to(FAILED), "failed", id="failed"),
    pytest.param(came_to(without_code(FAILED)), "failed", id="failed without a code"),
    pytest.param(came_to(RETRY, RETRY, GIVEN_UP), "failed", id="given up"),
    pytest.param(came_to(UNKNOWN), "failed", id="given up without an answer"),
    pytest.param(came_to(UNKNOWN, on_unknown="hold"), "held", id="held"),
    pytest.param(came_to(without_code(UNKNOWN), on_unknown="hold"), "held", id="held without a code"),
    pytest.param(expired_between_two_attempts, "expired", id="expired by expires_at"),
    pytest.param(expired_by_its_projects_rule, "expired", id="expired by the project's rule"),
    pytest.param(cancelled_between_two_attempts, "cancelled", id="cancelled"),
]


@pytest.mark.parametrize(("prepare", "ended"), ENDED)
def test_a_retried_notification_is_due_with_a_fresh_budget(
    connection: Connection, prepare: Prepare, ended: str, worker: Worker
) -> None:
    number = prepare(connection, worker)
    before = connection.only_delivery(number)
    assert connection.state(number) == before["state"] == ended

    again = connection.retry(number)

    waiting = connection.notification(number)
    assert again == 1
    assert (waiting["state"], waiting["settled_at"], waiting["cancelled_at"]) == ("pending", None, None)
    assert connection.unbalanced() == []
    (claimed,) = connection.send(worker, SENT)
    assert (claimed["delivery_id"], claimed["attempts"], claimed["last_attempt_number"]) == (
        before["id"],
        0,
        before["last_attempt_number"],
    )
    assert connection.state(number) == "sent"
    assert connection.only_delivery(number)["attempts"] == 1
    assert connection.unbalanced() == []


@pytest.mark.parametrize("prepare", [case.values[0] for case in ENDED], ids=[case.id for case in ENDED])
def test_a_notification_can_be_retried_repeatedly(connection: Connection, prepare: Prepare, worker: Worker) -> None:
    number = prepare(connection, worker)

    for _ in range(3):
        assert connection.retry(number) == 1
        connection.send(worker, RETRY)
        connection.send(worker, FAILED)
        assert connection.only_delivery(number)["attempts"] == 2
        assert connection.unbalanced() == []


def cancelled_before_it_had_deliveries(connection: Connection, worker: Worker) -> int:
    number = connection.insert()
    connection.execute("select notify_worker.cancel(%s::bigint)", [number])
    return number


def of_a_campaign_that_comes_later(connection: Connection, worker: Worker) -> int:
    number = connection.insert(campaign="sale")
    assert connection.claim(worker) == []
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    return number


def of_a_receiver_who_registers_later(connection: Connection, worker: Worker) -> int:
    number = connection.insert(receiver_id="u_42")
    assert connection.claim(worker) == []
    connection.register_device("u_42", "fcm:new")
    return number


def expired_before_it_was_sent(connection: Connection, worker: Worker) -> int:
    number = connection.insert(expires_at=PAST)
    assert connection.claim(worker) == []
    return number


@pytest.mark.parametrize(
    ("prepare", "ended"),
    [
        pytest.param(cancelled_before_it_had_deliveries, "cancelled", id="cancelled"),
        pytest.param(of_a_campaign_that_comes_later, "failed", id="of no campaign"),
        pytest.param(of_a_receiver_who_registers_later, "unreachable", id="unreachable"),
        pytest.param(expired_before_it_was_sent, "expired", id="expired"),
    ],
)
def test_a_notification_without_deliveries_gets_them_at_the_next_claim(
    connection: Connection, prepare: Prepare, ended: str, worker: Worker
) -> None:
    number = prepare(connection, worker)
    assert (connection.state(number), connection.deliveries(number)) == (ended, [])

    again = connection.retry(number)

    waiting = connection.notification(number)
    assert again == 0
    assert (waiting["state"], waiting["settled_at"], waiting["settled_reason"]) == ("pending", None, None)
    assert connection.claim_one(worker)["notification_id"] == number
    assert connection.unbalanced() == []


def test_a_retry_keeps_an_expiry_that_is_still_ahead(connection: Connection, worker: Worker) -> None:
    number = came_to(FAILED, expires_at=FUTURE)(connection, worker)

    connection.retry(number)

    assert connection.notification(number)["expires_at"] == FUTURE


def test_a_retry_restarts_the_time_to_live(connection: Connection, worker: Worker) -> None:
    number = expired_by_its_projects_rule(connection, worker)

    connection.retry(number)

    assert connection.claim_one(worker)["expires_in"] == pytest.approx(86_400, abs=30)


def test_sent_deliveries_and_retired_devices_are_not_retried(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(5)
    connection.send(worker, SENT, FAILED, UNREGISTERED, FAILED, FAILED)
    connection.execute("select notify_worker.retire_device('token', 'fcm:device-3')")
    connection.register_device("u_43", "fcm:device-4")

    again = connection.retry(number)

    assert again == 1
    assert states(connection, number) == ["sent", "pending", "failed", "failed", "failed"]
    assert connection.claim_one(worker)["address"] == "fcm:device-1"


def test_deliveries_of_deleted_devices_are_not_retried(connection: Connection, worker: Worker) -> None:
    number = came_to(FAILED)(connection, worker)
    connection.execute("delete from notify_worker.devices")

    assert connection.retry(number) == 0
    assert connection.state(number) == "failed"


def test_devices_registered_since_get_a_delivery(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(2)
    connection.send(worker, SENT, FAILED)
    connection.register_device("u_42", "fcm:new")
    connection.register_device("u_43", "fcm:hers")

    again = connection.retry(number)

    assert again == 2
    assert sorted(each["address"] for each in connection.claim(worker)) == ["fcm:device-1", "fcm:new"]


def test_an_unreachable_receiver_gets_the_message_on_a_new_device(connection: Connection, worker: Worker) -> None:
    number = came_to(UNREGISTERED)(connection, worker)
    assert connection.retry(number) == 0
    assert connection.state(number) == "unreachable"
    connection.register_device("u_42", "fcm:new")

    again = connection.retry(number)

    assert again == 1
    assert [each["address"] for each in connection.send(worker, SENT)] == ["fcm:new"]
    assert connection.state(number) == "sent"


def test_a_retry_without_failed_deliveries_changes_nothing_and_wakes_no_worker(
    connection: Connection, worker: Worker
) -> None:
    sent = came_to(SENT)(connection, worker)
    gone = came_to(UNREGISTERED)(connection, worker)
    scheduled = connection.insert(send_at=FUTURE)
    numbers = [sent, gone, scheduled]
    before = [(connection.notification(number), connection.deliveries(number)) for number in numbers]
    connection.execute("select notify_worker.delete_wakeups()")

    again = [connection.retry(number) for number in numbers]

    assert again == [0, 0, 0]
    assert [(connection.notification(number), connection.deliveries(number)) for number in numbers] == before
    assert connection.wakeups() == 0


def test_retrying_a_missing_notification_returns_zero(connection: Connection) -> None:
    assert connection.retry(4711) == 0
    assert connection.value("select notify_worker.retry('order:42:paid')") == 0
    assert connection.value("select notify_worker.retry_delivery(4711)") == 0
    assert connection.value("select notify_worker.retry_dead_letters('default', '-infinity')") == 0


def test_an_event_is_retried_by_its_id(connection: Connection, worker: Worker) -> None:
    number = came_to(FAILED, event_id="order:42:paid")(connection, worker)

    assert connection.value("select notify_worker.retry('order:42:paid')") == 1
    assert connection.state(number) == "pending"


@pytest.mark.parametrize("statement", ["select retry(%(notification)s)", "select retry_delivery(%(delivery)s)"])
def test_a_leased_notification_is_not_retried(connection: Connection, statement: LiteralString, worker: Worker) -> None:
    number = connection.insert_for_devices(2)
    failed, _ = connection.claim(worker)
    connection.record(worker, outcome(failed, **FAILED))
    before = connection.notification(number), connection.deliveries(number)

    connection.execute("set search_path = notify_worker")

    with pytest.raises(ObjectInUse, match=f"notification {number} is leased by a worker") as refused:
        connection.execute(statement, {"notification": number, "delivery": failed["delivery_id"]})

    assert "Retry it once the worker has recorded it" in (refused.value.diag.message_hint or "")
    assert (connection.notification(number), connection.deliveries(number)) == before


def test_a_retry_sends_one_wakeup(connection: Connection, worker: Worker) -> None:
    numbers = [came_to(FAILED)(connection, worker) for _ in range(3)]
    connection.execute("select notify_worker.delete_wakeups()")

    with connection.transaction():
        for number in numbers:
            connection.retry(number)

    assert connection.wakeups() == 1


def test_a_rolled_back_retry_changes_nothing(connection: Connection, worker: Worker) -> None:
    number = came_to(FAILED)(connection, worker)
    connection.execute("select notify_worker.delete_wakeups()")

    with connection.transaction(force_rollback=True):
        assert connection.retry(number) == 1

    assert connection.state(number) == "failed"
    assert connection.claim(worker) == []
    assert connection.wakeups() == 0


def test_only_one_of_two_concurrent_retries_requeues_the_delivery(
    database: str, connection: Connection, worker: Worker
) -> None:
    number = came_to(FAILED)(connection, worker)
    with connected(database) as one, connected(database) as two:
        again = at_once(lambda: one.retry(number), lambda: two.retry(number))

    assert sorted(again) == [0, 1]
    assert len(connection.claim(worker)) == 1


def test_failed_deliveries_are_retried_beside_pending_ones(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(2)
    connection.send(worker, LATER, FAILED)
    waits = connection.deliveries(number)[0]

    again = connection.retry(number)

    assert again == 1
    assert [each["address"] for each in connection.send(worker, SENT)] == ["fcm:device-1"]
    assert connection.deliveries(number)[0] == waits
    assert connection.notification(number)["due_at"] == waits["due_at"]


def test_a_notification_retried_after_a_cancel_can_be_cancelled_again(connection: Connection, worker: Worker) -> None:
    number = cancelled_between_two_attempts(connection, worker)
    connection.retry(number)
    connection.send(worker, RETRY)
    assert connection.state(number) == "pending"

    assert connection.value("select notify_worker.cancel(%s::bigint)", number) is True
    assert connection.claim(worker) == []


def test_one_delivery_can_be_retried_alone(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(3)
    connection.send(worker, SENT, FAILED, FAILED)
    connection.register_device("u_42", "fcm:new")
    sent, first, second = connection.deliveries(number)

    again = [retry_delivery(connection, each) for each in (sent, first)]

    assert again == [0, 1]
    assert connection.deliveries(number)[2] == second
    (claimed,) = connection.send(worker, SENT)
    assert (claimed["delivery_id"], claimed["attempts"]) == (first["id"], 0)
    assert (connection.state(number), states(connection, number)) == ("sent", ["sent", "sent", "failed"])
    assert connection.unbalanced() == []


def test_one_delivery_of_a_cancelled_notification_is_retried_alone(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(2)
    connection.send(worker, RETRY, RETRY)
    connection.execute("select notify_worker.cancel(%s::bigint)", [number])

    again = retry_delivery(connection, connection.deliveries(number)[0])

    assert again == 1
    connection.send(worker, RETRY)
    assert states(connection, number) == ["pending", "cancelled"]
    assert connection.unbalanced() == []


def retry_dead_letters(connection: Connection, project: str, since: timedelta) -> int:
    statement: LiteralString = "select notify_worker.retry_dead_letters(%s, now() - %s)"
    return int(connection.value(statement, project, since))


def test_retry_dead_letters_takes_one_project_since_a_time(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('another')")
    old = came_to(FAILED)(connection, worker)
    connection.execute("update notify_worker.stored_deliveries set settled_at = now() - interval '2 hours'")
    two_devices = connection.insert_for_devices(2)
    connection.send(worker, FAILED, GIVEN_UP)
    unsendable, expired = connection.insert(campaign="no_such"), connection.insert(expires_at=PAST)
    elsewhere = connection.insert(campaign="no_such", project="another")
    connection.claim(worker)
    sent, gone = connection.insert(), connection.insert(receiver_id="nobody")
    connection.send(worker, SENT)

    again = retry_dead_letters(connection, "default", timedelta(hours=1))

    assert again == 2
    requeued = [two_devices, unsendable]
    left = [old, expired, elsewhere, sent, gone]
    assert [connection.state(number) for number in requeued] == ["pending", "pending"]
    assert [connection.state(number) for number in left] == ["failed", "expired", "failed", "sent", "unreachable"]
    assert connection.unbalanced() == []


def test_retry_dead_letters_leaves_out_leased_notifications(connection: Connection, worker: Worker) -> None:
    free = connection.insert()
    connection.send(worker, FAILED)
    held = connection.insert_for_devices(2)
    failed, _ = connection.claim(worker)
    connection.record(worker, outcome(failed, **FAILED))

    assert retry_dead_letters(connection, "default", timedelta(hours=1)) == 1

    assert states(connection, free) == ["pending"]
    assert states(connection, held) == ["failed", "pending"]
