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

from notify_worker.store import Store, configure, in_brief

log = logging.getLogger(__name__)

SEEN_EVERY = 1.0
"""Seconds between two signs of life."""
MUTE_AFTER = 3.0
"""Seconds for which a session may stay silent."""
DEAD_AFTER = 3.0
"""Seconds for which a lock must stay free, and the row unmoved, until its worker counts as dead."""


class Liveness:
    """The sign of life of this process. It has an id from `enter` on, and another one after each lost session."""

    def __init__(self, conninfo: str, lease: timedelta) -> None:
        self._conninfo = conninfo
        self._lease = lease
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._entering = asyncio.Lock()
        self._former: dict[int, float] = {}
        self._complaint = ""
        self.worker_id = 0
        self.name = ""

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
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(MUTE_AFTER):
                    await self._connection.execute("select leave(%s)", [[self.worker_id, *self._former]])
        await self._connection.close()

    async def _take_an_id(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self._conninfo)
        await configure(connection)
        cursor = await connection.execute(
            "select id, name from enter(%s, %s, %s)", [socket.gethostname(), os.getpid(), self._lease]
        )
        row = await cursor.fetchone()
        assert row is not None
        if self._connection is not None:
            self._former[self.worker_id] = monotonic() + self._lease.total_seconds()
        self._connection, (self.worker_id, self.name) = connection, row
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="liveness")
        log.info("worker %s is here", self.name)

    async def lose(self) -> None:
        """Give this id up: the next `enter` takes another one."""
        if self._connection is not None:
            await self._connection.close()

    async def _keep(self) -> None:
        """Give a sign of life each second. The session is given up where it is gone or mute, and not for a mere refusal."""
        while True:
            await asyncio.sleep(SEEN_EVERY)
            try:
                async with asyncio.timeout(MUTE_AFTER):
                    await self._give_a_sign(await self.enter())
            except TimeoutError:
                log.warning("worker %s: its session is mute; it goes on under a new name", self.name)
                await self.lose()
            except psycopg.Error as error:
                self._complain(in_brief(error))

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            log.warning("worker %s could not give a sign of life (%s)", self.name, what)
        self._complaint = what

    async def _give_a_sign(self, worker_id: int) -> None:
        """Say that this worker lives, also under the ids that it had while their last leases may still run."""
        assert self._connection is not None
        self._former = {former: until for former, until in self._former.items() if until > monotonic()}
        cursor = await self._connection.execute(
            "select %s = any (array(select still_here(%s)))", [worker_id, [worker_id, *self._former]]
        )
        row = await cursor.fetchone()
        self._complaint = ""
        if row is None or not row[0]:
            log.warning("worker %s was taken for dead; it goes on under a new name", self.name)
            await self.lose()


async def rescue(store: Store) -> int:
    """Put back in line what dead workers held; return how many notifications.

    Dead is whose lock is free now and again 3 s later, and was not seen in between: this waits for it, with no
    connection in hand.
    """
    suspects = await store.suspects()
    if not suspects:
        return 0
    await asyncio.sleep(DEAD_AFTER)
    dead = [suspect for suspect in await store.suspects() if suspect in suspects]
    put_back = sum([await store.bury(suspect) for suspect in dead])
    if dead:
        log.warning("%d workers are dead; %d notifications of theirs are back in line", len(dead), put_back)
    return put_back


async def requeue_orphans(store: Store) -> None:
    """Put back in line what dead workers held, and ring for what is due and has nobody."""
    await rescue(store)
    await store.sweep_jobs()
    if await store.something_is_due():
        await store.ring()
