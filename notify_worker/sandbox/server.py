"""The HTTP side of the sandbox: the token endpoint, `messages:send`, and what there is to look at."""

import asyncio
import json
from collections import Counter
from itertools import count, islice
from time import time_ns

from aiohttp import web

from notify_worker.model import Json
from notify_worker.sandbox.account import PROJECT, Account
from notify_worker.sandbox.answers import HTML, NO_SUCH_PAGE, WRONG_PROJECT, Answer, RefusedError, accepted
from notify_worker.sandbox.checks import Request, read
from notify_worker.sandbox.faults import Drop, Hang, fault
from notify_worker.sandbox.page import LATEST, as_json, page
from notify_worker.sandbox.phones import Phones, Shown


class Server:
    """Answers requests. All of it runs in one event loop; its counts may be read from any thread."""

    def __init__(self, account: Account, phones: Phones, latency: float) -> None:
        self.received = 0
        self.in_flight = 0
        self.by_status: Counter[int] = Counter()
        self.requests: Counter[str] = Counter()
        self._account = account
        self._phones = phones
        self._latency = latency
        self._serial = count(1)

    def application(self) -> web.Application:
        """Say which address leads where."""
        app = web.Application()
        app.router.add_post("/v1/projects/{project}/messages:send", self.send)
        app.router.add_post("/token", self.token)
        app.router.add_get("/", self.look)
        app.router.add_get("/shown", self.look_as_json)
        app.router.add_route("*", "/{anything:.*}", no_such_page)
        return app

    async def send(self, http: web.Request) -> web.Response:
        """Answer a send, or leave without an answer.

        What is accepted is shown before the latency: a client that is killed while it waits has sent its message.
        """
        body = await http.read()
        self.received += 1
        self.in_flight += 1
        try:
            answer = await self._answer(http, body)
            if self._latency:
                await asyncio.sleep(self._latency)
        finally:
            self.in_flight -= 1
        if answer is None:
            return hang_up(http)
        self.by_status[answer.status] += 1
        return response(answer)

    async def _answer(self, http: web.Request, body: bytes) -> Answer | None:
        """Say what FCM says; None: nothing, ever."""
        if refused := self._account.refuse(http.headers.get("Authorization")):
            return refused
        if http.match_info["project"] != PROJECT:
            return WRONG_PROJECT
        try:
            return await self._behave(read(body))
        except RefusedError as refused_for:
            return refused_for.answer

    async def _behave(self, request: Request) -> Answer | None:
        """Behave as the address asks for, or well."""
        self.requests[request.address] += 1
        match fault(request.address, self.requests[request.address]):
            case Answer() as answer:
                return answer
            case Drop():
                return None
            case Hang(seconds):
                await asyncio.sleep(seconds)
        return self._accept(request)

    def _accept(self, request: Request) -> Answer:
        if request.validate_only:
            return accepted(f"projects/{PROJECT}/messages/fake_message_id")
        self._phones.show(request)
        return accepted(f"projects/{PROJECT}/messages/0:{time_ns() // 1000}%{next(self._serial):016x}")

    async def token(self, http: web.Request) -> web.Response:
        """Exchange a signed JWT for a bearer."""
        try:
            return response(self._account.grant(await http.post()))
        except RefusedError as refused:
            return response(refused.answer)

    async def look(self, _: web.Request) -> web.Response:
        """Show what phones would show."""
        return response(Answer(200, page(self._newest_first(), self._counts()), HTML))

    async def look_as_json(self, _: web.Request) -> web.Response:
        """Show it to a program."""
        told = {**self._counts(), "shown": [as_json(each) for each in self._newest_first()]}
        return response(Answer(200, json.dumps(told).encode()))

    def _newest_first(self) -> list[Shown]:
        return list(islice(reversed(self._phones.latest()), LATEST))

    def _counts(self) -> dict[str, Json]:
        return {
            "received": self.received,
            "accepted": self._phones.accepted,
            "doubles": self._phones.doubles,
            "in_flight": self.in_flight,
            "by_status": {str(status): times for status, times in sorted(self.by_status.items())},
        }


def response(answer: Answer) -> web.Response:
    """Give an answer to aiohttp."""
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


def hang_up(http: web.Request) -> web.Response:
    """Close the connection under the client; what is returned reaches nobody."""
    if http.transport:
        http.transport.abort()
    return web.Response()


async def no_such_page(_: web.Request) -> web.Response:
    """Answer as Google's front end does."""
    return response(NO_SUCH_PAGE)
