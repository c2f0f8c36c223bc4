"""Which workers count as dead, and how soon: within seconds of a crash; and no living worker loses its leases."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic

import psycopg
import pytest

from notify_worker import sandbox
from notify_worker.database.store import Store
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.pipeline import Pipeline
from notify_worker.process.rescuer import Rescuer
from notify_worker.sandbox import Sandbox
from notify_worker.senders.factory import open_sender
from notify_worker.settings import Settings
from tests.support.messages import DELIVERY
from tests.support.store_calls import Connection, Row, Worker, connected, outcome
from tests.support.waiting import auntil

LEASE = timedelta(seconds=40)
SOON, HALF_A_LEASE = 3, LEASE.total_seconds() / 2


def die(database: str, lease: timedelta = LEASE) -> Worker:
    """A worker claims what is due and dies."""
    with connected(database) as session:
        worker = session.register_worker(lease)
        session.claim(worker)
    return worker


def grace_period(connection: Connection, worker: Worker, reconnected_ago: float | None = None) -> float | None:
    """Return how long a worker has to stay stale until it is dead; None if it is not stale."""
    found = connection.rows("select * from notify_worker.stale_workers(%s)", reconnected_ago)
    return next((each["grace_period"] for each in found if each["worker_id"] == worker.id), None)


def rescue(connection: Connection, reconnected_ago: float | None = None) -> Row:
    return connection.row("select * from notify_worker.rescue_dead_workers(%s)", reconnected_ago)


def let_pass(connection: Connection, seconds: float) -> None:
    """Let time pass for the workers: move their stored times into the past."""
    connection.execute(
        """
        update notify_worker.stored_workers
        set last_heartbeat_at = last_heartbeat_at - make_interval(secs => %(seconds)s),
            stale_since = stale_since - make_interval(secs => %(seconds)s)
        """,
        {"seconds": seconds},
    )


def has_ended(connection: Connection, worker_id: int) -> bool:
    return bool(
        connection.value("select ended_at is not null from notify_worker.stored_workers where id = %s", worker_id)
    )


def sent(connection: Connection) -> int:
    return int(connection.value("select count(*) from notify_worker.notifications where state = 'sent'"))


# The grace period of a stale worker


def test_a_worker_whose_lock_is_held_is_not_stale(connection: Connection) -> None:
    worker = connection.register_worker(LEASE)

    assert grace_period(connection, worker) is None


def test_a_worker_that_sent_a_heartbeat_since_the_server_started_is_dead_after_three_seconds(
    database: str, connection: Connection
) -> None:
    dead = die(database)

    assert grace_period(connection, dead) == SOON


def test_a_worker_that_sent_no_heartbeat_since_the_server_started_is_dead_after_half_a_lease(
    database: str, connection: Connection
) -> None:
    dead = die(database)
    connection.execute(
        """
        update notify_worker.stored_workers
        set last_heartbeat_at = pg_postmaster_start_time() - interval '1 s'
        where id = %s
        """,
        [dead.id],
    )
    assert grace_period(connection, dead) == HALF_A_LEASE

    connection.send_heartbeat(dead)

    assert grace_period(connection, dead) == SOON


def test_a_worker_that_sent_no_heartbeat_since_the_caller_reconnected_is_dead_after_half_a_lease(
    database: str, connection: Connection
) -> None:
    dead = die(database)

    assert grace_period(connection, dead, reconnected_ago=0.0) == HALF_A_LEASE
    assert grace_period(connection, dead, reconnected_ago=3600.0) == SOON


def test_a_worker_that_cannot_hold_a_lock_is_stale_once_it_misses_a_heartbeat_and_dead_half_a_lease_later(
    connection: Connection,
) -> None:
    pooled = register_pooled(connection)
    assert grace_period(connection, pooled) is None

    let_pass(connection, SOON)

    assert grace_period(connection, pooled) == HALF_A_LEASE


def register_pooled(connection: Connection) -> Worker:
    return Worker(**connection.row("select * from notify_worker.register_worker('here', 1, %s, false)", LEASE))


# When the grace period begins


def test_a_worker_is_rescued_after_its_grace_period_with_a_wakeup(database: str, connection: Connection) -> None:
    connection.insert()
    dead = die(database)
    delete_wakeups(connection)

    first = rescue(connection)
    assert (first["workers"], first["notifications"]) == (0, 0)
    assert first["again_in"] == pytest.approx(SOON, abs=0.5)
    assert not has_ended(connection, dead.id)
    let_pass(connection, SOON)

    assert rescue(connection) == {"workers": 1, "notifications": 1, "again_in": None}

    assert has_ended(connection, dead.id)
    assert connection.wakeups() == 1


def test_a_rescue_without_due_notifications_sends_no_wakeup(database: str, connection: Connection) -> None:
    die(database)
    rescue(connection)
    let_pass(connection, SOON)

    assert rescue(connection) == {"workers": 1, "notifications": 0, "again_in": None}

    assert connection.wakeups() == 0


def delete_wakeups(connection: Connection) -> None:
    connection.execute("select notify_worker.delete_wakeups()")
    assert connection.wakeups() == 0


def test_a_living_worker_has_its_grace_period_however_late_its_heartbeat_was_when_its_session_was_lost(
    database: str, connection: Connection
) -> None:
    """A busy database answers no heartbeat for 3 s: the worker drops its session, and registers again a second later."""
    connection.insert()
    with connected(database) as session:
        slow = session.register_worker(LEASE)
        session.claim(slow)
        rescue(connection)
        let_pass(connection, 5)

    assert rescue(connection)["workers"] == 0
    assert connection.send_heartbeat(slow), "it is back, and its leases are its own"


def test_a_heartbeat_resets_the_grace_period(database: str, connection: Connection) -> None:
    dead = die(database)
    rescue(connection)
    let_pass(connection, SOON)
    connection.send_heartbeat(dead)

    assert rescue(connection)["workers"] == 0
    let_pass(connection, 2)
    assert rescue(connection)["workers"] == 0
    let_pass(connection, 1)
    assert rescue(connection)["workers"] == 1


def test_a_lock_held_again_resets_the_grace_period(database: str, connection: Connection) -> None:
    dead = die(database)
    rescue(connection)
    with connected(database) as session:
        session.execute("select pg_advisory_lock(notify_worker.presence_lock_class(), %s)", [dead.id])
        let_pass(connection, SOON)
        assert rescue(connection) == {"workers": 0, "notifications": 0, "again_in": None}

    assert rescue(connection)["workers"] == 0
    assert not has_ended(connection, dead.id)


def test_half_a_lease_is_counted_from_when_the_caller_reconnected(database: str, connection: Connection) -> None:
    dead = die(database, timedelta(seconds=2))
    rescue(connection)
    let_pass(connection, 3)

    assert rescue(connection, reconnected_ago=0.0)["again_in"] == pytest.approx(1, abs=0.3)
    assert not has_ended(connection, dead.id)
    assert rescue(connection, reconnected_ago=2.0)["workers"] == 1


def test_half_a_lease_is_counted_from_when_the_server_came_up(database: str, connection: Connection) -> None:
    """It was found stale before, and the server was away for longer than that."""
    dead = die(database)
    rescue(connection)
    connection.execute(
        """
        update notify_worker.stored_workers
        set last_heartbeat_at = pg_postmaster_start_time() - interval '1 hour',
            stale_since = pg_postmaster_start_time() - interval '1 hour',
            lease_length = 2 * (clock_timestamp() - pg_postmaster_start_time() + interval '10 s')
        where id = %s
        """,
        [dead.id],
    )

    assert 8 < rescue(connection)["again_in"] <= 10
    assert not has_ended(connection, dead.id)


def test_a_worker_with_a_record_under_way_is_rescued_by_the_next_call(database: str, connection: Connection) -> None:
    connection.insert(), connection.insert()
    with connected(database) as session:
        dead = session.register_worker(LEASE)
        claimed, _ = session.claim(dead)
    rescue(connection)
    let_pass(connection, SOON)
    with connected(database) as recording:
        recording.execute("begin")
        recording.record(dead, outcome(claimed, verdict="sent"))

        assert rescue(connection) == {"workers": 0, "notifications": 0, "again_in": 0}
        recording.execute("commit")

    assert rescue(connection)["notifications"] == 1


def test_a_rescue_does_not_wait_for_a_heartbeat_under_way(database: str, connection: Connection) -> None:
    dead = die(database)
    connection.execute("set lock_timeout = '1s'")
    with connected(database) as session:
        session.execute("begin")
        session.send_heartbeat(dead)

        rescue(connection)


# What prevents a rescue


def test_a_worker_whose_lock_is_held_again_is_not_rescued(database: str, connection: Connection) -> None:
    number = connection.insert()
    worker = die(database)
    with connected(database) as session:
        session.execute("select pg_advisory_lock(notify_worker.presence_lock_class(), %s)", [worker.id])

        assert connection.rescue_worker(worker) == 0
        assert not has_ended(connection, worker.id)

    assert connection.rescue_worker(worker) == 1
    assert [each["verdict"] for each in connection.attempts(number)] == ["unknown"]


def test_a_worker_that_cannot_hold_a_lock_is_not_rescued_while_it_sends_heartbeats(connection: Connection) -> None:
    pooled = register_pooled(connection)
    let_pass(connection, SOON)
    (stale,) = connection.rows("select * from notify_worker.stale_workers()")
    connection.insert()
    connection.claim(pooled)
    connection.send_heartbeat(pooled)

    rescued = connection.value("select notify_worker.rescue_worker(%s, %s)", pooled.id, stale["last_heartbeat_at"])

    assert rescued is None
    assert not has_ended(connection, pooled.id)


# The rescue, by a process that is alive


@asynccontextmanager
async def living(database: str) -> AsyncIterator[tuple[Heartbeat, Rescuer]]:
    """The heartbeat of a registered process, and its rescuer."""
    async with Store(database) as store:
        heartbeat = Heartbeat(database, LEASE)
        await heartbeat.ensure_registered()
        try:
            yield heartbeat, Rescuer(store, heartbeat)
        finally:
            await heartbeat.close(unregister=True)


async def lose_its_session(connection: Connection, heartbeat: Heartbeat) -> None:
    """Kill the session that holds the lock, and wait until the worker has another one, under another id."""
    previous = heartbeat.worker_id
    kill_its_session(connection, previous)
    await auntil("it has another id", lambda: heartbeat.worker_id != previous, within=10)


def kill_its_session(connection: Connection, worker_id: int) -> None:
    killed = connection.value(
        """
        select pg_terminate_backend(pid)
        from pg_locks
        where locktype = 'advisory' and classid = notify_worker.presence_lock_class()::oid and objid = %s::oid
            and database = (select oid from pg_database where datname = current_database())
        """,
        worker_id,
    )
    assert killed


async def test_a_dead_workers_notifications_are_due_after_three_seconds(database: str, connection: Connection) -> None:
    async with living(database) as (_, rescuer):
        connection.insert()
        dead = die(database)
        began = monotonic()

        assert await rescuer.rescue() == 1

        assert SOON <= monotonic() - began < 2 * SOON
        assert has_ended(connection, dead.id)


async def test_a_process_that_just_reconnected_rescues_no_living_worker(database: str, connection: Connection) -> None:
    async with living(database) as (heartbeat, rescuer):
        connection.insert()
        slower = die(database)  # it lost its session too, and is not back yet
        await lose_its_session(connection, heartbeat)

        assert await rescuer.rescue() == 0

        assert not has_ended(connection, slower.id)
        assert connection.send_heartbeat(slower), "it comes back, and its leases are its own"
        assert connection.value("select count(*) from notify_worker.notifications where leased_by = %s", slower.id) == 1


async def test_a_worker_that_dies_after_others_reconnected_is_dead_after_three_seconds_again(
    database: str, connection: Connection
) -> None:
    async with living(database) as (heartbeat, rescuer):
        await lose_its_session(connection, heartbeat)
        connection.insert()
        dead = die(database)

        assert await rescuer.rescue() == 1

        assert has_ended(connection, dead.id)


async def test_a_process_does_not_rescue_its_own_earlier_ids(database: str, connection: Connection) -> None:
    async with living(database) as (heartbeat, rescuer):
        previous = heartbeat.worker_id
        connection.insert()
        connection.claim(Worker(previous, ""))
        heartbeat.outstanding.add(replace(DELIVERY, worker_id=previous))
        await lose_its_session(connection, heartbeat)

        assert await rescuer.rescue() == 0

        assert not has_ended(connection, previous)


# A worker whose session is killed while requests hang

SLOTS, COUNT = 4, 12
HANG = 3.5
"""Seconds that FCM takes for each answer; longer than a grace period."""


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with sandbox.start(tmp_path / "sandbox.json", latency=HANG) as box:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(box.credentials))
        yield box


@asynccontextmanager
async def working(database: str, box: Sandbox) -> AsyncIterator[tuple[Pipeline, Heartbeat]]:
    """A worker's claim, render, send and record, with its heartbeat."""
    settings = replace(
        Settings(), fcm_url=box.url, concurrency=SLOTS, request_timeout=timedelta(seconds=5), lease=LEASE
    )
    async with Store(database) as store:
        heartbeat = Heartbeat(database, LEASE)
        pipeline = Pipeline(store, heartbeat, partial(open_sender, settings=settings), settings)
        try:
            yield pipeline, heartbeat
        finally:
            await pipeline.close()


async def drained(pipeline: Pipeline, connection: Connection) -> bool:
    """Drain, as a poll does; return whether all are sent."""
    with suppress(psycopg.Error):  # its session was killed: the next poll drains again
        await pipeline.drain(within=0.5)
    return sent(connection) == COUNT


async def test_a_worker_that_lost_its_lock_finishes_and_goes_on_under_a_new_id(
    database: str, connection: Connection, box: Sandbox
) -> None:
    for _ in range(COUNT):
        connection.insert()
    async with working(database, box) as (pipeline, heartbeat), living(database) as (_, others):
        previous = await heartbeat.ensure_registered()
        previous_name = heartbeat.name
        await auntil("requests hang", lambda: hang(pipeline, box), within=10)

        kill_its_session(connection, previous)
        rescued = asyncio.create_task(others.rescue())
        await auntil("it has another id", lambda: heartbeat.worker_id != previous, within=10)
        at_its_loss = last_heartbeat_at(connection, previous)
        assert box.in_flight == box.received == SLOTS, "nothing of the old claim has begun meanwhile"
        assert await rescued == 0
        await auntil(
            "its previous id is seen again", lambda: last_heartbeat_at(connection, previous) > at_its_loss, within=5
        )
        assert not has_ended(connection, previous)
        box.switch(latency=0.0)

        await auntil("all are sent", lambda: drained(pipeline, connection), within=15)
        await auntil("the previous id has ended", lambda: has_ended(connection, previous), within=5)

    assert box.received == COUNT
    assert box.doubles == 0
    by_worker = connection.rows("select worker, verdict, count(*) from notify_worker.attempts group by 1, 2")
    assert {(each["worker"], each["verdict"], each["count"]) for each in by_worker} == {
        (previous_name, "sent", SLOTS),
        (heartbeat.name, "sent", COUNT - SLOTS),
    }
    assert connection.unbalanced() == []


async def hang(pipeline: Pipeline, box: Sandbox) -> bool:
    await pipeline.drain(within=0.1)
    return box.in_flight == SLOTS


def last_heartbeat_at(connection: Connection, worker_id: int) -> datetime:
    moment: datetime = connection.value(
        "select last_heartbeat_at from notify_worker.stored_workers where id = %s", worker_id
    )
    return moment
