"""Who is taken for dead and how soon: the dead within seconds, and nobody is robbed because all locks were free at once."""

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
from notify_worker.liveness import Liveness, Rescue
from notify_worker.pipeline import Pipeline
from notify_worker.sandbox import Sandbox
from notify_worker.senders.opening import open_sender
from notify_worker.settings import Settings
from notify_worker.store import Store
from tests.store_words import (
    Worker,
    attempts,
    bury,
    claim,
    connected,
    enter,
    insert,
    row,
    rows,
    still_here,
    unbalanced,
    value,
)
from tests.test_render import DELIVERY
from tests.waiting import auntil

LEASE = timedelta(seconds=40)
SOON, HALF_A_LEASE = 3, LEASE.total_seconds() / 2


def die(database: str) -> Worker:
    """A worker claims what is due and dies."""
    with connected(database) as session:
        worker = enter(session, LEASE)
        claim(session, worker)
    return worker


def patience(connection: psycopg.Connection, worker: Worker, reconnected_ago: float | None = None) -> float | None:
    """For how long a worker has to stay a suspect until it is dead; None: it is no suspect."""
    found = rows(connection, "select * from notify_worker.suspects(%s)", reconnected_ago)
    return next((each["patience"] for each in found if each["worker_id"] == worker.id), None)


def has_ended(connection: psycopg.Connection, worker_id: int) -> bool:
    return bool(
        value(connection, "select ended_at is not null from notify_worker.stored_workers where id = %s", worker_id)
    )


def sent(connection: psycopg.Connection) -> int:
    return int(value(connection, "select count(*) from notify_worker.notifications where state = 'sent'"))


# For how long a suspect has to stay one


def test_whose_lock_is_held_is_no_suspect(connection: psycopg.Connection) -> None:
    worker = enter(connection, LEASE)

    assert patience(connection, worker) is None


def test_who_was_seen_since_the_server_started_is_dead_after_three_seconds(
    database: str, connection: psycopg.Connection
) -> None:
    dead = die(database)

    assert patience(connection, dead) == SOON


def test_who_was_not_seen_since_the_server_started_is_dead_after_half_a_lease(
    database: str, connection: psycopg.Connection
) -> None:
    dead = die(database)
    connection.execute(
        "update notify_worker.stored_workers set seen_at = pg_postmaster_start_time() - interval '1 s' where id = %s",
        [dead.id],
    )
    assert patience(connection, dead) == HALF_A_LEASE

    still_here(connection, dead)

    assert patience(connection, dead) == SOON


def test_who_was_not_seen_since_the_caller_reconnected_is_dead_after_half_a_lease(
    database: str, connection: psycopg.Connection
) -> None:
    dead = die(database)

    assert patience(connection, dead, reconnected_ago=0.0) == HALF_A_LEASE
    assert patience(connection, dead, reconnected_ago=3600.0) == SOON


def test_who_cannot_hold_a_lock_is_dead_after_half_a_lease(connection: psycopg.Connection) -> None:
    shared = Worker(**row(connection, "select * from notify_worker.enter('here', 1, %s, false)", LEASE))

    assert patience(connection, shared) == HALF_A_LEASE


# What holds a burial off


def test_whose_lock_is_held_again_is_not_buried(database: str, connection: psycopg.Connection) -> None:
    number = insert(connection)
    worker = die(database)
    with connected(database) as session:
        session.execute("select pg_advisory_lock(notify_worker.presence_key(), %s)", [worker.id])

        assert bury(connection, worker) == 0
        assert not has_ended(connection, worker.id)

    assert bury(connection, worker) == 1
    assert [each["verdict"] for each in attempts(connection, number)] == ["unknown"]


def test_who_cannot_hold_a_lock_is_not_buried_while_it_is_seen(connection: psycopg.Connection) -> None:
    shared = Worker(**row(connection, "select * from notify_worker.enter('here', 1, %s, false)", LEASE))
    (suspect,) = rows(connection, "select * from notify_worker.suspects()")
    insert(connection)
    claim(connection, shared)
    still_here(connection, shared)

    assert value(connection, "select notify_worker.bury(%s, %s)", shared.id, suspect["seen_at"]) == 0
    assert not has_ended(connection, shared.id)


# The rescue, by a process that lives


@asynccontextmanager
async def living(database: str) -> AsyncIterator[tuple[Store, Liveness, Rescue]]:
    """A process that has entered, and what it rescues with."""
    async with Store(database) as store:
        liveness = Liveness(database, LEASE)
        await liveness.enter()
        try:
            yield store, liveness, Rescue(store, liveness)
        finally:
            await liveness.end(leaves=True)


async def lose_its_session(connection: psycopg.Connection, liveness: Liveness) -> None:
    """Kill the session that holds the lock, and wait until the worker has another one, under another id."""
    former = liveness.worker_id
    kill_its_session(connection, former)
    await auntil("it has another id", lambda: liveness.worker_id != former, within=10)


def kill_its_session(connection: psycopg.Connection, worker_id: int) -> None:
    killed = value(
        connection,
        """
        select pg_terminate_backend(pid)
        from pg_locks
        where locktype = 'advisory' and classid = notify_worker.presence_key()::oid and objid = %s::oid
            and database = (select oid from pg_database where datname = current_database())
        """,
        worker_id,
    )
    assert killed


async def test_what_a_dead_worker_held_is_back_in_line_after_three_seconds(
    database: str, connection: psycopg.Connection
) -> None:
    async with living(database) as (_, _, rescue):
        insert(connection)
        dead = die(database)
        began = monotonic()

        assert await rescue.run() == 1

        assert SOON <= monotonic() - began < 2 * SOON
        assert has_ended(connection, dead.id)


async def test_a_process_that_has_just_reconnected_robs_nobody(database: str, connection: psycopg.Connection) -> None:
    async with living(database) as (_, liveness, rescue):
        insert(connection)
        slower = die(database)  # the same has befallen another, which is not back yet
        await lose_its_session(connection, liveness)

        assert await rescue.run() == 0

        assert not has_ended(connection, slower.id)
        assert still_here(connection, slower), "it comes back, and what it holds is its own"
        assert (
            value(connection, "select count(*) from notify_worker.notifications where leased_by = %s", slower.id) == 1
        )


async def test_a_worker_that_dies_after_others_reconnected_is_dead_after_three_seconds_again(
    database: str, connection: psycopg.Connection
) -> None:
    async with living(database) as (_, liveness, rescue):
        await lose_its_session(connection, liveness)
        insert(connection)
        dead = die(database)

        assert await rescue.run() == 1

        assert has_ended(connection, dead.id)


async def test_a_process_does_not_bury_what_it_was_itself(database: str, connection: psycopg.Connection) -> None:
    async with living(database) as (_, liveness, rescue):
        former = liveness.worker_id
        insert(connection)
        claim(connection, Worker(former, ""))
        liveness.outstanding.add(replace(DELIVERY, worker_id=former))
        await lose_its_session(connection, liveness)

        assert await rescue.run() == 0

        assert not has_ended(connection, former)


# A worker whose session is killed while requests hang

PLACES, COUNT = 4, 12
HANG = 3.5
"""Seconds that FCM takes for each answer; longer than a suspect is waited for."""


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with sandbox.start(tmp_path / "sandbox.json", latency=HANG) as box:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(box.credentials))
        yield box


@asynccontextmanager
async def working(database: str, box: Sandbox) -> AsyncIterator[tuple[Pipeline, Liveness]]:
    """A worker's claim, render, send and record, with its sign of life."""
    settings = replace(
        Settings(), fcm_url=box.url, concurrency=PLACES, request_timeout=timedelta(seconds=5), lease=LEASE
    )
    async with Store(database) as store:
        liveness = Liveness(database, LEASE)
        pipeline = Pipeline(store, liveness, partial(open_sender, settings=settings), settings)
        try:
            yield pipeline, liveness
        finally:
            await pipeline.close()


async def drained(pipeline: Pipeline, connection: psycopg.Connection) -> bool:
    """Drain, as a look does; tell whether all is sent."""
    with suppress(psycopg.Error):  # its session was killed: the next look does it
        await pipeline.drain(within=0.5)
    return sent(connection) == COUNT


async def test_a_worker_that_lost_its_lock_ends_what_is_in_flight_and_starts_the_rest_under_another_name(
    database: str, connection: psycopg.Connection, box: Sandbox
) -> None:
    for _ in range(COUNT):
        insert(connection)
    async with working(database, box) as (pipeline, liveness), living(database) as (_, _, others):
        former = await liveness.enter()
        former_name = liveness.name
        await auntil("requests hang", lambda: hang(pipeline, box), within=10)

        kill_its_session(connection, former)
        rescued = asyncio.create_task(others.run())
        await auntil("it has another id", lambda: liveness.worker_id != former, within=10)
        with_its_loss = seen_at(connection, former)
        assert box.in_flight == box.received == PLACES, "nothing of the old claim has begun meanwhile"
        assert await rescued == 0
        await auntil("its former id is seen again", lambda: seen_at(connection, former) > with_its_loss, within=5)
        assert not has_ended(connection, former)
        box.switch(latency=0.0)

        await auntil("all are sent", lambda: drained(pipeline, connection), within=15)
        await auntil("the former id has ended", lambda: has_ended(connection, former), within=5)

    assert box.received == COUNT
    assert box.doubles == 0
    by_worker = rows(connection, "select worker, verdict, count(*) from notify_worker.attempts group by 1, 2")
    assert {(each["worker"], each["verdict"], each["count"]) for each in by_worker} == {
        (former_name, "sent", PLACES),
        (liveness.name, "sent", COUNT - PLACES),
    }
    assert unbalanced(connection) == []


async def hang(pipeline: Pipeline, box: Sandbox) -> bool:
    await pipeline.drain(within=0.1)
    return box.in_flight == PLACES


def seen_at(connection: psycopg.Connection, worker_id: int) -> datetime:
    moment: datetime = value(connection, "select seen_at from notify_worker.stored_workers where id = %s", worker_id)
    return moment
