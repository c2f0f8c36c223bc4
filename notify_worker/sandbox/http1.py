"""HTTP/1.1: carries requests from aiohttp to the server, and its answers back."""

from aiohttp import web

from notify_worker.sandbox.answers import Answer
from notify_worker.sandbox.server import Http, Server

KEEP_ALIVE = 3600.0
"""Seconds until an idle connection is closed, as with FCM: closing sooner would cut requests off that FCM does not."""
SHUTDOWN = 0.2
"""Seconds that requests in flight get when the sandbox stops."""


def runner_of(server: Server) -> web.AppRunner:
    """Make what speaks HTTP/1.1 on connections that it is given."""

    async def serve(request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        answer = await server.answer(Http(request.method, request.path, authorization, await request.read()))
        if answer is None:
            return hang_up(request)
        if answer.cut:
            return await cut_off(request, answer)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", serve)
    return web.AppRunner(
        app, access_log=None, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE, shutdown_timeout=SHUTDOWN
    )


def hang_up(request: web.Request) -> web.StreamResponse:
    """Close the connection under the client; what is returned reaches nobody."""
    if request.transport:
        request.transport.abort()
    return web.Response()


async def cut_off(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send half of an answer, and close the connection under the client when that has left."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])
    if request.transport:
        request.transport.close()
    return response
