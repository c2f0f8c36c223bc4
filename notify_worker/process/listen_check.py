"""Check that this process still receives NOTIFY: procrastinate's LISTEN can die silently, in a worker that looks healthy."""

import asyncio
import contextlib
from collections.abc import Iterable
from functools import partial
from secrets import token_hex

from procrastinate.connector import Notify

from notify_worker.database.store import Store

PINGS = 10
"""How many pings may stay unanswered: a worker that has just started does not listen yet."""
PING_INTERVAL = 0.2
"""Seconds between two pings."""


class ListenCheck:
    """Listens to a channel of its own beside procrastinate's, on the same connection, and pings it."""

    def __init__(self) -> None:
        self._channel = f"notify_worker_ping_{token_hex(4)}"
        self._received = asyncio.Event()

    def channels(self, others: Iterable[str]) -> list[str]:
        """Add our channel to those that are listened to."""
        return [*others, self._channel]

    def intercept(self, on_notification: Notify) -> Notify:
        """Keep our pings from procrastinate, which does not know them."""
        return partial(self._receive, on_notification)

    async def _receive(self, on_notification: Notify, *, channel: str, payload: str) -> None:
        if channel == self._channel:
            self._received.set()
        else:
            await on_notification(channel=channel, payload=payload)

    async def check(self, store: Store) -> bool:
        """Ping, and return whether a ping arrived within 2 s.

        Raises:
            psycopg.Error: The database is away, which says nothing about the listener.
        """
        self._received.clear()
        for _ in range(PINGS):
            await store.ping(self._channel)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_INTERVAL):
                    await self._received.wait()
                    return True
        return False
