"""Relays between workers and Postgres that see which statement passes, can stop the world there, and can fall silent.

All run on one event loop, in a thread of its own. Where a client that a trap was set for asks for a statement, or is about
to be answered, the trap springs instead of passing that on.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from threading import Event, Thread
from typing import Any, Self

QUERY, PARSE, BIND = b"Q", b"P", b"B"
READY = b"Z\0\0\0\5"
NOTHING_FOUND = b"SELECT 0\0"
CHUNK = 1 << 16


class Moment(Enum):
    """When a trap springs: instead of the question, right after it, or instead of the answer."""

    ASKED = "asked"
    PASSED = "passed"
    ANSWERED = "answered"


@dataclass
class Trap:
    """Springs once: at this moment of the next statement with this part; an answer without a row does not count."""

    statement: str
    moment: Moment
    spring: Callable[[], None]
    sprung: Event = field(default_factory=Event)


class Relays:
    """The event loop of all relays. `with Relays() as relays`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._relays: list[Relay] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays:
            self.run(relay.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def relay(self, server_port: Callable[[], int]) -> "Relay":
        """Open a relay to the server that listens there when a client comes."""
        relay = Relay(server_port)
        self.run(relay.open())
        self._relays.append(relay)
        return relay

    def run(self, what: Coroutine[Any, Any, None]) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(what, self._loop)
        future.result(timeout=10)

    def be_silent(self, relays: "list[Relay]", *, silent: bool) -> None:
        """Stop passing anything on, with every connection left open; or go on."""
        for relay in relays:
            self._loop.call_soon_threadsafe(relay.flowing.clear if silent else relay.flowing.set)


class Relay:
    """One place to connect to."""

    def __init__(self, server_port: Callable[[], int]) -> None:
        self._server_port = server_port
        self._talks: set[asyncio.Task[None]] = set()
        self.trap: Trap | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.port = 0

    async def open(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=200)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._listener.close()
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def sprung(self, statement: str, moment: Moment) -> bool:
        """Spring the trap, if one is set for this; say whether it has."""
        trap = self.trap
        if trap is None or trap.moment is not moment or trap.statement not in statement:
            return False
        self.trap = None
        trap.spring()
        trap.sprung.set()
        return True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            await self.flowing.wait()
            async with connected(self._server_port()) as (from_server, to_server):
                talk = Talk(self, reader, writer, from_server, to_server)
                ways = [asyncio.create_task(way) for way in (talk.ask(), talk.answer())]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, or the relay ends
        finally:
            writer.transport.abort()
            self._talks.discard(task)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@dataclass
class Talk:
    """One client's connection to the server."""

    relay: Relay
    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    statements: dict[bytes, str] = field(default_factory=dict)
    asked: str = ""
    """The statement whose answer is awaited."""

    async def ask(self) -> None:
        """Pass on what the client asks, a message at a time; end where a trap springs instead."""
        with suppress(asyncio.IncompleteReadError, OSError):
            await self._pass_question(await message(self.from_client))  # the first one has no kind
            while True:
                kind = await self.from_client.readexactly(1)
                body = await message(self.from_client)
                if statement := self._statement(kind, body[4:]):
                    self.asked = statement
                    if self.relay.sprung(statement, Moment.ASKED):
                        return
                await self._pass_question(kind + body)
                if statement and self.relay.sprung(statement, Moment.PASSED):
                    return

    async def _pass_question(self, question: bytes) -> None:
        await self.relay.flowing.wait()
        self.to_server.write(question)
        await self.to_server.drain()

    def _statement(self, kind: bytes, body: bytes) -> str:
        """Return the text of the statement that is run now; a prepared one goes by its name."""
        if kind == QUERY:
            return text(body)
        if kind == PARSE:
            name, statement = body.split(b"\0")[:2]
            self.statements[name] = text(statement)
        if kind == BIND:
            return self.statements.get(body.split(b"\0")[1], "")
        return ""

    async def answer(self) -> None:
        """Pass on what the server answers; end where a trap springs instead."""
        with suppress(OSError):
            while chunk := await self.from_server.read(CHUNK):
                ready = chunk[-6:-1] == READY
                if ready and NOTHING_FOUND not in chunk[-40:] and self.relay.sprung(self.asked, Moment.ANSWERED):
                    return
                await self.relay.flowing.wait()
                self.to_client.write(chunk)
                await self.to_client.drain()


async def message(side: asyncio.StreamReader) -> bytes:
    """Read a message from its length on."""
    length = await side.readexactly(4)
    return length + await side.readexactly(struct.unpack("!I", length)[0] - 4)


def text(statement: bytes) -> str:
    return statement.rstrip(b"\0").decode(errors="replace")
