"""A statement commits and its answer is lost: the worker repeats it, and nothing is done twice."""

from collections.abc import Iterator

import pytest

from notify_worker.dev.shop import Worker
from tests.support.relay import Relay
from tests.support.shop import LEASE, Shop, both_kinds
from tests.support.waiting import until

MANY = 250
"""More than a claim takes at once, and two batches of outcomes."""
CLAIM, RECORD = "notify_worker.claim(", "notify_worker.record("


@pytest.fixture
def relay(shop: Shop) -> Iterator[Relay]:
    """What stands between the shop's workers and its database."""
    with Relay(shop.conninfo) as relay:
        yield relay


def start_worker(shop: Shop, relay: Relay, kind: str = "notify-worker") -> Worker:
    """Start a worker that knows the database by the relay alone, and wait until it sleeps."""
    worker = shop.start_worker(kind, NOTIFY_WORKER_DATABASE_URL=relay.conninfo)
    until("the worker sleeps", shop.sleeps, within=10)
    return worker


def assert_each_was_sent_once(shop: Shop, count: int) -> None:
    (history,) = shop.rows(
        "select count(*) as rows, array_agg(distinct verdict) as verdicts from notify_worker.attempts"
    )
    assert history == {"rows": count, "verdicts": ["sent"]}
    assert shop.value("select array_agg(distinct attempts) from notify_worker.deliveries") == [1]
    assert (shop.box.received, shop.box.doubles) == (count, 0)
    assert shop.unbalanced() == []


@pytest.mark.parametrize("count", [1, MANY])
def test_a_record_with_a_lost_answer_is_repeated_and_applied_once(shop: Shop, relay: Relay, count: int) -> None:
    worker = start_worker(shop, relay)
    relay.lose_the_answer_to(RECORD)

    shop.notify_many(count)

    until("an answer is lost", lambda: relay.has_lost(RECORD), within=10)
    assert shop.states()["sent"] > 0, "what was lost is the answer, and not the record"
    until("all are sent, and asked for again", lambda: shop.all_sent(count) and relay.asked(RECORD) > 1, within=10)
    assert worker.stop() == 0
    assert_each_was_sent_once(shop, count)


@both_kinds
def test_a_claim_with_a_lost_answer_is_released_and_sent_soon(shop: Shop, relay: Relay, kind: str) -> None:
    start_worker(shop, relay, kind)
    relay.lose_the_answer_to(CLAIM)

    shop.notify_many(MANY)

    until("an answer is lost", lambda: relay.has_lost(CLAIM), within=10)
    until("all are sent, long before the lease ends", lambda: shop.all_sent(MANY), within=LEASE / 3)
    assert_each_was_sent_once(shop, MANY)
