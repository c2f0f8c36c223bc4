"""What is counted, of all and of each project. Written by the sandbox's thread, read by any."""

from collections import Counter
from dataclasses import dataclass, field

from notify_worker.model import Json


@dataclass(slots=True)
class Counts:
    """The numbers of send requests, and of what they came to."""

    received: int = 0
    """How many were read, whatever came of them."""
    accepted: int = 0
    """How many messages were accepted; `validate_only` does not count."""
    doubles: int = 0
    """How many came to an address that had been shown one with the same notification_id before."""
    in_flight: int = 0
    """How many are being held right now."""
    by_status: Counter[int] = field(default_factory=Counter)
    """How many were answered with each status."""
    by_fault: Counter[str] = field(default_factory=Counter)
    """How many met each fault, asked for by address or by rate."""
    requests: Counter[str] = field(default_factory=Counter)
    """How many well-formed, authorised ones there were for each address."""

    def as_json(self) -> dict[str, Json]:
        """Write them as JSON, without addresses."""
        return {
            "received": self.received,
            "accepted": self.accepted,
            "doubles": self.doubles,
            "in_flight": self.in_flight,
            "by_status": {str(status): times for status, times in sorted(self.by_status.items())},
            "by_fault": dict(sorted(self.by_fault.items())),
        }
