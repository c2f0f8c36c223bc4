"""A project's Google credential, and the access token that all its requests share.

google-auth blocks, so it fetches tokens in a thread: one fetch for all requests that wait.
A key or a token never appears in a repr, a log line or an exception.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from errno import EINVAL
from os import environ
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from time import monotonic
from typing import Any, NamedTuple

import google.auth
import httpx
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError
from google.auth.transport import Request
from google.oauth2 import service_account

from notify_worker.errors import CredentialsError
from notify_worker.model import Json, Project
from notify_worker.senders.transport import trust
from notify_worker.settings import url

SCOPES = ("https://www.googleapis.com/auth/firebase.messaging",)
DEFAULT_CHAIN = "GOOGLE_APPLICATION_CREDENTIALS"

RENEW_AHEAD = 300.0
"""Seconds before its expiry at which a token is renewed. It stays in use until then."""

RENEW_PAUSE = 30.0
"""Seconds between two early renewals: Google's metadata server returns the same token until 240 s are left."""

TOKEN_REQUEST_TIMEOUT = 10.0
"""Seconds. google-auth's own timeout is 120."""

THIS_MACHINE = ("all://localhost", "all://127.0.0.1", "all://[::1]")
"""Hosts that are reached without the environment's proxy."""

LONGEST_LINE = 600

log = logging.getLogger(__name__)


class Tokens:
    """The credential of one project and its current access token."""

    def __init__(self, project: Project) -> None:
        """Load the credential. May block for seconds while Google's default chain asks the metadata server.

        Raises:
            CredentialsError: The credential can't be used.
        """
        self._project = project
        self._client = httpx.Client(verify=trust(), mounts=dict.fromkeys(THIS_MACHINE))
        self._request = TokenRequest(self._client)
        try:
            self._credential, self.firebase_project_id = load(project, self._request)
        except CredentialsError:
            self._client.close()
            raise
        self._reload = False
        self._authorization: str | None = None
        self._valid_until = 0.0
        self._renewed_at = 0.0
        self._renew_at = 0.0
        self._rejected = False
        self._rejected_again = False
        self._fetched = ""  # not the task's result, which asyncio's debug log would show
        self._renewal: asyncio.Task[None] | None = None

    async def authorization(self) -> str:
        """Return the value of the Authorization header. Waits only if there is no valid token.

        Raises:
            CredentialsError: No token can be fetched now.
        """
        now = monotonic()
        if self._authorization is None or now >= self._valid_until:
            await asyncio.shield(self._renew())
            return self._fetched
        if now >= self._renew_at:
            self._renew_at = now + RENEW_PAUSE
            self._renew()
        return self._authorization

    def rejected(self, authorization: str) -> bool:
        """Note that FCM rejected this token. Returns True if the request should be repeated with a new one.

        Each request that was rejected with this token may try the next one. If FCM rejects that too, no request is repeated
        until FCM accepts a token again.
        """
        if authorization == self._authorization:
            self._authorization = None
            self._reload = True
            self._rejected_again = self._rejected
            self._rejected = True
        return not self._rejected_again

    def accepted(self, authorization: str) -> None:
        """Note that FCM accepted this token: a later rejection counts as the first again."""
        if authorization == self._authorization:
            self._rejected = self._rejected_again = False

    def distrust(self) -> None:
        """Note that FCM refuses the project. Loads the credential again soon, since it may have been replaced."""
        self._reload = True
        self._renew_at = min(self._renew_at, self._renewed_at + RENEW_PAUSE)

    async def aclose(self) -> None:
        """Close the connections to the token endpoint."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])
        self._client.close()

    def _renew(self) -> asyncio.Task[None]:
        """Start a renewal, or join the running one. It goes on even if its callers are cancelled."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._fetch())
            self._renewal.add_done_callback(self._report)
        return self._renewal

    async def _fetch(self) -> None:
        reload, self._reload = self._reload, True  # until this fetch has succeeded
        try:
            self._credential, self.firebase_project_id = await asyncio.to_thread(self._refreshed, reload)
        except CredentialsError:
            raise
        except Exception as error:
            # Whatever the error is, no message has left: the caller must not treat it as an answer of FCM.
            raise CredentialsError(f'No token for project "{self._project.name}": {reason(error)}') from error
        lifetime = seconds_left(self._credential)
        self._reload = False
        self._authorization = self._fetched = f"Bearer {self._credential.token}"
        self._renewed_at = monotonic()
        self._valid_until = self._renewed_at + lifetime
        self._renew_at = self._renewed_at + max(lifetime - RENEW_AHEAD, RENEW_PAUSE)

    def _refreshed(self, reload: bool) -> tuple[Credentials, str | None]:  # noqa: FBT001  for to_thread
        """Fetch a token; blocks. After a failure, load the credential again: it may have been replaced."""
        credential, project_id = self._credential, self.firebase_project_id
        if reload:
            credential, project_id = load(self._project, self._request)
        credential.refresh(self._request)  # type: ignore[no-untyped-call]
        return credential, project_id

    def _report(self, renewal: "asyncio.Task[None]") -> None:
        if not renewal.cancelled() and (error := renewal.exception()):
            fields = {"event": "token_not_renewed", "project": self._project.name}
            log.warning("no new token for project %s: %s", self._project.name, error, extra=fields)


class TokenAnswer(NamedTuple):
    """An answer in the form that google-auth expects."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class TokenRequest(Request):
    """Makes google-auth's requests, over httpx."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> TokenAnswer:
        """Make one request.

        Raises:
            TransportError: There was no answer. The type is google-auth's.
        """
        try:
            answer = self._client.request(
                method, url, content=body, headers=headers, timeout=timeout or TOKEN_REQUEST_TIMEOUT
            )
        except httpx.HTTPError as error:
            where = httpx.URL(url).host
            raise TransportError(f"{where}: {type(error).__name__}: {error}") from error  # type: ignore[no-untyped-call]
        return TokenAnswer(answer.status_code, answer.headers, answer.content)


def reason(error: Exception) -> str:
    """Return the reason in one phrase, without the token endpoint's whole answer, which a RefreshError also carries."""
    said = error.args[0] if isinstance(error, GoogleAuthError) and error.args else "the answer can't be read"
    refused = isinstance(error, RefreshError) and not error.retryable
    hint = ". Look at the key of the service account, and at this machine's clock." if refused else ""
    return one_line(f"{type(error).__name__}: {said}").rstrip(".") + hint


def one_line(text: str, *, hide: tuple[str, ...] = ()) -> str:
    """Shorten a text to one printable line, for logs and Postgres, with each text in `hide` replaced."""
    for secret in filter(None, hide):
        text = text.replace(secret, "[hidden]")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:LONGEST_LINE]


def seconds_left(credentials: Credentials) -> float:
    """Return the seconds until the token expires. google-auth's `expiry` is a naive datetime in UTC."""
    if credentials.expiry is None:
        return RENEW_AHEAD * 2
    left: float = (credentials.expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    return left


def load(project: Project, request: Request) -> tuple[Credentials, str | None]:
    """Load a project's credential and the id of the Firebase project that it names."""
    where = f'credentials of project "{project.name}"'
    kind, _, name = (project.credentials or "").partition(":")
    if project.credentials is None:
        return from_default_chain(request)
    if kind == "file" and name:
        return from_service_account(read_file(name, where), where)
    if kind == "env" and name:
        return from_service_account(read_variable(name, where), where)
    raise CredentialsError(
        f"{where} is neither file:PATH nor env:NAME. "
        "Write where your project's service account is, never the key itself."
    )


def from_default_chain(request: Request) -> tuple[Credentials, str | None]:
    """Load the credential of Google's default chain: the environment's file, gcloud's login, or the machine's account."""
    if path := environ.get(DEFAULT_CHAIN):
        info = read_file(path, DEFAULT_CHAIN)
        if isinstance(info, dict) and info.get("type") == "service_account":
            return from_service_account(info, DEFAULT_CHAIN)
    try:
        credentials, project_id = google.auth.default(scopes=SCOPES, request=request)
    except GoogleAuthError as error:
        raise CredentialsError(
            f"Google's default chain gives no credentials ({reason(error)}). "
            f"Set {DEFAULT_CHAIN} to the path of your project's service-account file."
        ) from error
    return credentials, project_id


def from_service_account(info: Json, where: str) -> tuple[Credentials, str | None]:
    """Return the credential of a service account's JSON. Refuses a token_uri without TLS."""
    found = info.get("type") if isinstance(info, dict) else None
    if found != "service_account":
        raise CredentialsError(
            f"{where} leads to JSON of type {json.dumps(found)[:40]}, not to a service account. "
            "Make a key in the Firebase console under Project settings, Service accounts."
        )
    try:
        info["token_uri"] = url(info.get("token_uri", ""))
    except (ValueError, AttributeError, TypeError) as error:
        raise CredentialsError(f"{where} leads to a service account whose token_uri {error}") from None
    try:
        make = service_account.Credentials.from_service_account_info
        return make(info, scopes=SCOPES), info.get("project_id")  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, AttributeError):
        # Without the cause: cryptography's error may quote a broken key.
        raise CredentialsError(
            f"{where} leads to a service account without a usable client_email and private_key. "
            "Download the file again, or make a new key."
        ) from None


def read_file(path: str, where: str) -> Json:
    """Read the JSON in a file."""
    try:
        kind = Path(path).stat().st_mode
        if not (S_ISREG(kind) or S_ISDIR(kind)):  # reading a pipe or an endless device would never end
            raise OSError(EINVAL, "not a regular file")  # noqa: TRY301
        content = Path(path).read_bytes()  # of a folder: fails with an error that says so
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problem = f"is not there: {path}" if missing else f"can't be read: {path} ({error.strerror})"
        raise CredentialsError(
            f"{where} names a file that {problem}. Point it at your project's service-account file."
        ) from None
    return parse(content, where, path)


def read_variable(name: str, where: str) -> Json:
    """Read the JSON in a variable of the environment."""
    if not environ.get(name):
        raise CredentialsError(
            f"{where} names a variable that is not set: {name}. Put the JSON of your project's service account into it."
        )
    return parse(environ[name], where, name)


def parse(text: str | bytes, where: str, name: str) -> Json:
    """Parse JSON. The error quotes nothing of it, since it is a key."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CredentialsError(
            f"{where} names {name}, which is not JSON. "
            "It has to hold your project's service account, as downloaded from Firebase."
        ) from None
