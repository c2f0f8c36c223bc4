"""What the door has to know of a connection that it keeps."""

from typing import Protocol


class Guest(Protocol):
    """A connection that aiohttp does not know."""

    def go_away(self) -> None:
        """Send a GOAWAY, if it speaks HTTP/2."""

    def abort(self) -> None:
        """Close it at once."""
