"""A relay between clients and Postgres, on real sockets: it sees each statement and can interfere at one.

It can lose the answer to a statement, cut the connection before, during or after one, hold traffic back, swallow it, or
delay it. It reads only as much of the protocol as that takes.
"""

import asyncio
import re
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from threading import Event, Thread
from typing import Any, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

QUERY, PARSE, BIND = b"Q", b"P", b"B"
READY = b"Z\0\0\0\5"
FOUND = re.compile(rb"SELECT [1-9]\d*\0")
ENCRYPTION_ASKED_FOR = {struct.pack("!II", 8, code) for code in (80877103, 80877104)}
"""SSLRequest and GSSENCRequest. Both are declined, since the relay reads the messages."""
CHUNK = 1 << 16


class Moment(Enum):
    """When a trap springs: instead of the statement, right after it, or instead of its answer."""

    ASKED = "asked"
    PASSED = "passed"
    ANSWERED = "answered"


@dataclass
class Trap:
    """Springs once: at this moment of the next statement with this part. Only an answer with a row counts."""

    statement: str
    moment: Moment
    spring: Callable[[], None] = lambda: None
    """Called at that moment, besides cutting the connection."""
    sprung: Event = field(default_factory=Event)


class Relay:
    """`with Relay(conninfo) as relay`: connections to `relay.conninfo` reach that database.

    Args:
        server: The conninfo of the database, or a function that returns it for each client.
        delay: Seconds by which each message is delayed, each way.
    """

    def __init__(self, server: str | Callable[[], str], *, delay: float = 0) -> None:
        self._server = server if callable(server) else lambda: server
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._statements: list[str] = []
        self._traps: list[Trap] = []
        self._lost: list[Trap] = []
        self._talks: dict[asyncio.Task[None], Talk] = {}
        self._swallows = False
        self.flowing = asyncio.Event()
        self.flowing.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        self.conninfo = make_conninfo(self._server(), host="127.0.0.1", port=self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What it sees

    def asked(self, part_of_a_statement: str) -> int:
        """Count the statements of clients that contain this."""
        return sum(part_of_a_statement in statement for statement in self._statements)

    # What it can do

    def set_trap(self, trap: Trap) -> None:
        self._traps.append(trap)

    def clear_traps(self) -> None:
        self._traps.clear()

    def lose_the_answer_to(self, part_of_a_statement: str) -> None:
        """Cut the connection instead of the next answer with a row to such a statement."""
        self._lost.append(Trap(part_of_a_statement, Moment.ANSWERED))
        self.set_trap(self._lost[-1])

    def has_lost(self, part_of_a_statement: str) -> bool:
        """Return whether an answer was lost: the server has committed, and the client does not know."""
        return any(trap.sprung.is_set() for trap in self._lost if trap.statement == part_of_a_statement)

    def hold(self) -> None:
        """Pass nothing on, with every connection left open, until `let_go`."""
        self._loop.call_soon_threadsafe(self.flowing.clear)

    def let_go(self) -> None:
        self._loop.call_soon_threadsafe(self.flowing.set)

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Swallow everything, for good on each connection that is open or opened meanwhile."""
        self._swallows = True
        for talk in list(self._talks.values()):
            talk.is_dead = True
        try:
            yield
        finally:
            self._swallows = False

    # How it does it

    def springs(self, statement: str, moment: Moment) -> bool:
        """Spring the trap that is set for this, if any; return whether there was one."""
        for trap in self._traps:
            if trap.moment is moment and trap.statement in statement:
                self._traps.remove(trap)
                trap.spring()
                trap.sprung.set()
                return True
        return False

    def note(self, statement: str) -> None:
        self._statements.append(statement)

    async def delayed(self) -> None:
        """Wait until a message may be passed on."""
        if self._delay:
            await asyncio.sleep(self._delay)
        await self.flowing.wait()

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _open(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=200)
        self.port = int(self._listener.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        # Accept no more; connections already accepted are handled before the listener closes.
        self._loop.remove_reader(self._listener.sockets[0].fileno())
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for talk in self._talks:
                talk.cancel()
            await asyncio.wait(others, timeout=0.1)
        self._listener.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talk = self._talks[task] = Talk(self, reader, writer, is_dead=self._swallows)
        with suppress(OSError, asyncio.CancelledError):  # the server is away, or the relay ends
            await talk.last(self._server())
        writer.transport.abort()
        del self._talks[task]


@dataclass
class Talk:
    """One client's connection to the server."""

    relay: Relay
    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    is_dead: bool
    """Its messages are swallowed, and so is the end of either side."""
    statements: dict[bytes, str] = field(default_factory=dict)
    asked: str = ""
    """The statement that waits for its answer."""

    async def last(self, server: str) -> None:
        """Pass messages both ways until one side ends or a trap springs."""
        await self.relay.flowing.wait()
        its = conninfo_to_dict(server)
        from_server, to_server = await asyncio.open_connection(
            str(its.get("host") or "127.0.0.1"), its.get("port", 5432)
        )
        ways = [asyncio.create_task(way) for way in (self._ask(to_server), self._answer(from_server))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self.is_dead:
                await asyncio.wait(ways)
        finally:
            to_server.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _ask(self, server: asyncio.StreamWriter) -> None:
        """Pass on the client's messages; return if a trap springs."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while (first := await message(self.from_client)) in ENCRYPTION_ASKED_FOR:  # the first ones have no kind
                self.to_client.write(b"N")
            await self._pass_on(first, server)
            while True:
                kind = await self.from_client.readexactly(1)
                body = await message(self.from_client)
                if statement := self._statement(kind, body[4:]):
                    self.asked = statement
                    self.relay.note(statement)
                    if self.relay.springs(statement, Moment.ASKED):
                        return
                await self._pass_on(kind + body, server)
                if statement and self.relay.springs(statement, Moment.PASSED):
                    return

    async def _answer(self, server: asyncio.StreamReader) -> None:
        """Pass on the server's answers; return if a trap springs."""
        with suppress(OSError):
            while chunk := await server.read(CHUNK):
                ready = chunk[-6:-1] == READY
                if ready and FOUND.search(chunk[-40:]) and self.relay.springs(self.asked, Moment.ANSWERED):
                    return
                await self._pass_on(chunk, self.to_client)

    async def _pass_on(self, what: bytes, to: asyncio.StreamWriter) -> None:
        await self.relay.delayed()
        if not self.is_dead:
            to.write(what)
            await to.drain()

    def _statement(self, kind: bytes, body: bytes) -> str:
        """Return the text of the statement that this message runs, looked up by name if prepared."""
        if kind == QUERY:
            return text(body)
        if kind == PARSE:
            name, statement = body.split(b"\0")[:2]
            self.statements[name] = text(statement)
        if kind == BIND:
            return self.statements.get(body.split(b"\0")[1], "")
        return ""


async def message(side: asyncio.StreamReader) -> bytes:
    """Read a message from its length on."""
    length = await side.readexactly(4)
    return length + await side.readexactly(struct.unpack("!I", length)[0] - 4)


def text(statement: bytes) -> str:
    return statement.rstrip(b"\0").decode(errors="replace")
