"""Statistics of a provider's answers for one project in this process: a rolling window of one minute.

Quick retries and the circuit breaker (`project_state`) depend on them. Pure: the caller passes the time, in seconds of
`time.monotonic()`.
"""

from collections import Counter, deque

from notify_worker.model import Outcome, Verdict

WINDOW = 60
"""Seconds of the rolling window."""
MIN_ANSWERS = 20
"""Answers in the window below which shares mean nothing."""
LATEST = 100
"""First attempts that can show an outage by themselves, so that a good minute before it does not hide it."""
FEW_ATTEMPTS = 3
"""With fewer than `MIN_ANSWERS` answers: failed attempts in a row that are an outage."""
FEW_WITHIN = 600.0
"""Seconds within which those attempts have to end."""
SENDER_MISMATCH = "SENDER_ID_MISMATCH"
"""FCM's code for a token of another sender: firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode"""
RATE_WINDOW = 10
"""Seconds over which the rate is measured."""


class AnswerStats:
    """The answers of the last minute, counted by the second.

    A request has an answer; an attempt, of one to three requests, has an outcome. `now` is `time.monotonic()`, in seconds.
    """

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Counter[str]]] = deque()
        self._total: Counter[str] = Counter()
        self._latest: deque[tuple[float, bool]] = deque(maxlen=LATEST)
        self._attempts: deque[tuple[float, bool]] = deque(maxlen=FEW_ATTEMPTS)
        self._succeeded_at = float("-inf")

    def add_answer(self, outcome: Outcome, now: float) -> None:
        """Count the answer to one request."""
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append((int(now), Counter()))
        found = counters(outcome)
        self._seconds[-1][1].update(found)
        self._total.update(found)

    def add_attempt(self, outcome: Outcome, now: float, *, first: bool = True) -> None:
        """Count the outcome of one attempt, with all its requests.

        Only a delivery's `first` attempt counts among the latest 100: at the end of a backlog, only deliveries that fail
        again and again may be left.
        """
        if first:
            self._latest.append((now, is_trouble(outcome)))
        self._attempts.append((now, is_trouble(outcome)))
        if not is_trouble(outcome):
            self._succeeded_at = now

    def clear(self) -> None:
        """Forget all answers and attempts, after an incident has ended."""
        self._seconds.clear()
        self._total.clear()
        self._latest.clear()
        self._attempts.clear()

    def quick_retry_allowed(self, now: float) -> bool:
        """Return whether a 5xx is worth another request within seconds: less than a tenth of the answers are 5xx."""
        counts = self._counts(now)
        return counts["all"] < MIN_ANSWERS or 10 * counts["5xx"] < counts["all"]

    def is_outage(self, now: float) -> bool:
        """Return whether there is an outage: 3/4 of the answers, or of the latest 100, failed; or the last 3 of few."""
        counts = self._counts(now)
        if counts["all"] >= MIN_ANSWERS:
            mostly_trouble = 4 * counts["trouble"] >= 3 * counts["all"]
            latest = [trouble for at, trouble in self._latest if now - at <= WINDOW]
            return mostly_trouble or (len(latest) == LATEST and 4 * sum(latest) >= 3 * LATEST)
        return len(self._attempts) == FEW_ATTEMPTS and all(
            trouble and now - at <= FEW_WITHIN for at, trouble in self._attempts
        )

    def succeeded_recently(self, now: float) -> bool:
        """Return whether any attempt succeeded in the last ten minutes."""
        return now - self._succeeded_at <= FEW_WITHIN

    def unregistered_spike(self, now: float) -> bool:
        """Return whether suspiciously many tokens are unregistered: more than a fifth of the answers."""
        counts = self._counts(now)
        return counts["all"] >= MIN_ANSWERS and 5 * counts["unregistered"] > counts["all"]

    def sender_mismatch_spike(self, now: float) -> bool:
        """Return whether 3/4 of the answers are sender mismatches: then the credentials are wrong, not the tokens."""
        counts = self._counts(now)
        return counts["all"] >= MIN_ANSWERS and 4 * counts[SENDER_MISMATCH] >= 3 * counts["all"]

    def accepted_per_second(self, now: float) -> float:
        """Return how many messages a second FCM accepted in the last 10 s, or since the first answer in them."""
        recent = [(second, counts["sent"]) for second, counts in self._seconds if second > now - RATE_WINDOW]
        return sum(sent for _, sent in recent) / max(1.0, now - recent[0][0]) if recent else 0.0

    def _counts(self, now: float) -> Counter[str]:
        while self._seconds and self._seconds[0][0] <= now - WINDOW:
            self._total.subtract(self._seconds.popleft()[1])
        return self._total


def counters(outcome: Outcome) -> list[str]:
    """Return the counters for an answer."""
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
    """Return whether the provider, or the network to it, failed: a 5xx, no answer, no connection."""
    return outcome.verdict is Verdict.UNKNOWN or (outcome.verdict is Verdict.RETRY and outcome.http_status is None)
