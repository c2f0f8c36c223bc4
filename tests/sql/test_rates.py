"""What workers may claim of a project each second, together, and how they share it."""

from time import monotonic
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest

from tests.support.store_calls import (
    Row,
    Worker,
    begin,
    bury,
    claim,
    connected,
    enter,
    insert,
    leave,
    let_pass,
    outcome,
    record,
    register,
    row,
    rows,
    state,
    still_here,
    unbalanced,
    value,
)


def limit(connection: psycopg.Connection, rate: int | None, project: str = "default") -> None:
    """Rates in these tests are a little more than a quarter of a second makes whole: a share sinks while a claim is made."""
    connection.execute("update notify_worker.projects set max_per_second = %s where name = %s", [rate, project])


def fill(connection: psycopg.Connection, count: int, project: str = "default") -> None:
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, project)
        select 'topic', 'news', 'Hello', %s from generate_series(1, %s)
        """,
        [project, count],
    )


def has(
    connection: psycopg.Connection, worker: Worker, left_over: float, *, climbed: float = 1, project: str = "default"
) -> None:
    """At this moment a worker has this much left over, and uses this part of its share."""
    connection.execute(
        """
        insert into notify_worker.stored_allowances (project, worker_id, left_over, climbed, spent_at)
        values (%s, %s, %s, %s, clock_timestamp())
        on conflict on constraint stored_allowances_pkey do update
        set left_over = excluded.left_over, climbed = excluded.climbed, spent_at = excluded.spent_at
        """,
        [project, worker.id, left_over, climbed],
    )


def pass_by(connection: psycopg.Connection, seconds: float) -> None:
    """Let time pass for the allowances alone."""
    connection.execute(
        "update notify_worker.stored_allowances set spent_at = spent_at - make_interval(secs => %s)", [seconds]
    )


def allowance(connection: psycopg.Connection, worker: Worker, project: str = "default") -> Row:
    return row(
        connection,
        "select * from notify_worker.stored_allowances where worker_id = %s and project = %s",
        worker.id,
        project,
    )


def look(connection: psycopg.Connection, worker: Worker) -> list[float | None]:
    """What a claim says of when to look again, a row each."""
    statement: LiteralString = "select delivery_id, again_in from notify_worker.claim(%s, %s, 100)"
    return [each["again_in"] for each in rows(connection, statement, worker.id, uuid4())]


def gone_for(connection: psycopg.Connection, worker: Worker, seconds: float) -> None:
    connection.execute(
        """
        update notify_worker.stored_workers
        set last_heartbeat_at = clock_timestamp() - make_interval(secs => %s)
        where id = %s
        """,
        [seconds, worker.id],
    )


# ── how much ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_more_is_claimed_than_the_allowance(connection: psycopg.Connection) -> None:
    limit(connection, 42)
    fill(connection, 100)
    worker = enter(connection)
    has(connection, worker, 7)

    claimed = claim(connection, worker)

    assert 7 <= len(claimed) <= 10
    assert allowance(connection, worker)["left_over"] < 7


def test_what_is_not_used_adds_up_to_a_quarter_of_a_second(connection: psycopg.Connection) -> None:
    limit(connection, 42)
    fill(connection, 100)
    worker = enter(connection)
    has(connection, worker, 0)
    pass_by(connection, 0.5)

    assert len(claim(connection, worker)) == 10


def test_what_was_spent_fills_at_the_rate(connection: psycopg.Connection) -> None:
    limit(connection, 42)
    fill(connection, 100)
    worker = enter(connection)
    has(connection, worker, 0)
    pass_by(connection, 0.1)

    assert 4 <= len(claim(connection, worker)) <= 8


def test_a_project_without_a_rate_has_that_of_fcm_s_default_quota(connection: psycopg.Connection) -> None:
    limit(connection, None)
    fill(connection, 3_000)
    worker = enter(connection)
    has(connection, worker, 10_000)

    assert 2_490 <= len(claim(connection, worker, most=3_000)) <= 2_500


def test_a_new_rate_holds_at_the_next_claim(connection: psycopg.Connection) -> None:
    fill(connection, 200)
    worker = enter(connection)
    has(connection, worker, 2_000)
    first = claim(connection, worker, most=50)

    limit(connection, 42)

    assert (len(first), len(claim(connection, worker, most=50))) == (50, 10)
    limit(connection, 166)
    pass_by(connection, 0.5)
    assert len(claim(connection, worker, most=50)) == 41


def test_two_projects_have_allowances_of_their_own(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    worker = enter(connection)
    for project, rate in (("default", 42), ("orders", 86)):
        limit(connection, rate, project)
        fill(connection, 60, project)
        has(connection, worker, 1_000, project=project)

    claimed = claim(connection, worker)

    assert sorted(each["project"] for each in claimed) == ["default"] * 10 + ["orders"] * 21


def test_a_project_whose_allowance_is_used_up_leaves_its_place_to_the_others(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    limit(connection, 1, "orders")
    fill(connection, 60, "orders")
    fill(connection, 60)
    worker = enter(connection)
    has(connection, worker, 0, project="orders")

    claimed = [each for _ in range(8) for each in claim(connection, worker, most=20)]

    assert [each["project"] for each in claimed] == ["default"] * 60


def test_a_receiver_with_five_devices_makes_a_debt_that_is_paid_first(connection: psycopg.Connection) -> None:
    limit(connection, 4)
    for number in range(5):
        register(connection, "u_42", f"fcm:phone-{number}")
    for _ in range(3):
        insert(connection, receiver_id="u_42")
    worker = enter(connection)
    has(connection, worker, 1)

    first = claim(connection, worker)
    debt = allowance(connection, worker)["left_over"]
    (again_in,) = look(connection, worker)
    pass_by(connection, 1)
    too_early = claim(connection, worker)
    pass_by(connection, 0.5)

    assert (len(first), too_early, len(claim(connection, worker))) == (5, [], 5)
    assert -4 <= debt < -3
    assert again_in == pytest.approx(1.25, abs=0.25)


def test_what_cannot_be_sent_and_what_is_put_off_costs_nothing(connection: psycopg.Connection) -> None:
    limit(connection, 42)
    worker = enter(connection)
    begin(connection, "topics", lasts=60)
    fill(connection, 5)
    unsendable = [insert(connection, campaign="no_such") for _ in range(3)]
    number = insert(connection)
    has(connection, worker, 100)

    claimed = claim(connection, worker)

    assert [each["notification_id"] for each in claimed] == [number]
    assert [state(connection, each) for each in unsendable] == ["failed"] * 3
    assert allowance(connection, worker)["left_over"] == pytest.approx(9.5, abs=0.1)


def test_a_project_that_is_not_there_has_no_limit_since_nothing_of_it_is_sent(connection: psycopg.Connection) -> None:
    fill(connection, 3_000, "no_such")
    worker = enter(connection)

    assert claim(connection, worker, most=3_000) == []
    assert value(connection, "select count(*) from notify_worker.notifications where state = 'failed'") == 3_000
    assert rows(connection, "select from notify_worker.stored_allowances") == []


# ── among how many ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_two_workers_each_gets_half(connection: psycopg.Connection) -> None:
    limit(connection, 86)
    fill(connection, 100)
    first, second = enter(connection), enter(connection)
    for worker in (first, second):
        has(connection, worker, 1_000)

    assert [len(claim(connection, worker)) for worker in (first, second)] == [10, 10]


@pytest.mark.parametrize("gone", ["for 6 seconds", "left"])
def test_a_worker_that_is_gone_gets_no_share(connection: psycopg.Connection, gone: str) -> None:
    limit(connection, 86)
    fill(connection, 100)
    other, worker = enter(connection), enter(connection)
    has(connection, worker, 1_000)

    if gone == "left":
        leave(connection, other)
    else:
        gone_for(connection, other, 6)

    assert len(claim(connection, worker)) == 21


def test_a_worker_that_was_seen_within_five_seconds_still_has_its_share(connection: psycopg.Connection) -> None:
    limit(connection, 86)
    fill(connection, 100)
    other, worker = enter(connection), enter(connection)
    has(connection, worker, 1_000)

    gone_for(connection, other, 3)

    assert len(claim(connection, worker)) == 10


def test_who_leaves_and_who_is_buried_has_no_allowance_any_more(database: str, connection: psycopg.Connection) -> None:
    staying, leaving = enter(connection), enter(connection)
    with connected(database) as session:
        dead = enter(session)
    for worker in (staying, leaving, dead):
        has(connection, worker, 3)

    leave(connection, leaving)
    bury(connection, dead)

    left: LiteralString = "select worker_id from notify_worker.stored_allowances"
    assert [each["worker_id"] for each in rows(connection, left)] == [staying.id]


# ── the climb ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_begins_with_a_fifth(connection: psycopg.Connection) -> None:
    limit(connection, 210)
    fill(connection, 100)
    worker = enter(connection)

    assert len(claim(connection, worker)) == 10
    assert allowance(connection, worker)["climbed"] == pytest.approx(0.2)


def climb(connection: psycopg.Connection, worker: Worker, seconds: float, step: float = 1) -> list[float]:
    """Claim all that may be, each `step` of a second; return which part of its share the worker used each time."""
    climbed = []
    for _ in range(round(seconds / step)):
        pass_by(connection, step)
        claim(connection, worker)
        climbed.append(allowance(connection, worker)["climbed"])
    return climbed


@pytest.mark.parametrize("step", [0.5, 1])
def test_it_climbs_to_all_of_it_within_a_minute_in_which_that_is_wanted(
    connection: psycopg.Connection, step: float
) -> None:
    limit(connection, 24)
    fill(connection, 500)
    worker = enter(connection)
    claim(connection, worker)

    climbed = climb(connection, worker, 66, step)

    assert climbed == sorted(climbed)
    assert climbed[round(30 / step) - 1] == pytest.approx(0.6, abs=0.1)
    assert climbed[-1] == 1


@pytest.mark.parametrize("rate", [1, 2])
def test_a_low_rate_is_climbed_to_as_well(connection: psycopg.Connection, rate: int) -> None:
    limit(connection, rate)
    fill(connection, 300)
    worker = enter(connection)
    claim(connection, worker)
    climb(connection, worker, 66, 0.5)
    before = value(connection, "select count(*) from notify_worker.notifications where lease is not null")

    climb(connection, worker, 20, 0.5)

    after = value(connection, "select count(*) from notify_worker.notifications where lease is not null")
    assert after - before >= 0.9 * 20 * rate


@pytest.mark.parametrize(
    ("left_over", "seconds", "climbed"), [(5, 30, 0.6), (5, 600, 0.2), (0, 31, 0.6), (0, 600, 0.2)]
)
def test_it_sinks_while_it_is_not_wanted(
    connection: psycopg.Connection, left_over: float, seconds: float, climbed: float
) -> None:
    limit(connection, 200)
    fill(connection, 100)
    worker = enter(connection)
    has(connection, worker, left_over)
    pass_by(connection, seconds)

    claim(connection, worker, most=1)

    assert allowance(connection, worker)["climbed"] == pytest.approx(climbed, abs=0.03)


# ── when to look again ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_that_only_lacks_allowance_says_when_to_look_again(connection: psycopg.Connection) -> None:
    limit(connection, 42)
    fill(connection, 100)
    worker = enter(connection)
    has(connection, worker, -20)

    (again_in,) = look(connection, worker)

    assert again_in == pytest.approx((20 + 5.25) / 42, abs=0.2)  # until half of the bucket is there
    assert again_in is not None
    pass_by(connection, again_in)
    assert len(claim(connection, worker)) >= 5


def test_a_claim_of_a_rate_below_one_a_second_waits_for_one(connection: psycopg.Connection) -> None:
    limit(connection, 1)
    fill(connection, 3)
    worker = enter(connection)
    has(connection, worker, 0, climbed=0.2)

    (again_in,) = look(connection, worker)

    assert again_in == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize("why", ["nothing is there", "nothing is due", "paused", "probed"])
def test_a_claim_that_does_not_lack_allowance_says_nothing(connection: psycopg.Connection, why: str) -> None:
    limit(connection, 42)
    worker = enter(connection)
    has(connection, worker, 0)
    if why != "nothing is there":
        fill(connection, 5)
    if why == "nothing is due":
        connection.execute("update notify_worker.notifications set due_at = now() + interval '1 hour'")
    if why == "paused":
        connection.execute("select notify_worker.pause('default', 'maintenance')")
    if why == "probed":
        begin(connection)

    assert look(connection, worker) == []


def test_what_is_due_of_a_project_with_allowance_is_claimed_and_nobody_waits(connection: psycopg.Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    limit(connection, 1, "orders")
    fill(connection, 2, "orders")
    fill(connection, 2)
    worker = enter(connection)
    has(connection, worker, 0, project="orders")

    assert look(connection, worker) == [None, None]
    (again_in,) = look(connection, worker)
    assert again_in is not None
    assert 0 < again_in <= 1


def test_a_probe_is_made_though_the_allowance_was_spent_before_the_pause(connection: psycopg.Connection) -> None:
    limit(connection, 42)
    fill(connection, 5)
    worker = enter(connection)
    has(connection, worker, -3)
    begin(connection)
    let_pass(connection, seconds=11)

    assert [each["probe"] for each in claim(connection, worker)] == [True]


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────

RATE = 60
A_ROUND = 0.1


def run(connection: psycopg.Connection, workers: list[Worker], seconds: float) -> tuple[int, float]:
    """Let the workers claim and send by turns, a tenth of a second a round; return how many messages, and in what time.

    Time stands still but for the rounds, and for the claims themselves.
    """
    now: LiteralString = "select clock_timestamp()"
    connection.execute("update notify_worker.stored_allowances set spent_at = clock_timestamp()")
    stands = dict.fromkeys(workers, value(connection, now))
    sent, claims_took = 0, 0.0
    for _ in range(round(seconds / A_ROUND)):
        for worker in workers:
            still_here(connection, worker)
            began = monotonic()
            connection.execute(
                """
                update notify_worker.stored_allowances
                set spent_at = spent_at + (clock_timestamp() - %s) - make_interval(secs => %s)
                where worker_id = %s
                """,
                [stands[worker], A_ROUND, worker.id],
            )
            claimed = claim(connection, worker)
            stands[worker] = value(connection, now)
            claims_took += monotonic() - began
            sent += len(claimed)
            if claimed:
                record(connection, worker, *[outcome(each, verdict="sent") for each in claimed])
    return sent, seconds + claims_took / len(workers)


def test_two_workers_together_never_exceed_the_rate_and_use_it_once_they_have_climbed(
    connection: psycopg.Connection,
) -> None:
    limit(connection, RATE)
    fill(connection, 1_800)
    workers = [enter(connection), enter(connection)]
    buckets = RATE / 4

    cold, took = run(connection, workers, 8)
    assert cold <= RATE * took + buckets
    assert cold <= 0.5 * RATE * took
    connection.execute("update notify_worker.stored_allowances set climbed = 1")
    climbed, took = run(connection, workers, 16)

    assert 0.9 * RATE * 16 <= climbed <= RATE * took + buckets
    assert unbalanced(connection) == []


def test_a_worker_that_comes_or_goes_changes_nothing_of_what_all_send(
    database: str, connection: psycopg.Connection
) -> None:
    limit(connection, RATE)
    fill(connection, 1_500)
    workers = [enter(connection), enter(connection)]
    for worker in workers:
        has(connection, worker, 0)

    two, first_took = run(connection, workers, 4)
    workers.append(enter(connection))
    three, second_took = run(connection, workers, 4)
    leave(connection, workers.pop())
    again, third_took = run(connection, workers, 4)

    assert two + three + again <= RATE * (first_took + second_took + third_took) + 2 * RATE / 4
    assert again >= 0.9 * RATE * 4
