"""`cancel` stops unsent notifications, says when it is too late, and blocks no other session."""

from collections.abc import Callable
from threading import Barrier
from typing import LiteralString

import pytest
from psycopg.errors import DeadlockDetected

from tests.support.store_calls import (
    FAILED,
    FUTURE,
    PAST,
    PAUSED,
    RETRY,
    SENT,
    SHORT_LEASE,
    UNKNOWN,
    UNREGISTERED,
    Connection,
    Row,
    Worker,
    at_once,
    await_lock,
    cancel,
    connected,
    outcome,
)
from tests.support.waiting import until

AGAIN = {"retry_in": 0}

Prepare = Callable[[Connection, Worker], int]


def make_due(connection: Connection) -> None:
    """Make every pending notification due now."""
    connection.execute("update notify_worker.notifications set due_at = now() where state = 'pending'")


def tried(*rounds: Row, **columns: object) -> Prepare:
    """A notification to one device whose attempts had these outcomes, one after the other."""

    def prepare(connection: Connection, worker: Worker) -> int:
        number = connection.insert_for_devices(1, **columns)
        for became in rounds:
            connection.send(worker, became)
        return number

    return prepare


def tried_on_each(*came_to: Row, **columns: object) -> Prepare:
    """A notification to several devices, with one outcome for each."""

    def prepare(connection: Connection, worker: Worker) -> int:
        number = connection.insert_for_devices(len(came_to), **columns)
        connection.send(worker, *came_to)
        return number

    return prepare


def inserted(**columns: object) -> Prepare:
    return lambda connection, worker: connection.insert(**columns)


def of_a_paused_project(connection: Connection, worker: Worker) -> int:
    connection.pause("default", "maintenance")
    return connection.insert()


def released(connection: Connection, worker: Worker) -> int:
    number = connection.insert()
    connection.execute("select notify_worker.release(%s)", [connection.claim_one(worker)["lease"]])
    return number


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(inserted(), id="due"),
        pytest.param(inserted(receiver_id="u_42"), id="due, for a receiver"),
        pytest.param(inserted(send_at=FUTURE), id="scheduled"),
        pytest.param(inserted(campaign="no_such"), id="of no campaign"),
        pytest.param(of_a_paused_project, id="of a paused project"),
        pytest.param(released, id="claimed and released"),
        pytest.param(tried(RETRY), id="waiting for a retry"),
        pytest.param(tried(RETRY, PAUSED, RETRY), id="waiting for its fourth try"),
        pytest.param(tried_on_each(FAILED, RETRY), id="failed on one device, waiting on the other"),
        pytest.param(tried_on_each(UNREGISTERED, PAUSED), id="gone on one device, waiting on the other"),
    ],
)
def test_an_unleased_unsent_notification_is_cancelled(connection: Connection, prepare: Prepare, worker: Worker) -> None:
    number = prepare(connection, worker)

    answer = cancel(connection, number)
    make_due(connection)

    assert answer is True
    assert connection.claim(worker) == []
    ended = connection.notification(number)
    assert (ended["state"], ended["lease"]) == ("cancelled", None)
    assert ended["cancelled_at"] <= ended["settled_at"]
    assert {each["state"] for each in connection.deliveries(number)} <= {"cancelled", "failed"}
    assert connection.unbalanced() == []


@pytest.mark.parametrize(
    ("prepare", "ends"),
    [
        pytest.param(tried(UNKNOWN | AGAIN), "cancelled", id="FCM may have it"),
        pytest.param(tried(UNKNOWN | AGAIN, RETRY), "cancelled", id="FCM may have it from an earlier try"),
        pytest.param(tried_on_each(SENT, RETRY), "sent", id="sent to one device"),
        pytest.param(tried_on_each(SENT, UNKNOWN, on_unknown="hold"), "sent", id="sent to one device, held on another"),
        pytest.param(tried(UNKNOWN, on_unknown="hold"), "cancelled", id="held"),
        pytest.param(tried_on_each(FAILED, UNKNOWN, on_unknown="hold"), "cancelled", id="failed and held"),
        pytest.param(tried(SENT), "sent", id="sent"),
        pytest.param(tried(FAILED), "failed", id="failed"),
        pytest.param(tried(UNREGISTERED), "unreachable", id="unreachable"),
    ],
)
def test_cancel_returns_false_for_what_may_have_arrived_and_starts_nothing_more(
    connection: Connection, prepare: Prepare, ends: str, worker: Worker
) -> None:
    number = prepare(connection, worker)

    answer = cancel(connection, number)

    assert answer is False
    assert connection.claim(worker) == []
    ended = connection.notification(number)
    assert ended["state"] == ends
    assert ended["settled_at"] is not None
    assert connection.unbalanced() == []


def test_cancel_leaves_a_settled_notification_unchanged(connection: Connection, worker: Worker) -> None:
    expired, nobody = connection.insert(expires_at=PAST), connection.insert(receiver_id="nobody")
    connection.claim(worker)
    sent, twice = connection.insert(), connection.insert(send_at=FUTURE)
    connection.record(worker, outcome(connection.claim_one(worker), **SENT))
    assert cancel(connection, twice) is True
    settled = [expired, nobody, sent, twice]
    before = [connection.notification(number) for number in settled]

    answer = [cancel(connection, number) for number in settled]

    assert answer == [False] * 4
    assert [connection.notification(number) for number in settled] == before


def test_cancelling_a_missing_notification_returns_false(connection: Connection) -> None:
    assert cancel(connection, 4711) is False
    assert connection.value("select notify_worker.cancel('order:42:paid')") is False
    assert connection.value("select notify_worker.cancel(null::bigint)") is False


def test_an_event_is_cancelled_by_its_id_and_cannot_be_inserted_again(connection: Connection) -> None:
    number, other = connection.insert(event_id="5"), connection.insert(event_id="order:43:paid")

    answer = connection.value("select notify_worker.cancel('5')")

    assert answer is True
    assert [connection.state(each) for each in (number, other)] == ["cancelled", "pending"]
    again = "insert into notify_worker.notifications (event_id, receiver_id, title) values ('5', 'u_42', 'Hello')"
    assert connection.execute(f"{again} on conflict (event_id) do nothing").rowcount == 0


def test_a_rolled_back_cancel_changes_nothing(connection: Connection, worker: Worker) -> None:
    number = tried(RETRY)(connection, worker)
    before = connection.notification(number), connection.deliveries(number)

    with connection.transaction(force_rollback=True):
        assert cancel(connection, number) is True

    assert (connection.notification(number), connection.deliveries(number)) == before
    assert connection.claim_one(worker)["notification_id"] == number


WITH_A_CANCEL: list[tuple[list[Row], str, str]] = [
    ([SENT, SENT], "resend", "sent"),
    ([RETRY, SENT], "resend", "sent"),
    ([UNKNOWN | AGAIN, SENT], "resend", "sent"),
    ([FAILED, SENT], "resend", "sent"),
    ([RETRY, RETRY], "resend", "cancelled"),
    ([RETRY, FAILED], "resend", "cancelled"),
    ([PAUSED, UNKNOWN | AGAIN], "resend", "cancelled"),
    ([FAILED, FAILED], "resend", "cancelled"),
    ([UNREGISTERED, UNREGISTERED], "resend", "cancelled"),
    ([UNKNOWN, SENT], "hold", "held"),
    ([UNKNOWN, RETRY], "hold", "held"),
]


@pytest.mark.parametrize(
    ("came_to", "on_unknown", "ends"),
    WITH_A_CANCEL,
    ids=lambda given: "-".join(each["verdict"] for each in given) if isinstance(given, list) else str(given),
)
def test_cancel_lets_a_leased_attempt_finish_and_no_other_follow(
    connection: Connection, came_to: list[Row], on_unknown: str, ends: str, worker: Worker
) -> None:
    number = connection.insert_for_devices(2, on_unknown=on_unknown)
    first, second = [outcome(each, **became) for each, became in zip(connection.claim(worker), came_to, strict=True)]

    answer = cancel(connection, number)
    connection.record(worker, first)
    between = connection.notification(number)
    connection.record(worker, second)

    assert answer is False
    assert (between["state"], str(between["lease"])) == ("pending", first["lease"])
    ended = connection.notification(number)
    assert (ended["state"], ended["lease"]) == (ends, None)
    assert connection.claim(worker) == []
    assert connection.unbalanced() == []


def test_a_second_cancel_settles_what_became_held_after_the_first(connection: Connection, worker: Worker) -> None:
    number = connection.insert_for_devices(1, on_unknown="hold")
    claimed = connection.claim_one(worker)
    cancel(connection, number)
    connection.record(worker, outcome(claimed, **UNKNOWN))

    assert cancel(connection, number) is False
    assert (connection.state(number), connection.only_delivery(number)["state"]) == ("cancelled", "cancelled")


def test_a_delivery_released_after_a_cancel_is_cancelled(connection: Connection, worker: Worker) -> None:
    number = connection.insert()
    claimed = connection.claim_one(worker)
    cancel(connection, number)

    connection.execute("select notify_worker.release(%s)", [claimed["lease"]])

    assert connection.state(number) == "cancelled"
    assert connection.claim(worker) == []


def test_a_frozen_workers_delivery_is_cancelled_when_its_lease_ends(connection: Connection) -> None:
    number = connection.insert()
    connection.claim_one(connection.register_worker(SHORT_LEASE))
    answer = cancel(connection, number)
    connection.await_end_of_lease(number)

    assert answer is False
    assert connection.claim(connection.register_worker()) == []
    assert connection.state(number) == "cancelled"
    assert [each["verdict"] for each in connection.attempts(number)] == ["unknown"]
    assert connection.unbalanced() == []


def test_a_dead_workers_delivery_is_cancelled_at_its_rescue(database: str, connection: Connection) -> None:
    number = connection.insert_for_devices(2)
    with connected(database) as session:
        dead = session.register_worker()
        sent, _ = session.claim(dead)
        cancel(connection, number)
        session.record(dead, outcome(sent, **SENT))

    connection.rescue_worker(dead)

    assert connection.state(number) == "sent"
    assert [each["state"] for each in connection.deliveries(number)] == ["sent", "cancelled"]
    assert connection.claim(connection.register_worker()) == []
    assert connection.unbalanced() == []


def test_cancel_returns_false_for_a_dead_workers_delivery_and_stops_it(database: str, connection: Connection) -> None:
    number = connection.insert()
    with connected(database) as session:
        dead = session.register_worker()
        session.claim_one(dead)
    connection.rescue_worker(dead)

    assert cancel(connection, number) is False
    assert connection.state(number) == "cancelled"
    assert connection.claim(connection.register_worker()) == []


def test_a_late_answer_stays_in_the_history_of_a_cancelled_notification(database: str, connection: Connection) -> None:
    number = connection.insert()
    with connected(database) as session:
        dead = session.register_worker()
        held = session.claim_one(dead)
    connection.rescue_worker(dead)
    cancel(connection, number)

    connection.record(dead, outcome(held, **SENT))

    assert connection.state(number) == "cancelled"
    assert [each["late"] for each in connection.attempts(number)] == [False, True]
    assert connection.unbalanced() == []


def test_a_cancel_that_races_a_claim_is_true_unless_the_worker_has_the_notification(
    database: str, connection: Connection
) -> None:
    turns = range(1_000)
    start, end = Barrier(2, timeout=30), Barrier(2, timeout=30)
    connection.execute("set notify_worker.wakeup = 'off'")
    with connected(database) as session:
        worker = session.register_worker()

        def cancel_each() -> dict[int, bool]:
            answer: dict[int, bool] = {}
            for turn in turns:
                number = connection.insert()
                start.wait()
                for _ in range(turn % 8):  # at another moment of the claim each time
                    connection.execute("select 1")
                answer[number] = cancel(connection, number)
                end.wait()
            return answer

        def claim_each() -> dict[int, bool]:
            claimed: dict[int, bool] = {}
            for _ in turns:
                start.wait()
                claimed |= {each["notification_id"]: False for each in session.claim(worker)}
                end.wait()
            return claimed

        answer, claimed = at_once(cancel_each, claim_each)

    assert {number: was for number, was in answer.items() if not was} == claimed
    assert 0 < len(claimed) < len(turns)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("came_to", [None, SENT, RETRY], ids=["not recorded", "sent", "retry"])
def test_an_open_cancel_longer_than_the_lease_causes_no_delay_and_no_double(
    database: str, connection: Connection, came_to: Row | None, end: LiteralString
) -> None:
    frozen = connection.register_worker(SHORT_LEASE)
    number, neighbour = connection.insert(), connection.insert()
    held, _ = connection.claim(frozen)
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        assert cancel(business, number) is False
        if came_to is not None:
            assert connection.record(frozen, outcome(held, **came_to)) == 1
        connection.await_end_of_lease(neighbour)

        meanwhile = connection.claim_one(connection.register_worker())
        business.execute(end)

    connection.record(connection.register_worker(), outcome(meanwhile, **SENT))
    again = connection.claim(connection.register_worker())
    wanted = [number] if end == "rollback" and came_to is not SENT else []
    assert meanwhile["notification_id"] == neighbour
    assert [each["notification_id"] for each in again] == wanted
    assert len(connection.attempts(number)) == 1
    if not wanted:
        assert connection.state(number) == ("sent" if came_to is SENT else "cancelled")
    assert connection.unbalanced() == []


@pytest.mark.parametrize("leased", [True, False])
def test_two_transactions_that_cancel_in_opposite_order_never_stop_a_batch(
    database: str, connection: Connection, leased: bool, worker: Worker
) -> None:
    one, two = tried(RETRY)(connection, worker), connection.insert()
    held = connection.claim(worker) if leased else []
    connection.execute("set lock_timeout = '5s'")

    def work() -> None:
        """A batch over both of them and one more."""
        free = connection.insert()
        claimed = connection.claim_one(worker)
        assert claimed["notification_id"] == free
        connection.record(worker, outcome(claimed, **SENT), *[outcome(each, **SENT) for each in held])
        assert connection.state(free) == "sent"

    with connected(database) as first, connected(database) as second:
        for session in (first, second):
            session.execute("set deadlock_timeout = '200ms'")
            session.execute("begin")
        cancel(first, one)
        cancel(second, two)
        work()

        def cross(session: Connection, number: int) -> str:
            try:
                cancel(session, number)
            except DeadlockDetected:
                session.execute("rollback")
                return "deadlock"
            session.execute("commit")
            return "well"

        def work_while_they_wait() -> str:
            await_lock(connection, first.info.backend_pid)
            work()
            return "well"

        ends = at_once(lambda: cross(first, two), lambda: cross(second, one), work_while_they_wait)

    assert sorted(ends) == ["deadlock", "well", "well"]
    assert len(connection.attempts(one)) == (2 if leased else 1)
    work()


def test_cancels_in_opposite_order_never_deadlock_a_batch_over_the_same_rows(
    database: str, connection: Connection
) -> None:
    numbers = [connection.insert() for _ in range(60)]

    def business(order: list[int]) -> Callable[[], int]:
        """Cancel four at a time in one transaction; return how often this side was the one that Postgres ended."""

        def run() -> int:
            ended = 0
            with connected(database) as session:
                session.execute("set deadlock_timeout = '10ms'")
                for at in range(0, len(order), 4):
                    try:
                        with session.transaction():
                            for number in order[at : at + 4]:
                                cancel(session, number)
                    except DeadlockDetected:
                        ended += 1
            return ended

        return run

    def batches() -> int:
        with connected(database) as session:
            session.execute("set lock_timeout = '5s'")
            worker = session.register_worker(SHORT_LEASE)
            done = 0
            for _ in range(40):
                done += session.record(worker, *[outcome(each, **RETRY) for each in session.claim(worker)])
            return done

    at_once(business(numbers), business(numbers[::-1]), batches, batches)

    connection.execute("select notify_worker.cancel(id) from notify_worker.notifications where state = 'pending'")
    worker = connection.register_worker()
    until("every lease has ended", lambda: connection.claim(worker) == [] and nothing_is_pending(connection), within=10)
    assert {connection.state(number) for number in numbers} == {"cancelled"}
    assert connection.unbalanced() == []


def nothing_is_pending(connection: Connection) -> bool:
    return not connection.value("select exists (select from notify_worker.notifications where state = 'pending')")
