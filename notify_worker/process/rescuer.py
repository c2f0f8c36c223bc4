"""Rescues the deliveries of dead workers, each second while this process runs."""

import asyncio
import logging

import psycopg

from notify_worker.database.connections import summary
from notify_worker.database.store import Rescue, Store
from notify_worker.log_once import LogOnce
from notify_worker.pipeline.heartbeat import Heartbeat

log = logging.getLogger(__name__)

RESCUE_INTERVAL = 1.0
"""Seconds between two rescues, at most."""
MIN_RESCUE_INTERVAL = 0.1
"""Seconds between two rescues, at least."""
GRACE_PERIOD = 3.0
"""Seconds after which most dead workers are known to be dead; a single rescue waits for so long."""


class Rescuer:
    """Makes the notifications of dead workers due again. The database decides which workers are dead."""

    def __init__(self, store: Store, heartbeat: Heartbeat) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._one_at_a_time = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._log_once = LogOnce(log)

    def start(self) -> None:
        """Rescue each second from now on, until `stop`."""
        self._running = asyncio.create_task(self._keep_rescuing(), name="rescuer")

    async def stop(self) -> None:
        """Rescue no more."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def rescue(self) -> int:
        """Rescue once, and once more if another worker may turn out to be dead within 3 s.

        Returns how many notifications became due again. Raises psycopg.Error.
        """
        first = await self._rescue_once()
        if first.again_in is None or first.again_in > GRACE_PERIOD:
            return first.notifications
        await asyncio.sleep(first.again_in)
        return first.notifications + (await self._rescue_once()).notifications

    async def _keep_rescuing(self) -> None:
        while True:
            again_in = None
            try:
                again_in = (await self._rescue_once()).again_in
                self._log_once.reset()
            except psycopg.Error as error:
                self._log_once.warn("rescue_failed", f"rescue failed: {summary(error)}; retrying", error=summary(error))
            except Exception:
                log.exception("rescue failed; retrying", extra={"event": "rescue_broke"})
            await asyncio.sleep(
                RESCUE_INTERVAL if again_in is None else min(RESCUE_INTERVAL, max(again_in, MIN_RESCUE_INTERVAL))
            )

    async def _rescue_once(self) -> Rescue:
        async with self._one_at_a_time:
            done = await self._store.rescue_dead_workers(self._heartbeat.reconnected_ago)
        if done.workers:
            log.warning(
                "%d workers are dead; %d of their notifications are due again",
                done.workers,
                done.notifications,
                extra={"event": "workers_rescued", "workers": done.workers, "notifications": done.notifications},
            )
        return done
