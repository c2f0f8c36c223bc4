"""Senders carry messages to a provider. A sender never touches the database."""

from typing import Protocol

from notify_worker.model import Message, Outcome


class Sender(Protocol):
    """Sends one project's messages to its provider."""

    async def warm_up(self) -> None:
        """Get ready for the first message.

        Raises:
            CredentialsError: says what to set.
        """

    async def send(self, message: Message) -> Outcome:
        """Make one request. Returns an outcome whatever the provider answers, and if it does not answer; never raises."""

    async def aclose(self) -> None:
        """Close the connections. Requests in flight must have ended before."""
