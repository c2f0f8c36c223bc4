"""A sender that prints: for development, and as an example for another provider's."""

import json
import sys
from typing import TextIO

from notify_worker.model import Message, Outcome, Verdict


class ConsoleSender:
    """Prints each message as one line of JSON, without its address; every message is sent."""

    def __init__(self, to: TextIO | None = None) -> None:
        self._to = to or sys.stdout

    async def warm_up(self) -> None:
        """Do nothing: there is no connection."""

    async def send(self, message: Message) -> Outcome:
        """Print a message."""
        content = {name: value for name, value in message.body.items() if name != message.kind}
        print(json.dumps({"to": message.kind, **content}, ensure_ascii=False), file=self._to, flush=True)
        return Outcome(Verdict.SENT)

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""
