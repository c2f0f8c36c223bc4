"""What the sandbox answers, whatever carries the request: messages:send, the token endpoint, switches, and a page."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Lock
from urllib.parse import parse_qsl

from notify_worker.errors import NotifyWorkerError
from notify_worker.model import Json
from notify_worker.sandbox.account import Account
from notify_worker.sandbox.answers import HTML, TEXT, Answer, RefusedError, told
from notify_worker.sandbox.catalogue import NO_SUCH_PAGE
from notify_worker.sandbox.fcm import Fcm, behave
from notify_worker.sandbox.page import LATEST, as_json, page
from notify_worker.sandbox.phones import Shown
from notify_worker.sandbox.switches import Switches

SEND = re.compile(r"/v1/projects/([^/]+)/messages:send")


@dataclass(frozen=True, slots=True)
class Http:
    """A request as it came, over HTTP/1.1 or HTTP/2."""

    method: str
    path: str
    authorization: str | None = field(repr=False)
    body: bytes = field(repr=False)


class Server:
    """Answers requests, in one event loop; switches may be changed from any thread."""

    def __init__(self, account: Account, fcm: Fcm, switches: Switches) -> None:
        self.switches = switches
        self.on_goaway: Callable[[], None] = lambda: None
        self.fcm = fcm
        self._account = account
        self._switching = Lock()

    def change(self, changes: Mapping[str, Json]) -> Switches:
        """Change switches, and say how all stand.

        Raises NotifyWorkerError, and changes nothing, where one can't be changed so.
        """
        with self._switching:
            switches = self.switches.changed(changes)
            if "revoked" in changes:
                self._account.revoke(revoked=switches.revoked)
            if switches.goaway:
                self.on_goaway()
            self.switches = replace(switches, goaway=False)
            return self.switches

    async def answer(self, http: Http) -> Answer | None:
        """Answer a request; None: close the connection without a word."""
        if http.method == "POST" and (send := SEND.fullmatch(http.path)):
            return await self.fcm.send(send[1], http.authorization, http.body, self.switches)
        if (http.method, http.path) == ("POST", "/token"):
            return await self._token(http)
        return self._look(http)

    async def _token(self, http: Http) -> Answer | None:
        """Exchange a signed JWT for a bearer."""
        form = dict(parse_qsl(http.body.decode(errors="replace")))
        try:
            return await behave(self.switches.grant_fault, lambda: self._grant(form))
        except RefusedError as refused:
            return refused.answer

    def _grant(self, form: Mapping[str, str]) -> Answer:
        return self._account.grant(form, self.switches.token_lifetime, refuse=self.switches.refuse_grants)

    def _look(self, http: Http) -> Answer:
        """Show what phones would show, what was counted, and how the switches stand."""
        match http.method, http.path:
            case "GET", "/":
                return Answer(200, page(self._newest_first(), self._counts(), self.switches.as_json()), HTML)
            case "GET", "/shown":
                shown = [as_json(each) for each in self._newest_first()]
                return told({**self._counts(), "switches": self.switches.as_json(), "shown": shown})
            case "GET", "/switch":
                return told(self.switches.as_json())
            case "POST", "/switch":
                return self._switch(http.body)
        return NO_SUCH_PAGE

    def _switch(self, body: bytes) -> Answer:
        try:
            return told(self.change(asked_in(body)).as_json())
        except NotifyWorkerError as wrong:
            return Answer(400, f"{wrong}\n".encode(errors="replace"), TEXT)

    def _newest_first(self) -> list[Shown]:
        return list(islice(reversed(self.fcm.phones.latest()), LATEST))

    def _counts(self) -> dict[str, Json]:
        each = {name: project.counts.as_json() for name, project in self.fcm.projects.items()}
        return self.fcm.counts.as_json() | ({"projects": each} if len(each) > 1 else {})


def asked_in(body: bytes) -> Mapping[str, Json]:
    """Read the changes that somebody asks for.

    Raises NotifyWorkerError.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise NotifyWorkerError('what was sent is no JSON object. Send one such as {"latency": 0.5}.')
    return asked
