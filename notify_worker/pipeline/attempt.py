"""One attempt of a delivery: render it, send it in a slot, and retry quickly what may succeed within seconds."""

import asyncio
import logging
import random
from dataclasses import dataclass, field, replace
from time import monotonic

from notify_worker.model import BUG, Attempt, Delivery, Message, OnUnknown, Outcome, Verdict
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.project_state import ProjectState
from notify_worker.pipeline.render import render
from notify_worker.pipeline.retry import quick_retry
from notify_worker.pipeline.slots import Slots, wait_for
from notify_worker.pipeline.start_marks import StartMarks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class AttemptRun:
    """Runs one attempt, of one to three requests."""

    delivery: Delivery
    project: ProjectState
    slots: Slots
    stopping: asyncio.Event
    quick_retry_window: float
    """Seconds after `delivery.start_by` for which a second or third request may still start."""
    marks: StartMarks
    heartbeat: Heartbeat
    started: float = field(default_factory=monotonic)
    requests: int = 0
    outcome: Outcome | None = None

    async def run(self) -> Attempt | None:
        """Make the attempt. None: none of its requests may start, as after a stop, in a pause, or with the lease lost."""
        try:
            self.outcome = await self._render_and_send()
        except Exception:  # a bug costs this delivery alone, and says nothing about the provider
            log.exception(
                "delivery %d broke", self.delivery.id, extra={"event": "attempt_broke", "delivery_id": self.delivery.id}
            )
            self.outcome = Outcome(Verdict.UNKNOWN, error="an error in the worker itself; see its log", error_code=BUG)
        if not self.requests:
            self.project.observe_undecided(self.delivery, self.started)
        if self.outcome is None:
            return None
        answered = self.requests and self.outcome.error_code != BUG
        counts = self.project.observe(self.delivery, self.outcome, self.started) if answered else True
        jitter = random.random()  # noqa: S311  no secret depends on it
        return Attempt(
            delivery=self.delivery,
            outcome=self.outcome,
            started=self.started,
            finished=monotonic(),
            requests=self.requests,
            counts=counts,
            retry_in=self.project.policy.retry_in(self.delivery, self.outcome, counts=counts, jitter=jitter),
        )

    async def _render_and_send(self) -> Outcome | None:
        rendered = render(self.delivery)
        if isinstance(rendered, Outcome):
            return rendered
        return await quick_retry(self._is_quickly_retryable, self._wait)(self._request, rendered)

    async def _request(self, message: Message) -> Outcome | None:
        """Make one request. If none may start any more, the outcome of the last one stands."""
        if not self._may_start():
            return self.outcome
        async with self.slots:
            # Checked again after the mark, since writing it may have taken long.
            if self._may_start() and await self._is_marked() and self._may_start():
                if not self.requests:
                    self.started = monotonic()
                self.requests += 1
                answer = await self.project.sender.send(message)
                if answer.error_code != BUG:
                    self.project.stats.add_answer(answer, monotonic())
                self.outcome = combined(self.outcome, answer)
        return self.outcome

    def _may_start(self) -> bool:
        limit = self.delivery.start_by + (self.quick_retry_window if self.requests else 0)
        return (
            not self.stopping.is_set()
            and monotonic() <= min(limit, self.delivery.expires_by)
            and self.project.allows(self.delivery)
            and self.heartbeat.holds(self.delivery.worker_id)
        )

    async def _is_marked(self) -> bool:
        """With on_unknown = hold, store that a request starts: after a crash, the mark tells which may have been sent."""
        return (
            self.delivery.on_unknown is not OnUnknown.HOLD or self.requests > 0 or await self.marks.mark(self.delivery)
        )

    def _is_quickly_retryable(self, outcome: Outcome | None) -> bool:
        """Return whether the same request may be made again within seconds."""
        if outcome is None or not outcome.quickly_retryable or not self._may_start():
            return False
        if outcome.verdict is Verdict.PAUSED:  # FCM rejected the access token, so it did not accept the message
            return True
        if self.delivery.on_unknown is OnUnknown.HOLD or self.delivery.probe:
            return False
        return outcome.http_status is None or self.project.stats.quick_retry_allowed(monotonic())

    async def _wait(self, seconds: float) -> None:
        """Wait between two requests, without a slot, unless the worker stops."""
        await wait_for(self.stopping, seconds)


def combined(previous: Outcome | None, latest: Outcome) -> Outcome:
    """Return the outcome of both. RETRY or PAUSED after UNKNOWN stays UNKNOWN: FCM may have the earlier request."""
    was_unknown = previous is not None and previous.verdict is Verdict.UNKNOWN
    if was_unknown and latest.verdict in (Verdict.RETRY, Verdict.PAUSED):
        return replace(latest, verdict=Verdict.UNKNOWN)
    return latest
