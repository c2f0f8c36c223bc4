"""Who lives, and what becomes of the work of who does not.

A worker that lives has a row, and a session that holds the advisory lock whose key is the row's id. Both end with it: the
lock at once when its process dies, since the session does.
"""

import asyncio
import contextlib
import logging
import os
import socket
from datetime import timedelta
from time import monotonic
from typing import Any

import psycopg

from notify_worker.complaint import Complaint
from notify_worker.session import answer_within, configure, configure_shared, connect, in_brief
from notify_worker.slots import Outstanding
from notify_worker.store import Store, Suspect

log = logging.getLogger(__name__)

SEEN_EVERY = 1.0
"""Seconds between two signs of life."""
STILL_TRUE_FOR = 10.0
"""Seconds for which a sign of life is good: who has stood still for longer may have been taken for dead."""
MUTE_AFTER = 3.0
"""Seconds for which a session may stay silent."""
SOON = 3.0
"""Seconds for which one run of the rescue waits to see whether a suspect stays one."""


class Liveness:
    """The sign of life of this process. It has an id from `enter` on, and another one after each lost session."""

    def __init__(self, conninfo: str, lease: timedelta, *, shared: bool = False) -> None:
        """`shared`: each transaction may find another session, so that no lock can be held."""
        self._conninfo = conninfo
        self._lease = lease
        self._shared = shared
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._entering = asyncio.Lock()
        self._former: set[int] = set()
        self._reconnected_at: float | None = None
        self._complaint = Complaint(log)
        self._seen_at = float("-inf")
        self.worker_id = 0
        self.name = ""
        self.entered = asyncio.Event()
        """Set whenever another id was taken."""
        self.outstanding = Outstanding()
        """The deliveries claimed under this id and the former ones, and not yet recorded."""

    @property
    def reconnected_ago(self) -> float | None:
        """Seconds since a lost session was replaced; None: none was lost."""
        return None if self._reconnected_at is None else monotonic() - self._reconnected_at

    def holds(self, worker_id: int) -> bool:
        """Say whether requests may begin that were claimed under this id: not once its session, and so its lock, is lost.

        Nor once its last sign of life is old: a process that has stood still does not know what became of it.
        """
        alive = self._connection is not None and not self._connection.closed
        return worker_id == self.worker_id and alive and monotonic() - self._seen_at < STILL_TRUE_FOR

    async def enter(self) -> int:
        """Return this worker's id; take one first where there is none, or where the session that held it is gone."""
        async with self._entering:
            if self._connection is None or self._connection.closed:
                await self._take_an_id()
        return self.worker_id

    async def end(self, *, leaves: bool) -> None:
        """End it: by leaving, with nothing in hand, or else just so, which others will take for death."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is None:
            return
        if leaves:
            # A database that is away, or mute, sees by itself that the session has ended.
            with contextlib.suppress(psycopg.Error):
                async with answer_within(self._connection, MUTE_AFTER):
                    await self._leave({self.worker_id, *self._former})
        await self._connection.close()

    async def lose(self) -> None:
        """Give this id up: the next `enter` takes another one."""
        if self._connection is not None:
            await self._connection.close()

    async def _take_an_id(self) -> None:
        connection = await connect(self._conninfo)
        try:
            row = await self._introduce(connection)
        except BaseException:
            await connection.close()
            raise
        if self._connection is not None:
            self._former.add(self.worker_id)
            self._reconnected_at = monotonic()
        self._connection, (self.worker_id, self.name) = connection, row
        self._seen_at = monotonic()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="liveness")
        self.entered.set()
        log.info("worker %s is here", self.name)

    async def _introduce(self, connection: psycopg.AsyncConnection[Any]) -> tuple[int, str]:
        await (configure_shared if self._shared else configure)(connection)
        async with answer_within(connection, MUTE_AFTER):
            cursor = await connection.execute(
                "select id, name from notify_worker.enter(%s, %s, %s, %s)",
                [socket.gethostname(), os.getpid(), self._lease, not self._shared],
            )
            row: tuple[int, str] | None = await cursor.fetchone()
        assert row is not None
        return row

    async def _keep(self) -> None:
        """Give a sign of life each second. A session that is gone or mute is replaced; a mere refusal is no reason."""
        while True:
            await asyncio.sleep(SEEN_EVERY)
            try:
                await self._give_a_sign(await self.enter())
            except psycopg.Error as error:
                self._complaint.say(f"worker {self.name} could not give a sign of life ({in_brief(error)})")

    async def _give_a_sign(self, worker_id: int) -> None:
        """Say that this worker lives; also under the ids that it had, until the last of what it held then is recorded."""
        assert self._connection is not None
        async with answer_within(self._connection, MUTE_AFTER):
            if over := self._former - self.outstanding.worker_ids():
                await self._leave(over)
                self._former -= over
            cursor = await self._connection.execute(
                "select %s = any (array(select notify_worker.still_here(%s)))", [worker_id, [worker_id, *self._former]]
            )
            row = await cursor.fetchone()
        self._seen_at = monotonic()
        self._complaint.over()
        if row is None or not row[0]:
            log.warning("worker %s was taken for dead; it goes on under a new name", self.name)
            await self.lose()

    async def _leave(self, worker_ids: set[int]) -> None:
        assert self._connection is not None
        await self._connection.execute("select notify_worker.leave(%s)", [list(worker_ids)])


class Rescue:
    """Puts back in line what dead workers held. Dead is whose lock stays free, unseen, for as long as its case asks for."""

    def __init__(self, store: Store, liveness: Liveness) -> None:
        self._store = store
        self._liveness = liveness
        self._since: dict[Suspect, float] = {}
        self._one_at_a_time = asyncio.Lock()
        self._complaint = Complaint(log)

    async def run_and_ring(self) -> None:
        """Run, and ring for what was put back; where the database is away, the next run will tell."""
        try:
            if await self.run():
                await self._store.ring()
            self._complaint.over()
        except psycopg.Error as error:
            self._complaint.say(f"the dead were not seen after ({in_brief(error)})")

    async def run(self) -> int:
        """Look for the dead, for 3 s where there are suspects, with no connection in hand; return how many were put back."""
        async with self._one_at_a_time:
            await self._look()
            waits = [left for suspect in self._since if (left := self._patience_left(suspect)) <= SOON]
            if not waits:
                return 0
            await asyncio.sleep(max(0, *waits))
            await self._look()
            dead = [suspect for suspect in self._since if self._patience_left(suspect) <= 0]
            put_back = sum([await self._store.bury(suspect) for suspect in dead])
        if dead:
            log.warning("%d workers are dead; %d notifications of theirs are back in line", len(dead), put_back)
        return put_back

    async def _look(self) -> None:
        now = monotonic()
        suspects = {
            (each.worker_id, each.seen_at): each for each in await self._store.suspects(self._liveness.reconnected_ago)
        }
        known = {(each.worker_id, each.seen_at): since for each, since in self._since.items()}
        self._since = {suspect: known.get(key, now) for key, suspect in suspects.items()}

    def _patience_left(self, suspect: Suspect) -> float:
        return suspect.patience - (monotonic() - self._since[suspect])


async def requeue_orphans(store: Store, rescue: Rescue) -> None:
    """Put back in line what dead workers held, and ring for what is due and has nobody."""
    await rescue.run()
    await store.sweep_jobs()
    if await store.something_is_due():
        await store.ring()
