"""HTTP/1.1: aiohttp as an `httpx.AsyncBaseTransport` whose exceptions say whether a request may have arrived.

httpx's own transport searches its pool for every request, and other bridges to aiohttp raise `ConnectTimeout` when only the
answer is missing. Here, after an error in NOT_SENT the request certainly never left; after any other, it may have arrived.
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
"""Errors after which the request never left. Any other error, also one that a new version adds, counts as unknown."""

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
"""Seconds. The client must close first: a request to a server that is closing is unknown. FCM seems to wait 180 s."""

BEFORE_THE_DEADLINE = 0.05
"""Seconds before the deadline of the whole request at which reading the body ends."""
BODY_WAIT = 1.0
"""Seconds to read the body after the status line. The status decides, so a part of the body is enough."""

LONGEST_BODY = 65536
"""The most bytes of a body to read, and to decompress it to. FCM's have a few hundred."""

SET_BY_AIOHTTP = frozenset({"host", "content-length", "connection"})


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Makes requests in the event loop of its first request; close it before that loop ends."""

    def __init__(self, *, in_flight: int, proxy: str | None = None) -> None:
        """Allow as many connections as requests in flight, so that no request waits for one."""
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
    """Read as much of the body as arrives: after a status 200, a connection that breaks or stalls changes nothing.

    Ends before the deadline (by the event loop's clock), at which the request is cancelled and its status would be lost.
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
    """Convert the answer to httpx's, decompressed. A body that can't be decompressed is dropped: the status still counts."""
    packed = answer.headers.get("content-encoding", "identity")
    headers = [(name, value) for name, value in answer.raw_headers if name.lower() != b"content-encoding"]
    content = body if packed == "identity" else unpacked(body)
    return httpx.Response(answer.status, headers=headers, content=content, request=request)


def unpacked(body: bytes) -> bytes:
    """Decompress an encoding that nobody asked for, up to a limit: a bomb must not exhaust the worker's memory."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, LONGEST_BODY)
    except zlib.error:
        return b""


def as_httpx_error(error: aiohttp.ClientError, request: httpx.Request) -> httpx.RequestError:
    """Convert an error of aiohttp to httpx's, which NOT_SENT lists."""
    httpx_error = next(name for kind, name in AIOHTTP_TO_HTTPX if isinstance(error, kind))
    what = describe(error, request)
    return httpx_error(what if issubclass(httpx_error, NOT_SENT) else f"{what}; FCM may have it", request=request)


def describe(error: aiohttp.ClientError, request: httpx.Request) -> str:
    """Describe an error without aiohttp's own text, which may quote half an answer, or a status 400 that no server sent."""
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
    """Return the process's TLS context: a new one would read all certificates again. Honours SSL_CERT_FILE."""
    return httpx.create_ssl_context()


@lru_cache(maxsize=64)
def encoded(url: str) -> URL:
    """Convert a URL to yarl's, unchanged: httpx has encoded it already."""
    return URL(url, encoded=True)


@lru_cache(maxsize=64)
def timeouts(pool: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    """Convert httpx's timeouts. aiohttp's `connect` covers both the wait for the pool and connecting."""
    return aiohttp.ClientTimeout(total=None, connect=pool, sock_connect=connect, sock_read=read)


def proxy_for(url: httpx.URL) -> str | None:
    """Return the environment's proxy for this URL; None for this machine."""
    return None if is_loopback(url.host) or proxy_bypass(url.host) else getproxies().get(url.scheme)
