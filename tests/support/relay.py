"""A relay between a client and Postgres, on real sockets. It can lose the answer to a statement.

It reads as much of the protocol as that takes: where a message ends, which statement a client asks for, when an answer ends.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from struct import unpack
from threading import Lock, Thread
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

QUERY, PARSE, BIND = b"Q", b"P", b"B"
ROW, READY = b"D", b"Z"


class Relay:
    """`with Relay(conninfo) as relay`: who connects to `relay.conninfo` talks to that database."""

    def __init__(self, conninfo: str) -> None:
        server = conninfo_to_dict(conninfo)
        self._server = (str(server.get("host") or "127.0.0.1"), int(server.get("port") or 5432))
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.conninfo = make_conninfo(
            conninfo, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"
        )  # in clear: it is read here
        self._talks: list[Talk] = []
        self._asked: list[str] = []
        self._to_lose: set[str] = set()
        self._lost: set[str] = set()
        self._choosing = Lock()

    def __enter__(self) -> Self:
        Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for talk in self._talks:
            talk.cut()

    def lose_the_answer_to(self, part_of_a_statement: str) -> None:
        """Cut the connection when the next answer with a row to such a statement has come, and pass nothing of it on."""
        with self._choosing:
            self._to_lose.add(part_of_a_statement)

    def has_lost(self, part_of_a_statement: str) -> bool:
        """Tell whether that has happened: the server has committed, and the client does not know."""
        return part_of_a_statement in self._lost

    def asked(self, part_of_a_statement: str) -> int:
        """Count such statements that clients have asked for."""
        return sum(part_of_a_statement in statement for statement in self._asked)

    def ordered_to_lose(self, statement: str) -> str | None:
        """Note a statement; take the order to lose the answer to it, if there is one."""
        with self._choosing:
            self._asked.append(statement)
            ordered = next((part for part in self._to_lose if part in statement), None)
            self._to_lose.discard(ordered or "")
            return ordered

    def note_the_loss(self, part_of_a_statement: str) -> None:
        self._lost.add(part_of_a_statement)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                self._talks.append(Talk(self, client, socket.create_connection(self._server)))


class Talk:
    """One client's connection to the server."""

    def __init__(self, relay: Relay, client: socket.socket, server: socket.socket) -> None:
        self._relay = relay
        self._client = client
        self._server = server
        self._statements: dict[bytes, str] = {}
        self._losing: str | None = None
        for way in (self._ask, self._answer):
            Thread(target=self._until_it_is_cut, args=[way], name="relay", daemon=True).start()

    def cut(self) -> None:
        """Close both sides, whoever still reads."""
        for side in (self._client, self._server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def _until_it_is_cut(self, way: Callable[[], None]) -> None:
        with suppress(OSError, EOFError):
            way()
        self.cut()

    def _ask(self) -> None:
        """Pass on what the client asks, and note when the answer to it is to be lost."""
        self._server.sendall(whole(self._client))  # the first message has no kind
        for kind, message in messages(self._client):
            if statement := self._statement(kind, message[5:]):
                self._losing = self._relay.ordered_to_lose(statement)
            self._server.sendall(message)

    def _statement(self, kind: bytes, body: bytes) -> str | None:
        """Return the text of the statement that is run now; a prepared one goes by its name."""
        if kind == QUERY:
            return text(body)
        if kind == PARSE:
            name, statement = body.split(b"\0")[:2]
            self._statements[name] = text(statement)
        if kind == BIND:
            return self._statements.get(body.split(b"\0")[1])
        return None

    def _answer(self) -> None:
        """Pass on what the server answers, an answer at a time; return where one is to be lost."""
        answer: list[tuple[bytes, bytes]] = []
        for kind, message in messages(self._server):
            answer.append((kind, message))
            if self._losing is None:
                self._pass_on(answer)
            elif kind == READY and any(kind == ROW for kind, _ in answer):
                self._relay.note_the_loss(self._losing)
                return
            elif kind == READY:  # it took nothing, so there was nothing to lose
                self._relay.lose_the_answer_to(self._losing)
                self._losing = None
                self._pass_on(answer)

    def _pass_on(self, answer: list[tuple[bytes, bytes]]) -> None:
        self._client.sendall(b"".join(message for _, message in answer))
        answer.clear()


def messages(side: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Read messages, each with its kind."""
    while True:
        kind = exactly(side, 1)
        yield kind, kind + whole(side)


def whole(side: socket.socket) -> bytes:
    """Read a message from its length on."""
    length = exactly(side, 4)
    return length + exactly(side, unpack("!I", length)[0] - 4)


def exactly(side: socket.socket, count: int) -> bytes:
    """Read so many bytes. Raises EOFError."""
    read = b""
    while len(read) < count:
        if not (more := side.recv(count - len(read))):
            raise EOFError
        read += more
    return read


def text(statement: bytes) -> str:
    return statement.rstrip(b"\0").decode(errors="replace")
