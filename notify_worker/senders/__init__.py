"""Senders bring messages to a provider. A sender never touches the database.

Another package can have a sender of its own. It registers a callable as an entry point of the group `notify_worker.senders`;
projects whose `projects.sender` is its name use it.
"""

from typing import Protocol

from notify_worker.model import Message, Outcome


class Sender(Protocol):
    """Sends one project's messages to its provider. All calls come from one event loop.

    Example:
        # [project.entry-points."notify_worker.senders"] pigeons = "birds:PigeonSender"
        class PigeonSender:
            def __init__(self, project: Project, settings: Settings) -> None:
                self._timeout = settings.request_timeout

            async def warm_up(self) -> None: ...

            async def send(self, message: Message) -> Outcome:
                return Outcome(Verdict.SENT)

            async def aclose(self) -> None: ...
    """

    async def warm_up(self) -> None:
        """Prepare for the first message, for example by fetching an access token.

        Raises:
            CredentialsError: The credentials can't be used. The text says what to set.
        """

    async def send(self, message: Message) -> Outcome:
        """Make one request, without retries. Called for many messages at once.

        Args:
            message: A message with its address, in the form of FCM's `message` object.

        Returns:
            The result, whatever the provider answers, and also if it does not answer. An exception counts as unknown:
            the provider may have the message. Ends within `settings.request_timeout`, since the lease assumes it.
        """

    async def aclose(self) -> None:
        """Close the connections. The caller has waited for requests in flight."""
