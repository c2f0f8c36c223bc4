"""Records the results of attempts in batches, and releases deliveries that were not sent.

Results are kept, and recorded later, while the database is away or refuses. Incidents are reported first: a delivery that is
released because of an incident must not be claimed again before the other workers know of it.
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

FLUSH_SIZE = 100
"""Outcomes that are recorded at once, at most."""
FLUSH_INTERVAL = 0.05
"""Seconds for which an outcome waits for others, at most."""
RELEASE_INTERVAL = 1.0
"""Seconds between two releases of an uncertain lease, whose claim may commit even after its connection broke."""
RECORD_INTERVAL_AFTER_ERROR = 0.5
"""Seconds between two flushes while the database is away."""
REFUSED = (psycopg.DataError, psycopg.IntegrityError, TypeError, ValueError)
"""Errors in the content of a batch: it would be refused each time."""


class Recorder:
    """Collects the results of attempts. A task of its own records them and releases unsent deliveries.

    While requests are in flight, results wait for a moment, so that more are recorded at once.
    """

    def __init__(self, store: Store, projects: Projects, slots: Slots, outstanding: Outstanding) -> None:
        self._store = store
        self._projects = projects
        self._slots = slots
        self._outstanding = outstanding
        self._results: deque[Attempt] = deque()
        self._unsent: list[Delivery] = []
        self._uncertain: dict[UUID, float] = {}  # leases whose claim got no answer, and until when it may commit
        self._released_once: set[UUID] = set()  # those of them that were released at least once
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log_once = LogOnce(log)

    @property
    def unrecorded(self) -> int:
        """The number of results not recorded yet."""
        return len(self._results)

    @property
    def pending(self) -> int:
        """The number of deliveries whose attempt is over, neither recorded nor released yet."""
        return len(self._results) + len(self._unsent)

    @property
    def busy(self) -> bool:
        """Whether any claimed delivery is neither recorded nor released yet."""
        return bool(self._outstanding or self._uncertain.keys() - self._released_once)

    @property
    def has_uncertain_leases(self) -> bool:
        """Whether a claim that got no answer may still commit."""
        return bool(self._uncertain)

    def add(self, attempt: Attempt) -> None:
        """Record this result with the next batch."""
        self._results.append(attempt)
        self._wake()

    def release(self, delivery: Delivery) -> None:
        """Release a delivery that was claimed and not sent."""
        self._unsent.append(delivery)
        self._wake()

    def release_uncertain(self, lease: UUID) -> None:
        """Release whatever a lease holds whose claim got no answer, until that claim can no longer commit."""
        self._uncertain[lease] = monotonic() + STATEMENT_WITHIN + RELEASE_INTERVAL
        self._wake()

    async def stop(self) -> None:
        """Stop recording, even if results are left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _wake(self) -> None:
        self._has_work.set()
        if self._task is None:
            self._task = asyncio.create_task(self._keep_recording(), name="record")

    async def _keep_recording(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            if len(self._results) < FLUSH_SIZE and self._slots.taken:
                await asyncio.sleep(FLUSH_INTERVAL)
            try:
                await self._flush()
            except psycopg.Error as error:
                self._log_once.warn(
                    "record_failed",
                    f"the database is away or refuses ({summary(error)}); outcomes wait to be recorded",
                    error=summary(error),
                )
            except Exception:  # a bug must not end the recording
                log.exception(
                    "recording broke; %d outcomes wait",
                    self.unrecorded,
                    extra={"event": "record_broke", "unrecorded": self.unrecorded},
                )
            else:
                self._log_once.reset()
                continue
            await asyncio.sleep(RECORD_INTERVAL_AFTER_ERROR)
            self._has_work.set()

    async def _flush(self) -> None:
        locked = await self._projects.report()
        while self._results:
            batch = list(islice(self._results, FLUSH_SIZE))
            for worker_id, attempts in groupby(batch, key=lambda attempt: attempt.delivery.worker_id):
                await self._record(worker_id, list(attempts))
            for _ in batch:
                self._outstanding.remove(self._results.popleft().delivery)
            locked = locked or await self._projects.report()
        await self._release_unsent()
        await self._release_uncertain()
        if locked:
            raise locked

    async def _release_unsent(self) -> None:
        """Release deliveries that were not sent, except those of projects with unreported incidents."""
        while free := [each for each in self._unsent if each.project not in self._projects.projects_with_unreported()]:
            lease = free[0].lease
            released = {each.id: each for each in free if each.lease == lease}
            await self._store.release(lease, list(released))
            self._unsent = [each for each in self._unsent if each.lease != lease or each.id not in released]
            for delivery in released.values():
                self._outstanding.remove(delivery)

    async def _release_uncertain(self) -> None:
        for lease, until in list(self._uncertain.items()):
            is_last = monotonic() > until
            await self._store.release(lease)
            self._released_once.add(lease)
            if is_last:
                del self._uncertain[lease]
                self._released_once.discard(lease)
            self._outstanding.progressed()
        if self._uncertain:
            asyncio.get_running_loop().call_later(RELEASE_INTERVAL, self._has_work.set)

    async def _record(self, worker_id: int, attempts: list[Attempt]) -> None:
        """Record a batch; if it is refused, its rows one by one. A row that is refused by itself ends as unknown."""
        try:
            await self._store.record(worker_id, attempts)
        except REFUSED as error:
            if len(attempts) > 1:
                for attempt in attempts:
                    await self._record(worker_id, [attempt])
                return
            delivery_id = attempts[0].delivery.id
            reason = summary(error) if isinstance(error, psycopg.Error) else type(error).__name__
            log.error(  # noqa: TRY400  a traceback may quote the row
                "the outcome of delivery %d was refused (%s); it ends as unknown",
                delivery_id,
                reason,
                extra={"event": "outcome_refused", "delivery_id": delivery_id, "error": reason},
            )
