"""Incidents that workers open: deliveries wait at no cost, are probed, and go on once a probe succeeds."""

import re
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import LiteralString, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.store_calls import CLAIM, Connection, Row, Worker, at_once, await_lock, connected, outcome
from tests.support.waiting import until

OPEN: LiteralString = """
    select id, project, scope, by, began_at, nullif(blocked_until, 'infinity') as blocked_until, probe_count, reason
    from notify_worker.open_incidents
    order by id
"""


def incident(connection: Connection) -> Row:
    """The one that is open."""
    return connection.row(OPEN)


def waits_for(connection: Connection) -> float:
    """Seconds until the open incident ends or is probed."""
    left: LiteralString = (
        "select date_part('epoch', blocked_until - clock_timestamp()) from notify_worker.open_incidents"
    )
    return float(connection.value(left))


def project_rate(connection: Connection, project: str = "default") -> float:
    statement: LiteralString = "select notify_worker.project_rate(projects) from notify_worker.projects where name = %s"
    return float(connection.value(statement, project))


def explained(connection: Connection, number: int) -> list[str]:
    return [line["what"] for line in connection.rows("select what from notify_worker.explain(%s::bigint)", number)]


def refused(delivery: Row) -> Row:
    """An answer that refuses the whole project, not the delivery."""
    return outcome(delivery, verdict="paused", http_status=403, error="FCM is not enabled", retry_in=0, counts=False)


def family(connection: Connection, receiver_id: str = "u_42", project: str = "default") -> dict[str, int]:
    """A receiver with a device of each platform."""
    return {
        platform: connection.register_device(
            receiver_id, f"fcm:{receiver_id}-{platform}", platform=platform, project=project
        )
        for platform in ("android", "ios", "web")
    }


# ── a project that is probed ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_workers_incident_blocks_its_project_and_no_other(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    waiting = [connection.insert(project="orders"), connection.insert(project="orders", priority="high")]
    other = connection.insert()

    connection.open_incident(project="orders")

    assert connection.claim_one(worker)["notification_id"] == other
    assert connection.claim(worker) == []
    assert [connection.state(number) for number in waiting] == ["pending", "pending"]
    assert connection.project_pause("orders")[1] == "its key was refused"
    assert connection.project_pause() == (None, None)
    assert 9 < waits_for(connection) <= 10


def test_exactly_one_of_several_workers_gets_the_probe(database: str, connection: Connection) -> None:
    for _ in range(20):
        connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)

    def claim_all() -> list[Row]:
        with connected(database) as session:
            return session.claim(session.register_worker())

    claimed = at_once(claim_all, claim_all, claim_all)

    assert sorted(len(each) for each in claimed) == [0, 0, 1]
    ((probe,),) = filter(None, claimed)
    assert probe["probe"] is True
    assert incident(connection)["probe_count"] == 1


def test_an_uncommitted_probe_prevents_a_second_one(database: str, connection: Connection) -> None:
    connection.insert()
    connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)
    with connected(database) as first:
        worker = first.register_worker()
        first.execute("begin")
        assert len(first.claim(worker)) == 1
        connection.execute("set lock_timeout = '5s'")

        assert connection.claim(connection.register_worker()) == []


def test_one_of_a_receivers_three_devices_is_the_probe(connection: Connection) -> None:
    family(connection)
    number = connection.insert(receiver_id="u_42")
    connection.open_incident()
    connection.let_pass(seconds=11)

    probe = connection.claim_one(connection.register_worker())

    assert probe["probe"] is True
    leased = connection.notification(number)
    assert str(leased["lease"]) == probe["lease"]
    others = [each for each in connection.deliveries(number) if each["id"] != probe["delivery_id"]]
    assert [each["state"] for each in others] == ["pending", "pending"]
    assert all(each["due_at"] > leased["leased_at"] for each in others)


def test_the_receivers_other_devices_are_due_once_the_incident_closes(connection: Connection, worker: Worker) -> None:
    family(connection)
    number = connection.insert(receiver_id="u_42")
    connection.open_incident()
    connection.let_pass(minutes=1)
    probe = connection.claim_one(worker)

    connection.close_incident()
    connection.record(worker, outcome(probe, verdict="sent"))

    until("the two others are due", lambda: connection.notification(number)["due_at"] <= datetime.now(UTC), within=2)
    again = connection.claim(worker)
    assert {each["delivery_id"] for each in again} == {each["id"] for each in connection.deliveries(number)} - {
        probe["delivery_id"]
    }
    assert [each["probe"] for each in again] == [False, False]


def test_probes_back_off_to_five_minutes_and_take_a_new_notification_each(
    connection: Connection, worker: Worker
) -> None:
    for _ in range(10):
        connection.insert()
    connection.open_incident()
    waits, probed = [ceil(waits_for(connection))], []

    for _ in range(7):
        assert connection.claim(worker) == []
        connection.let_pass(seconds=waits[-1])
        probe = connection.claim_one(worker)
        connection.record(worker, refused(probe))
        probed.append(probe["notification_id"])
        waits.append(ceil(waits_for(connection)))

    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    assert len(set(probed)) == 7
    assert incident(connection)["probe_count"] == 7


def test_probes_cost_no_attempt(connection: Connection, worker: Worker) -> None:
    number = connection.insert()
    connection.open_incident()

    for _ in range(15):
        connection.let_pass(minutes=6)
        connection.record(worker, refused(connection.claim_one(worker)))
        connection.let_pass(seconds=1)

    assert (connection.state(number), connection.only_delivery(number)["attempts"]) == ("pending", 0)
    assert len(connection.attempts(number)) == 15
    assert connection.unbalanced() == []


def test_closing_an_incident_unblocks_all_and_sends_a_wakeup(connection: Connection, worker: Worker) -> None:
    for _ in range(5):
        connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)
    probe = connection.claim_one(worker)
    connection.record(worker, outcome(probe, verdict="sent"))
    assert connection.wakeups() == 0

    connection.close_incident()

    assert connection.project_pause() == (None, None)
    assert connection.rows(OPEN) == []
    assert connection.wakeups() == 1
    freed = connection.claim(worker)
    assert (len(freed), {each["probe"] for each in freed}) == (4, {False})
    connection.record(worker, *[outcome(each, verdict="sent") for each in freed])
    assert connection.unbalanced() == []


def test_closing_an_incident_that_is_not_open_changes_nothing(connection: Connection) -> None:
    connection.close_incident()

    assert connection.rows("select from notify_worker.incidents") == []
    assert connection.wakeups() == 0


def test_a_late_report_opens_no_second_incident_and_moves_no_probe(connection: Connection, worker: Worker) -> None:
    connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)
    connection.claim_one(worker)
    before, before_of_project = incident(connection), connection.project_pause()

    connection.open_incident(reason="the same, seen by another")

    assert incident(connection) == before
    assert connection.project_pause() == before_of_project


def test_two_workers_that_report_at_once_open_one_incident(database: str, connection: Connection) -> None:
    with connected(database) as first, connected(database) as second, ThreadPoolExecutor(1) as thread:
        first.execute("begin")
        first.open_incident()
        waiting = thread.submit(second.open_incident)
        await_lock(connection, second.info.backend_pid)

        first.execute("commit")

        waiting.result(10)
    assert incident(connection)["probe_count"] == 0


def test_a_frozen_worker_delays_the_next_probe_only_by_its_interval(connection: Connection) -> None:
    frozen, other = connection.register_worker(), connection.register_worker()
    connection.insert()
    connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)
    first = connection.claim_one(frozen)

    assert connection.claim(other) == []
    connection.let_pass(seconds=21)

    second = connection.claim_one(other)
    assert (second["probe"], second["notification_id"] != first["notification_id"]) == (True, True)


def test_a_crash_during_the_only_probe_leaves_it_to_be_probed_again(database: str, connection: Connection) -> None:
    number = connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)
    with connected(database) as session:
        dead = session.register_worker()
        first = session.claim_one(dead)
    assert connection.rescue_worker(dead) == 1
    worker = connection.register_worker()
    assert connection.claim(worker) == []

    connection.let_pass(seconds=21)

    again = connection.claim_one(worker)
    assert (again["delivery_id"], again["probe"], again["attempts"]) == (first["delivery_id"], True, 0)
    connection.record(worker, outcome(again, verdict="sent"))
    connection.close_incident()
    assert [each["verdict"] for each in connection.attempts(number)] == ["unknown", "sent"]
    assert connection.unbalanced() == []


@pytest.mark.parametrize(
    "columns",
    [{"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, {"campaign": "no_such"}, {"receiver_id": "u_nobody"}],
    ids=["expired", "failed", "unreachable"],
)
def test_an_unsendable_notification_uses_up_no_probe(
    connection: Connection, columns: dict[str, object], worker: Worker
) -> None:
    unsendable = [connection.insert(**columns) for _ in range(3)]
    number = connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)

    claimed = [each for _ in range(4) for each in connection.claim(worker)]

    assert [(each["notification_id"], each["probe"]) for each in claimed] == [(number, True)]
    assert "pending" not in {connection.state(each) for each in unsendable}
    assert 19 < waits_for(connection) <= 20


def test_a_delivery_that_another_incident_blocks_uses_up_no_probe(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    connection.insert(receiver_id="u_42")
    connection.insert(kind="topic", address="news")
    number = connection.insert()
    connection.open_incident("apns_web")
    connection.open_incident("topics", lasts=60)
    connection.open_incident()
    connection.let_pass(seconds=11)

    claimed = [each for _ in range(3) for each in connection.claim(worker)]

    assert [(each["notification_id"], each["probe"]) for each in claimed] == [(number, True)]


def waits_or_ended(observer: Connection, session: Connection, task: Future[list[Row]]) -> bool:
    waits: LiteralString = "select exists (select from pg_stat_activity where pid = %s and wait_event_type = 'Lock')"
    return task.done() or bool(observer.value(waits, session.info.backend_pid))


@pytest.mark.parametrize(
    "other",
    [CLAIM, "select notify_worker.close_incident('default', 'project')", "select notify_worker.resume('default')"],
    ids=["claim", "close_incident", "resume"],
)
def test_opening_and_probing_or_closing_never_deadlock(
    database: str, connection: Connection, other: LiteralString, worker: Worker
) -> None:
    connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)
    values = [worker.id, uuid4(), 10] if other is CLAIM else []
    with (
        connected(database) as slow,
        connected(database) as first,
        connected(database) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        slow.execute("begin")
        slow.open_incident("topics", lasts=60)
        begins = threads.submit(first.open_incident)
        await_lock(connection, first.info.backend_pid)
        acts = threads.submit(second.rows, other, *values)
        until("the other one waits or has ended", lambda: waits_or_ended(connection, second, acts), within=10)

        slow.execute("commit")

        for either in (begins, acts):  # on a slow machine it may have waited for long enough
            assert isinstance(either.exception(10), psycopg.errors.LockNotAvailable | None)


def test_opening_an_incident_gives_up_while_another_worker_is_opening_it(database: str, connection: Connection) -> None:
    with connected(database) as slow:
        slow.execute("begin")
        slow.open_incident()

        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.open_incident()

    connection.open_incident()


@pytest.mark.parametrize(
    "keeps",
    [
        "update notify_worker.projects set credentials = 'env:KEY'",
        "select notify_worker.pause('default', 'I only look')",
        "select notify_worker.resume('default')",
    ],
    ids=["the project's row", "an open pause", "an open resume"],
)
def test_an_operators_open_transaction_makes_no_worker_wait(
    database: str, connection: Connection, keeps: LiteralString, worker: Worker
) -> None:
    for _ in range(3):
        connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)
    connection.execute("set lock_timeout = '100ms'")
    with connected(database) as operator:
        operator.execute("begin")
        operator.execute(keeps)

        connection.open_incident()
        connection.claim(worker)
        connection.close_incident()
        connection.open_incident(lasts=60)
        operator.execute("rollback")

    assert connection.project_pause()[1] == "its key was refused"


def test_a_locked_project_row_delays_no_probe(database: str, connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    probe, number = connection.insert(project="orders"), connection.insert()
    connection.open_incident(project="orders")
    connection.let_pass(seconds=11)
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as operator:
        operator.execute("begin")
        operator.execute("update notify_worker.projects set credentials = 'env:KEY' where name = 'orders'")

        claimed = connection.claim(connection.register_worker())

    assert {each["notification_id"]: each["probe"] for each in claimed} == {probe: True, number: False}


@pytest.mark.parametrize("operator_ends_by", ["commit", "rollback"])
def test_an_incident_found_during_an_open_resume_is_a_new_one(
    database: str, connection: Connection, operator_ends_by: LiteralString, worker: Worker
) -> None:
    for _ in range(3):
        connection.insert()
    connection.open_incident(reason="the first")
    with connected(database) as operator:
        operator.execute("begin")
        operator.resume()
        connection.open_incident(reason="the second")
        operator.execute(operator_ends_by)

    left = ["the second"] if operator_ends_by == "commit" else ["the first", "the second"]
    assert [each["reason"] for each in connection.rows(OPEN)] == left
    connection.let_pass(seconds=11)
    (probe,) = connection.claim(worker)
    assert probe["probe"] is True
    assert connection.claim(worker) == []
    connection.close_incident()
    assert connection.rows(OPEN) == []
    assert len(connection.claim(worker)) == 2


def test_an_incident_locked_by_an_open_resume_is_closed_by_a_later_call(database: str, connection: Connection) -> None:
    connection.open_incident()
    with connected(database) as operator:
        operator.execute("begin")
        operator.resume()
        connection.close_incident()
        operator.execute("rollback")
    still_open = connection.rows(OPEN)

    connection.close_incident()

    assert len(still_open) == 1
    assert connection.rows(OPEN) == []


def test_the_incidents_of_a_deleted_project_block_nothing(connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    number = connection.insert(project="orders")
    connection.pause("orders")
    connection.execute("delete from notify_worker.projects where name = 'orders'")

    assert connection.claim(connection.register_worker()) == []

    assert (connection.notification(number)["state"], connection.notification(number)["settled_reason"]) == (
        "failed",
        'there is no project "orders"',
    )
    assert connection.value("select ended_at from notify_worker.incidents") is None


# ── a probe that decides nothing ─────────────────────────────────────────────────────────────────────────────────────


def decide_nothing(connection: Connection, scope: str = "project") -> None:
    """A probe was answered for its own fault, or not requested at all."""
    connection.execute("select notify_worker.make_probe_due('default', %s)", [scope])


def test_after_a_probe_that_decides_nothing_the_next_one_is_due_at_once(connection: Connection, worker: Worker) -> None:
    for _ in range(5):
        connection.insert()
    connection.open_incident()
    connection.let_pass(seconds=11)

    probed = set()
    for _ in range(3):
        probe = connection.claim_one(worker)
        decide_nothing(connection)
        connection.record(worker, outcome(probe, verdict="failed", http_status=400))
        probed.add((probe["notification_id"], probe["probe"]))

    assert len({number for number, is_probe in probed if is_probe}) == 3
    assert len(connection.rows(OPEN)) == 1
    connection.record(worker, refused(connection.claim_one(worker)))
    assert connection.claim(worker) == []
    assert 19 < waits_for(connection) <= 40  # as after a first or a second probe


def test_probes_that_decide_nothing_take_turns_between_the_oldest_and_the_newest(
    connection: Connection, worker: Worker
) -> None:
    numbers = [connection.insert() for _ in range(6)]
    connection.open_incident()
    connection.let_pass(seconds=11)

    probed = []
    for _ in range(4):
        probe = connection.claim_one(worker)
        decide_nothing(connection)
        connection.record(worker, outcome(probe, verdict="failed", http_status=400))
        probed.append(probe["notification_id"])

    assert set(probed) == {*numbers[:2], *numbers[-2:]}


def test_deliveries_postponed_until_an_earlier_probe_resume_with_the_rest(
    connection: Connection, worker: Worker
) -> None:
    connection.open_incident("apns_web")
    for number in range(8):
        connection.register_device(f"u_{number}", f"phone-{number}", platform="ios")
        connection.insert(receiver_id=f"u_{number}")
    assert connection.claim(worker) == []
    connection.let_pass(minutes=16)
    (probe,) = connection.claim(worker)
    decide_nothing(connection, "apns_web")
    connection.record(worker, outcome(probe, verdict="failed", http_status=400))

    waiting = "select count(*) from notify_worker.notifications where state = 'pending' and due_at > clock_timestamp()"
    assert connection.value(waiting) == 2, "a few are due, to be the next probe"
    (probe,) = connection.claim(worker)
    connection.record(worker, outcome(probe, verdict="sent"))
    connection.close_incident("apns_web")

    assert connection.value(waiting) == 0
    assert connection.unbalanced() == []


def test_a_probe_that_decides_nothing_wakes_a_worker(connection: Connection) -> None:
    connection.open_incident()
    before = connection.wakeups()

    decide_nothing(connection)

    assert (before, connection.wakeups()) == (0, 1)


def test_after_an_undecided_ios_probe_another_delivery_is_probed(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    for _ in range(4):
        connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")
    assert connection.claim(worker) == []
    connection.let_pass(minutes=16)
    first = connection.claim_one(worker)

    decide_nothing(connection, "apns_web")
    connection.record(worker, outcome(first, verdict="failed", http_status=400))

    second = connection.claim_one(worker)
    assert (second["probe"], second["notification_id"] != first["notification_id"]) == (True, True)
    assert connection.claim(worker) == []
    connection.record(worker, outcome(second, verdict="sent"))
    connection.close_incident("apns_web")
    assert len(connection.claim(worker)) == 2
    assert connection.unbalanced() == []


def test_a_probe_that_decides_nothing_changes_no_pause_and_no_timed_incident(
    connection: Connection, worker: Worker
) -> None:
    connection.insert()
    connection.pause()
    connection.open_incident(lasts=60)
    before = connection.rows(OPEN)

    decide_nothing(connection)

    assert connection.rows(OPEN) == before
    assert connection.claim(worker) == []
    assert connection.wakeups() == 0


# ── a claim beside an operator ───────────────────────────────────────────────────────────────────────────────────────


def test_an_open_resume_makes_no_claim_wait(database: str, connection: Connection) -> None:
    family(connection)
    number = connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as operator:
        operator.execute("begin")
        operator.resume()

        (android,) = connection.claim(connection.register_worker())

        assert (android["notification_id"], android["platform"]) == (number, "android")


def test_deliveries_postponed_because_of_a_locked_incident_are_due_again_soon(
    database: str, connection: Connection, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    number = connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")
    with connected(database) as operator:
        operator.execute("begin")
        operator.resume()
        assert connection.claim(worker) == []
        operator.execute("commit")

    until("it is claimed", lambda: bool(connection.claim(worker)), within=5)

    assert connection.only_delivery(number)["last_attempt_number"] == 0


def pages(connection: Connection, project: str) -> int:
    """How many pages it touches to pick 100, all of this project, in a session that has settled on its plans."""
    explain: LiteralString = (
        "explain (analyze, buffers, format json) select * from notify_worker.lock_due(100, clock_timestamp(), %s)"
    )
    for _ in range(6):
        with connection.transaction(force_rollback=True):
            (plan,) = connection.value(explain, Jsonb({project: 100}))
    assert plan["Plan"]["Actual Rows"] == 100, project
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def test_twenty_thousand_rows_of_a_probed_project_do_not_slow_other_claims(connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    fill: LiteralString = """
        insert into notify_worker.notifications (kind, address, title, project)
        select 'topic', 'news', 'Hello', %s from generate_series(1, %s)
    """
    connection.execute(fill, ["default", 200])
    connection.execute("analyze notify_worker.notifications")
    alone = pages(connection, "default")

    connection.open_incident(project="orders")
    connection.execute(fill, ["orders", 20_000])
    connection.execute("analyze notify_worker.notifications")

    assert pages(connection, "default") <= 1.5 * alone


# ── an operator, and a pause that ends by itself ─────────────────────────────────────────────────────────────────────


def test_no_probe_ends_and_no_worker_shortens_an_operators_pause(connection: Connection, worker: Worker) -> None:
    connection.insert()
    connection.open_incident()
    connection.pause()

    connection.open_incident(reason="an outage")
    connection.open_incident(lasts=1, reason="its quota")
    connection.close_incident()
    connection.let_pass(hours=1)

    assert connection.project_pause() == ("infinity", "maintenance")
    assert connection.claim(worker) == []
    assert connection.value("select count(*) from notify_worker.incidents where ended_at is null") == 1


def test_no_probe_is_made_while_an_operator_pauses(connection: Connection, worker: Worker) -> None:
    connection.insert()
    connection.open_incident()
    connection.pause()

    connection.let_pass(hours=1)

    assert connection.claim(worker) == []
    assert connection.value("select sum(probe_count) from notify_worker.stored_incidents") == 0


def test_resume_ends_every_incident_of_workers_and_operators(connection: Connection, worker: Worker) -> None:
    family(connection)
    family_of_deliveries = connection.insert(receiver_id="u_42")
    topic = connection.insert(kind="topic", address="news")
    connection.open_incident("apns_web")
    connection.open_incident("topics", lasts=300)
    connection.open_incident("devices", reason="many are gone")
    assert [each["platform"] for each in connection.claim(worker)] == ["android"]
    connection.open_incident()
    connection.pause()

    connection.resume()

    assert connection.rows(OPEN) == []
    assert connection.project_pause() == (None, None)
    assert connection.wakeups() == 1
    assert connection.notification(topic)["due_at"] <= datetime.now(UTC)
    assert connection.claim_one(worker)["notification_id"] == topic
    assert connection.state(family_of_deliveries) == "pending"


def test_a_timed_incident_ends_by_itself_and_is_not_probed(connection: Connection, worker: Worker) -> None:
    for _ in range(3):
        connection.insert()
    connection.open_incident(lasts=60, reason="its quota is used up", sent_rate=10_000)
    assert (connection.claim(worker), connection.project_pause()[1]) == ([], "its quota is used up")

    connection.let_pass(seconds=59)
    assert connection.claim(worker) == []
    connection.let_pass(seconds=1)

    assert [each["probe"] for each in connection.claim(worker)] == [False, False, False]
    over = connection.row("select began_at, ended_at from notify_worker.incidents")
    assert over["ended_at"] - over["began_at"] == timedelta(seconds=60)


def test_closing_an_incident_leaves_a_timed_one_open(connection: Connection) -> None:
    connection.open_incident()
    connection.open_incident(lasts=60, reason="its quota")

    connection.close_incident()

    assert connection.project_pause()[1] == "its quota"
    assert 59 < waits_for(connection) <= 60


@pytest.mark.parametrize(("second", "left"), [(120, 120), (20, 60)], ids=["longer", "shorter"])
@pytest.mark.parametrize("scope", ["project", "topics"])
def test_a_second_timed_incident_extends_the_first_and_never_shortens_it(
    connection: Connection, scope: str, second: float, left: float
) -> None:
    connection.open_incident(scope, lasts=60)

    connection.open_incident(scope, lasts=second)

    assert left - 1 < waits_for(connection) <= left


def test_a_timed_incident_after_an_ended_one_is_new_and_the_first_keeps_its_end(connection: Connection) -> None:
    connection.open_incident(lasts=60, reason="the first")
    connection.let_pass(minutes=3)

    connection.open_incident(lasts=60, reason="the second")

    first, second = connection.rows("select * from notify_worker.incidents order by began_at")
    assert (first["reason"], second["reason"], second["ended_at"]) == ("the first", "the second", None)
    assert first["ended_at"] - first["began_at"] == timedelta(seconds=60)


# ── the rate after an exceeded quota ─────────────────────────────────────────────────────────────────────────────────


def test_after_an_exceeded_quota_the_project_goes_on_at_half_its_rate(connection: Connection) -> None:
    for _ in range(2):
        connection.register_worker()
    connection.open_incident(lasts=60, sent_rate=50)

    assert project_rate(connection) == pytest.approx(50)


def test_a_single_worker_keeps_half_and_at_least_one_a_second(connection: Connection) -> None:
    connection.open_incident(lasts=60, sent_rate=30)
    half = project_rate(connection)
    connection.let_pass(hours=2)
    connection.open_incident(lasts=60, sent_rate=1)

    assert (half, project_rate(connection)) == (15, 1)


def test_a_quota_exceeded_before_anything_was_sent_halves_the_allowed_rate(connection: Connection) -> None:
    connection.execute("update notify_worker.projects set max_per_second = 70")
    connection.open_incident(lasts=60, sent_rate=0)

    assert project_rate(connection) == 35


@pytest.mark.parametrize("sent", [0, 3])
def test_a_quota_exceeded_again_soon_halves_the_rate_again(connection: Connection, sent: float) -> None:
    connection.open_incident(lasts=60, sent_rate=3_000)
    connection.let_pass(seconds=61)
    connection.open_incident(lasts=60, sent_rate=sent)

    assert project_rate(connection) == pytest.approx(750, rel=0.1)


@pytest.mark.parametrize(("minutes", "times"), [(0.5, 2**0.5), (1, 2), (2, 4), (5, 32)])
def test_the_rate_after_an_exceeded_quota_doubles_each_minute(
    connection: Connection, minutes: float, times: float
) -> None:
    connection.open_incident(lasts=60, sent_rate=20)
    connection.let_pass(minutes=1)
    assert project_rate(connection) == pytest.approx(10, rel=0.05)

    connection.let_pass(minutes=minutes)

    assert project_rate(connection) == pytest.approx(10 * times, rel=0.05)


def test_the_rate_grows_back_to_the_projects_own_and_no_further(connection: Connection) -> None:
    connection.execute("update notify_worker.projects set max_per_second = 70")
    connection.open_incident(lasts=60, sent_rate=40)
    connection.let_pass(days=400)

    assert project_rate(connection) == 70


@pytest.mark.parametrize(("scope", "lasts"), [("project", None), ("apns_web", None), ("topics", 60), ("devices", None)])
def test_an_incident_without_a_rate_leaves_the_rate_unchanged(
    connection: Connection, scope: str, lasts: float | None
) -> None:
    connection.open_incident(scope, lasts=lasts)

    assert project_rate(connection) == 10_000


# ── iOS and web ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ios_and_web_wait_and_android_goes_now(connection: Connection, worker: Worker) -> None:
    family(connection)
    number = connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")

    (android,) = connection.claim(worker)
    connection.record(worker, outcome(android, verdict="sent"))

    assert (android["platform"], android["probe"]) == ("android", False)
    open_until = incident(connection)["blocked_until"]
    waiting = [each for each in connection.deliveries(number) if each["state"] == "pending"]
    assert [(each["platform"], each["due_at"]) for each in waiting] == [("ios", open_until), ("web", open_until)]
    assert connection.notification(number)["due_at"] == open_until
    assert connection.notification(number)["lease"] is None
    assert 14 * 60 < waits_for(connection) <= 15 * 60
    assert connection.claim(worker) == []


def test_a_postponed_notification_is_a_claim_row_without_a_delivery(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    number = connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")

    (explained,) = connection.rows(CLAIM, worker.id, uuid4(), 1)

    assert (explained["notification_id"], explained["delivery_id"], explained["state"]) == (number, None, "pending")
    assert connection.rows(CLAIM, worker.id, uuid4(), 1) == []


def test_ios_and_web_are_probed_by_one_delivery_each_quarter_of_an_hour(connection: Connection, worker: Worker) -> None:
    for receiver in ("u_1", "u_2", "u_3"):
        family(connection, receiver)
        connection.insert(receiver_id=receiver)
    connection.open_incident("apns_web")
    for each in connection.claim(worker):
        connection.record(worker, outcome(each, verdict="sent"))

    for probes in (1, 2, 3):
        connection.let_pass(minutes=15)
        (probe,) = connection.claim(worker)
        assert probe["probe"] is True
        assert probe["platform"] in ("ios", "web")
        connection.record(worker, refused(probe))
        assert connection.claim(worker) == []
        assert incident(connection)["probe_count"] == probes
        assert 14 * 60 < waits_for(connection) <= 15 * 60
    assert {each["platform"] for each in connection.rows("select * from notify_worker.stored_deliveries")} == {
        "android",
        "ios",
        "web",
    }
    assert (
        connection.value("select sum(attempts) from notify_worker.stored_deliveries where platform <> 'android'") == 0
    )
    assert connection.unbalanced() == []


def test_only_one_of_several_workers_probes_ios_and_web(database: str, connection: Connection) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    for _ in range(9):
        connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")
    connection.let_pass(minutes=16)
    claimed: list[Row] = []

    def claim_all() -> list[Row]:
        with connected(database) as session:
            return session.claim(session.register_worker(), most=3)

    def somebody_probes() -> bool:
        claimed.extend(each for taken in at_once(claim_all, claim_all, claim_all) for each in taken)
        return bool(claimed)

    until("somebody probes", somebody_probes, within=10)

    assert [each["probe"] for each in claimed] == [True]
    assert incident(connection)["probe_count"] == 1


def test_a_successful_ios_probe_resumes_postponed_deliveries(connection: Connection, worker: Worker) -> None:
    family(connection)
    for _ in range(4):
        connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")
    for each in connection.claim(worker):
        connection.record(worker, outcome(each, verdict="sent"))
    connection.let_pass(minutes=15)
    probe = connection.claim_one(worker)
    connection.record(worker, outcome(probe, verdict="sent"))

    connection.close_incident("apns_web")

    assert connection.wakeups() == 1
    freed = connection.claim(worker)
    assert len(freed) == 4 * 2 - 1
    assert [each["probe"] for each in freed] == [False] * 7
    connection.record(worker, *[outcome(each, verdict="sent") for each in freed])
    assert connection.value("select count(*) from notify_worker.notifications where state = 'sent'") == 4
    assert connection.unbalanced() == []


def test_a_receiver_with_only_ios_gets_the_message_later(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    number = connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")
    assert connection.claim(worker) == []

    connection.close_incident("apns_web")

    connection.record(worker, outcome(connection.claim_one(worker), verdict="sent"))
    assert (connection.state(number), len(connection.deliveries(number))) == ("sent", 1)


def test_retries_and_scheduled_deliveries_are_not_resumed_early(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    retried = connection.insert(receiver_id="u_42")
    connection.record(worker, outcome(connection.claim_one(worker), verdict="retry", error="busy", retry_in=600))
    scheduled = connection.insert(receiver_id="u_42", send_at=datetime.now(UTC) + timedelta(minutes=10))
    connection.open_incident("apns_web")
    before = [connection.notification(number)["due_at"] for number in (retried, scheduled)]

    connection.close_incident("apns_web")

    assert [connection.notification(number)["due_at"] for number in (retried, scheduled)] == before


@pytest.mark.parametrize("by", ["a probe", "resume"])
def test_deliveries_that_would_expire_before_the_next_probe_are_resumed(
    connection: Connection, by: str, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    number = connection.insert(receiver_id="u_42", expires_at=datetime.now(UTC) + timedelta(minutes=10))
    connection.open_incident("apns_web")
    assert connection.claim(worker) == []

    if by == "resume":
        connection.resume()
    else:
        connection.close_incident("apns_web")

    assert connection.claim_one(worker)["notification_id"] == number


def test_an_ios_delivery_that_expires_while_blocked_ends_expired(connection: Connection, worker: Worker) -> None:
    family(connection)
    soon = datetime.now(UTC) + timedelta(minutes=5)
    number = connection.insert(receiver_id="u_42", expires_at=soon)
    connection.open_incident("apns_web")
    connection.record(worker, outcome(connection.claim_one(worker), verdict="sent"))
    assert connection.notification(number)["due_at"] == soon

    connection.let_pass(minutes=4, seconds=50)
    assert (connection.claim(worker), connection.state(number)) == ([], "pending")
    connection.let_pass(seconds=11)
    assert connection.claim(worker) == []

    ended = {each["platform"]: (each["state"], each["last_error"]) for each in connection.deliveries(number)}
    assert ended["ios"] == ended["web"] == ("expired", "it expired before it could be sent")
    assert (connection.state(number), len(connection.attempts(number))) == ("sent", 1)
    assert incident(connection)["probe_count"] == 0
    assert connection.unbalanced() == []


def test_a_delivery_of_unknown_platform_is_not_blocked(connection: Connection, worker: Worker) -> None:
    connection.execute("select notify_worker.register_device('u_42', 'token', 'fcm:thing')")
    expected = [
        connection.insert(receiver_id="u_42"),
        connection.insert(),
        connection.insert(kind="topic", address="a"),
    ]
    connection.open_incident("apns_web")

    claimed = connection.claim(worker)

    assert [each["notification_id"] for each in claimed] == expected
    assert [each["probe"] for each in claimed] == [False, False, False]


def test_a_claim_that_finds_the_incident_locked_probes_soon_after(database: str, connection: Connection) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    connection.insert(receiver_id="u_42")
    connection.open_incident("apns_web")
    connection.let_pass(minutes=16)
    with connected(database) as session, connected(database) as other, ThreadPoolExecutor(1) as thread:
        session.execute("begin")
        session.execute("select from notify_worker.stored_incidents for share")
        looks = thread.submit(other.claim, other.register_worker())
        until("it waits or has ended", lambda: waits_or_ended(connection, other, looks), within=10)
        session.execute("commit")
        claimed = looks.result(10)

        until("the probe is made", lambda: bool(claimed or connection.claim(connection.register_worker())), within=3)

    assert incident(connection)["probe_count"] == 1


# ── topics ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_topics_pause_blocks_topics_and_conditions_only(connection: Connection, worker: Worker) -> None:
    stopped = [connection.insert(kind=kind, address="news") for kind in ("topic", "condition")]
    going = [connection.insert(kind=kind, address="fcm:phone") for kind in ("token", "fid")]
    connection.open_incident("topics", lasts=60)

    assert [each["notification_id"] for each in connection.claim(worker)] == going
    assert connection.project_pause() == (None, None)
    assert {connection.notification(number)["due_at"] for number in stopped} == {incident(connection)["blocked_until"]}
    connection.let_pass(seconds=61)
    later = connection.claim(worker)

    assert [each["notification_id"] for each in later] == stopped
    assert [(each["probe"], each["attempts"], each["last_attempt_number"]) for each in later] == [(False, 0, 0)] * 2
    connection.record(worker, *[outcome(each, verdict="sent") for each in later])
    assert connection.unbalanced() == []


def test_topics_are_postponed_again_if_their_pause_is_extended(connection: Connection, worker: Worker) -> None:
    number = connection.insert(kind="topic", address="news")
    connection.open_incident("topics", lasts=60)
    assert connection.claim(worker) == []
    connection.open_incident("topics", lasts=300)

    connection.let_pass(seconds=61)

    assert connection.claim(worker) == []
    assert connection.notification(number)["due_at"] == incident(connection)["blocked_until"]


def test_a_topic_postponed_at_its_first_claim_is_sent_once(connection: Connection, worker: Worker) -> None:
    number = connection.insert(kind="topic", address="news")
    connection.open_incident("topics", lasts=60)
    assert connection.claim(worker) == []
    connection.let_pass(seconds=61)

    claimed = connection.claim(worker)

    assert [each["notification_id"] for each in claimed] == [number]
    assert len(connection.deliveries(number)) == 1


def test_a_topic_expires_while_it_waits(connection: Connection, worker: Worker) -> None:
    number = connection.insert(kind="topic", address="news", expires_at=datetime.now(UTC) + timedelta(seconds=30))
    connection.open_incident("topics", lasts=60)
    assert connection.claim(worker) == []

    connection.let_pass(seconds=31)

    assert (connection.claim(worker), connection.state(number)) == ([], "expired")
    assert connection.attempts(number) == []


# ── the breaker for devices ──────────────────────────────────────────────────────────────────────────────────────────


def lose(connection: Connection, worker: Worker, address: str, project: str = "default") -> int:
    """FCM calls an address unregistered."""
    connection.register_device(f"u_{address}", address, project=project)
    number = connection.insert(receiver_id=f"u_{address}", project=project)
    connection.let_pass(seconds=1)
    connection.record(worker, outcome(connection.claim_one(worker), verdict="unregistered", error="UNREGISTERED"))
    return number


def retired(connection: Connection) -> set[str]:
    statement: LiteralString = "select address from notify_worker.devices where retired_at is not null"
    return {each["address"] for each in connection.rows(statement)}


def test_an_open_devices_breaker_retires_no_device(connection: Connection, worker: Worker) -> None:
    lose(connection, worker, "fcm:before")
    connection.open_incident("devices", reason="more than a fifth of the answers say unregistered")

    number = lose(connection, worker, "fcm:while")

    assert (connection.state(number), connection.only_delivery(number)["state"]) == ("unreachable", "failed")
    assert retired(connection) == {"fcm:before"}
    connection.resume()
    lose(connection, worker, "fcm:after")
    assert retired(connection) == {"fcm:before", "fcm:after"}
    assert connection.unbalanced() == []


def test_a_devices_breaker_blocks_no_delivery_and_no_other_project(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    connection.open_incident("devices")

    lose(connection, worker, "fcm:hers", project="orders")
    connection.register_device("u_42", "fcm:mine")
    connection.insert(receiver_id="u_42")
    connection.let_pass(days=10)
    connection.record(worker, *[outcome(each, verdict="sent") for each in connection.claim(worker)])
    connection.close_incident("devices")

    assert retired(connection) == {"fcm:hers"}
    assert connection.value("select ends_at::text from notify_worker.stored_incidents") == "infinity"
    assert connection.project_pause() == (None, None)


def test_the_statement_of_the_incident_restores_the_devices_of_that_minute(
    connection: Connection, worker: Worker
) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('it''s 100%')")
    mine = "it's 100%"
    lose(connection, worker, "fcm:long-ago", mine)
    connection.let_pass(minutes=2)
    lose(connection, worker, "fcm:now-1", mine)
    lose(connection, worker, "fcm:now-2", mine)
    lose(connection, worker, "fcm:hers")
    connection.register_device("u_42", "fcm:lost", project=mine)
    connection.execute("select notify_worker.retire_device('token', 'fcm:lost', %s)", [mine])
    connection.open_incident("devices", mine, reason="more than a fifth of the answers say unregistered")
    reason = connection.value("select reason from notify_worker.incidents")

    (statement,) = re.findall(r"update .*$", reason)
    connection.execute(cast(LiteralString, statement))

    assert reason.startswith("more than a fifth of the answers say unregistered. What was retired")
    assert retired(connection) == {"fcm:long-ago", "fcm:hers", "fcm:lost"}


def test_the_statement_restores_the_same_in_any_time_zone(
    database: str, connection: Connection, worker: Worker
) -> None:
    lose(connection, worker, "fcm:now")
    connection.execute("set timezone = 'Asia/Seoul'")
    connection.open_incident("devices")
    (statement,) = re.findall(r"update .*$", connection.value("select reason from notify_worker.incidents"))
    with connected(database) as session:
        session.execute("set timezone = 'America/New_York'")

        session.execute(cast(LiteralString, statement))

    assert retired(connection) == set()


# ── what explain, history and the views show ──────────────────────────────────────────────────────────────────────────────


def test_views_and_history_show_a_project_that_is_probed(connection: Connection) -> None:
    family(connection)
    number = connection.insert(receiver_id="u_42")
    connection.open_incident(reason="its key was refused")

    listed = connection.row("select * from notify_worker.incidents")
    assert (listed["project"], listed["scope"], listed["by"]) == ("default", "project", "worker")
    assert (listed["reason"], listed["ended_at"]) == ("its key was refused", None)
    assert connection.value("select paused_projects from notify_worker.status") == 1
    assert connection.value("select due from notify_worker.status") == 0
    assert connection.value("select reason from notify_worker.history('u_42')") == (
        "its project is paused: its key was refused"
    )
    assert explained(connection, number)[1] == "project default was paused by a worker: its key was refused"
    stands = r"it is pending, and its project is paused until a probe gets through, the next one at 20\S+ \S+: (.*)"
    told_last = re.fullmatch(stands, explained(connection, number)[-1])
    assert told_last
    assert told_last[1] == "its key was refused"


def test_a_project_is_shown_as_paused_between_probes(connection: Connection) -> None:
    number = connection.insert(receiver_id="u_42")
    connection.open_incident()
    connection.let_pass(hours=1)

    status = connection.row("select paused_projects, due, oldest_due_for from notify_worker.status")
    assert status["paused_projects"] == 1
    assert "its project is paused until a probe gets through" in explained(connection, number)[-1]
    assert connection.value("select reason from notify_worker.history('u_42')") == (
        "its project is paused: its key was refused"
    )
    assert connection.unbalanced() == []


def test_explain_says_when_a_project_was_paused_and_resumed(connection: Connection, worker: Worker) -> None:
    number = connection.insert()
    connection.open_incident(reason="its key was refused")
    connection.let_pass(seconds=11)
    probe = connection.claim_one(worker)
    connection.close_incident()
    connection.record(worker, outcome(probe, verdict="sent", provider_message_id="projects/a/messages/1"))

    lines = explained(connection, number)

    assert [line for line in lines if "project" in line and "delivery" not in line] == [
        "project default was paused by a worker: its key was refused",
        "project default was resumed",
    ]
    assert lines[-1] == "it ended sent"


@pytest.mark.parametrize("platform", ["ios", "web"])
def test_explain_and_history_say_that_ios_is_blocked(connection: Connection, platform: str, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone", platform=platform)
    connection.register_device("u_43", "fcm:other", platform="android")
    stopped, going = connection.insert(receiver_id="u_42"), connection.insert(receiver_id="u_43")
    connection.open_incident("apns_web", reason="Apple refuses the key")
    connection.claim(worker)

    assert "iOS and web of project default were paused by a worker: Apple refuses the key" in explained(
        connection, stopped
    )
    assert not any("iOS" in line for line in explained(connection, going))
    assert "Apple refuses the key" in connection.value("select reason from notify_worker.history('u_42')")


def test_explain_says_why_a_topic_waits(connection: Connection, worker: Worker) -> None:
    number = connection.insert(kind="topic", address="news")
    connection.open_incident("topics", reason="its quota of topics is used up", lasts=60)
    connection.claim(worker)
    connection.let_pass(seconds=61)
    connection.record(worker, outcome(connection.claim_one(worker), verdict="sent"))

    lines = [line for line in explained(connection, number) if line.startswith("topics")]

    assert lines == [
        "topics of project default were paused by a worker: its quota of topics is used up",
        "topics of project default were resumed",
    ]
