"""When a delivery is retried: the policy for retries, and the tenacity configuration of quick retries. Pure.

A quick retry repeats a request within the same attempt, seconds later. A retry is a new attempt: the delivery's `due_at`
moves, and any worker can make it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never

from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_chain, wait_random

from notify_worker.model import (
    FIRST_RETRY_AFTER,
    LONGEST_RETRY_AFTER,
    MAX_ATTEMPTS,
    Delivery,
    OnUnknown,
    Outcome,
    Project,
    Scope,
    Verdict,
)
from notify_worker.settings import QUICK_REQUESTS, QUICK_WAITS

NO_WAIT = timedelta()
APNS_WAIT = timedelta(minutes=15)
"""The wait between two attempts while Apple, or a browser's push service, rejects the project's key."""
APNS_AND_WEB = ("ios", "web")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a project's deliveries are retried, and after which waits.

    Args:
        max_attempts: Attempts that count, after which a delivery is given up.
        first: The wait after the first failed attempt; each further one doubles it.
        longest: The longest wait.
    """

    max_attempts: int = MAX_ATTEMPTS
    first: timedelta = FIRST_RETRY_AFTER
    longest: timedelta = LONGEST_RETRY_AFTER

    @classmethod
    def of(cls, project: Project) -> "RetryPolicy":
        """Read the policy from the project's row."""
        return cls(project.max_attempts, project.first_retry_after, project.longest_retry_after)

    def wait(self, attempt: int, *, asked: timedelta = NO_WAIT, jitter: float) -> timedelta:
        """Return the wait after a failed attempt.

        FCM asks for exponential backoff from 10 s with jitter: firebase.google.com/docs/cloud-messaging/scale-fcm

        Args:
            attempt: The number of the failed attempt, from 1.
            asked: FCM's Retry-After, a lower bound.
            jitter: From 0 to below 1; adds up to a fifth, and never shortens the wait.

        Example:
            RetryPolicy().wait(3, jitter=0)  # 40 s
        """
        doublings = min(attempt - 1, (self.longest // self.first).bit_length())  # more would overflow a timedelta
        wait = min(self.first * (1 << doublings), self.longest)
        return max(wait, asked) * (1 + jitter / 5)

    def wait_after_pause(self, delivery: Delivery, outcome: Outcome) -> timedelta:
        """Return the wait of a delivery whose outcome paused a scope of its project.

        It is 0, since the pause itself blocks the delivery until it ends. But a pause of iOS and web does not block a
        delivery without a platform, or with another one.
        """
        scope = outcome.pause.scope if outcome.pause else Scope.PROJECT
        return APNS_WAIT if scope is Scope.APNS_WEB and delivery.platform not in APNS_AND_WEB else NO_WAIT

    def retry_in(self, delivery: Delivery, outcome: Outcome, *, counts: bool = True, jitter: float) -> timedelta | None:
        """Return how long after this outcome the delivery is due again.

        Args:
            delivery: The delivery as it was claimed.
            outcome: The outcome of the attempt.
            counts: Whether the attempt counts against `max_attempts`; if not, the delivery is not given up.
            jitter: From 0 to below 1.

        Returns:
            The wait; None if the delivery is not retried.
        """
        match outcome.verdict:
            case Verdict.SENT | Verdict.FAILED | Verdict.UNREGISTERED:
                return None
            case Verdict.PAUSED:
                return self.wait_after_pause(delivery, outcome) + timedelta(seconds=jitter)
            case Verdict.UNKNOWN if delivery.on_unknown is OnUnknown.HOLD:
                return None
            case Verdict.UNKNOWN | Verdict.RETRY:
                if counts and delivery.attempts + 1 >= self.max_attempts:
                    return None
                return self.wait(delivery.attempts + 1, asked=outcome.asked_to_wait or NO_WAIT, jitter=jitter)
            case _:
                assert_never(outcome.verdict)


def quick_retry(retryable: Callable[[Outcome], bool], sleep: Callable[[float], Awaitable[None]]) -> AsyncRetrying:
    """Return a tenacity controller that makes a request up to three times, 1 s and 2 s apart; the last outcome stands.

    `retryable` decides whether an outcome is worth another request; `sleep` waits for some seconds, and may end early.
    """
    return AsyncRetrying(
        stop=stop_after_attempt(QUICK_REQUESTS),
        wait=wait_chain(*(wait_random(shortest, longest) for shortest, longest in QUICK_WAITS)),
        retry=retry_if_result(retryable),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        sleep=sleep,
    )
