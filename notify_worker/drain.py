"""The way of a notification through a worker: claim, render, send, record, side by side, until nothing is due.

No transaction and no connection is held over a request. One slow answer holds nobody up: each delivery is a task of its
own, a bounded number of requests are in flight, and outcomes are recorded in batches.
"""

import asyncio
import logging
from collections import Counter
from time import monotonic
from uuid import uuid4

import psycopg

from notify_worker.attempt import Places, Try
from notify_worker.liveness import Liveness
from notify_worker.marker import Marker
from notify_worker.model import Delivery
from notify_worker.projects import OpenSender, Projects
from notify_worker.recorder import FLUSH, Recorder
from notify_worker.settings import Settings
from notify_worker.standing import Standing
from notify_worker.store import Claim, Store

log = logging.getLogger(__name__)

AHEAD = 10 * FLUSH
"""Deliveries in hand beyond those in flight at which nothing more is claimed: waiting, in a blip, or not yet recorded."""
AWAKE_FOR = 0.2
"""Seconds for which `stay_awake` tells producers not to ring."""
LOOK_EVERY = 0.01
"""Seconds between two looks while a worker is awake."""
RATION_WAIT = 0.1
"""Seconds for which a worker waits for its share of a project's rate, at most: it looks after the other projects too."""
WRITERS_AT_MOST = 1.0
"""Seconds for which a worker waits, before it sleeps, for transactions that may have read that it is awake."""
FINISH_WITHIN = 23.0
"""Seconds from a stop in which what is in flight has ended and is recorded; platforms kill after 30."""


class Pipeline:
    """One process's claim → render → send → record. `drain` runs it; `stop` and `close` end it."""

    def __init__(self, store: Store, liveness: Liveness, open_sender: OpenSender, settings: Settings) -> None:
        self._store = store
        self._liveness = liveness
        self._settings = settings
        self._places = Places(settings.concurrency)
        self._in_hand: dict[asyncio.Task[None], int] = {}  # and under which worker id
        self._claiming = False
        self._rung = asyncio.Event()
        self._moved = asyncio.Event()  # a delivery was answered, or recorded
        self._stopping = asyncio.Event()
        self._finish_by = float("inf")
        self.left = ""
        """What this process could not end and record when it stopped."""
        self.projects = Projects(store, open_sender)
        self._marker = Marker(store)
        self._recorder = Recorder(store, self.projects, self._moved, lambda: self._places.taken > 0)
        liveness.in_use = lambda: {*self._in_hand.values(), *self._recorder.worker_ids()}

    # ── drain ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def drain(self, *, within: float = float("inf")) -> bool:
        """Claim until nothing is due and all of it is recorded; say so, or say False: `within` seconds were not enough.

        Where a drain is at it already, that one looks once more, and this returns True at once. Raises psycopg.Error.
        """
        if self._claiming:
            self._rung.set()
            return True
        self._claiming = True
        deadline = monotonic() + within
        try:
            while not self._over(deadline):
                self._rung.clear()
                await self._claim_until_nothing_is_due(deadline)
                if await self._is_quiet(deadline) and not self._rung.is_set() and not self._over(deadline):
                    return True
        finally:
            self._claiming = False
        return False

    def _over(self, deadline: float) -> bool:
        return self._stopping.is_set() or monotonic() >= deadline

    async def _is_quiet(self, deadline: float) -> bool:
        """Wait until nothing is in hand, or somebody rings, or the time is over; say whether nothing is in hand."""
        while self._busy() and not self._rung.is_set() and not self._over(deadline):
            await self._something_moves(LOOK_EVERY)
        return not self._busy()

    def _busy(self) -> bool:
        return bool(self._in_hand or self._recorder.busy)

    # ── claim ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _claim_until_nothing_is_due(self, deadline: float) -> None:
        """Claim while there is something; then stay awake a little, and sleep so that no commit is missed.

        Whoever read that a worker is awake, and commits after the last look, was still writing when the mark had run
        out: so wait for those, then look once more.
        """
        awake_until = 0.0
        while not self._over(deadline):
            if awake_until:
                awake_until = await self._stay_awake()
            while await self._claim(deadline):
                awake_until = await self._stay_awake()
            if not awake_until or not await self._look_while_awake(awake_until, deadline):
                return

    async def _look_while_awake(self, awake_until: float, deadline: float) -> bool:
        """Look until the mark has run out and nobody is left who may have read it; say whether a look found something."""
        patience = awake_until + WRITERS_AT_MOST
        while monotonic() <= awake_until or (monotonic() <= patience and await self._store.somebody_writes()):
            await asyncio.sleep(LOOK_EVERY)
            if await self._claim(deadline):
                return True
            if self._over(deadline):
                return False
        return await self._claim(deadline)

    async def _stay_awake(self) -> float:
        await self._store.stay_awake()
        return monotonic() + AWAKE_FOR

    async def _claim(self, deadline: float) -> bool:
        """Take what there is room for and start it; say whether anything was due. Once the time is over, take nothing."""
        while (room := self._room()) <= 0 and not self._over(deadline):
            await self._store.stay_awake()
            await self.projects.read()
            await self._something_moves(AWAKE_FOR / 2)
        if self._over(deadline):
            return False
        worker_id = await self._liveness.enter()  # first, since the rates are divided by the number of workers
        await self.projects.read()
        claim = await self._claimed(worker_id, room)
        for delivery in claim.deliveries:
            self._start(delivery)
        return claim.picked > 0 or await self._wait_for_tokens()

    def _limits(self) -> dict[str, int]:
        """Return how many to claim of each project. Projects with an incident still to report are left out."""
        now, unreported = monotonic(), self.projects.untold()
        available = {name: int(limiter.available(now)) for name, limiter in self.projects.limiters.items()}
        return {name: tokens for name, tokens in available.items() if tokens >= 1 and name not in unreported}

    def _take_tokens(self, deliveries: list[Delivery]) -> None:
        for project, count in Counter(delivery.project for delivery in deliveries).items():
            if limiter := self.projects.limiters.get(project):  # else its row was deleted during the claim
                limiter.take(count, monotonic())

    async def _wait_for_tokens(self) -> bool:
        """If something is due and only tokens are missing, wait for them a little and return True."""
        now = monotonic()
        waits = [wait for limiter in self.projects.limiters.values() if (wait := limiter.wait(now))]
        if not waits or not await self._store.something_is_due():
            return False
        await asyncio.sleep(min(*waits, RATION_WAIT))
        return True

    async def _claimed(self, worker_id: int, room: int) -> Claim:
        start_within = self._settings.lease - self._settings.longest_attempt
        lease = uuid4()
        try:
            claim = await self._store.claim(worker_id, lease, room, self._limits(), start_within)
            self._take_tokens(claim.deliveries)
            await self.projects.read_what_is_claimed(claim.deliveries)
        except psycopg.errors.ObjectNotInPrerequisiteState:
            await self._liveness.lose()  # taken for dead: nothing was claimed, and another id is due
            raise
        except BaseException:  # perhaps only the answer was lost; or it is here, and can't be started
            self._recorder.doubt(lease)
            raise
        return claim

    def _room(self) -> int:
        """Say how many to claim: the free places and one flush, never in crumbs, and no more than memory is meant for."""
        places, outstanding = self._places, len(self._in_hand) + self._recorder.in_hand
        room = min(places.total + FLUSH - places.waiting - places.taken, places.total + AHEAD - outstanding)
        return room if room >= min(places.total, FLUSH) // 2 or not outstanding else 0

    # ── render, send, record ─────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._deliver(delivery), name=f"delivery {delivery.id}")
        self._in_hand[task] = delivery.worker_id
        task.add_done_callback(self._in_hand.pop)

    async def _deliver(self, delivery: Delivery) -> None:
        standing = self.projects.standing(delivery.project)
        attempt = None if standing is None else await self._try(delivery, standing).run()
        if attempt is None:
            self._recorder.give_back(delivery)
        else:
            self._recorder.take(attempt)
        self._moved.set()

    def _try(self, delivery: Delivery, standing: Standing) -> Try:
        return Try(
            delivery,
            standing,
            places=self._places,
            stopping=self._stopping,
            mend_for=(self._settings.longest_attempt - self._settings.request_timeout).total_seconds(),
            mark=self._marker.mark,
            holds=self._liveness.holds,
        )

    # ── stop ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def stopping(self) -> bool:
        """Say whether this process claims no more."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Claim no more, and start no request; what is in flight goes on."""
        if not self.stopping:
            self._finish_by = monotonic() + FINISH_WITHIN
        self._stopping.set()
        self._places.let_in_who_waits()
        self._moved.set()

    async def finish(self) -> None:
        """Stop, and wait until what is in flight has ended and is recorded, or its time is over."""
        self.stop()
        self.left = ""
        while self._busy() and monotonic() < self._finish_by:
            await self._something_moves(LOOK_EVERY)
        if self._busy():
            self.left = f"{len(self._in_hand)} in flight and {self._recorder.waiting} answers not recorded"
            log.error("stopped with %s; another worker puts it back in line", self.left)

    async def close(self) -> None:
        """Finish, and give everything back. With something still in hand this worker does not leave: others find it dead."""
        await self.finish()
        leftover = list(self._in_hand)
        for task in leftover:
            task.cancel()
        await asyncio.gather(*leftover, return_exceptions=True)
        await self._recorder.stop()
        await self.projects.aclose()
        await self._liveness.end(leaves=not self._busy() and not self._recorder.in_doubt)

    async def _something_moves(self, within: float) -> None:
        self._moved.clear()
        try:
            async with asyncio.timeout(within):
                await self._moved.wait()
        except TimeoutError:
            pass
