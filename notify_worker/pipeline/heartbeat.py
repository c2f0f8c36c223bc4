"""The heartbeat of this process: the id under which it claims, and the sign each second that it still runs.

A registered worker has a row, and a session that holds the advisory lock whose key is the row's id. The server frees that
lock at once when the process dies, since its session ends too.
"""

import asyncio
import contextlib
import logging
import os
import socket
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any

import psycopg

from notify_worker.database.connections import answer_within, configure, configure_pooled, connect, summary
from notify_worker.log_once import LogOnce
from notify_worker.pipeline.slots import Outstanding

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL = 1.0
"""Seconds between two heartbeats."""
HEARTBEAT_VALID_FOR = 10.0
"""Seconds for which a heartbeat proves that this worker is alive: one that stood still for longer may have been rescued."""
HEARTBEAT_TIMEOUT = 3.0
"""Seconds until a heartbeat has to be answered: then its session counts as lost."""


class Heartbeat:
    """Registers this process as a worker, and keeps it registered: under another id after each lost session.

    Example:
        heartbeat = Heartbeat(conninfo, lease=timedelta(minutes=2))
        worker_id = await heartbeat.ensure_registered()
    """

    def __init__(self, conninfo: str, lease: timedelta, *, transaction_pooled: bool = False) -> None:
        """Register nothing yet.

        Args:
            conninfo: The database.
            lease: How long the leases are that this worker takes.
            transaction_pooled: Each transaction may find another session, so that no lock can be held.
        """
        self._conninfo = conninfo
        self._lease = lease
        self._transaction_pooled = transaction_pooled
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._registering = asyncio.Lock()
        self._previous_ids: set[int] = set()
        self._reconnected_at: float | None = None
        self._log_once = LogOnce(log)
        self._last_heartbeat = float("-inf")
        self.worker_id = 0
        self.name = ""
        self.registered = asyncio.Event()
        """Set whenever this worker got another id."""
        self.outstanding = Outstanding()
        """The deliveries claimed under this id and the previous ones, and not yet recorded."""

    @property
    def reconnected_ago(self) -> float | None:
        """Seconds since a lost session was replaced; None: none was lost."""
        return None if self._reconnected_at is None else monotonic() - self._reconnected_at

    def holds(self, worker_id: int) -> bool:
        """Return whether requests may start that were claimed under this id.

        Not once its session, and so its lock, is lost; nor while the last heartbeat is older than 10 s, since a process
        that stood still does not know whether it was rescued.
        """
        alive = self._connection is not None and not self._connection.closed
        return worker_id == self.worker_id and alive and monotonic() - self._last_heartbeat < HEARTBEAT_VALID_FOR

    async def ensure_registered(self) -> int:
        """Return this worker's id; register first where there is none, or where the session that held it is gone.

        Raises:
            psycopg.Error: The database is away, or refuses.
        """
        async with self._registering:
            if self._connection is None or self._connection.closed:
                await self._register()
        return self.worker_id

    async def invalidate(self) -> None:
        """Give this id up: the next `ensure_registered` takes another one."""
        if self._connection is not None:
            await self._connection.close()

    async def close(self, *, unregister: bool) -> None:
        """Stop the heartbeat.

        Args:
            unregister: Nothing is in hand any more. Otherwise the row stays, and others rescue what this worker held.
        """
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._connection is None:
            return
        if unregister:
            # A database that is away, or silent, sees by itself that the session has ended.
            with contextlib.suppress(psycopg.Error):
                async with answer_within(self._connection, HEARTBEAT_TIMEOUT):
                    await self._unregister({self.worker_id, *self._previous_ids})
        await self._connection.close()

    async def _register(self) -> None:
        connection = await connect(self._conninfo)
        try:
            worker_id, name = await self._introduce(connection)
        except BaseException:
            await connection.close()
            raise
        if self._connection is not None:
            self._previous_ids.add(self.worker_id)
            self._reconnected_at = monotonic()
        self._connection, self.worker_id, self.name = connection, worker_id, name
        self._last_heartbeat = monotonic()
        if self._beating is None:
            self._beating = asyncio.create_task(self._keep_beating(), name="heartbeat")
        self.registered.set()
        log.info("worker %s is registered", name, extra={"event": "worker_registered", "worker": name})

    async def _introduce(self, connection: psycopg.AsyncConnection[Any]) -> tuple[int, str]:
        own = partial(configure, application_name="notify-worker heartbeat")
        await (configure_pooled if self._transaction_pooled else own)(connection)
        async with answer_within(connection, HEARTBEAT_TIMEOUT):
            cursor = await connection.execute(
                "select id, name from notify_worker.register_worker(%s, %s, %s, %s)",
                [socket.gethostname(), os.getpid(), self._lease, not self._transaction_pooled],
            )
            row: tuple[int, str] | None = await cursor.fetchone()
        assert row is not None
        return row

    async def _keep_beating(self) -> None:
        """Send a heartbeat each second. A session that is gone or silent is replaced; a mere refusal is no reason."""
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            try:
                await self._beat(await self.ensure_registered())
            except psycopg.Error as error:
                self._log_once.warn(
                    "heartbeat_failed",
                    f"worker {self.name} could not send a heartbeat ({summary(error)})",
                    worker=self.name,
                    error=summary(error),
                )

    async def _beat(self, worker_id: int) -> None:
        """Send a heartbeat, also under the previous ids until everything claimed under them is recorded."""
        assert self._connection is not None
        async with answer_within(self._connection, HEARTBEAT_TIMEOUT):
            if done := self._previous_ids - self.outstanding.worker_ids():
                await self._unregister(done)
                self._previous_ids -= done
            cursor = await self._connection.execute(
                "select %s = any (array(select notify_worker.heartbeat(%s)))",
                [worker_id, [worker_id, *self._previous_ids]],
            )
            row = await cursor.fetchone()
        self._last_heartbeat = monotonic()
        self._log_once.reset()
        if row is None or not row[0]:
            log.warning(
                "worker %s was rescued although it is alive; it goes on under another id",
                self.name,
                extra={"event": "worker_lost_its_id", "worker": self.name},
            )
            await self.invalidate()

    async def _unregister(self, worker_ids: set[int]) -> None:
        assert self._connection is not None
        await self._connection.execute("select notify_worker.unregister_worker(%s)", [list(worker_ids)])
