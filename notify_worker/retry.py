"""When a delivery is tried again: the arithmetic of retries, and the one tenacity configuration for blips."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never

from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_chain, wait_random

from notify_worker.model import Delivery, OnUnknown, Outcome, Project, Scope, Verdict

NOTHING = timedelta()
APNS_WAIT = timedelta(minutes=15)
"""Between two tries while Apple or a browser's push service refuses the project's key."""
REQUESTS_OF_A_BLIP = 3
APNS_AND_WEB = ("ios", "web")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a project's deliveries are retried."""

    max_attempts: int = 10
    first: timedelta = timedelta(seconds=10)
    longest: timedelta = timedelta(minutes=15)

    @classmethod
    def of(cls, project: Project) -> "RetryPolicy":
        """Read the policy from the project's row."""
        return cls(project.max_attempts, project.first_retry_after, project.longest_retry_after)

    def wait(self, attempt: int, *, asked: timedelta = NOTHING, dice: float) -> timedelta:
        """Say how long after the `attempt`-th failed attempt (from 1) the delivery is due again.

        Doubles from `first` up to `longest`. `asked` is FCM's Retry-After, and a floor. `dice` is in [0, 1): up to a fifth
        is added, never taken away. At least 10 s, with jitter: firebase.google.com/docs/cloud-messaging/scale-fcm
        """
        doublings = min(attempt - 1, (self.longest // self.first).bit_length())  # more would overflow a timedelta
        wait = min(self.first * (1 << doublings), self.longest)
        return max(wait, asked) * (1 + dice / 5)

    def wait_beside_a_pause(self, delivery: Delivery, outcome: Outcome) -> timedelta:
        """Say how long a delivery waits on its own while something of its project is paused.

        Not at all, since the pause holds it back, and lets it go when it is over. But the pause of iOS and web can't hold
        what is of another platform, or where nobody said of which.
        """
        scope = outcome.pause.scope if outcome.pause else Scope.PROJECT
        return APNS_WAIT if scope is Scope.APNS_WEB and delivery.platform not in APNS_AND_WEB else NOTHING

    def retry_in(self, delivery: Delivery, outcome: Outcome, *, counts: bool = True, dice: float) -> timedelta | None:
        """Say how long until a delivery is due again after this outcome; None: never.

        `counts` is false where it is not the delivery's fault: then it is never given up.
        """
        match outcome.verdict:
            case Verdict.SENT | Verdict.FAILED | Verdict.UNREGISTERED:
                return None
            case Verdict.PAUSED:
                return self.wait_beside_a_pause(delivery, outcome) + timedelta(seconds=dice)
            case Verdict.UNKNOWN if delivery.on_unknown is OnUnknown.HOLD:
                return None
            case Verdict.UNKNOWN | Verdict.RETRY:
                if counts and delivery.attempts + 1 >= self.max_attempts:
                    return None
                return self.wait(delivery.attempts + 1, asked=outcome.asked_to_wait or NOTHING, dice=dice)
            case _:
                assert_never(outcome.verdict)


def blip(mendable: Callable[[Outcome], bool], sleep: Callable[[float], Awaitable[None]]) -> AsyncRetrying:
    """Mend a failure within seconds: three requests in all, 1 s and 2 s apart.

    Anything longer is a retry: it stands in the table. `sleep` waits between the requests; it may end early.
    """
    return AsyncRetrying(
        stop=stop_after_attempt(REQUESTS_OF_A_BLIP),
        wait=wait_chain(wait_random(1, 1.2), wait_random(2, 2.4)),
        retry=retry_if_result(mendable),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        sleep=sleep,
    )
