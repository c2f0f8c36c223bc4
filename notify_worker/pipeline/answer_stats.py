"""What a provider has answered for one project in the last minute, as far as this process has seen it.

Pure: whoever asks says what time it is (seconds, `time.monotonic()`). Quick retries and the circuit breakers ask it.
"""

from collections import Counter, deque

from notify_worker.model import Outcome, Verdict

LASTS = 60
"""Seconds that it looks back: a rolling window."""
ENOUGH = 20
"""With fewer answers no share says anything."""
LATEST = 100
"""Where answers are many, the latest of them alone may say it: a minute of good ones is no reason to go on."""
FEW = 3
"""Where answers are few, so many attempts in a row are an outage."""
FEW_WITHIN = 600.0
"""Seconds in which those attempts have to end."""
SENDER_MISMATCH = "SENDER_ID_MISMATCH"
"""FCM's code for a token of another sender."""
RECENT = 10
"""Seconds over which the rate is reckoned."""


class AnswerStats:
    """The answers of the last minute, counted by the second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Counter[str]]] = deque()
        self._total: Counter[str] = Counter()
        self._latest: deque[tuple[float, bool]] = deque(maxlen=LATEST)
        self._attempts: deque[tuple[float, bool]] = deque(maxlen=FEW)
        self._succeeded_at = float("-inf")

    def add_answer(self, outcome: Outcome, now: float) -> None:
        """Take note of what one request came to."""
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append((int(now), Counter()))
        found = kinds(outcome)
        self._seconds[-1][1].update(found)
        self._total.update(found)

    def add_attempt(self, outcome: Outcome, now: float, *, first: bool = True) -> None:
        """Take note of what one attempt, with all its requests, came to.

        What failed before is no witness of an outage: at the end of a backlog nothing else may be left.
        """
        if first:
            self._latest.append((now, is_trouble(outcome)))
        self._attempts.append((now, is_trouble(outcome)))
        if not is_trouble(outcome):
            self._succeeded_at = now

    def clear(self) -> None:
        """Forget it all: what has been is over."""
        self._seconds.clear()
        self._total.clear()
        self._latest.clear()
        self._attempts.clear()

    def quick_retry_allowed(self, now: float) -> bool:
        """Say whether a 5xx is worth another request within seconds: not where a tenth of the answers are 5xx."""
        counts = self._counts(now)
        return counts["all"] < ENOUGH or 10 * counts["5xx"] < counts["all"]

    def is_outage(self, now: float) -> bool:
        """Say whether nothing gets through: three quarters of the answers, or of the latest; of few, the last three."""
        counts = self._counts(now)
        if counts["all"] >= ENOUGH:
            of_the_minute = 4 * counts["trouble"] >= 3 * counts["all"]
            latest = [trouble for at, trouble in self._latest if now - at <= LASTS]
            return of_the_minute or (len(latest) == LATEST and 4 * sum(latest) >= 3 * LATEST)
        return len(self._attempts) == FEW and all(trouble and now - at <= FEW_WITHIN for at, trouble in self._attempts)

    def succeeded_recently(self, now: float) -> bool:
        """Say whether anything got through within the last ten minutes."""
        return now - self._succeeded_at <= FEW_WITHIN

    def unregistered_spike(self, now: float) -> bool:
        """Say whether suspiciously many addresses are called unregistered: more than a fifth."""
        counts = self._counts(now)
        return counts["all"] >= ENOUGH and 5 * counts["unregistered"] > counts["all"]

    def sender_mismatch_spike(self, now: float) -> bool:
        """Say whether most tokens are called another sender's: then it is the credentials that are."""
        counts = self._counts(now)
        return counts["all"] >= ENOUGH and 4 * counts[SENDER_MISMATCH] >= 3 * counts["all"]

    def accepted_per_second(self, now: float) -> float:
        """Say how many messages a second were taken of late; where there was nothing to send at first, since then."""
        recent = [(second, counts["sent"]) for second, counts in self._seconds if second > now - RECENT]
        return sum(sent for _, sent in recent) / max(1.0, now - recent[0][0]) if recent else 0.0

    def _counts(self, now: float) -> Counter[str]:
        while self._seconds and self._seconds[0][0] <= now - LASTS:
            self._total.subtract(self._seconds.popleft()[1])
        return self._total


def kinds(outcome: Outcome) -> list[str]:
    """Name what an answer is counted as."""
    found = ["all"]
    if is_trouble(outcome):
        found.append("trouble")
    if outcome.http_status is not None and outcome.http_status >= 500:
        found.append("5xx")
    if outcome.verdict in (Verdict.SENT, Verdict.UNREGISTERED):
        found.append(outcome.verdict.value)
    if outcome.error_code == SENDER_MISMATCH:
        found.append(SENDER_MISMATCH)
    return found


def is_trouble(outcome: Outcome) -> bool:
    """Say whether this is the provider's trouble, or that of the way to it: a 5xx, no answer, no connection."""
    return outcome.verdict is Verdict.UNKNOWN or (outcome.verdict is Verdict.RETRY and outcome.http_status is None)
