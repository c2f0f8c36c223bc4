"""A project's sender, opened when the first message of it is to be sent: one bad key keeps nobody else from sending.

`projects.sender` names it: fcm, console, or one that another package brings under the entry point
`notify_worker.senders`: a callable that takes the project's row and the settings, and returns a Sender.
"""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from time import monotonic

from notify_worker.errors import CredentialsError
from notify_worker.model import Message, Outcome, Pause, Project, Scope, Verdict
from notify_worker.senders import Sender
from notify_worker.senders.console import ConsoleSender
from notify_worker.senders.fcm import FcmSender
from notify_worker.senders.tokens import one_line
from notify_worker.settings import Settings

ENTRY_POINTS = "notify_worker.senders"
OPEN_AGAIN_AFTER = 5.0
"""Seconds after which a sender that could not be opened is tried again."""


def open_sender(project: Project, settings: Settings) -> "LazySender":
    """Name what carries the messages of a project; nothing is read or connected yet."""

    async def opened() -> Sender:
        match project.sender:
            case "fcm":
                return await opened_fcm(project, settings)
            case "console":
                return ConsoleSender()
            case other:
                return await asyncio.to_thread(brought, other, project, settings)

    return LazySender(opened)


async def opened_fcm(project: Project, settings: Settings) -> Sender:
    """Open FCM's sender. Raises CredentialsError, whatever it is that is wrong with a key, or with a row of projects."""
    try:
        return await FcmSender.open(project, settings.fcm_url, settings.request_timeout, settings.concurrency)
    except CredentialsError:
        raise
    except Exception as error:
        raise CredentialsError(
            f'What project "{project.name}" is sent with can\'t be used: {type(error).__name__}. '
            "Look at its row of projects, and at the file or variable that it names."
        ) from error


def brought(name: str, project: Project, settings: Settings) -> Sender:
    """Open the sender that another package brings. Raises CredentialsError: there is none of this name, or it fails."""
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
    """Opens a sender for whoever comes first, and again, after a while, where that failed."""

    def __init__(self, opener: Callable[[], Awaitable[Sender]]) -> None:
        self._opener = opener
        self._sender: Sender | None = None
        self._opening = asyncio.Lock()
        self._failed: CredentialsError | None = None
        self._failed_at = 0.0

    async def open(self) -> None:
        """Read what the sender needs, and ask nobody. Raises CredentialsError, which says what to set."""
        if self._sender is None:
            await self._open()

    async def warm_up(self) -> None:
        """Open, and get ready for the first message. Raises CredentialsError."""
        await (self._sender or await self._open()).warm_up()

    async def send(self, message: Message) -> Outcome:
        """Send; where there are no usable credentials, that is the project's fault and burns nothing."""
        try:
            sender = self._sender or await self._open()
        except CredentialsError as error:
            return Outcome(
                Verdict.PAUSED, error=one_line(str(error)), error_code="CREDENTIALS", pause=Pause(Scope.PROJECT)
            )
        return await sender.send(message)

    async def aclose(self) -> None:
        """Close what was opened."""
        if self._sender is not None:
            await self._sender.aclose()

    async def _open(self) -> Sender:
        async with self._opening:
            if self._sender is not None:
                return self._sender
            if self._failed is not None and monotonic() - self._failed_at < OPEN_AGAIN_AFTER:
                raise self._failed
            try:
                self._sender = await self._opener()
            except CredentialsError as error:
                self._failed, self._failed_at = error, monotonic()
                raise
            return self._sender
