"""What becomes of what a worker held: its lease runs out, or it is found dead and buried before."""

from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import ObjectNotInPrerequisiteState

from tests.support.store_calls import (
    A_MOMENT,
    Row,
    Worker,
    attempts,
    await_end_of_lease,
    bury,
    claim,
    claim_one,
    connected,
    deliveries,
    enter,
    insert,
    leave,
    mark,
    notification,
    only_delivery,
    outcome,
    record,
    register,
    rows,
    state,
    still_here,
    unbalanced,
    value,
)


def suspects(connection: psycopg.Connection) -> set[int]:
    return {each["worker_id"] for each in rows(connection, "select * from notify_worker.suspects()")}


def freeze(connection: psycopg.Connection, number: int, *, marked: bool = False) -> tuple[Worker, Row]:
    """A worker claims the one delivery, and does nothing more until its lease has run out."""
    frozen = enter(connection, A_MOMENT)
    claimed = claim_one(connection, frozen)
    if marked:
        mark(connection, claimed)
    await_end_of_lease(connection, number)
    return frozen, claimed


def die(database: str, *, most: int = 100) -> tuple[Worker, list[Row]]:
    """A worker claims what is due and dies; return it and what it held."""
    with connected(database) as session:
        worker = enter(session)
        return worker, claim(session, worker, most)


def test_a_lease_that_ran_out_is_taken_over_by_the_next_claim(connection: psycopg.Connection) -> None:
    number = insert(connection)
    _, held = freeze(connection, number)
    other = enter(connection)

    again = claim_one(connection, other)

    assert (again["delivery_id"], again["attempts"], again["tries"]) == (held["delivery_id"], 0, 1)
    leased = notification(connection, number)
    assert (str(leased["lease"]), leased["leased_by"]) == (again["lease"], other.id)


def test_what_was_not_recorded_is_written_down_as_unknown(connection: psycopg.Connection) -> None:
    number = insert(connection)
    frozen, _ = freeze(connection, number)
    leased_at = notification(connection, number)["leased_at"]

    claim(connection, enter(connection))

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
    other = enter(connection)

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
    other = enter(connection)

    again = claim_one(connection, other)

    assert (again["notification_id"], again["attempts"], again["tries"]) == (number, 0, 1)
    assert attempts(connection, number)[0]["verdict"] == "unknown"


def test_a_mark_of_an_earlier_lease_says_nothing_of_this_one(connection: psycopg.Connection) -> None:
    number = insert(connection, on_unknown="hold")
    worker = enter(connection, A_MOMENT)
    claimed = claim_one(connection, worker)
    mark(connection, claimed)
    connection.execute("select notify_worker.release(%s)", [claimed["lease"]])
    freeze(connection, number)

    assert claim_one(connection, enter(connection))["notification_id"] == number


def test_only_what_is_held_under_this_very_lease_is_marked(connection: psycopg.Connection) -> None:
    number = insert(connection)
    worker = enter(connection, timedelta(seconds=2))
    claimed = claim_one(connection, worker)

    assert mark(connection, claimed | {"lease": str(uuid4())}) == []
    assert mark(connection, claimed) == [claimed["delivery_id"]]
    await_end_of_lease(connection, number)
    assert mark(connection, claimed) == []


def test_each_crash_stands_in_the_history_and_none_counts(database: str, connection: psycopg.Connection) -> None:
    number = insert(connection)
    for _ in range(3):
        worker, _ = die(database)
        bury(connection, worker)

    assert [(each["number"], each["verdict"]) for each in attempts(connection, number)] == [
        (1, "unknown"),
        (2, "unknown"),
        (3, "unknown"),
    ]
    assert (only_delivery(connection, number)["attempts"], only_delivery(connection, number)["tries"]) == (0, 3)


def test_only_the_deliveries_that_were_out_are_unknown(database: str, connection: psycopg.Connection) -> None:
    for name in ("phone", "tablet", "watch"):
        register(connection, "u_42", f"fcm:{name}")
    number = insert(connection, receiver_id="u_42")
    with connected(database) as session:
        worker = enter(session)
        sent, tried, out = claim(session, worker)
        record(session, worker, outcome(sent, verdict="sent"), outcome(tried, verdict="retry", retry_in=3600))

    assert bury(connection, worker) == 1

    assert [each["verdict"] for each in attempts(connection, number)] == ["sent", "retry", "unknown"]
    assert claim_one(connection, enter(connection))["delivery_id"] == out["delivery_id"]
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
    record_while_locked(database, connection, frozen, outcome(claimed, verdict="sent", sent_as="projects/p/messages/1"))
    assert state(connection, number) == "pending"

    assert claim(connection, enter(connection)) == []

    assert [each["verdict"] for each in attempts(connection, number)] == ["sent"]
    its = only_delivery(connection, number)
    assert (its["state"], its["attempts"], its["sent_as"]) == ("sent", 1, "projects/p/messages/1")
    assert state(connection, number) == "sent"
    assert unbalanced(connection) == []


def test_a_retry_that_stands_in_the_history_is_due_when_it_was_to_be(
    database: str, connection: psycopg.Connection
) -> None:
    number = insert(connection)
    frozen, claimed = freeze(connection, number)
    record_while_locked(database, connection, frozen, outcome(claimed, verdict="retry", retry_in=3600))

    assert claim(connection, enter(connection)) == []

    waiting = notification(connection, number)
    assert (waiting["state"], waiting["lease"]) == ("pending", None)
    assert waiting["due_at"] == attempts(connection, number)[0]["retry_at"]
    assert only_delivery(connection, number)["attempts"] == 1


def test_suspect_is_who_has_not_left_and_whose_session_ended(database: str, connection: psycopg.Connection) -> None:
    alive, left = enter(connection), enter(connection)
    leave(connection, left)
    dead, _ = die(database)

    assert suspects(connection) == {dead.id}
    assert still_here(connection, alive)


def test_all_that_a_dead_worker_held_is_back_in_line_before_its_lease_ends(
    database: str, connection: psycopg.Connection
) -> None:
    for _ in range(3):
        insert(connection)
        insert(connection, priority="high")
    other = enter(connection)
    dead, held = die(database, most=4)
    others = claim(connection, other)

    assert bury(connection, dead) == 4

    again = {each["delivery_id"] for each in claim(connection, other)}
    assert again == {each["delivery_id"] for each in held}
    assert len(others) == 2
    assert suspects(connection) == set()
    assert unbalanced(connection) == []


def test_the_dead_are_buried_once(database: str, connection: psycopg.Connection) -> None:
    number = insert(connection)
    dead, _ = die(database)

    assert [bury(connection, dead), bury(connection, dead)] == [1, 0]
    assert len(attempts(connection, number)) == 1


def test_who_was_seen_since_is_not_buried(database: str, connection: psycopg.Connection) -> None:
    number = insert(connection)
    worker, _ = die(database)
    (suspect,) = rows(connection, "select * from notify_worker.suspects()")
    assert still_here(connection, worker)

    buried = value(connection, "select notify_worker.bury(%s, %s)", worker.id, suspect["seen_at"])

    assert buried == 0
    assert notification(connection, number)["leased_by"] == worker.id


def test_who_lives_is_not_buried(connection: psycopg.Connection) -> None:
    worker = enter(connection)

    assert bury(connection, worker) == 0
    assert still_here(connection, worker)


def test_who_was_buried_hears_of_it_and_may_not_claim(database: str, connection: psycopg.Connection) -> None:
    insert(connection)
    dead, _ = die(database)

    bury(connection, dead)

    assert not still_here(connection, dead)
    assert rows(connection, "select * from notify_worker.workers") == []
    with pytest.raises(ObjectNotInPrerequisiteState):
        claim(connection, dead)


def test_who_left_is_no_longer_among_the_workers(connection: psycopg.Connection) -> None:
    worker, leaving = enter(connection), enter(connection)

    leave(connection, leaving)

    assert [each["name"] for each in rows(connection, "select name from notify_worker.workers")] == [worker.name]
    assert not still_here(connection, leaving)


def test_what_is_locked_at_the_burial_comes_back_when_its_lease_ends(
    database: str, connection: psycopg.Connection
) -> None:
    locked = insert(connection)
    free = insert(connection)
    with connected(database) as session:
        dead = enter(session, A_MOMENT)
        claim(session, dead)
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications where id = %s for update", [locked])

        assert bury(connection, dead) == 1
    await_end_of_lease(connection, locked)
    claim(connection, enter(connection))

    assert len(attempts(connection, locked)) == len(attempts(connection, free)) == 1


def test_nobody_takes_over_while_the_holder_is_just_recording(database: str, connection: psycopg.Connection) -> None:
    first, second = insert(connection), insert(connection)
    worker = enter(connection, A_MOMENT)
    claimed, _ = claim(connection, worker)
    await_end_of_lease(connection, second)
    other = enter(connection)
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

        assert bury(connection, dead) == 0
        recording.execute("commit")

    assert bury(connection, dead) == 1
    assert [each["verdict"] for each in attempts(connection, first)] == ["sent"]
    assert [each["verdict"] for each in attempts(connection, second)] == ["unknown"]
