"""The effect of an outcome on its delivery, notification, device and history, and what a lock may delay."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, LiteralString

import pytest

from tests.support.store_calls import Connection, Row, Worker, at_once, connected, outcome

DEVICE: LiteralString = "select * from notify_worker.devices where address = %s and project = %s"

SENT = {"verdict": "sent", "http_status": 200, "provider_message_id": "projects/p/messages/1"}
RETRY = {"verdict": "retry", "http_status": 503, "error": "FCM is busy", "retry_in": 3600}
FAILED = {"verdict": "failed", "http_status": 400, "error_code": "INVALID_ARGUMENT", "error": "it is wrong"}
UNREGISTERED = {"verdict": "unregistered", "http_status": 404, "error_code": "UNREGISTERED", "error": "it is gone"}
UNKNOWN = {"verdict": "unknown", "error_code": "ReadTimeout", "error": "no answer came"}
PAUSED = {"verdict": "paused", "http_status": 401, "error": "the credentials are wrong", "retry_in": 3600}
AGAIN = {"retry_in": 3600}
NOW = {"retry_in": 0}


def device(connection: Connection, address: str, project: str = "default") -> Row:
    return connection.row(DEVICE, address, project)


def due_in(connection: Connection, delivery: Row) -> timedelta:
    left: timedelta = connection.value("select %s - now()", delivery["due_at"])
    return left


@pytest.mark.parametrize(
    ("came_to", "on_unknown", "ends", "counted"),
    [
        (SENT, "resend", "sent", 1),
        (FAILED, "resend", "failed", 1),
        (UNREGISTERED, "resend", "failed", 1),
        (RETRY | {"retry_in": None}, "resend", "failed", 1),
        (UNKNOWN, "resend", "failed", 1),
        (UNKNOWN, "hold", "held", 1),
        (PAUSED | {"retry_in": None}, "resend", "failed", 0),
    ],
    ids=lambda given: given["verdict"] if isinstance(given, dict) else str(given),
)
def test_an_outcome_without_a_retry_ends_its_delivery(
    connection: Connection, came_to: Row, on_unknown: str, ends: str, counted: int
) -> None:
    worker = connection.register_worker()
    number = connection.insert(on_unknown=on_unknown)

    added = connection.record(worker, outcome(connection.claim_one(worker), **came_to))

    ended = connection.only_delivery(number)
    assert added == 1
    assert (ended["state"], ended["attempts"], ended["last_attempt_number"]) == (ends, counted, 1)
    assert (ended["last_verdict"], ended["last_error"]) == (came_to["verdict"], came_to.get("error"))
    assert ended["provider_message_id"] == came_to.get("provider_message_id")
    assert (ended["settled_at"] is None) == (ends == "held")
    assert connection.notification(number)["lease"] is None
    assert connection.unbalanced() == []


@pytest.mark.parametrize(
    ("came_to", "counted"), [(RETRY, 1), (UNKNOWN | AGAIN, 1), (PAUSED, 0)], ids=["retry", "unknown", "paused"]
)
def test_an_outcome_with_a_retry_ends_the_lease_and_sets_due_at(
    connection: Connection, came_to: Row, counted: int, worker: Worker
) -> None:
    number = connection.insert()

    connection.record(worker, outcome(connection.claim_one(worker), **came_to))

    waiting, its = connection.notification(number), connection.only_delivery(number)
    assert (waiting["state"], waiting["lease"], waiting["leased_by"]) == ("pending", None, None)
    assert waiting["due_at"] == its["due_at"] == connection.attempts(number)[0]["retry_at"]
    assert timedelta(minutes=59) < due_in(connection, its) <= timedelta(hours=1)
    assert (its["state"], its["attempts"], its["last_attempt_number"], its["settled_at"]) == (
        "pending",
        counted,
        1,
        None,
    )
    assert connection.claim(worker) == []


def test_a_retried_delivery_is_claimed_with_its_attempt_count(connection: Connection, worker: Worker) -> None:
    number = connection.insert()
    for verdict in ("retry", "paused", "unknown"):
        connection.record(worker, outcome(connection.claim_one(worker), verdict=verdict, retry_in=0))

    again = connection.claim_one(worker)
    connection.record(worker, outcome(again, **SENT))

    assert (again["attempts"], again["last_attempt_number"]) == (2, 3)
    assert [each["number"] for each in connection.attempts(number)] == [1, 2, 3, 4]
    assert connection.state(number) == "sent"
    assert connection.unbalanced() == []


def test_the_history_names_worker_and_times(connection: Connection, worker: Worker) -> None:
    number = connection.insert()
    claimed = connection.claim_one(worker)

    connection.record(worker, outcome(claimed, **(RETRY | {"requests": 3, "started_ago": 5, "finished_ago": 2})))

    (attempt,) = connection.attempts(number)
    assert attempt["finished_at"] - attempt["started_at"] == timedelta(seconds=3)
    assert timedelta(seconds=2) <= connection.value("select now() - %s", attempt["finished_at"]) < timedelta(minutes=1)
    assert attempt["retry_at"] - attempt["finished_at"] == timedelta(seconds=3602)
    assert (attempt["worker"], attempt["requests"], attempt["http_status"]) == (worker.name, 3, 503)
    assert (attempt["verdict"], attempt["error"], attempt["error_code"]) == ("retry", "FCM is busy", None)
    assert (attempt["number"], attempt["late"]) == (1, False)


TRUTH_TABLE: list[tuple[list[Row], str, str]] = [
    ([SENT, FAILED, RETRY], "resend", "pending"),
    ([SENT, UNREGISTERED, PAUSED], "resend", "pending"),
    ([SENT, UNKNOWN, RETRY], "hold", "pending"),
    ([UNKNOWN, SENT, FAILED], "hold", "held"),
    ([UNREGISTERED, UNREGISTERED, UNKNOWN], "hold", "held"),
    ([SENT, SENT, SENT], "resend", "sent"),
    ([FAILED, SENT, UNREGISTERED], "resend", "sent"),
    ([UNKNOWN, SENT, FAILED], "resend", "sent"),
    ([UNREGISTERED, UNREGISTERED, UNREGISTERED], "resend", "unreachable"),
    ([UNREGISTERED, FAILED, UNREGISTERED], "resend", "failed"),
    ([FAILED, FAILED, FAILED], "resend", "failed"),
]


@pytest.mark.parametrize(
    ("came_to", "on_unknown", "ends"),
    TRUTH_TABLE,
    ids=lambda given: "-".join(each["verdict"] for each in given) if isinstance(given, list) else str(given),
)
def test_a_notification_stays_leased_until_its_last_device_is_recorded(
    connection: Connection, came_to: list[Row], on_unknown: str, ends: str, worker: Worker
) -> None:
    number = connection.insert_for_devices(3, on_unknown=on_unknown)
    claimed = connection.claim(worker)

    for each, became in zip(claimed, came_to, strict=True):
        leased = connection.notification(number)
        assert (leased["state"], str(leased["lease"])) == ("pending", each["lease"])
        connection.record(worker, outcome(each, **became))

    ended = connection.notification(number)
    assert (ended["state"], ended["lease"], ended["leased_by"]) == (ends, None, None)
    assert (ended["settled_at"] is None) == (ends in ("pending", "held"))
    assert connection.unbalanced() == []


EXPIRE: LiteralString = "update notify_worker.notifications set expires_at = now()"
RETIRE: LiteralString = "update notify_worker.campaigns set retired_at = now()"


@pytest.mark.parametrize(
    ("came_to", "then", "ends", "open_ones_end"),
    [
        ([RETRY | NOW, RETRY | NOW], EXPIRE, "expired", "expired"),
        ([RETRY | NOW, SENT], EXPIRE, "sent", "expired"),
        ([RETRY | NOW, FAILED], EXPIRE, "failed", "expired"),
        ([RETRY | NOW, UNREGISTERED], EXPIRE, "failed", "expired"),
        ([RETRY | NOW, RETRY | NOW], RETIRE, "cancelled", "cancelled"),
        ([RETRY | NOW, SENT], RETIRE, "sent", "cancelled"),
        ([RETRY | NOW, FAILED], RETIRE, "failed", "cancelled"),
    ],
)
def test_a_notification_with_an_unsendable_delivery_ends_by_all_its_outcomes(
    connection: Connection, came_to: list[Row], then: LiteralString, ends: str, open_ones_end: str
) -> None:
    worker = connection.register_worker()
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    number = connection.insert_for_devices(2, campaign="sale")
    claimed = connection.claim(worker)
    connection.record(worker, *[outcome(each, **became) for each, became in zip(claimed, came_to, strict=True)])
    connection.execute(then)

    assert connection.claim(worker) == []
    assert connection.state(number) == ends
    assert connection.deliveries(number)[0]["state"] == open_ones_end
    assert connection.unbalanced() == []


def test_only_deliveries_that_are_due_are_claimed_again(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(3)
    sent, soon, later = connection.claim(worker)
    connection.record(worker, outcome(sent, **SENT), outcome(soon, **RETRY | NOW), outcome(later, **RETRY))

    again = connection.claim_one(worker)
    connection.record(worker, outcome(again, **SENT))

    assert again["delivery_id"] == soon["delivery_id"]
    waiting = connection.notification(number)
    assert (waiting["state"], waiting["due_at"]) == ("pending", connection.deliveries(number)[2]["due_at"])


def test_the_same_outcomes_again_change_nothing(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(3)
    claimed = connection.claim(worker)
    came_to = [outcome(each, **became) for each, became in zip(claimed, [SENT, RETRY, FAILED], strict=True)]

    first = connection.record(worker, *came_to)
    before = connection.deliveries(number), connection.notification(number), connection.attempts(number)
    again = connection.record(worker, *came_to)

    assert (first, again) == (3, 0)
    assert (connection.deliveries(number), connection.notification(number), connection.attempts(number)) == before


def test_the_same_outcomes_twice_in_one_call_are_added_once(connection: Connection, worker: Worker) -> None:
    connection.insert()
    sent = outcome(connection.claim_one(worker), **SENT)

    assert connection.record(worker, sent, sent) == 1
    assert connection.unbalanced() == []


def recorder(database: str, *arguments: Any) -> Callable[[], int]:
    def run() -> int:
        with connected(database) as session:
            return session.record(*arguments)

    return run


def test_the_same_outcomes_on_two_connections_at_once_are_added_once(
    database: str, connection: Connection, worker: Worker
) -> None:
    for _ in range(10):
        connection.insert()
        came_to = [outcome(connection.claim_one(worker), **RETRY)]

        added = at_once(recorder(database, worker, *came_to), recorder(database, worker, *came_to))

        assert sorted(added) == [0, 1]
    assert connection.unbalanced() == []


def test_batches_in_different_orders_on_two_connections_never_deadlock(database: str, connection: Connection) -> None:
    with connected(database) as his:
        she, he = connection.register_worker(), his.register_worker()
        for number in range(20):
            connection.register_device(f"u_{number}", f"fcm:device-{number}")
        for _ in range(10):
            for number in range(20):
                connection.insert(receiver_id=f"u_{number}")
                connection.insert(receiver_id=f"u_{number}")
            hers = [outcome(each, **SENT) for each in connection.claim(she, most=20)]
            his_own = [outcome(each, **RETRY) for each in his.claim(he, most=20)]
            connection.execute("update notify_worker.devices set seen_at = now() - interval '2 days'")

            added = at_once(
                lambda hers=hers: connection.record(she, *hers),  # type: ignore[misc]
                recorder(database, she, *hers[::-1]),
                lambda his_own=his_own: his.record(he, *his_own[::-1]),  # type: ignore[misc]
            )

            assert min(added) == 0
            assert sum(added) == 40


def test_a_notification_locked_by_a_business_transaction_delays_no_record(
    database: str, connection: Connection, worker: Worker
) -> None:
    first, locked, last = connection.insert(), connection.insert(), connection.insert()
    came_to = [outcome(each, **SENT) for each in connection.claim(worker)]
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications where id = %s for update", [locked])

        assert connection.record(worker, *came_to) == 3
        assert [connection.state(number) for number in (first, locked, last)] == ["sent", "pending", "sent"]
    assert [each["verdict"] for each in connection.attempts(locked)] == ["sent"]


def test_an_outcome_recorded_while_its_row_was_locked_is_applied_with_the_next(
    database: str, connection: Connection, worker: Worker
) -> None:
    number = connection.insert_for_devices(2)
    one, two = connection.claim(worker)
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications for update")
        connection.record(worker, outcome(one, **SENT))

    connection.record(worker, outcome(two, **FAILED))

    assert [each["state"] for each in connection.deliveries(number)] == ["sent", "failed"]
    assert connection.state(number) == "sent"


def test_an_unregistered_device_is_retired(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('another')")
    connection.register_device("u_42", "fcm:phone")
    connection.register_device("u_42", "fcm:phone", project="another")
    number = connection.insert(receiver_id="u_42")

    connection.record(worker, outcome(connection.claim_one(worker), **UNREGISTERED))

    retired = device(connection, "fcm:phone")
    assert retired["retired_at"] is not None
    assert retired["retired_reason"] == "FCM calls it unregistered"
    assert device(connection, "fcm:phone", "another")["retired_at"] is None
    assert connection.state(number) == "unreachable"


def test_a_device_addressed_directly_is_retired_too(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.insert(kind="token", address="fcm:phone")

    connection.record(worker, outcome(connection.claim_one(worker), **UNREGISTERED))

    assert device(connection, "fcm:phone")["retired_at"] is not None


def test_a_device_that_has_registered_again_since_the_request_began_stays(
    connection: Connection, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.insert(receiver_id="u_42")
    claimed = connection.claim_one(worker)
    connection.register_device("u_42", "fcm:phone")

    connection.record(worker, outcome(claimed, **UNREGISTERED, started_ago=60))

    assert device(connection, "fcm:phone")["retired_at"] is None


def test_a_locked_device_delays_no_record_and_is_not_retired(
    database: str, connection: Connection, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:phone")
    number = connection.insert(receiver_id="u_42")
    claimed = connection.claim_one(worker)
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.register_device("u_42", "fcm:phone", platform="ios")

        connection.record(worker, outcome(claimed, **UNREGISTERED))
        business.execute("commit")

    assert connection.state(number) == "unreachable"
    assert device(connection, "fcm:phone")["retired_at"] is None


@pytest.mark.parametrize(("seen", "moves"), [("25 hours", True), ("23 hours", False)])
def test_a_sent_message_updates_seen_at_once_a_day(
    connection: Connection, seen: str, moves: bool, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.execute("update notify_worker.devices set seen_at = now() - %s::interval", [seen])
    before = device(connection, "fcm:phone")["seen_at"]
    connection.insert(receiver_id="u_42")

    connection.record(worker, outcome(connection.claim_one(worker), **SENT))

    assert (device(connection, "fcm:phone")["seen_at"] > before) is moves


@pytest.mark.parametrize("came_to", [RETRY, FAILED, UNKNOWN, PAUSED], ids=lambda given: str(given["verdict"]))
def test_no_outcome_but_sent_updates_seen_at(connection: Connection, came_to: Row, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.execute("update notify_worker.devices set seen_at = now() - interval '2 days'")
    before = device(connection, "fcm:phone")
    connection.insert(receiver_id="u_42")

    connection.record(worker, outcome(connection.claim_one(worker), **came_to))

    assert device(connection, "fcm:phone") == before


def die(database: str, connection: Connection) -> tuple[Any, Row]:
    """A worker claims the one delivery, dies in its request, and is rescued; return it and what it held."""
    with connected(database) as session:
        worker = session.register_worker()
        claimed = session.claim_one(worker)
        session.mark_started(claimed)
    assert connection.rescue_worker(worker) == 1
    return worker, claimed


def test_a_late_outcome_has_the_number_of_the_attempt_that_it_answers(database: str, connection: Connection) -> None:
    number = connection.insert()
    dead, held = die(database, connection)
    worker = connection.register_worker()
    again = connection.claim_one(worker)
    before = connection.only_delivery(number), connection.notification(number)

    connection.record(dead, outcome(held, **SENT))

    cut_off, late = connection.attempts(number)
    assert (cut_off["verdict"], cut_off["number"], cut_off["late"]) == ("unknown", 1, False)
    assert (late["verdict"], late["number"], late["late"]) == ("sent", 1, True)
    assert (connection.only_delivery(number), connection.notification(number)) == before
    connection.record(worker, outcome(again, **SENT))
    assert connection.state(number) == "sent"
    assert connection.attempts(number)[-1]["number"] == 2
    assert connection.unbalanced() == []


def test_a_late_outcome_is_added_once(database: str, connection: Connection) -> None:
    number = connection.insert()
    dead, held = die(database, connection)

    assert connection.record(dead, outcome(held, **SENT)) == 1
    assert connection.record(dead, outcome(held, **SENT)) == 0
    assert len(connection.attempts(number)) == 2


@pytest.mark.parametrize(("on_unknown", "before"), [("resend", "pending"), ("hold", "held")])
def test_a_late_sent_outcome_settles_a_held_or_pending_delivery(
    database: str, connection: Connection, on_unknown: str, before: str
) -> None:
    number = connection.insert(on_unknown=on_unknown)
    dead, held = die(database, connection)
    assert connection.state(number) == before

    connection.record(dead, outcome(held, **SENT))

    its = connection.only_delivery(number)
    assert (its["state"], its["provider_message_id"], its["attempts"]) == ("sent", SENT["provider_message_id"], 0)
    assert connection.state(number) == "sent"
    assert connection.claim(connection.register_worker()) == []
    assert connection.unbalanced() == []


def record_late_sent_while_locked(database: str, connection: Connection, number: int) -> None:
    """Record a dead worker's answer while the row is locked: it is in the history, and nowhere else."""
    dead, held = die(database, connection)
    before = connection.state(number)
    with Connection.connect(database) as another:
        another.execute("select from notify_worker.notifications for update")
        assert connection.record(dead, outcome(held, **SENT)) == 1
    assert connection.state(number) == before


def test_a_delivery_whose_late_sent_outcome_met_a_lock_is_not_sent_again(database: str, connection: Connection) -> None:
    number = connection.insert()
    record_late_sent_while_locked(database, connection, number)

    assert connection.claim(connection.register_worker()) == []

    its = connection.only_delivery(number)
    assert (its["state"], its["provider_message_id"], its["last_verdict"]) == (
        "sent",
        SENT["provider_message_id"],
        "sent",
    )
    assert connection.state(number) == "sent"
    assert connection.unbalanced() == []


@pytest.mark.parametrize(("call", "says"), [("retry", 0), ("cancel", False)])
@pytest.mark.parametrize("on_unknown", ["resend", "hold"])
def test_retry_and_cancel_find_a_late_sent_outcome_that_met_a_lock(
    database: str, connection: Connection, on_unknown: str, call: str, says: int | bool
) -> None:
    number = connection.insert(on_unknown=on_unknown)
    record_late_sent_while_locked(database, connection, number)

    assert connection.value(f"select notify_worker.{call}(%s::bigint)", number) == says

    assert connection.state(number) == "sent"
    assert connection.claim(connection.register_worker()) == []
    assert connection.unbalanced() == []


def test_a_delivery_whose_late_sent_outcome_comes_during_a_retry_is_not_sent_again(
    database: str, connection: Connection
) -> None:
    number = connection.insert(on_unknown="hold")
    dead, held = die(database, connection)
    with Connection.connect(database) as slow:
        slow.execute("select 1")
        assert connection.value("select notify_worker.retry(%s::bigint)", number) == 1
        slow.record(dead, outcome(held, **SENT))

    assert connection.claim(connection.register_worker()) == []
    assert connection.state(number) == "sent"


def test_a_delivery_whose_late_sent_outcome_comes_beside_a_leased_sibling_is_not_sent_again(
    database: str, connection: Connection
) -> None:
    connection.register_device("ada", "fcm:1")
    number = connection.insert(receiver_id="ada")
    dead, held = die(database, connection)
    other = connection.register_worker()
    connection.record(other, outcome(connection.claim_one(other), **RETRY))
    connection.register_device("ada", "fcm:2")
    assert connection.value("select notify_worker.retry(%s::bigint)", number) == 1, "she has another device now"
    sibling = connection.claim_one(other)

    connection.record(dead, outcome(held, **SENT))
    connection.record(other, outcome(sibling, **RETRY))
    connection.let_pass(hours=2)

    assert [each["delivery_id"] for each in connection.claim(other)] == [sibling["delivery_id"]]
    assert connection.unbalanced() == []


@pytest.mark.parametrize(
    "came_to", [RETRY, FAILED, UNREGISTERED, UNKNOWN, PAUSED], ids=lambda given: str(given["verdict"])
)
@pytest.mark.parametrize("on_unknown", ["resend", "hold"])
def test_any_other_late_answer_settles_nothing(
    database: str, connection: Connection, came_to: Row, on_unknown: str
) -> None:
    number = connection.insert(on_unknown=on_unknown)
    dead, held = die(database, connection)
    before = connection.only_delivery(number), connection.notification(number)

    assert connection.record(dead, outcome(held, **came_to)) == 1

    assert (connection.only_delivery(number), connection.notification(number)) == before
    assert connection.unbalanced() == []


def test_a_released_delivery_is_due_at_once_and_costs_no_attempt(connection: Connection, worker: Worker) -> None:
    number = connection.insert()
    claimed = connection.claim_one(worker)

    connection.execute("select notify_worker.release(%s, %s)", [claimed["lease"], [claimed["delivery_id"]]])

    assert connection.notification(number)["lease"] is None
    assert connection.attempts(number) == []
    again = connection.claim_one(worker)
    assert (again["delivery_id"], again["attempts"], again["last_attempt_number"]) == (claimed["delivery_id"], 0, 0)


def test_a_released_delivery_waits_for_its_leased_siblings(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(2)
    out, unsent = connection.claim(worker)
    connection.execute("select notify_worker.release(%s, %s)", [unsent["lease"], [unsent["delivery_id"]]])
    assert str(connection.notification(number)["lease"]) == out["lease"]

    connection.record(worker, outcome(out, **SENT))

    assert connection.claim_one(worker)["delivery_id"] == unsent["delivery_id"]


def test_a_worker_cannot_release_another_workers_lease(database: str, connection: Connection) -> None:
    number = connection.insert()
    _, held = die(database, connection)
    again = connection.claim_one(connection.register_worker())

    connection.execute("select notify_worker.release(%s, %s)", [held["lease"], [held["delivery_id"]]])

    assert str(connection.notification(number)["lease"]) == again["lease"]
