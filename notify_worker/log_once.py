"""Logs a repeated warning once: a database that is away for an hour is one line, not a thousand."""

from logging import Logger


class LogOnce:
    """Logs warnings of one loop. The same sentence is not logged again until `reset`."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._last = ""

    def warn(self, event: str, sentence: str, **fields: object) -> None:
        """Log a warning with its event, a sentence for people, and fields, unless it repeats the last one."""
        if sentence != self._last:
            self._log.warning("%s", sentence, extra={"event": event, **fields})
        self._last = sentence

    def reset(self) -> None:
        """Log the next warning in any case, after a success."""
        self._last = ""
