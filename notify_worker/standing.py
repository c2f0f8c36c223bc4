"""How a project stands, as this process sees it: its row, its sender, its answers of the last minute, what of it is stopped.

What one process finds out it tells the database as an incident, which all others follow within a second.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic

from notify_worker.model import TOPIC_KINDS, Delivery, Incident, Outcome, Pause, Project, Scope, Verdict
from notify_worker.retry import APNS_AND_WEB, RetryPolicy
from notify_worker.senders import Sender
from notify_worker.window import FOREIGN, Window, is_trouble

log = logging.getLogger(__name__)

WORDS = {
    Scope.PROJECT: "all messages",
    Scope.APNS_WEB: "iOS and web",
    Scope.TOPICS: "topics",
    Scope.DEVICES: "retirements of devices",
}


@dataclass(slots=True)
class Standing:
    """How one project stands."""

    project: Project
    sender: Sender
    window: Window = field(default_factory=Window)
    closed: frozenset[Scope] = frozenset()
    found: list[Incident] = field(default_factory=list)
    """What the database has not been told yet."""
    since: dict[Scope, float] = field(default_factory=dict)
    """When this process came to know what is stopped (`time.monotonic()`)."""
    changes: int = 0
    """How often something was found out, or told."""

    @property
    def policy(self) -> RetryPolicy:
        """How patiently its deliveries are retried."""
        return RetryPolicy.of(self.project)

    def lets(self, delivery: Delivery) -> bool:
        """Say whether a request of this delivery may start, as far as pauses go. A probe always may."""
        return delivery.probe or not any(stops(scope, delivery) for scope in self.closed)

    def follow(self, project: Project, closed: Iterable[str] | None) -> None:
        """Follow what the database says; `closed` is None where this process may know better what is stopped."""
        self.project = project
        if closed is None:
            return
        still = frozenset(Scope(scope) for scope in closed)
        if {Scope.PROJECT, Scope.DEVICES} & (self.closed - still):
            self.window.clear()
        self.since.update(dict.fromkeys(still - self.closed, monotonic()))
        self.closed = still

    def heed(self, delivery: Delivery, outcome: Outcome, started: float = float("inf")) -> bool:
        """Draw the consequences of an attempt for the project; say whether it counts against its delivery.

        In an outage nothing counts: that FCM was away for two hours is no reason to give anything up.
        """
        now = monotonic()
        self.window.attempted(outcome, now, first=delivery.tries == 0)
        if outcome.pause is not None:
            self._stop(outcome.pause, outcome.error, now, outcome)
        elif is_trouble(outcome):
            last = delivery.attempts + 1 >= self.project.max_attempts
            # Of many workers with few deliveries none may see three in a row; yet nothing is given up in an outage.
            if self.window.is_outage(now) or (last and not self.window.gets_through(now)):
                because = f"an outage, as it seems; the last answer: {outcome.error}"
                self._stop(Pause(Scope.PROJECT), because, now, outcome)
        elif outcome.error_code == FOREIGN:  # of a probe too: it says that FCM is there, and not that others are taken
            if self.window.credentials_are_foreign(now):
                because = f"most tokens belong to another sender: {outcome.error}"
                self._stop(Pause(Scope.PROJECT), because, now, outcome)
        elif delivery.probe and outcome.verdict is not Verdict.PAUSED:
            self._go_on(delivery, outcome, started)
        if outcome.verdict is Verdict.UNREGISTERED and self.window.devices_vanish(now):
            because = "more than a fifth of the last minute's answers say unregistered"
            self._stop(Pause(Scope.DEVICES), because, now, outcome)
        return not (is_trouble(outcome) and Scope.PROJECT in self.closed)

    def _stop(self, pause: Pause, because: str | None, now: float, outcome: Outcome) -> None:
        if pause.scope in self.closed:
            return
        self.closed |= {pause.scope}
        self.since[pause.scope] = now
        exceeded = pause.lasts is not None and pause.scope is Scope.PROJECT
        rate = self.window.accepted_per_second(now) if exceeded else None
        self._find(Incident(self.project.name, pause.scope, because=because, lasts=pause.lasts, per_second=rate))
        # Its code alone: what a provider writes may quote the message.
        what = f"{outcome.http_status or ''} {outcome.error_code or outcome.verdict.value}".strip()
        log.warning("project %s: %s stop: %s; see its incident", self.project.name, WORDS[pause.scope], what)

    def _go_on(self, delivery: Delivery, outcome: Outcome, started: float) -> None:
        """End what this probe was for: not what began while it was in flight; nor what FCM has answered without Apple."""
        got_through = {Scope.PROJECT} | ({Scope.APNS_WEB} if outcome.verdict is Verdict.SENT else set())
        for scope in self.closed & got_through:
            if stops(scope, delivery) and self.since.get(scope, 0) < started:
                self.closed -= {scope}
                self._find(Incident(self.project.name, scope, over=True))
                log.warning("project %s: a probe got through; %s go on", self.project.name, WORDS[scope])
        self.window.clear()

    def _find(self, incident: Incident) -> None:
        self.found.append(incident)
        self.changes += 1


def stops(scope: Scope, delivery: Delivery) -> bool:
    """Say whether an incident of this scope stops a delivery, as the SQL function of this name does."""
    match scope:
        case Scope.PROJECT:
            return True
        case Scope.APNS_WEB:
            return delivery.platform in APNS_AND_WEB
        case Scope.TOPICS:
            return delivery.kind in TOPIC_KINDS
        case Scope.DEVICES:
            return False
