"""HTTP/1.1: aiohttp as an `httpx.AsyncBaseTransport` whose exceptions say whether a request may have arrived.

httpx's own transport searches its pool for every request, and other bridges to aiohttp raise `ConnectTimeout` for a missing
answer. Here a request with an error in NOT_SENT certainly never left; with any other error it may have arrived.
"""

import asyncio
import ssl
import zlib
from functools import cache, lru_cache
from math import inf
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from yarl import URL

from notify_worker.settings import is_loopback

NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
"""The request never left. Any other error is unknown, so that a new class in a new version errs on the safe side."""

AIOHTTP_TO_HTTPX: tuple[tuple[type[aiohttp.ClientError], type[httpx.RequestError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ClientHttpProxyError, httpx.ProxyError),
    (aiohttp.SocketTimeoutError, httpx.ReadTimeout),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientError, httpx.ReadError),
)
"""The most specific first."""

KEEP_ALIVE = 60.0
"""Seconds. The client must close first: a request that meets a closing server is unknown. FCM seems to wait 180."""

BEFORE_THE_DEADLINE = 0.05
"""Seconds before the deadline of the whole request at which the wait for the body ends."""
BODY_WAIT = 1.0
"""Seconds for the body after the status line. The status decides; the part of the body that has arrived must do."""

LONGEST_BODY = 65536
"""Bytes of a body that are read and decompressed. FCM's have a few hundred."""

SET_BY_AIOHTTP = frozenset({"host", "content-length", "connection"})


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Belongs to the event loop of its first request; close it before that loop ends."""

    def __init__(self, *, in_flight: int, proxy: str | None = None) -> None:
        """Allow as many connections as requests in flight, so that no request waits for the pool."""
        self._in_flight = in_flight
        self._proxy = proxy
        self._lazy_session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request. A POST is never repeated, and a redirect is never followed."""
        phases = request.extensions.get("timeout", {})
        try:
            async with self._session().request(
                request.method,
                encoded(str(request.url)),
                data=request.content,
                headers=[(name, value) for name, value in request.headers.multi_items() if name not in SET_BY_AIOHTTP],
                allow_redirects=False,
                timeout=timeouts(phases.get("pool"), phases.get("connect"), phases.get("read")),
            ) as answer:
                return response(request, answer, await body_of(answer, request.extensions.get("deadline", inf)))
        except aiohttp.ClientResponseError as error:
            # Without the cause: its text quotes the proxy's URL with its password.
            raise as_httpx_error(error, request) from None
        except aiohttp.ClientError as error:
            raise as_httpx_error(error, request) from error

    async def aclose(self) -> None:
        """Close every connection."""
        if self._lazy_session is not None:
            await self._lazy_session.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._lazy_session is None:
            self._lazy_session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._in_flight, ssl=trust(), keepalive_timeout=KEEP_ALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
                proxy=self._proxy,
            )
        return self._lazy_session


async def body_of(answer: aiohttp.ClientResponse, deadline: float) -> bytes:
    """Read the body as far as it arrives: after the status 200, a connection that breaks or stalls changes nothing.

    At the deadline (by the event loop's clock) the request is cancelled and its status would be lost, so this ends before.
    """
    body = bytearray()
    until = asyncio.get_running_loop().time() + BODY_WAIT
    try:
        async with asyncio.timeout_at(min(until, deadline - BEFORE_THE_DEADLINE)):
            async for part in answer.content.iter_any():
                body += part
                if len(body) > LONGEST_BODY:
                    answer.close()
                    break
    except (aiohttp.ClientError, TimeoutError):
        answer.close()
    return bytes(body[:LONGEST_BODY])


def response(request: httpx.Request, answer: aiohttp.ClientResponse, body: bytes) -> httpx.Response:
    """Return the answer as httpx's, decompressed. A body that can't be decompressed is left out: the status still counts."""
    packed = answer.headers.get("content-encoding", "identity")
    headers = [(name, value) for name, value in answer.raw_headers if name.lower() != b"content-encoding"]
    content = body if packed == "identity" else unpacked(body)
    return httpx.Response(answer.status, headers=headers, content=content, request=request)


def unpacked(body: bytes) -> bytes:
    """Decompress an unrequested encoding, up to a limit: a bomb must not take the worker's memory."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, LONGEST_BODY)
    except zlib.error:
        return b""


def as_httpx_error(error: aiohttp.ClientError, request: httpx.Request) -> httpx.RequestError:
    """Return the error as httpx's, so that NOT_SENT can be checked."""
    httpx_error = next(name for kind, name in AIOHTTP_TO_HTTPX if isinstance(error, kind))
    what = describe(error, request)
    return httpx_error(what if issubclass(httpx_error, NOT_SENT) else f"{what}; FCM may have it", request=request)


def describe(error: aiohttp.ClientError, request: httpx.Request) -> str:
    """Describe an error without aiohttp's own text, which quotes half an answer, or a status 400 that no server sent."""
    match error:
        case aiohttp.SocketTimeoutError():
            return f"no answer within {request.extensions['timeout']['read']:.3g} s"
        case aiohttp.ClientHttpProxyError():
            return f"{error.status} {error.message}"
        case aiohttp.ClientResponseError() | aiohttp.ServerDisconnectedError(message=aiohttp.http.RawResponseMessage()):
            return "the answer could not be read"
    return str(error) or "the connection broke"


@cache
def trust() -> ssl.SSLContext:
    """Return the one context of the process: each new one reads the whole bundle of certificates. Honours SSL_CERT_FILE."""
    return httpx.create_ssl_context()


@lru_cache(maxsize=64)
def encoded(url: str) -> URL:
    """Keep the URL as it is: httpx has encoded it already."""
    return URL(url, encoded=True)


@lru_cache(maxsize=64)
def timeouts(pool: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    """Translate httpx's timeouts. aiohttp's `connect` covers both the wait for the pool and connecting."""
    return aiohttp.ClientTimeout(total=None, connect=pool, sock_connect=connect, sock_read=read)


def proxy_for(url: httpx.URL) -> str | None:
    """Return the environment's proxy for this URL; never one for this machine."""
    return None if is_loopback(url.host) or proxy_bypass(url.host) else getproxies().get(url.scheme)
