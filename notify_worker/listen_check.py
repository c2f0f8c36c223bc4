"""Whether this process hears: procrastinate's LISTEN can die without a word, and a worker that is deaf looks healthy."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from functools import partial
from secrets import token_hex

from procrastinate.connector import Notify

from notify_worker.store import Store

log = logging.getLogger(__name__)

WHISPERS = 10
"""How often one whispers to oneself before one is deaf: a worker that has just started does not listen yet."""
WHISPER_EVERY = 0.2
"""Seconds."""


class Ears:
    """Listens to a channel of its own beside procrastinate's, on the same connection, and whispers to itself."""

    def __init__(self) -> None:
        self._channel = f"notify_worker_ears_{token_hex(4)}"
        self._heard = asyncio.Event()

    def channels(self, others: Iterable[str]) -> list[str]:
        """Add our channel to those that are listened to."""
        return [*others, self._channel]

    def beside(self, on_notification: Notify) -> Notify:
        """Keep our own whispers from procrastinate, which does not know them."""
        return partial(self._hear, on_notification)

    async def _hear(self, on_notification: Notify, *, channel: str, payload: str) -> None:
        if channel == self._channel:
            self._heard.set()
        else:
            await on_notification(channel=channel, payload=payload)

    async def hear(self, store: Store) -> bool:
        """Whisper, and say whether it was heard. Raises psycopg.Error: the database is away, which is another matter."""
        self._heard.clear()
        for _ in range(WHISPERS):
            await store.whisper(self._channel)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WHISPER_EVERY):
                    await self._heard.wait()
                    return True
        return False
