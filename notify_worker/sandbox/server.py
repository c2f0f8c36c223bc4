"""A running sandbox: a thread with its own event loop, so that a worker in the same process never waits for it."""

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
from notify_worker.sandbox.fcm import Counts, Fcm
from notify_worker.sandbox.phones import Phones, Shown
from notify_worker.sandbox.routes import Routes
from notify_worker.sandbox.switches import Changes, Switches

PROJECT = "sandbox"
BACKLOG = 1024
"""Connections that may wait to be accepted, so that a worker can open hundreds at once."""


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
    """Start a sandbox. It accepts requests from when this returns until `stop()`.

    Args:
        credentials: Where to write the service-account file. A file of an earlier sandbox keeps its key.
        host: The address to listen on.
        port: The port to listen on; 0 takes any free one.
        projects: The Firebase projects for which the service account may send. Its file names the first.
        on_show: Called in the sandbox's thread with each message that a phone would show.
        seed: Makes the faults of `fail` reproducible; None draws others in each run.
        switches: Initial values of switches, as in `Switches`.

    Returns:
        The running sandbox; as a context manager it stops at the end.

    Raises:
        CredentialsError: The file can't be written, or another program wrote it.
        NotifyWorkerError: The port is taken, or a switch has a wrong name or value.

    Example:
        with start(Path("sandbox.json"), latency=0.1) as box:
            print(box.url)
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
    """Return the host for clients on this machine: loopback if the sandbox listens on all addresses."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Open the port: clients can connect from now on, even before the event loop runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise NotifyWorkerError(
            f"the sandbox can't listen on {host}:{port}: {error.strerror}. Choose another host or port."
        ) from error


class Sandbox:
    """A running sandbox. All its properties and methods may be used from any thread.

    Attributes:
        url: The base URL, for NOTIFY_WORKER_FCM_URL.
        credentials: The service-account file, for GOOGLE_APPLICATION_CREDENTIALS.
    """

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
        """Stop, and close the connections of requests that still hang. A second call does nothing."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def shown(self) -> list[Shown]:
        """The latest 100,000 messages that phones show, oldest first."""
        return self._fcm.phones.latest()

    def switch(self, **changes: Unpack[Changes]) -> Switches:
        """Change some switches.

        Args:
            changes: New values, as in `Switches`. None resets a switch to its default.

        Returns:
            All switches.

        Raises:
            NotifyWorkerError: A name or a value is wrong: no switch has changed.

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
        """The number of send requests received, whatever their result."""
        return self._fcm.counts.received

    @property
    def accepted(self) -> int:
        """The number of accepted messages, without those of `validate_only`."""
        return self._fcm.counts.accepted

    @property
    def doubles(self) -> int:
        """The number of messages to an address that has already shown one with the same notification_id."""
        return self._fcm.counts.doubles

    @property
    def in_flight(self) -> int:
        """The number of send requests that have not been answered yet."""
        return self._fcm.counts.in_flight

    @property
    def by_status(self) -> dict[int, int]:
        """The number of answers by HTTP status."""
        return dict(self._fcm.counts.by_status)

    @property
    def by_fault(self) -> dict[str, int]:
        """The number of send requests by the fault that they met."""
        return dict(self._fcm.counts.by_fault)

    def requests_for(self, address: str) -> int:
        """Return the number of well-formed, authorised send requests for this address."""
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
