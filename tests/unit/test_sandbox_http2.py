"""The sandbox speaks HTTP/2 on the same port, to a client that knows beforehand that it does."""

import json
import logging
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copy
from time import monotonic

import httpx
import pytest

pytest.importorskip("h2", reason="HTTP/2 needs the package h2")

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame

from notify_worker import sandbox
from notify_worker.sandbox import Sandbox
from tests.support.waiting import until
from tests.unit.test_sandbox import SEND, client_of, message_to, send


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service-account file that the sandboxes here take over, so that only one RSA key is made."""
    path = tmp_path_factory.mktemp("key") / "sandbox.json"
    sandbox.start(path).stop()
    return path


@pytest.fixture
def box(made_once: Path, tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox.start(Path(copy(made_once, tmp_path / "sandbox.json"))) as box:
        yield box


@pytest.fixture
def authorization(box: Sandbox) -> str:
    with client_of(box) as client:
        return client.headers["Authorization"]


@pytest.fixture
def client(box: Sandbox, authorization: str) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=box.url,
        headers={"Authorization": authorization},
        http1=False,
        http2=True,
        verify=False,
        limits=httpx.Limits(max_connections=1),
        timeout=10,
    ) as client:
        yield client


class Wire:
    """A client of one connection that sends what it is told to, and sees each frame."""

    def __init__(self, box: Sandbox, authorization: str, *, in_crumbs: bool = False) -> None:
        self._socket = socket.create_connection(("127.0.0.1", httpx.URL(box.url).port or 0), timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = [(":scheme", "http"), (":authority", "sandbox"), ("authorization", authorization)]
        self._events: list[Event] = []
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        for crumb in self.h2.data_to_send() if in_crumbs else b"":
            self._socket.sendall(bytes([crumb]))
        self.flush()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def flush(self) -> None:
        self._socket.sendall(self.h2.data_to_send())

    def event(self, *kinds: type[Event]) -> Event:
        """Read until there is an event of one of these kinds, and forget what came before it."""
        while True:
            while self._events:
                if isinstance(event := self._events.pop(0), kinds):
                    return event
            data = self._socket.recv(65536)
            assert data, f"closed without {kinds}"
            self._events += self.h2.receive_data(data)
            self.flush()

    def send(self, address: str) -> int:
        """Begin a send, and end it."""
        return self.ask("POST", SEND, httpx.Request("POST", "http://x", json=message_to(address)).content)

    def ask(self, method: str, path: str, body: bytes = b"") -> int:
        """Begin a request, and end it."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", method), (":path", path), *self._headers])
        self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def body(self, *, until: type[Event]) -> bytes:
        """Read the body of the one answer that is on its way, making room for more as it comes."""
        body = b""
        while not isinstance(event := self.event(DataReceived, until), until):
            assert isinstance(event, DataReceived)
            body += event.data or b""
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            self.flush()
        return body

    def frames_until_closed(self) -> list[Frame]:
        """Read all frames to the end, past h2, which hears nothing after a GOAWAY."""
        data = b""
        while more := self._socket.recv(65536):
            data += more
        frames = []
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            frames.append(frame)
            data = data[9 + length :]
        return frames


@pytest.fixture
def wire(box: Sandbox, authorization: str) -> Iterator[Wire]:
    with Wire(box, authorization) as wire:
        wire.event(SettingsAcknowledged)
        yield wire


def test_both_versions_are_spoken_on_one_port(box: Sandbox, client: httpx.Client) -> None:
    with client_of(box) as older:
        answers = [send(client, "phone"), send(older, "phone"), send(client, "dead:x")]

    assert [(answer.status_code, answer.http_version) for answer in answers] == [
        (200, "HTTP/2"),
        (200, "HTTP/1.1"),
        (404, "HTTP/2"),
    ]
    assert answers[2].headers["Content-Type"] == "application/json; charset=UTF-8"
    assert (box.received, box.by_status) == (3, {200: 2, 404: 1})


def test_a_bearer_can_be_had_and_the_page_read(box: Sandbox, client: httpx.Client) -> None:
    assert client.post("/token", data={"grant_type": "x"}).json()["error"] == "unsupported_grant_type"
    assert client.get("/?from=here").text.startswith("<!DOCTYPE html>")
    assert client.post("/switch", json={"latency": 0.01}).json()["latency"] == 0.01
    assert client.post("/batch").status_code == 404


def test_many_requests_share_a_connection_and_wait_for_none(box: Sandbox, client: httpx.Client) -> None:
    box.switch(latency=0.3)
    before = monotonic()

    with ThreadPoolExecutor(60) as threads:
        answers = list(threads.map(lambda number: send(client, f"phone-{number}"), range(60)))

    assert {answer.status_code for answer in answers} == {200}
    assert monotonic() - before < 60 * 0.3 / 3
    assert box.accepted == 60


def test_an_answer_larger_than_the_window_comes_whole(box: Sandbox, client: httpx.Client, wire: Wire) -> None:
    for number in range(60):
        send(client, f"phone-{number}", data={"words": "x" * 3000})

    wire.ask("GET", "/shown")
    told = wire.body(until=StreamEnded)

    assert len(told) > 65535 * 2
    assert len(json.loads(told)["shown"]) == 60


@pytest.mark.parametrize(("address", "accepted"), [("drop:x", 0), ("accepteddrop:x", 1), ("cut200:x", 1)])
def test_a_connection_outlives_a_request_that_is_dropped(
    box: Sandbox, client: httpx.Client, address: str, accepted: int
) -> None:
    send(client, "phone")

    with pytest.raises(httpx.RemoteProtocolError, match="StreamReset"):
        send(client, address)

    assert box.accepted == 1 + accepted
    assert send(client, "phone").status_code == 200


def test_an_answer_that_is_cut_off_begins_with_its_status(wire: Wire) -> None:
    wire.send("cut200:x")

    answer = wire.event(ResponseReceived)
    assert isinstance(answer, ResponseReceived)
    headers = dict(answer.headers or [])
    assert headers[b":status"] == b"200"
    assert 0 < len(wire.body(until=StreamReset)) < int(headers[b"content-length"])


def test_a_request_that_the_client_gives_up_is_let_go(box: Sandbox, wire: Wire) -> None:
    stream = wire.send("hang:x")
    until("it hangs", lambda: box.in_flight == 1, within=5)

    wire.h2.reset_stream(stream, ErrorCodes.CANCEL)
    wire.flush()

    until("the sandbox has let go of it", lambda: box.in_flight == 0, within=5)


def test_a_client_that_leaves_is_let_go_of(box: Sandbox, wire: Wire) -> None:
    wire.send("hang:x")
    until("it hangs", lambda: box.in_flight == 1, within=5)

    wire.__exit__()

    until("the sandbox has let go of it", lambda: box.in_flight == 0, within=5)


def test_a_hundred_streams_are_open_at_once_and_no_more(box: Sandbox, wire: Wire) -> None:
    assert wire.h2.remote_settings.max_concurrent_streams == 100
    for _ in range(100):
        wire.send("hang:x")
    until("all hang", lambda: box.in_flight == 100, within=5)

    wire.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 101
    wire.h2.remote_settings.acknowledge()
    wire.send("phone")

    assert isinstance(wire.event(ConnectionTerminated), ConnectionTerminated)
    until("the sandbox has let go of them", lambda: box.in_flight == 0, within=5)
    assert box.accepted == 0


def test_a_goaway_names_the_last_request_that_is_answered_and_then_closes(box: Sandbox, wire: Wire) -> None:
    first, last = wire.send("phone"), wire.send("hang0.3:x")
    until("both are there", lambda: box.received == 2, within=5)

    stand = box.switch(goaway=True)
    frames = wire.frames_until_closed()

    [goaway] = [frame for frame in frames if isinstance(frame, GoAwayFrame)]
    assert (goaway.last_stream_id, goaway.error_code) == (last, 0)
    answered = [frame.stream_id for frame in frames[frames.index(goaway) :] if isinstance(frame, HeadersFrame)]
    assert answered == [last]
    assert first < last
    assert (box.accepted, stand.goaway) == (2, False)


def test_a_request_after_the_goaway_is_refused_before_it_is_read(box: Sandbox, wire: Wire) -> None:
    wire.send("hang0.3:x")
    until("it is there", lambda: box.received == 1, within=5)
    box.switch(goaway=True)

    late = wire.send("phone")
    frames = wire.frames_until_closed()

    refused = [frame for frame in frames if frame.stream_id == late]
    assert [getattr(frame, "error_code", None) for frame in refused] == [ErrorCodes.REFUSED_STREAM]
    assert (box.received, box.accepted) == (1, 1)


def test_a_client_that_goes_on_after_a_goaway_connects_again(box: Sandbox, client: httpx.Client) -> None:
    send(client, "phone")

    box.switch(goaway=True)

    until("it is answered on a new connection", lambda: answered(client), within=5)


def answered(client: httpx.Client) -> bool:
    """A GOAWAY on its way may cost a request: httpx tells."""
    try:
        return send(client, "phone").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("first", [b"", b"P", b"PRI * HTTP/2.0\r\n"])
def test_whoever_has_not_said_what_it_speaks_is_in_nobodys_way(box: Sandbox, first: bytes) -> None:
    port = httpx.URL(box.url).port or 0
    with socket.create_connection(("127.0.0.1", port), timeout=5) as silent, client_of(box) as client:
        silent.sendall(first)
        assert send(client, "phone").status_code == 200
        box.switch(goaway=True)

        box.stop()

        assert silent.recv(1) == b""


def test_a_request_may_come_in_crumbs(box: Sandbox, authorization: str) -> None:
    port = httpx.URL(box.url).port or 0
    with socket.create_connection(("127.0.0.1", port), timeout=5) as crumbs:
        crumbs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for letter in b"PUT /batch HTTP/1.1\r\nHost: x\r\n\r\n":
            crumbs.sendall(bytes([letter]))

        assert crumbs.recv(65536).startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_http_2_may_come_in_crumbs(box: Sandbox, authorization: str) -> None:
    with Wire(box, authorization, in_crumbs=True) as wire:
        wire.send("phone")

        wire.event(ResponseReceived)
    assert box.accepted == 1


def test_without_h2_a_client_that_speaks_http_2_is_left_and_the_log_says_why(
    box: Sandbox, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "notify_worker.sandbox.http2", raising=False)
    monkeypatch.setitem(sys.modules, "h2.config", None)

    with caplog.at_level(logging.WARNING), pytest.raises(httpx.HTTPError):
        send(client, "phone")

    assert "a client speaks HTTP/2, and h2.config is not installed" in caplog.text
