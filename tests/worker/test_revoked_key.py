"""A revoked key, an API that is switched off, an outage: during a backlog, and until it is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from notify_worker import sandbox
from notify_worker.pipeline.answer_stats import LATEST
from notify_worker.sandbox.switches import Changes
from tests.support.shop import Row, Shop, a_shop
from tests.support.waiting import until

BACKLOG = 2_000
SLOTS = 20
WORKERS = 2
PROBES = 3
PAUSED_WITHIN = 5.0
LATENCY = 0.05
"""Seconds: so that all slots are taken when it happens, and most of the backlog is still to come."""

REVOKED: Changes = {"revoked": True, "refuse_grants": True}
ACCEPTED_AGAIN: Changes = {"revoked": None, "refuse_grants": None}
API_OFF: Changes = {"fail": {"apidisabled": 1.0}}
API_ON: Changes = {"fail": None}
OUTAGE: Changes = {"fail": {"503": 1.0}}


@pytest.fixture
def shop(server: str, template: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop whose FCM takes its time."""
    with a_shop(server, template, tmp_path, latency=LATENCY) as shop:
        shop.connection.execute("update notify_worker.projects set first_retry_after = '1 second'")
        yield shop


@pytest.mark.parametrize(
    ("happens", "recovers", "reason"),
    [(REVOKED, ACCEPTED_AGAIN, "invalid_grant"), (API_OFF, API_ON, "SERVICE_DISABLED")],
    ids=["the key is revoked", "the API is switched off"],
)
def test_a_project_wide_failure_pauses_the_project_and_costs_no_attempt(
    shop: Shop, happens: Changes, recovers: Changes, reason: str
) -> None:
    start_sending(shop)

    shop.box.switch(**happens)
    before = shop.box.received
    until("the project is paused", lambda: bool(pauses(shop)), within=PAUSED_WITHIN)
    for _ in range(PROBES):
        probe(shop)

    (pause,) = pauses(shop)
    assert (pause["by"], pause["ended_at"]) == ("worker", None)
    assert reason in pause["reason"]
    assert shop.box.received - before <= SLOTS * WORKERS + PROBES
    assert shop.value("select max(attempts) from notify_worker.deliveries where state = 'pending'") == 0
    assert_all_is_sent_after_the_next_probe(shop, recovers)


def test_a_new_key_at_the_same_path_is_used_without_a_restart(shop: Shop, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.write_bytes(shop.box.credentials.read_bytes())
    start_sending(shop, GOOGLE_APPLICATION_CREDENTIALS=key)
    shop.box.switch(**REVOKED)
    until("the project is paused", lambda: bool(pauses(shop)), within=PAUSED_WITHIN)
    until("nothing is in flight", lambda: shop.leased() == 0, within=5)
    sent = shop.states()["sent"]
    port = int(shop.box.url.rpartition(":")[2])
    shop.box.stop()

    with sandbox.start(tmp_path / "new.json", port=port) as new:  # knows neither the old key nor its tokens
        shop.box = new
        probe(shop)
        assert new.accepted == 0, "the old key was accepted"
        key.write_bytes(new.credentials.read_bytes())
        make_a_probe_due(shop)

        until("the rest is sent", lambda: shop.states() == {"sent": BACKLOG}, within=40)
        assert (new.accepted, new.doubles) == (BACKLOG - sent, 0)
    assert [pause["ended_at"] is not None for pause in pauses(shop)] == [True]
    assert shop.value("select array_agg(distinct attempts) from notify_worker.deliveries") == [1]
    assert shop.unbalanced() == []


def test_an_outage_from_the_start_costs_few_requests_and_attempts(shop: Shop) -> None:
    shop.box.switch(**OUTAGE)
    start_workers(shop)

    shop.notify_many(BACKLOG)
    until("the project is paused", lambda: bool(pauses(shop)), within=PAUSED_WITHIN)
    until("nothing is in flight", lambda: shop.leased() == 0, within=5)
    before = shop.box.received
    for _ in range(PROBES):
        probe(shop)

    assert before <= 3 * SLOTS * WORKERS, "an attempt is at most three requests"
    assert shop.box.received - before <= PROBES
    assert shop.value("select sum(attempts) from notify_worker.deliveries") <= 2 * SLOTS
    assert_all_is_sent_after_the_next_probe(shop, {"fail": None})


def test_an_outage_in_the_middle_of_a_backlog_pauses_the_project_within_seconds(shop: Shop) -> None:
    start_sending(shop)

    shop.box.switch(**OUTAGE)
    before = shop.box.received
    until("the project is paused", lambda: bool(pauses(shop)), within=PAUSED_WITHIN)
    until("nothing is in flight", lambda: shop.leased() == 0, within=5)

    assert shop.box.received - before <= WORKERS * (LATEST + 3 * SLOTS)
    assert shop.value("select max(attempts) from notify_worker.deliveries") == 1
    assert_all_is_sent_after_the_next_probe(shop, {"fail": None})


def start_workers(shop: Shop, **settings: object) -> None:
    for _ in range(WORKERS):
        shop.start_worker("notify-worker", NOTIFY_WORKER_CONCURRENCY=SLOTS, **settings)


def start_sending(shop: Shop, **settings: object) -> None:
    """Let a backlog be sent, and return while most of it is still to come."""
    start_workers(shop, **settings)
    shop.notify_many(BACKLOG)
    until("a tenth is sent", lambda: shop.box.accepted >= BACKLOG / 10, within=10)


def pauses(shop: Shop) -> list[Row]:
    return shop.rows("select * from notify_worker.incidents where scope = 'project' order by began_at")


def probe(shop: Shop) -> None:
    """Make one probe, and wait until it has failed."""
    made = probes(shop)
    make_a_probe_due(shop)
    until("a probe is made", lambda: probes(shop) == made + 1, within=5)
    until("it is over", lambda: shop.leased() == 0, within=5)


def probes(shop: Shop) -> int:
    return int(shop.value("select probe_count from notify_worker.open_incidents"))


def make_a_probe_due(shop: Shop) -> None:
    """Set the next probe to now, so that no test waits for it."""
    shop.connection.execute(
        "update notify_worker.stored_incidents set next_probe_at = clock_timestamp() where ended_at is null"
    )


def assert_all_is_sent_after_the_next_probe(shop: Shop, recovers: Changes) -> None:
    shop.box.switch(**recovers)
    make_a_probe_due(shop)

    until("all is sent", lambda: shop.all_sent(BACKLOG), within=40)
    assert all(pause["ended_at"] for pause in pauses(shop))
    assert shop.box.doubles == 0
    assert shop.unbalanced() == []
