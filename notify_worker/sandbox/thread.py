"""Runs the sandbox in a thread and an event loop of its own, so that a worker under test never waits for it."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

from aiohttp import web

from notify_worker.errors import NotifyWorkerError
from notify_worker.sandbox.account import Account
from notify_worker.sandbox.phones import Phones, Shown
from notify_worker.sandbox.server import Server

SHUTDOWN = 0.2
"""Seconds that requests in flight get when the sandbox stops."""
KEEP_ALIVE = 3600.0
"""Seconds until an idle connection is closed, as with FCM: closing sooner would cut requests off that FCM does not."""
WAITING = 1024
"""How many new connections may wait for the loop, so that a worker that opens hundreds at once is not refused."""


def start(
    credentials: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    latency: float = 0.0,
    token_lifetime: int = 3599,
    on_show: Callable[[Shown], None] | None = None,
) -> "Sandbox":
    """Start a sandbox; it serves when this returns, until `stop()`.

    Writes a service-account file to `credentials`; a file of an earlier sandbox keeps its key. `latency` is in seconds,
    before each answer to a send. `on_show` is called in the sandbox's thread, with each thing that a phone would show.

    Raises CredentialsError where the file can't be used, NotifyWorkerError where the port is taken.
    """
    listener = listen(host, port)
    try:
        url = f"http://{reached_at(host)}:{listener.getsockname()[1]}"
        phones = Phones(on_show)
        server = Server(Account(credentials, url, token_lifetime), phones, latency)
    except BaseException:
        listener.close()
        raise
    return Sandbox(url, credentials, server, phones, listener)


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

    def __init__(self, url: str, credentials: Path, server: Server, phones: Phones, listener: socket.socket) -> None:
        self.url = url
        self.credentials = credentials
        self._server = server
        self._phones = phones
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
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def shown(self) -> list[Shown]:
        """What phones show, oldest first: the latest 100,000."""
        return self._phones.latest()

    @property
    def received(self) -> int:
        """How many send requests were read, whatever came of them."""
        return self._server.received

    @property
    def accepted(self) -> int:
        """How many messages were accepted; `validate_only` does not count."""
        return self._phones.accepted

    @property
    def doubles(self) -> int:
        """How many messages came to an address that had been shown one with the same notification_id before."""
        return self._phones.doubles

    @property
    def in_flight(self) -> int:
        """How many send requests are being held right now."""
        return self._server.in_flight

    @property
    def by_status(self) -> dict[int, int]:
        """How many send requests were answered with each status."""
        return dict(self._server.by_status)

    def requests_for(self, address: str) -> int:
        """How many well-formed, authorised send requests there were for this address."""
        return self._server.requests[address]

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        runner = web.AppRunner(
            self._server.application(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE,
            shutdown_timeout=SHUTDOWN,
        )
        await runner.setup()
        await web.SockSite(runner, self._listener, backlog=WAITING).start()
        await self._stopping.wait()
        await runner.cleanup()
