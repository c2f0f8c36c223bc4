"""Checks that this process receives NOTIFY: procrastinate's LISTEN can fail silently in a worker that looks healthy."""

import asyncio
from collections.abc import Iterable
from functools import partial
from secrets import token_hex

from procrastinate.connector import Notify

from notify_worker.database.store import Store
from notify_worker.pipeline.slots import wait_for

PINGS = 10
"""Pings without an answer that fail the check; a worker that has just started may not listen yet."""
PING_INTERVAL = 0.2
"""Seconds between two pings."""


class ListenCheck:
    """Listens to a channel of its own beside procrastinate's, on the same connection, and pings it."""

    def __init__(self) -> None:
        self._channel = f"notify_worker_ping_{token_hex(4)}"
        self._received = asyncio.Event()

    def channels(self, others: Iterable[str]) -> list[str]:
        """Add our channel to others."""
        return [*others, self._channel]

    def intercept(self, on_notification: Notify) -> Notify:
        """Wrap procrastinate's handler, which must not receive our pings."""
        return partial(self._receive, on_notification)

    async def _receive(self, on_notification: Notify, *, channel: str, payload: str) -> None:
        if channel == self._channel:
            self._received.set()
        else:
            await on_notification(channel=channel, payload=payload)

    async def check(self, store: Store) -> bool:
        """Ping, and return whether a ping arrived within 2 s. Raises psycopg.Error, which says nothing about LISTEN."""
        self._received.clear()
        for _ in range(PINGS):
            await store.ping(self._channel)
            if await wait_for(self._received, PING_INTERVAL):
                return True
        return False
