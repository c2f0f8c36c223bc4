"""Stopping: no new claim and no new request; what is in flight ends and is recorded, if it does so in time."""

import asyncio
import logging
from time import monotonic

from notify_worker.pipeline.recorder import Recorder
from notify_worker.pipeline.slots import PROGRESS_INTERVAL, Outstanding, Slots

log = logging.getLogger(__name__)

FINISH_WITHIN = 23.0
"""Seconds from a stop in which everything in flight has to end and be recorded; platforms kill after 30."""


class Shutdown:
    """The stop of one process."""

    def __init__(self, slots: Slots, outstanding: Outstanding, recorder: Recorder) -> None:
        self._slots = slots
        self._outstanding = outstanding
        self._recorder = recorder
        self._finish_by = float("inf")
        self.stopping = asyncio.Event()
        """Set once this process claims no more and starts no request."""
        self.unfinished = ""
        """What this process had not ended and recorded when its time was over."""

    def request(self) -> None:
        """Claim no more and start no request. Requests in flight go on."""
        if not self.stopping.is_set():
            self._finish_by = monotonic() + FINISH_WITHIN
        self.stopping.set()
        self._slots.wake_waiters()
        self._outstanding.progressed()

    async def finish(self) -> None:
        """Stop, and wait until everything in flight has ended and is recorded, or the time for that is over."""
        self.request()
        self.unfinished = ""
        while self._recorder.busy and monotonic() < self._finish_by:
            await self._outstanding.wait_for_progress(PROGRESS_INTERVAL)
        if self._recorder.busy:
            waiting = self._recorder.waiting
            in_flight = len(self._outstanding) - self._recorder.pending
            self.unfinished = f"{in_flight} in flight and {waiting} answers not recorded"
            log.error(
                "stopped with %s; another worker requeues them",
                self.unfinished,
                extra={"event": "stopped_unfinished", "in_flight": in_flight, "unrecorded": waiting},
            )
