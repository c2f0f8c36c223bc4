"""A hostile HTTP server over real sockets: it answers as the test scripts it, and counts the requests."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Seen:
    """A request that was read to its end."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Act = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What is done once a request was read. A closed writer ends the connection."""


def answer(status: int, body: bytes | Any = b"", **headers: str) -> Act:
    """Answer in full and keep the connection. `headers` are written with _ for -."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, bytes) else "application/json; charset=UTF-8"
    lines = {"content-type": kind, "content-length": str(len(content))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"HTTP/1.1 {status} Whatever\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + b"\r\n" + content)
        await writer.drain()

    return act


def then_close(first: Act) -> Act:
    """Close the connection after an act, without a word in the headers."""

    async def act(writer: asyncio.StreamWriter) -> None:
        await first(writer)
        writer.close()

    return act


def then_stall(first: Act) -> Act:
    """Say no more after an act."""

    async def act(writer: asyncio.StreamWriter) -> None:
        await first(writer)
        await silence(writer)

    return act


def once(event: asyncio.Event, then: Act) -> Act:
    """Wait for the test before an act."""

    async def act(writer: asyncio.StreamWriter) -> None:
        await event.wait()
        await then(writer)

    return act


async def close(writer: asyncio.StreamWriter) -> None:
    """Close without an answer."""
    writer.close()


async def reset(writer: asyncio.StreamWriter) -> None:
    """Reset the connection without an answer."""
    writer.transport.abort()


async def silence(_: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


def in_turn(*acts: Act) -> Act:
    """Do one act a request; the last one stays."""
    left = list(acts)

    async def act(writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(writer)

    return act


@dataclass
class HostileServer:
    """`async with HostileServer() as server`; then `server.acts[prefix of the path] = …`, the longest prefix wins."""

    acts: dict[str, Act] = field(default_factory=lambda: {"": answer(404)})
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    _talks: set[asyncio.Task[None]] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await self._server.wait_closed()

    def count(self, prefix: str = "") -> int:
        """Count the requests that were read."""
        return sum(seen.path.startswith(prefix) for seen in self.seen)

    async def has_read(self, prefix: str, *, count: int = 1, within: float = 5) -> None:
        """Wait until so many requests were read."""
        async with asyncio.timeout(within):
            while self.count(prefix) < count:
                self._news.clear()
                await self._news.wait()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        self.connections += 1
        try:
            while not writer.is_closing():
                seen = await read(reader)
                self.seen.append(seen)
                self._news.set()
                prefix = max((prefix for prefix in self.acts if seen.path.startswith(prefix)), key=len)
                await self.acts[prefix](writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._talks.discard(task)
            writer.transport.abort() if not writer.is_closing() else writer.close()


async def read(reader: asyncio.StreamReader) -> Seen:
    """Read one request to its end."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Seen(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
