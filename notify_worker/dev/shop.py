"""A shop for the demo, benchmarks and tests: its database, its workers as processes, and the phones of its customers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Unpack

import psycopg

from notify_worker.database import schema
from notify_worker.dev import postgres
from notify_worker.errors import NotifyWorkerError
from notify_worker.sandbox import Sandbox, Shown, start
from notify_worker.sandbox.switches import Changes

TIMEOUT = 15.0
"""Seconds that `until` waits."""
POLL_INTERVAL = 0.002
SHUTDOWN_TIMEOUT = 25.0
"""Seconds that `Worker.stop` waits. Platforms allow 30."""


class ShopError(NotifyWorkerError):
    """Something that the shop expected did not happen in time, or happened wrongly."""


class Worker(subprocess.Popen[bytes]):
    """A worker process that a `Shop` started."""

    @property
    def has_left(self) -> bool:
        """Whether the process has ended."""
        return self.poll() is not None

    def kill(self) -> None:
        """Send SIGKILL and wait until the process has ended."""
        super().kill()
        self.wait()

    def stop(self) -> int:
        """Send SIGTERM, as a platform does, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended within 25 s.
        """
        self.terminate()
        return self.wait(SHUTDOWN_TIMEOUT)


class Shop:
    """A database, a local FCM, and any number of workers. `open_shop` starts all of them.

    Args:
        conninfo: A database with our schema.
        box: The local FCM to which the workers send.
        log: The file to which the workers log.

    Example:
        with open_shop(folder) as shop:
            shop.start_worker()
            defer(shop.connection, kind="token", address="app:phone", title="Hello")
            shop.until("the push", lambda: len(shop.shown_to("app:phone")) == 1)
    """

    def __init__(self, conninfo: str, box: Sandbox, log: Path) -> None:
        self.conninfo = conninfo
        self.box = box
        self.log = log
        self.connection = psycopg.connect(conninfo, autocommit=True)
        self._workers: list[Worker] = []

    def start_worker(self, **settings: object) -> Worker:
        """Start `notify-worker worker` and wait until it has registered.

        Args:
            settings: Further environment variables.

        Returns:
            The worker's process.

        Raises:
            ShopError: It has not registered within 15 s.
        """
        worker = self._spawn([sys.executable, "-m", "notify_worker", "worker"], settings)
        self.until("a worker has registered", lambda: worker.has_left or self._is_registered(worker))
        return worker

    def oldest_worker(self) -> Worker:
        """Return the running worker that was started first."""
        return next(worker for worker in self._workers if not worker.has_left)

    def environment(self, **settings: object) -> dict[str, str]:
        """Return a worker's environment: this process's without NOTIFY_WORKER_ variables, the shop's own, and `settings`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NOTIFY_WORKER_")}
        ours = {
            "NOTIFY_WORKER_DATABASE_URL": self.conninfo,
            "NOTIFY_WORKER_FCM_URL": self.box.url,
            "GOOGLE_APPLICATION_CREDENTIALS": self.box.credentials,
        }
        return {**inherited, **{name: str(value) for name, value in (ours | settings).items()}}

    def number(self, query: str, *values: object) -> int:
        """Return the number that a query selects; 0 if it selects no row."""
        row = self.connection.execute(query.encode(), values).fetchone()
        return int(row[0]) if row else 0

    def state(self, event_id: str) -> str | None:
        """Return the state of an event's notification; None if there is no such notification."""
        row = self.connection.execute(
            "select state from notify_worker.notifications where event_id = %s", [event_id]
        ).fetchone()
        return row[0] if row else None

    def shown_to(self, address: str) -> list[Shown]:
        """Return the messages that a phone shows, oldest first."""
        return [shown for shown in self.box.shown if shown.address == address]

    def until(self, what: str, holds: Callable[[], bool], *, within: float = TIMEOUT) -> float:
        """Wait until a condition holds and return the seconds that it took.

        Args:
            what: The condition in words, for the error.
            holds: The condition.
            within: Seconds to wait.

        Raises:
            ShopError: It does not hold in time. The text ends with the workers' log.
        """
        began = monotonic()
        while not holds():
            if monotonic() - began > within:
                raise ShopError(f"not within {within:g} s: {what}. The workers' log ends:\n{self.last_lines()}")
            sleep(POLL_INTERVAL)
        return monotonic() - began

    def last_lines(self) -> str:
        """Return the end of the workers' log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def close(self) -> None:
        """Stop the workers with SIGTERM and close the connection."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait()
        self.connection.close()

    def _spawn(self, command: list[str], settings: dict[str, object]) -> Worker:
        with self.log.open("ab") as log:
            worker = Worker(command, env=self.environment(**settings), stdout=log, stderr=log, cwd=self.log.parent)
        self._workers.append(worker)
        return worker

    def _is_registered(self, worker: Worker) -> bool:
        """Return True if this process has registered. A count of workers would include killed ones until their rescue."""
        return self.number("select count(*) from notify_worker.workers where pid = %s", worker.pid) > 0


@contextmanager
def open_shop(
    home: Path, *, on_show: Callable[[Shown], None] | None = None, **switches: Unpack[Changes]
) -> Iterator[Shop]:
    """Run an embedded PostgreSQL, a local FCM and a shop without workers.

    Args:
        home: The folder of all their files.
        on_show: Called with each message that a phone would show.
        switches: Initial values of the local FCM's switches.

    Raises:
        EmbeddedServerError: The server does not start, or another process runs it.
    """
    with postgres.start(home) as server, start(home / "sandbox.json", on_show=on_show, **switches) as box:
        schema.migrate(server.conninfo)
        shop = Shop(server.conninfo, box, home / "worker.log")
        try:
            yield shop
        finally:
            shop.close()
