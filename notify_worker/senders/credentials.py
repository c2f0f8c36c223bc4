"""A project's Google credential, and the one access token that all its requests share.

google-auth blocks and has no credential for asyncio that renews itself: it runs in a thread, once for all that wait.
A key or a token never appears in a repr, a log line or an exception.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
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
"""Seconds before its expiry at which a token is renewed; meanwhile it stays in use."""

RENEW_PAUSE = 30.0
"""Seconds between two early renewals: Google's metadata server returns the same token until 240 s are left."""

TOKEN_REQUEST_TIMEOUT = 10.0
"""Seconds. google-auth's own timeout is 120."""

THIS_MACHINE = ("all://localhost", "all://127.0.0.1", "all://[::1]")
"""Hosts that are reached without the proxy of the environment."""

LONGEST_LINE = 600

log = logging.getLogger(__name__)


class Tokens:
    """The credential of one project and its current access token."""

    def __init__(self, project: Project) -> None:
        """Load the credential. Blocks for seconds if Google's default chain asks the metadata server.

        Raises:
            CredentialsError: says what to set.
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
        self._renewal: asyncio.Task[str] | None = None

    async def authorization(self) -> str:
        """Return the value of the Authorization header; wait only if there is no valid one.

        Raises:
            CredentialsError: no token can be had just now.
        """
        now = monotonic()
        if self._authorization is None or now >= self._valid_until:
            return await asyncio.shield(self._renew())
        if now >= self._renew_at:
            self._renew_at = now + RENEW_PAUSE
            self._renew()
        return self._authorization

    def rejected(self, authorization: str) -> bool:
        """Note that FCM rejected this token. Returns whether the request is worth a second try with a new one.

        The token is dropped once, however many requests were rejected with it, and each of them may try its successor. If
        FCM rejects that one too, no request is tried twice any more, until FCM accepts a token.
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
        """Note that the project can't be sent to with this credential: load it again soon, since it may be replaced."""
        self._reload = True
        self._renew_at = min(self._renew_at, self._renewed_at + RENEW_PAUSE)

    async def aclose(self) -> None:
        """Close the connections to the token endpoint."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])
        self._client.close()

    def _renew(self) -> asyncio.Task[str]:
        """Start a renewal, or join the running one. It goes on if its callers are cancelled."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._fetch())
            self._renewal.add_done_callback(self._report)
        return self._renewal

    async def _fetch(self) -> str:
        reload, self._reload = self._reload, True  # until this fetch has succeeded
        try:
            self._credential, self.firebase_project_id = await asyncio.to_thread(self._refreshed, reload)
        except CredentialsError:
            raise
        except Exception as error:
            # No message has left, whatever the error is: it must not be taken for an answer of FCM.
            raise CredentialsError(f'No token for project "{self._project.name}": {reason(error)}') from error
        lifetime = seconds_left(self._credential)
        self._reload = False
        self._authorization = f"Bearer {self._credential.token}"
        self._renewed_at = monotonic()
        self._valid_until = self._renewed_at + lifetime
        self._renew_at = self._renewed_at + max(lifetime - RENEW_AHEAD, RENEW_PAUSE)
        return self._authorization

    def _refreshed(self, reload: bool) -> tuple[Credentials, str | None]:  # noqa: FBT001  for to_thread
        """Fetch a token; blocks. After a failure the credential is loaded again: it may have been replaced."""
        credential, project_id = self._credential, self.firebase_project_id
        if reload:
            credential, project_id = load(self._project, self._request)
        credential.refresh(self._request)  # type: ignore[no-untyped-call]
        return credential, project_id

    def _report(self, renewal: "asyncio.Task[str]") -> None:
        if not renewal.cancelled() and (error := renewal.exception()):
            log.warning("token_not_renewed project=%s: %s", self._project.name, error)


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
            TransportError: google-auth's; there was no answer.
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
    """Return the reason in one phrase, without the whole answer that a RefreshError carries as well."""
    said = error.args[0] if isinstance(error, GoogleAuthError) and error.args else "the answer can't be read"
    refused = isinstance(error, RefreshError) and not error.retryable
    hint = ". Look at the key of the service account, and at this machine's clock." if refused else ""
    return one_line(f"{type(error).__name__}: {said}").rstrip(".") + hint


def one_line(text: str, *, hide: tuple[str, ...] = ()) -> str:
    """Make one short line of a foreign text, fit for a log and for Postgres, with each text in `hide` replaced."""
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
        "Write where your project's service account lies, never the key itself."
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
    """Make a credential of a service account's JSON, unless its token_uri is unsafe."""
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
        if S_ISREG(kind) or S_ISDIR(kind):  # reading a folder fails with an error that says so
            return parse(Path(path).read_bytes(), where, path)
    except FileNotFoundError:
        raise CredentialsError(
            f"{where} names a file that is not there: {path}. Point it at your project's service-account file."
        ) from None
    except OSError as error:
        raise CredentialsError(
            f"{where} names a file that can't be read: {path} ({error.strerror}). "
            "Point it at your project's service-account file."
        ) from None
    raise CredentialsError(  # reading a pipe or an endless device would never end
        f"{where} names a file that can't be read: {path} (not a regular file). "
        "Point it at your project's service-account file."
    )


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
            "It has to hold your project's service account, as Firebase gave it."
        ) from None
