"""How much a worker may claim of a project each second, and how workers share a project's rate."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from io import StringIO
from math import inf
from time import monotonic
from typing import LiteralString, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from notify_worker.database.store import Store
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.pipeline import Pipeline
from notify_worker.pipeline.rate_limiter import COLD_RAMP, RateLimiter
from notify_worker.senders.console import ConsoleSender
from notify_worker.senders.factory import LazySender
from notify_worker.settings import Settings
from tests.support.relay import Relay
from tests.support.store_calls import Connection, Row, Worker, connected
from tests.support.waiting import auntil

# ── the bucket ───────────────────────────────────────────────────────────────────────────────────────────────────────


def warm(rate: float, tokens: float = inf, now: float = 0.0) -> RateLimiter:
    """A limiter that uses all of its rate, and holds this many tokens."""
    limiter = RateLimiter(rate)
    limiter._taken_at, limiter._ramp, limiter._tokens = now, 1.0, tokens
    return limiter


def grant(limiter: RateLimiter, wanted: float, now: float) -> int:
    """Take what is wanted and there."""
    tokens = int(min(wanted, max(0.0, limiter.available(now))))
    limiter.take(tokens, now)
    return tokens


def test_no_more_tokens_are_granted_than_the_bucket_holds() -> None:
    limiter = warm(42, tokens=7)

    assert grant(limiter, 100, now=0.0) == 7
    assert limiter.available(0.0) == 0


def test_unused_tokens_add_up_to_a_quarter_of_a_second() -> None:
    limiter = warm(42, tokens=0)

    assert limiter.available(0.1) == pytest.approx(4.2)
    assert limiter.available(0.25) == limiter.available(0.5) == pytest.approx(10.5)


def test_a_rate_below_four_a_second_has_a_bucket_of_one() -> None:
    assert RateLimiter(0.1).available(0.0) == warm(3).available(0.0) == 1


def test_a_new_rate_applies_at_once() -> None:
    limiter = warm(2_000)
    grant(limiter, 50, now=0.0)

    limiter.rate = 42
    assert grant(limiter, 50, now=0.0) == 10

    limiter.rate = 166
    assert grant(limiter, 50, now=0.5) == 41


def test_a_receiver_with_five_devices_makes_a_debt_that_is_paid_first() -> None:
    limiter = warm(4, tokens=1)

    limiter.take(5, now=0.0)

    assert limiter.available(0.0) == -4
    assert limiter.wait(0.0) == 1.25
    assert limiter.available(1.0) == 0
    assert limiter.available(1.25) == 1


def test_a_clock_that_stands_still_or_goes_back_adds_no_tokens() -> None:
    limiter = warm(42, tokens=3, now=10.0)

    assert limiter.available(10.0) == limiter.available(9.0) == 3


# ── the ramp ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_begins_with_a_fifth_of_its_rate() -> None:
    limiter = RateLimiter(210)

    assert int(limiter.available(1_000.0)) == 10
    assert limiter.ramp(1_000.0) == 0.2


def climb(limiter: RateLimiter, seconds: float, step: float, now: float = 0.0) -> list[float]:
    """Take all that is there, each `step` of a second; return the ramp after each."""
    ramps = []
    for number in range(1, round(seconds / step) + 1):
        grant(limiter, inf, now + number * step)
        ramps.append(limiter.ramp(now + number * step))
    return ramps


@pytest.mark.parametrize("step", [0.05, 0.5, 1])
@pytest.mark.parametrize("rate", [24, 2_400])
def test_the_rate_ramps_up_fully_within_a_minute_of_demand(rate: float, step: float) -> None:
    limiter = RateLimiter(rate)
    grant(limiter, inf, now=0.0)

    ramps = climb(limiter, 66, step)

    assert ramps == sorted(ramps)
    assert ramps[round(30 / step) - 1] == pytest.approx(0.6, abs=0.1)
    assert ramps[-1] == 1


@pytest.mark.parametrize("rate", [0.1, 1, 2])
def test_a_low_rate_is_reached_as_well(rate: float) -> None:
    limiter = RateLimiter(rate)
    grant(limiter, inf, now=0.0)
    climb(limiter, 132, 0.5)

    granted = sum(grant(limiter, inf, 132 + number * 0.5) for number in range(1, 81))

    assert granted >= int(0.9 * 40 * rate)


@pytest.mark.parametrize(("tokens", "seconds", "ramp"), [(5, 30, 0.6), (5, 600, 0.2), (0, 31, 0.6), (0, 600, 0.2)])
def test_the_ramp_sinks_while_no_tokens_are_taken(tokens: float, seconds: float, ramp: float) -> None:
    limiter = warm(200, tokens)

    assert limiter.ramp(seconds) == pytest.approx(ramp, abs=0.03)


# ── when to claim again ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_waits_until_an_empty_bucket_is_half_full() -> None:
    limiter = warm(42, tokens=-20)

    wait = limiter.wait(0.0)

    assert wait == pytest.approx((20 + 5.25) / 42)
    assert limiter.available(wait) == pytest.approx(5.25)
    assert limiter.wait(wait) == 0


def test_a_refill_below_one_a_second_is_waited_for_until_there_is_a_token() -> None:
    limiter = RateLimiter(1)
    grant(limiter, 1, now=0.0)

    assert limiter.wait(0.0) == pytest.approx(5)


def test_a_bucket_with_a_token_grants_at_once() -> None:
    assert warm(42, tokens=1).wait(0.0) == 0
    assert RateLimiter(42).wait(0.0) == 0


# ── what is never exceeded ───────────────────────────────────────────────────────────────────────────────────────────

CLAIMS = st.lists(st.tuples(st.floats(0, 0.3) | st.floats(0, 90), st.integers(0, 5_000)), min_size=1, max_size=40)
"""Claims as the seconds since the last one, and what is due by then."""
A_ROUNDING_ERROR = 1e-6


def bucket(rate: float) -> float:
    return max(1.0, rate / 4)


@given(rate=st.floats(0.01, 10_000), claims=CLAIMS, wanted=st.sampled_from([0, 5_000]), is_warm=st.booleans())
def test_over_any_window_no_more_is_granted_than_the_rate_and_one_bucket(
    rate: float, claims: list[tuple[float, int]], wanted: int, is_warm: bool
) -> None:
    limiter, now = warm(rate) if is_warm else RateLimiter(rate), 0.0
    grants: list[tuple[float, int]] = []
    for passed, due in claims:
        now += passed
        grants.append((now, grant(limiter, max(due, wanted), now)))

    for first, (began, _) in enumerate(grants):
        for last in range(first, len(grants)):
            seconds = grants[last][0] - began
            granted = sum(tokens for _, tokens in grants[first : last + 1])
            assert granted <= rate * seconds + bucket(rate) + A_ROUNDING_ERROR * (1 + granted)


@given(rate=st.floats(0.01, 10_000), claims=st.lists(st.tuples(st.floats(0, 90), st.integers(1, 5_000)), max_size=40))
def test_a_debt_is_paid_before_anything_else_is_granted(rate: float, claims: list[tuple[float, int]]) -> None:
    """Claims take more than there is, once there is one."""
    limiter, now, taken, last = RateLimiter(rate), 0.0, 0, 0
    for passed, deliveries in claims:
        now += passed
        if limiter.available(now) >= 1:
            limiter.take(deliveries, now)
            taken, last = taken + deliveries, deliveries

    assert taken - last <= rate * now + bucket(rate) + A_ROUNDING_ERROR * (1 + taken)


@given(rate=st.floats(0.01, 10_000), claims=CLAIMS)
def test_the_ramp_stays_between_a_fifth_and_all(rate: float, claims: list[tuple[float, int]]) -> None:
    limiter, now = RateLimiter(rate), 0.0
    for passed, due in claims:
        now += passed
        grant(limiter, due, now)

        assert COLD_RAMP <= limiter.ramp(now) <= 1
        assert 0 < limiter.refill_rate(now) <= rate
        assert limiter.available(now + limiter.wait(now)) >= 1 - A_ROUNDING_ERROR


RATE = 60
A_ROUND = 0.1


def run(limiters: list[RateLimiter], began: float, seconds: float) -> int:
    """Let workers take all they can by turns, a tenth of a second a round, from `began` on; return how many tokens."""
    return sum(
        grant(limiter, inf, began + number * A_ROUND)
        for number in range(1, round(seconds / A_ROUND) + 1)
        for limiter in limiters
    )


def test_two_workers_never_exceed_the_rate_and_use_it_after_ramping_up() -> None:
    workers = [RateLimiter(RATE / 2), RateLimiter(RATE / 2)]

    cold = run(workers, 0, 8)
    run(workers, 8, 52)
    climbed = run(workers, 60, 16)

    assert cold <= 0.5 * RATE * 8
    assert 0.9 * RATE * 16 <= climbed <= RATE * 16 + RATE / 4


def test_the_total_rate_is_the_same_when_workers_come_and_go() -> None:
    workers = [warm(RATE / 2, tokens=0), warm(RATE / 2, tokens=0)]

    two = run(workers, 0, 4)
    for worker in workers:
        worker.rate = RATE / 3
    three = run([*workers, RateLimiter(RATE / 3)], 4, 4)
    for worker in workers:
        worker.rate = RATE / 2
    again = run(workers, 8, 4)

    assert two + three + again <= RATE * 12 + 2 * RATE / 4
    assert again >= 0.9 * RATE * 4


# ── a worker's share ─────────────────────────────────────────────────────────────────────────────────────────────────


def limit(connection: Connection, rate: int | None, project: str = "default") -> None:
    connection.execute("update notify_worker.projects set max_per_second = %s where name = %s", [rate, project])


async def rates(database: str) -> dict[str, float]:
    """What a worker reads as its share of each project's rate."""
    async with Store(database) as store:
        return {project.name: worker_rate for project, _, worker_rate in await store.projects()}


def gone_for(connection: Connection, worker: Worker, seconds: float) -> None:
    connection.execute(
        """
        update notify_worker.stored_workers
        set last_heartbeat_at = clock_timestamp() - make_interval(secs => %s)
        where id = %s
        """,
        [seconds, worker.id],
    )


async def test_a_project_without_a_rate_has_fcms_default_quota(database: str, connection: Connection) -> None:
    limit(connection, None)
    connection.register_worker()

    assert await rates(database) == {"default": 10_000}


async def test_a_worker_has_the_whole_rate_before_any_is_registered(database: str, connection: Connection) -> None:
    limit(connection, 42)

    assert await rates(database) == {"default": 42}


async def test_each_of_two_workers_gets_half_of_each_projects_rate(database: str, connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name, max_per_second) values ('orders', 7)")
    limit(connection, 86)
    connection.register_worker(), connection.register_worker()

    assert await rates(database) == {"default": 43, "orders": 3.5}


@pytest.mark.parametrize("gone", ["for 11 seconds", "unregistered", "dead"])
async def test_a_worker_that_is_gone_gets_no_share(database: str, connection: Connection, gone: str) -> None:
    limit(connection, 86)
    connection.register_worker()
    with connected(database) as session:
        other = session.register_worker()

    match gone:
        case "unregistered":
            connection.unregister_worker(other)
        case "dead":
            connection.rescue_worker(other)
        case _:
            gone_for(connection, other, 11)

    assert await rates(database) == {"default": 86}


async def test_a_worker_that_was_seen_within_ten_seconds_still_has_its_share(
    database: str, connection: Connection
) -> None:
    """As the view `workers` shows it."""
    limit(connection, 86)
    connection.register_worker()
    other = connection.register_worker()

    gone_for(connection, other, 8)

    assert len(connection.rows("select from notify_worker.workers")) == 2
    assert await rates(database) == {"default": 43}
    assert connection.send_heartbeat(other)


async def test_after_a_429_workers_share_half_the_rate_which_doubles_each_minute(
    database: str, connection: Connection
) -> None:
    limit(connection, 86)
    connection.register_worker(), connection.register_worker()

    connection.open_incident(lasts=1, sent_rate=20)
    shares = []
    for _ in range(4):
        connection.let_pass(seconds=2)
        shares.append((await rates(database))["default"])
        connection.let_pass(seconds=58)

    assert shares == pytest.approx([10, 20, 40, 43], rel=0.05)


# ── what is claimed within limits ────────────────────────────────────────────────────────────────────────────────────


def fill(connection: Connection, count: int, project: str = "default") -> None:
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, project)
        select 'topic', 'news', 'Hello', %s from generate_series(1, %s)
        """,
        [project, count],
    )


def claim(connection: Connection, worker: Worker, limits: Mapping[str, int], most: int = 100) -> list[Row]:
    statement: LiteralString = "select * from notify_worker.claim(%s, %s, %s, %s)"
    return connection.rows(statement, worker.id, uuid4(), most, Jsonb(limits))


def test_no_more_of_a_project_is_claimed_than_its_limit(connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    fill(connection, 60)
    fill(connection, 60, "orders")
    worker = connection.register_worker()

    claimed = claim(connection, worker, {"default": 10, "orders": 21})

    assert sorted(each["project"] for each in claimed) == ["default"] * 10 + ["orders"] * 21


def test_a_project_without_a_limit_is_not_claimed(connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    worker, number = connection.register_worker(), connection.insert()
    connection.insert(project="orders")

    assert [each["notification_id"] for each in claim(connection, worker, {"default": 1})] == [number]
    assert claim(connection, worker, {}) == []
    assert claim(connection, worker, {"orders": 0}) == []


def test_a_project_without_tokens_leaves_its_place_to_others(connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    fill(connection, 60, "orders")
    fill(connection, 60)
    worker = connection.register_worker()

    claimed = [each for _ in range(3) for each in claim(connection, worker, {"default": 2_500}, most=20)]

    assert [each["project"] for each in claimed] == ["default"] * 60


def test_notifications_of_a_missing_project_fail_without_a_limit(connection: Connection) -> None:
    fill(connection, 3_000, "no_such")
    worker = connection.register_worker()

    claimed = claim(connection, worker, {}, most=3_000)

    assert {(each["delivery_id"], each["state"]) for each in claimed} == {(None, "failed")}
    assert len(claimed) == 3_000
    assert connection.value("select count(*) from notify_worker.notifications where state = 'failed'") == 3_000


def test_a_probe_needs_a_token_like_any_other_delivery(connection: Connection) -> None:
    fill(connection, 5)
    worker = connection.register_worker()
    connection.open_incident()
    connection.let_pass(seconds=11)

    assert claim(connection, worker, {}) == []
    assert [each["probe"] for each in claim(connection, worker, {"default": 3})] == [True]


# ── a worker that claims ─────────────────────────────────────────────────────────────────────────────────────────────

CLAIM = "notify_worker.claim("


@asynccontextmanager
async def working(conninfo: str) -> AsyncIterator[Pipeline]:
    """A worker that sends everything at once."""
    sender = cast("LazySender", ConsoleSender(StringIO()))
    async with Store(conninfo) as store:
        pipeline = Pipeline(store, Heartbeat(conninfo, Settings().lease), lambda _: sender, Settings())
        await pipeline.projects.read()
        try:
            yield pipeline
        finally:
            await pipeline.close()


def sent(connection: Connection, project: str = "default") -> int:
    counting: LiteralString = "select count(*) from notify_worker.notifications where state = 'sent' and project = %s"
    return int(connection.value(counting, project))


async def drained(pipeline: Pipeline, connection: Connection, project: str = "default", count: int = 1) -> bool:
    """Drain as each poll does; tell whether so many are sent."""
    await pipeline.drain(within=0.2)
    return sent(connection, project) == count


async def test_a_worker_sends_no_more_than_its_tokens_and_all_in_the_end(database: str, connection: Connection) -> None:
    limit(connection, 100)
    fill(connection, 40)

    counts: list[tuple[int, float]] = []

    async with working(database) as pipeline:
        began = monotonic()

        async def all_are_sent() -> bool:
            await pipeline.drain(within=0.2)
            counts.append((sent(connection), monotonic() - began))
            return counts[-1][0] == 40

        await auntil("all are sent", all_are_sent, within=20)

    assert all(count <= 5 + 30 * seconds for count, seconds in counts)
    assert connection.unbalanced() == []


async def test_each_device_costs_a_token_though_a_claim_counts_notifications(
    database: str, connection: Connection
) -> None:
    limit(connection, 1)
    for number in range(5):
        connection.register_device("u_42", f"fcm:phone-{number}")
    connection.insert(receiver_id="u_42")
    connection.insert(receiver_id="u_42")

    async with working(database) as pipeline:
        await auntil("the first is sent", lambda: drained(pipeline, connection), within=10)
        debt = pipeline.projects.limiters["default"].available(monotonic())

    assert sent(connection) == 1
    assert -4 <= debt < -3


async def test_unsendable_and_postponed_notifications_cost_no_token(database: str, connection: Connection) -> None:
    limit(connection, 40)
    connection.open_incident("topics", lasts=60)
    fill(connection, 5)
    unsendable = [connection.insert(campaign="no_such") for _ in range(5)]

    async with working(database) as pipeline:
        assert await pipeline.drain(within=5)
        assert pipeline.projects.limiters["default"].available(monotonic()) == 2

    assert [connection.state(each) for each in unsendable] == ["failed"] * 5
    assert connection.row("select count(*) from notify_worker.notifications where state = 'pending'")["count"] == 5


async def test_a_worker_without_tokens_claims_ten_times_a_second_at_most(database: str, connection: Connection) -> None:
    limit(connection, 1)
    fill(connection, 3)

    with Relay(database) as relay:
        async with working(relay.conninfo) as pipeline:
            began = monotonic()
            assert not await pipeline.drain(within=1)
            took = monotonic() - began

        assert 2 <= relay.asked(CLAIM) <= 3 + 10 * took
    assert sent(connection) == 1


@pytest.mark.parametrize("why", ["nothing is there", "nothing is due", "paused", "probed"])
async def test_a_worker_without_tokens_does_not_wait_for_them_where_nothing_is_due(
    database: str, connection: Connection, why: str
) -> None:
    limit(connection, 1)
    connection.insert()

    async with working(database) as pipeline:
        await auntil("its token is taken", lambda: drained(pipeline, connection), within=10)
        if why != "nothing is there":
            fill(connection, 5)
        if why == "nothing is due":
            connection.execute("update notify_worker.notifications set due_at = now() + interval '1 hour'")
        if why == "paused":
            connection.pause("default", "maintenance")
        if why == "probed":
            connection.open_incident()
        began = monotonic()

        assert await pipeline.drain(within=4)

    assert monotonic() - began < 3, "a token comes after five seconds"


async def test_a_project_without_tokens_delays_no_other_project(database: str, connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name, max_per_second) values ('orders', 1)")
    fill(connection, 300, "orders")

    async with working(database) as pipeline:
        await pipeline.drain(within=0.5)
        fill(connection, 300)
        await pipeline.drain(within=2)

    assert sent(connection) == 300
    assert sent(connection, "orders") == 1


async def test_notifications_of_a_new_project_are_claimed_within_seconds(database: str, connection: Connection) -> None:
    async with working(database) as pipeline:
        connection.execute("insert into notify_worker.projects (name) values ('orders')")
        fill(connection, 5, "orders")

        await auntil("all are sent", lambda: drained(pipeline, connection, "orders", 5), within=3)
