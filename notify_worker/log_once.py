"""Log a recurring trouble once: a database that is away for an hour is one line, not a thousand."""

from logging import Logger


class LogOnce:
    """One kind of trouble. The same sentence is not logged again until `reset`."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._last = ""

    def warn(self, event: str, sentence: str, **fields: object) -> None:
        """Log a warning, unless it was the last one.

        Args:
            event: The record's fixed name, in snake_case.
            sentence: What people read.
            fields: What the record carries besides; no name of an attribute of `logging.LogRecord`.
        """
        if sentence != self._last:
            self._log.warning("%s", sentence, extra={"event": event, **fields})
        self._last = sentence

    def reset(self) -> None:
        """Take note that all is well again: the next warning is logged, whatever it says."""
        self._last = ""
