"""HTTP/2 as FCM speaks it, but without TLS: 100 streams a connection, and a GOAWAY when asked. Needs the package h2."""

import asyncio
from asyncio import Task
from dataclasses import dataclass, field
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from notify_worker.sandbox.answers import Answer
from notify_worker.sandbox.guests import Guest
from notify_worker.sandbox.server import Http, Server

MOST_STREAMS = 100
"""More at once on one connection earns a GOAWAY, as with FCM."""


@dataclass(slots=True)
class Stream:
    """One request, and what of its answer has not left yet."""

    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    task: Task[None] | None = None
    unsent: bytes | None = None
    cut: bool = False


class Http2(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server, guests: set[Guest]) -> None:
        self._server = server
        self._guests = guests
        self._streams: dict[int, Stream] = {}
        self._last: int | None = None
        """After a GOAWAY: the highest stream that is still answered."""
        self._connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._connection.local_settings = Settings(
            client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS}
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._guests.add(self)
        self._connection.initiate_connection()
        self._write()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends; a client that breaks the rules is told so, and left."""
        try:
            for event in self._connection.receive_data(data):
                self._take(event)
        except ProtocolError:
            self._leave()
        self._write()

    def connection_lost(self, _: Exception | None) -> None:
        """Let go of all requests."""
        self._forget_all()
        self._guests.discard(self)

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    def go_away(self) -> None:
        """Tell the client to open no more streams here; close when those that are open have been answered.

        h2 takes a connection for closed after a GOAWAY, so the frame is written past it.
        """
        if self._last is None:
            self._last = self._connection.highest_inbound_stream_id
            self._transport.write(GoAwayFrame(0, last_stream_id=self._last).serialize())
        self._close_if_done()

    def _take(self, event: Event) -> None:
        match event:
            case RequestReceived(stream_id=int(stream_id), headers=headers):
                self._open(stream_id, {str(name): str(value) for name, value in headers or ()})
            case DataReceived(stream_id=int(stream_id)):
                self._connection.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                if stream := self._streams.get(stream_id):
                    stream.body += event.data or b""
            case StreamEnded(stream_id=int(stream_id)) if stream := self._streams.get(stream_id):
                stream.task = asyncio.create_task(self._answer(stream_id, stream))
            case StreamReset(stream_id=int(stream_id)):
                self._forget(stream_id)
            case WindowUpdated():
                for stream_id in list(self._streams):
                    self._send(stream_id)
            case ConnectionTerminated():
                self._leave()

    def _open(self, stream_id: int, headers: dict[str, str]) -> None:
        if self._last is None:
            self._streams[stream_id] = Stream(headers)
        else:
            self._connection.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)

    async def _answer(self, stream_id: int, stream: Stream) -> None:
        headers = stream.headers
        path = unquote(headers.get(":path", "").partition("?")[0])
        asked = Http(headers.get(":method", ""), path, headers.get("authorization"), bytes(stream.body))
        answer = await self._server.answer(asked)
        if answer is None:
            self._reset(stream_id)
        else:
            self._begin(stream_id, stream, answer)
        self._write()

    def _begin(self, stream_id: int, stream: Stream, answer: Answer) -> None:
        told = {":status": str(answer.status), **answer.headers, "content-length": str(len(answer.body))}
        self._connection.send_headers(stream_id, [(name.lower(), value) for name, value in told.items()])
        stream.unsent = answer.body[: len(answer.body) // 2] if answer.cut else answer.body
        stream.cut = answer.cut
        self._send(stream_id)

    def _send(self, stream_id: int) -> None:
        """Send as much of an answer as the client has room for."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.unsent is None:
            return
        connection = self._connection
        while stream.unsent and (room := connection.local_flow_control_window(stream_id)) > 0:
            room = min(room, connection.max_outbound_frame_size)
            connection.send_data(stream_id, stream.unsent[:room])
            stream.unsent = stream.unsent[room:]
        if stream.unsent:
            return
        if stream.cut:
            self._reset(stream_id)
        else:
            connection.end_stream(stream_id)
            del self._streams[stream_id]

    def _reset(self, stream_id: int) -> None:
        """End a stream as a front end does that lost whom it asked; the connection has other streams, and stays."""
        self._connection.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        del self._streams[stream_id]

    def _forget(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream and stream.task:
            stream.task.cancel()

    def _forget_all(self) -> None:
        for stream_id in list(self._streams):
            self._forget(stream_id)

    def _leave(self) -> None:
        """Close, as soon as what h2 has to say has left; it takes no answers any more."""
        self._forget_all()
        self._transport.write(self._connection.data_to_send())
        self._transport.close()

    def _write(self) -> None:
        self._transport.write(self._connection.data_to_send())
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._last is not None and not self._streams:
            self._transport.close()
