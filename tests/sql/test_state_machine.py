"""Everything that can happen to notifications, in any order: the SQL against a plain model of it, on a real database.

The first half is the model: what CONTRACT.md says of states, leases, history, devices and pauses, in memory. The second half
does the same things to both and compares them after each step. Nothing sleeps: time passes by setting back every moment
that the database holds. Whatever ends, ends half a minute off the full minutes in which time passes here, so that the
seconds that a test takes decide nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import Any, LiteralString, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.errors import ObjectInUse
from psycopg.sql import SQL, Identifier

from tests.support import store_calls
from tests.support.waiting import until

Rule = TypeVar("Rule", bound=Callable[..., None])

MINUTE = 60.0
LEASE = 9.5 * MINUTE
EXPIRES_AFTER = 8.5 * 60 * MINUTE
APNS_WAIT = 15 * MINUTE
TICK = 1e-6

GIVEN_UP = {"failed", "expired", "cancelled", "held"}
"""States that `retry` makes due again."""

PROJECTS = ("default", "shop")
RECEIVERS = ("ada", "bob")
PLATFORMS = {"fcm:1": "ios", "fcm:2": "android", "fcm:3": None, "fcm:4": "android"}
"""By address. One of iOS alone: of two at once the database may take either for a probe, and Hypothesis wants no chance."""
ORDERS = (
    {"receiver_id": "ada"},
    {"kind": "topic", "address": "tents"},
    {"receiver_id": "ada", "campaign": "sale"},
    {"kind": "token", "address": "fcm:5"},
    {"receiver_id": "bob"},
    {"kind": "topic", "address": "boats", "project": "shop"},
)
AT_ONCE = (0.0, None)
TIMES = (AT_ONCE, AT_ONCE, AT_ONCE, (0.0, 2.5 * MINUTE), (90.5 * MINUTE, None), (90.5 * MINUTE, 120.5 * MINUTE))
"""Seconds until each is to be sent, and seconds until it expires."""


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Named:
    """Prints its repr in Hypothesis's reports, not its fields."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass(eq=False)
class Device:
    """A device of a receiver. Its address belongs to the receiver who registered it last."""

    receiver: str
    platform: str | None
    registered: float
    live: bool = True
    followed_by: str | None = None


@dataclass(eq=False)
class Delivery(Named):
    """One notification to one address."""

    address: str
    kind: str
    platform: str | None
    due: float
    id: int = 0
    """Its id in the database."""
    state: str = "pending"
    unregistered: bool = False
    """Whether it failed because its address is gone."""
    attempts: int = 0
    """How many rows of the history count since it was last retried."""
    retried: float = 0.0
    """When it was last retried."""
    marked_under: str | None = None
    """The lease under which it was marked as started."""

    def __repr__(self) -> str:
        return f"<delivery {self.id}>"


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt, as its worker records it."""

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
    """A worker's lease of a notification until `ends`: `out` are its deliveries in flight."""

    token: str
    worker: "Worker"
    ends: float
    out: list[Delivery]
    recorded: dict[Delivery, Row] = field(default_factory=dict)
    """The rows of the history under this lease."""


@dataclass(eq=False)
class Notification(Named):
    """A message to one receiver or address, to be sent once."""

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
    fanned_out: bool = False
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
class Worker(Named):
    """A worker and its session; a dead one until it is rescued."""

    registered: store_calls.Worker
    session: store_calls.Connection
    alive: bool = True
    rescued: bool = False

    def __repr__(self) -> str:
        return f"<worker {self.registered.id}{'' if self.alive else ', dead'}>"


@dataclass(eq=False)
class Holding(Named):
    """A claimed delivery of a worker, and its outcome once there is one."""

    notification: Notification
    delivery: Delivery
    address: str
    lease: str
    worker: Worker
    id: int
    began: float
    outcome: Outcome | None = None
    released: bool = False

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

    def covers(self, delivery: Delivery) -> bool:
        return delivery.kind == "topic" if self.scope == "topics" else delivery.platform == "ios"


class Model:
    """The behaviour that CONTRACT.md describes, in memory."""

    def __init__(self) -> None:
        self.time = 0.0
        self.notifications: list[Notification] = []
        self.devices: dict[str, Device] = {}
        self.campaigns: dict[str, bool] = {}
        """Whether each campaign is retired; a deleted one is missing."""
        self.history: list[Row] = []
        self.known: set[tuple[Delivery, str]] = set()
        """The delivery and the lease of each outcome recorded so far."""
        self.paused: set[str] = set()
        self.incidents: list[Incident] = []

    def now(self) -> float:
        """Return a time that is later than any before: no two are the same, as in the database."""
        self.time += TICK
        return self.time

    # What the application does

    def register(self, receiver: str, address: str, replaces: str | None) -> None:
        self.devices[address] = Device(receiver, PLATFORMS[address], self.now())
        if replaces == address or replaces not in self.devices:
            return
        for known, device in self.devices.items():
            if known != address and replaces in (known, device.followed_by):
                device.live = False
                device.followed_by = address

    def cancel(self, notification: Notification) -> bool:
        if not notification.lease:
            self.apply_late(notification)
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
        self.apply_late(notification)
        again = [
            delivery
            for delivery in notification.in_state(*GIVEN_UP)
            if only in (None, delivery) and self.reaches(notification, delivery)
        ]
        for delivery in again:
            delivery.state, delivery.attempts, delivery.due, delivery.retried = "pending", 0, self.now(), self.now()
        if only is None and notification.fanned_out:
            again += self.add_deliveries(notification)
        if not again and (notification.fanned_out or notification.state == "pending"):
            return 0
        now = self.now()
        notification.due = min(now, notification.due) if notification.state == "pending" else now
        if notification.expires is not None and notification.expires <= now:
            notification.expires = None
        notification.state, notification.retried, notification.cancelled = "pending", now, False
        return len(again)

    def reaches(self, notification: Notification, delivery: Delivery) -> bool:
        """Whether the delivery's address is still the receiver's."""
        device = self.devices.get(delivery.address)
        return notification.receiver is None or bool(
            device and device.live and device.receiver == notification.receiver
        )

    def resume(self, project: str) -> None:
        self.paused.discard(project)
        for incident in [each for each in self.incidents if each.project == project]:
            self.close_incident(incident)

    def succeed_probe(self, project: str) -> None:
        for incident in [each for each in self.incidents if each.project == project and each.probed]:
            self.close_incident(incident)

    def open_incident(self, project: str, scope: str, lasts: float) -> None:
        now = self.now()
        self.incidents = [each for each in self.incidents if each.probed or each.until > now]
        for incident in self.incidents:
            if (incident.project, incident.scope) == (project, scope):
                incident.until = incident.until if incident.probed else max(incident.until, now + lasts)
                return
        self.incidents.append(Incident(project, scope, now + lasts))

    def close_incident(self, incident: Incident) -> None:
        """Close it: the deliveries that waited for its end, or for their own expiry before it, are due at once."""
        self.incidents.remove(incident)
        for each in self.notifications:
            waits = self.now() < each.due <= incident.until and each.due in (incident.until, each.expiry)
            if each.project != incident.project or not each.fanned_out or each.lease or not waits:
                continue
            for delivery in each.in_state("pending"):
                if delivery.due == each.due:
                    delivery.due = self.now()
            each.due = self.now()

    # What a worker does

    def due(self) -> list[Notification]:
        """The notifications that may be claimed: pending, due or with a lapsed lease, of a project that is not paused."""
        now = self.now()
        return [
            each
            for each in self.notifications
            if each.state == "pending" and each.due <= now and each.project not in self.paused
        ]

    def claim(
        self, worker: Worker, token: str, busy: list[Notification], probes: set[tuple[int, str]]
    ) -> set[tuple[int, str]]:
        """Take all that is due and not locked; return what is to be sent. `probes`: those that the database chose."""
        picked = [each for each in self.due() if each not in busy]
        for notification in picked:
            self.end_lease(notification)
        at = self.now()
        for notification in picked:
            self.apply_late(notification)
            if notification.state == "pending":
                self.reroute_deliveries(notification)
                self.settle_unsendable(notification)
        for notification in picked:
            if notification.state == "pending" and not notification.fanned_out:
                self.fan_out(notification)
        self.postpone_blocked(picked, at, probes)
        claimed = set()
        for notification in picked:
            out = [delivery for delivery in notification.in_state("pending") if delivery.due <= at]
            if out:
                notification.lease = Lease(token, worker, at + LEASE, out)
                notification.due = at + LEASE
                claimed |= {(notification.id, delivery.address) for delivery in out}
        return claimed

    def end_lease(self, notification: Notification) -> None:
        """End a lease: outcomes in the history are applied; the rest is unknown, and due at once or held."""
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

    def reroute_deliveries(self, notification: Notification) -> None:
        """Move deliveries of a replaced device to its successor; those of a deleted device fail as unregistered."""
        if notification.receiver is None or not notification.fanned_out:
            return
        addressed = {each.address for each in notification.deliveries}
        gone = [delivery for delivery in notification.in_state("pending") if not self.reaches(notification, delivery)]
        for delivery in gone:
            successor = self.devices[delivery.address].followed_by
            device = self.devices.get(successor or "")
            if (
                successor
                and device
                and device.live
                and device.receiver == notification.receiver
                and successor not in addressed
            ):
                delivery.address, delivery.platform = successor, device.platform
                addressed.add(successor)
            else:
                delivery.state, delivery.unregistered = "failed", True
        if gone:
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
        if not notification.fanned_out:
            notification.state = state
        self.settle(notification)

    def fan_out(self, notification: Notification) -> None:
        if not self.add_deliveries(notification):
            notification.state = "unreachable"
        notification.fanned_out = bool(notification.deliveries)

    def add_deliveries(self, notification: Notification) -> list[Delivery]:
        """Add a delivery for each live device of the receiver that has none, or one for the address."""
        due = self.now() if notification.fanned_out else notification.due
        addressed = {delivery.address for delivery in notification.deliveries}
        if notification.receiver is None:
            assert notification.address
            assert notification.kind
            found = [] if addressed else [Delivery(notification.address, notification.kind, None, due)]
        else:
            found = [
                Delivery(address, "token", device.platform, due)
                for address, device in self.devices.items()
                if device.live and device.receiver == notification.receiver and address not in addressed
            ]
        notification.deliveries += found
        return found

    def postpone_blocked(self, picked: list[Notification], at: float, probes: set[tuple[int, str]]) -> None:
        """Postpone blocked deliveries until the incident ends or they expire; a probe that is due is left out."""
        for incident in sorted(self.incidents, key=lambda each: each.scope):
            stopped = [
                (notification, delivery)
                for notification in picked
                if notification.project == incident.project and notification.state == "pending"
                for delivery in notification.in_state("pending")
                if delivery.due <= at and incident.covers(delivery)
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

    def mark(self, holdings: list[Holding]) -> set[int]:
        """Return the deliveries whose requests may begin: still in flight, under a lease that has not lapsed."""
        begun = set()
        for holding in holdings:
            lease = holding.notification.lease
            if lease and lease.token == holding.lease and holding.delivery in lease.out and lease.ends > self.now():
                holding.delivery.marked_under = holding.lease
                begun.add(holding.id)
        return begun

    def record(self, holdings: list[Holding], busy: list[Notification]) -> int:
        """Write the history; apply outcomes of current leases to unlocked rows, then late sent ones, then retire devices."""
        added = 0
        for holding in holdings:
            assert holding.outcome
            if (holding.delivery, holding.lease) in self.known:
                continue
            self.known.add((holding.delivery, holding.lease))
            added += 1
            holds = holds_still(holding)
            row = self.write(Row(holding.delivery, holding.outcome, self.now(), late=not holds))
            if holds and holding.notification.lease:
                holding.notification.lease.recorded[holding.delivery] = row
        for notification in unlocked(filter(holds_still, holdings), busy):
            self.apply_history(notification)
            self.settle(notification)
        for holding in holdings:
            self.answer_late(holding, busy)
            self.touch_device(holding)
        return added

    def answer_late(self, holding: Holding, busy: list[Notification]) -> None:
        """Settle a held or pending delivery by a late sent outcome: at once if it is free, otherwise at the next claim."""
        free = holding.notification not in busy and not holding.notification.lease
        if (
            free
            and holding.outcome
            and holding.outcome.verdict == "sent"
            and holding.notification.state in ("pending", "held")
        ):
            self.apply_late(holding.notification)

    def apply_late(self, notification: Notification) -> None:
        known = {
            row.delivery
            for row in self.history
            if row.late and row.outcome.verdict == "sent" and row.recorded > row.delivery.retried
        }
        for delivery in known.intersection(notification.in_state("pending", "held")):
            delivery.state = "sent"
            self.settle(notification)

    def touch_device(self, holding: Holding) -> None:
        """Retire a device that FCM calls unregistered, unless it has registered again since the request began."""
        device = self.devices.get(holding.address)
        if (
            device
            and holding.outcome
            and holding.outcome.verdict == "unregistered"
            and device.registered < holding.began
        ):
            device.live = False

    def release(self, holdings: list[Holding], busy: list[Notification]) -> None:
        """Make unsent deliveries due again at once; nothing is counted."""
        held = [holding for holding in holdings if holds_still(holding)]
        theirs = unlocked(held, busy)
        for holding in held:
            lease = holding.notification.lease
            if lease and holding.notification in theirs and holding.delivery in lease.out:
                lease.out.remove(holding.delivery)
                holding.delivery.due = self.now()
        for notification in theirs:
            self.settle(notification)

    def rescue_worker(self, worker: Worker, busy: list[Notification]) -> int:
        theirs = [each for each in self.held_by(worker) if each not in busy]
        for notification in theirs:
            self.end_lease(notification)
        return len(theirs)

    def held_by(self, worker: Worker) -> list[Notification]:
        return [each for each in self.notifications if each.lease and each.lease.worker is worker]

    # What follows from it

    def write(self, row: Row) -> Row:
        self.history.append(row)
        return row

    def apply_history(self, notification: Notification) -> None:
        """Apply the outcomes in the history to the deliveries in flight."""
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
                delivery.due = min(row.recorded + row.outcome.retry_in, notification.expiry)
            else:
                delivery.state = "held" if notification.hold and row.outcome.verdict == "unknown" else "failed"

    def settle(self, notification: Notification) -> None:
        """Derive the state from the deliveries; the lease ends with the last one in flight."""
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


def holds_still(holding: Holding) -> bool:
    lease = holding.notification.lease
    return lease is not None and lease.token == holding.lease


def unlocked(holdings: Iterable[Holding], busy: list[Notification]) -> list[Notification]:
    return list(dict.fromkeys(holding.notification for holding in holdings if holding.notification not in busy))


# ── the database, and what is done to both ──────────────────────────────────────────────────────────────────────────────


class Database:
    """A migrated database that is emptied again and again, and whose clock can be put forward."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        self.connection = store_calls.Connection.connect(conninfo, autocommit=True)
        self.other = store_calls.Connection.connect(conninfo)
        """The connection of a business transaction that has rows locked."""
        self.connection.execute("set search_path = notify_worker")
        # Time passes by days here, and the history has no partition for what was before this month.
        self.connection.execute(
            SQL(
                "create table stored_attempts_before partition of stored_attempts for values from (minvalue) to ({})"
            ).format(datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
        )
        moments: dict[str, list[str]] = {}
        for each in self.rows(
            """
            select class.relname as in_table, attribute.attname as moment
            from pg_class as class
            join pg_attribute as attribute
                on attribute.attrelid = class.oid
                and attribute.atttypid = 'timestamptz'::regtype
            where class.relnamespace = 'notify_worker'::regnamespace
                and class.relkind in ('r', 'p')
                and not class.relispartition
                and class.relname not like 'procrastinate%'
            """
        ):
            moments.setdefault(each["in_table"], []).append(each["moment"])
        self.set_back = (
            SQL(";")
            .join(
                SQL("update {} set {}").format(
                    Identifier(table),
                    SQL(", ").join(SQL("{0} = {0} - {{0}}").format(Identifier(each)) for each in columns),
                )
                for table, columns in moments.items()
            )
            .as_string()
        )

    def rows(self, statement: LiteralString, *values: object) -> list[store_calls.Row]:
        return self.connection.rows(statement, *values)

    def value(self, statement: LiteralString, *values: object) -> Any:
        return self.connection.value(statement, *values)

    def empty(self) -> None:
        self.connection.execute(
            """
            truncate notifications, stored_deliveries, stored_attempts, devices, campaigns, projects,
                stored_incidents, stored_project_locks, stored_workers, procrastinate_jobs cascade
            """
        )
        for project in PROJECTS:
            self.connection.execute(
                "insert into projects (name, expires_after) values (%s, make_interval(secs => %s))",
                [project, EXPIRES_AFTER],
            )

    def put_forward(self, seconds: float) -> None:
        """Let time pass by moving every timestamp into the past."""
        self.connection.execute(SQL(self.set_back).format(timedelta(seconds=seconds)))

    @contextmanager
    def locked(self, notifications: Iterable[Notification]) -> Iterator[None]:
        """Keep these rows locked by a business transaction."""
        numbers = [each.id for each in notifications]
        if not numbers:
            yield
            return
        self.other.execute("select from notify_worker.notifications where id = any (%s) for update", [numbers])
        try:
            yield
        finally:
            self.other.rollback()

    def close(self) -> None:
        self.connection.close()
        self.other.close()


def one_of(which: str) -> st.SearchStrategy[Any]:
    """One element of this property of the machine."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, which)))


def some_of(which: str, least: int = 1) -> st.SearchStrategy[list[Any]]:
    return st.runner().flatmap(
        lambda machine: (
            st.lists(st.sampled_from(getattr(machine, which)), min_size=least, max_size=3, unique=True)
            if getattr(machine, which)
            else st.just([])
        )
    )


def there_are(which: str) -> Callable[[Rule], Rule]:
    needs: Callable[[Rule], Rule] = precondition(lambda machine: bool(getattr(machine, which)))
    return needs


maybe_busy: st.SearchStrategy[list[Notification]] = st.just([]) | some_of("notifications", least=0)
"""The notifications that a business transaction has locked."""
projects = st.sampled_from(("default", *PROJECTS))
receivers = st.sampled_from(RECEIVERS)
addresses = st.sampled_from(sorted(PLATFORMS))
waits = st.sampled_from([MINUTE, MINUTE, 10 * MINUTE, 120 * MINUTE])
outcomes = st.sampled_from(
    [
        Outcome("sent"),
        Outcome("sent"),
        Outcome("unregistered"),
        Outcome("unregistered"),
        Outcome("failed"),
        Outcome("retry", retry_in=1.5 * MINUTE),
        Outcome("retry", counts=False, retry_in=1.5 * MINUTE),
        Outcome("retry"),
        Outcome("unknown", retry_in=90.5 * MINUTE),
        Outcome("unknown", counts=False, retry_in=1.5 * MINUTE),
        Outcome("unknown"),
        Outcome("paused", counts=False, retry_in=0.0),
    ]
)
Order = tuple[dict[str, str], tuple[float, float | None], bool]
orders = st.lists(st.tuples(st.sampled_from(ORDERS), st.sampled_from(TIMES), st.booleans()), min_size=1, max_size=3)


class Machine(RuleBasedStateMachine):
    """Does everything to the database and to the model, and compares what they answer."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.model = Model()
        self.workers: list[Worker] = []
        self.holdings: list[Holding] = []
        self.safe: set[Notification] = set()
        """Notifications cancelled with the answer true and not retried since."""
        database.empty()

    @initialize(orders=orders)
    def open_the_shop(self, orders: list[Order]) -> None:
        self.register_worker()
        self.register_worker()
        for receiver, address in ("ada", "fcm:1"), ("ada", "fcm:2"), ("bob", "fcm:3"):
            self.register(receiver, address, None)
        self.the_campaign("there")
        self.insert(orders)

    def teardown(self) -> None:
        for worker in self.workers:
            worker.session.close()

    # Of whom and of what there are some just now

    @property
    def notifications(self) -> list[Notification]:
        return self.model.notifications

    @property
    def deliveries(self) -> list[tuple[Notification, Delivery]]:
        return [(each, delivery) for each in self.notifications for delivery in each.deliveries]

    @property
    def pending(self) -> list[Notification]:
        return [each for each in self.notifications if each.state == "pending"]

    @property
    def of_the_campaign(self) -> list[Notification]:
        return [each for each in self.pending if each.campaign]

    @property
    def waited_for(self) -> list[str]:
        """The addresses for which a delivery waits, or all addresses if there is none."""
        waiting = [
            delivery.address for each, delivery in self.deliveries if each.receiver and delivery.state == "pending"
        ]
        return sorted(waiting or PLATFORMS)

    @property
    def in_use(self) -> list[str]:
        return [address for address, device in self.model.devices.items() if device.live] if self.pending else []

    @property
    def ended(self) -> list[Notification]:
        """Notifications that can be retried, and leased ones, whose retry is refused."""
        return [each for each in self.notifications if each.state != "pending" or each.lease]

    @property
    def given_up(self) -> list[tuple[Notification, Delivery]]:
        given_up = [(each, delivery) for each, delivery in self.deliveries if delivery.state in GIVEN_UP]
        return sorted(given_up, key=lambda each: (each[0].id, each[1].address))

    @property
    def stopped(self) -> list[str]:
        return sorted(self.model.paused | {each.project for each in self.model.incidents})

    @property
    def living(self) -> list[Worker]:
        return [each for each in self.workers if each.alive]

    @property
    def claimants(self) -> list[Worker]:
        return self.living if self.pending else []

    @property
    def dead(self) -> list[Worker]:
        return [each for each in self.workers if not each.alive and not each.rescued]

    @property
    def holders(self) -> list[Worker]:
        return [each for each in self.living if self.model.held_by(each)]

    @property
    def answers(self) -> list[Holding]:
        """Deliveries that may get an outcome, or get it again: all but the released ones."""
        return [each for each in self.holdings if not each.released]

    @property
    def overdue(self) -> list[Holding]:
        """Deliveries that had no outcome before their lease ended."""
        return [each for each in self.answers if each.outcome is None and not holds_still(each)]

    @property
    def unsent(self) -> list[Holding]:
        return [each for each in self.answers if each.outcome is None and each.worker.alive]

    # The application

    @rule(orders=orders)
    def insert(self, orders: list[Order]) -> None:
        for of, (send_in, expires_in), hold in orders:
            self.insert_one(of, send_in, expires_in, hold=hold)

    def insert_one(self, of: dict[str, str], send_in: float, expires_in: float | None, *, hold: bool) -> None:
        now = datetime.now(UTC)
        number = self.database.connection.insert(
            **of,
            on_unknown="hold" if hold else "resend",
            send_at=now + timedelta(seconds=send_in) if send_in else None,
            expires_at=now + timedelta(seconds=expires_in) if expires_in else None,
        )
        created = self.model.now()
        self.notifications.append(
            Notification(
                id=number,
                project=of.get("project", "default"),
                receiver=of.get("receiver_id"),
                address=of.get("address"),
                kind=of.get("kind"),
                campaign=of.get("campaign"),
                hold=hold,
                created=created + send_in,
                due=created + send_in,
                expires=created + expires_in if expires_in else None,
            )
        )

    @there_are("in_use")
    @rule(receiver=receivers, address=addresses | one_of("waited_for"), replaces=st.none() | one_of("in_use"))
    def register(self, receiver: str, address: str, replaces: str | None) -> None:
        self.database.value(
            "select register_device(%s, 'token', %s, %s, replaces => %s)",
            receiver,
            address,
            PLATFORMS[address],
            replaces,
        )
        self.model.register(receiver, address, replaces)

    @there_are("in_use")
    @rule(address=one_of("in_use"))
    def retire(self, address: str) -> None:
        assert self.database.value("select retire_device('token', %s)", address)
        self.model.devices[address].live = False

    @there_are("of_the_campaign")
    @rule(becomes=st.sampled_from(["there", "retired", "deleted"]))
    def the_campaign(self, becomes: str) -> None:
        self.database.connection.execute("delete from campaigns")
        self.model.campaigns.clear()
        if becomes != "deleted":
            self.database.connection.execute(
                "insert into campaigns (name, title, retired_at) values ('sale', 'Now', case when %s then now() end)",
                [becomes == "retired"],
            )
            self.model.campaigns["sale"] = becomes == "retired"

    @there_are("pending")
    @rule(notification=one_of("pending"))
    def expire(self, notification: Notification) -> None:
        self.database.connection.execute(
            "update notifications set expires_at = clock_timestamp() where id = %s", [notification.id]
        )
        notification.expires = self.model.now()

    @there_are("notifications")
    @rule(notification=one_of("notifications"))
    def cancel(self, notification: Notification) -> None:
        nothing_left = self.database.value("select cancel(%s::bigint)", notification.id)
        assert nothing_left == self.model.cancel(notification)
        if nothing_left:
            self.safe.add(notification)

    @there_are("ended")
    @rule(notification=one_of("ended"))
    def retry(self, notification: Notification) -> None:
        self.compare_retry(notification, None, "select retry(%s::bigint)", notification.id)

    @there_are("given_up")
    @rule(which=one_of("given_up"))
    def retry_delivery(self, which: tuple[Notification, Delivery]) -> None:
        self.compare_retry(*which, "select retry_delivery(%s)", which[1].id)

    def compare_retry(
        self, notification: Notification, delivery: Delivery | None, statement: LiteralString, number: int
    ) -> None:
        if notification.lease:
            with pytest.raises(ObjectInUse):
                self.database.value(statement, number)
            return
        assert self.database.value(statement, number) == self.model.retry(notification, delivery)
        if notification.state == "pending":
            self.safe.discard(notification)

    # Pauses

    @there_are("claimants")
    @rule(
        project=projects,
        what=st.sampled_from(["topics", "apns_web", "project"]),
        worker=one_of("claimants"),
        orders=orders,
    )
    def stop(self, project: str, what: str, worker: Worker, orders: list[Order]) -> None:
        """A worker opens an incident of a project, or an operator pauses it; inserts and claims go on."""
        if what == "project":
            self.database.value("select pause(%s, 'a rehearsal')", project)
            self.model.paused.add(project)
        else:
            lasts = 30.5 * MINUTE if what == "topics" else None
            self.database.value("select open_incident(%s, %s, 'FCM says so', %s)", project, what, lasts)
            self.model.open_incident(project, what, lasts or APNS_WAIT)
        self.insert(orders)
        self.claim(worker, MINUTE, [], marked=False)

    @there_are("stopped")
    @rule(project=one_of("stopped"), by_a_probe=st.booleans())
    def go_on(self, project: str, by_a_probe: bool) -> None:
        if by_a_probe:
            self.database.value("select close_incident(%s, 'apns_web')", project)
            self.model.succeed_probe(project)
        else:
            self.database.value("select resume(%s)", project)
            self.model.resume(project)

    # Workers

    def register_worker(self) -> None:
        session = store_calls.Connection.connect(self.database.conninfo, autocommit=True)
        self.workers.append(Worker(session.register_worker(timedelta(seconds=LEASE)), session))

    @there_are("claimants")
    @rule(worker=one_of("claimants"), after=waits, busy=maybe_busy, marked=st.booleans())
    def claim(self, worker: Worker, after: float, busy: list[Notification], marked: bool) -> None:
        """A worker claims everything due. `marked`: it marks the deliveries as started, too."""
        self.let_pass(after)
        with self.database.locked(busy):
            claimed = worker.session.claim(worker.registered)
        claimed.sort(key=lambda each: (each["notification_id"], each["address"]))
        now = {(each["notification_id"], each["address"]) for each in claimed}
        probes = {(each["notification_id"], each["address"]) for each in claimed if each["probe"]}

        assert self.model.claim(worker, claimed[0]["lease"] if claimed else "", busy, probes) == now
        assert len(now) == len(claimed), "each delivery once"
        self.learn_numbers()
        holdings = [self.take(worker, row) for row in claimed]
        if marked:
            self.mark(holdings)

    @there_are("claimants")
    @rule(worker=one_of("claimants"), after=waits, became=st.lists(outcomes, min_size=1, max_size=3))
    def claim_and_answer(self, worker: Worker, after: float, became: list[Outcome]) -> None:
        """Claim, and record the outcomes at once."""
        before = len(self.holdings)
        self.claim(worker, after, [], marked=False)
        for holding, outcome in zip(self.holdings[before:], cycle(became), strict=False):
            self.record([holding], outcome, [])

    @there_are("claimants")
    @rule(worker=one_of("claimants"), after=waits, marked=st.booleans())
    def claim_and_crash(self, worker: Worker, after: float, marked: bool) -> None:
        self.claim(worker, after, [], marked)
        self.crash(worker)

    def take(self, worker: Worker, row: store_calls.Row) -> Holding:
        notification = next(each for each in self.notifications if each.id == row["notification_id"])
        delivery = next(each for each in notification.deliveries if each.address == row["address"])
        assert notification not in self.safe, "what was cancelled in time does not arrive"
        assert delivery.id == row["delivery_id"]
        assert (delivery.attempts, delivery.platform) == (row["attempts"], row["platform"])
        holding = Holding(notification, delivery, row["address"], row["lease"], worker, delivery.id, self.model.time)
        self.holdings.append(holding)
        return holding

    @there_are("unsent")
    @rule(holdings=some_of("unsent"))
    def mark(self, holdings: list[Holding]) -> None:
        claimed = [{"delivery_id": each.id, "lease": each.lease} for each in holdings]

        assert set(self.database.connection.mark_started(*claimed)) == self.model.mark(holdings)

    @there_are("answers")
    @rule(holdings=some_of("answers"), outcome=outcomes, busy=maybe_busy)
    def record(self, holdings: list[Holding], outcome: Outcome, busy: list[Notification]) -> None:
        """Record in time or late, by a live or a dead worker, for the first time or again."""
        worker = holdings[0].worker
        holdings = [each for each in holdings if each.worker is worker]
        for holding in holdings:
            holding.outcome = holding.outcome or outcome
        with self.database.locked(busy):
            added = self.database.connection.record(worker.registered, *map(self.as_recorded, holdings))

        assert added == self.model.record(holdings, busy)

    @there_are("overdue")
    @rule(holding=one_of("overdue"), outcome=outcomes, busy=maybe_busy)
    def answer_late(self, holding: Holding, outcome: Outcome, busy: list[Notification]) -> None:
        self.record([holding], outcome, busy)

    def as_recorded(self, holding: Holding) -> store_calls.Row:
        assert holding.outcome
        return {
            "delivery_id": holding.id,
            "notification_id": holding.notification.id,
            "lease": holding.lease,
            "verdict": holding.outcome.verdict,
            "counts": holding.outcome.counts,
            "retry_in": holding.outcome.retry_in,
            "requests": 1,
            "started_ago": self.model.time - holding.began + 1,
            "finished_ago": 0,
        }

    @there_are("unsent")
    @rule(holdings=some_of("unsent"), busy=maybe_busy)
    def release(self, holdings: list[Holding], busy: list[Notification]) -> None:
        holdings = [each for each in holdings if each.lease == holdings[0].lease]
        with self.database.locked(busy):
            self.database.value("select release(%s, %s)", holdings[0].lease, [each.id for each in holdings])

        self.model.release(holdings, busy)
        for holding in holdings:
            holding.released = True

    @there_are("holders")
    @rule(worker=one_of("holders"))
    def crash(self, worker: Worker) -> None:
        pid = worker.session.info.backend_pid
        worker.session.close()
        gone: LiteralString = "select not exists (select from pg_stat_activity where pid = %s)"
        until("the session has ended", lambda: bool(self.database.value(gone, pid)), within=10)
        worker.alive = False
        self.register_worker()

    @there_are("dead")
    @rule(worker=one_of("dead"), busy=maybe_busy)
    def rescue_worker(self, worker: Worker, busy: list[Notification]) -> None:
        with self.database.locked(busy):
            rescued = self.database.connection.rescue_worker(worker.registered)

        assert rescued == self.model.rescue_worker(worker, busy)
        worker.rescued = True

    def let_pass(self, seconds: float) -> None:
        self.database.put_forward(seconds)
        self.model.time += seconds

    # What holds after each step

    @invariant()
    def the_database_is_as_the_model_says(self) -> None:
        self.learn_numbers()
        self.notifications_are_as_the_model_says()
        self.deliveries_are_as_the_model_says()
        self.the_history_is_as_the_model_says()
        self.the_ledger_balances()

    def learn_numbers(self) -> None:
        numbers = {
            (each["notification_id"], each["address"]): each["id"]
            for each in self.database.rows("select id, notification_id, address from stored_deliveries")
        }
        for notification in self.notifications:
            for delivery in notification.deliveries:
                delivery.id = numbers.get((notification.id, delivery.address), 0)
            notification.deliveries.sort(key=lambda delivery: delivery.id)

    def notifications_are_as_the_model_says(self) -> None:
        found = {
            each["id"]: (each["state"], each["lease"] and str(each["lease"]), each["due"])
            for each in self.database.rows(
                "select id, state, lease, state = 'pending' and due_at <= clock_timestamp() as due from notifications"
            )
        }

        now = self.model.now()
        assert found == {
            each.id: (each.state, each.lease.token if each.lease else None, each.state == "pending" and each.due <= now)
            for each in self.notifications
        }

    def deliveries_are_as_the_model_says(self) -> None:
        found = [
            (each["notification_id"], each["address"], each["state"], each["attempts"])
            for each in self.database.rows("select * from stored_deliveries order by notification_id, id")
        ]

        assert found == [
            (notification.id, delivery.address, delivery.state, delivery.attempts)
            for notification, delivery in self.deliveries
        ]

    def the_history_is_as_the_model_says(self) -> None:
        found = self.database.rows("select * from stored_attempts order by delivery_id, recorded_at, number")

        assert sorted((each["delivery_id"], each["verdict"], each["counts"], each["late"]) for each in found) == sorted(
            (each.delivery.id, each.outcome.verdict, each.outcome.counts, each.late) for each in self.model.history
        )
        for _, delivery in self.deliveries:
            numbers = [each["number"] for each in found if each["delivery_id"] == delivery.id and not each["late"]]
            assert numbers == list(range(1, len(numbers) + 1)), "each row has the next number"

    def the_ledger_balances(self) -> None:
        expected = {"nothing is due for longer than a lease and 5 s while nobody claims"}  # time leaps here
        if any(each.rescued and self.model.held_by(each) for each in self.workers):
            expected.add("no lease is of a worker that is gone")  # it was locked; it comes back when its lease ends
        assert set(self.database.connection.unbalanced()) <= expected


@pytest.fixture
def emptied(database: str) -> Iterator[Database]:
    emptied = Database(database)
    yield emptied
    emptied.close()


def rehearse(emptied: Database, **how: Any) -> None:
    """Let Hypothesis search for a sequence of steps after which the database differs from the model."""

    class On(Machine):
        def __init__(self) -> None:
            super().__init__(emptied)

    without_deadline = settings(deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
    run_state_machine_as_test(On, settings=settings(without_deadline, **how))


def test_the_database_agrees_with_the_model(emptied: Database) -> None:
    rehearse(emptied, max_examples=25, stateful_step_count=40, derandomize=True)


@pytest.mark.slow
def test_the_database_agrees_with_the_model_in_long_runs(emptied: Database) -> None:
    rehearse(emptied, max_examples=1_500, stateful_step_count=60, database=None)


# ── what it has found ──────────────────────────────────────────────────────────────────────────────────────────────────────


UNREGISTERED = {"verdict": "unregistered", "error": "it is gone"}


def a_notification_whose_device_is_gone(connection: store_calls.Connection, *, registers_again_as: str) -> int:
    """Its campaign is deleted before it is tried again."""
    connection.register_device("ada", "fcm:1")
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")
    number = connection.insert(receiver_id="ada", campaign="sale")
    worker = connection.register_worker()
    claimed = connection.claim_one(worker)
    if registers_again_as != "fcm:1":
        connection.register_device("ada", registers_again_as)
    connection.record(worker, store_calls.outcome(claimed, **UNREGISTERED))
    if registers_again_as == "fcm:1":
        connection.register_device("ada", "fcm:1")
        assert connection.value("select notify_worker.retry(%s::bigint)", number) == 1
    connection.execute("delete from notify_worker.campaigns")
    assert connection.claim(worker) == []
    return number


@pytest.mark.parametrize("registers_again_as", ["fcm:1", "fcm:2"])
def test_a_missing_campaign_is_not_an_unregistered_address(
    connection: store_calls.Connection, registers_again_as: str
) -> None:
    number = a_notification_whose_device_is_gone(connection, registers_again_as=registers_again_as)

    assert connection.state(number) == "failed"
    assert [each["error"] for each in connection.rows("select error from notify_worker.dead_letters")] == [
        'there is no campaign "sale"'
    ]
