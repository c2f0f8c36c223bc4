"""A project's quota: a bucket that holds what one second allows, and is refilled all the time."""

from collections.abc import Callable
from time import monotonic


class Bucket:
    """What is left of a project's quota. A request takes one; the rate is given with each, since it can be switched."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._left: float | None = None
        self._filled_at = clock()

    def take(self, rate: float | None) -> bool:
        """Take one, at this many a second; false: there is none. Without a rate there always is one."""
        if rate is None:
            self._left = None
            return True
        capacity = max(rate, 1.0) if rate else 0.0  # below one a second nothing would ever get through
        left = self._refilled(rate, capacity)
        self._left = left - 1 if left >= 1 else left
        return left >= 1

    def give_back(self) -> None:
        """Undo a take: an answer of 429 uses nothing up."""
        if self._left is not None:
            self._left += 1

    def _refilled(self, rate: float, capacity: float) -> float:
        now = self._clock()
        since, self._filled_at = now - self._filled_at, now
        return capacity if self._left is None else min(capacity, self._left + since * rate)
