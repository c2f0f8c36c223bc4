"""The heartbeat of this process: the worker id under which it claims, and the signal each second that it is alive.

A registered worker has a row in `stored_workers`, and a session that holds the advisory lock keyed by the row's id. When the
process dies, its session ends and PostgreSQL frees the lock:
postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
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
"""Seconds for which a heartbeat is valid: a process that was suspended for longer may have been rescued as dead."""
HEARTBEAT_TIMEOUT = 3.0
"""Seconds after which a heartbeat without an answer counts as a lost session."""


class Heartbeat:
    """Registers this process as a worker and keeps it registered, under a new id after each lost session.

    Args:
        conninfo: The database, as a libpq connection string.
        lease: How long the leases of this worker's claims last.
        transaction_pooled: Whether each transaction may find another session, so that no advisory lock can be held.

    Example:
        heartbeat = Heartbeat(conninfo, lease=timedelta(minutes=2))
        worker_id = await heartbeat.ensure_registered()
    """

    def __init__(self, conninfo: str, lease: timedelta, *, transaction_pooled: bool = False) -> None:
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
        """Set whenever this worker gets an id."""
        self.outstanding = Outstanding()
        """The deliveries claimed under this id and the previous ones, and not yet recorded."""

    @property
    def reconnected_ago(self) -> float | None:
        """Seconds since a lost session was replaced; None if none was lost."""
        return None if self._reconnected_at is None else monotonic() - self._reconnected_at

    def holds(self, worker_id: int) -> bool:
        """Return whether requests that were claimed under this id may start.

        They may not once the id's session, and so its lock, is lost. Nor may they after 10 s without a heartbeat, since
        others may have rescued a process that was suspended.
        """
        alive = self._connection is not None and not self._connection.closed
        return worker_id == self.worker_id and alive and monotonic() - self._last_heartbeat < HEARTBEAT_VALID_FOR

    async def ensure_registered(self) -> int:
        """Return this worker's id. Register first if there is none, or if its session is lost.

        Raises:
            psycopg.Error: The database is away, or refuses.
        """
        async with self._registering:
            if self._connection is None or self._connection.closed:
                await self._register()
        return self.worker_id

    async def invalidate(self) -> None:
        """Give up this id: the next `ensure_registered` takes a new one."""
        if self._connection is not None:
            await self._connection.close()

    async def close(self, *, unregister: bool) -> None:
        """Stop the heartbeat.

        Args:
            unregister: Delete the worker's row. False if deliveries are outstanding: the row stays, and others rescue them.
        """
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._connection is None:
            return
        if unregister:
            # If the database is away, it notices by itself that the session has ended.
            with contextlib.suppress(psycopg.Error):
                async with answer_within(self._connection, HEARTBEAT_TIMEOUT):
                    await self._unregister({self.worker_id, *self._previous_ids})
        await self._connection.close()

    async def _register(self) -> None:
        connection = await connect(self._conninfo)
        try:
            worker_id, name = await self._register_on(connection)
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

    async def _register_on(self, connection: psycopg.AsyncConnection[Any]) -> tuple[int, str]:
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
        """Send a heartbeat each second. Replace a session that is closed or silent, but not after a mere refusal."""
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            try:
                await self._beat(await self.ensure_registered())
            except psycopg.Error as error:
                self._log_once.warn(
                    "heartbeat_failed",
                    f"heartbeat of worker {self.name} failed: {summary(error)}; retrying",
                    worker=self.name,
                    error=summary(error),
                )
            except Exception:  # a bug must not end the heartbeat
                log.exception("heartbeat broke; retrying", extra={"event": "heartbeat_broke", "worker": self.name})

    async def _beat(self, worker_id: int) -> None:
        """Send a heartbeat for this id, and for previous ids until everything claimed under them is recorded."""
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
                "worker %s was rescued as dead although it is alive; it continues under a new id",
                self.name,
                extra={"event": "worker_lost_its_id", "worker": self.name},
            )
            await self.invalidate()

    async def _unregister(self, worker_ids: set[int]) -> None:
        assert self._connection is not None
        await self._connection.execute("select notify_worker.unregister_worker(%s)", [list(worker_ids)])
