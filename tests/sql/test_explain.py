"""`explain` for support staff: one line per event, in order, without an address."""

import re

import pytest

from tests.support.store_calls import (
    FAILED,
    LATER,
    RETRY,
    SENT,
    UNKNOWN,
    UNREGISTERED,
    Connection,
    Worker,
    connected,
    outcome,
)

ADDRESS = "fcm:a-secret-address-of-a-phone-0815"
GONE = "the worker was gone before it recorded an outcome"


def story(connection: Connection, notification_id: int) -> list[str]:
    lines = connection.rows("select * from notify_worker.explain(%s::bigint)", notification_id)
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    return [re.sub(r"\d{4}-\d\d-\d\d [\d:.+]+", "<time>", line["what"]) for line in lines]


def insert_for_phone(connection: Connection, **columns: object) -> int:
    connection.register_device("u_42", ADDRESS)
    return connection.insert(receiver_id="u_42", **columns)


def test_explain_shows_insert_delivery_attempt_and_end_of_a_sent_notification(
    connection: Connection, worker: Worker
) -> None:
    number = insert_for_phone(connection, event_id="order:42:paid")
    delivery = connection.send(worker, SENT)[0]["delivery_id"]

    lines = story(connection, number)

    phone = f"delivery {delivery} (android …e-0815)"
    assert lines == [
        f"notification {number} (event order:42:paid) was inserted for receiver u_42",
        f"{phone} was created",
        f"{phone}: attempt 1 by {worker.name} came to sent: FCM has accepted it as projects/p/messages/1",
        "it ended sent",
    ]


def test_explain_shows_each_attempt_and_the_due_time_of_a_retried_notification(
    connection: Connection, worker: Worker
) -> None:
    number = insert_for_phone(connection)
    connection.send(worker, RETRY)
    connection.send(worker, LATER)

    lines = story(connection, number)

    tries = [line for line in lines if "attempt" in line]
    assert [line.partition(": ")[2] for line in tries] == [
        f"attempt 1 by {worker.name} came to retry: FCM is busy, to be tried again at <time>",
        f"attempt 2 by {worker.name} came to retry: FCM is busy, to be tried again at <time>",
    ]
    assert lines[-1] == "it is pending, due at <time>"


def test_explain_ends_with_the_error_of_a_failed_notification(connection: Connection, worker: Worker) -> None:
    number = insert_for_phone(connection)
    connection.send(worker, FAILED)

    lines = story(connection, number)

    assert lines[-2].endswith("ended failed: it is wrong")
    assert lines[-1] == "it ended failed"


def test_explain_names_a_missing_campaign(connection: Connection) -> None:
    number = connection.insert(campaign="no_such", address=ADDRESS)
    connection.claim(connection.register_worker())

    assert story(connection, number) == [
        f"notification {number} was inserted for the token …e-0815",
        'it ended failed: there is no campaign "no_such"',
    ]


def test_explain_shows_a_crash_and_a_late_answer(database: str, connection: Connection) -> None:
    number = insert_for_phone(connection)
    with connected(database) as session:
        dead = session.register_worker()
        held = session.claim_one(dead)
    connection.rescue_worker(dead)
    connection.record(dead, outcome(held, verdict="sent"))

    tries = [line.partition(": ")[2] for line in story(connection, number) if "attempt" in line]
    assert tries == [
        f"attempt 1 by {dead.name} came to unknown: {GONE}, to be tried again at <time>",
        f"attempt 1 by {dead.name} came to sent: FCM has accepted it (late: its lease had ended)",
    ]


def test_explain_says_that_a_person_decides_about_a_held_notification(connection: Connection, worker: Worker) -> None:
    number = insert_for_phone(connection, on_unknown="hold")
    connection.send(worker, UNKNOWN)

    assert "it is for a person to decide" in story(connection, number)[-1]


def test_explain_names_the_worker_of_a_leased_notification(connection: Connection, worker: Worker) -> None:
    number = insert_for_phone(connection)
    connection.claim(worker)

    assert (
        story(connection, number)[-1] == f"it is pending: worker {worker.name} has leased it until <time> at the latest"
    )


def test_explain_says_when_a_scheduled_notification_is_due(connection: Connection) -> None:
    number = connection.value(
        """
        insert into notify_worker.notifications (receiver_id, title, send_at)
        values ('u_42', 'Hello', now() + interval '1 day')
        returning id
        """
    )

    assert story(connection, number) == [
        f"notification {number} was inserted for receiver u_42, to be sent at <time>",
        "it is pending, due at <time>",
    ]


def test_explain_takes_an_event_id(connection: Connection) -> None:
    number = insert_for_phone(connection, event_id="order:42:paid")
    connection.send(connection.register_worker(), SENT)

    lines = connection.rows("select * from notify_worker.explain('order:42:paid')")

    assert lines == connection.rows("select * from notify_worker.explain(%s::bigint)", number)


@pytest.mark.parametrize("columns", [{"receiver_id": "u_42"}, {"address": ADDRESS}], ids=str)
def test_explain_shows_no_more_than_the_end_of_an_address(
    connection: Connection, columns: dict[str, object], worker: Worker
) -> None:
    connection.register_device("u_42", ADDRESS)
    number = connection.insert(**columns)
    connection.send(worker, UNREGISTERED)

    lines = story(connection, number)

    assert len(lines) == 5
    assert ADDRESS[-7:] not in " ".join(lines)


def test_explain_of_an_unknown_event_or_id_is_empty(connection: Connection) -> None:
    assert connection.rows("select * from notify_worker.explain('order:43:paid')") == []
    assert connection.rows("select * from notify_worker.explain(4711::bigint)") == []
