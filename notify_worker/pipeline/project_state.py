"""The circuit breaker of one project: its row, its sender, the answers of the last minute, and the blocked scopes.

An incident that this process opens or closes is reported to the database; the other workers learn of it within a second.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import assert_never

from notify_worker.model import TOPIC_KINDS, Change, Delivery, Incident, Outcome, Pause, Project, Scope, Verdict
from notify_worker.pipeline.answer_stats import SENDER_MISMATCH, AnswerStats, is_trouble
from notify_worker.pipeline.retry import APNS_AND_WEB, RetryPolicy
from notify_worker.senders import Sender

log = logging.getLogger(__name__)

SCOPE_NAMES = {
    Scope.PROJECT: "all messages",
    Scope.APNS_WEB: "iOS and web",
    Scope.TOPICS: "topics",
    Scope.DEVICES: "the retirement of devices",
}
PROBED = (Scope.PROJECT, Scope.APNS_WEB)
"""The scopes whose incidents a probe can close."""


@dataclass(slots=True)
class ProjectState:
    """One project in this process. `observe` each outcome; ask `allows` before each request."""

    project: Project
    sender: Sender
    stats: AnswerStats = field(default_factory=AnswerStats)
    blocked: frozenset[Scope] = frozenset()
    """The scopes with an open incident."""
    unreported: list[Incident] = field(default_factory=list)
    """What this process has not reported to the database yet, the oldest first."""
    blocked_since: dict[Scope, float] = field(default_factory=dict)
    """When this process learned of each incident (`time.monotonic()`)."""
    changes: int = 0
    """Counts the incidents that were added and reported."""

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy in its row."""
        return RetryPolicy.of(self.project)

    def allows(self, delivery: Delivery) -> bool:
        """Return whether open incidents allow a request of this delivery to start. A probe always may."""
        return delivery.probe or not any(scope_covers(scope, delivery) for scope in self.blocked)

    def sync(self, project: Project, blocked: Iterable[str] | None) -> None:
        """Take over the project's row and its blocked scopes; None if this process may know more than the database."""
        self.project = project
        if blocked is None:
            return
        now_blocked = frozenset(Scope(scope) for scope in blocked)
        if {Scope.PROJECT, Scope.DEVICES} & (self.blocked - now_blocked):
            self.stats.clear()
        self.blocked_since.update(dict.fromkeys(now_blocked - self.blocked, monotonic()))
        self.blocked = now_blocked

    def observe(self, delivery: Delivery, outcome: Outcome, started: float = float("inf")) -> bool:
        """Open and close incidents by an outcome; return whether its attempt counts against the delivery.

        Nothing counts in an outage, so no delivery is given up because FCM was away for two hours. At least one request was
        made; `started` is when the first one began (`time.monotonic()`).
        """
        now = monotonic()
        self.stats.add_attempt(outcome, now, first=delivery.last_attempt_number == 0)
        if outcome.pause is not None:
            self._open(outcome.pause, outcome.error, now, outcome)
        elif is_trouble(outcome):
            last = delivery.attempts + 1 >= self.project.max_attempts
            # With many workers and few deliveries, none may see three failures in a row; but no outage may end a delivery.
            if self.stats.is_outage(now) or (last and not self.stats.succeeded_recently(now)):
                reason = f"an apparent outage; the last answer: {outcome.error}"
                self._open(Pause(Scope.PROJECT), reason, now, outcome)
        elif outcome.error_code == SENDER_MISMATCH:  # also for a probe: FCM answers, but may refuse all other tokens
            if self.stats.sender_mismatch_spike(now):
                reason = f"most tokens belong to another sender: {outcome.error}"
                self._open(Pause(Scope.PROJECT), reason, now, outcome)
        elif delivery.probe:
            self._observe_probe(delivery, outcome, started)
        if outcome.verdict is Verdict.UNREGISTERED and self.stats.unregistered_spike(now):
            reason = "more than a fifth of the last minute's answers say unregistered"
            self._open(Pause(Scope.DEVICES), reason, now, outcome)
        return not (is_trouble(outcome) and Scope.PROJECT in self.blocked)

    def observe_undecided(self, delivery: Delivery, started: float = float("inf")) -> None:
        """Ask for another probe at once, because this one decides nothing.

        Either FCM refused the message for its content, or no request was made.
        """
        for scope in self._probed_by(delivery, started):
            self._add(Incident(self.project.name, scope, Change.UNDECIDED))

    def _observe_probe(self, delivery: Delivery, outcome: Outcome, started: float) -> None:
        """Close the incidents that this probe was for, ask for another probe, or leave them as they are."""
        match outcome.verdict:
            case Verdict.SENT | Verdict.UNREGISTERED | Verdict.RETRY:  # FCM answers again; trouble never gets here
                self._close(delivery, outcome, started)
            case Verdict.FAILED:
                self.observe_undecided(delivery, started)
            case Verdict.PAUSED | Verdict.UNKNOWN:
                pass
            case _:
                assert_never(outcome.verdict)

    def _open(self, pause: Pause, reason: str | None, now: float, outcome: Outcome) -> None:
        if pause.scope in self.blocked:
            return
        self.blocked |= {pause.scope}
        self.blocked_since[pause.scope] = now
        exceeded = pause.lasts is not None and pause.scope is Scope.PROJECT
        rate = self.stats.accepted_per_second(now) if exceeded else None
        self._add(Incident(self.project.name, pause.scope, reason=reason, lasts=pause.lasts, sent_rate=rate))
        # The code alone, since a provider's error text may quote the message.
        answer = f"{outcome.http_status or ''} {outcome.error_code or outcome.verdict.value}".strip()
        log.warning(
            "project %s: %s blocked: %s; see its incident",
            self.project.name,
            SCOPE_NAMES[pause.scope],
            answer,
            extra={
                "event": "incident_opened",
                "project": self.project.name,
                "scope": pause.scope.value,
                "answer": answer,
            },
        )

    def _close(self, delivery: Delivery, outcome: Outcome, started: float) -> None:
        """Close the incidents that this probe was for. Only `sent` shows that Apple accepts the project's key again."""
        for scope in self._probed_by(delivery, started):
            if scope is Scope.APNS_WEB and outcome.verdict is not Verdict.SENT:
                continue
            self.blocked -= {scope}
            self._add(Incident(self.project.name, scope, Change.CLOSED))
            log.warning(
                "project %s: a probe succeeded; %s no longer blocked",
                self.project.name,
                SCOPE_NAMES[scope],
                extra={"event": "incident_closed", "project": self.project.name, "scope": scope.value},
            )
        self.stats.clear()

    def _probed_by(self, delivery: Delivery, started: float) -> list[Scope]:
        """Return the blocked scopes that this delivery probes, without those blocked after it started."""
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
    """Return whether this scope covers a delivery, as the SQL function of this name does."""
    match scope:
        case Scope.PROJECT:
            return True
        case Scope.APNS_WEB:
            return delivery.platform in APNS_AND_WEB
        case Scope.TOPICS:
            return delivery.kind in TOPIC_KINDS
        case Scope.DEVICES:
            return False
