"""What comes back from the requests, on its way to the database: kept until it is recorded, in batches.

While the database is away, or refuses, it is kept and tried again. Incidents go first: a delivery that is given back because
of one must not be claimed again before it is known.
"""

import asyncio
import logging
from collections import deque
from itertools import groupby, islice
from time import monotonic
from uuid import UUID

import psycopg

from notify_worker.database.connections import STATEMENT_WITHIN, summary
from notify_worker.database.store import Store
from notify_worker.log_once import LogOnce
from notify_worker.model import Attempt, Delivery
from notify_worker.pipeline.projects import Projects
from notify_worker.pipeline.slots import Outstanding, Slots

log = logging.getLogger(__name__)

FLUSH = 100
"""Outcomes that are recorded at once, at most."""
FLUSH_AFTER = 0.05
"""Seconds for which an outcome waits for others, at most."""
RELEASE_AGAIN_AFTER = 1.0
"""Seconds between two looks for what a claim whose answer was lost has taken: it may commit after its connection broke."""
RECORD_AGAIN_AFTER = 0.5
"""Seconds between two tries to record while the database is away."""
REFUSED = (psycopg.DataError, psycopg.IntegrityError, TypeError, ValueError)
"""Errors of a batch's content, with which it would be refused each time."""


class Recorder:
    """Takes the results of attempts; a task of its own records them, and counts their deliveries as outstanding no longer.

    While a slot is taken, a request is in flight: results then wait a moment for the next ones.
    """

    def __init__(self, store: Store, projects: Projects, slots: Slots, outstanding: Outstanding) -> None:
        self._store = store
        self._projects = projects
        self._slots = slots
        self._outstanding = outstanding
        self._answered: deque[Attempt] = deque()
        self._unsent: list[Delivery] = []
        self._uncertain: dict[UUID, float] = {}  # leases whose claim was not answered, and until when it may yet commit
        self._released_once: set[UUID] = set()  # of these, at least once
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log_once = LogOnce(log)

    @property
    def waiting(self) -> int:
        """How many answers are not recorded yet."""
        return len(self._answered)

    @property
    def pending(self) -> int:
        """How many deliveries are neither recorded nor given back yet."""
        return len(self._answered) + len(self._unsent)

    @property
    def busy(self) -> bool:
        """Whether anything that was claimed is neither recorded nor given back yet."""
        return bool(self._outstanding or self._uncertain.keys() - self._released_once)

    @property
    def has_uncertain_leases(self) -> bool:
        """Whether a claim whose answer was lost may yet commit."""
        return bool(self._uncertain)

    def add(self, attempt: Attempt) -> None:
        """Take what an attempt came to."""
        self._answered.append(attempt)
        self._wake()

    def release(self, delivery: Delivery) -> None:
        """Take a delivery that was claimed and not sent: it is given back."""
        self._unsent.append(delivery)
        self._wake()

    def release_uncertain(self, lease: UUID) -> None:
        """Take a lease whose claim was not answered: whatever it holds is given back."""
        self._uncertain[lease] = monotonic() + STATEMENT_WITHIN + RELEASE_AGAIN_AFTER
        self._wake()

    async def stop(self) -> None:
        """End it, whatever is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _wake(self) -> None:
        self._something.set()
        if self._task is None:
            self._task = asyncio.create_task(self._keep_recording(), name="record")

    async def _keep_recording(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            if len(self._answered) < FLUSH and self._slots.taken:
                await asyncio.sleep(FLUSH_AFTER)
            try:
                await self._flush()
            except psycopg.Error as error:
                self._log_once.warn(
                    "record_failed",
                    f"the database refuses or is away ({summary(error)}); answers wait to be recorded",
                    error=summary(error),
                )
            except Exception:  # a bug must not end the recording
                log.exception("recording has broken; %d answers wait", len(self._answered))
            else:
                self._log_once.reset()
                continue
            await asyncio.sleep(RECORD_AGAIN_AFTER)
            self._something.set()

    async def _flush(self) -> None:
        await self._projects.report()
        while self._answered:
            batch = list(islice(self._answered, FLUSH))
            for worker_id, attempts in groupby(batch, key=lambda attempt: attempt.delivery.worker_id):
                await self._record(worker_id, list(attempts))
            for _ in batch:
                self._outstanding.remove(self._answered.popleft().delivery)
            await self._projects.report()
        await self._release()
        for lease, until in list(self._uncertain.items()):
            over = monotonic() > until
            await self._store.release(lease)
            self._released_once.add(lease)
            if over:
                del self._uncertain[lease]
                self._released_once.discard(lease)
            self._outstanding.progressed()
        if self._uncertain:
            asyncio.get_running_loop().call_later(RELEASE_AGAIN_AFTER, self._something.set)

    async def _release(self) -> None:
        """Give back what was not sent, but for projects whose incidents the others do not know yet."""
        while free := [each for each in self._unsent if each.project not in self._projects.projects_with_unreported()]:
            lease = free[0].lease
            released = {each.id: each for each in free if each.lease == lease}
            await self._store.release(lease, list(released))
            self._unsent = [each for each in self._unsent if each.lease != lease or each.id not in released]
            for delivery in released.values():
                self._outstanding.remove(delivery)

    async def _record(self, worker_id: int, attempts: list[Attempt]) -> None:
        """Record a batch. If it is refused, record its rows one by one: a row that is refused alone ends as unknown."""
        try:
            await self._store.record(worker_id, attempts)
        except REFUSED as error:
            if len(attempts) > 1:
                for attempt in attempts:
                    await self._record(worker_id, [attempt])
                return
            delivery_id = attempts[0].delivery.id
            reason = summary(error) if isinstance(error, psycopg.Error) else type(error).__name__
            log.error(  # noqa: TRY400  the traceback may quote the row
                "the outcome of delivery %d was refused (%s); it ends as unknown",
                delivery_id,
                reason,
                extra={"event": "outcome_refused", "delivery_id": delivery_id, "error": reason},
            )
