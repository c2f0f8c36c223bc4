"""A running sandbox: a thread with an event loop of its own, so that a worker under test never waits for it."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self, Unpack

from aiohttp import web

from notify_worker.errors import NotifyWorkerError
from notify_worker.sandbox.account import Account
from notify_worker.sandbox.faults import RandomFaults
from notify_worker.sandbox.fcm import Fcm
from notify_worker.sandbox.phones import Phones, Shown
from notify_worker.sandbox.projects import Counts
from notify_worker.sandbox.routes import Routes
from notify_worker.sandbox.switches import Changes, Switches

PROJECT = "sandbox"
BACKLOG = 1024
"""Connections that may wait to be accepted: a worker that opens hundreds at once must not be refused."""


def start(
    credentials: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    projects: Sequence[str] = (PROJECT,),
    on_show: Callable[[Shown], None] | None = None,
    seed: int | None = None,
    **switches: Unpack[Changes],
) -> "Sandbox":
    """Start a sandbox; it serves when this returns, until `stop()`.

    Args:
        credentials: where to write the service-account file. A file of an earlier sandbox keeps its key.
        host: the address to listen on.
        port: 0 is any free port.
        projects: the Firebase projects for which the service account may send; its file names the first.
        on_show: called in the sandbox's thread with each message that a phone would show.
        seed: decides which requests meet the faults of `fail`.
        switches: their values at the start; see `Switches`.

    Raises:
        CredentialsError: the file can't be used.
        NotifyWorkerError: the port is taken, or a switch has a wrong name or value.
    """
    at_start = Switches().changed(switches)
    listener = listen(host, port)
    try:
        url = f"http://{reachable_host(host)}:{listener.getsockname()[1]}"
        account = Account(credentials, url, projects[0])
        routes = Routes(account, Fcm(account, Phones(on_show), projects, RandomFaults(seed)), at_start)
    except BaseException:
        listener.close()
        raise
    return Sandbox(url, credentials, routes, listener)


def reachable_host(host: str) -> str:
    """Return the host as a client on this machine reaches it: a listener on all addresses is on loopback too."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Take the port: clients may connect from here on, even before the loop runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise NotifyWorkerError(
            f"the sandbox can't listen on {host}:{port}: {error.strerror}. Choose another host or port."
        ) from error


class Sandbox:
    """A running sandbox. Its numbers may be read from any thread."""

    def __init__(self, url: str, credentials: Path, routes: Routes, listener: socket.socket) -> None:
        self.url = url
        self.credentials = credentials
        self._routes = routes
        self._fcm = routes.fcm
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = Thread(target=self._run, name="sandbox", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving, and close the connections of requests that still hang. A second call does nothing."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def shown(self) -> list[Shown]:
        """The messages that phones show, oldest first: the latest 100,000."""
        return self._fcm.phones.latest()

    def switch(self, **changes: Unpack[Changes]) -> Switches:
        """Change some switches, from any thread, and return all of them; None resets a switch to its default.

        Raises:
            NotifyWorkerError: a name or a value is wrong; nothing has changed.

        Example:
            box.switch(fail={"503": 0.1}, latency=0.2)
        """
        return self._routes.switch(changes)

    @property
    def switches(self) -> Switches:
        """The current values of the switches."""
        return self._routes.switches

    def project(self, name: str) -> Counts:
        """Return the counts of one project."""
        return self._fcm.projects[name].counts

    @property
    def received(self) -> int:
        """How many send requests were read, whatever their result."""
        return self._fcm.counts.received

    @property
    def accepted(self) -> int:
        """How many messages were accepted; `validate_only` does not count."""
        return self._fcm.counts.accepted

    @property
    def doubles(self) -> int:
        """How many messages came to an address that had already been shown one with the same notification_id."""
        return self._fcm.counts.doubles

    @property
    def in_flight(self) -> int:
        """How many send requests are being answered right now."""
        return self._fcm.counts.in_flight

    @property
    def by_status(self) -> dict[int, int]:
        """How many send requests were answered with each status."""
        return dict(self._fcm.counts.by_status)

    @property
    def by_fault(self) -> dict[str, int]:
        """How many send requests met each fault, by address or by rate."""
        return dict(self._fcm.counts.by_fault)

    def requests_for(self, address: str) -> int:
        """How many well-formed, authorised send requests there were for this address."""
        return self._fcm.counts.requests[address]

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        runner = self._routes.runner()
        await runner.setup()
        await web.SockSite(runner, self._listener, backlog=BACKLOG).start()
        await self._stopping.wait()
        await runner.cleanup()
