"""A sender that prints: for development, and as the shape of another provider's."""

import json
import sys
from typing import TextIO

from notify_worker.model import Message, Outcome, Verdict


class ConsoleSender:
    """Writes each message as one line of JSON, without its address, and calls it sent."""

    def __init__(self, to: TextIO | None = None) -> None:
        self._to = to or sys.stdout

    async def warm_up(self) -> None:
        """Need nothing."""

    async def send(self, message: Message) -> Outcome:
        """Print it."""
        words = {name: value for name, value in message.body.items() if name != message.kind}
        print(json.dumps({"to": message.kind, **words}, ensure_ascii=False), file=self._to, flush=True)
        return Outcome(Verdict.SENT)

    async def aclose(self) -> None:
        """Keep nothing."""
