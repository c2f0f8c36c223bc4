"""A worker's clock is ten minutes off: nothing changes, since it sends ages that the database subtracts.

A `sitecustomize` gives its process another time of day; `time.monotonic` is left alone. So is Google's own code: it signs
the time into its token requests, and Google refuses a wrong one.
"""

import json
import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.shop import Shop, a_shop
from tests.support.waiting import until

AHEAD, BEHIND = timedelta(minutes=10), timedelta(minutes=-10)
OTHER_TIME = """
import datetime, os, sys, time

OFF = float(os.environ["CLOCK_IS_OFF_BY"])
right, right_ns, right_datetime = time.time, time.time_ns, datetime.datetime


def off():
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return 0.0 if caller.startswith(("google", "notify_worker.senders.credentials")) else OFF


class Kind(type):
    def __instancecheck__(cls, value):
        return isinstance(value, right_datetime)


class OtherTime(right_datetime, metaclass=Kind):
    __slots__ = ()

    @classmethod
    def now(cls, tz=None):
        return right_datetime.now(tz) + datetime.timedelta(seconds=off())

    @classmethod
    def utcnow(cls):
        return right_datetime.utcnow() + datetime.timedelta(seconds=off())


time.time = lambda: right() + off()
time.time_ns = lambda: right_ns() + int(off() * 1e9)
datetime.datetime = OtherTime
"""

# Bounds of half a minute: far below the ten that a wrong clock would show, and far above what a busy machine takes.
both_ways = pytest.mark.parametrize("shop", [AHEAD, BEHIND], ids=["ahead", "behind"], indirect=True)


@pytest.fixture
def shop(
    request: pytest.FixtureRequest, server: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """A shop whose workers' clocks are off."""
    folder = tmp_path / "other_time"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OTHER_TIME)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("CLOCK_IS_OFF_BY", str(request.param.total_seconds()))
    with a_shop(server, template, tmp_path) as shop:
        yield shop
        assert abs(says_it_is(shop) - datetime.now() - request.param) < timedelta(minutes=2), "the clock was not off"


def says_it_is(shop: Shop) -> datetime:
    """The time of the workers' first log line."""
    first = re.search(r"^(\S+ \S+),", shop.log.read_text(), re.MULTILINE)
    assert first
    return datetime.fromisoformat(first[1])


def now(shop: Shop) -> datetime:
    """What the database's clock says."""
    moment: datetime = shop.value("select clock_timestamp()")
    return moment


@both_ways
def test_a_commit_is_sent_and_its_history_has_the_databases_times(shop: Shop) -> None:
    worker = shop.start_worker()
    before = now(shop)

    number = shop.notify("hang1:slow")

    until("it is sent", lambda: shop.state(number) == "sent", within=30)
    after = now(shop)
    (attempt,) = shop.attempts(number)
    assert before < attempt["started_at"] < attempt["finished_at"] < after
    assert timedelta(seconds=0.9) < attempt["finished_at"] - attempt["started_at"] < timedelta(seconds=30)
    assert before < shop.value("select settled_at from notify_worker.notifications") < after
    seen = shop.rows("select clock_timestamp() - last_heartbeat_at as ago, started_at from notify_worker.workers")
    assert [each["ago"] < timedelta(seconds=30) for each in seen] == [True]
    assert worker.stop() == 0


@both_ways
def test_a_lease_and_a_retry_interval_last_as_long_as_configured(shop: Shop) -> None:
    shop.connection.execute("update notify_worker.projects set first_retry_after = '2 s'")
    shop.start_worker()

    failing = shop.notify("503:failing")
    until("it is leased", lambda: shop.leased() == 1, within=5)
    lease = shop.value("select due_at - leased_at from notify_worker.notifications where id = %s", failing)
    until("its first attempt is over", lambda: bool(shop.attempts(failing)), within=30)
    until("its second attempt is over", lambda: len(shop.attempts(failing)) > 1, within=30)

    assert lease == timedelta(seconds=20)
    first, second = shop.attempts(failing)[:2]
    assert timedelta(seconds=2) <= first["retry_at"] - first["finished_at"] < timedelta(seconds=3)
    assert first["retry_at"] <= second["started_at"] < first["retry_at"] + timedelta(seconds=30)


@both_ways
def test_send_at_and_expires_at_follow_the_databases_clock(shop: Shop) -> None:
    shop.start_worker()
    later = shop.notify("app:later", send_at=now(shop) + timedelta(seconds=2))
    lasts = shop.notify("app:lasts", expires_at=now(shop) + timedelta(minutes=5))
    lapsed = shop.notify("app:lapsed", expires_at=now(shop) - timedelta(minutes=5))

    until("all are settled", lambda: shop.states() == {"sent": 2, "expired": 1}, within=30)

    assert shop.state(lasts) == "sent"
    assert shop.attempts(lapsed) == []
    (attempt,) = shop.attempts(later)
    due = shop.value("select send_at from notify_worker.notifications where id = %s", later)
    assert due <= attempt["started_at"] < due + timedelta(seconds=30)


@both_ways
def test_the_message_expiry_follows_the_databases_clock(shop: Shop) -> None:
    shop.connection.execute("update notify_worker.projects set sender = 'console'")
    expires_at = now(shop) + timedelta(hours=1)
    shop.start_worker()

    shop.notify("ios:phone", expires_at=expires_at)

    until("it is sent", lambda: shop.states() == {"sent": 1}, within=30)
    message = printed(shop)
    assert int(message["apns"]["headers"]["apns-expiration"]) == pytest.approx(expires_at.timestamp(), abs=1)
    assert float(message["android"]["ttl"].removesuffix("s")) == pytest.approx(3600, abs=60)
    assert float(message["webpush"]["headers"]["TTL"]) == pytest.approx(3600, abs=60)


def printed(shop: Shop) -> dict[str, Any]:
    """The message that the console's sender has printed."""
    (line,) = [line for line in shop.log.read_text().splitlines() if line.startswith("{")]
    message: dict[str, Any] = json.loads(line)
    return message


@both_ways
def test_a_dead_worker_is_found_dead_within_seconds_and_a_living_one_is_not(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shop.start_worker()
    monkeypatch.setenv("CLOCK_IS_OFF_BY", "0")
    shop.start_worker()  # beside one whose clock is right
    shop.notify_many(20, "hang1.8")
    until("all hang", lambda: shop.box.in_flight == 20, within=30)
    assert_nobody_is_dead(shop)
    until("all are sent", lambda: shop.all_sent(20), within=30)
    assert shop.box.doubles == 0

    first.kill()
    until("it is found dead", lambda: len(shop.rows("select from notify_worker.workers")) == 1, within=8)


def assert_nobody_is_dead(shop: Shop) -> None:
    assert shop.value("select count(*) from notify_worker.stored_workers where ended_at is not null") == 0


@both_ways
def test_a_retry_after_date_is_measured_by_the_servers_clock(shop: Shop) -> None:
    shop.connection.execute("update notify_worker.projects set first_retry_after = '1 s'")
    shop.start_worker()

    asked = shop.notify("datelater503:asked")

    until("it has been tried", lambda: bool(shop.attempts(asked)), within=30)
    (attempt,) = shop.attempts(asked)
    assert timedelta(seconds=28) < attempt["retry_at"] - attempt["finished_at"] < timedelta(seconds=40)
