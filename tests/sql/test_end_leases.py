"""The end of a worker's leases: they lapse, or the worker is found dead and rescued first."""

from collections.abc import Iterator
from datetime import timedelta
from typing import LiteralString
from uuid import uuid4

import pytest
from psycopg.errors import InsufficientPrivilege, ObjectNotInPrerequisiteState
from psycopg.sql import SQL, Identifier

from tests.support.store_calls import SHORT_LEASE, Connection, Row, Worker, connected, outcome


def stale_workers(connection: Connection) -> set[int]:
    return {each["worker_id"] for each in connection.rows("select * from notify_worker.stale_workers()")}


def freeze(connection: Connection, number: int, *, marked: bool = False) -> tuple[Worker, Row]:
    """A worker claims the one delivery, and does nothing more until its lease has run out."""
    frozen = connection.register_worker(SHORT_LEASE)
    claimed = connection.claim_one(frozen)
    if marked:
        connection.mark_started(claimed)
    connection.await_end_of_lease(number)
    return frozen, claimed


def die(database: str, *, most: int = 100) -> tuple[Worker, list[Row]]:
    """A worker claims what is due and dies; return it and what it held."""
    with connected(database) as session:
        worker = session.register_worker()
        return worker, session.claim(worker, most)


def test_the_next_claim_ends_a_lapsed_lease(connection: Connection) -> None:
    number = connection.insert()
    _, held = freeze(connection, number)
    other = connection.register_worker()

    again = connection.claim_one(other)

    assert (again["delivery_id"], again["attempts"], again["last_attempt_number"]) == (held["delivery_id"], 0, 1)
    leased = connection.notification(number)
    assert (str(leased["lease"]), leased["leased_by"]) == (again["lease"], other.id)


def test_an_unrecorded_attempt_of_a_lapsed_lease_is_unknown(connection: Connection) -> None:
    number = connection.insert()
    frozen, _ = freeze(connection, number)
    leased_at = connection.notification(number)["leased_at"]

    connection.claim(connection.register_worker())

    (attempt,) = connection.attempts(number)
    assert (attempt["verdict"], attempt["error_code"], attempt["late"]) == ("unknown", "WORKER_GONE", False)
    assert (attempt["worker"], attempt["number"], attempt["started_at"]) == (frozen.name, 1, leased_at)
    assert attempt["finished_at"] is attempt["requests"] is attempt["http_status"] is None
    assert attempt["retry_at"] is not None
    assert connection.only_delivery(number)["attempts"] == 0
    assert connection.unbalanced() == []


def test_a_started_delivery_with_hold_is_held(connection: Connection) -> None:
    number = connection.insert(on_unknown="hold")
    freeze(connection, number, marked=True)
    other = connection.register_worker()

    assert connection.claim(other) == []

    held = connection.notification(number)
    assert (held["state"], held["lease"], held["settled_at"]) == ("held", None, None)
    assert connection.only_delivery(number)["state"] == "held"
    assert connection.attempts(number)[0]["retry_at"] is None
    assert connection.claim(other) == []
    assert connection.unbalanced() == []


def test_a_delivery_with_hold_that_never_started_is_due_again(connection: Connection) -> None:
    number = connection.insert(on_unknown="hold")
    freeze(connection, number)
    other = connection.register_worker()

    again = connection.claim_one(other)

    assert (again["notification_id"], again["attempts"], again["last_attempt_number"]) == (number, 0, 1)
    assert connection.attempts(number)[0]["verdict"] == "unknown"


def test_a_start_mark_of_an_earlier_lease_does_not_count(connection: Connection) -> None:
    number = connection.insert(on_unknown="hold")
    worker = connection.register_worker(SHORT_LEASE)
    claimed = connection.claim_one(worker)
    connection.mark_started(claimed)
    connection.execute("select notify_worker.release(%s)", [claimed["lease"]])
    freeze(connection, number)

    assert connection.claim_one(connection.register_worker())["notification_id"] == number


def test_only_a_delivery_under_its_current_lease_is_marked_started(connection: Connection) -> None:
    number = connection.insert()
    worker = connection.register_worker(timedelta(seconds=2))
    claimed = connection.claim_one(worker)

    assert connection.mark_started(claimed | {"lease": str(uuid4())}) == []
    assert connection.mark_started(claimed) == [claimed["delivery_id"]]
    connection.await_end_of_lease(number)
    assert connection.mark_started(claimed) == []


def test_each_crash_is_in_the_history_and_costs_no_attempt(database: str, connection: Connection) -> None:
    number = connection.insert()
    for _ in range(3):
        worker, _ = die(database)
        connection.rescue_worker(worker)

    assert [(each["number"], each["verdict"]) for each in connection.attempts(number)] == [
        (1, "unknown"),
        (2, "unknown"),
        (3, "unknown"),
    ]
    assert (connection.only_delivery(number)["attempts"], connection.only_delivery(number)["last_attempt_number"]) == (
        0,
        3,
    )


def test_only_the_deliveries_in_flight_become_unknown(database: str, connection: Connection) -> None:
    for name in ("phone", "tablet", "watch"):
        connection.register_device("u_42", f"fcm:{name}")
    number = connection.insert(receiver_id="u_42")
    with connected(database) as session:
        worker = session.register_worker()
        sent, tried, out = session.claim(worker)
        session.record(worker, outcome(sent, verdict="sent"), outcome(tried, verdict="retry", retry_in=3600))

    assert connection.rescue_worker(worker) == 1

    assert [each["verdict"] for each in connection.attempts(number)] == ["sent", "retry", "unknown"]
    assert connection.claim_one(connection.register_worker())["delivery_id"] == out["delivery_id"]
    assert [each["state"] for each in connection.deliveries(number)] == ["sent", "pending", "pending"]


def record_while_locked(database: str, connection: Connection, worker: Worker, came_to: Row) -> None:
    """Record while a business transaction has the notification locked: the outcome is in the history alone."""
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications for update")
        connection.record(worker, came_to)


def test_an_outcome_already_in_the_history_is_applied_when_the_lease_ends(
    database: str, connection: Connection
) -> None:
    number = connection.insert()
    frozen, claimed = freeze(connection, number)
    record_while_locked(
        database, connection, frozen, outcome(claimed, verdict="sent", provider_message_id="projects/p/messages/1")
    )
    assert connection.state(number) == "pending"

    assert connection.claim(connection.register_worker()) == []

    assert [each["verdict"] for each in connection.attempts(number)] == ["sent"]
    its = connection.only_delivery(number)
    assert (its["state"], its["attempts"], its["provider_message_id"]) == ("sent", 1, "projects/p/messages/1")
    assert connection.state(number) == "sent"
    assert connection.unbalanced() == []


def test_a_retry_in_the_history_keeps_its_time(database: str, connection: Connection) -> None:
    number = connection.insert()
    frozen, claimed = freeze(connection, number)
    record_while_locked(database, connection, frozen, outcome(claimed, verdict="retry", retry_in=3600))

    assert connection.claim(connection.register_worker()) == []

    waiting = connection.notification(number)
    assert (waiting["state"], waiting["lease"]) == ("pending", None)
    assert waiting["due_at"] == connection.attempts(number)[0]["retry_at"]
    assert connection.only_delivery(number)["attempts"] == 1


def test_a_registered_worker_without_a_connection_is_stale(database: str, connection: Connection) -> None:
    alive, left = connection.register_worker(), connection.register_worker()
    connection.unregister_worker(left)
    dead, _ = die(database)

    assert stale_workers(connection) == {dead.id}
    assert connection.send_heartbeat(alive)


def test_a_rescue_makes_a_dead_workers_notifications_due_before_the_lease_ends(
    database: str, connection: Connection
) -> None:
    for _ in range(3):
        connection.insert()
        connection.insert(priority="high")
    other = connection.register_worker()
    dead, held = die(database, most=4)
    others = connection.claim(other)

    assert connection.rescue_worker(dead) == 4

    again = {each["delivery_id"] for each in connection.claim(other)}
    assert again == {each["delivery_id"] for each in held}
    assert len(others) == 2
    assert stale_workers(connection) == set()
    assert connection.unbalanced() == []


def test_dead_workers_are_rescued_once(database: str, connection: Connection) -> None:
    number = connection.insert()
    dead, _ = die(database)

    assert [connection.rescue_worker(dead), connection.rescue_worker(dead)] == [1, 0]
    assert len(connection.attempts(number)) == 1


def test_a_worker_that_sent_a_heartbeat_since_is_not_rescued(database: str, connection: Connection) -> None:
    number = connection.insert()
    worker, _ = die(database)
    (stale,) = connection.rows("select * from notify_worker.stale_workers()")
    assert connection.send_heartbeat(worker)

    rescued = connection.value("select notify_worker.rescue_worker(%s, %s)", worker.id, stale["last_heartbeat_at"])

    assert rescued is None
    assert connection.notification(number)["leased_by"] == worker.id


def test_a_living_worker_is_not_rescued(connection: Connection, worker: Worker) -> None:
    assert connection.rescue_worker(worker) == 0
    assert connection.send_heartbeat(worker)


def test_a_rescued_worker_learns_of_it_and_may_not_claim(database: str, connection: Connection) -> None:
    connection.insert()
    dead, _ = die(database)

    connection.rescue_worker(dead)

    assert not connection.send_heartbeat(dead)
    assert connection.rows("select * from notify_worker.workers") == []
    with pytest.raises(ObjectNotInPrerequisiteState):
        connection.claim(dead)


def test_an_unregistered_worker_is_not_listed(connection: Connection) -> None:
    worker, leaving = connection.register_worker(), connection.register_worker()

    connection.unregister_worker(leaving)

    assert [each["name"] for each in connection.rows("select name from notify_worker.workers")] == [worker.name]
    assert not connection.send_heartbeat(leaving)


def test_a_row_locked_during_the_rescue_is_due_when_its_lease_ends(database: str, connection: Connection) -> None:
    locked = connection.insert()
    free = connection.insert()
    with connected(database) as session:
        dead = session.register_worker(SHORT_LEASE)
        session.claim(dead)
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications where id = %s for update", [locked])

        assert connection.rescue_worker(dead) == 1
    connection.await_end_of_lease(locked)
    connection.claim(connection.register_worker())

    assert len(connection.attempts(locked)) == len(connection.attempts(free)) == 1


def test_no_lease_is_ended_while_its_worker_is_recording(database: str, connection: Connection) -> None:
    first, second = connection.insert(), connection.insert()
    worker = connection.register_worker(SHORT_LEASE)
    claimed, _ = connection.claim(worker)
    connection.await_end_of_lease(second)
    other = connection.register_worker()
    with connected(database) as recording:
        recording.execute("begin")
        recording.record(worker, outcome(claimed, verdict="sent"))

        assert connection.claim(other) == []
        assert connection.notification(second)["leased_by"] == worker.id
        recording.execute("commit")

    assert connection.claim_one(other)["notification_id"] == second
    assert connection.state(first) == "sent"


def test_no_worker_is_rescued_while_it_is_recording(database: str, connection: Connection) -> None:
    first, second = connection.insert(), connection.insert()
    dead, (claimed, _) = die(database)
    with connected(database) as recording:
        recording.execute("begin")
        recording.record(dead, outcome(claimed, verdict="sent"))

        assert connection.rescue_worker(dead) == 0
        recording.execute("commit")

    assert connection.rescue_worker(dead) == 1
    assert [each["verdict"] for each in connection.attempts(first)] == ["sent"]
    assert [each["verdict"] for each in connection.attempts(second)] == ["unknown"]


def test_a_late_record_of_a_rescued_worker_delays_the_end_of_its_leases(database: str, connection: Connection) -> None:
    """It was alive all the while; and a lease whose row was locked at the rescue is still its own."""
    first, second = connection.insert(), connection.insert()
    with connected(database) as session:
        rescued = session.register_worker(SHORT_LEASE)
        claimed, _ = session.claim(rescued)
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications for update")
        assert connection.rescue_worker(rescued) == 0
    connection.await_end_of_lease(second)
    other = connection.register_worker()
    with connected(database) as recording:
        recording.execute("begin")
        recording.record(rescued, outcome(claimed, verdict="sent"))

        assert connection.claim(other) == []
        recording.execute("commit")

    assert connection.claim_one(other)["notification_id"] == second
    assert [each["verdict"] for each in connection.attempts(first)] == ["sent"]
    assert connection.unbalanced() == []


def test_unregistering_deletes_the_workers_lock_row_and_a_late_record_still_works(connection: Connection) -> None:
    number = connection.insert()
    worker, claimed = freeze(connection, number)
    connection.unregister_worker(worker)
    assert connection.rows("select from notify_worker.stored_worker_locks where worker_id = %s", worker.id) == []
    connection.claim_one(connection.register_worker())

    assert connection.record(worker, outcome(claimed, verdict="sent")) == 1

    assert [(each["verdict"], each["late"]) for each in connection.attempts(number)] == [
        ("unknown", False),
        ("sent", True),
    ]


def test_unregistering_does_not_wait_for_a_record(database: str, connection: Connection) -> None:
    connection.insert()
    worker, (claimed,) = die(database)
    connection.execute("set lock_timeout = '1s'")
    with connected(database) as recording:
        recording.execute("begin")
        recording.record(worker, outcome(claimed, verdict="sent"))

        connection.unregister_worker(worker)


# A stranger


@pytest.fixture
def stranger(database: str, connection: Connection) -> Iterator[Connection]:
    """A session of a role that may connect, and nothing more."""
    role = f"stranger_{uuid4().hex[:8]}"
    connection.execute(SQL("create role {}").format(Identifier(role)))
    try:
        with connected(database) as session:
            session.execute(SQL("set role {}").format(Identifier(role)))
            yield session
    finally:
        connection.execute(SQL("drop role {}").format(Identifier(role)))


def take_advisory_locks(session: Connection, *workers: Worker) -> None:
    """Take each advisory lock that was ever ours, of these workers and of none."""
    for lock_class in (1853321330, 1853321331):
        for object_id in (0, *(worker.id for worker in workers)):
            session.execute("select pg_try_advisory_lock(%s, %s)", [lock_class, object_id])


def test_a_strangers_advisory_locks_stop_no_record_and_no_rescue(
    database: str, connection: Connection, stranger: Connection, worker: Worker
) -> None:
    first, second = connection.insert(), connection.insert()
    (claimed,) = connection.claim(worker, 1)
    dead, _ = die(database)
    take_advisory_locks(stranger, worker)
    stranger.execute("select pg_advisory_lock(1853321331, %s)", [dead.id])
    connection.execute("set statement_timeout = '5s'")

    assert connection.record(worker, outcome(claimed, verdict="sent")) == 1
    assert connection.rescue_worker(dead) == 1

    assert (connection.state(first), connection.state(second)) == ("sent", "pending")


def test_a_strangers_advisory_locks_stop_no_end_of_leases(connection: Connection, stranger: Connection) -> None:
    number = connection.insert()
    frozen, _ = freeze(connection, number)
    take_advisory_locks(stranger, frozen)

    assert connection.claim_one(connection.register_worker())["notification_id"] == number


def test_a_strangers_advisory_locks_stop_no_partition(connection: Connection, stranger: Connection) -> None:
    take_advisory_locks(stranger)

    assert connection.value("select notify_worker.create_partitions()") == 0


@pytest.mark.parametrize("statement", ["select from {} for update", "update {} set worker_id = 0", "delete from {}"])
def test_a_stranger_cannot_lock_the_rows_of_workers(stranger: Connection, statement: LiteralString) -> None:
    for table in ("stored_worker_locks", "installation"):
        with pytest.raises(InsufficientPrivilege):
            stranger.execute(SQL(statement).format(Identifier("notify_worker", table)))
