"""Firebase Cloud Messaging, HTTP v1: one request a message. What the answers mean stands in `verdicts`.

Blips and retries are made by the caller. Nothing here knows a delivery, a lease or a database.
"""

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import Self
from urllib.parse import quote

import httpx

from notify_worker.errors import CredentialsError
from notify_worker.model import Message, Outcome, Project, Verdict
from notify_worker.senders.tokens import Tokens, one_line
from notify_worker.senders.transport import NOT_SENT, AiohttpTransport, proxy_for
from notify_worker.senders.verdicts import BADLY_SET_UP, Answer, judge, read

log = logging.getLogger(__name__)


STOOD_STILL = 0.05
"""Seconds after a deadline at which it is clear that the process, or its loop, had no turn."""
TO_READ = 0.3
"""Seconds for what has come meanwhile."""


class FcmSender:
    """One Firebase project's way to FCM."""

    def __init__(
        self,
        project: Project,
        fcm_url: str,
        request_timeout: timedelta,
        in_flight: int,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Load the project's credential, which may block: inside a running loop, use `open`.

        Raises CredentialsError, which says what to set.
        """
        self._project = project
        self._fcm_url = fcm_url
        self._tokens = Tokens(project)
        self._transport = transport or AiohttpTransport(in_flight=in_flight, proxy=proxy_for(self._url()))
        # The whole is what the lease is reckoned with; to get a connection ends before it, and can say what it was.
        self._whole = request_timeout.total_seconds()
        self._before = self._whole / 3
        self._timeouts = {"pool": self._before, "connect": self._before, "read": None}

    @classmethod
    async def open(cls, project: Project, fcm_url: str, request_timeout: timedelta, in_flight: int) -> Self:
        """Make a sender without blocking the loop."""
        return await asyncio.to_thread(cls, project, fcm_url, request_timeout, in_flight)

    async def warm_up(self) -> None:
        """Fetch the token. Raises CredentialsError: none can be had just now."""
        await self._authorization()

    async def send(self, message: Message) -> Outcome:
        """Make one request, once. Whatever FCM answers, or fails to answer, is an outcome: this never raises."""
        deadline = asyncio.get_running_loop().time() + self._whole
        authorization = ""
        try:
            authorization = await self._authorization()
            async with answer_until(deadline, self._whole):
                answer = await self._post(message, authorization, deadline)
            outcome = self._learn(authorization, answer, judge(answer, message.kind))
        except CredentialsError as error:
            outcome = without_token(error)
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it was, FCM may have the message
            outcome = without_answer(error)
            self._report(error)
        return fit_for_people(outcome, str(message.body.get(message.kind, "")), authorization)

    async def aclose(self) -> None:
        """Close the connections. What is in flight must have ended before."""
        await self._transport.aclose()
        await self._tokens.aclose()

    async def _authorization(self) -> str:
        try:
            async with asyncio.timeout(self._before):
                return await self._tokens.authorization()
        except TimeoutError as error:
            raise CredentialsError(f'No token for project "{self._project.name}" within {self._before:g} s') from error

    async def _post(self, message: Message, authorization: str, deadline: float) -> Answer:
        request = httpx.Request(
            "POST",
            self._url(),
            headers=headers(authorization),
            content=json.dumps({"message": dict(message.body)}).encode(),
            extensions={"timeout": self._timeouts, "deadline": deadline},
        )
        response = await self._transport.handle_async_request(request)
        return read(response, await body_of(response))

    def _url(self) -> httpx.URL:
        """Another key on the disk may name another Firebase project."""
        firebase_project_id = self._project.firebase_project_id or self._tokens.firebase_project_id
        return send_url(self._fcm_url, firebase_project_id, self._project.name)

    def _learn(self, authorization: str, answer: Answer, outcome: Outcome) -> Outcome:
        """Let an answer speak for its token. The first refusal alone is worth the same request with a new one."""
        if answer.refuses_token:
            if self._tokens.spent(authorization):
                return replace(outcome, pause=None, mendable=True)
            return outcome
        self._tokens.good(authorization)
        if outcome.pause == BADLY_SET_UP:
            self._tokens.doubt()
        return outcome

    def _report(self, error: Exception) -> None:
        """Log what nobody has foreseen: where it broke, but not its text, which may quote a header."""
        if not isinstance(error, httpx.HTTPError | TimeoutError):
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("send_broke project=%s error=%s\n%s", self._project.name, type(error).__name__, where)


@asynccontextmanager
async def answer_until(deadline: float, within: float) -> AsyncIterator[None]:
    """Raise httpx.ReadTimeout at the deadline: to connect has limits of its own, long before that.

    In one turn the loop finds an answer and the time over, and whoever waits would be cancelled with the answer there: a
    process that stood still beyond the deadline first reads what has come meanwhile. `within` is for people: seconds.
    """
    loop = asyncio.get_running_loop()

    def over() -> None:
        stood_still = loop.time() - deadline > STOOD_STILL
        scope.reschedule(loop.time() + (TO_READ if stood_still else 0))

    timer = loop.call_at(deadline, over)
    try:
        async with asyncio.timeout(None) as scope:
            yield
    except TimeoutError:
        raise httpx.ReadTimeout(f"no answer within {within:g} s; FCM may have it") from None
    finally:
        timer.cancel()


def without_token(error: CredentialsError) -> Outcome:
    """Nothing left, since no token could be had: the project's fault."""
    code = type(error.__cause__ or error).__name__
    return Outcome(Verdict.PAUSED, error=str(error), error_code=code, pause=BADLY_SET_UP)


def without_answer(error: Exception) -> Outcome:
    """No status line came: either the request surely never left, or nobody knows."""
    name = type(error).__name__
    not_sent = isinstance(error, NOT_SENT)
    verdict = Verdict.RETRY if not_sent else Verdict.UNKNOWN
    return Outcome(verdict, error=f"{name}: {error}" if str(error) else name, error_code=name, mendable=not_sent)


def fit_for_people(outcome: Outcome, address: str, authorization: str) -> Outcome:
    """Make one line of what FCM wrote; keep the address and the token out of it, should anybody have echoed them."""
    hide = (address, authorization.removeprefix("Bearer "))
    return replace(
        outcome,
        error=None if outcome.error is None else one_line(outcome.error, hide=hide),
        sent_as=one_line(outcome.sent_as or "", hide=hide) or None,
    )


async def body_of(response: httpx.Response) -> bytes:
    """Read what there is to read: the status line has come, and it decides."""
    try:
        return await response.aread()
    except httpx.HTTPError:
        return b""
    finally:
        await response.aclose()


@lru_cache(maxsize=64)
def headers(authorization: str) -> httpx.Headers:
    """Build the headers once per token. They hide the token in their repr; a dict would not."""
    return httpx.Headers({"Authorization": authorization, "Content-Type": "application/json"})


@lru_cache(maxsize=64)
def send_url(fcm_url: str, firebase_project_id: str | None, project: str) -> httpx.URL:
    """Name the place that messages of a Firebase project are sent to."""
    if not firebase_project_id:
        raise CredentialsError(
            f'The credentials of project "{project}" name no Firebase project. '
            "Set firebase_project_id in its row of projects."
        )
    return httpx.URL(f"{fcm_url}/v1/projects/{quote(firebase_project_id, safe='')}/messages:send")
