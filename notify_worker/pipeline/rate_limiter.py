"""The rate limiter of one project in one worker: a token bucket with slow start.

Pure: the caller passes the time, in seconds of a clock that never goes back.
"""

BUCKET_SECONDS = 0.25
"""Seconds of refill that the bucket holds; never less than one token."""
COLD_RAMP = 0.2
"""The part of its rate that a worker may use at first. FCM asks for a ramp-up of at least a minute:
firebase.google.com/docs/cloud-messaging/scale-fcm"""
RAMP_TIME = 60.0
"""Seconds in which the ramp rises from there to 1 while every token is taken, and falls back while not."""
MIN_WAIT = 0.005
"""Seconds to wait for tokens, at least."""


class RateLimiter:
    """Limits how many deliveries of one project one worker sends. A token is one delivery; `now` is in seconds.

    Args:
        rate: The worker's share of the project's rate, in deliveries a second, above 0. It may change at any time.

    Example:
        >>> limiter = RateLimiter(rate=200)
        >>> limiter.available(now=0.0)  # a quarter second at a fifth of the rate
        10.0
        >>> limiter.take(10, now=0.0)
        >>> limiter.wait(now=0.0)
        0.125
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        # As the last `take` left them; a new bucket is full.
        self._taken_at = float("-inf")
        self._tokens = float("inf")
        self._ramp = COLD_RAMP

    def ramp(self, now: float) -> float:
        """Return the part of the rate in use, from `COLD_RAMP` to 1.

        If the last `take` emptied the bucket, the ramp rises until it holds one token again, plus 1 s, and falls after that.
        """
        since = max(0.0, now - self._taken_at)
        rises_for = min(since, 1 + (1 - self._tokens) / (self.rate * self._ramp)) if self._tokens < 1 else 0.0
        moved = (1 - COLD_RAMP) / RAMP_TIME * (2 * rises_for - since)
        return min(1.0, max(COLD_RAMP, self._ramp + moved))

    def refill_rate(self, now: float) -> float:
        """Return how many tokens are added a second."""
        return self.rate * self.ramp(now)

    def available(self, now: float) -> float:
        """Return how many tokens there are; below 0 after more were taken than there were."""
        refill_rate = self.refill_rate(now)
        refilled = refill_rate * max(0.0, now - self._taken_at)
        return min(max(1.0, refill_rate * BUCKET_SECONDS), self._tokens + refilled)

    def take(self, tokens: int, now: float) -> None:
        """Take tokens, even more than there are: a receiver may have more devices than a claim can foresee."""
        self._tokens, self._ramp, self._taken_at = self.available(now) - tokens, self.ramp(now), now

    def wait(self, now: float) -> float:
        """Return the seconds until the bucket is half full; 0 while it holds a token.

        Half full, since a claim for each single token would cost more than its delivery.
        """
        available, refill_rate = self.available(now), self.refill_rate(now)
        if available >= 1:
            return 0.0
        return max(MIN_WAIT, (max(1.0, refill_rate * BUCKET_SECONDS / 2) - available) / refill_rate)
