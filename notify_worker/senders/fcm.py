"""Firebase Cloud Messaging, HTTP v1: one request for each message. `responses` classifies the answers.

Retries are the caller's. This module knows no delivery, no lease and no database.
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
from notify_worker.senders.credentials import Tokens, one_line
from notify_worker.senders.responses import MISCONFIGURED, Answer, classify, parse_response
from notify_worker.senders.transport import NOT_SENT, AiohttpTransport, proxy_for

log = logging.getLogger(__name__)

STALL = 0.05
"""Seconds. If a deadline is noticed this late, the process or its event loop has stalled."""
READ_AFTER_STALL = 0.3
"""Seconds to read an answer that arrived during a stall."""


class FcmSender:
    """Sends one project's messages to FCM."""

    def __init__(
        self,
        project: Project,
        fcm_url: str,
        request_timeout: timedelta,
        in_flight: int,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Load the project's credential. May block: in a running event loop, use `open`.

        Raises:
            CredentialsError: The credential can't be used.
        """
        self._project = project
        self._fcm_url = fcm_url
        self._tokens = Tokens(project)
        self._transport = transport or AiohttpTransport(in_flight=in_flight, proxy=proxy_for(self._url()))
        # The lease is calculated from the timeout of the whole request. Connecting times out before it, with its own error.
        self._request_timeout = request_timeout.total_seconds()
        self._connect_timeout = self._request_timeout / 3
        self._timeouts = {"pool": self._connect_timeout, "connect": self._connect_timeout, "read": None}

    @classmethod
    async def open(cls, project: Project, fcm_url: str, request_timeout: timedelta, in_flight: int) -> Self:
        """Create a sender without blocking the event loop."""
        return await asyncio.to_thread(cls, project, fcm_url, request_timeout, in_flight)

    async def warm_up(self) -> None:
        """Fetch the access token.

        Raises:
            CredentialsError: None can be fetched now.
        """
        await self._authorization()

    async def send(self, message: Message) -> Outcome:
        """Make one request. Returns an outcome whatever FCM answers, and also if it does not answer; never raises."""
        deadline = asyncio.get_running_loop().time() + self._request_timeout
        authorization = ""
        try:
            authorization = await self._authorization()
            async with answer_until(deadline, self._request_timeout):
                answer = await self._post(message, authorization, deadline)
            outcome = self._learn(authorization, answer, classify(answer, message.kind))
        except CredentialsError as error:
            outcome = without_token(error)
        except Exception as error:  # noqa: BLE001 - the last resort: FCM may have the message
            outcome = without_answer(error)
            if not isinstance(error, httpx.HTTPError | TimeoutError):
                log_raised(self._project.name, error)
        return fit_for_people(outcome, str(message.body.get(message.kind, "")), authorization)

    async def aclose(self) -> None:
        """Close the connections. The caller has waited for requests in flight."""
        await self._transport.aclose()
        await self._tokens.aclose()

    async def _authorization(self) -> str:
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await self._tokens.authorization()
        except TimeoutError as error:
            raise CredentialsError(
                f'No token for project "{self._project.name}" within {self._connect_timeout:g} s'
            ) from error

    async def _post(self, message: Message, authorization: str, deadline: float) -> Answer:
        request = httpx.Request(
            "POST",
            self._url(),
            headers=headers(authorization),
            content=json.dumps({"message": dict(message.body)}).encode(),
            extensions={"timeout": self._timeouts, "deadline": deadline},
        )
        response = await self._transport.handle_async_request(request)
        return parse_response(response, await body_of(response))

    def _url(self) -> httpx.URL:
        """Built for each request: a new key on disk may name another Firebase project."""
        firebase_project_id = self._project.firebase_project_id or self._tokens.firebase_project_id
        return send_url(self._fcm_url, firebase_project_id, self._project.name)

    def _learn(self, authorization: str, answer: Answer, outcome: Outcome) -> Outcome:
        """Note what an answer says about its access token. After a first rejection, a quick retry uses a new one."""
        if answer.rejects_token:
            if self._tokens.rejected(authorization):
                return replace(outcome, pause=None, quickly_retryable=True)
            return outcome
        self._tokens.accepted(authorization)
        if outcome.pause == MISCONFIGURED:
            self._tokens.distrust()
        return outcome


def log_raised(project: str, error: Exception) -> None:
    """Log where a sender raised an error, but not the error's text, which may quote an address or a key."""
    name = type(error).__name__
    trace = "".join(traceback.format_tb(error.__traceback__))
    fields = {"event": "sender_raised", "project": project, "error": name}
    log.error("the sender of project %s raised %s\n%s", project, name, trace, extra=fields)


@asynccontextmanager
async def answer_until(deadline: float, within: float) -> AsyncIterator[None]:
    """Raise httpx.ReadTimeout at the deadline. Connecting has earlier timeouts of its own.

    After a stall, the event loop sees the answer and the passed deadline in the same turn, and a plain timeout would cancel
    the request although its answer is there. So after a stall, the request gets a moment to read what has arrived.

    Args:
        deadline: By the event loop's clock.
        within: Seconds, for the error's text.
    """
    loop = asyncio.get_running_loop()

    def over() -> None:
        stalled = loop.time() - deadline > STALL
        scope.reschedule(loop.time() + (READ_AFTER_STALL if stalled else 0))

    timer = loop.call_at(deadline, over)
    try:
        async with asyncio.timeout(None) as scope:
            yield
    except TimeoutError:
        raise httpx.ReadTimeout(f"no answer within {within:g} s; FCM may have it") from None
    finally:
        timer.cancel()


def without_token(error: CredentialsError) -> Outcome:
    """Return the outcome without an access token: nothing was sent, and the project is paused."""
    code = type(error.__cause__ or error).__name__
    return Outcome(Verdict.PAUSED, error=str(error), error_code=code, pause=MISCONFIGURED)


def without_answer(error: Exception) -> Outcome:
    """Return the outcome without a status line: the request certainly never left, or it is unknown whether it arrived."""
    name = type(error).__name__
    not_sent = isinstance(error, NOT_SENT)
    verdict = Verdict.RETRY if not_sent else Verdict.UNKNOWN
    return Outcome(
        verdict, error=f"{name}: {error}" if str(error) else name, error_code=name, quickly_retryable=not_sent
    )


def fit_for_people(outcome: Outcome, address: str, authorization: str) -> Outcome:
    """Make FCM's text one line, and hide the address and the token in case it repeats them."""
    hide = (address, authorization.removeprefix("Bearer "))
    return replace(
        outcome,
        error=None if outcome.error is None else one_line(outcome.error, hide=hide),
        provider_message_id=one_line(outcome.provider_message_id or "", hide=hide) or None,
    )


async def body_of(response: httpx.Response) -> bytes:
    """Read as much of the body as arrives. The status line is there already, and it decides."""
    try:
        return await response.aread()
    except httpx.HTTPError:
        return b""
    finally:
        await response.aclose()


@lru_cache(maxsize=64)
def headers(authorization: str) -> httpx.Headers:
    """Build the headers, once per token. Their repr hides the token; a dict's would not."""
    return httpx.Headers({"Authorization": authorization, "Content-Type": "application/json"})


@lru_cache(maxsize=64)
def send_url(fcm_url: str, firebase_project_id: str | None, project: str) -> httpx.URL:
    """Return the URL for messages of a Firebase project."""
    if not firebase_project_id:
        raise CredentialsError(
            f'The credentials of project "{project}" name no Firebase project. '
            "Set firebase_project_id in its row of projects."
        )
    return httpx.URL(f"{fcm_url}/v1/projects/{quote(firebase_project_id, safe='')}/messages:send")
