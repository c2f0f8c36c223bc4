"""The way of a notification through a worker: claim, render, send, record, side by side, until nothing is due.

No transaction and no connection is held over a request. One slow answer holds nobody up: each delivery is a task of its
own, a bounded number of requests are in flight, and outcomes are recorded in batches.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import groupby, islice
from time import monotonic
from uuid import UUID, uuid4

import psycopg

from notify_worker.attempt import Places, Try
from notify_worker.errors import CredentialsError
from notify_worker.liveness import Liveness
from notify_worker.model import Attempt, Delivery, Project
from notify_worker.retry import RetryPolicy
from notify_worker.senders.opening import LazySender
from notify_worker.settings import Settings
from notify_worker.store import Store, in_brief

log = logging.getLogger(__name__)

FLUSH = 100
"""Outcomes that are recorded at once, at most."""
FLUSH_AFTER = 0.05
"""Seconds for which an outcome waits for others, at most."""
AHEAD = 10 * FLUSH
"""Deliveries in hand beyond those in flight at which nothing more is claimed: waiting, in a blip, or not yet recorded."""
AWAKE_FOR = 0.2
"""Seconds for which `stay_awake` tells producers not to ring."""
LOOK_EVERY = 0.01
"""Seconds between two looks while a worker is awake."""
WRITERS_AT_MOST = 1.0
"""Seconds for which a worker waits, before it sleeps, for transactions that may have read that it is awake."""
PROJECTS_EVERY = 5.0
"""Seconds after which the projects' rows are read again."""
RECORD_AGAIN_AFTER = 0.5
"""Seconds between two tries to record while the database is away."""
FINISH_WITHIN = 23.0
"""Seconds from a stop in which what is in flight has ended and is recorded; platforms kill after 30."""

OpenSender = Callable[[Project], LazySender]


class Pipeline:
    """One process's claim → render → send → record. `drain` runs it; `stop` and `close` end it."""

    def __init__(self, store: Store, liveness: Liveness, open_sender: OpenSender, settings: Settings) -> None:
        self._store = store
        self._liveness = liveness
        self._open_sender = open_sender
        self._settings = settings
        self._places = Places(settings.concurrency)
        self._in_hand: set[asyncio.Task[None]] = set()
        self._answered: deque[Attempt] = deque()
        self._unsent: list[Delivery] = []
        self._doubtful: list[UUID] = []  # leases whose claim was not answered
        self._recorder: asyncio.Task[None] | None = None
        self._claiming = False
        self._rung = asyncio.Event()
        self._answers = asyncio.Event()  # there is something to record
        self._moved = asyncio.Event()  # a delivery was answered, or recorded
        self._stopping = asyncio.Event()
        self._finish_by = float("inf")
        self._projects: dict[str, Project] = {}
        self._projects_read_at = float("-inf")
        self._senders: dict[Project, LazySender] = {}

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
                if await self._is_quiet(deadline) and not self._rung.is_set():
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
        return bool(self._in_hand or self._answered or self._unsent or self._doubtful)

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
            await self._something_moves(AWAKE_FOR / 2)
        if self._over(deadline):
            return False
        await self._read_projects()
        worker_id = await self._liveness.enter()
        start_within = self._settings.lease - self._settings.longest_attempt
        lease = uuid4()
        try:
            claimed = await self._store.claim(worker_id, lease, room, start_within)
            await self._know_projects_of(claimed or [])
        except psycopg.errors.ObjectNotInPrerequisiteState:
            await self._liveness.lose()  # taken for dead: nothing was claimed, and another id is due
            raise
        except (
            BaseException
        ):  # it may have been claimed, and only the answer was lost; or there it is, and can't be started
            self._doubtful.append(lease)
            self._wake_recorder()
            raise
        for delivery in claimed or ():
            self._start(delivery)
        return claimed is not None

    async def _know_projects_of(self, claimed: list[Delivery]) -> None:
        """Read the projects' rows again where a claim names one that is newer than the last reading."""
        if any(delivery.project not in self._projects for delivery in claimed):
            self._projects_read_at = float("-inf")
            await self._read_projects()

    def _room(self) -> int:
        """Say how many to claim: the free places and one flush, never in crumbs, and no more than memory is meant for."""
        places, outstanding = self._places, len(self._in_hand) + len(self._answered)
        room = min(places.total + FLUSH - places.waiting - places.taken, places.total + AHEAD - outstanding)
        return room if room >= min(places.total, FLUSH) // 2 or not outstanding else 0

    async def _read_projects(self) -> None:
        if monotonic() - self._projects_read_at >= PROJECTS_EVERY:
            self._projects = await self._store.projects()
            self._projects_read_at = monotonic()

    # ── render and send ──────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._deliver(delivery), name=f"delivery {delivery.id}")
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        project = self._projects.get(delivery.project)
        attempt = None if project is None else await self._try(delivery, project)
        if attempt is None:
            self._unsent.append(delivery)
        else:
            self._answered.append(attempt)
        self._wake_recorder()
        self._moved.set()

    async def _try(self, delivery: Delivery, project: Project) -> Attempt | None:
        return await Try(
            delivery,
            sender=self._sender(project),
            policy=RetryPolicy.of(project),
            places=self._places,
            stopping=self._stopping,
            mend_for=(self._settings.longest_attempt - self._settings.request_timeout).total_seconds(),
        ).run()

    async def open_senders(self) -> None:
        """Open each project's sender; log which can't be used. Raises CredentialsError, which says why, where none can."""
        await self._read_projects()
        problems: dict[str, CredentialsError] = {}
        for project in self._projects.values():
            try:
                await self._sender(project).open()
            except CredentialsError as error:
                problems[project.name] = error
        if problems and len(problems) == len(self._projects):
            raise CredentialsError("\n".join(map(str, problems.values())))
        for name, problem in problems.items():
            log.warning("project %s can't send: %s", name, problem)

    async def warm_up(self) -> None:
        """Fetch each project's token, so that the first push need not wait; log what can't be had."""
        await self._read_projects()
        for project in self._projects.values():
            try:
                await self._sender(project).warm_up()
            except CredentialsError as error:
                log.warning("project %s can't send: %s", project.name, error)
            except Exception as error:  # noqa: BLE001  another package's sender; its text may hold a secret
                log.warning("project %s can't send: its sender breaks (%s)", project.name, type(error).__name__)

    def _sender(self, project: Project) -> LazySender:
        if project not in self._senders:
            self._senders[project] = self._open_sender(project)
        return self._senders[project]

    # ── record ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _wake_recorder(self) -> None:
        self._answers.set()
        if self._recorder is None:
            self._recorder = asyncio.create_task(self._keep_recording(), name="record")

    async def _keep_recording(self) -> None:
        """Record what was answered, in batches; while the database is away, keep it and try again."""
        while True:
            await self._answers.wait()
            self._answers.clear()
            if len(self._answered) < FLUSH and self._places.taken:
                await asyncio.sleep(FLUSH_AFTER)
            try:
                await self._flush()
            except psycopg.Error as error:
                log.warning(
                    "the database refuses or is away (%s); %d answers wait", in_brief(error), len(self._answered)
                )
                await self._record_again()
            except Exception:  # a bug must not end the recording
                log.exception("recording has broken; %d answers wait", len(self._answered))
                await self._record_again()

    async def _record_again(self) -> None:
        await asyncio.sleep(RECORD_AGAIN_AFTER)
        self._answers.set()

    async def _flush(self) -> None:
        while self._answered:
            batch = list(islice(self._answered, FLUSH))
            for worker_id, attempts in groupby(batch, key=lambda attempt: attempt.delivery.worker_id):
                await self._record(worker_id, list(attempts))
            for _ in batch:
                self._answered.popleft()
            self._moved.set()
        while self._unsent:
            lease = self._unsent[0].lease
            given_back = [delivery for delivery in self._unsent if delivery.lease == lease]
            await self._store.release(lease, [delivery.id for delivery in given_back])
            for delivery in given_back:
                self._unsent.remove(delivery)
            self._moved.set()
        while self._doubtful:
            await self._store.release(self._doubtful[0])
            self._doubtful.pop(0)
            self._moved.set()

    async def _record(self, worker_id: int, attempts: list[Attempt]) -> None:
        """Record a batch; where the database refuses the data of one of its rows, record the others one by one."""
        try:
            await self._store.record(worker_id, attempts)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if len(attempts) == 1:
                delivery = attempts[0].delivery.id
                log.error(  # noqa: TRY400  the error's own text may hold the row
                    "the outcome of delivery %d was refused (%s); it will stand as unknown", delivery, in_brief(error)
                )
                return
            for attempt in attempts:
                await self._record(worker_id, [attempt])

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
        while self._busy() and monotonic() < self._finish_by:
            await self._something_moves(LOOK_EVERY)
        if self._busy():
            log.error("stopped with %d in flight and %d answers not recorded", len(self._in_hand), len(self._answered))

    async def close(self) -> None:
        """Finish, and give everything back. With something still in hand this worker does not leave: others find it dead."""
        await self.finish()
        leftover = [*self._in_hand, *([self._recorder] if self._recorder else [])]
        for task in leftover:
            task.cancel()
        await asyncio.gather(*leftover, return_exceptions=True)
        for sender in self._senders.values():
            await sender.aclose()
        await self._liveness.end(leaves=not self._busy())

    async def _something_moves(self, within: float) -> None:
        self._moved.clear()
        try:
            async with asyncio.timeout(within):
                await self._moved.wait()
        except TimeoutError:
            pass
