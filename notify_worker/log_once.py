"""Saying once what goes wrong again and again: a database that is away for an hour is one line, and not a thousand."""

from logging import Logger


class Complaint:
    """One kind of complaint. What was said last is not said again until it is over."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._said = ""

    def say(self, what: str) -> None:
        """Log a warning, where it is not the one before."""
        if what != self._said:
            self._log.warning(what)
        self._said = what

    def over(self) -> None:
        """Take note that all is well again."""
        self._said = ""
