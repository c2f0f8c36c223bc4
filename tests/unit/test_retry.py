"""Retries and quick retries by example; their properties are in `test_retry_properties.py`."""

from dataclasses import replace
from datetime import timedelta

import pytest

from notify_worker.model import OnUnknown, Outcome, Project, Verdict
from notify_worker.pipeline.retry import RetryPolicy, quick_retry
from tests.support.messages import DELIVERY

TEN_SECONDS = timedelta(seconds=10)
OURS = RetryPolicy()


def test_the_waits_double_from_ten_seconds_to_a_quarter_of_an_hour() -> None:
    waits = [OURS.wait(attempt, jitter=0).total_seconds() for attempt in range(1, 10)]

    assert waits == [10, 20, 40, 80, 160, 320, 640, 900, 900]


def test_jitter_spreads_the_waits_over_a_fifth() -> None:
    assert OURS.wait(1, jitter=0.5) == timedelta(seconds=11)


def test_the_wait_is_the_longest_even_after_a_million_attempts() -> None:
    patient = RetryPolicy(first=timedelta(days=1), longest=timedelta(days=7))

    assert patient.wait(10**6, jitter=0) == timedelta(days=7)


@pytest.mark.parametrize("verdict", [Verdict.SENT, Verdict.FAILED, Verdict.UNREGISTERED])
def test_a_settled_outcome_is_never_retried(verdict: Verdict) -> None:
    assert OURS.retry_in(DELIVERY, Outcome(verdict), jitter=0) is None


def test_an_unknown_outcome_with_hold_is_never_retried() -> None:
    held = replace(DELIVERY, on_unknown=OnUnknown.HOLD)

    assert OURS.retry_in(held, Outcome(Verdict.UNKNOWN), jitter=0) is None
    assert OURS.retry_in(held, Outcome(Verdict.RETRY), jitter=0) == TEN_SECONDS


def test_the_wait_grows_only_with_attempts_that_count() -> None:
    delivery = replace(DELIVERY, attempts=2, last_attempt_number=7)

    assert OURS.retry_in(delivery, Outcome(Verdict.RETRY), jitter=0) == timedelta(seconds=40)
    assert OURS.retry_in(delivery, Outcome(Verdict.UNKNOWN), jitter=0) == timedelta(seconds=40)


def test_a_policy_comes_from_the_projects_row() -> None:
    row = Project("shop", max_attempts=3, first_retry_after=2 * TEN_SECONDS, longest_retry_after=3 * TEN_SECONDS)

    assert RetryPolicy.of(row) == RetryPolicy(3, 2 * TEN_SECONDS, 3 * TEN_SECONDS)


class Requests:
    """Requests that come to `answers`, one after the other, and the waits between them."""

    def __init__(self, *answers: Outcome) -> None:
        self.answers = list(answers)
        self.made = 0
        self.waits: list[float] = []

    async def outcome(self) -> Outcome:
        return await quick_retry(lambda outcome: outcome.quickly_retryable, self.wait)(self.request)

    async def request(self) -> Outcome:
        self.made += 1
        return self.answers[self.made - 1]

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


SENT = Outcome(Verdict.SENT)
RETRYABLE = Outcome(Verdict.UNKNOWN, http_status=503, quickly_retryable=True)


async def test_quick_retries_make_three_requests_and_keep_the_last_outcome() -> None:
    last = replace(RETRYABLE, http_status=500)
    requests = Requests(RETRYABLE, RETRYABLE, last, SENT)

    outcome = await requests.outcome()

    assert outcome is last
    assert requests.made == 3


async def test_quick_retries_wait_one_second_then_two_and_up_to_a_fifth_more() -> None:
    many = [Requests(RETRYABLE, RETRYABLE, SENT) for _ in range(100)]

    for requests in many:
        await requests.outcome()

    first, second = zip(*(requests.waits for requests in many), strict=True)
    assert 1 <= min(first) < max(first) <= 1.2
    assert 2 <= min(second) < max(second) <= 2.4


async def test_a_quick_retry_that_gets_through_is_the_last() -> None:
    requests = Requests(RETRYABLE, SENT)

    assert await requests.outcome() is SENT
    assert (requests.made, len(requests.waits)) == (2, 1)


async def test_an_outcome_that_is_not_quickly_retryable_gets_one_request() -> None:
    failed = Outcome(Verdict.FAILED)
    requests = Requests(failed)

    assert await requests.outcome() is failed
    assert (requests.made, requests.waits) == (1, [])
