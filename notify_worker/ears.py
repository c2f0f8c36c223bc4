"""Whether this process hears: procrastinate's LISTEN can die without a word, and a worker that is deaf looks healthy."""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from secrets import token_hex

from procrastinate.connector import Notify

from notify_worker.store import Store

log = logging.getLogger(__name__)

HEARD_WITHIN = 1.0
"""Seconds in which a whisper to oneself has to be heard."""


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
        await store.whisper(self._channel)
        try:
            async with asyncio.timeout(HEARD_WITHIN):
                await self._heard.wait()
        except TimeoutError:
            return False
        return True
