"""Firebase Cloud Messaging, HTTP v1: one request a message, and the table of what FCM's answers mean.

Blips and retries are made by the caller. Nothing here knows a delivery, a lease or a database.
"""

import asyncio
import json
import logging
import re
import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Self
from urllib.parse import quote

import httpx

from notify_worker.errors import CredentialsError
from notify_worker.model import Json, Message, Outcome, Project, Verdict
from notify_worker.senders.tokens import Tokens, one_line
from notify_worker.senders.transport import NOT_SENT, AiohttpTransport, proxy_for

QUOTA_WAIT = timedelta(seconds=60)
"""After a 429 that names no time: firebase.google.com/docs/cloud-messaging/scale-fcm"""

LONGEST_WAIT = timedelta(hours=1)
"""What a Retry-After can ask for: a mistake in a header must not silence a project for a year."""

log = logging.getLogger(__name__)


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
        self._project = project.name
        self._tokens = Tokens(project)
        self._url = send_url(fcm_url, project.firebase_project_id or self._tokens.firebase_project_id, project.name)
        self._transport = transport or AiohttpTransport(in_flight=in_flight, proxy=proxy_for(self._url))
        # The whole is what the lease is reckoned with, so each phase ends before it and can say what it was.
        self._whole = request_timeout.total_seconds()
        self._before = self._whole / 3
        self._timeouts = {"pool": self._before, "connect": self._before, "read": 0.9 * self._whole}

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
            async with asyncio.timeout_at(deadline):
                answer = await self._post(message, authorization)
            if answer.status == HTTPStatus.UNAUTHORIZED and not answer.fcm_code:
                self._tokens.spent(authorization)
            outcome = judge(answer)
        except CredentialsError as error:
            outcome = without_token(error)
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it was, FCM may have the message
            outcome = without_answer(error)
            self._report(error)
        return without_secrets(outcome, str(message.body.get(message.kind, "")), authorization)

    async def aclose(self) -> None:
        """Close the connections. What is in flight must have ended before."""
        await self._transport.aclose()
        await self._tokens.aclose()

    async def _authorization(self) -> str:
        try:
            async with asyncio.timeout(self._before):
                return await self._tokens.authorization()
        except TimeoutError as error:
            raise CredentialsError(f'No token for project "{self._project}" within {self._before:g} s') from error

    async def _post(self, message: Message, authorization: str) -> "Answer":
        request = httpx.Request(
            "POST",
            self._url,
            headers=headers(authorization),
            content=json.dumps({"message": dict(message.body)}).encode(),
            extensions={"timeout": self._timeouts},
        )
        response = await self._transport.handle_async_request(request)
        return read(response, await body_of(response))

    def _report(self, error: Exception) -> None:
        """Log what nobody has foreseen: where it broke, but not its text, which may quote a header."""
        if not isinstance(error, httpx.HTTPError | TimeoutError):
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("send_broke project=%s error=%s\n%s", self._project, type(error).__name__, where)


@dataclass(frozen=True, slots=True)
class Answer:
    """What FCM said, as far as it can be read."""

    status: int
    said: str
    """Its own words, for people."""
    fcm_code: str | None
    """The code of the FcmError: only FCM itself gives one."""
    code: str
    """The best code that there is."""
    name: str | None
    retry_after: timedelta | None


def judge(answer: Answer) -> Outcome:
    """Say what an answer means, in the order of firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode.

    By the HTTP status first: details may be missing, and a proxy answers in HTML. What is the fault of the project's
    set-up pauses the project and burns nothing.
    """
    match answer.status, answer.fcm_code:
        case 200, _:
            return Outcome(Verdict.SENT, http_status=200, sent_as=answer.name)
        case ((400 | 413), _):
            verdict = Verdict.FAILED
        case 404, "UNREGISTERED":
            verdict = Verdict.UNREGISTERED
        case status, _ if 300 <= status < 500:
            verdict = Verdict.PAUSED
        case _:
            verdict = Verdict.UNKNOWN
    wait = (answer.retry_after or QUOTA_WAIT) if answer.status == HTTPStatus.TOO_MANY_REQUESTS else answer.retry_after
    return Outcome(
        verdict,
        error=f"{answer.status} {answer.code}: {answer.said}",
        error_code=answer.code,
        http_status=answer.status,
        asked_to_wait=wait,
        mendable=answer.status >= 500 and answer.retry_after is None,
    )


def without_token(error: CredentialsError) -> Outcome:
    """Nothing left, since no token could be had: the project's fault."""
    return Outcome(Verdict.PAUSED, error=str(error), error_code=type(error.__cause__ or error).__name__)


def without_answer(error: Exception) -> Outcome:
    """No status line came: either the request surely never left, or nobody knows."""
    name = type(error).__name__
    not_sent = isinstance(error, NOT_SENT)
    verdict = Verdict.RETRY if not_sent else Verdict.UNKNOWN
    return Outcome(verdict, error=f"{name}: {error}" if str(error) else name, error_code=name, mendable=not_sent)


def without_secrets(outcome: Outcome, address: str, authorization: str) -> Outcome:
    """Keep the address and the token out of what people read, should anybody have echoed them."""
    if outcome.error is None:
        return outcome
    return replace(outcome, error=one_line(outcome.error, hide=(address, authorization.removeprefix("Bearer "))))


def read(response: httpx.Response, body: bytes) -> Answer:
    """Read an answer. Its body is never assumed to be JSON, nor JSON to be of FCM's shape."""
    found = parse(body)
    fcm_code = detail(found, "google.firebase.fcm.v1.FcmError", "errorCode")
    code = fcm_code or detail(found, "google.rpc.ErrorInfo", "reason") or code_in(found, "error", "status")
    kind = response.headers.get("content-type", "no content type")
    return Answer(
        status=response.status_code,
        said=text_in(found, "error", "message") or f"{len(body)} bytes of {kind}, not an error of FCM",
        fcm_code=fcm_code,
        code=code or f"HTTP_{response.status_code}",
        name=one_line(text_in(found, "name") or "") or None,
        retry_after=retry_after(response.headers.get("retry-after", "")),
    )


async def body_of(response: httpx.Response) -> bytes:
    """Read what there is to read: the status line has come, and it decides."""
    try:
        return await response.aread()
    except httpx.HTTPError:
        return b""
    finally:
        await response.aclose()


def parse(body: bytes) -> Json:
    """Read JSON; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def text_in(found: Json, *path: str) -> str | None:
    """Follow keys to a text, where there is one."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def code_in(found: Json, *path: str) -> str | None:
    """Follow keys to a code such as NOT_FOUND; anything else is nobody's code."""
    text = text_in(found, *path)
    return text if text and re.fullmatch("[A-Z][A-Z0-9_]{1,62}", text) else None


def detail(found: Json, kind: str, key: str) -> str | None:
    """Give the code in the first of the error's details of this kind: they may be missing, and come in any order."""
    match found:
        case {"error": {"details": [*details]}}:
            of_kind = (each for each in details if (text_in(each, "@type") or "").endswith(kind))
            return next((code for each in of_kind if (code := code_in(each, key))), None)
    return None


def retry_after(text: str) -> timedelta | None:
    """Read a Retry-After: seconds, or a date. None: there is none that can be read."""
    try:
        if text.isdecimal():
            return timedelta(seconds=min(int(text), LONGEST_WAIT.total_seconds()))
        wait = parsedate_to_datetime(text).astimezone(UTC) - datetime.now(UTC)
    except (ValueError, OverflowError):
        return None
    return min(max(wait, timedelta()), LONGEST_WAIT)


@lru_cache(maxsize=64)
def headers(authorization: str) -> httpx.Headers:
    """Build the headers once per token. They hide the token in their repr; a dict would not."""
    return httpx.Headers({"Authorization": authorization, "Content-Type": "application/json"})


def send_url(fcm_url: str, firebase_project_id: str | None, project: str) -> httpx.URL:
    """Name the place that messages of a Firebase project are sent to."""
    if not firebase_project_id:
        raise CredentialsError(
            f'The credentials of project "{project}" name no Firebase project. '
            "Set firebase_project_id in its row of projects."
        )
    return httpx.URL(f"{fcm_url}/v1/projects/{quote(firebase_project_id, safe='')}/messages:send")
