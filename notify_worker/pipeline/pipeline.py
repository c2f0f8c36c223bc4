"""The life of a notification in a worker: claim, render, send, record.

No transaction and no connection is held over a request. One slow answer holds nobody up: each delivery is a task of its
own, a bounded number of requests are in flight, and outcomes are recorded in batches.
"""

import asyncio
import logging
from time import monotonic

from notify_worker.database.store import Store
from notify_worker.model import Attempt, Delivery
from notify_worker.pipeline.attempt import AttemptRun
from notify_worker.pipeline.claim import Claimer
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.projects import OpenSender, Projects
from notify_worker.pipeline.recorder import Recorder
from notify_worker.pipeline.shutdown import Shutdown
from notify_worker.pipeline.slots import PROGRESS_INTERVAL, Slots
from notify_worker.pipeline.start_marks import StartMarks
from notify_worker.settings import Settings

log = logging.getLogger(__name__)


class Pipeline:
    """One process's claim, render, send and record. `drain` runs it, `close` ends it."""

    def __init__(self, store: Store, heartbeat: Heartbeat, open_sender: OpenSender, settings: Settings) -> None:
        self._heartbeat = heartbeat
        self._outstanding = heartbeat.outstanding
        self._slots = Slots(settings.concurrency)
        self.projects = Projects(store, open_sender)
        self._recorder = Recorder(store, self.projects, self._slots, self._outstanding)
        self.shutdown = Shutdown(self._slots, self._outstanding, self._recorder)
        self._claimer = Claimer(
            store,
            heartbeat=heartbeat,
            projects=self.projects,
            recorder=self._recorder,
            slots=self._slots,
            stopping=self.shutdown.stopping,
            start_within=settings.lease - settings.longest_attempt,
        )
        self._marks = StartMarks(store)
        self._quick_retry_window = (settings.longest_attempt - settings.request_timeout).total_seconds()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._woken = asyncio.Event()

    async def drain(self, *, within: float = float("inf")) -> bool:
        """Claim and deliver until nothing is due and everything is recorded.

        Args:
            within: Seconds after which to return in any case; deliveries in flight go on.

        Returns:
            Whether nothing is left. True at once if another drain is running: that one polls once more.

        Raises:
            psycopg.Error: The database refuses or is away.
        """
        if self._draining:
            self._woken.set()
            return True
        self._draining = True
        deadline = monotonic() + within
        try:
            while not self._claimer.is_over(deadline):
                self._woken.clear()
                async for deliveries in self._claimer.until_nothing_is_due(deadline):
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
        """Render and send one delivery, and hand the result to the recorder."""
        try:
            attempt = await self._attempt(delivery)
        except (
            Exception
        ):  # a bug: nobody knows the outcome, so its lease lapses and the delivery is requeued as unknown
            log.exception("attempt broke", extra={"event": "attempt_broke", "delivery_id": delivery.id})
            self._outstanding.remove(delivery)
            return
        if attempt is None:
            self._recorder.release(delivery)
        else:
            self._recorder.add(attempt)
        self._outstanding.progressed()

    async def _attempt(self, delivery: Delivery) -> Attempt | None:
        """Make an attempt. None: no request of it may start, or its project's row is gone."""
        state = self.projects.state(delivery.project)
        if state is None:
            return None
        return await AttemptRun(
            delivery,
            state,
            slots=self._slots,
            stopping=self.shutdown.stopping,
            quick_retry_window=self._quick_retry_window,
            marks=self._marks,
            heartbeat=self._heartbeat,
        ).run()

    async def _is_idle(self, deadline: float) -> bool:
        """Wait until everything is recorded; return False if another wake-up comes, or the time is over, before that."""
        while not (self._woken.is_set() or self._claimer.is_over(deadline)):
            if not self._recorder.busy:
                return True
            await self._outstanding.wait_for_progress(PROGRESS_INTERVAL)
        return False

    async def close(self) -> None:
        """Finish, then close everything.

        A worker that still holds deliveries does not unregister: others find it dead, and requeue them.
        """
        await self.shutdown.finish()
        unfinished = list(self._tasks)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self._recorder.stop()
        await self.projects.aclose()
        await self._heartbeat.close(unregister=not self._recorder.busy and not self._recorder.has_uncertain_leases)
