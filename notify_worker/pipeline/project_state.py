"""What this process knows of one project: its row, its sender, the answers of the last minute, and which scopes are blocked.

What one process finds out it reports to the database as an incident, which all others see within a second.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic

from notify_worker.model import TOPIC_KINDS, Change, Delivery, Incident, Outcome, Pause, Project, Scope, Verdict
from notify_worker.pipeline.answer_stats import SENDER_MISMATCH, AnswerStats, is_trouble
from notify_worker.pipeline.retry import APNS_AND_WEB, RetryPolicy
from notify_worker.senders import Sender

log = logging.getLogger(__name__)

WORDS = {
    Scope.PROJECT: "all messages",
    Scope.APNS_WEB: "iOS and web",
    Scope.TOPICS: "topics",
    Scope.DEVICES: "retirements of devices",
}
PROBED = (Scope.PROJECT, Scope.APNS_WEB)
"""The scopes whose incidents a probe may close."""


@dataclass(slots=True)
class ProjectState:
    """A project as this process sees it. `observe` draws the consequences of each attempt; `allows` asks for them."""

    project: Project
    sender: Sender
    stats: AnswerStats = field(default_factory=AnswerStats)
    blocked: frozenset[Scope] = frozenset()
    """The scopes with an open incident."""
    unreported: list[Incident] = field(default_factory=list)
    """What this process has found out and the database does not know yet, the oldest first."""
    blocked_since: dict[Scope, float] = field(default_factory=dict)
    """When this process learned of each incident (`time.monotonic()`)."""
    changes: int = 0
    """How often something was found out, or reported."""

    @property
    def policy(self) -> RetryPolicy:
        """How patiently its deliveries are retried."""
        return RetryPolicy.of(self.project)

    def allows(self, delivery: Delivery) -> bool:
        """Say whether a request of this delivery may start, as far as incidents go. A probe always may."""
        return delivery.probe or not any(scope_covers(scope, delivery) for scope in self.blocked)

    def sync(self, project: Project, blocked: Iterable[str] | None) -> None:
        """Take over what the database says.

        Args:
            project: The project's row.
            blocked: The scopes of its open incidents; None where this process may know more than the database.
        """
        self.project = project
        if blocked is None:
            return
        now_blocked = frozenset(Scope(scope) for scope in blocked)
        if {Scope.PROJECT, Scope.DEVICES} & (self.blocked - now_blocked):
            self.stats.clear()
        self.blocked_since.update(dict.fromkeys(now_blocked - self.blocked, monotonic()))
        self.blocked = now_blocked

    def observe(self, delivery: Delivery, outcome: Outcome, started: float = float("inf")) -> bool:
        """Draw the consequences of an attempt for the project; return whether it counts against its delivery.

        In an outage nothing counts: nothing is given up because FCM was away for two hours.

        Args:
            delivery: The delivery that was attempted.
            outcome: The attempt's outcome. At least one of its requests was made.
            started: When its first request began (`time.monotonic()`, seconds).
        """
        now = monotonic()
        self.stats.add_attempt(outcome, now, first=delivery.last_attempt_number == 0)
        if outcome.pause is not None:
            self._open(outcome.pause, outcome.error, now, outcome)
        elif is_trouble(outcome):
            last = delivery.attempts + 1 >= self.project.max_attempts
            # Of many workers with few deliveries none may see three in a row; yet nothing is given up in an outage.
            if self.stats.is_outage(now) or (last and not self.stats.succeeded_recently(now)):
                reason = f"an outage, as it seems; the last answer: {outcome.error}"
                self._open(Pause(Scope.PROJECT), reason, now, outcome)
        elif outcome.error_code == SENDER_MISMATCH:  # of a probe too: FCM answers, but may refuse all the others
            if self.stats.sender_mismatch_spike(now):
                reason = f"most tokens belong to another sender: {outcome.error}"
                self._open(Pause(Scope.PROJECT), reason, now, outcome)
        elif outcome.verdict is Verdict.FAILED:
            self.observe_undecided(delivery, started)
        elif delivery.probe and outcome.verdict is not Verdict.PAUSED:
            self._close(delivery, outcome, started)
        if outcome.verdict is Verdict.UNREGISTERED and self.stats.unregistered_spike(now):
            reason = "more than a fifth of the last minute's answers say unregistered"
            self._open(Pause(Scope.DEVICES), reason, now, outcome)
        return not (is_trouble(outcome) and Scope.PROJECT in self.blocked)

    def observe_undecided(self, delivery: Delivery, started: float = float("inf")) -> None:
        """Ask for another probe at once where this one says nothing of its project.

        Either FCM refused this one message for what is in it, or no request of it was made at all.
        """
        for scope in self._probed_by(delivery, started):
            self._add(Incident(self.project.name, scope, Change.UNDECIDED))

    def _open(self, pause: Pause, reason: str | None, now: float, outcome: Outcome) -> None:
        if pause.scope in self.blocked:
            return
        self.blocked |= {pause.scope}
        self.blocked_since[pause.scope] = now
        exceeded = pause.lasts is not None and pause.scope is Scope.PROJECT
        rate = self.stats.accepted_per_second(now) if exceeded else None
        self._add(Incident(self.project.name, pause.scope, reason=reason, lasts=pause.lasts, sent_rate=rate))
        # Its code alone: what a provider writes may quote the message.
        what = f"{outcome.http_status or ''} {outcome.error_code or outcome.verdict.value}".strip()
        log.warning(
            "project %s: %s stop: %s; see its incident",
            self.project.name,
            WORDS[pause.scope],
            what,
            extra={
                "event": "incident_opened",
                "project": self.project.name,
                "scope": pause.scope.value,
                "answer": what,
            },
        )

    def _close(self, delivery: Delivery, outcome: Outcome, started: float) -> None:
        """Close the incidents that this probe was for. Without `sent`, the answer is FCM's and says nothing of Apple."""
        for scope in self._probed_by(delivery, started):
            if scope is Scope.APNS_WEB and outcome.verdict is not Verdict.SENT:
                continue
            self.blocked -= {scope}
            self._add(Incident(self.project.name, scope, Change.CLOSED))
            log.warning(
                "project %s: a probe got through; %s go on",
                self.project.name,
                WORDS[scope],
                extra={"event": "incident_closed", "project": self.project.name, "scope": scope.value},
            )
        self.stats.clear()

    def _probed_by(self, delivery: Delivery, started: float) -> list[Scope]:
        """List the blocked scopes that this delivery is a probe of, but for those blocked while it was in flight."""
        if not delivery.probe:
            return []
        return [
            scope
            for scope in PROBED
            if scope in self.blocked and scope_covers(scope, delivery) and self.blocked_since.get(scope, 0) < started
        ]

    def _add(self, incident: Incident) -> None:
        self.unreported.append(incident)
        self.changes += 1


def scope_covers(scope: Scope, delivery: Delivery) -> bool:
    """Say whether a delivery is of this scope, as the SQL function of this name does."""
    match scope:
        case Scope.PROJECT:
            return True
        case Scope.APNS_WEB:
            return delivery.platform in APNS_AND_WEB
        case Scope.TOPICS:
            return delivery.kind in TOPIC_KINDS
        case Scope.DEVICES:
            return False
