"""Everything that can happen to notifications, in any order: the SQL against a plain model of it, on a real database.

The first half is the model: what CONTRACT.md says of states, leases, history, devices and pauses, in Python and in memory. The second
half does the same things to both and compares them after each step. Nothing sleeps: time passes by setting back every moment that
the database holds. Whatever ends, ends half a minute off the full minutes in which time passes here, so that the seconds that a test
takes decide nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from psycopg.errors import ObjectInUse
from psycopg.sql import SQL, Identifier

from tests import store_words

MINUTE = 60.0
LEASE = 9.5 * MINUTE
EXPIRES_AFTER = 24.5 * 60 * MINUTE
APNS_WAIT = 15 * MINUTE
TICK = 1e-6

SETTLED = {"sent", "failed", "expired", "cancelled", "unreachable"}
GIVEN_UP = {"failed", "expired", "cancelled", "held"}
"""What `retry` puts back in line."""

PROJECTS = ("default", "shop")
RECEIVERS = ("ada", "bob")
ADDRESSES = ("fcm:1", "fcm:2", "fcm:3", "fcm:4")
PLATFORMS = ("android", "ios", None)


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class Device:
    """Where a receiver can be reached. Its address belongs to whoever registered it last."""

    receiver: str
    platform: str | None
    registered: float
    live: bool = True
    followed_by: str | None = None


@dataclass(eq=False)
class Delivery:
    """One notification to one address."""

    address: str
    kind: str
    platform: str | None
    due: float
    state: str = "pending"
    unregistered: bool = False
    """It failed since its address is gone."""
    attempts: int = 0
    """How many rows of the history count since it was last put back in line."""
    marked_under: str | None = None
    """The lease under which a request of it was about to begin."""


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt, as its worker says it."""

    verdict: str
    counts: bool = True
    retry_in: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of the history."""

    delivery: Delivery
    outcome: Outcome
    recorded: float
    late: bool = False


@dataclass(eq=False)
class Lease:
    """Under this token a worker holds a notification until then: those deliveries of it that were due."""

    token: str
    worker: "Worker"
    ends: float
    out: list[Delivery]
    recorded: dict[Delivery, Row] = field(default_factory=dict)
    """What the history holds for it already."""


@dataclass(eq=False)
class Notification:
    """The wish to tell somebody something, once."""

    id: int
    project: str
    receiver: str | None
    address: str | None
    kind: str | None
    campaign: str | None
    hold: bool
    created: float
    due: float
    expires: float | None = None
    state: str = "pending"
    deliveries: list[Delivery] = field(default_factory=list)
    expanded: bool = False
    lease: Lease | None = None
    cancelled: bool = False
    retried: float = 0.0

    def __repr__(self) -> str:
        return f"<notification {self.id}>"

    @property
    def expiry(self) -> float:
        return self.expires or max(self.created, self.retried) + EXPIRES_AFTER

    def in_state(self, *states: str) -> list[Delivery]:
        return [delivery for delivery in self.deliveries if delivery.state in states]

    def derived(self) -> str:
        """The truth table of CONTRACT.md: the first line that fits."""
        for state in ("pending", "held", "sent"):
            if self.in_state(state):
                return state
        if self.cancelled:
            return "cancelled"
        if all(delivery.state == "failed" and delivery.unregistered for delivery in self.deliveries):
            return "unreachable"
        return next((state for state in ("failed", "expired") if self.in_state(state)), "cancelled")


@dataclass(eq=False)
class Worker:
    """A worker and its session; a dead one until somebody buries it."""

    words: store_words.Worker
    session: psycopg.Connection
    alive: bool = True

    def __repr__(self) -> str:
        return f"<worker {self.words.id}{'' if self.alive else ', dead'}>"


@dataclass(eq=False)
class Hand:
    """A delivery in a worker's hands: what it was given by a claim, and at last what became of it."""

    notification: Notification
    delivery: Delivery
    address: str
    lease: str
    worker: Worker
    id: int
    began: float
    outcome: Outcome | None = None
    given_back: bool = False

    def __repr__(self) -> str:
        return f"<delivery {self.id} of {self.notification} under {self.lease[:4]}, {self.worker}>"


@dataclass(eq=False)
class Incident:
    """A pause that workers begin: topics, until a time; or iOS and web, until a probe gets through."""

    project: str
    scope: str
    until: float

    @property
    def probed(self) -> bool:
        return self.scope == "apns_web"

    def stops(self, delivery: Delivery) -> bool:
        return delivery.kind == "topic" if self.scope == "topics" else delivery.platform == "ios"


class Model:
    """The world as CONTRACT.md says that it is."""

    def __init__(self) -> None:
        self.time = 0.0
        self.notifications: list[Notification] = []
        self.devices: dict[tuple[str, str], Device] = {}
        self.campaigns: dict[str, bool] = {}
        """Whether it is retired."""
        self.history: list[Row] = []
        self.known: set[tuple[Delivery, str]] = set()
        """An outcome is known by its delivery and its lease."""
        self.paused: set[str] = set()
        self.incidents: list[Incident] = []

    def now(self) -> float:
        """As in the database, no two moments are the same."""
        self.time += TICK
        return self.time

    # What the application does

    def register(self, project: str, receiver: str, address: str, platform: str | None, replaces: str | None) -> None:
        before = self.devices.get((project, address))
        self.devices[project, address] = Device(receiver, platform or (before and before.platform), self.now())
        if replaces in (None, address) or (project, replaces) not in self.devices:
            return
        for (of_project, known), device in self.devices.items():
            if of_project == project and known != address and replaces in (known, device.followed_by):
                device.live = False
                device.followed_by = address

    def cancel(self, notification: Notification) -> bool:
        if notification.state not in ("pending", "held"):
            return False
        nothing_left = (
            notification.state == "pending"
            and notification.lease is None
            and not any(
                row.delivery in notification.deliveries and row.outcome.verdict in ("sent", "unknown")
                for row in self.history
            )
        )
        notification.cancelled = True
        if not notification.deliveries:
            notification.state = "cancelled"
        for delivery in notification.in_state("held"):
            delivery.state = "cancelled"
        self.settle(notification)
        return nothing_left

    def retry(self, notification: Notification, only: Delivery | None = None) -> int:
        again = [
            delivery
            for delivery in notification.in_state(*GIVEN_UP)
            if only in (None, delivery) and self.reaches(notification, delivery)
        ]
        for delivery in again:
            delivery.state, delivery.attempts, delivery.due = "pending", 0, self.now()
        if notification.state == "pending":
            if not again:
                return 0
        elif only is None and notification.expanded:
            again += self.add_deliveries(notification)
        if notification.expanded and not again or only and not again:
            return 0
        now = self.now()
        notification.due = min(now, notification.due) if notification.state == "pending" else now
        if notification.expires is not None and notification.expires <= now:
            notification.expires = None
        notification.state, notification.retried, notification.cancelled = "pending", now, False
        return len(again)

    def reaches(self, notification: Notification, delivery: Delivery) -> bool:
        """Whether the delivery's address is still the receiver's."""
        device = self.devices.get((notification.project, delivery.address))
        return notification.receiver is None or bool(device and device.live and device.receiver == notification.receiver)

    def resume(self, project: str) -> None:
        self.paused.discard(project)
        for incident in [each for each in self.incidents if each.project == project]:
            self.end(incident)

    def begin(self, project: str, scope: str, lasts: float) -> None:
        now = self.now()
        self.incidents = [each for each in self.incidents if each.probed or each.until > now]
        for incident in self.incidents:
            if (incident.project, incident.scope) == (project, scope):
                incident.until = incident.until if incident.probed else max(incident.until, now + lasts)
                return
        self.incidents.append(Incident(project, scope, now + lasts))

    def end(self, incident: Incident) -> None:
        """What waited for it is due at once."""
        self.incidents.remove(incident)
        for notification in self.notifications:
            if notification.project != incident.project or notification.due != incident.until or notification.lease:
                continue
            for delivery in notification.in_state("pending"):
                if delivery.due == incident.until:
                    delivery.due = self.now()
            notification.due = self.now()

    # What a worker does

    def due(self) -> list[Notification]:
        """What may be claimed: whose first send, schedule, backoff or lease is over, of projects that are not paused."""
        now = self.now()
        return [
            each
            for each in self.notifications
            if each.state == "pending" and each.due <= now and each.project not in self.paused
        ]

    def claim(
        self, worker: Worker, token: str, busy: list[Notification], probes: set[tuple[int, str]]
    ) -> set[tuple[int, str]]:
        """Take all that is due and that nobody has locked; return what is to be sent. `probes`: those that the database chose."""
        picked = [each for each in self.due() if each not in busy]
        for notification in picked:
            self.take_over(notification)
        at = self.now()
        for notification in picked:
            if notification.state == "pending":
                self.drop_moved_devices(notification)
                self.settle_unsendable(notification)
        for notification in picked:
            if notification.state == "pending" and not notification.expanded:
                self.expand(notification)
        self.put_off(picked, at, probes)
        claimed = set()
        for notification in picked:
            out = [delivery for delivery in notification.in_state("pending") if delivery.due <= at]
            if out:
                notification.lease = Lease(token, worker, at + LEASE, out)
                notification.due = at + LEASE
                claimed |= {(notification.id, delivery.address) for delivery in out}
        return claimed

    def take_over(self, notification: Notification) -> None:
        """A lease is over. What the history holds for it is applied; the rest is unknown, and due at once or held."""
        lease = notification.lease
        if lease is None:
            return
        self.apply_history(notification)
        for delivery in lease.out:
            may_have_left = notification.hold and delivery.marked_under == lease.token
            unknown = Outcome("unknown", counts=False, retry_in=None if may_have_left else 0)
            lease.recorded[delivery] = self.write(Row(delivery, unknown, self.now()))
        self.apply_history(notification)
        self.settle(notification)

    def drop_moved_devices(self, notification: Notification) -> None:
        """Where a device was replaced, its successor is told, once; what is for a device that is gone ends as unregistered."""
        if notification.receiver is None or not notification.expanded:
            return
        changed = False
        for delivery in notification.in_state("pending"):
            if self.reaches(notification, delivery):
                continue
            changed = True
            successor = self.devices[notification.project, delivery.address].followed_by
            device = self.devices.get((notification.project, successor)) if successor else None
            told = {each.address for each in notification.deliveries}
            if successor and device and device.live and device.receiver == notification.receiver and successor not in told:
                delivery.address, delivery.platform = successor, device.platform
            else:
                delivery.state, delivery.unregistered = "failed", True
        if changed:
            self.settle(notification)

    def settle_unsendable(self, notification: Notification) -> None:
        if notification.expiry <= self.now():
            state = "expired"
        elif notification.campaign is None or self.campaigns.get(notification.campaign) is False:
            return
        else:
            state = "cancelled" if notification.campaign in self.campaigns else "failed"
        for delivery in notification.in_state("pending"):
            delivery.state, delivery.unregistered = state, False
        if not notification.expanded:
            notification.state = state
        self.settle(notification)

    def expand(self, notification: Notification) -> None:
        if not self.add_deliveries(notification):
            notification.state = "unreachable"
        notification.expanded = bool(notification.deliveries)

    def add_deliveries(self, notification: Notification) -> list[Delivery]:
        """One for each live device of the receiver that has none, or one for the address."""
        due = self.now() if notification.expanded else notification.due
        told = {delivery.address for delivery in notification.deliveries}
        if notification.receiver is None:
            assert notification.address and notification.kind
            found = [] if told else [Delivery(notification.address, notification.kind, None, due)]
        else:
            found = [
                Delivery(address, "token", device.platform, due)
                for (project, address), device in self.devices.items()
                if project == notification.project
                and device.live
                and device.receiver == notification.receiver
                and address not in told
            ]
        notification.deliveries += found
        return found

    def put_off(self, picked: list[Notification], at: float, probes: set[tuple[int, str]]) -> None:
        """What an incident stops waits for its end, or for its own expiry; where a probe is due, all but that one."""
        for incident in sorted(self.incidents, key=lambda each: each.scope):
            stopped = [
                (notification, delivery)
                for notification in picked
                if notification.project == incident.project and notification.state == "pending"
                for delivery in notification.in_state("pending")
                if delivery.due <= at and incident.stops(delivery)
            ]
            if not stopped or not (incident.probed or incident.until > at):
                continue
            if incident.until <= at:
                incident.until = at + APNS_WAIT
                chosen = [(each, delivery) for each, delivery in stopped if (each.id, delivery.address) in probes]
                assert len(chosen) == 1, f"one probe of {stopped}, not {chosen}"
                stopped.remove(chosen[0])
            for notification, delivery in stopped:
                delivery.due = max(at + 0.001, min(incident.until, notification.expiry))
                self.settle(notification)

    def mark(self, hands: list[Hand]) -> set[int]:
        """Return those whose requests may begin: still out, under a lease that is not over."""
        begun = set()
        for hand in hands:
            lease = hand.notification.lease
            if lease and lease.token == hand.lease and hand.delivery in lease.out and lease.ends > self.now():
                hand.delivery.marked_under = hand.lease
                begun.add(hand.id)
        return begun

    def record(self, hands: list[Hand], busy: list[Notification]) -> int:
        """History first; then what is still held and not locked; then what came late and says sent; then the devices."""
        added = 0
        for hand in hands:
            assert hand.outcome
            if (hand.delivery, hand.lease) in self.known:
                continue
            self.known.add((hand.delivery, hand.lease))
            added += 1
            holds = holds_still(hand)
            row = self.write(Row(hand.delivery, hand.outcome, self.now(), late=not holds))
            if holds and hand.notification.lease:
                hand.notification.lease.recorded[hand.delivery] = row
        for hand in hands:
            if holds_still(hand) and hand.notification not in busy:
                self.apply_history(hand.notification)
        for hand in hands:
            if hand.notification not in busy and hand.notification.deliveries:
                self.settle(hand.notification)
        for hand in hands:
            self.apply_late(hand, busy)
            self.touch_device(hand)
        return added

    def apply_late(self, hand: Hand, busy: list[Notification]) -> None:
        """A late answer that says sent settles what is held, or pending and unleased. Any other stands in the history only."""
        notification, delivery = hand.notification, hand.delivery
        if notification in busy or notification.lease or not hand.outcome or hand.outcome.verdict != "sent":
            return
        if notification.state in ("pending", "held") and delivery.state in ("pending", "held"):
            delivery.state = "sent"
            self.settle(notification)

    def touch_device(self, hand: Hand) -> None:
        """An address that FCM calls unregistered is retired, if it has not registered again since the request began."""
        device = self.devices.get((hand.notification.project, hand.address))
        if device and hand.outcome and hand.outcome.verdict == "unregistered" and device.registered < hand.began:
            device.live = False

    def release(self, hands: list[Hand], busy: list[Notification]) -> None:
        """What was not sent is due again at once; nothing is counted."""
        for hand in hands:
            lease = hand.notification.lease
            if lease and lease.token == hand.lease and hand.notification not in busy and hand.delivery in lease.out:
                lease.out.remove(hand.delivery)
                hand.delivery.due = self.now()
        for hand in hands:
            if hand.notification not in busy:
                self.settle(hand.notification)

    def bury(self, worker: Worker, busy: list[Notification]) -> int:
        theirs = [each for each in self.held_by(worker) if each not in busy]
        for notification in theirs:
            self.take_over(notification)
        return len(theirs)

    def held_by(self, worker: Worker) -> list[Notification]:
        return [each for each in self.notifications if each.lease and each.lease.worker is worker]

    # What follows from it

    def write(self, row: Row) -> Row:
        self.history.append(row)
        return row

    def apply_history(self, notification: Notification) -> None:
        """What the history holds for what is out becomes its state."""
        lease = notification.lease
        assert lease
        for delivery, row in lease.recorded.items():
            if delivery not in lease.out:
                continue
            lease.out.remove(delivery)
            delivery.attempts += row.outcome.counts
            delivery.unregistered = row.outcome.verdict == "unregistered"
            if row.outcome.verdict == "sent":
                delivery.state = "sent"
            elif row.outcome.verdict in ("failed", "unregistered"):
                delivery.state = "failed"
            elif row.outcome.retry_in is not None:
                delivery.due = row.recorded + row.outcome.retry_in
            else:
                delivery.state = "held" if notification.hold and row.outcome.verdict == "unknown" else "failed"

    def settle(self, notification: Notification) -> None:
        """Derive the state from the deliveries; the lease ends with the last that is out."""
        out = notification.lease.out if notification.lease else []
        if notification.cancelled:
            for delivery in notification.in_state("pending"):
                if delivery not in out:
                    delivery.state = "cancelled"
        if out or not notification.deliveries:
            return
        notification.lease = None
        notification.state = notification.derived()
        notification.due = min((each.due for each in notification.in_state("pending")), default=notification.due)
        if notification.state == "unreachable" and notification.receiver and (new := self.add_deliveries(notification)):
            notification.state, notification.due = "pending", min(each.due for each in new)


def holds_still(hand: Hand) -> bool:
    lease = hand.notification.lease
    return lease is not None and lease.token == hand.lease
