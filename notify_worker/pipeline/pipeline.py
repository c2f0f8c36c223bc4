"""The life of a notification in a worker: claim, render, send, record.

No transaction and no connection is held over a request. One slow answer delays no other delivery: each one is a task of its
own, the number of requests in flight is bounded, and outcomes are recorded in batches.
"""

import asyncio
import logging
from functools import partial
from time import monotonic

from notify_worker.database.store import Store
from notify_worker.model import Delivery
from notify_worker.pipeline.attempt import AttemptRun
from notify_worker.pipeline.claim import Claimer
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.projects import OpenSender, Projects
from notify_worker.pipeline.recorder import Recorder
from notify_worker.pipeline.slots import Slots
from notify_worker.pipeline.start_marks import StartMarks
from notify_worker.settings import Settings

log = logging.getLogger(__name__)

FINISH_WITHIN = 23.0
"""Seconds from a stop in which everything in flight has to end and be recorded; platforms kill after 30."""
RELEASE_WITHIN = 3.0
"""Seconds from a stop in which claims without an answer are released; after that, others rescue what they hold."""


class Pipeline:
    """Claims, renders, sends and records for one process. `drain` runs it, `stop` and `close` end it."""

    def __init__(self, store: Store, heartbeat: Heartbeat, open_sender: OpenSender, settings: Settings) -> None:
        self.stopping = asyncio.Event()
        """Set once this process claims no more and starts no request."""
        self.unfinished = ""
        """The work that was neither finished nor recorded when the time for it was over."""
        self.projects = Projects(store, open_sender)
        self._heartbeat = heartbeat
        self._outstanding = heartbeat.outstanding
        self._slots = Slots(settings.concurrency)
        self._recorder = Recorder(store, self.projects, self._slots, self._outstanding)
        self._claimer = Claimer(
            store,
            heartbeat=heartbeat,
            projects=self.projects,
            recorder=self._recorder,
            slots=self._slots,
            stopping=self.stopping,
            start_within=settings.lease - settings.longest_attempt,
        )
        self._attempt = partial(
            AttemptRun,
            slots=self._slots,
            stopping=self.stopping,
            quick_retry_window=(settings.longest_attempt - settings.request_timeout).total_seconds(),
            marks=StartMarks(store),
            heartbeat=heartbeat,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._woken = asyncio.Event()
        self._stopped_at = float("inf")

    async def drain(self, *, within: float = float("inf")) -> bool:
        """Claim and deliver until nothing is due and everything is recorded; return whether nothing is left.

        It returns after `within` seconds in any case, while deliveries in flight go on. If another drain is running, it
        returns True at once, and the other one polls once more. Raises psycopg.Error.
        """
        if self._draining:
            self._woken.set()
            return True
        self._draining = True
        deadline = monotonic() + within
        try:
            while not self._claimer.is_over(deadline):
                self._woken.clear()
                async for deliveries in self._claimer.claims(deadline):
                    for delivery in deliveries:
                        self._start(delivery)
                if await self._is_idle(deadline):
                    return True
        finally:
            self._draining = False
        return False

    def _start(self, delivery: Delivery) -> None:
        self._outstanding.add(delivery)
        task = asyncio.create_task(self._deliver(delivery), name=f"delivery {delivery.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        """Render and send one delivery, then hand the result to the recorder."""
        try:
            project = self.projects.state(delivery.project)
            attempt = await self._attempt(delivery, project).run() if project is not None else None
        except Exception:  # a bug: the outcome is unknown, so the lease lapses and the delivery is requeued
            log.exception("delivery broke", extra={"event": "delivery_broke", "delivery_id": delivery.id})
            self._outstanding.remove(delivery)
            return
        if attempt is None:
            self._recorder.release(delivery)
        else:
            self._recorder.add(attempt)
        self._outstanding.progressed()

    async def _is_idle(self, deadline: float) -> bool:
        """Wait until everything is recorded. False: another wake-up came, or the time was over, before that."""
        while not (self._woken.is_set() or self._claimer.is_over(deadline)):
            if not self._recorder.busy:
                return True
            await self._outstanding.wait_for_progress()
        return False

    def stop(self) -> None:
        """Claim no more and start no request. Requests in flight go on."""
        if not self.stopping.is_set():
            self._stopped_at = monotonic()
        self.stopping.set()
        self._slots.wake_waiters()
        self._outstanding.progressed()

    async def finish(self) -> None:
        """Stop, and wait until everything in flight has ended and is recorded, for at most 23 s from the stop."""
        self.stop()
        self.unfinished = ""
        while self._recorder.busy and monotonic() < self._stopped_at + self._finish_within():
            await self._outstanding.wait_for_progress()
        if self._outstanding:
            in_flight, unrecorded = len(self._outstanding) - self._recorder.pending, self._recorder.unrecorded
            self.unfinished = f"{in_flight} deliveries in flight and {unrecorded} outcomes not recorded"
            log.error(
                "stopped with %s; another worker requeues them",
                self.unfinished,
                extra={"event": "stopped_unfinished", "in_flight": in_flight, "unrecorded": unrecorded},
            )

    def _finish_within(self) -> float:
        return FINISH_WITHIN if self._outstanding else RELEASE_WITHIN

    async def close(self) -> None:
        """Finish, then close everything.

        A worker that still holds deliveries does not unregister: others find it dead, and requeue them.
        """
        await self.finish()
        unfinished = list(self._tasks)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self._recorder.stop()
        try:
            await self.projects.aclose()
        finally:
            await self._heartbeat.close(unregister=not self._recorder.busy and not self._recorder.has_uncertain_leases)
