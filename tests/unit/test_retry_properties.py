"""Properties of every wait: for every policy, attempt, Retry-After and jitter."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from notify_worker.model import OnUnknown, Outcome, Verdict
from notify_worker.pipeline.retry import RetryPolicy
from tests.support.messages import DELIVERY

TEN_SECONDS = timedelta(seconds=10)
OURS = RetryPolicy()

attempts = st.integers(1, 10**6)
jitters = st.floats(0, 1, exclude_max=True)
lengths = st.timedeltas(timedelta(seconds=1), timedelta(days=2))
askings = st.just(timedelta()) | st.timedeltas(timedelta(), timedelta(days=30))
policies = st.builds(
    lambda first, more, most: RetryPolicy(most, first, first + more),
    lengths,
    st.just(timedelta()) | lengths,
    st.integers(1, 100),
)
counts = st.integers(0, 200)
retried = st.sampled_from([Verdict.RETRY, Verdict.UNKNOWN])


# ── one wait ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(attempts, jitters)
def test_every_wait_is_at_least_the_ten_seconds_that_fcm_asks_for(attempt: int, jitter: float) -> None:
    assert OURS.wait(attempt, jitter=jitter) >= TEN_SECONDS


@given(policies, attempts, askings, jitters)
def test_a_wait_is_never_shorter_than_the_first_nor_than_what_fcm_asks_for(
    policy: RetryPolicy, attempt: int, asked: timedelta, jitter: float
) -> None:
    assert policy.wait(attempt, asked=asked, jitter=jitter) >= max(policy.first, asked)


@given(policies, attempts, askings, jitters)
def test_a_wait_is_never_longer_than_a_fifth_above_the_longest_or_what_fcm_asks_for(
    policy: RetryPolicy, attempt: int, asked: timedelta, jitter: float
) -> None:
    assert policy.wait(attempt, asked=asked, jitter=jitter) <= max(policy.longest, asked) * 1.2


@given(policies, attempts, attempts, askings, jitters)
def test_a_later_wait_is_never_shorter_for_the_same_jitter(
    policy: RetryPolicy, attempt: int, later: int, asked: timedelta, jitter: float
) -> None:
    assert policy.wait(attempt, asked=asked, jitter=jitter) <= policy.wait(attempt + later, asked=asked, jitter=jitter)


@given(policies, st.integers(1, 40), askings, jitters)
def test_jitter_adds_at_most_a_fifth(policy: RetryPolicy, attempt: int, asked: timedelta, jitter: float) -> None:
    least = policy.wait(attempt, asked=asked, jitter=0)

    assert least <= policy.wait(attempt, asked=asked, jitter=jitter) <= least * 1.2


@given(policies, attempts, askings)
def test_no_wait_is_more_than_twice_the_one_before_unless_fcm_asks_for_it(
    policy: RetryPolicy, attempt: int, asked: timedelta
) -> None:
    before, after = (policy.wait(each, asked=asked, jitter=0) for each in (attempt, attempt + 1))

    assert after <= max(before * 2, asked)


# ── whether there is another ────────────────────────────────────────────────────────────────────────────────────────────


@given(policies, counts, retried, askings, jitters)
def test_a_delivery_is_given_up_after_max_attempts_and_not_before(
    policy: RetryPolicy, counted: int, verdict: Verdict, asked: timedelta, jitter: float
) -> None:
    outcome = Outcome(verdict, asked_to_wait=asked)

    retry_in = policy.retry_in(replace(DELIVERY, attempts=counted), outcome, jitter=jitter)

    assert (retry_in is None) == (counted + 1 >= policy.max_attempts)


@given(policies, retried, st.lists(jitters, min_size=101, max_size=101))
def test_the_retries_of_a_delivery_come_to_an_end(policy: RetryPolicy, verdict: Verdict, jitters: list[float]) -> None:
    delivery, made = DELIVERY, 0

    for jitter in jitters:
        made += 1
        if policy.retry_in(delivery, Outcome(verdict), jitter=jitter) is None:
            break
        delivery = replace(delivery, attempts=delivery.attempts + 1)

    assert made == policy.max_attempts


@given(policies, counts, askings, jitters)
def test_an_unknown_outcome_with_hold_is_never_retried(
    policy: RetryPolicy, counted: int, asked: timedelta, jitter: float
) -> None:
    held = replace(DELIVERY, attempts=counted, on_unknown=OnUnknown.HOLD)

    assert policy.retry_in(held, Outcome(Verdict.UNKNOWN, asked_to_wait=asked), jitter=jitter) is None


@given(policies, attempts, st.sampled_from(OnUnknown), askings, jitters)
def test_paused_deliveries_are_never_given_up(
    policy: RetryPolicy, tries: int, on_unknown: OnUnknown, asked: timedelta, jitter: float
) -> None:
    delivery = replace(DELIVERY, attempts=tries, last_attempt_number=tries, on_unknown=on_unknown)

    assert policy.retry_in(delivery, Outcome(Verdict.PAUSED, asked_to_wait=asked), jitter=jitter) is not None
