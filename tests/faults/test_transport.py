"""Each fault of the wire has its outcome: NOT_SENT only if the server certainly never saw the request."""

import asyncio
import gzip
import socket
import traceback
from collections.abc import AsyncIterator

import httpx
import pytest

from notify_worker.senders.transport import NOT_SENT, AiohttpTransport
from tests.support.hostile import Act, HostileServer, answer, close, in_turn, reset, silence, then_close, then_stall

PHASES = {"pool": 0.3, "connect": 0.3, "read": 0.3, "write": 0.3}
CUT = {"content_length": "500"}


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with HostileServer() as server:
        yield server


@pytest.fixture
async def transport() -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport(in_flight=50)
    yield transport
    await transport.aclose()


def post(url: str, body: bytes = b"{}") -> httpx.Request:
    return httpx.Request("POST", url, headers={"X-Test": "yes"}, content=body, extensions={"timeout": PHASES})


async def error_of(transport: AiohttpTransport, url: str) -> httpx.RequestError:
    with pytest.raises(httpx.RequestError) as caught:
        await transport.handle_async_request(post(url))
    return caught.value


async def test_a_request_arrives_as_it_was_made(server: HostileServer, transport: AiohttpTransport) -> None:
    server.acts[""] = answer(200, {"name": "a"}, x_more="b")

    response = await transport.handle_async_request(post(server.url + "/a%2Fb?c=d", b'{"x": 1}'))

    [seen] = server.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/a%2Fb?c=d", b'{"x": 1}')
    assert {name: seen.headers[name] for name in seen.headers} == {
        "host": f"127.0.0.1:{server.port}",
        "x-test": "yes",
        "content-length": "8",
    }
    assert (response.status_code, response.json(), response.headers["x-more"]) == (200, {"name": "a"}, "b")


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        pytest.param(close, httpx.RemoteProtocolError, id="closed after reading"),
        pytest.param(reset, (httpx.RemoteProtocolError, httpx.ReadError), id="reset while waiting"),
        pytest.param(silence, httpx.ReadTimeout, id="silence"),
    ],
)
async def test_a_request_that_was_read_is_never_reported_as_unsent_nor_repeated(
    server: HostileServer,
    transport: AiohttpTransport,
    act: Act,
    expected: type[Exception] | tuple[type[Exception], ...],
) -> None:
    server.acts[""] = in_turn(answer(200), act)
    await transport.handle_async_request(post(server.url + "/first"))

    error = await error_of(transport, server.url + "/second")

    assert isinstance(error, expected)
    assert not isinstance(error, NOT_SENT)
    assert server.count("/second") == 1


async def test_a_refused_connection_was_not_sent(transport: AiohttpTransport) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))

        error = await error_of(transport, f"http://127.0.0.1:{nobody.getsockname()[1]}")

    assert type(error) is httpx.ConnectError


async def test_a_name_that_does_not_exist_was_not_sent(transport: AiohttpTransport) -> None:
    error = await error_of(transport, "http://nowhere.invalid")

    assert isinstance(error, NOT_SENT)


async def test_a_server_that_does_not_speak_tls_was_not_sent_anything(transport: AiohttpTransport) -> None:
    async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no TLS at all")
        writer.close()

    async with await asyncio.start_server(garbage, "127.0.0.1", 0) as plain:
        error = await error_of(transport, f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}")

    assert type(error) is httpx.ConnectError


async def test_a_handshake_that_never_ends_was_not_sent(server: HostileServer, transport: AiohttpTransport) -> None:
    error = await error_of(transport, server.url.replace("http:", "https:"))

    assert type(error) is httpx.ConnectTimeout
    assert server.seen == []


async def test_a_request_that_finds_no_free_connection_was_not_sent(server: HostileServer) -> None:
    server.acts[""] = silence
    async with AiohttpTransport(in_flight=1) as transport:
        patient = httpx.Request("POST", server.url + "/first")
        holder = asyncio.create_task(transport.handle_async_request(patient))
        await server.has_read("/first")

        error = await error_of(transport, server.url + "/second")

        holder.cancel()
        await asyncio.wait([holder])
    assert isinstance(error, NOT_SENT)
    assert server.count("/second") == 0


async def test_a_request_refused_by_a_proxy_was_not_sent_and_its_password_stays_hidden(server: HostileServer) -> None:
    server.acts[""] = answer(502)
    proxy = server.url.replace("http://", "http://user:secret@")
    async with AiohttpTransport(in_flight=1, proxy=proxy) as transport:
        error = await error_of(transport, "https://fcm.invalid/send")

    assert type(error) is httpx.ProxyError
    assert "secret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(then_close(answer(200, b'{"name"', **CUT)), id="the connection closes"),
        pytest.param(then_stall(answer(200, b'{"name"', **CUT)), id="the connection stalls"),
    ],
)
async def test_a_status_counts_though_its_body_is_cut_off(
    server: HostileServer, transport: AiohttpTransport, act: Act
) -> None:
    server.acts[""] = act

    response = await transport.handle_async_request(post(server.url))

    assert response.status_code == 200
    assert response.content == b'{"name"'


async def test_a_status_counts_though_its_body_cannot_be_decompressed(
    server: HostileServer, transport: AiohttpTransport
) -> None:
    server.acts[""] = answer(200, b"no gzip", content_encoding="gzip")

    response = await transport.handle_async_request(post(server.url))

    assert response.status_code == 200


async def test_a_gzip_body_is_decompressed_once(server: HostileServer, transport: AiohttpTransport) -> None:
    server.acts[""] = answer(200, gzip.compress(b'{"name": "a"}'), content_encoding="gzip")

    response = await transport.handle_async_request(post(server.url))

    assert response.json() == {"name": "a"}


async def test_a_redirect_is_an_answer_and_is_not_followed(server: HostileServer, transport: AiohttpTransport) -> None:
    server.acts["/old"] = answer(307, location=server.url + "/new")

    response = await transport.handle_async_request(post(server.url + "/old"))

    assert response.status_code == 307
    assert server.count("/new") == 0


async def test_a_request_that_meets_an_unannounced_close_is_never_reported_as_unsent_nor_repeated(
    server: HostileServer, transport: AiohttpTransport
) -> None:
    server.acts[""] = then_close(answer(200))

    for number in range(50):
        try:
            await transport.handle_async_request(post(f"{server.url}/{number}/"))
        except httpx.RequestError as error:
            assert not isinstance(error, NOT_SENT)  # noqa: PT017 - whether the close comes first is a matter of luck

    assert max(server.count(f"/{number}/") for number in range(50)) == 1


async def test_cancelling_one_request_leaves_the_others_alone(
    server: HostileServer, transport: AiohttpTransport
) -> None:
    server.acts["/silent"] = silence
    server.acts["/fine"] = answer(200)
    silent = asyncio.create_task(transport.handle_async_request(post(server.url + "/silent")))
    await server.has_read("/silent")
    fine = [asyncio.create_task(transport.handle_async_request(post(server.url + "/fine"))) for _ in range(20)]

    silent.cancel()

    assert [(await each).status_code for each in fine] == [200] * 20
    with pytest.raises(asyncio.CancelledError):
        await silent


async def test_requests_one_after_the_other_share_a_connection(
    server: HostileServer, transport: AiohttpTransport
) -> None:
    server.acts[""] = answer(200)

    for _ in range(5):
        await transport.handle_async_request(post(server.url))

    assert server.connections == 1
