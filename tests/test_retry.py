"""When a delivery is tried again, as properties: the arithmetic has to hold for every attempt, policy and Retry-After."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notify_worker.model import OnUnknown, Outcome, Project, Verdict
from notify_worker.retry import RetryPolicy, blip
from tests.test_render import DELIVERY

TEN_SECONDS = timedelta(seconds=10)
OURS = RetryPolicy()

attempts = st.integers(1, 10**6)
dices = st.floats(0, 1, exclude_max=True)
lengths = st.timedeltas(timedelta(seconds=1), timedelta(hours=20))
askings = st.timedeltas(timedelta(), timedelta(days=30))
policies = st.builds(
    lambda first, more, most: RetryPolicy(most, first, first + more), lengths, lengths, st.integers(1, 100)
)
never_given_up = st.sampled_from([Verdict.RETRY, Verdict.UNKNOWN])


@given(attempts, dices)
def test_the_first_wait_and_every_other_is_at_least_the_ten_seconds_that_fcm_asks_for(
    attempt: int, dice: float
) -> None:
    assert OURS.wait(attempt, dice=dice) >= TEN_SECONDS


@given(policies, attempts, askings, dices)
def test_a_wait_is_never_shorter_than_the_first_nor_than_what_fcm_asks_for(
    policy: RetryPolicy, attempt: int, asked: timedelta, dice: float
) -> None:
    assert policy.wait(attempt, asked=asked, dice=dice) >= max(policy.first, asked)


@given(policies, attempts, askings, dices)
def test_a_wait_is_never_longer_than_a_fifth_above_the_longest_or_what_fcm_asks_for(
    policy: RetryPolicy, attempt: int, asked: timedelta, dice: float
) -> None:
    assert policy.wait(attempt, asked=asked, dice=dice) <= max(policy.longest, asked) * 1.2


@given(policies, attempts, askings, dices)
def test_the_next_wait_is_never_shorter_for_the_same_dice(
    policy: RetryPolicy, attempt: int, asked: timedelta, dice: float
) -> None:
    assert policy.wait(attempt, asked=asked, dice=dice) <= policy.wait(attempt + 1, asked=asked, dice=dice)


def test_the_waits_double_from_ten_seconds_to_a_quarter_of_an_hour() -> None:
    waits = [OURS.wait(attempt, dice=0).total_seconds() for attempt in range(1, 10)]

    assert waits == [10, 20, 40, 80, 160, 320, 640, 900, 900]


def test_the_dice_spread_the_waits_over_a_fifth() -> None:
    assert OURS.wait(1, dice=0.5) == timedelta(seconds=11)


def test_a_project_that_waits_for_days_may_be_paused_for_months() -> None:
    patient = RetryPolicy(first=timedelta(days=1), longest=timedelta(days=7))

    assert patient.wait(10**6, dice=0) == timedelta(days=7)


@given(policies, st.integers(0, 200), never_given_up, askings, dices)
def test_a_delivery_is_given_up_after_max_attempts_and_not_before(
    policy: RetryPolicy, counted: int, verdict: Verdict, asked: timedelta, dice: float
) -> None:
    outcome = Outcome(verdict, asked_to_wait=asked)

    retry_in = policy.retry_in(replace(DELIVERY, attempts=counted), outcome, dice=dice)

    assert (retry_in is None) == (counted + 1 >= policy.max_attempts)


@given(policies, attempts, attempts, st.sampled_from(OnUnknown), dices)
def test_what_a_pause_keeps_back_is_never_given_up(
    policy: RetryPolicy, counted: int, tries: int, on_unknown: OnUnknown, dice: float
) -> None:
    delivery = replace(DELIVERY, attempts=counted, tries=tries, on_unknown=on_unknown)

    retry_in = policy.retry_in(delivery, Outcome(Verdict.PAUSED), dice=dice)

    assert retry_in is not None
    assert retry_in >= policy.first


@pytest.mark.parametrize("verdict", [Verdict.SENT, Verdict.FAILED, Verdict.UNREGISTERED])
def test_what_is_settled_is_never_tried_again(verdict: Verdict) -> None:
    assert OURS.retry_in(DELIVERY, Outcome(verdict), dice=0) is None


def test_an_unknown_outcome_is_never_tried_again_where_the_sender_said_hold() -> None:
    held = replace(DELIVERY, on_unknown=OnUnknown.HOLD)

    assert OURS.retry_in(held, Outcome(Verdict.UNKNOWN), dice=0) is None
    assert OURS.retry_in(held, Outcome(Verdict.RETRY), dice=0) == TEN_SECONDS


def test_the_wait_grows_with_the_attempts_that_count_and_a_pauses_with_the_tries() -> None:
    delivery = replace(DELIVERY, attempts=2, tries=4)

    assert OURS.retry_in(delivery, Outcome(Verdict.RETRY), dice=0) == timedelta(seconds=40)
    assert OURS.retry_in(delivery, Outcome(Verdict.PAUSED), dice=0) == timedelta(seconds=160)


def test_a_policy_is_what_the_projects_row_says() -> None:
    row = Project("shop", max_attempts=3, first_retry_after=2 * TEN_SECONDS, longest_retry_after=3 * TEN_SECONDS)

    assert RetryPolicy.of(row) == RetryPolicy(3, 2 * TEN_SECONDS, 3 * TEN_SECONDS)


class Requests:
    """Requests that come to `answers`, one after the other, and the waits between them."""

    def __init__(self, *answers: Outcome) -> None:
        self.answers = list(answers)
        self.made = 0
        self.waits: list[float] = []

    async def mended(self) -> Outcome:
        return await blip(lambda outcome: outcome.mendable, self.wait)(self.request)

    async def request(self) -> Outcome:
        self.made += 1
        return self.answers[self.made - 1]

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


SENT = Outcome(Verdict.SENT)
MENDABLE = Outcome(Verdict.UNKNOWN, http_status=503, mendable=True)


async def test_a_blip_is_three_requests_and_the_last_outcome_stands() -> None:
    last = replace(MENDABLE, http_status=500)
    requests = Requests(MENDABLE, MENDABLE, last, SENT)

    outcome = await requests.mended()

    assert outcome is last
    assert requests.made == 3


async def test_a_blip_waits_one_second_then_two_and_up_to_a_fifth_more() -> None:
    many = [Requests(MENDABLE, MENDABLE, SENT) for _ in range(100)]

    for requests in many:
        await requests.mended()

    first, second = zip(*(requests.waits for requests in many), strict=True)
    assert 1 <= min(first) < max(first) <= 1.2
    assert 2 <= min(second) < max(second) <= 2.4


async def test_a_blip_that_is_mended_ends_at_once() -> None:
    requests = Requests(MENDABLE, SENT)

    assert await requests.mended() is SENT
    assert (requests.made, len(requests.waits)) == (2, 1)


async def test_what_no_second_request_mends_is_asked_once() -> None:
    failed = Outcome(Verdict.FAILED)
    requests = Requests(failed)

    assert await requests.mended() is failed
    assert (requests.made, requests.waits) == (1, [])
