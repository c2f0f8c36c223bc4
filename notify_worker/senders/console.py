"""A sender that prints messages: for development, and as an example of a sender."""

import json
import sys
from typing import TextIO

from notify_worker.model import Message, Outcome, Verdict


class ConsoleSender:
    """Prints each message as one line of JSON, without its address. Every message counts as sent."""

    def __init__(self, to: TextIO | None = None) -> None:
        self._to = to or sys.stdout

    async def warm_up(self) -> None:
        """Do nothing: there is no connection."""

    async def send(self, message: Message) -> Outcome:
        """Print a message and return that it was sent."""
        content = {name: value for name, value in message.body.items() if name != message.kind}
        print(json.dumps({"to": message.kind, **content}, ensure_ascii=False), file=self._to, flush=True)
        return Outcome(Verdict.SENT)

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""
