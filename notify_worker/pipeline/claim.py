"""Claims due notifications: how many at once, and how a worker goes to sleep without missing a commit.

A producer that reads the awake mark sends no wake-up. So before a worker sleeps, it lets the mark expire, waits for
transactions that may have read it, and polls once more.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from time import monotonic
from uuid import uuid4

import psycopg

from notify_worker.database.store import Claim, Store
from notify_worker.model import Delivery
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.projects import Projects
from notify_worker.pipeline.recorder import FLUSH_SIZE, Recorder
from notify_worker.pipeline.slots import Slots

PREFETCH = 10 * FLUSH_SIZE
"""Deliveries held beyond the slots, at most: they wait for a slot, a quick retry or the recorder."""
AWAKE_FOR = 0.2
"""Seconds for which the awake mark is valid."""
AWAKE_POLL_INTERVAL = 0.01
"""Seconds between two polls while a worker is awake."""
OPEN_WRITERS_TIMEOUT = 1.0
"""Seconds for which a worker waits, before it sleeps, for transactions that may have read the awake mark."""
MAX_TOKEN_WAIT = 0.1
"""Seconds for which a worker waits for tokens, at most: other projects may become due meanwhile."""


class Claimer:
    """Claims for one process, within its free slots, its memory and the tokens of its rate limiters."""

    def __init__(
        self,
        store: Store,
        *,
        heartbeat: Heartbeat,
        projects: Projects,
        recorder: Recorder,
        slots: Slots,
        stopping: asyncio.Event,
        start_within: timedelta,
    ) -> None:
        """`start_within` is how long after the beginning of a claim its requests may start."""
        self._store = store
        self._heartbeat = heartbeat
        self._projects = projects
        self._recorder = recorder
        self._slots = slots
        self._outstanding = heartbeat.outstanding
        self._stopping = stopping
        self._start_within = start_within
        self._worker_id = 0

    def is_over(self, deadline: float) -> bool:
        """Return True once nothing more is claimed: the worker stops, or the deadline (`time.monotonic()`) has passed."""
        return self._stopping.is_set() or monotonic() >= deadline

    async def claims(self, deadline: float) -> AsyncIterator[list[Delivery]]:
        """Yield the deliveries of each claim until nothing is due and no producer counts on this worker to be awake.

        `deadline` (`time.monotonic()`) ends it in any case. Raises psycopg.Error.
        """
        awake_until = None
        is_last = False
        while not self.is_over(deadline):
            if (deliveries := await self._claim(deadline)) is not None:
                yield deliveries
                awake_until, is_last = await self._mark_awake(), False
            elif awake_until is None or is_last:
                return
            elif await self._may_be_seen_awake(awake_until):
                await asyncio.sleep(AWAKE_POLL_INTERVAL)
            else:
                is_last = True

    async def _claim(self, deadline: float) -> list[Delivery] | None:
        """Claim once there is capacity. None: nothing was due, or the worker stops, or the deadline has passed."""
        while (capacity := self._capacity()) <= 0 and not self.is_over(deadline):
            await self._store.mark_awake()
            await self._projects.read()
            await self._outstanding.wait_for_progress(AWAKE_FOR / 2)
        if self.is_over(deadline):
            return None
        # Register before reading the projects: their rates are divided by the number of workers, this one included.
        former_id, self._worker_id = self._worker_id, await self._heartbeat.ensure_registered()
        await self._projects.read(force=self._worker_id != former_id)
        claim = await self._claim_at_most(capacity, self._worker_id)
        if not claim.picked and not await self._wait_for_tokens():
            return None
        return claim.deliveries

    async def _claim_at_most(self, capacity: int, worker_id: int) -> Claim:
        lease = uuid4()
        try:
            claim = await self._store.claim(worker_id, lease, capacity, self._limits(), self._start_within)
            self._take_tokens(claim.deliveries)
            await self._projects.reread_if_blocked(claim.deliveries)
        except psycopg.errors.ObjectNotInPrerequisiteState:
            await self._heartbeat.invalidate()  # rescued as dead: nothing was claimed, and another id is needed
            raise
        except BaseException:  # the claim may have committed all the same
            self._recorder.release_uncertain(lease)
            raise
        return claim

    def _capacity(self) -> int:
        """Return how many to claim: the free slots and one flush, within `PREFETCH`; 0 while that is too few."""
        slots, outstanding = self._slots, len(self._outstanding)
        capacity = min(slots.total + FLUSH_SIZE - slots.waiting - slots.taken, slots.total + PREFETCH - outstanding)
        return capacity if capacity >= min(slots.total, FLUSH_SIZE) // 2 or not outstanding else 0

    def _limits(self) -> dict[str, int]:
        """Return how many to claim of each project, without the projects that have unreported incidents."""
        now, unreported = monotonic(), self._projects.projects_with_unreported()
        available = {name: int(limiter.available(now)) for name, limiter in self._projects.limiters.items()}
        return {name: tokens for name, tokens in available.items() if tokens >= 1 and name not in unreported}

    def _take_tokens(self, deliveries: list[Delivery]) -> None:
        for project, count in Counter(delivery.project for delivery in deliveries).items():
            if limiter := self._projects.limiters.get(project):  # None if the project was deleted during the claim
                limiter.take(count, monotonic())

    async def _wait_for_tokens(self) -> bool:
        """If notifications are due and only tokens are missing, wait for tokens for a moment and return True."""
        now = monotonic()
        waits = [wait for limiter in self._projects.limiters.values() if (wait := limiter.wait(now))]
        if not waits or not await self._store.has_due():
            return False
        await asyncio.sleep(min(*waits, MAX_TOKEN_WAIT))
        return True

    async def _mark_awake(self) -> float:
        await self._store.mark_awake()
        return monotonic() + AWAKE_FOR

    async def _may_be_seen_awake(self, awake_until: float) -> bool:
        """Return True while the mark is valid, and after that while a transaction that may have read it is open."""
        now = monotonic()
        return now <= awake_until or (
            now <= awake_until + OPEN_WRITERS_TIMEOUT and await self._store.has_open_writers()
        )
