"""Runs the sandbox in a thread and an event loop of its own, so that a worker under test never waits for it."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self, Unpack

from notify_worker.errors import NotifyWorkerError
from notify_worker.sandbox.account import Account
from notify_worker.sandbox.counts import Counts
from notify_worker.sandbox.dice import Dice
from notify_worker.sandbox.door import Door
from notify_worker.sandbox.fcm import Fcm
from notify_worker.sandbox.http1 import runner_of
from notify_worker.sandbox.phones import Phones, Shown
from notify_worker.sandbox.server import Server
from notify_worker.sandbox.switches import Changes, Switches

PROJECT = "sandbox"
WAITING = 1024
"""How many new connections may wait for the loop, so that a worker that opens hundreds at once is not refused."""


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

    Writes a service-account file to `credentials`; a file of an earlier sandbox keeps its key, and may send for all of
    `projects`. `on_show` is called in the sandbox's thread, with each thing that a phone would show. `seed` decides which
    requests meet the faults of `fail`. The rest is how the switches stand at the start: see `Sandbox.switch`.

    Raises CredentialsError where the file can't be used, NotifyWorkerError where the port is taken or a switch is none.
    """
    stand = Switches().changed(switches)
    listener = listen(host, port)
    try:
        url = f"http://{reached_at(host)}:{listener.getsockname()[1]}"
        account = Account(credentials, url, projects[0])
        server = Server(account, Fcm(account, Phones(on_show), projects, Dice(seed)), stand)
    except BaseException:
        listener.close()
        raise
    return Sandbox(url, credentials, server, listener)


def reached_at(host: str) -> str:
    """Name the host as a client on this machine reaches it: a listener on all addresses is on loopback too."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Take the port: from here on clients may connect, even before the loop runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=WAITING)
    except OSError as error:
        raise NotifyWorkerError(
            f"the sandbox can't listen on {host}:{port}: {error.strerror}. Choose another host or port."
        ) from error


class Sandbox:
    """A running sandbox. Its numbers may be read from any thread."""

    def __init__(self, url: str, credentials: Path, server: Server, listener: socket.socket) -> None:
        self.url = url
        self.credentials = credentials
        self._server = server
        self._fcm = server.fcm
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
        """Stop serving. Requests that still hang find their connection closed. Stopping twice does no harm."""
        self._soon(self._stopping.set)
        self._thread.join()

    @property
    def shown(self) -> list[Shown]:
        """What phones show, oldest first: the latest 100,000."""
        return self._fcm.phones.latest()

    def switch(self, **changes: Unpack[Changes]) -> Switches:
        """Change what is named, from any thread, and say how all stand; None is as if nobody had ever touched it.

        Raises NotifyWorkerError, and changes nothing, where one can't be changed so.
        """
        return self._server.change(changes)

    @property
    def switches(self) -> Switches:
        """How the switches stand."""
        return self._server.switches

    def project(self, name: str) -> Counts:
        """Count for one of its projects alone."""
        return self._fcm.projects[name].counts

    @property
    def received(self) -> int:
        """How many send requests were read, whatever came of them."""
        return self._fcm.counts.received

    @property
    def accepted(self) -> int:
        """How many messages were accepted; `validate_only` does not count."""
        return self._fcm.counts.accepted

    @property
    def doubles(self) -> int:
        """How many messages came to an address that had been shown one with the same notification_id before."""
        return self._fcm.counts.doubles

    @property
    def in_flight(self) -> int:
        """How many send requests are being held right now."""
        return self._fcm.counts.in_flight

    @property
    def by_status(self) -> dict[int, int]:
        """How many send requests were answered with each status."""
        return dict(self._fcm.counts.by_status)

    @property
    def by_fault(self) -> dict[str, int]:
        """How many send requests met each fault, asked for by address or by rate."""
        return dict(self._fcm.counts.by_fault)

    def requests_for(self, address: str) -> int:
        """How many well-formed, authorised send requests there were for this address."""
        return self._fcm.counts.requests[address]

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        http1 = runner_of(self._server)
        await http1.setup()
        assert http1.server
        door = Door(self._server, http1.server)
        self._server.on_goaway = lambda: self._soon(door.go_away)
        serving = await self._loop.create_server(door.open, sock=self._listener, backlog=WAITING)
        await self._stopping.wait()
        serving.close()
        door.close()
        await http1.cleanup()

    def _soon(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(call)
