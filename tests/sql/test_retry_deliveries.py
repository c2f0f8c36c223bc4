"""What `retry`, `retry_delivery` and `retry_dead_letters` put back in line, with a fresh budget, and what stays out."""

from collections.abc import Callable
from datetime import timedelta
from typing import LiteralString

import psycopg
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
    Row,
    Worker,
    at_once,
    claim,
    claim_one,
    connected,
    deliveries,
    insert,
    insert_for_devices,
    notification,
    only_delivery,
    outcome,
    record,
    register,
    register_worker,
    retry,
    send,
    state,
    unbalanced,
    value,
)

BELLS: LiteralString = (
    "select count(*) from notify_worker.procrastinate_jobs where task_name = 'notify_worker.drain' and status = 'todo'"
)

Prepare = Callable[[psycopg.Connection, Worker], int]


def retry_delivery(connection: psycopg.Connection, delivery: Row) -> int:
    return int(value(connection, "select notify_worker.retry_delivery(%s)", delivery["id"]))


def states(connection: psycopg.Connection, number: int) -> list[str]:
    return [each["state"] for each in deliveries(connection, number)]


def came_to(*rounds: Row, **columns: object) -> Prepare:
    """A notification to one device that has come to this, one attempt after the other."""

    def prepare(connection: psycopg.Connection, worker: Worker) -> int:
        number = insert_for_devices(connection, 1, **columns)
        for became in rounds:
            send(connection, worker, became)
        return number

    return prepare


def expired_between_two_tries(connection: psycopg.Connection, worker: Worker) -> int:
    number = came_to(RETRY, expires_at=FUTURE)(connection, worker)
    connection.execute("update notify_worker.notifications set expires_at = now()")
    assert claim(connection, worker) == []
    return number


def expired_by_its_project_s_rule(connection: psycopg.Connection, worker: Worker) -> int:
    number = came_to(RETRY)(connection, worker)
    connection.execute("update notify_worker.notifications set created_at = now() - interval '2 days'")
    assert claim(connection, worker) == []
    return number


def cancelled_between_two_tries(connection: psycopg.Connection, worker: Worker) -> int:
    number = came_to(RETRY)(connection, worker)
    connection.execute("select notify_worker.cancel(%s::bigint)", [number])
    return number


ENDED = [
    pytest.param(came_to(FAILED), "failed", id="failed"),
    pytest.param(came_to(RETRY, RETRY, GIVEN_UP), "failed", id="given up"),
    pytest.param(came_to(UNKNOWN), "failed", id="given up without an answer"),
    pytest.param(came_to(UNKNOWN, on_unknown="hold"), "held", id="held"),
    pytest.param(expired_between_two_tries, "expired", id="expired by expires_at"),
    pytest.param(expired_by_its_project_s_rule, "expired", id="expired by the project's rule"),
    pytest.param(cancelled_between_two_tries, "cancelled", id="cancelled"),
]


@pytest.mark.parametrize(("prepare", "ended"), ENDED)
def test_what_ended_is_due_again_with_a_fresh_budget(
    connection: psycopg.Connection, prepare: Prepare, ended: str
) -> None:
    worker = register_worker(connection)
    number = prepare(connection, worker)
    before = only_delivery(connection, number)
    assert state(connection, number) == before["state"] == ended

    again = retry(connection, number)

    waiting = notification(connection, number)
    assert again == 1
    assert (waiting["state"], waiting["settled_at"], waiting["cancelled_at"]) == ("pending", None, None)
    assert unbalanced(connection) == []
    (claimed,) = send(connection, worker, SENT)
    assert (claimed["delivery_id"], claimed["attempts"], claimed["last_attempt_number"]) == (
        before["id"],
        0,
        before["last_attempt_number"],
    )
    assert state(connection, number) == "sent"
    assert only_delivery(connection, number)["attempts"] == 1
    assert unbalanced(connection) == []


@pytest.mark.parametrize("prepare", [case.values[0] for case in ENDED], ids=[case.id for case in ENDED])
def test_what_was_put_back_can_end_and_be_put_back_again(connection: psycopg.Connection, prepare: Prepare) -> None:
    worker = register_worker(connection)
    number = prepare(connection, worker)

    for _ in range(3):
        assert retry(connection, number) == 1
        send(connection, worker, RETRY)
        send(connection, worker, FAILED)
        assert only_delivery(connection, number)["attempts"] == 2
        assert unbalanced(connection) == []


def cancelled_before_it_had_deliveries(connection: psycopg.Connection, worker: Worker) -> int:
    number = insert(connection)
    connection.execute("select notify_worker.cancel(%s::bigint)", [number])
    return number


def of_a_campaign_that_comes_later(connection: psycopg.Connection, worker: Worker) -> int:
    number = insert(connection, campaign="sale")
    assert claim(connection, worker) == []
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    return number


def of_a_receiver_who_registers_later(connection: psycopg.Connection, worker: Worker) -> int:
    number = insert(connection, receiver_id="u_42")
    assert claim(connection, worker) == []
    register(connection, "u_42", "fcm:new")
    return number


def expired_before_it_was_sent(connection: psycopg.Connection, worker: Worker) -> int:
    number = insert(connection, expires_at=PAST)
    assert claim(connection, worker) == []
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
def test_what_never_came_to_a_delivery_gets_its_deliveries_at_the_next_claim(
    connection: psycopg.Connection, prepare: Prepare, ended: str
) -> None:
    worker = register_worker(connection)
    number = prepare(connection, worker)
    assert (state(connection, number), deliveries(connection, number)) == (ended, [])

    again = retry(connection, number)

    waiting = notification(connection, number)
    assert again == 0
    assert (waiting["state"], waiting["settled_at"], waiting["settled_reason"]) == ("pending", None, None)
    assert claim_one(connection, worker)["notification_id"] == number
    assert unbalanced(connection) == []


def test_an_expiry_that_has_not_come_stays(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = came_to(FAILED, expires_at=FUTURE)(connection, worker)

    retry(connection, number)

    assert notification(connection, number)["expires_at"] == FUTURE


def test_the_project_s_time_to_live_begins_anew(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = expired_by_its_project_s_rule(connection, worker)

    retry(connection, number)

    assert claim_one(connection, worker)["expires_in"] == pytest.approx(86_400, abs=30)


def test_what_was_sent_and_what_is_retired_stays_out(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert_for_devices(connection, 5)
    send(connection, worker, SENT, FAILED, UNREGISTERED, FAILED, FAILED)
    connection.execute("select notify_worker.retire_device('token', 'fcm:device-3')")
    register(connection, "u_43", "fcm:device-4")

    again = retry(connection, number)

    assert again == 1
    assert states(connection, number) == ["sent", "pending", "failed", "failed", "failed"]
    assert claim_one(connection, worker)["address"] == "fcm:device-1"


def test_what_was_meant_for_a_device_that_was_deleted_stays_out(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = came_to(FAILED)(connection, worker)
    connection.execute("delete from notify_worker.devices")

    assert retry(connection, number) == 0
    assert state(connection, number) == "failed"


def test_devices_registered_since_get_a_delivery(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert_for_devices(connection, 2)
    send(connection, worker, SENT, FAILED)
    register(connection, "u_42", "fcm:new")
    register(connection, "u_43", "fcm:hers")

    again = retry(connection, number)

    assert again == 2
    assert sorted(each["address"] for each in claim(connection, worker)) == ["fcm:device-1", "fcm:new"]


def test_who_was_unreachable_is_told_on_the_device_registered_since(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = came_to(UNREGISTERED)(connection, worker)
    assert retry(connection, number) == 0
    assert state(connection, number) == "unreachable"
    register(connection, "u_42", "fcm:new")

    again = retry(connection, number)

    assert again == 1
    assert [each["address"] for each in send(connection, worker, SENT)] == ["fcm:new"]
    assert state(connection, number) == "sent"


def test_where_there_is_nothing_to_retry_nothing_changes_and_nobody_is_woken(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    sent = came_to(SENT)(connection, worker)
    gone = came_to(UNREGISTERED)(connection, worker)
    scheduled = insert(connection, send_at=FUTURE)
    numbers = [sent, gone, scheduled]
    before = [(notification(connection, number), deliveries(connection, number)) for number in numbers]
    connection.execute("select notify_worker.delete_wakeups()")

    again = [retry(connection, number) for number in numbers]

    assert again == [0, 0, 0]
    assert [(notification(connection, number), deliveries(connection, number)) for number in numbers] == before
    assert value(connection, BELLS) == 0


def test_what_is_not_there_is_not_retried(connection: psycopg.Connection) -> None:
    assert retry(connection, 4711) == 0
    assert value(connection, "select notify_worker.retry('order:42:paid')") == 0
    assert value(connection, "select notify_worker.retry_delivery(4711)") == 0
    assert value(connection, "select notify_worker.retry_dead_letters('default', '-infinity')") == 0


def test_an_event_is_retried_by_its_name(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = came_to(FAILED, event_id="order:42:paid")(connection, worker)

    assert value(connection, "select notify_worker.retry('order:42:paid')") == 1
    assert state(connection, number) == "pending"


@pytest.mark.parametrize("statement", ["select retry(%(notification)s)", "select retry_delivery(%(delivery)s)"])
def test_what_a_worker_holds_is_refused(connection: psycopg.Connection, statement: LiteralString) -> None:
    worker = register_worker(connection)
    number = insert_for_devices(connection, 2)
    failed, _ = claim(connection, worker)
    record(connection, worker, outcome(failed, **FAILED))
    before = notification(connection, number), deliveries(connection, number)

    connection.execute("set search_path = notify_worker")

    with pytest.raises(ObjectInUse, match=f"notification {number} is in the hands of a worker") as refused:
        connection.execute(statement, {"notification": number, "delivery": failed["delivery_id"]})

    assert "Try again when it has ended" in (refused.value.diag.message_hint or "")
    assert (notification(connection, number), deliveries(connection, number)) == before


def test_a_retry_rings_one_bell(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    numbers = [came_to(FAILED)(connection, worker) for _ in range(3)]
    connection.execute("select notify_worker.delete_wakeups()")

    with connection.transaction():
        for number in numbers:
            retry(connection, number)

    assert value(connection, BELLS) == 1


def test_a_retry_that_is_rolled_back_was_never_there(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = came_to(FAILED)(connection, worker)
    connection.execute("select notify_worker.delete_wakeups()")

    with connection.transaction(force_rollback=True):
        assert retry(connection, number) == 1

    assert state(connection, number) == "failed"
    assert claim(connection, worker) == []
    assert value(connection, BELLS) == 0


def test_of_two_retries_at_once_one_puts_it_back(database: str, connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = came_to(FAILED)(connection, worker)
    with connected(database) as one, connected(database) as two:
        again = at_once(lambda: retry(one, number), lambda: retry(two, number))

    assert sorted(again) == [0, 1]
    assert len(claim(connection, worker)) == 1


def test_what_failed_is_retried_now_beside_what_waits(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert_for_devices(connection, 2)
    send(connection, worker, LATER, FAILED)
    waits = deliveries(connection, number)[0]

    again = retry(connection, number)

    assert again == 1
    assert [each["address"] for each in send(connection, worker, SENT)] == ["fcm:device-1"]
    assert deliveries(connection, number)[0] == waits
    assert notification(connection, number)["due_at"] == waits["due_at"]


def test_a_cancel_that_is_lifted_can_be_made_again(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = cancelled_between_two_tries(connection, worker)
    retry(connection, number)
    send(connection, worker, RETRY)
    assert state(connection, number) == "pending"

    assert value(connection, "select notify_worker.cancel(%s::bigint)", number) is True
    assert claim(connection, worker) == []


def test_one_delivery_is_put_back_alone(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert_for_devices(connection, 3)
    send(connection, worker, SENT, FAILED, FAILED)
    register(connection, "u_42", "fcm:new")
    sent, first, second = deliveries(connection, number)

    again = [retry_delivery(connection, each) for each in (sent, first)]

    assert again == [0, 1]
    assert deliveries(connection, number)[2] == second
    (claimed,) = send(connection, worker, SENT)
    assert (claimed["delivery_id"], claimed["attempts"]) == (first["id"], 0)
    assert (state(connection, number), states(connection, number)) == ("sent", ["sent", "sent", "failed"])
    assert unbalanced(connection) == []


def test_one_delivery_of_what_was_cancelled_is_put_back_alone(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert_for_devices(connection, 2)
    send(connection, worker, RETRY, RETRY)
    connection.execute("select notify_worker.cancel(%s::bigint)", [number])

    again = retry_delivery(connection, deliveries(connection, number)[0])

    assert again == 1
    send(connection, worker, RETRY)
    assert states(connection, number) == ["pending", "cancelled"]
    assert unbalanced(connection) == []


def retry_dead_letters(connection: psycopg.Connection, project: str, since: timedelta) -> int:
    statement: LiteralString = "select notify_worker.retry_dead_letters(%s, now() - %s)"
    return int(value(connection, statement, project, since))


def test_the_dead_letters_of_one_project_since_then_are_put_back(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('another')")
    worker = register_worker(connection)
    old = came_to(FAILED)(connection, worker)
    connection.execute("update notify_worker.stored_deliveries set settled_at = now() - interval '2 hours'")
    two_devices = insert_for_devices(connection, 2)
    send(connection, worker, FAILED, GIVEN_UP)
    unsendable, expired = insert(connection, campaign="no_such"), insert(connection, expires_at=PAST)
    elsewhere = insert(connection, campaign="no_such", project="another")
    claim(connection, worker)
    sent, gone = insert(connection), insert(connection, receiver_id="nobody")
    send(connection, worker, SENT)

    again = retry_dead_letters(connection, "default", timedelta(hours=1))

    assert again == 2
    put_back = [two_devices, unsendable]
    left = [old, expired, elsewhere, sent, gone]
    assert [state(connection, number) for number in put_back] == ["pending", "pending"]
    assert [state(connection, number) for number in left] == ["failed", "expired", "failed", "sent", "unreachable"]
    assert unbalanced(connection) == []


def test_dead_letters_that_a_worker_holds_are_left_out(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    free = insert(connection)
    send(connection, worker, FAILED)
    held = insert_for_devices(connection, 2)
    failed, _ = claim(connection, worker)
    record(connection, worker, outcome(failed, **FAILED))

    assert retry_dead_letters(connection, "default", timedelta(hours=1)) == 1

    assert states(connection, free) == ["pending"]
    assert states(connection, held) == ["failed", "pending"]
