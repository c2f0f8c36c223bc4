"""Opens a project's sender when its first message is sent, so that one bad key stops no other project.

`projects.sender` names the sender: `fcm`, `console`, or another package's entry point in the group `notify_worker.senders`.
It is a callable that takes the project and the settings and returns a Sender.

`LazySender.send` checks what such a sender returns or raises, so that the worker and the database can rely on its types.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.metadata import entry_points
from time import monotonic

from notify_worker.errors import CredentialsError
from notify_worker.model import BUG, Message, Outcome, Pause, Project, Scope, Verdict
from notify_worker.senders import Sender
from notify_worker.senders.console import ConsoleSender
from notify_worker.senders.credentials import one_line
from notify_worker.senders.fcm import FcmSender, log_raised
from notify_worker.senders.responses import LONGEST_WAIT, MISCONFIGURED
from notify_worker.settings import Settings

ENTRY_POINTS = "notify_worker.senders"
REOPEN_AFTER = 5.0
"""Seconds after which a sender that could not be opened is opened again."""


def open_sender(project: Project, settings: Settings) -> "LazySender":
    """Return the sender of a project; nothing is read or connected yet."""

    async def opener() -> Sender:
        match project.sender:
            case "fcm":
                return await open_fcm(project, settings)
            case "console":
                return ConsoleSender()
            case other:
                return await asyncio.to_thread(load_plugin, other, project, settings)

    return LazySender(opener, project.name)


async def open_fcm(project: Project, settings: Settings) -> Sender:
    """Open FCM's sender.

    Raises:
        CredentialsError: The key or the project's row can't be used.
    """
    try:
        return await FcmSender.open(project, settings.fcm_url, settings.request_timeout, settings.concurrency)
    except CredentialsError:
        raise
    except Exception as error:
        raise CredentialsError(
            f'The sender of project "{project.name}" can\'t be opened: {type(error).__name__}. '
            "Check its row of projects, and the file or variable that it names."
        ) from error


def load_plugin(name: str, project: Project, settings: Settings) -> Sender:
    """Open the sender of another package.

    Raises:
        CredentialsError: No entry point has this name, or it fails.
    """
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(("fcm", "console", *sorted(found)))
        raise CredentialsError(
            f'There is no sender "{name}", which project "{project.name}" names. There are: {known}.'
        )
    try:
        sender: Sender = found[name].load()(project, settings)
    except Exception as error:
        raise CredentialsError(
            f'The sender "{name}" of project "{project.name}" fails: {type(error).__name__}'
        ) from error
    return sender


class LazySender:
    """Opens a sender for the first message, and again after a while if that failed.

    Args:
        opener: Opens the sender, or raises CredentialsError.
        project: The project's name, for the log.
    """

    def __init__(self, opener: Callable[[], Awaitable[Sender]], project: str = "") -> None:
        self._opener = opener
        self._project = project
        self._sender: Sender | None = None
        self._opening = asyncio.Lock()
        self._failure: CredentialsError | None = None
        self._failed_at = 0.0

    async def open(self) -> None:
        """Open the sender, which loads its credentials but makes no request.

        Raises:
            CredentialsError: They can't be used. The text says what to set.
        """
        if self._sender is None:
            await self._open()

    async def warm_up(self) -> None:
        """Open the sender and prepare it for the first message.

        Raises:
            CredentialsError: The credentials can't be used. The text says what to set.
        """
        await (self._sender or await self._open()).warm_up()

    async def send(self, message: Message) -> Outcome:
        """Send a message. Without usable credentials, the project is paused and the attempt does not count.

        Returns:
            A valid Outcome, whatever the sender returned or raised: see `clean`.
        """
        try:
            sender = self._sender or await self._open()
        except CredentialsError as error:
            return Outcome(Verdict.PAUSED, error=one_line(str(error)), error_code="CREDENTIALS", pause=MISCONFIGURED)
        try:
            return clean(await sender.send(message))
        except Exception as error:  # noqa: BLE001  a sender of another package may raise anything
            log_raised(self._project, error)
            return broken(f"the project's sender raised {type(error).__name__}; see the worker's log")

    async def aclose(self) -> None:
        """Close the sender, if it was opened."""
        if self._sender is not None:
            await self._sender.aclose()

    async def _open(self) -> Sender:
        async with self._opening:
            if self._sender is not None:
                return self._sender
            if self._failure is not None and monotonic() - self._failed_at < REOPEN_AFTER:
                raise self._failure
            try:
                self._sender = await self._opener()
            except CredentialsError as error:
                self._failure, self._failed_at = error, monotonic()
                raise
            return self._sender


def clean(returned: object) -> Outcome:
    """Return an Outcome with the declared types, and with text that is one line and that Postgres can store.

    A field with an impossible value is dropped or limited; the verdict stays. Anything that is not an Outcome with a verdict
    becomes an unknown outcome.
    """
    if not isinstance(returned, Outcome) or not isinstance(returned.verdict, Verdict):
        return broken("the project's sender returned no outcome")
    return Outcome(
        returned.verdict,
        error=clean_text(returned.error),
        error_code=clean_text(returned.error_code),
        http_status=clean_status(returned.http_status),
        provider_message_id=clean_text(returned.provider_message_id),
        asked_to_wait=clean_wait(returned.asked_to_wait),
        pause=clean_pause(returned.pause),
        quickly_retryable=returned.quickly_retryable is True,
    )


def broken(error: str) -> Outcome:
    """Return the outcome of a sender with a bug: it is unknown whether the provider has the message."""
    return Outcome(Verdict.UNKNOWN, error=error, error_code=BUG)


def clean_text(text: object) -> str | None:
    """Shorten a text to one line. NUL, lone surrogates and other unprintable characters become spaces."""
    return one_line(text) or None if isinstance(text, str) else None


def clean_status(status: object) -> int | None:
    """Drop a status that HTTP does not have: RFC 9110, section 15."""
    return status if isinstance(status, int) and 100 <= status <= 599 else None


def clean_wait(wait: object) -> timedelta | None:
    """Limit a wait to the longest one: a mistake must not stop a delivery for a year."""
    return min(max(wait, timedelta()), LONGEST_WAIT) if isinstance(wait, timedelta) else None


def clean_pause(pause: object) -> Pause | None:
    """Drop a pause without a scope, and limit its length."""
    if not isinstance(pause, Pause) or not isinstance(pause.scope, Scope):
        return None
    return Pause(pause.scope, clean_wait(pause.lasts))
