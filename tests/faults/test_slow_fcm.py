"""FCM takes nearly the request timeout, and more is due than there are slots: nothing is sent twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from notify_worker.settings import Settings
from tests.support.shop import LEASE, REQUEST_TIMEOUT, Shop, a_shop
from tests.support.waiting import until

WORKERS = 2
A_CLAIM = 100
"""Deliveries claimed beyond the slots: with few slots most of them can't start before half the lease is over."""


@pytest.fixture
def shop(server: str, template: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(server, template, tmp_path) as shop:
        yield shop


def test_deliveries_that_a_short_lease_has_no_time_for_are_released_and_sent_once(shop: Shop) -> None:
    slots, due = 10, A_CLAIM + 20
    shop.box.switch(latency=0.8 * REQUEST_TIMEOUT)

    send_all(shop, due, within=25, NOTIFY_WORKER_CONCURRENCY=slots, NOTIFY_WORKER_LEASE_SECONDS=LEASE)

    assert_each_was_sent_once(shop, due)


@pytest.mark.slow
def test_two_thousand_are_sent_once_while_each_request_takes_fourteen_seconds(shop: Shop) -> None:
    usual = Settings()
    shop.box.switch(latency=14)

    send_all(
        shop,
        2_000,
        within=240,
        NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS=usual.request_timeout.total_seconds(),
        NOTIFY_WORKER_LEASE_SECONDS=usual.lease.total_seconds(),
    )

    assert_each_was_sent_once(shop, 2_000)


def send_all(shop: Shop, due: int, *, within: float, **settings: object) -> None:
    for _ in range(WORKERS):
        shop.start_worker("notify-worker", **settings)
    shop.notify_many(due)

    until("all are sent", lambda: shop.all_sent(due), within=within)


def assert_each_was_sent_once(shop: Shop, due: int) -> None:
    assert (shop.box.received, shop.box.doubles) == (due, 0)
    (history,) = shop.rows(
        """
        select
            count(*) as rows,
            sum(requests) as requests,
            array_agg(distinct verdict) as verdicts,
            count(distinct worker) as workers,
            bool_or(late) as late
        from notify_worker.attempts
        """
    )
    assert history == {"rows": due, "requests": due, "verdicts": ["sent"], "workers": WORKERS, "late": False}
    assert shop.rows("select * from notify_worker.incidents") == []
    assert shop.unbalanced() == []
