"""Claiming: how much a worker takes of what is due, and how it goes to sleep without missing a commit.

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
from notify_worker.pipeline.recorder import FLUSH, Recorder
from notify_worker.pipeline.slots import Slots

PREFETCH = 10 * FLUSH
"""Outstanding deliveries beyond the slots at which nothing is claimed: they wait for a slot, a retry or the recorder."""
AWAKE_FOR = 0.2
"""Seconds for which the awake mark holds."""
AWAKE_POLL_INTERVAL = 0.01
"""Seconds between two polls while a worker is awake."""
OPEN_WRITERS_TIMEOUT = 1.0
"""Seconds for which a worker waits, before it sleeps, for transactions that may have read the awake mark."""
LONGEST_TOKEN_WAIT = 0.1
"""Seconds for which a worker waits for a rate limiter, at most: other projects are due meanwhile."""


class Claimer:
    """Claims for one process: no more than there are slots, memory and tokens for."""

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
        """`start_within` is how long, from before a claim, its requests may start."""
        self._store = store
        self._heartbeat = heartbeat
        self._projects = projects
        self._recorder = recorder
        self._slots = slots
        self._outstanding = heartbeat.outstanding
        self._stopping = stopping
        self._start_within = start_within

    def is_over(self, deadline: float) -> bool:
        """Return True once nothing more is claimed: the worker stops, or the deadline (`time.monotonic()`) has passed."""
        return self._stopping.is_set() or monotonic() >= deadline

    async def until_nothing_is_due(self, deadline: float) -> AsyncIterator[list[Delivery]]:
        """Yield the deliveries of each claim, until nothing is due and no producer takes this worker for awake.

        Args:
            deadline: When to end in any case (`time.monotonic()`).

        Raises:
            psycopg.Error: The database refuses or is away.
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
        """Claim once there is capacity. None: nothing was due, or it is over."""
        while (capacity := self._capacity()) <= 0 and not self.is_over(deadline):
            await self._store.mark_awake()
            await self._projects.read()
            await self._outstanding.wait_for_progress(AWAKE_FOR / 2)
        if self.is_over(deadline):
            return None
        worker_id = (
            await self._heartbeat.ensure_registered()
        )  # first, since the rates are divided by the number of workers
        await self._projects.read()
        claim = await self._ask(worker_id, capacity)
        if not claim.picked and not await self._wait_for_tokens():
            return None
        return claim.deliveries

    async def _ask(self, worker_id: int, capacity: int) -> Claim:
        lease = uuid4()
        try:
            claim = await self._store.claim(worker_id, lease, capacity, self._limits(), self._start_within)
            self._take_tokens(claim.deliveries)
            await self._projects.read_what_is_claimed(claim.deliveries)
        except psycopg.errors.ObjectNotInPrerequisiteState:
            await self._heartbeat.invalidate()  # taken for dead: nothing was claimed, and another id is due
            raise
        except BaseException:  # perhaps only the answer was lost, or the deliveries are here and cannot be started
            self._recorder.release_uncertain(lease)
            raise
        return claim

    def _capacity(self) -> int:
        """Return how many to claim: the free slots and one flush, but no crumbs, and no more than memory is meant for."""
        slots, outstanding = self._slots, len(self._outstanding)
        capacity = min(slots.total + FLUSH - slots.waiting - slots.taken, slots.total + PREFETCH - outstanding)
        return capacity if capacity >= min(slots.total, FLUSH) // 2 or not outstanding else 0

    # ── rates ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _limits(self) -> dict[str, int]:
        """Return how many to claim of each project. Projects with an incident still to report are left out."""
        now, unreported = monotonic(), self._projects.projects_with_unreported()
        available = {name: int(limiter.available(now)) for name, limiter in self._projects.limiters.items()}
        return {name: tokens for name, tokens in available.items() if tokens >= 1 and name not in unreported}

    def _take_tokens(self, deliveries: list[Delivery]) -> None:
        for project, count in Counter(delivery.project for delivery in deliveries).items():
            if limiter := self._projects.limiters.get(project):  # else its row was deleted during the claim
                limiter.take(count, monotonic())

    async def _wait_for_tokens(self) -> bool:
        """If something is due and only tokens are missing, wait for them a little and return True."""
        now = monotonic()
        waits = [wait for limiter in self._projects.limiters.values() if (wait := limiter.wait(now))]
        if not waits or not await self._store.has_due():
            return False
        await asyncio.sleep(min(*waits, LONGEST_TOKEN_WAIT))
        return True

    # ── the awake mark ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _mark_awake(self) -> float:
        await self._store.mark_awake()
        return monotonic() + AWAKE_FOR

    async def _may_be_seen_awake(self, awake_until: float) -> bool:
        """Return True while the mark holds, and after that while a transaction is open that may have read it."""
        now = monotonic()
        return now <= awake_until or (
            now <= awake_until + OPEN_WRITERS_TIMEOUT and await self._store.has_open_writers()
        )
