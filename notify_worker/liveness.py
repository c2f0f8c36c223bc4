"""Who lives, and what becomes of the work of who does not.

A worker that lives has a row, and a session that holds the advisory lock whose key is the row's id. Both end with it: the
lock at once when its process dies, since the session does.
"""

import asyncio
import logging
import os
import socket
from datetime import timedelta
from typing import Any

import psycopg

from notify_worker.store import Store, configure

log = logging.getLogger(__name__)

SEEN_EVERY = 1.0
"""Seconds between two signs of life."""
DEAD_AFTER = 3.0
"""Seconds for which a lock must stay free, and the row unmoved, until its worker counts as dead."""


class Liveness:
    """The sign of life of this process. It has an id from `enter` on, and another one after each lost connection."""

    def __init__(self, conninfo: str, lease: timedelta) -> None:
        self._conninfo = conninfo
        self._lease = lease
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._entering = asyncio.Lock()
        self.worker_id = 0
        self.name = ""

    async def enter(self) -> int:
        """Return this worker's id; take one first where there is none, or where the session that held it is gone."""
        async with self._entering:
            if self._connection is None or self._connection.closed:
                await self._take_an_id()
        return self.worker_id

    async def leave(self) -> None:
        """End it, with nothing in hand."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None and not self._connection.closed:
            await self._connection.execute("select leave(%s)", [self.worker_id])
            await self._connection.close()

    async def _take_an_id(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self._conninfo)
        await configure(connection)
        cursor = await connection.execute(
            "select id, name from enter(%s, %s, %s)", [socket.gethostname(), os.getpid(), self._lease]
        )
        row = await cursor.fetchone()
        assert row is not None
        self._connection, (self.worker_id, self.name) = connection, row
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="liveness")
        log.info("worker %s is here", self.name)

    async def _keep(self) -> None:
        """Give a sign of life each second; after trouble, under a new id."""
        while True:
            await asyncio.sleep(SEEN_EVERY)
            try:
                await self._give_a_sign()
            except psycopg.Error as error:
                log.warning("worker %s lost its session: %s", self.name, type(error).__name__)
                await self._lose()

    async def _give_a_sign(self) -> None:
        if self._connection is None or self._connection.closed:
            await self.enter()
            return
        cursor = await self._connection.execute("select still_here(%s)", [self.worker_id])
        row = await cursor.fetchone()
        if row is None or not row[0]:
            log.warning("worker %s was taken for dead; it goes on under a new name", self.name)
            await self._lose()

    async def _lose(self) -> None:
        if self._connection is not None:
            await self._connection.close()


async def requeue_orphans(store: Store) -> int:
    """Put back in line what dead workers held, and ring for what is due and has nobody; return how many were put back.

    Dead is whose lock is free now and again 3 s later, and was not seen in between: this waits for it, with no
    connection in hand.
    """
    put_back = 0
    suspects = await store.suspects()
    if suspects:
        await asyncio.sleep(DEAD_AFTER)
        for suspect in await store.suspects():
            if suspect in suspects:
                put_back += await store.bury(suspect)
    if put_back:
        log.warning("%d notifications of dead workers are back in line", put_back)
    if await store.something_is_due():
        await store.ring()
    return put_back
