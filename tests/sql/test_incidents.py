"""What workers stop by themselves: it waits and costs nothing, is probed, and goes on where a probe gets through."""

import re
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import LiteralString, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.store_calls import (
    CLAIM,
    Row,
    Worker,
    at_once,
    attempts,
    await_lock,
    begin,
    claim,
    claim_one,
    connected,
    deliveries,
    end,
    insert,
    let_pass,
    notification,
    only_delivery,
    outcome,
    paused,
    record,
    register,
    register_worker,
    rescue_worker,
    row,
    rows,
    state,
    unbalanced,
    value,
)
from tests.support.waiting import until

BELLS: LiteralString = (
    "select count(*) from notify_worker.procrastinate_jobs where task_name = 'notify_worker.drain' and status = 'todo'"
)
OPEN: LiteralString = """
    select id, project, scope, by, began_at, nullif(blocked_until, 'infinity') as blocked_until, probe_count, reason
    from notify_worker.open_incidents
    order by id
"""


def incident(connection: psycopg.Connection) -> Row:
    """The one that is open."""
    return row(connection, OPEN)


def waits_for(connection: psycopg.Connection) -> float:
    """Seconds until the open incident ends or is probed."""
    left: LiteralString = (
        "select date_part('epoch', blocked_until - clock_timestamp()) from notify_worker.open_incidents"
    )
    return float(value(connection, left))


def pause(connection: psycopg.Connection, project: str = "default") -> None:
    connection.execute("select notify_worker.pause(%s, 'maintenance')", [project])


def resume(connection: psycopg.Connection, project: str = "default") -> None:
    connection.execute("select notify_worker.resume(%s)", [project])


def project_rate(connection: psycopg.Connection, project: str = "default") -> float:
    statement: LiteralString = "select notify_worker.project_rate(projects) from notify_worker.projects where name = %s"
    return float(value(connection, statement, project))


def told(connection: psycopg.Connection, number: int) -> list[str]:
    return [line["what"] for line in rows(connection, "select what from notify_worker.explain(%s::bigint)", number)]


def refused(delivery: Row) -> Row:
    """An answer that says nothing of the delivery, and everything of its project."""
    return outcome(delivery, verdict="paused", http_status=403, error="FCM is not enabled", retry_in=0, counts=False)


def family(connection: psycopg.Connection, receiver_id: str = "u_42", project: str = "default") -> dict[str, int]:
    """A receiver with a device of each platform."""
    return {
        platform: register(connection, receiver_id, f"fcm:{receiver_id}-{platform}", platform=platform, project=project)
        for platform in ("android", "ios", "web")
    }


# ── a project that is probed ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_s_pause_stops_its_project_and_no_other(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    worker = register_worker(connection)
    waiting = [insert(connection, project="orders"), insert(connection, project="orders", priority="high")]
    other = insert(connection)

    begin(connection, project="orders")

    assert claim_one(connection, worker)["notification_id"] == other
    assert claim(connection, worker) == []
    assert [state(connection, number) for number in waiting] == ["pending", "pending"]
    assert paused(connection, "orders")[1] == "its key was refused"
    assert paused(connection) == (None, None)
    assert 9 < waits_for(connection) <= 10


def test_of_several_workers_exactly_one_makes_the_probe_of_one_delivery(
    database: str, connection: psycopg.Connection
) -> None:
    for _ in range(20):
        insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)

    def look() -> list[Row]:
        with connected(database) as session:
            return claim(session, register_worker(session))

    claimed = at_once(look, look, look)

    assert sorted(len(each) for each in claimed) == [0, 0, 1]
    ((probe,),) = filter(None, claimed)
    assert probe["probe"] is True
    assert incident(connection)["probe_count"] == 1


def test_a_probe_s_turn_is_taken_while_another_worker_has_not_committed(
    database: str, connection: psycopg.Connection
) -> None:
    insert(connection)
    insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)
    with connected(database) as first:
        worker = register_worker(first)
        first.execute("begin")
        assert len(claim(first, worker)) == 1
        connection.execute("set lock_timeout = '5s'")

        assert claim(connection, register_worker(connection)) == []


def test_of_a_receiver_with_three_devices_one_is_the_probe(connection: psycopg.Connection) -> None:
    family(connection)
    number = insert(connection, receiver_id="u_42")
    begin(connection)
    let_pass(connection, seconds=11)

    probe = claim_one(connection, register_worker(connection))

    assert probe["probe"] is True
    leased = notification(connection, number)
    assert str(leased["lease"]) == probe["lease"]
    others = [each for each in deliveries(connection, number) if each["id"] != probe["delivery_id"]]
    assert [each["state"] for each in others] == ["pending", "pending"]
    assert all(each["due_at"] > leased["leased_at"] for each in others)


def test_the_others_of_a_probe_s_receiver_go_on_with_the_project(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    family(connection)
    number = insert(connection, receiver_id="u_42")
    begin(connection)
    let_pass(connection, minutes=1)
    probe = claim_one(connection, worker)

    end(connection)
    record(connection, worker, outcome(probe, verdict="sent"))

    until("the two others are due", lambda: notification(connection, number)["due_at"] <= datetime.now(UTC), within=2)
    again = claim(connection, worker)
    assert {each["delivery_id"] for each in again} == {each["id"] for each in deliveries(connection, number)} - {
        probe["delivery_id"]
    }
    assert [each["probe"] for each in again] == [False, False]


def test_probes_grow_rarer_up_to_five_minutes_and_are_another_notification_each(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    for _ in range(10):
        insert(connection)
    begin(connection)
    waits, probed = [ceil(waits_for(connection))], []

    for _ in range(7):
        assert claim(connection, worker) == []
        let_pass(connection, seconds=waits[-1])
        probe = claim_one(connection, worker)
        record(connection, worker, refused(probe))
        probed.append(probe["notification_id"])
        waits.append(ceil(waits_for(connection)))

    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    assert len(set(probed)) == 7
    assert incident(connection)["probe_count"] == 7


def test_the_probes_of_an_outage_burn_no_attempt(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection)
    begin(connection)

    for _ in range(15):
        let_pass(connection, minutes=6)
        record(connection, worker, refused(claim_one(connection, worker)))
        let_pass(connection, seconds=1)

    assert (state(connection, number), only_delivery(connection, number)["attempts"]) == ("pending", 0)
    assert len(attempts(connection, number)) == 15
    assert unbalanced(connection) == []


def test_a_probe_that_got_through_frees_all_and_rings(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    for _ in range(5):
        insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)
    probe = claim_one(connection, worker)
    record(connection, worker, outcome(probe, verdict="sent"))
    assert value(connection, BELLS) == 0

    end(connection)

    assert paused(connection) == (None, None)
    assert rows(connection, OPEN) == []
    assert value(connection, BELLS) == 1
    freed = claim(connection, worker)
    assert (len(freed), {each["probe"] for each in freed}) == (4, {False})
    record(connection, worker, *[outcome(each, verdict="sent") for each in freed])
    assert unbalanced(connection) == []


def test_the_end_of_what_is_not_stopped_changes_nothing(connection: psycopg.Connection) -> None:
    end(connection)

    assert rows(connection, "select from notify_worker.incidents") == []
    assert value(connection, BELLS) == 0


def test_a_straggler_begins_nothing_twice_and_moves_no_probe(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)
    claim_one(connection, worker)
    before, before_of_project = incident(connection), paused(connection)

    begin(connection, reason="the same, seen by another")

    assert incident(connection) == before
    assert paused(connection) == before_of_project


def test_two_workers_that_find_the_same_at_once_begin_it_once(database: str, connection: psycopg.Connection) -> None:
    with connected(database) as first, connected(database) as second, ThreadPoolExecutor(1) as thread:
        first.execute("begin")
        begin(first)
        waiting = thread.submit(begin, second)
        await_lock(connection, second.info.backend_pid)

        first.execute("commit")

        waiting.result(10)
    assert incident(connection)["probe_count"] == 0


def test_the_next_probe_comes_though_the_worker_that_made_one_froze(connection: psycopg.Connection) -> None:
    frozen, other = register_worker(connection), register_worker(connection)
    insert(connection)
    insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)
    first = claim_one(connection, frozen)

    assert claim(connection, other) == []
    let_pass(connection, seconds=21)

    second = claim_one(connection, other)
    assert (second["probe"], second["notification_id"] != first["notification_id"]) == (True, True)


def test_the_next_probe_comes_though_the_worker_that_made_one_crashed_with_all_there_was(
    database: str, connection: psycopg.Connection
) -> None:
    number = insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)
    with connected(database) as session:
        dead = register_worker(session)
        first = claim_one(session, dead)
    assert rescue_worker(connection, dead) == 1
    worker = register_worker(connection)
    assert claim(connection, worker) == []

    let_pass(connection, seconds=21)

    again = claim_one(connection, worker)
    assert (again["delivery_id"], again["probe"], again["attempts"]) == (first["delivery_id"], True, 0)
    record(connection, worker, outcome(again, verdict="sent"))
    end(connection)
    assert [each["verdict"] for each in attempts(connection, number)] == ["unknown", "sent"]
    assert unbalanced(connection) == []


@pytest.mark.parametrize(
    "columns",
    [{"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, {"campaign": "no_such"}, {"receiver_id": "u_nobody"}],
    ids=["expired", "failed", "unreachable"],
)
def test_what_cannot_be_sent_takes_no_probe_s_turn(connection: psycopg.Connection, columns: dict[str, object]) -> None:
    worker = register_worker(connection)
    unsendable = [insert(connection, **columns) for _ in range(3)]
    number = insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)

    claimed = [each for _ in range(4) for each in claim(connection, worker)]

    assert [(each["notification_id"], each["probe"]) for each in claimed] == [(number, True)]
    assert "pending" not in {state(connection, each) for each in unsendable}
    assert 19 < waits_for(connection) <= 20


def test_what_another_incident_stops_takes_no_probe_s_turn(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform="ios")
    insert(connection, receiver_id="u_42")
    insert(connection, kind="topic", address="news")
    number = insert(connection)
    begin(connection, "apns_web")
    begin(connection, "topics", lasts=60)
    begin(connection)
    let_pass(connection, seconds=11)

    claimed = [each for _ in range(3) for each in claim(connection, worker)]

    assert [(each["notification_id"], each["probe"]) for each in claimed] == [(number, True)]


def waits_or_ended(observer: psycopg.Connection, session: psycopg.Connection, task: Future[list[Row]]) -> bool:
    waits: LiteralString = "select exists (select from pg_stat_activity where pid = %s and wait_event_type = 'Lock')"
    return task.done() or bool(value(observer, waits, session.info.backend_pid))


@pytest.mark.parametrize(
    "other",
    [
        CLAIM,
        "select notify_worker.close_incident('default', 'project')",
        "select notify_worker.resume('default')",
    ],
    ids=["claim", "close_incident", "resume"],
)
def test_who_begins_and_who_probes_or_ends_never_wait_for_each_other(
    database: str, connection: psycopg.Connection, other: LiteralString
) -> None:
    worker = register_worker(connection)
    insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)
    values = [worker.id, uuid4(), 10] if other is CLAIM else []
    with (
        connected(database) as slow,
        connected(database) as first,
        connected(database) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        slow.execute("begin")
        begin(slow, "topics", lasts=60)
        begins = threads.submit(begin, first)
        await_lock(connection, first.info.backend_pid)
        acts = threads.submit(rows, second, other, *values)
        until("the other one waits or has ended", lambda: waits_or_ended(connection, second, acts), within=10)

        slow.execute("commit")

        for either in (begins, acts):  # on a slow machine it may have waited for long enough
            assert isinstance(either.exception(10), psycopg.errors.LockNotAvailable | None)


def test_a_worker_waits_for_another_one_for_half_a_second_at_most(
    database: str, connection: psycopg.Connection
) -> None:
    with connected(database) as slow:
        slow.execute("begin")
        begin(slow)

        with pytest.raises(psycopg.errors.LockNotAvailable):
            begin(connection)

    begin(connection)


@pytest.mark.parametrize(
    "keeps",
    [
        "update notify_worker.projects set credentials = 'env:KEY'",
        "select notify_worker.pause('default', 'I only look')",
        "select notify_worker.resume('default')",
    ],
    ids=["the project's row", "an open pause", "an open resume"],
)
def test_an_operator_s_open_transaction_makes_no_worker_wait(
    database: str, connection: psycopg.Connection, keeps: LiteralString
) -> None:
    worker = register_worker(connection)
    for _ in range(3):
        insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)
    connection.execute("set lock_timeout = '100ms'")
    with connected(database) as operator:
        operator.execute("begin")
        operator.execute(keeps)

        begin(connection)
        claim(connection, worker)
        end(connection)
        begin(connection, lasts=60)
        operator.execute("rollback")

    assert paused(connection)[1] == "its key was refused"


def test_an_operator_who_keeps_the_row_of_a_probed_project_keeps_no_probe_of_it(
    database: str, connection: psycopg.Connection
) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    probe, number = insert(connection, project="orders"), insert(connection)
    begin(connection, project="orders")
    let_pass(connection, seconds=11)
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as operator:
        operator.execute("begin")
        operator.execute("update notify_worker.projects set credentials = 'env:KEY' where name = 'orders'")

        claimed = claim(connection, register_worker(connection))

    assert {each["notification_id"]: each["probe"] for each in claimed} == {probe: True, number: False}


@pytest.mark.parametrize("operator_ends_by", ["commit", "rollback"])
def test_what_a_worker_finds_during_an_open_resume_is_an_incident_of_its_own(
    database: str, connection: psycopg.Connection, operator_ends_by: LiteralString
) -> None:
    worker = register_worker(connection)
    for _ in range(3):
        insert(connection)
    begin(connection, reason="the first")
    with connected(database) as operator:
        operator.execute("begin")
        resume(operator)
        begin(connection, reason="the second")
        operator.execute(operator_ends_by)

    left = ["the second"] if operator_ends_by == "commit" else ["the first", "the second"]
    assert [each["reason"] for each in rows(connection, OPEN)] == left
    let_pass(connection, seconds=11)
    (probe,) = claim(connection, worker)
    assert probe["probe"] is True
    assert claim(connection, worker) == []
    end(connection)
    assert rows(connection, OPEN) == []
    assert len(claim(connection, worker)) == 2


def test_an_incident_that_an_open_resume_keeps_is_closed_by_a_later_probe(
    database: str, connection: psycopg.Connection
) -> None:
    begin(connection)
    with connected(database) as operator:
        operator.execute("begin")
        resume(operator)
        end(connection)
        operator.execute("rollback")
    still_open = rows(connection, OPEN)

    end(connection)

    assert len(still_open) == 1
    assert rows(connection, OPEN) == []


def test_the_incidents_of_a_project_that_was_deleted_block_nothing(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    number = insert(connection, project="orders")
    pause(connection, "orders")
    connection.execute("delete from notify_worker.projects where name = 'orders'")

    assert claim(connection, register_worker(connection)) == []

    assert (notification(connection, number)["state"], notification(connection, number)["settled_reason"]) == (
        "failed",
        'there is no project "orders"',
    )
    assert value(connection, "select ended_at from notify_worker.incidents") is None


# ── a probe that decides nothing ─────────────────────────────────────────────────────────────────────────────────────


def decide_nothing(connection: psycopg.Connection, scope: str = "project") -> None:
    """A probe was answered for its own fault, or not requested at all."""
    connection.execute("select notify_worker.make_probe_due('default', %s)", [scope])


def test_after_a_probe_that_decides_nothing_the_next_one_is_due_at_once(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    for _ in range(5):
        insert(connection)
    begin(connection)
    let_pass(connection, seconds=11)

    probed = set()
    for _ in range(3):
        probe = claim_one(connection, worker)
        decide_nothing(connection)
        record(connection, worker, outcome(probe, verdict="failed", http_status=400))
        probed.add((probe["notification_id"], probe["probe"]))

    assert len({number for number, is_probe in probed if is_probe}) == 3
    assert len(rows(connection, OPEN)) == 1
    record(connection, worker, refused(claim_one(connection, worker)))
    assert claim(connection, worker) == []
    assert 19 < waits_for(connection) <= 20  # as after a first probe
    assert unbalanced(connection) == []


def test_a_probe_that_decides_nothing_wakes_a_worker(connection: psycopg.Connection) -> None:
    begin(connection)
    before = value(connection, BELLS)

    decide_nothing(connection)

    assert (before, value(connection, BELLS)) == (0, 1)


def test_after_a_probe_of_ios_that_decides_nothing_another_of_what_waits_is_the_next(
    connection: psycopg.Connection,
) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform="ios")
    for _ in range(4):
        insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")
    assert claim(connection, worker) == []
    let_pass(connection, minutes=16)
    first = claim_one(connection, worker)

    decide_nothing(connection, "apns_web")
    record(connection, worker, outcome(first, verdict="failed", http_status=400))

    second = claim_one(connection, worker)
    assert (second["probe"], second["notification_id"] != first["notification_id"]) == (True, True)
    assert claim(connection, worker) == []
    record(connection, worker, outcome(second, verdict="sent"))
    end(connection, "apns_web")
    assert len(claim(connection, worker)) == 2
    assert unbalanced(connection) == []


def test_a_probe_that_decides_nothing_touches_no_pause_of_an_operator_nor_one_with_a_time(
    connection: psycopg.Connection,
) -> None:
    worker = register_worker(connection)
    insert(connection)
    pause(connection)
    begin(connection, lasts=60)
    before = rows(connection, OPEN)

    decide_nothing(connection)

    assert rows(connection, OPEN) == before
    assert claim(connection, worker) == []
    assert value(connection, BELLS) == 0


# ── a claim beside an operator ───────────────────────────────────────────────────────────────────────────────────────


def test_an_open_resume_makes_no_claim_wait(database: str, connection: psycopg.Connection) -> None:
    family(connection)
    number = insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as operator:
        operator.execute("begin")
        resume(operator)

        (android,) = claim(connection, register_worker(connection))

        assert (android["notification_id"], android["platform"]) == (number, "android")


def test_what_was_put_off_since_its_incident_was_in_other_hands_is_looked_at_again_soon(
    database: str, connection: psycopg.Connection
) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform="ios")
    number = insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")
    with connected(database) as operator:
        operator.execute("begin")
        resume(operator)
        assert claim(connection, worker) == []
        operator.execute("commit")

    until("it is claimed", lambda: bool(claim(connection, worker)), within=5)

    assert only_delivery(connection, number)["last_attempt_number"] == 0


def pages(connection: psycopg.Connection, project: str) -> int:
    """How many pages it touches to pick 100, all of this project, in a session that has settled on its plans."""
    explain: LiteralString = (
        "explain (analyze, buffers, format json) select * from notify_worker.lock_due(100, clock_timestamp(), %s)"
    )
    for _ in range(6):
        with connection.transaction(force_rollback=True):
            (plan,) = value(connection, explain, Jsonb({project: 100}))
    assert plan["Plan"]["Actual Rows"] == 100, project
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def test_twenty_thousand_of_a_probed_project_make_the_claim_of_others_no_dearer(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    fill: LiteralString = """
        insert into notify_worker.notifications (kind, address, title, project)
        select 'topic', 'news', 'Hello', %s from generate_series(1, %s)
    """
    connection.execute(fill, ["default", 200])
    connection.execute("analyze notify_worker.notifications")
    alone = pages(connection, "default")

    begin(connection, project="orders")
    connection.execute(fill, ["orders", 20_000])
    connection.execute("analyze notify_worker.notifications")

    assert pages(connection, "default") <= 1.5 * alone


# ── an operator, and a pause that ends by itself ─────────────────────────────────────────────────────────────────────


def test_an_operator_s_pause_is_lifted_by_no_probe_and_shortened_by_no_worker(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    insert(connection)
    begin(connection)
    pause(connection)

    begin(connection, reason="an outage")
    begin(connection, lasts=1, reason="its quota")
    end(connection)
    let_pass(connection, hours=1)

    assert paused(connection) == ("infinity", "maintenance")
    assert claim(connection, worker) == []
    assert value(connection, "select count(*) from notify_worker.incidents where ended_at is null") == 1


def test_no_probe_is_made_while_an_operator_pauses(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    insert(connection)
    begin(connection)
    pause(connection)

    let_pass(connection, hours=1)

    assert claim(connection, worker) == []
    assert value(connection, "select sum(probe_count) from notify_worker.stored_incidents") == 0


def test_resume_ends_all_that_workers_and_operators_began(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    family(connection)
    family_of_deliveries = insert(connection, receiver_id="u_42")
    topic = insert(connection, kind="topic", address="news")
    begin(connection, "apns_web")
    begin(connection, "topics", lasts=300)
    begin(connection, "devices", reason="many are gone")
    assert [each["platform"] for each in claim(connection, worker)] == ["android"]
    begin(connection)
    pause(connection)

    resume(connection)

    assert rows(connection, OPEN) == []
    assert paused(connection) == (None, None)
    assert value(connection, BELLS) == 1
    assert notification(connection, topic)["due_at"] <= datetime.now(UTC)
    assert claim_one(connection, worker)["notification_id"] == topic
    assert state(connection, family_of_deliveries) == "pending"


def test_a_pause_with_a_time_of_its_own_ends_by_itself_and_is_not_probed(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    for _ in range(3):
        insert(connection)
    begin(connection, lasts=60, reason="its quota is used up", sent_rate=10_000)
    assert (claim(connection, worker), paused(connection)[1]) == ([], "its quota is used up")

    let_pass(connection, seconds=59)
    assert claim(connection, worker) == []
    let_pass(connection, seconds=1)

    assert [each["probe"] for each in claim(connection, worker)] == [False, False, False]
    over = row(connection, "select began_at, ended_at from notify_worker.incidents")
    assert over["ended_at"] - over["began_at"] == timedelta(seconds=60)


def test_a_probe_that_got_through_ends_no_pause_with_a_time_of_its_own(connection: psycopg.Connection) -> None:
    begin(connection)
    begin(connection, lasts=60, reason="its quota")

    end(connection)

    assert paused(connection)[1] == "its quota"
    assert 59 < waits_for(connection) <= 60


@pytest.mark.parametrize(("second", "left"), [(120, 120), (20, 60)], ids=["longer", "shorter"])
@pytest.mark.parametrize("scope", ["project", "topics"])
def test_a_second_pause_with_a_time_extends_the_first_and_never_shortens_it(
    connection: psycopg.Connection, scope: str, second: float, left: float
) -> None:
    begin(connection, scope, lasts=60)

    begin(connection, scope, lasts=second)

    assert left - 1 < waits_for(connection) <= left


def test_a_pause_with_a_time_that_is_over_begins_anew_and_keeps_its_end(connection: psycopg.Connection) -> None:
    begin(connection, lasts=60, reason="the first")
    let_pass(connection, minutes=3)

    begin(connection, lasts=60, reason="the second")

    first, second = rows(connection, "select * from notify_worker.incidents order by began_at")
    assert (first["reason"], second["reason"], second["ended_at"]) == ("the first", "the second", None)
    assert first["ended_at"] - first["began_at"] == timedelta(seconds=60)


# ── the rate after an exceeded quota ─────────────────────────────────────────────────────────────────────────────────


def test_after_an_exceeded_quota_all_go_on_with_half_of_what_they_sent_together(connection: psycopg.Connection) -> None:
    for _ in range(2):
        register_worker(connection)
    begin(connection, lasts=60, sent_rate=50)

    assert project_rate(connection) == pytest.approx(50)


def test_a_worker_alone_goes_on_with_half_and_never_with_less_than_one_a_second(connection: psycopg.Connection) -> None:
    begin(connection, lasts=60, sent_rate=30)
    half = project_rate(connection)
    let_pass(connection, hours=2)
    begin(connection, lasts=60, sent_rate=1)

    assert (half, project_rate(connection)) == (15, 1)


def test_who_is_refused_at_once_goes_on_with_half_of_what_was_allowed(connection: psycopg.Connection) -> None:
    connection.execute("update notify_worker.projects set max_per_second = 70")
    begin(connection, lasts=60, sent_rate=0)

    assert project_rate(connection) == 35


@pytest.mark.parametrize("sent", [0, 3])
def test_who_is_refused_again_soon_after_a_pause_goes_on_with_half_of_that(
    connection: psycopg.Connection, sent: float
) -> None:
    begin(connection, lasts=60, sent_rate=3_000)
    let_pass(connection, seconds=61)
    begin(connection, lasts=60, sent_rate=sent)

    assert project_rate(connection) == pytest.approx(750, rel=0.1)


@pytest.mark.parametrize(("minutes", "times"), [(0.5, 2**0.5), (1, 2), (2, 4), (5, 32)])
def test_the_rate_after_an_exceeded_quota_doubles_each_minute(
    connection: psycopg.Connection, minutes: float, times: float
) -> None:
    begin(connection, lasts=60, sent_rate=20)
    let_pass(connection, minutes=1)
    assert project_rate(connection) == pytest.approx(10, rel=0.05)

    let_pass(connection, minutes=minutes)

    assert project_rate(connection) == pytest.approx(10 * times, rel=0.05)


def test_the_rate_grows_back_to_the_project_s_own_and_no_further(connection: psycopg.Connection) -> None:
    connection.execute("update notify_worker.projects set max_per_second = 70")
    begin(connection, lasts=60, sent_rate=40)
    let_pass(connection, days=400)

    assert project_rate(connection) == 70


@pytest.mark.parametrize(("scope", "lasts"), [("project", None), ("apns_web", None), ("topics", 60), ("devices", None)])
def test_what_says_nothing_of_the_rate_leaves_it_as_it_is(
    connection: psycopg.Connection, scope: str, lasts: float | None
) -> None:
    begin(connection, scope, lasts=lasts)

    assert project_rate(connection) == 10_000


# ── iOS and web ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ios_and_web_wait_and_android_goes_now(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    family(connection)
    number = insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")

    (android,) = claim(connection, worker)
    record(connection, worker, outcome(android, verdict="sent"))

    assert (android["platform"], android["probe"]) == ("android", False)
    open_until = incident(connection)["blocked_until"]
    waiting = [each for each in deliveries(connection, number) if each["state"] == "pending"]
    assert [(each["platform"], each["due_at"]) for each in waiting] == [("ios", open_until), ("web", open_until)]
    assert notification(connection, number)["due_at"] == open_until
    assert notification(connection, number)["lease"] is None
    assert 14 * 60 < waits_for(connection) <= 15 * 60
    assert claim(connection, worker) == []


def test_what_was_put_off_is_a_row_of_the_claim_without_a_delivery(
    connection: psycopg.Connection,
) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform="ios")
    number = insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")

    (told,) = rows(connection, CLAIM, worker.id, uuid4(), 1)

    assert (told["notification_id"], told["delivery_id"], told["state"]) == (number, None, "pending")
    assert rows(connection, CLAIM, worker.id, uuid4(), 1) == []


def test_ios_and_web_are_probed_by_one_delivery_each_quarter_of_an_hour(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    for receiver in ("u_1", "u_2", "u_3"):
        family(connection, receiver)
        insert(connection, receiver_id=receiver)
    begin(connection, "apns_web")
    for each in claim(connection, worker):
        record(connection, worker, outcome(each, verdict="sent"))

    for probes in (1, 2, 3):
        let_pass(connection, minutes=15)
        (probe,) = claim(connection, worker)
        assert probe["probe"] is True
        assert probe["platform"] in ("ios", "web")
        record(connection, worker, refused(probe))
        assert claim(connection, worker) == []
        assert incident(connection)["probe_count"] == probes
        assert 14 * 60 < waits_for(connection) <= 15 * 60
    assert {each["platform"] for each in rows(connection, "select * from notify_worker.stored_deliveries")} == {
        "android",
        "ios",
        "web",
    }
    assert (
        value(connection, "select sum(attempts) from notify_worker.stored_deliveries where platform <> 'android'") == 0
    )
    assert unbalanced(connection) == []


def test_of_several_workers_one_probes_ios_and_web(database: str, connection: psycopg.Connection) -> None:
    register(connection, "u_42", "fcm:phone", platform="ios")
    for _ in range(9):
        insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")
    let_pass(connection, minutes=16)
    claimed: list[Row] = []

    def look() -> list[Row]:
        with connected(database) as session:
            return claim(session, register_worker(session), most=3)

    def somebody_probes() -> bool:
        claimed.extend(each for taken in at_once(look, look, look) for each in taken)
        return bool(claimed)

    until("somebody probes", somebody_probes, within=10)

    assert [each["probe"] for each in claimed] == [True]
    assert incident(connection)["probe_count"] == 1


def test_a_probe_of_ios_that_got_through_brings_forward_what_waited(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    family(connection)
    for _ in range(4):
        insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")
    for each in claim(connection, worker):
        record(connection, worker, outcome(each, verdict="sent"))
    let_pass(connection, minutes=15)
    probe = claim_one(connection, worker)
    record(connection, worker, outcome(probe, verdict="sent"))

    end(connection, "apns_web")

    assert value(connection, BELLS) == 1
    freed = claim(connection, worker)
    assert len(freed) == 4 * 2 - 1
    assert [each["probe"] for each in freed] == [False] * 7
    record(connection, worker, *[outcome(each, verdict="sent") for each in freed])
    assert value(connection, "select count(*) from notify_worker.notifications where state = 'sent'") == 4
    assert unbalanced(connection) == []


def test_who_has_only_ios_is_told_after_all(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform="ios")
    number = insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")
    assert claim(connection, worker) == []

    end(connection, "apns_web")

    record(connection, worker, outcome(claim_one(connection, worker), verdict="sent"))
    assert (state(connection, number), len(deliveries(connection, number))) == ("sent", 1)


def test_what_waits_for_a_retry_or_its_hour_is_not_brought_forward(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform="ios")
    retried = insert(connection, receiver_id="u_42")
    record(connection, worker, outcome(claim_one(connection, worker), verdict="retry", error="busy", retry_in=600))
    scheduled = insert(connection, receiver_id="u_42", send_at=datetime.now(UTC) + timedelta(minutes=10))
    begin(connection, "apns_web")
    before = [notification(connection, number)["due_at"] for number in (retried, scheduled)]

    end(connection, "apns_web")

    assert [notification(connection, number)["due_at"] for number in (retried, scheduled)] == before


@pytest.mark.parametrize("by", ["a probe", "resume"])
def test_what_would_have_expired_before_the_next_probe_is_brought_forward_too(
    connection: psycopg.Connection, by: str
) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform="ios")
    number = insert(connection, receiver_id="u_42", expires_at=datetime.now(UTC) + timedelta(minutes=10))
    begin(connection, "apns_web")
    assert claim(connection, worker) == []

    if by == "resume":
        resume(connection)
    else:
        end(connection, "apns_web")

    assert claim_one(connection, worker)["notification_id"] == number


def test_what_expires_while_ios_waits_ends_expired_at_its_expiry_unsent(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    family(connection)
    soon = datetime.now(UTC) + timedelta(minutes=5)
    number = insert(connection, receiver_id="u_42", expires_at=soon)
    begin(connection, "apns_web")
    record(connection, worker, outcome(claim_one(connection, worker), verdict="sent"))
    assert notification(connection, number)["due_at"] == soon

    let_pass(connection, minutes=4, seconds=50)
    assert (claim(connection, worker), state(connection, number)) == ([], "pending")
    let_pass(connection, seconds=11)
    assert claim(connection, worker) == []

    ended = {each["platform"]: (each["state"], each["last_error"]) for each in deliveries(connection, number)}
    assert ended["ios"] == ended["web"] == ("expired", "it expired before it could be sent")
    assert (state(connection, number), len(attempts(connection, number))) == ("sent", 1)
    assert incident(connection)["probe_count"] == 0
    assert unbalanced(connection) == []


def test_a_delivery_of_which_nobody_knows_the_platform_is_not_stopped(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    connection.execute("select notify_worker.register_device('u_42', 'token', 'fcm:thing')")
    expected = [
        insert(connection, receiver_id="u_42"),
        insert(connection),
        insert(connection, kind="topic", address="a"),
    ]
    begin(connection, "apns_web")

    claimed = claim(connection, worker)

    assert [each["notification_id"] for each in claimed] == expected
    assert [each["probe"] for each in claimed] == [False, False, False]


def test_who_looks_while_another_one_looks_at_the_same_incident_makes_the_probe_soon(
    database: str, connection: psycopg.Connection
) -> None:
    register(connection, "u_42", "fcm:phone", platform="ios")
    insert(connection, receiver_id="u_42")
    begin(connection, "apns_web")
    let_pass(connection, minutes=16)
    with connected(database) as session, connected(database) as other, ThreadPoolExecutor(1) as thread:
        session.execute("begin")
        session.execute("select from notify_worker.stored_incidents for share")
        looks = thread.submit(claim, other, register_worker(other))
        until("it waits or has ended", lambda: waits_or_ended(connection, other, looks), within=10)
        session.execute("commit")
        claimed = looks.result(10)

        until("the probe is made", lambda: bool(claimed or claim(connection, register_worker(connection))), within=3)

    assert incident(connection)["probe_count"] == 1


# ── topics ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_topics_and_conditions_wait_for_their_time_and_nothing_else_does(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    stopped = [insert(connection, kind=kind, address="news") for kind in ("topic", "condition")]
    going = [insert(connection, kind=kind, address="fcm:phone") for kind in ("token", "fid")]
    begin(connection, "topics", lasts=60)

    assert [each["notification_id"] for each in claim(connection, worker)] == going
    assert paused(connection) == (None, None)
    assert {notification(connection, number)["due_at"] for number in stopped} == {incident(connection)["blocked_until"]}
    let_pass(connection, seconds=61)
    later = claim(connection, worker)

    assert [each["notification_id"] for each in later] == stopped
    assert [(each["probe"], each["attempts"], each["last_attempt_number"]) for each in later] == [(False, 0, 0)] * 2
    record(connection, worker, *[outcome(each, verdict="sent") for each in later])
    assert unbalanced(connection) == []


def test_topics_that_wait_longer_after_all_are_put_off_again(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection, kind="topic", address="news")
    begin(connection, "topics", lasts=60)
    assert claim(connection, worker) == []
    begin(connection, "topics", lasts=300)

    let_pass(connection, seconds=61)

    assert claim(connection, worker) == []
    assert notification(connection, number)["due_at"] == incident(connection)["blocked_until"]


def test_a_topic_that_was_put_off_before_it_ever_went_is_sent_once(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection, kind="topic", address="news")
    begin(connection, "topics", lasts=60)
    assert claim(connection, worker) == []
    let_pass(connection, seconds=61)

    claimed = claim(connection, worker)

    assert [each["notification_id"] for each in claimed] == [number]
    assert len(deliveries(connection, number)) == 1


def test_a_topic_expires_while_it_waits(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection, kind="topic", address="news", expires_at=datetime.now(UTC) + timedelta(seconds=30))
    begin(connection, "topics", lasts=60)
    assert claim(connection, worker) == []

    let_pass(connection, seconds=31)

    assert (claim(connection, worker), state(connection, number)) == ([], "expired")
    assert attempts(connection, number) == []


# ── the breaker for devices ──────────────────────────────────────────────────────────────────────────────────────────


def lose(connection: psycopg.Connection, worker: Worker, address: str, project: str = "default") -> int:
    """FCM calls an address unregistered."""
    register(connection, f"u_{address}", address, project=project)
    number = insert(connection, receiver_id=f"u_{address}", project=project)
    let_pass(connection, seconds=1)
    record(connection, worker, outcome(claim_one(connection, worker), verdict="unregistered", error="UNREGISTERED"))
    return number


def retired(connection: psycopg.Connection) -> set[str]:
    statement: LiteralString = "select address from notify_worker.devices where retired_at is not null"
    return {each["address"] for each in rows(connection, statement)}


def test_while_a_breaker_is_open_deliveries_settle_and_devices_stay(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    lose(connection, worker, "fcm:before")
    begin(connection, "devices", reason="more than a fifth of the answers say unregistered")

    number = lose(connection, worker, "fcm:while")

    assert (state(connection, number), only_delivery(connection, number)["state"]) == ("unreachable", "failed")
    assert retired(connection) == {"fcm:before"}
    resume(connection)
    lose(connection, worker, "fcm:after")
    assert retired(connection) == {"fcm:before", "fcm:after"}
    assert unbalanced(connection) == []


def test_a_breaker_for_devices_stops_nothing_else_no_other_project_and_ends_at_no_time(
    connection: psycopg.Connection,
) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    worker = register_worker(connection)
    begin(connection, "devices")

    lose(connection, worker, "fcm:hers", project="orders")
    register(connection, "u_42", "fcm:mine")
    insert(connection, receiver_id="u_42")
    let_pass(connection, days=10)
    record(connection, worker, *[outcome(each, verdict="sent") for each in claim(connection, worker)])
    end(connection, "devices")

    assert retired(connection) == {"fcm:hers"}
    assert value(connection, "select ends_at::text from notify_worker.stored_incidents") == "infinity"
    assert paused(connection) == (None, None)


def test_what_a_minute_retired_comes_back_by_the_statement_that_the_incident_prints(
    connection: psycopg.Connection,
) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('it''s 100%')")
    worker = register_worker(connection)
    mine = "it's 100%"
    lose(connection, worker, "fcm:long-ago", mine)
    let_pass(connection, minutes=2)
    lose(connection, worker, "fcm:now-1", mine)
    lose(connection, worker, "fcm:now-2", mine)
    lose(connection, worker, "fcm:hers")
    register(connection, "u_42", "fcm:lost", project=mine)
    connection.execute("select notify_worker.retire_device('token', 'fcm:lost', %s)", [mine])
    begin(connection, "devices", mine, reason="more than a fifth of the answers say unregistered")
    reason = value(connection, "select reason from notify_worker.incidents")

    (statement,) = re.findall(r"update .*$", reason)
    connection.execute(cast(LiteralString, statement))

    assert reason.startswith("more than a fifth of the answers say unregistered. What was retired")
    assert retired(connection) == {"fcm:long-ago", "fcm:hers", "fcm:lost"}


def test_the_statement_brings_back_the_same_in_whatever_time_zone_it_is_run(
    database: str, connection: psycopg.Connection
) -> None:
    worker = register_worker(connection)
    lose(connection, worker, "fcm:now")
    connection.execute("set timezone = 'Asia/Seoul'")
    begin(connection, "devices")
    (statement,) = re.findall(r"update .*$", value(connection, "select reason from notify_worker.incidents"))
    with connected(database) as session:
        session.execute("set timezone = 'America/New_York'")

        session.execute(cast(LiteralString, statement))

    assert retired(connection) == set()


# ── what people are told ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_views_and_the_history_tell_of_a_project_that_is_probed(connection: psycopg.Connection) -> None:
    family(connection)
    number = insert(connection, receiver_id="u_42")
    begin(connection, reason="its key was refused")

    listed = row(connection, "select * from notify_worker.incidents")
    assert (listed["project"], listed["scope"], listed["by"]) == ("default", "project", "worker")
    assert (listed["reason"], listed["ended_at"]) == ("its key was refused", None)
    assert value(connection, "select paused_projects from notify_worker.status") == 1
    assert value(connection, "select due from notify_worker.status") == 0
    assert value(connection, "select reason from notify_worker.history('u_42')") == (
        "its project is paused: its key was refused"
    )
    assert told(connection, number)[1] == "project default was paused by a worker: its key was refused"
    stands = r"it is pending, and its project is paused until a probe gets through, the next one at 20\S+ \S+: (.*)"
    told_last = re.fullmatch(stands, told(connection, number)[-1])
    assert told_last
    assert told_last[1] == "its key was refused"


def test_between_two_probes_a_project_is_still_paused_in_all_that_people_read(connection: psycopg.Connection) -> None:
    number = insert(connection, receiver_id="u_42")
    begin(connection)
    let_pass(connection, hours=1)

    status = row(connection, "select paused_projects, due, oldest_due_for from notify_worker.status")
    assert status["paused_projects"] == 1
    assert "its project is paused until a probe gets through" in told(connection, number)[-1]
    assert value(connection, "select reason from notify_worker.history('u_42')") == (
        "its project is paused: its key was refused"
    )
    assert unbalanced(connection) == []


def test_the_story_says_when_a_project_was_paused_and_when_it_went_on(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection)
    begin(connection, reason="its key was refused")
    let_pass(connection, seconds=11)
    probe = claim_one(connection, worker)
    end(connection)
    record(connection, worker, outcome(probe, verdict="sent", provider_message_id="projects/a/messages/1"))

    lines = told(connection, number)

    assert [line for line in lines if "project" in line and "delivery" not in line] == [
        "project default was paused by a worker: its key was refused",
        "project default was resumed",
    ]
    assert lines[-1] == "it ended sent"


@pytest.mark.parametrize("platform", ["ios", "web"])
def test_the_story_and_the_history_of_what_waits_for_ios_say_so(connection: psycopg.Connection, platform: str) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone", platform=platform)
    register(connection, "u_43", "fcm:other", platform="android")
    stopped, going = insert(connection, receiver_id="u_42"), insert(connection, receiver_id="u_43")
    begin(connection, "apns_web", reason="Apple refuses the key")
    claim(connection, worker)

    assert "iOS and web of project default were paused by a worker: Apple refuses the key" in told(connection, stopped)
    assert not any("iOS" in line for line in told(connection, going))
    assert "Apple refuses the key" in value(connection, "select reason from notify_worker.history('u_42')")


def test_the_story_of_a_topic_says_why_it_waits(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection, kind="topic", address="news")
    begin(connection, "topics", reason="its quota of topics is used up", lasts=60)
    claim(connection, worker)
    let_pass(connection, seconds=61)
    record(connection, worker, outcome(claim_one(connection, worker), verdict="sent"))

    lines = [line for line in told(connection, number) if line.startswith("topics")]

    assert lines == [
        "topics of project default were paused by a worker: its quota of topics is used up",
        "topics of project default were resumed",
    ]
