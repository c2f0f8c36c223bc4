"""Every kind of fault at once, each at its own addresses: a notification's fate is known by its address."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from notify_worker.settings import QUICK_REQUESTS
from tests.support.shop import Shop
from tests.support.waiting import until

WORKERS = 2
REQUEST_TIMEOUT = 5.0
"""Seconds; only a request that hangs takes this long, on a slow machine too."""
LEASE = 40.0
MAX_ATTEMPTS = 3
IN_ALL = 1_000
STEP = 137
"""Shares no factor with 1,000: it visits every place, and neighbours lie far apart."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a notification whose address begins so. Each has a receiver with one device."""

    address: str
    in_a_thousand: int
    state: str
    requests: range
    shown: int = 0
    on_unknown: str = "resend"
    verdicts: frozenset[str] = field(default_factory=frozenset)
    """What its attempts may have come to besides `sent`."""
    waits: timedelta | None = None
    retired: bool = False


def exactly(requests: int) -> range:
    return range(requests, requests + 1)


UNKNOWN = frozenset({"unknown"})
FATES = (
    # 5xx: 80 in a thousand. Those that end after one or two requests may be retried quickly, or later.
    Fate("once503", 20, "sent", exactly(2), shown=1, verdicts=UNKNOWN),
    Fate("twice500", 15, "sent", exactly(3), shown=1, verdicts=UNKNOWN),
    Fate("oncehtml502", 15, "sent", exactly(2), shown=1, verdicts=UNKNOWN),
    Fate("once504", 15, "sent", exactly(2), shown=1, verdicts=UNKNOWN),
    Fate("503", 5, "failed", range(MAX_ATTEMPTS, MAX_ATTEMPTS * QUICK_REQUESTS + 1), verdicts=UNKNOWN),
    Fate("503", 5, "held", exactly(1), on_unknown="hold", verdicts=UNKNOWN),
    Fate("later503", 5, "pending", range(1, MAX_ATTEMPTS), verdicts=UNKNOWN, waits=timedelta(seconds=30)),
    # The device, or the message.
    Fate("dead", 30, "unreachable", exactly(1), verdicts=frozenset({"unregistered"}), retired=True),
    Fate("malformed", 10, "unreachable", exactly(1), verdicts=frozenset({"unregistered"}), retired=True),
    Fate("mismatch", 15, "failed", exactly(1), verdicts=frozenset({"failed"})),
    Fate("invalid", 10, "failed", exactly(1), verdicts=frozenset({"failed"})),
    Fate("devicequota", 10, "pending", range(1, 3), verdicts=frozenset({"retry"}), waits=timedelta(seconds=60)),
    # No answer, or half of one.
    Fate("oncedrop", 15, "sent", exactly(2), shown=1, verdicts=UNKNOWN),
    Fate("onceaccepteddrop", 15, "sent", exactly(2), shown=2, verdicts=UNKNOWN),
    Fate("accepteddrop", 3, "held", exactly(1), shown=1, on_unknown="hold", verdicts=UNKNOWN),
    Fate("oncecut200", 10, "sent", exactly(1), shown=1),
    Fate("oncehang", 1, "sent", exactly(2), shown=1, verdicts=UNKNOWN),
    Fate("onceacceptedhang", 1, "sent", exactly(2), shown=2, verdicts=UNKNOWN),
)
WELL = Fate("app", IN_ALL - sum(fate.in_a_thousand for fate in FATES), "sent", exactly(1), shown=1)
BY_PLACE = [fate for fate in (*FATES, WELL) for _ in range(fate.in_a_thousand)]


@pytest.mark.parametrize("many", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_with_a_fifth_of_mixed_faults_each_notification_ends_as_its_answers_say(shop: Shop, many: int) -> None:
    fates = dict(drawn(many))
    shop.connection.execute(
        """
        update notify_worker.projects
        set max_attempts = %s, first_retry_after = '1 second', longest_retry_after = '2 seconds'
        """,
        [MAX_ATTEMPTS],
    )
    notify(shop, fates)
    for _ in range(WORKERS):
        shop.start_worker(NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS=REQUEST_TIMEOUT, NOTIFY_WORKER_LEASE_SECONDS=LEASE)

    waiting = {address for address, fate in fates.items() if fate.waits}
    until("all but those that wait have ended", lambda: all_have_ended(shop, waiting), within=40 + many / 50)

    assert ends(shop) == {address: (fate.state, fate.on_unknown, fate.retired) for address, fate in fates.items()}
    attempts = attempts_by_address(shop)
    shown = Counter(each.address for each in shop.box.shown)
    never_left: Counter[str] = Counter()
    for address, fate in fates.items():
        requests = shop.box.requests_for(address)
        assert requests in fate.requests, f"{address}: {requests} requests"
        never_left[address] = sum(attempt["requests"] for attempt in attempts[address]) - requests
        assert shown[address] == fate.shown, f"{address} was shown {shown[address]} times"
        assert_attempts_are_as_the_table_says(attempts[address], fate, address)
    assert min(never_left.values()) == 0, "FCM got more than was written down"
    assert never_left.total() <= many / 100, "a busy machine may be slow to accept a connection, now and then"
    assert shop.box.received == sum(shop.box.requests_for(address) for address in fates)
    assert shop.box.doubles == sum(fate.shown == 2 for fate in fates.values())
    assert shop.value("select count(distinct worker) from notify_worker.attempts") == WORKERS
    assert shop.rows("select * from notify_worker.incidents") == []
    assert shop.unbalanced() == []


def drawn(many: int) -> Iterator[tuple[str, Fate]]:
    """Draw an address for each notification, the same ones each time, and the fates well mixed."""
    for number in range(many):
        fate = BY_PLACE[number * STEP % IN_ALL]
        yield f"{fate.address}:phone-{number}", fate


def notify(shop: Shop, fates: dict[str, Fate]) -> None:
    """Register a device for each address, and commit one notification for its receiver, all in one statement."""
    with shop.connection.cursor() as cursor:
        cursor.execute(
            """
            select notify_worker.register_device(address, 'token', address, 'android')
            from unnest(%s::text[]) as each (address)
            """,
            [list(fates)],
        )
        cursor.execute(
            """
            insert into notify_worker.notifications (receiver_id, title, on_unknown)
            select address, 'Thank you', on_unknown
            from unnest(%s::text[], %s::text[]) as each (address, on_unknown)
            """,
            [list(fates), [fate.on_unknown for fate in fates.values()]],
        )


def all_have_ended(shop: Shop, waiting: set[str]) -> bool:
    """Return whether only those that wait are pending, each after an attempt. It counts first, as it is called often."""
    if shop.value("select count(*) from notify_worker.notifications where state = 'pending'") > len(waiting):
        return False
    pending = shop.rows(
        """
        select
            receiver_id,
            exists (select from notify_worker.attempts where notification_id = notification.id) as tried
        from notify_worker.notifications as notification
        where state = 'pending'
        """
    )
    return all(each["tried"] for each in pending) and {each["receiver_id"] for each in pending} == waiting


def ends(shop: Shop) -> dict[str, tuple[str, str, bool]]:
    """By address: the state, its `on_unknown`, and whether its device is retired."""
    return {
        row["address"]: (row["state"], row["on_unknown"], row["retired"])
        for row in shop.rows(
            """
            select device.address, notification.state, notification.on_unknown, device.retired_at is not null as retired
            from notify_worker.notifications as notification
            join notify_worker.devices as device using (receiver_id)
            """
        )
    }


def attempts_by_address(shop: Shop) -> dict[str, list[dict[str, Any]]]:
    attempts: dict[str, list[dict[str, Any]]] = {}
    for row in shop.rows(
        """
        select
            notification.receiver_id as address, attempt.number, attempt.verdict, attempt.requests,
            attempt.retry_at - attempt.finished_at as retried_after
        from notify_worker.attempts as attempt
        join notify_worker.notifications as notification
            on notification.id = attempt.notification_id
        order by attempt.delivery_id, attempt.number
        """
    ):
        attempts.setdefault(row["address"], []).append(row)
    return attempts


def assert_attempts_are_as_the_table_says(attempts: list[dict[str, Any]], fate: Fate, address: str) -> None:
    """Each attempt that was not sent has an expected verdict, and the next came no sooner than it may."""
    assert [attempt["number"] for attempt in attempts] == list(range(1, len(attempts) + 1)), address
    *earlier, last = [attempt["verdict"] for attempt in attempts]
    assert set(earlier) <= fate.verdicts, address
    assert last == "sent" if fate.state == "sent" else last in fate.verdicts, f"{address} came to {last}"
    assert len(attempts) <= MAX_ATTEMPTS, address
    if fate.waits:
        assert all(fate.waits <= attempt["retried_after"] <= 1.3 * fate.waits for attempt in attempts), address
