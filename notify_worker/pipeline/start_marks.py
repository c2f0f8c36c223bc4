"""The mark that a request is about to start, for deliveries that must not be sent twice: many marks in one write."""

import asyncio
import logging

import psycopg

from notify_worker.database.connections import summary
from notify_worker.database.store import Store
from notify_worker.model import Delivery

log = logging.getLogger(__name__)


class StartMarks:
    """Marks deliveries. Those that ask while a write is under way share the next one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Delivery, asyncio.Future[bool]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def mark(self, delivery: Delivery) -> bool:
        """Store that a request of this delivery is about to start. False: that failed, and the request must not start."""
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((delivery, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="mark")
        return await written

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            marked: set[int] = set()
            try:
                marked = await self._store.mark_started([delivery for delivery, _ in batch])
            except psycopg.Error as error:
                log.warning(
                    "the database is away or refuses (%s); %d deliveries stay unsent",
                    summary(error),
                    len(batch),
                    extra={"event": "start_marks_failed", "error": summary(error), "deliveries": len(batch)},
                )
            except Exception:  # a bug must not keep those waiting that ask next
                log.exception("start marks broke", extra={"event": "start_marks_broke", "deliveries": len(batch)})
            finally:
                latest = {delivery.id: delivery.lease for delivery, _ in batch}  # an older lease of it is over
                for delivery, written in batch:
                    if not written.done():
                        written.set_result(delivery.id in marked and latest[delivery.id] == delivery.lease)
