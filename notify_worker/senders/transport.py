"""HTTP/1.1 under httpx's names: aiohttp as an `httpx.AsyncBaseTransport` whose exceptions say what surely never left.

httpx's own transport searches its pool for every request, and other bridges to aiohttp call an answer that never came a
`ConnectTimeout`. Here what is in NOT_SENT surely never left. Everything else, listed or not, may have arrived.
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
"""The request never left. What stands not here is unknown: a new class of a new version then errs on the safe side."""

EXACTLY: tuple[tuple[type[aiohttp.ClientError], type[httpx.RequestError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ClientHttpProxyError, httpx.ProxyError),
    (aiohttp.SocketTimeoutError, httpx.ReadTimeout),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientError, httpx.ReadError),
)
"""The most specific first."""

KEEP_ALIVE = 60.0
"""Seconds. The client must close first: a request that meets a closing server is unknown. FCM is said to wait 180."""

BEFORE_THE_DEADLINE = 0.05
"""Seconds before the end of the whole request at which no more of a body is waited for."""
BODY_WAIT = 1.0
"""Seconds for the body once the status line is there: the status decides, and whatever came of the body has to do."""

LONGEST_BODY = 65536
"""Bytes of a body that are read, and unpacked: FCM's own have a few hundred."""

SET_BY_AIOHTTP = frozenset({"host", "content-length", "connection"})


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Belongs to the loop in which its first request is made; close it before that loop ends."""

    def __init__(self, *, in_flight: int, proxy: str | None = None) -> None:
        """Keep as many connections as there are requests in flight, so that the pool is never what waits."""
        self._in_flight = in_flight
        self._proxy = proxy
        self._lazy_session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request, once. A POST is never made again by itself, and a redirect is never followed."""
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
            # Without the cause: its text quotes the address of a proxy, password and all.
            raise told(error, request) from None
        except aiohttp.ClientError as error:
            raise told(error, request) from error

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
    """Read the body as far as it comes. Once FCM has said 200, a connection that dies or stalls takes nothing back.

    At the deadline (by the loop's clock) whoever waits is cancelled: a little before that the status is worth more.
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
    """Turn the answer into httpx's, unpacked. A body that can't be unpacked is left out: its status still counts."""
    packed = answer.headers.get("content-encoding", "identity")
    headers = [(name, value) for name, value in answer.raw_headers if name.lower() != b"content-encoding"]
    content = body if packed == "identity" else unpacked(body)
    return httpx.Response(answer.status, headers=headers, content=content, request=request)


def unpacked(body: bytes) -> bytes:
    """Unpack what nobody asked to be packed, up to a limit: a bomb must not take the worker's memory."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, LONGEST_BODY)
    except zlib.error:
        return b""


def told(error: aiohttp.ClientError, request: httpx.Request) -> httpx.RequestError:
    """Say what happened in httpx's words, so that NOT_SENT holds."""
    exactly = next(name for kind, name in EXACTLY if isinstance(error, kind))
    what = in_words(error, request)
    return exactly(what if issubclass(exactly, NOT_SENT) else f"{what}; FCM may have it", request=request)


def in_words(error: aiohttp.ClientError, request: httpx.Request) -> str:
    """Leave out what aiohttp quotes: half an answer as its own object, and a status of 400 that nobody gave."""
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
    """One for the process: each new one reads the whole bundle of certificates again. SSL_CERT_FILE is honoured."""
    return httpx.create_ssl_context()


@lru_cache(maxsize=64)
def encoded(url: str) -> URL:
    """Hand the address on as it is: httpx has encoded it already."""
    return URL(url, encoded=True)


@lru_cache(maxsize=64)
def timeouts(pool: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    """Translate httpx's timeouts. What aiohttp calls `connect` covers the wait for the pool and the connecting."""
    return aiohttp.ClientTimeout(total=None, connect=pool, sock_connect=connect, sock_read=read)


def proxy_for(url: httpx.URL) -> str | None:
    """Give the proxy that the environment names for this address. To this machine there is none."""
    return None if is_loopback(url.host) or proxy_bypass(url.host) else getproxies().get(url.scheme)
