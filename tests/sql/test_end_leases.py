"""What becomes of what a worker held: its lease lapses, or it is found dead and rescued before."""

from collections.abc import Iterator
from datetime import timedelta
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, ObjectNotInPrerequisiteState
from psycopg.sql import SQL, Identifier

from tests.support.store_calls import (
    A_MOMENT,
    Row,
    Worker,
    attempts,
    await_end_of_lease,
    claim,
    claim_one,
    connected,
    deliveries,
    insert,
    mark,
    notification,
    only_delivery,
    outcome,
    record,
    register,
    register_worker,
    rescue_worker,
    rows,
    send_heartbeat,
    state,
    unbalanced,
    unregister_worker,
    value,
)


def stale_workers(connection: psycopg.Connection) -> set[int]:
    return {each["worker_id"] for each in rows(connection, "select * from notify_worker.stale_workers()")}


def freeze(connection: psycopg.Connection, number: int, *, marked: bool = False) -> tuple[Worker, Row]:
    """A worker claims the one delivery, and does nothing more until its lease has run out."""
    frozen = register_worker(connection, A_MOMENT)
    claimed = claim_one(connection, frozen)
    if marked:
        mark(connection, claimed)
    await_end_of_lease(connection, number)
    return frozen, claimed


def die(database: str, *, most: int = 100) -> tuple[Worker, list[Row]]:
    """A worker claims what is due and dies; return it and what it held."""
    with connected(database) as session:
        worker = register_worker(session)
        return worker, claim(session, worker, most)


def test_a_lease_that_ran_out_is_taken_over_by_the_next_claim(connection: psycopg.Connection) -> None:
    number = insert(connection)
    _, held = freeze(connection, number)
    other = register_worker(connection)

    again = claim_one(connection, other)

    assert (again["delivery_id"], again["attempts"], again["last_attempt_number"]) == (held["delivery_id"], 0, 1)
    leased = notification(connection, number)
    assert (str(leased["lease"]), leased["leased_by"]) == (again["lease"], other.id)


def test_what_was_not_recorded_is_written_down_as_unknown(connection: psycopg.Connection) -> None:
    number = insert(connection)
    frozen, _ = freeze(connection, number)
    leased_at = notification(connection, number)["leased_at"]

    claim(connection, register_worker(connection))

    (attempt,) = attempts(connection, number)
    assert (attempt["verdict"], attempt["error_code"], attempt["late"]) == ("unknown", "WORKER_GONE", False)
    assert (attempt["worker"], attempt["number"], attempt["started_at"]) == (frozen.name, 1, leased_at)
    assert attempt["finished_at"] is attempt["requests"] is attempt["http_status"] is None
    assert attempt["retry_at"] is not None
    assert only_delivery(connection, number)["attempts"] == 0
    assert unbalanced(connection) == []


def test_what_may_not_be_resent_is_held(connection: psycopg.Connection) -> None:
    number = insert(connection, on_unknown="hold")
    freeze(connection, number, marked=True)
    other = register_worker(connection)

    assert claim(connection, other) == []

    held = notification(connection, number)
    assert (held["state"], held["lease"], held["settled_at"]) == ("held", None, None)
    assert only_delivery(connection, number)["state"] == "held"
    assert attempts(connection, number)[0]["retry_at"] is None
    assert claim(connection, other) == []
    assert unbalanced(connection) == []


def test_what_may_not_be_resent_and_never_began_is_due_again(connection: psycopg.Connection) -> None:
    number = insert(connection, on_unknown="hold")
    freeze(connection, number)
    other = register_worker(connection)

    again = claim_one(connection, other)

    assert (again["notification_id"], again["attempts"], again["last_attempt_number"]) == (number, 0, 1)
    assert attempts(connection, number)[0]["verdict"] == "unknown"


def test_a_mark_of_an_earlier_lease_says_nothing_of_this_one(connection: psycopg.Connection) -> None:
    number = insert(connection, on_unknown="hold")
    worker = register_worker(connection, A_MOMENT)
    claimed = claim_one(connection, worker)
    mark(connection, claimed)
    connection.execute("select notify_worker.release(%s)", [claimed["lease"]])
    freeze(connection, number)

    assert claim_one(connection, register_worker(connection))["notification_id"] == number


def test_only_what_is_held_under_this_very_lease_is_marked(connection: psycopg.Connection) -> None:
    number = insert(connection)
    worker = register_worker(connection, timedelta(seconds=2))
    claimed = claim_one(connection, worker)

    assert mark(connection, claimed | {"lease": str(uuid4())}) == []
    assert mark(connection, claimed) == [claimed["delivery_id"]]
    await_end_of_lease(connection, number)
    assert mark(connection, claimed) == []


def test_each_crash_stands_in_the_history_and_none_counts(database: str, connection: psycopg.Connection) -> None:
    number = insert(connection)
    for _ in range(3):
        worker, _ = die(database)
        rescue_worker(connection, worker)

    assert [(each["number"], each["verdict"]) for each in attempts(connection, number)] == [
        (1, "unknown"),
        (2, "unknown"),
        (3, "unknown"),
    ]
    assert (
        only_delivery(connection, number)["attempts"],
        only_delivery(connection, number)["last_attempt_number"],
    ) == (0, 3)


def test_only_the_deliveries_that_were_out_are_unknown(database: str, connection: psycopg.Connection) -> None:
    for name in ("phone", "tablet", "watch"):
        register(connection, "u_42", f"fcm:{name}")
    number = insert(connection, receiver_id="u_42")
    with connected(database) as session:
        worker = register_worker(session)
        sent, tried, out = claim(session, worker)
        record(session, worker, outcome(sent, verdict="sent"), outcome(tried, verdict="retry", retry_in=3600))

    assert rescue_worker(connection, worker) == 1

    assert [each["verdict"] for each in attempts(connection, number)] == ["sent", "retry", "unknown"]
    assert claim_one(connection, register_worker(connection))["delivery_id"] == out["delivery_id"]
    assert [each["state"] for each in deliveries(connection, number)] == ["sent", "pending", "pending"]


def record_while_locked(database: str, connection: psycopg.Connection, worker: Worker, came_to: Row) -> None:
    """Record while a business transaction holds the notification: the outcome stands in the history alone."""
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications for update")
        record(connection, worker, came_to)


def test_an_outcome_that_stands_in_the_history_is_applied_instead(
    database: str, connection: psycopg.Connection
) -> None:
    number = insert(connection)
    frozen, claimed = freeze(connection, number)
    record_while_locked(
        database, connection, frozen, outcome(claimed, verdict="sent", provider_message_id="projects/p/messages/1")
    )
    assert state(connection, number) == "pending"

    assert claim(connection, register_worker(connection)) == []

    assert [each["verdict"] for each in attempts(connection, number)] == ["sent"]
    its = only_delivery(connection, number)
    assert (its["state"], its["attempts"], its["provider_message_id"]) == ("sent", 1, "projects/p/messages/1")
    assert state(connection, number) == "sent"
    assert unbalanced(connection) == []


def test_a_retry_that_stands_in_the_history_is_due_when_it_was_to_be(
    database: str, connection: psycopg.Connection
) -> None:
    number = insert(connection)
    frozen, claimed = freeze(connection, number)
    record_while_locked(database, connection, frozen, outcome(claimed, verdict="retry", retry_in=3600))

    assert claim(connection, register_worker(connection)) == []

    waiting = notification(connection, number)
    assert (waiting["state"], waiting["lease"]) == ("pending", None)
    assert waiting["due_at"] == attempts(connection, number)[0]["retry_at"]
    assert only_delivery(connection, number)["attempts"] == 1


def test_stale_is_a_registered_worker_whose_session_ended(database: str, connection: psycopg.Connection) -> None:
    alive, left = register_worker(connection), register_worker(connection)
    unregister_worker(connection, left)
    dead, _ = die(database)

    assert stale_workers(connection) == {dead.id}
    assert send_heartbeat(connection, alive)


def test_all_that_a_dead_worker_held_is_back_in_line_before_its_lease_ends(
    database: str, connection: psycopg.Connection
) -> None:
    for _ in range(3):
        insert(connection)
        insert(connection, priority="high")
    other = register_worker(connection)
    dead, held = die(database, most=4)
    others = claim(connection, other)

    assert rescue_worker(connection, dead) == 4

    again = {each["delivery_id"] for each in claim(connection, other)}
    assert again == {each["delivery_id"] for each in held}
    assert len(others) == 2
    assert stale_workers(connection) == set()
    assert unbalanced(connection) == []


def test_the_dead_are_buried_once(database: str, connection: psycopg.Connection) -> None:
    number = insert(connection)
    dead, _ = die(database)

    assert [rescue_worker(connection, dead), rescue_worker(connection, dead)] == [1, 0]
    assert len(attempts(connection, number)) == 1


def test_a_worker_that_sent_a_heartbeat_since_is_not_rescued(database: str, connection: psycopg.Connection) -> None:
    number = insert(connection)
    worker, _ = die(database)
    (stale,) = rows(connection, "select * from notify_worker.stale_workers()")
    assert send_heartbeat(connection, worker)

    rescued = value(connection, "select notify_worker.rescue_worker(%s, %s)", worker.id, stale["last_heartbeat_at"])

    assert rescued is None
    assert notification(connection, number)["leased_by"] == worker.id


def test_who_lives_is_not_buried(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)

    assert rescue_worker(connection, worker) == 0
    assert send_heartbeat(connection, worker)


def test_who_was_buried_hears_of_it_and_may_not_claim(database: str, connection: psycopg.Connection) -> None:
    insert(connection)
    dead, _ = die(database)

    rescue_worker(connection, dead)

    assert not send_heartbeat(connection, dead)
    assert rows(connection, "select * from notify_worker.workers") == []
    with pytest.raises(ObjectNotInPrerequisiteState):
        claim(connection, dead)


def test_who_left_is_no_longer_among_the_workers(connection: psycopg.Connection) -> None:
    worker, leaving = register_worker(connection), register_worker(connection)

    unregister_worker(connection, leaving)

    assert [each["name"] for each in rows(connection, "select name from notify_worker.workers")] == [worker.name]
    assert not send_heartbeat(connection, leaving)


def test_what_is_locked_at_the_burial_comes_back_when_its_lease_ends(
    database: str, connection: psycopg.Connection
) -> None:
    locked = insert(connection)
    free = insert(connection)
    with connected(database) as session:
        dead = register_worker(session, A_MOMENT)
        claim(session, dead)
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications where id = %s for update", [locked])

        assert rescue_worker(connection, dead) == 1
    await_end_of_lease(connection, locked)
    claim(connection, register_worker(connection))

    assert len(attempts(connection, locked)) == len(attempts(connection, free)) == 1


def test_nobody_takes_over_while_the_holder_is_just_recording(database: str, connection: psycopg.Connection) -> None:
    first, second = insert(connection), insert(connection)
    worker = register_worker(connection, A_MOMENT)
    claimed, _ = claim(connection, worker)
    await_end_of_lease(connection, second)
    other = register_worker(connection)
    with connected(database) as recording:
        recording.execute("begin")
        record(recording, worker, outcome(claimed, verdict="sent"))

        assert claim(connection, other) == []
        assert notification(connection, second)["leased_by"] == worker.id
        recording.execute("commit")

    assert claim_one(connection, other)["notification_id"] == second
    assert state(connection, first) == "sent"


def test_nobody_is_buried_while_it_is_just_recording(database: str, connection: psycopg.Connection) -> None:
    first, second = insert(connection), insert(connection)
    dead, (claimed, _) = die(database)
    with connected(database) as recording:
        recording.execute("begin")
        record(recording, dead, outcome(claimed, verdict="sent"))

        assert rescue_worker(connection, dead) == 0
        recording.execute("commit")

    assert rescue_worker(connection, dead) == 1
    assert [each["verdict"] for each in attempts(connection, first)] == ["sent"]
    assert [each["verdict"] for each in attempts(connection, second)] == ["unknown"]


def test_a_late_record_of_a_rescued_worker_still_holds_off_whoever_would_end_its_leases(
    database: str, connection: psycopg.Connection
) -> None:
    """It was alive all the while; and a lease whose row was locked at the rescue is still its own."""
    first, second = insert(connection), insert(connection)
    with connected(database) as session:
        rescued = register_worker(session, A_MOMENT)
        claimed, _ = claim(session, rescued)
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications for update")
        assert rescue_worker(connection, rescued) == 0
    await_end_of_lease(connection, second)
    other = register_worker(connection)
    with connected(database) as recording:
        recording.execute("begin")
        record(recording, rescued, outcome(claimed, verdict="sent"))

        assert claim(connection, other) == []
        recording.execute("commit")

    assert claim_one(connection, other)["notification_id"] == second
    assert [each["verdict"] for each in attempts(connection, first)] == ["sent"]
    assert unbalanced(connection) == []


def test_the_lock_of_a_worker_goes_when_it_unregisters_and_a_late_record_still_works(
    connection: psycopg.Connection,
) -> None:
    number = insert(connection)
    worker, claimed = freeze(connection, number)
    unregister_worker(connection, worker)
    assert rows(connection, "select from notify_worker.stored_worker_locks where worker_id = %s", worker.id) == []
    claim_one(connection, register_worker(connection))

    assert record(connection, worker, outcome(claimed, verdict="sent")) == 1

    assert [(each["verdict"], each["late"]) for each in attempts(connection, number)] == [
        ("unknown", False),
        ("sent", True),
    ]


def test_whoever_just_records_is_not_waited_for_when_a_worker_unregisters(
    database: str, connection: psycopg.Connection
) -> None:
    insert(connection)
    worker, (claimed,) = die(database)
    connection.execute("set lock_timeout = '1s'")
    with connected(database) as recording:
        recording.execute("begin")
        record(recording, worker, outcome(claimed, verdict="sent"))

        unregister_worker(connection, worker)


# A stranger


@pytest.fixture
def stranger(database: str, connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A session of a role that may connect, and nothing more."""
    role = f"stranger_{uuid4().hex[:8]}"
    connection.execute(SQL("create role {}").format(Identifier(role)))
    try:
        with connected(database) as session:
            session.execute(SQL("set role {}").format(Identifier(role)))
            yield session
    finally:
        connection.execute(SQL("drop role {}").format(Identifier(role)))


def take_advisory_locks(session: psycopg.Connection, *workers: Worker) -> None:
    """Take each advisory lock that was ever ours, of these workers and of none."""
    for lock_class in (1853321330, 1853321331):
        for object_id in (0, *(worker.id for worker in workers)):
            session.execute("select pg_try_advisory_lock(%s, %s)", [lock_class, object_id])


def test_a_stranger_who_takes_advisory_locks_stops_no_record_and_no_rescue(
    database: str, connection: psycopg.Connection, stranger: psycopg.Connection
) -> None:
    first, second = insert(connection), insert(connection)
    worker = register_worker(connection)
    (claimed,) = claim(connection, worker, 1)
    dead, _ = die(database)
    take_advisory_locks(stranger, worker)
    stranger.execute("select pg_advisory_lock(1853321331, %s)", [dead.id])
    connection.execute("set statement_timeout = '5s'")

    assert record(connection, worker, outcome(claimed, verdict="sent")) == 1
    assert rescue_worker(connection, dead) == 1

    assert (state(connection, first), state(connection, second)) == ("sent", "pending")


def test_a_stranger_who_takes_advisory_locks_stops_no_take_over(
    connection: psycopg.Connection, stranger: psycopg.Connection
) -> None:
    number = insert(connection)
    frozen, _ = freeze(connection, number)
    take_advisory_locks(stranger, frozen)

    assert claim_one(connection, register_worker(connection))["notification_id"] == number


def test_a_stranger_who_takes_advisory_locks_stops_no_partition(
    connection: psycopg.Connection, stranger: psycopg.Connection
) -> None:
    take_advisory_locks(stranger)

    assert value(connection, "select notify_worker.create_partitions()") == 0


@pytest.mark.parametrize("statement", ["select from {} for update", "update {} set worker_id = 0", "delete from {}"])
def test_a_stranger_cannot_lock_what_records_and_rescues_lock(
    stranger: psycopg.Connection, statement: LiteralString
) -> None:
    for table in ("stored_worker_locks", "installation"):
        with pytest.raises(InsufficientPrivilege):
            stranger.execute(SQL(statement).format(Identifier("notify_worker", table)))
