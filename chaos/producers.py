"""The producers of a chaos run: transactions that commit or roll back, events published twice, bursts, lost connections."""

from collections.abc import Callable
from contextlib import suppress
from random import Random
from threading import Event as Flag
from threading import Thread
from typing import Any

import psycopg

from chaos.book import UNANSWERED, Book, Event

ROLLED_BACK, TWICE, HELD, TO_AN_ADDRESS, UNANSWERED_SHARE = 0.1, 0.1, 0.05, 0.1, 0.005
RECEIVERS = 300
BURST = 150
Publish = Callable[[psycopg.Cursor[Any], list[Event]], None]


def devices_of(receiver: int) -> tuple[str, ...]:
    """Every third receiver has two devices, every seventh three."""
    count = 3 if receiver % 7 == 0 else 2 if receiver % 3 == 0 else 1
    return tuple(f"app:{receiver}-{number}" for number in range(count))


class Producer(Thread):
    """Commits about `rate` notifications a second until it is stopped, or there are enough."""

    def __init__(self, name: str, conninfo: str, publish: Publish, book: Book, *, rate: float, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self._conninfo = conninfo
        self._publish = publish
        self._book = book
        self._rate = rate
        self._random = Random(seed)
        self._number = 0
        self._over = Flag()
        self.wakeups_off = Flag()
        """Set while its statements send no wake-ups."""

    def stop(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.is_set():
            with suppress(psycopg.Error), self._connected() as connection:
                while not self._over.is_set():
                    events = self.draw(self._random.choice([1, 1, 1, 2, 5]))
                    self.transact(connection, events)
                    self._over.wait(len(events) / self._rate)
            self._over.wait(0.2)

    def burst(self, count: int = BURST) -> None:
        """Commit many in one statement, in the caller's thread; the database has to be there."""
        with self._connected() as connection:
            self.transact(connection, self.draw(count), certainly=True)

    def draw(self, count: int) -> list[Event]:
        return [self._drawn() for _ in range(count)]

    def transact(self, connection: psycopg.Connection, events: list[Event], *, certainly: bool = False) -> None:
        """Publish in a transaction, and mostly commit it."""
        commits = certainly or self._random.random() > ROLLED_BACK
        if not commits:
            self._book.was_rolled_back(events)
        try:
            with connection.cursor() as cursor:
                if self.wakeups_off.is_set():
                    cursor.execute("set local notify_worker.wakeup = 'off'")
                self._publish(cursor, events)
        except psycopg.Error:
            self._book.was_rolled_back(events)
            raise
        if not commits:
            connection.rollback()
            return
        self._book.asked_to_commit(events)
        connection.commit()
        self._book.was_committed(events)
        if self._random.random() < TWICE:
            with connection.cursor() as cursor:
                self._publish(cursor, events)
            connection.commit()

    def _connected(self) -> psycopg.Connection:
        return psycopg.connect(self._conninfo, connect_timeout=5, prepare_threshold=None)

    def _drawn(self) -> Event:
        self._number += 1
        name = f"{self.name}:{self._number}"
        if self._random.random() < UNANSWERED_SHARE:
            return Event(name, (f"{UNANSWERED}:{name}",))
        if self._random.random() < TO_AN_ADDRESS:
            return Event(name, (f"app:{name}",))
        receiver = self._random.randrange(RECEIVERS)
        return Event(name, devices_of(receiver), f"u_{receiver}", hold=self._random.random() < HELD)
