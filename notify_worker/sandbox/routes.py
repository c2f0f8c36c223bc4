"""The sandbox's HTTP server, an aiohttp application: sending, tokens, switches, and the page of shown messages."""

import json
import re
from collections.abc import Mapping
from itertools import islice
from threading import Lock
from urllib.parse import parse_qsl

from aiohttp import web

from notify_worker.errors import NotifyWorkerError
from notify_worker.model import Json
from notify_worker.sandbox.account import Account
from notify_worker.sandbox.answers import HTML, NO_SUCH_PAGE, TEXT, Answer, RefusedError, ok
from notify_worker.sandbox.fcm import Fcm, apply_fault
from notify_worker.sandbox.phones import LATEST, Shown, as_json, page
from notify_worker.sandbox.switches import Switches

SEND = re.compile(r"/v1/projects/([^/]+)/messages:send")
KEEP_ALIVE = 3600.0
"""Seconds until an idle connection is closed. FCM waits long too: closing early would break requests that FCM answers."""
SHUTDOWN = 0.2
"""Seconds for requests in flight to end when the sandbox stops."""


class Routes:
    """Answers requests, in one event loop. Switches may be changed from any thread."""

    def __init__(self, account: Account, fcm: Fcm, switches: Switches) -> None:
        self.switches = switches
        self.fcm = fcm
        self._account = account
        self._switching = Lock()

    def runner(self) -> web.AppRunner:
        """Build aiohttp's server for these routes."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        return web.AppRunner(
            app, access_log=None, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE, shutdown_timeout=SHUTDOWN
        )

    def switch(self, changes: Mapping[str, Json]) -> Switches:
        """Change some switches and return all. Raises NotifyWorkerError if a name or a value is wrong: nothing changes."""
        with self._switching:
            switches = self.switches.changed(changes)
            if "revoked" in changes:
                self._account.revoke(revoked=switches.revoked)
            self.switches = switches
            return switches

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        answer = await self._answer(request, await request.read())
        if answer is None:
            return close_connection(request)
        if answer.cut:
            return await send_half(request, answer)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async def _answer(self, request: web.Request, body: bytes) -> Answer | None:
        """Answer a request; None closes the connection without an answer."""
        if request.method == "POST" and (send := SEND.fullmatch(request.path)):
            return await self.fcm.send(send[1], request.headers.get("Authorization"), body, self.switches)
        if (request.method, request.path) == ("POST", "/token"):
            return await self._token(body)
        return self._page(request.method, request.path, body)

    def _page(self, method: str, path: str, body: bytes) -> Answer:
        """Answer a request for the shown messages, the counts or the switches."""
        match method, path:
            case "GET", "/":
                return Answer(200, page(self._newest_first(), self._counts(), self.switches.as_json()), HTML)
            case "GET", "/shown":
                shown = [as_json(each) for each in self._newest_first()]
                return ok({**self._counts(), "switches": self.switches.as_json(), "shown": shown})
            case "GET", "/switch":
                return ok(self.switches.as_json())
            case "POST", "/switch":
                return self._switch(body)
        return NO_SUCH_PAGE

    async def _token(self, body: bytes) -> Answer | None:
        """Exchange a signed JWT for a bearer token."""
        form = dict(parse_qsl(body.decode(errors="replace")))
        try:
            return await apply_fault(self.switches.grant_fault, lambda: self._grant(form))
        except RefusedError as refused:
            return refused.answer

    def _grant(self, form: Mapping[str, str]) -> Answer:
        return self._account.grant(form, self.switches.token_lifetime, refuse=self.switches.refuse_grants)

    def _switch(self, body: bytes) -> Answer:
        try:
            return ok(self.switch(changes_in(body)).as_json())
        except NotifyWorkerError as wrong:
            return Answer(400, f"{wrong}\n".encode(errors="replace"), TEXT)

    def _newest_first(self) -> list[Shown]:
        return list(islice(reversed(self.fcm.phones.latest()), LATEST))

    def _counts(self) -> dict[str, Json]:
        each = {name: project.counts.as_json() for name, project in self.fcm.projects.items()}
        return self.fcm.counts.as_json() | ({"projects": each} if len(each) > 1 else {})


def close_connection(request: web.Request) -> web.StreamResponse:
    """Close the connection. aiohttp requires a response, but it is never sent."""
    if request.transport:
        request.transport.abort()
    return web.Response()


async def send_half(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send half of an answer, then close the connection."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])
    if request.transport:
        request.transport.close()
    return response


def changes_in(body: bytes) -> Mapping[str, Json]:
    """Parse the body of a POST to /switch. Raises NotifyWorkerError if it is not a JSON object."""
    try:
        changes = json.loads(body)
    except (ValueError, RecursionError):
        changes = None
    if not isinstance(changes, dict):
        raise NotifyWorkerError('the body is no JSON object. Send one such as {"latency": 0.5}.')
    return changes
