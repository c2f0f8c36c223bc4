"""Start marks before requests: many in one write, each with its own answer; in doubt the answer is no."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import LiteralString
from uuid import uuid4

import pytest
import pytest_asyncio

from notify_worker.database.store import Store
from notify_worker.model import Delivery, OnUnknown
from notify_worker.pipeline.start_marks import StartMarks
from tests.support.relay import Relay
from tests.support.store_calls import SHORT_LEASE, Connection, connected
from tests.support.waiting import auntil

MARK = "notify_worker.mark_started("
MARKED: LiteralString = "select id from notify_worker.stored_deliveries where started_under is not null order by id"
A_MINUTE = timedelta(minutes=1)


@pytest.fixture
def relay(database: str) -> Iterator[Relay]:
    """A relay between the start marks and the database, which counts statements."""
    with Relay(database) as relay:
        yield relay


@pytest_asyncio.fixture
async def store(relay: Relay) -> AsyncIterator[Store]:
    async with Store(relay.conninfo) as store:
        yield store


async def leased(connection: Connection, store: Store, count: int, lease: timedelta = A_MINUTE) -> list[Delivery]:
    """Deliveries with `on_unknown = hold` that a worker has leased. The worker lives as long as the connection."""
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, on_unknown)
        select 'token', 'fcm:' || number, 'Hello', 'hold' from generate_series(1, %s) as number
        """,
        [count],
    )
    worker = connection.register_worker(lease)
    claim = await store.claim(worker.id, uuid4(), count, {"default": 1000}, lease)
    assert len(claim.deliveries) == count
    return claim.deliveries


async def answers(*marks: Awaitable[bool]) -> list[bool]:
    """Wait for the answer to each mark; fail if one does not come."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*marks)


def unsent(caplog: pytest.LogCaptureFixture) -> list[int]:
    """How many deliveries each failed write left unsent."""
    failed = [vars(record) for record in caplog.records if vars(record).get("event") == "start_marks_failed"]
    return [record["deliveries"] for record in failed]


def marked(connection: Connection) -> list[int]:
    return [row["id"] for row in connection.rows(MARKED)]


def ids(deliveries: list[Delivery]) -> list[int]:
    return sorted(delivery.id for delivery in deliveries)


async def test_a_delivery_with_hold_is_marked_under_its_lease(connection: Connection, store: Store) -> None:
    first, second = await leased(connection, store, 2)

    assert await StartMarks(store).mark(first)

    assert first.on_unknown is OnUnknown.HOLD
    assert marked(connection) == [first.id]
    by = "select started_under from notify_worker.stored_deliveries where id = %s"
    assert connection.value(by, first.id) == first.lease
    assert connection.value(by, second.id) is None


async def test_marks_at_once_share_one_write(connection: Connection, store: Store, relay: Relay) -> None:
    deliveries, marker = await leased(connection, store, 200), StartMarks(store)

    written = await answers(*map(marker.mark, deliveries))

    assert all(written)
    assert marked(connection) == ids(deliveries)
    assert relay.asked(MARK) == 1


async def test_marks_asked_for_during_a_write_share_the_next_write(
    database: str, connection: Connection, store: Store, relay: Relay
) -> None:
    (first, *others), marker = await leased(connection, store, 100), StartMarks(store)
    asking: list[Delivery] = []

    async def ask(delivery: Delivery) -> bool:
        asking.append(delivery)
        return await marker.mark(delivery)

    with connected(database) as somebody, somebody.transaction():
        somebody.execute("lock table notify_worker.stored_deliveries in exclusive mode")
        alone = asyncio.create_task(marker.mark(first))
        await auntil("the first write is under way", lambda: relay.asked(MARK) == 1, within=5)
        together = [asyncio.create_task(ask(each)) for each in others]
        await auntil("the others ask", lambda: asking == others, within=5)

    written = await answers(alone, *together)

    assert all(written)
    assert marked(connection) == ids([first, *others])
    assert relay.asked(MARK) == 2


async def test_marks_one_after_the_other_are_one_write_each(connection: Connection, store: Store, relay: Relay) -> None:
    deliveries, marker = await leased(connection, store, 3), StartMarks(store)

    written = [await marker.mark(each) for each in deliveries]

    assert written == [True] * 3
    assert relay.asked(MARK) == 3


async def test_in_one_write_each_delivery_gets_its_own_answer(connection: Connection, store: Store) -> None:
    good, leased_elsewhere = await leased(connection, store, 2)
    (over,) = await leased(connection, store, 1, SHORT_LEASE)
    connection.await_end_of_lease(over.notification_id)
    marker = StartMarks(store)

    written = await answers(*map(marker.mark, (over, good, replace(leased_elsewhere, lease=uuid4()))))

    assert written == [False, True, False]
    assert marked(connection) == [good.id]


async def test_a_delivery_is_not_marked_under_an_ended_lease_beside_the_current_one(
    connection: Connection, store: Store
) -> None:
    (before,) = await leased(connection, store, 1, SHORT_LEASE)
    connection.await_end_of_lease(before.notification_id)
    (now,) = (await store.claim(before.worker_id, uuid4(), 1, {"default": 1000}, A_MINUTE)).deliveries
    assert now.id == before.id
    connection.execute("update notify_worker.notifications set due_at = now() + interval '1 minute'")
    marker = StartMarks(store)

    written = await answers(marker.mark(before), marker.mark(now))

    assert written == [False, True]


async def test_a_released_delivery_is_not_marked(connection: Connection, store: Store) -> None:
    released, still_leased = await leased(connection, store, 2)
    marker = StartMarks(store)

    await store.release(released.lease, [released.id])
    written = await answers(marker.mark(released), marker.mark(still_leased))

    assert written == [False, True]
    assert marked(connection) == [still_leased.id]


async def test_a_locked_delivery_is_not_waited_for(database: str, connection: Connection, store: Store) -> None:
    locked, free = await leased(connection, store, 2)
    marker = StartMarks(store)

    with connected(database) as somebody, somebody.transaction():
        somebody.execute("select from notify_worker.stored_deliveries where id = %s for update", [locked.id])
        async with asyncio.timeout(5):
            written = await answers(marker.mark(locked), marker.mark(free))

    assert written == [False, True]
    assert await marker.mark(locked)


async def test_where_the_database_is_away_nothing_is_marked_and_the_log_says_so(
    connection: Connection, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    async with Store(relay.conninfo) as store:
        deliveries, marker = await leased(connection, store, 3), StartMarks(store)

    written = await answers(*map(marker.mark, deliveries))

    assert written == [False, False, False]
    assert marked(connection) == []
    assert unsent(caplog) == [3]


async def test_a_mark_with_a_lost_answer_counts_as_not_written(
    connection: Connection, store: Store, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await leased(connection, store, 2)
    marker = StartMarks(store)
    relay.lose_the_answer_to(MARK)

    written = [await marker.mark(first), await marker.mark(second)]

    assert relay.has_lost(MARK)
    assert written == [False, True]
    assert unsent(caplog) == [1]
    assert await marker.mark(first)


async def test_a_database_that_refuses_the_write_leaves_all_of_it_unsent(
    connection: Connection, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    deliveries, marker = await leased(connection, store, 2), StartMarks(store)
    connection.execute("alter function notify_worker.mark_started rename to mark_of_yesterday")

    written = await answers(*map(marker.mark, deliveries))

    assert written == [False, False]
    assert unsent(caplog) == [2]


async def test_a_cancelled_waiter_cancels_no_other(
    database: str, connection: Connection, store: Store, relay: Relay
) -> None:
    deliveries, marker = await leased(connection, store, 3), StartMarks(store)
    with connected(database) as somebody, somebody.transaction():
        somebody.execute("lock table notify_worker.stored_deliveries in exclusive mode")
        waiting = [asyncio.create_task(marker.mark(each)) for each in deliveries]
        await auntil("the write is under way", lambda: relay.asked(MARK) == 1, within=5)
        waiting[0].cancel()

    assert await answers(*waiting[1:]) == [True, True]
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
