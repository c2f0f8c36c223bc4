"""Statistics of the last minute's answers: each threshold from both sides, and the whole against a plain list."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notify_worker.model import Outcome, Verdict
from notify_worker.pipeline.answer_stats import AnswerStats

TAKEN = Outcome(Verdict.SENT, http_status=200)
WRONG = Outcome(Verdict.FAILED, http_status=400, error_code="INVALID_ARGUMENT")
GONE = Outcome(Verdict.UNREGISTERED, http_status=404, error_code="UNREGISTERED")
OTHERS = Outcome(Verdict.FAILED, http_status=403, error_code="SENDER_ID_MISMATCH")
DEVICE_QUOTA = Outcome(Verdict.RETRY, http_status=429, error_code="QUOTA_EXCEEDED")
REFUSED_TOKEN = Outcome(Verdict.PAUSED, http_status=401, error_code="UNAUTHENTICATED")
BUSY = Outcome(Verdict.UNKNOWN, http_status=503, error_code="UNAVAILABLE")
LOWEST_5XX = replace(BUSY, http_status=500)
TOO_SLOW = Outcome(Verdict.UNKNOWN, http_status=408)
SILENT = Outcome(Verdict.UNKNOWN, error_code="ReadTimeout")
NEVER_LEFT = Outcome(Verdict.RETRY, error_code="ConnectError")

TROUBLE = [BUSY, LOWEST_5XX, TOO_SLOW, SILENT, NEVER_LEFT]
NO_TROUBLE = [TAKEN, WRONG, GONE, OTHERS, DEVICE_QUOTA, REFUSED_TOKEN]

NOW = 1000.0


def answered(*outcomes: Outcome, at: float = NOW) -> AnswerStats:
    """Stats that have seen these answers."""
    stats = AnswerStats()
    answer(stats, outcomes, at)
    return stats


def answer(stats: AnswerStats, outcomes: Iterable[Outcome], at: float = NOW) -> None:
    for outcome in outcomes:
        stats.add_answer(outcome, at)


def attempt(stats: AnswerStats, outcomes: Iterable[Outcome], at: float = NOW, *, first: bool = True) -> None:
    for outcome in outcomes:
        stats.add_attempt(outcome, at, first=first)


def attempted(*came_to: tuple[float, Outcome]) -> AnswerStats:
    """Stats that have seen these attempts, and no answer."""
    stats = AnswerStats()
    for at, outcome in came_to:
        stats.add_attempt(outcome, at)
    return stats


# ── quick retries ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("taken", "busy", "allowed"),
    [(0, 0, True), (0, 19, True), (0, 20, False), (18, 2, False), (19, 1, True), (90, 10, False), (91, 9, True)],
)
def test_quick_retry_allowed_while_answers_are_few_or_fewer_than_a_tenth_are_5xx(
    taken: int, busy: int, allowed: bool
) -> None:
    stats = answered(*[TAKEN] * taken, *[BUSY] * busy)

    assert stats.quick_retry_allowed(NOW) is allowed


def test_only_5xx_answers_count_against_quick_retries() -> None:
    others = [each for each in TROUBLE + NO_TROUBLE if each not in (BUSY, LOWEST_5XX)]

    assert answered(*others * 20).quick_retry_allowed(NOW)
    assert not answered(*others * 20, *[LOWEST_5XX] * 20).quick_retry_allowed(NOW)


# ── an outage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("taken", "silent", "outage"),
    [(0, 19, False), (0, 20, True), (5, 15, True), (6, 14, False), (25, 75, True), (26, 74, False), (4, 15, False)],
)
def test_three_quarters_of_twenty_answers_are_an_outage(taken: int, silent: int, outage: bool) -> None:
    stats = answered(*[TAKEN] * taken, *[SILENT] * silent)

    assert stats.is_outage(NOW) is outage


def try_first(stats: AnswerStats, outcomes: Iterable[Outcome]) -> None:
    """First attempts, of one request each."""
    for outcome in outcomes:
        answer(stats, [outcome])
        stats.add_attempt(outcome, NOW, first=True)


def test_three_quarters_of_the_latest_hundred_first_attempts_are_an_outage_however_good_the_minute_was() -> None:
    stats = answered(*[TAKEN] * 1000)
    attempt(stats, [TAKEN] * 1000 + [SILENT] * 74)
    before = stats.is_outage(NOW)

    attempt(stats, [SILENT])

    assert not before
    assert stats.is_outage(NOW)
    attempt(stats, [TAKEN] * 26)
    assert not stats.is_outage(NOW)


def test_fewer_than_a_hundred_first_attempts_show_no_outage() -> None:
    stats = answered(*[TAKEN] * 1000)

    attempt(stats, [SILENT] * 99)

    assert not stats.is_outage(NOW)


def test_deliveries_that_failed_before_do_not_show_an_outage() -> None:
    stats = answered(*[TAKEN] * 1000)
    attempt(stats, [TAKEN] * 100)

    attempt(stats, [SILENT] * 200, first=False)

    assert not stats.is_outage(NOW)


def test_failures_of_the_last_days_do_not_show_an_outage_now() -> None:
    """One push every quarter of an hour over a connection that idles out: each fails at first, and succeeds 10 s later."""
    stats, now = AnswerStats(), NOW
    for _ in range(100):
        now += 900
        attempt(stats, [SILENT], now)
        attempt(stats, [TAKEN], now + 10, first=False)

    answer(stats, [TAKEN] * 20, now + 20)
    attempt(stats, [TAKEN] * 20, now + 20)

    assert not stats.is_outage(now + 20)


@pytest.mark.parametrize("outcome", TROUBLE)
def test_no_answer_no_connection_and_a_5xx_are_the_providers_trouble(outcome: Outcome) -> None:
    assert answered(*[outcome] * 20).is_outage(NOW)
    assert attempted(*[(NOW, outcome)] * 3).is_outage(NOW)


@pytest.mark.parametrize("outcome", NO_TROUBLE)
def test_other_answers_are_no_trouble(outcome: Outcome) -> None:
    assert not answered(*[outcome] * 20).is_outage(NOW)
    assert not attempted(*[(NOW, outcome)] * 3).is_outage(NOW)


def test_where_answers_are_few_the_last_three_attempts_decide() -> None:
    two, three = [(NOW, SILENT)] * 2, [(NOW, SILENT)] * 3

    assert not attempted(*two).is_outage(NOW)
    assert attempted(*three).is_outage(NOW)
    assert not attempted(*two, (NOW, TAKEN)).is_outage(NOW)
    assert not attempted((NOW, TAKEN), *two).is_outage(NOW)
    assert attempted((NOW, TAKEN), *three).is_outage(NOW)


def test_three_attempts_are_an_outage_only_within_ten_minutes() -> None:
    stats = attempted((NOW, SILENT), (NOW + 300, SILENT), (NOW + 599, SILENT))

    assert stats.is_outage(NOW + 600)
    assert not stats.is_outage(NOW + 600.1)


def test_three_attempts_decide_nothing_while_the_minute_has_twenty_answers() -> None:
    stats = attempted(*[(NOW, SILENT)] * 3)
    answer(stats, [TAKEN] * 19)
    with_nineteen = stats.is_outage(NOW)

    answer(stats, [TAKEN])

    assert with_nineteen
    assert not stats.is_outage(NOW)
    assert stats.is_outage(NOW + 60)


def test_success_counts_as_recent_for_ten_minutes() -> None:
    stats = attempted((NOW, TAKEN), (NOW + 1, SILENT), (NOW + 2, BUSY), (NOW + 3, NEVER_LEFT))

    assert stats.succeeded_recently(NOW + 600)
    assert not stats.succeeded_recently(NOW + 600.1)
    assert not AnswerStats().succeeded_recently(NOW)


@pytest.mark.parametrize("outcome", TROUBLE + NO_TROUBLE)
def test_any_attempt_without_trouble_counts_as_a_recent_success(outcome: Outcome) -> None:
    assert attempted((NOW, outcome)).succeeded_recently(NOW) is (outcome in NO_TROUBLE)


# ── devices, credentials ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("taken", "gone", "spike"),
    [(0, 19, False), (0, 20, True), (16, 4, False), (15, 5, True), (80, 20, False), (79, 21, True)],
)
def test_unregistered_spike_where_more_than_a_fifth_is_unregistered(taken: int, gone: int, spike: bool) -> None:
    stats = answered(*[TAKEN] * taken, *[GONE] * gone)

    assert stats.unregistered_spike(NOW) is spike


@pytest.mark.parametrize(
    ("taken", "others", "spike"),
    [(0, 19, False), (0, 20, True), (5, 15, True), (6, 14, False), (25, 75, True), (26, 74, False)],
)
def test_sender_mismatch_spike_where_three_quarters_are_another_senders(taken: int, others: int, spike: bool) -> None:
    stats = answered(*[TAKEN] * taken, *[OTHERS] * others)

    assert stats.sender_mismatch_spike(NOW) is spike


def test_no_other_answer_counts_as_unregistered_or_sender_mismatch() -> None:
    others = [each for each in TROUBLE + NO_TROUBLE if each not in (GONE, OTHERS)]

    assert not answered(*others * 20).unregistered_spike(NOW)
    assert not answered(*others * 20).sender_mismatch_spike(NOW)


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_minute_slides_second_by_second() -> None:
    stats = AnswerStats()
    for second in range(30):
        stats.add_answer(GONE, NOW + second)

    assert stats.unregistered_spike(NOW + 69.9)  # twenty are left
    assert not stats.unregistered_spike(NOW + 70)  # nineteen


def test_each_answer_expires_from_every_count_with_its_second() -> None:
    stats = answered(*[BUSY, GONE, OTHERS] * 20, at=NOW + 0.9)
    answer(stats, [TAKEN] * 20, at=NOW + 30)

    assert (stats.quick_retry_allowed(NOW + 59.9), stats.unregistered_spike(NOW + 59.9)) == (False, True)
    assert (stats.quick_retry_allowed(NOW + 60), stats.unregistered_spike(NOW + 60)) == (True, False)
    assert not answered(*[OTHERS] * 20).sender_mismatch_spike(NOW + 60)
    assert not answered(*[SILENT] * 20).is_outage(NOW + 60)


def test_clearing_forgets_answers_attempts_and_rate() -> None:
    stats = attempted(*[(NOW, SILENT)] * 3)
    answer(stats, [BUSY, GONE, GONE, TAKEN] * 20)

    stats.clear()

    assert stats.quick_retry_allowed(NOW)
    assert not stats.is_outage(NOW)
    assert stats.accepted_per_second(NOW) == 0
    answer(stats, [GONE] * 19)
    assert not stats.unregistered_spike(NOW)
    answer(stats, [GONE])
    assert stats.unregistered_spike(NOW)


def test_clearing_forgets_the_latest_hundred_first_attempts() -> None:
    stats = AnswerStats()
    attempt(stats, [SILENT] * 80)

    stats.clear()
    answer(stats, [TAKEN] * 20)
    attempt(stats, [TAKEN] * 20)

    assert not stats.is_outage(NOW)


def test_the_rate_is_an_average_of_ten_seconds() -> None:
    stats = AnswerStats()
    for second in range(20):
        answer(stats, [TAKEN] * 50 + [DEVICE_QUOTA, BUSY, GONE], NOW + second)

    assert stats.accepted_per_second(NOW + 20) == 50
    assert stats.accepted_per_second(NOW + 25) == 50 * 4 / 9
    assert stats.accepted_per_second(NOW + 29) == 0


def test_the_rate_of_a_new_process_counts_from_its_start() -> None:
    stats = answered(*[TAKEN] * 50)

    assert stats.accepted_per_second(NOW + 0.1) == 50
    assert stats.accepted_per_second(NOW + 1) == 50
    assert stats.accepted_per_second(NOW + 2.5) == 20
    assert AnswerStats().accepted_per_second(NOW) == 0


# ── against a plain list ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class PlainList:
    """The same statistics, counted from a list of everything that happened."""

    answers: list[tuple[float, Outcome]] = field(default_factory=list)
    attempts: list[tuple[float, Outcome]] = field(default_factory=list)
    first_attempts: list[tuple[float, Outcome]] = field(default_factory=list)
    through: list[float] = field(default_factory=list)

    def cleared(self) -> "PlainList":
        """Forget everything but the times of success."""
        return PlainList(through=self.through)

    def said(self, now: float) -> dict[str, object]:
        recent = [outcome for at, outcome in self.answers if int(at) > now - 60]
        total = len(recent)
        latest = [outcome for at, outcome in self.first_attempts[-100:] if now - at <= 60]
        last = self.attempts[-3:]
        seconds = [(int(at), outcome) for at, outcome in self.answers if int(at) > now - 10]
        return {
            "quick_retry_allowed": total < 20 or sum(each in (BUSY, LOWEST_5XX) for each in recent) / total < 0.1,
            "is_outage": share(recent) >= 0.75 or (len(latest) == 100 and share(latest) >= 0.75)
            if total >= 20
            else len(last) == 3 and all(outcome in TROUBLE and now - at <= 600 for at, outcome in last),
            "unregistered_spike": total >= 20 and sum(each == GONE for each in recent) / total > 0.2,
            "sender_mismatch_spike": total >= 20 and sum(each == OTHERS for each in recent) / total >= 0.75,
            "succeeded_recently": any(now - at <= 600 for at in self.through),
            "accepted_per_second": sum(each == TAKEN for _, each in seconds) / max(1, now - seconds[0][0])
            if seconds
            else 0,
        }


def share(outcomes: list[Outcome]) -> float:
    """The share of these outcomes that is trouble."""
    return sum(each in TROUBLE for each in outcomes) / len(outcomes)


def said(stats: AnswerStats, now: float) -> dict[str, object]:
    return {
        "quick_retry_allowed": stats.quick_retry_allowed(now),
        "is_outage": stats.is_outage(now),
        "unregistered_spike": stats.unregistered_spike(now),
        "sender_mismatch_spike": stats.sender_mismatch_spike(now),
        "succeeded_recently": stats.succeeded_recently(now),
        "accepted_per_second": stats.accepted_per_second(now),
    }


outcomes = st.sampled_from(TROUBLE + NO_TROUBLE)
gaps = st.just(0.0) | st.floats(0, 2) | st.floats(0, 80) | st.sampled_from([1.0, 10.0, 59.0, 60.0, 300.0, 600.0])
happenings = st.lists(
    st.tuples(
        gaps,
        st.tuples(st.just("answered"), st.lists(outcomes, max_size=30) | outcomes.map(lambda each: [each] * 20))
        | st.tuples(
            st.sampled_from(["first", "again"]),
            st.lists(outcomes, max_size=30) | outcomes.map(lambda each: [each] * 40),
        )
        | st.just(("cleared", [])),
    ),
    max_size=12,
)


@given(st.floats(0, 10**6), happenings)
def test_the_stats_agree_with_a_plain_list_of_events(
    begun: float, happenings: list[tuple[float, tuple[str, list[Outcome]]]]
) -> None:
    stats, model, now = AnswerStats(), PlainList(), begun

    for gap, (what, outcomes) in happenings:
        now += gap
        assert said(stats, now) == model.said(now)
        if what == "cleared":
            stats.clear()
            model = model.cleared()
        for outcome in outcomes:
            if what == "answered":
                stats.add_answer(outcome, now)
                model.answers.append((now, outcome))
            else:
                stats.add_attempt(outcome, now, first=what == "first")
                model.first_attempts.extend([(now, outcome)] * (what == "first"))
                model.attempts.append((now, outcome))
                model.through.extend([now] * (outcome in NO_TROUBLE))
        assert said(stats, now) == model.said(now)
