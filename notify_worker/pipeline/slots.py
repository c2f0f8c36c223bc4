"""The limits on the work of a process: slots for its requests in flight, and the deliveries that it holds."""

import asyncio
from uuid import UUID

from notify_worker.model import Delivery

PROGRESS_INTERVAL = 0.01
"""Seconds between two checks while waiting for progress."""


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, for at most `seconds`; return whether it is."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return event.is_set()


class Slots:
    """The slots for a process's requests in flight: `async with slots` waits for one and takes it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.waiting = 0
        self.taken = 0
        self._free = asyncio.Semaphore(total)

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.taken += 1

    async def __aexit__(self, *error: object) -> None:
        self.taken -= 1
        self._free.release()

    def wake_waiters(self) -> None:
        """Let in every waiter, beyond the total: the worker stops, and each of them sees that and leaves."""
        for _ in range(self.waiting):
            self._free.release()


class Outstanding:
    """The deliveries that this process has claimed, and neither recorded nor released yet."""

    def __init__(self) -> None:
        self._worker_ids: dict[tuple[int, UUID], int] = {}  # by delivery and lease
        self._progress = asyncio.Event()

    def __len__(self) -> int:
        return len(self._worker_ids)

    def worker_ids(self) -> set[int]:
        """Return the worker ids under which they were claimed."""
        return set(self._worker_ids.values())

    def add(self, delivery: Delivery) -> None:
        """Add a delivery that was claimed."""
        self._worker_ids[delivery.id, delivery.lease] = delivery.worker_id

    def remove(self, delivery: Delivery) -> None:
        """Remove a delivery that is recorded or released."""
        del self._worker_ids[delivery.id, delivery.lease]
        self.progressed()

    def progressed(self) -> None:
        """Report progress: a request was answered, or something was recorded or released."""
        self._progress.set()

    async def wait_for_progress(self, within: float = PROGRESS_INTERVAL) -> None:
        """Return at the next progress, or after `within` seconds."""
        self._progress.clear()
        await wait_for(self._progress, within)
