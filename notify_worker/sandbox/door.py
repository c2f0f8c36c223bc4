"""One port for HTTP/1.1 and HTTP/2: the first bytes of a connection say which it is."""

import asyncio
import logging
from collections.abc import Callable

from notify_worker.sandbox.guests import Guest
from notify_worker.sandbox.server import Server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first that knows beforehand that HTTP/2 is spoken here (RFC 9113, section 3.4)."""

log = logging.getLogger(__name__)


class Door:
    """Lets connections in. HTTP/1.1 is aiohttp's; the others are kept here."""

    def __init__(self, server: Server, http1: Callable[[], asyncio.Protocol]) -> None:
        self._server = server
        self._http1 = http1
        self._guests: set[Guest] = set()

    def open(self) -> asyncio.Protocol:
        """Let a connection in."""
        return Newcomer(self._guests, self._led_by)

    def go_away(self) -> None:
        """Tell all who speak HTTP/2 to go away."""
        for guest in list(self._guests):
            guest.go_away()

    def close(self) -> None:
        """Close what aiohttp does not."""
        for guest in list(self._guests):
            guest.abort()

    def _led_by(self, first: bytes) -> asyncio.Protocol | None:
        """Say who leads a connection that begins so; None: nobody can."""
        if not first.startswith(PREFACE):
            return self._http1()
        try:
            from notify_worker.sandbox.http2 import Http2  # noqa: PLC0415  h2 need not be installed
        except ModuleNotFoundError as missing:
            log.warning("a client speaks HTTP/2, and %s is not installed: its connection is closed", missing.name)
            return None
        return Http2(self._server, self._guests)


class Newcomer(asyncio.Protocol):
    """A connection of which nobody knows yet what it speaks."""

    def __init__(self, guests: set[Guest], led_by: Callable[[bytes], asyncio.Protocol | None]) -> None:
        self._guests = guests
        self._led_by = led_by
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first bytes."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._guests.add(self)

    def data_received(self, data: bytes) -> None:
        """Hand the connection over as soon as it is clear to whom."""
        self._first += data
        if PREFACE.startswith(self._first) and self._first != PREFACE:
            return
        self._guests.discard(self)
        if leader := self._led_by(self._first):
            self._transport.set_protocol(leader)
            leader.connection_made(self._transport)
            leader.data_received(self._first)
        else:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Forget who left without a word."""
        self._guests.discard(self)

    def go_away(self) -> None:
        """Do nothing: it has not said that it speaks HTTP/2."""

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()
