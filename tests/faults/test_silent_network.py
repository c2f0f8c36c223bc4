"""The network goes silent or is slow while connections stay open: the worker waits, but not for ever."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic
from typing import Any

import psycopg
import pytest

from notify_worker.database.connections import answer_within, connect
from notify_worker.pipeline.heartbeat import HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, Heartbeat
from tests.support.relay import Relay
from tests.support.shop import COMMANDS, Shop
from tests.support.waiting import auntil, until

IMPATIENT = """
from notify_worker.database import connections
from notify_worker.pipeline import recorder
from notify_worker.database import store
connections.LIMITS["connect_timeout"] = "2"
connections.STATEMENT_WITHIN = recorder.STATEMENT_WITHIN = 2.0
connections.ANSWER_WITHIN = store.ANSWER_WITHIN = 3.0
from notify_worker.cli.main import main
main(["worker"])
"""
"""A usual worker, but it waits 3 s for an answer and not 18, so that these tests do not take minutes."""
PATIENT: dict[str, Any] = {"NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS": 10, "NOTIFY_WORKER_LEASE_SECONDS": 68}
LONG_ENOUGH = 15.0
"""Seconds in which everything that waited has given up and reconnected."""
GRACE = 29.0
"""Seconds from SIGTERM; platforms kill after 30."""
HEARD_WITHIN = timedelta(milliseconds=300)


@pytest.fixture
def relay(shop: Shop) -> Iterator[Relay]:
    """What stands between the shop's workers and its database."""
    with Relay(shop.conninfo) as relay:
        yield relay


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "impatient", [sys.executable, "-c", IMPATIENT])


def assert_wakeups_arrive(shop: Shop, *, times: int = 4) -> None:
    """A lone commit wakes the worker every time: a poll alone would come half a second late on average."""
    for number in range(times):
        until("the worker sleeps", shop.sleeps, within=10)
        shown, committed_at = len(shop.box.shown), shop.notify_at(f"app:heard-{number}")
        until("it is shown", lambda before=shown: len(shop.box.shown) > before, within=5)  # type: ignore[misc]
        assert shop.box.shown[-1].at - committed_at < HEARD_WITHIN


def test_answers_during_a_silent_network_are_recorded_once(shop: Shop, relay: Relay) -> None:
    worker = shop.start_worker("impatient", NOTIFY_WORKER_DATABASE_URL=relay.conninfo, **PATIENT)
    shop.notify_many(150, "hang1")
    until("a hundred hang", lambda: shop.box.in_flight == 100, within=10)

    with relay.silence():
        until("FCM has answered", lambda: shop.box.in_flight == 0, within=10)
        until("the worker has noticed", lambda: shop.said("event=record_failed"), within=LONG_ENOUGH)
        assert not worker.has_left

    until("all are sent", lambda: shop.all_sent(150), within=LONG_ENOUGH)
    assert (shop.box.received, shop.box.doubles) == (150, 0)
    assert shop.unbalanced() == []
    assert worker.stop() == 0
    assert not shop.said("ERROR notify_worker")
    assert not shop.said("ERROR event=")


def test_after_a_silence_an_idle_worker_sends_what_was_committed_and_listens_again(shop: Shop, relay: Relay) -> None:
    worker = shop.start_worker("impatient", NOTIFY_WORKER_DATABASE_URL=relay.conninfo, **PATIENT)
    shop.notify("app:first")
    until("the first is sent", lambda: shop.all_sent(1), within=10)
    until("the worker sleeps", shop.sleeps, within=10)
    deaf = shop.listeners()

    with relay.silence():
        until("the worker has noticed", lambda: shop.said("event=poll_failed"), within=LONG_ENOUGH)
        shop.notify("app:during")

    until("what was committed meanwhile is sent", lambda: shop.all_sent(2), within=LONG_ENOUGH)
    until("it listens again", lambda: bool(shop.listeners() - deaf), within=LONG_ENOUGH)
    assert_wakeups_arrive(shop)
    assert worker.stop() == 0


def test_a_worker_stopped_while_the_network_is_silent_exits_before_a_platform_kills_it(
    shop: Shop, relay: Relay
) -> None:
    worker = shop.start_worker("impatient", NOTIFY_WORKER_DATABASE_URL=relay.conninfo, **PATIENT)
    until("the worker sleeps", shop.sleeps, within=10)

    with relay.silence():
        worker.terminate()

        until("it has left", lambda: worker.has_left, within=GRACE)


async def test_a_silent_session_raises_an_operational_error_and_is_closed(shop: Shop, relay: Relay) -> None:
    connection = await connect(relay.conninfo)
    with relay.silence():
        began = monotonic()

        with pytest.raises(psycopg.OperationalError):
            async with answer_within(connection, 0.2):
                await connection.execute("select 1")

        assert monotonic() - began < 2
        assert connection.closed


async def test_a_worker_with_a_silent_session_starts_no_more_requests_and_registers_again(
    shop: Shop, relay: Relay
) -> None:
    heartbeat = Heartbeat(relay.conninfo, timedelta(seconds=20))
    previous = await heartbeat.ensure_registered()
    assert heartbeat.holds(previous)

    with relay.silence():
        await auntil(
            "it holds nothing", lambda: not heartbeat.holds(previous), within=HEARTBEAT_INTERVAL + HEARTBEAT_TIMEOUT + 1
        )

    await auntil("it has another id", lambda: heartbeat.worker_id != previous, within=LONG_ENOUGH)
    assert heartbeat.holds(heartbeat.worker_id)
    assert heartbeat.reconnected_ago is not None
    await heartbeat.close(unregister=True)


SLOW = 0.15
"""Seconds that each message takes on a slow network, each way."""


@pytest.mark.slow
def test_a_worker_far_from_its_database_starts_and_sends(shop: Shop) -> None:
    with Relay(shop.conninfo, delay=SLOW) as far:
        worker = shop.launch(NOTIFY_WORKER_DATABASE_URL=far.conninfo, **PATIENT)
        until("it listens", lambda: worker.has_left or bool(shop.listeners()), within=30)
        assert not worker.has_left

        shop.notify_many(50)

        until("all are sent", lambda: shop.all_sent(50), within=30)
        assert shop.box.doubles == 0
        assert worker.stop() == 0
