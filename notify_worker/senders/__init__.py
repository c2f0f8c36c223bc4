"""Senders: what carries a message to a provider. A sender can never touch the database."""

from typing import Protocol

from notify_worker.model import Message, Outcome


class Sender(Protocol):
    """One project's way to its provider."""

    async def warm_up(self) -> None:
        """Get ready for the first message. Raises CredentialsError, which says what to set."""

    async def send(self, message: Message) -> Outcome:
        """Make one request, once. Whatever the provider answers, or fails to answer, is an outcome: this never raises."""

    async def aclose(self) -> None:
        """Close the connections. What is in flight must have ended before."""
