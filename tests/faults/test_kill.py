"""Workers are killed with requests in flight: nothing is lost, and no more is sent twice than was in flight."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.support.shop import REQUEST_TIMEOUT, Shop, a_shop, both_kinds
from tests.support.waiting import until

PICKED_UP_WITHIN = 5.0
"""Seconds after which the work of a dead worker goes on."""
LATENCY = 0.7
BUSY_FOR = 3.0
"""Seconds that a busy machine may take more: not to be rescued would cost a lease."""
STARTED_WITHIN = 2.0
"""Seconds that a process may take to come up on a busy machine; only then can it begin."""


@pytest.fixture
def slow_shop(server: str, template: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop whose FCM takes its time for each answer."""
    with a_shop(server, template, tmp_path, latency=LATENCY) as shop:
        yield shop


def sent_twice_at_most(shop: Shop) -> int:
    """How many requests FCM has read whose outcome is not recorded, now that the worker is dead."""
    recorded = shop.value("select coalesce(sum(requests), 0) from notify_worker.attempts")
    return shop.box.received - int(recorded)


@both_kinds
def test_a_worker_killed_with_200_in_flight_loses_nothing(slow_shop: Shop, kind: str) -> None:
    shop = slow_shop
    first = shop.start_worker(kind, NOTIFY_WORKER_CONCURRENCY=200)
    shop.notify_many(800)
    until("nearly 200 are in flight", lambda: shop.states()["sent"] > 0 and shop.box.in_flight > 150, within=30)

    first.kill()
    until("its sessions have ended", lambda: shop.backends() == [], within=5)
    at_most = sent_twice_at_most(shop)
    restarted = monotonic()
    shop.start_worker(kind, NOTIFY_WORKER_CONCURRENCY=200)

    until("all are sent", lambda: shop.all_sent(800), within=15)
    assert monotonic() - restarted < STARTED_WITHIN + PICKED_UP_WITHIN + REQUEST_TIMEOUT + BUSY_FOR
    assert shop.box.accepted - shop.box.doubles == 800
    assert shop.box.doubles <= at_most <= 300
    assert shop.unbalanced() == []


@both_kinds
def test_a_second_worker_finishes_the_work_of_a_killed_one(slow_shop: Shop, kind: str) -> None:
    shop = slow_shop
    for _ in range(2):
        shop.start_worker(kind, NOTIFY_WORKER_CONCURRENCY=100)
    shop.notify_many(400)
    until("a worker is in mid-batch", lambda: shop.states()["sent"] > 0 and shop.box.in_flight >= 100, within=15)

    shop.busy().kill()
    killed = monotonic()

    until("all are sent", lambda: shop.all_sent(400), within=15)
    assert monotonic() - killed < PICKED_UP_WITHIN + REQUEST_TIMEOUT + BUSY_FOR
    assert shop.box.accepted - shop.box.doubles == 400
    assert shop.box.doubles <= 200
    assert shop.unbalanced() == []
