"""The Firebase projects of a sandbox: the counts of each, and its quota. The sandbox's thread writes, any thread reads."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from notify_worker.model import Json


@dataclass(slots=True)
class Counts:
    """Numbers of send requests and their results."""

    received: int = 0
    """Requests that were read, whatever their result."""
    accepted: int = 0
    """Messages that were accepted; those with `validate_only` do not count."""
    doubles: int = 0
    """Messages to an address that had already been shown one with the same notification_id."""
    in_flight: int = 0
    """Requests that are being answered right now."""
    by_status: Counter[int] = field(default_factory=Counter)
    """Answers of each status."""
    by_fault: Counter[str] = field(default_factory=Counter)
    """Requests that met each fault, by address or by rate."""
    requests: Counter[str] = field(default_factory=Counter)
    """Well-formed, authorised requests for each address."""

    def as_json(self) -> dict[str, Json]:
        """Return the counts as JSON, without addresses."""
        return {
            "received": self.received,
            "accepted": self.accepted,
            "doubles": self.doubles,
            "in_flight": self.in_flight,
            "by_status": {str(status): times for status, times in sorted(self.by_status.items())},
            "by_fault": dict(sorted(self.by_fault.items())),
        }


class TokenBucket:
    """A project's quota: holds one second's worth of requests, refilled continuously.

    The rate comes with each request, since it can be switched.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._available: float | None = None
        self._refilled_at = clock()

    def take(self, rate: float | None) -> bool:
        """Take one token at `rate` tokens a second. Returns False if the bucket is empty; None as rate is no limit."""
        if rate is None:
            self._available = None
            return True
        capacity = max(rate, 1.0) if rate else 0.0  # at less than one a second no request would ever get through
        available = self._refill(rate, capacity)
        self._available = available - 1 if available >= 1 else available
        return available >= 1

    def put_back(self) -> None:
        """Undo a take: a request that is answered 429 uses no quota."""
        if self._available is not None:
            self._available += 1

    def _refill(self, rate: float, capacity: float) -> float:
        now = self._clock()
        elapsed, self._refilled_at = now - self._refilled_at, now
        return capacity if self._available is None else min(capacity, self._available + elapsed * rate)


@dataclass(slots=True)
class Project:
    """A Firebase project for which the sandbox's service account may send."""

    name: str
    counts: Counts = field(default_factory=Counts)
    quota: TokenBucket = field(default_factory=TokenBucket)
