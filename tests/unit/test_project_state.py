"""The state of a project: which deliveries are allowed, which incidents are reported, and which attempts count."""

from dataclasses import replace
from datetime import timedelta
from io import StringIO
from time import monotonic

import pytest

from notify_worker.model import Change, Delivery, Incident, Outcome, Pause, Project, Scope, Verdict
from notify_worker.pipeline.project_state import ProjectState
from notify_worker.senders.console import ConsoleSender
from tests.support.messages import DELIVERY

TAKEN = Outcome(Verdict.SENT, http_status=200)
WRONG = Outcome(Verdict.FAILED, error="400 INVALID_ARGUMENT: no", http_status=400)
TOO_BIG = Outcome(Verdict.FAILED, error="413", http_status=413)
GONE = Outcome(Verdict.UNREGISTERED, http_status=404)
OTHERS = Outcome(Verdict.FAILED, error="another sender's", error_code="SENDER_ID_MISMATCH", http_status=403)
DEVICE_QUOTA = Outcome(Verdict.RETRY, http_status=429)
BUSY = Outcome(Verdict.UNKNOWN, error="503 UNAVAILABLE: later", http_status=503)
SILENT = Outcome(Verdict.UNKNOWN, error="ReadTimeout")
NEVER_LEFT = Outcome(Verdict.RETRY, error="ConnectError")
REVOKED = Outcome(Verdict.PAUSED, error="invalid_grant", pause=Pause(Scope.PROJECT))
A_MINUTE = timedelta(minutes=1)
QUOTA = Outcome(Verdict.PAUSED, error="quota", http_status=429, pause=Pause(Scope.PROJECT, A_MINUTE))
TOPIC_QUOTA = Outcome(Verdict.PAUSED, error="topics", http_status=429, pause=Pause(Scope.TOPICS, A_MINUTE))
NO_APNS_KEY = Outcome(Verdict.PAUSED, error="apns", http_status=401, pause=Pause(Scope.APNS_WEB))
REFUSED_TOKEN = Outcome(Verdict.PAUSED, error="401", http_status=401, quickly_retryable=True)
"""The first refusal of an access token: worth the same request with a new one, and no reason to stop the project yet."""

ANDROID = DELIVERY
IOS = replace(DELIVERY, platform="ios")
WEB = replace(DELIVERY, platform="web")
TOPIC = replace(DELIVERY, kind="topic", platform=None)
CONDITION = replace(DELIVERY, kind="condition", platform=None)
SOMEWHERE = replace(DELIVERY, platform=None)


def state(*blocked: Scope) -> ProjectState:
    """A project in which these scopes are blocked, as the database says."""
    found = ProjectState(Project("orders"), ConsoleSender(StringIO()))
    found.sync(found.project, blocked)
    return found


def answer(project: ProjectState, *outcomes: Outcome, delivery: Delivery = ANDROID) -> list[bool]:
    """Add attempts of one request with these outcomes; return whether each counts."""
    counts = []
    for outcome in outcomes:
        project.stats.add_answer(outcome, monotonic())
        counts.append(project.observe(delivery, outcome))
    return counts


def probe(of: Delivery = ANDROID) -> Delivery:
    return replace(of, probe=True)


def begun(project: ProjectState) -> list[Scope]:
    return [incident.scope for incident in project.unreported if incident.change is Change.OPENED]


def ended(project: ProjectState) -> list[Scope]:
    return [incident.scope for incident in project.unreported if incident.change is Change.CLOSED]


# ── what is allowed ─────────────────────────────────────────────────────────────────────────────────────────────────────

EVERYTHING = [ANDROID, IOS, WEB, TOPIC, CONDITION, SOMEWHERE]
STOPPED_BY = {
    Scope.PROJECT: EVERYTHING,
    Scope.APNS_WEB: [IOS, WEB],
    Scope.TOPICS: [TOPIC, CONDITION],
    Scope.DEVICES: [],
}


@pytest.mark.parametrize("scope", Scope)
def test_an_incident_blocks_exactly_its_scope(scope: Scope) -> None:
    project = state(scope)

    assert [each for each in EVERYTHING if not project.allows(each)] == STOPPED_BY[scope]


def test_one_of_several_incidents_is_enough_to_stop_a_delivery() -> None:
    project = state(Scope.DEVICES, Scope.TOPICS, Scope.APNS_WEB)

    assert [each for each in EVERYTHING if project.allows(each)] == [ANDROID, SOMEWHERE]


def test_a_fid_is_a_device_and_not_blocked_with_topics() -> None:
    assert state(Scope.TOPICS).allows(replace(DELIVERY, kind="fid"))


def test_without_an_incident_every_delivery_is_allowed() -> None:
    assert all(map(state().allows, EVERYTHING))


def test_a_probe_is_always_allowed() -> None:
    assert all(map(state(*Scope).allows, map(probe, EVERYTHING)))


# ── what counts against a delivery ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("trouble", [BUSY, SILENT, NEVER_LEFT])
def test_trouble_counts_until_it_is_an_outage_and_not_from_then_on(trouble: Outcome) -> None:
    project = state()

    assert answer(project, trouble, trouble, trouble, trouble) == [True, True, False, False]
    assert begun(project) == [Scope.PROJECT]


def test_trouble_among_good_answers_counts() -> None:
    project = state()

    assert all(answer(project, *[TAKEN, SILENT, SILENT] * 20))
    assert project.unreported == []


def test_three_quarters_of_twenty_answers_are_an_outage_despite_the_last_attempts() -> None:
    project = state()
    answer(project, *[TAKEN, SILENT, SILENT, DEVICE_QUOTA, SILENT, SILENT, WRONG] * 2)  # 8 of 14
    answer(project, SILENT, SILENT, TAKEN, SILENT, SILENT)  # 12 of 19

    counts = answer(project, SILENT, TAKEN, *[SILENT, SILENT, TAKEN] * 20)

    assert project.unreported == []
    assert all(counts)

    counts = answer(project, *[SILENT] * 40)

    assert begun(project) == [Scope.PROJECT]
    assert counts == [True] * counts.index(False) + [False] * (40 - counts.index(False))


@pytest.mark.parametrize(("last_attempt_number", "outage"), [(0, True), (1, False)])
def test_after_a_good_minute_only_first_attempts_can_show_an_outage(last_attempt_number: int, outage: bool) -> None:
    project = state()
    answer(project, *[TAKEN] * 1000)

    answer(project, *[SILENT] * 100, delivery=replace(DELIVERY, last_attempt_number=last_attempt_number))

    assert (begun(project) == [Scope.PROJECT]) is outage


def test_attempts_during_a_pause_count_only_where_the_answer_was_about_the_delivery() -> None:
    project = state()
    answer(project, REVOKED)

    assert answer(project, BUSY, SILENT, NEVER_LEFT) == [False, False, False]
    assert answer(project, WRONG, DEVICE_QUOTA, TAKEN, GONE) == [True, True, True, True]


def test_an_attempt_does_not_count_during_a_pause_known_from_the_database() -> None:
    assert answer(state(Scope.PROJECT), SILENT) == [False]


@pytest.mark.parametrize("trouble", [BUSY, SILENT, NEVER_LEFT])
def test_a_last_attempt_does_not_count_where_nothing_has_succeeded(trouble: Outcome) -> None:
    """With many workers and few deliveries, no worker may ever see three failures in a row."""
    project = state()
    last, last_but_one = (replace(DELIVERY, attempts=project.project.max_attempts - 1 - left) for left in (0, 1))

    before = answer(project, trouble, delivery=last_but_one)
    at_last = answer(project, trouble, delivery=last)

    assert (before, at_last) == ([True], [False])
    assert begun(project) == [Scope.PROJECT]


def test_a_last_attempt_counts_where_another_delivery_was_answered() -> None:
    project = state()
    answer(project, WRONG)

    counts = answer(project, SILENT, delivery=replace(DELIVERY, attempts=project.project.max_attempts - 1))

    assert counts == [True]
    assert project.unreported == []


@pytest.mark.parametrize("scope", [Scope.APNS_WEB, Scope.TOPICS, Scope.DEVICES])
def test_trouble_counts_while_only_a_part_of_the_project_is_stopped(scope: Scope) -> None:
    assert answer(state(scope), SILENT) == [True]


# ── what is found out ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", [TAKEN, WRONG, GONE, OTHERS, DEVICE_QUOTA, BUSY, SILENT, NEVER_LEFT, REFUSED_TOKEN])
def test_one_answer_about_one_delivery_reports_nothing(outcome: Outcome) -> None:
    project = state()

    answer(project, outcome)

    assert (project.unreported, project.changes, project.blocked) == ([], 0, frozenset())


@pytest.mark.parametrize("outcome", [REVOKED, QUOTA, TOPIC_QUOTA, NO_APNS_KEY])
def test_one_answer_about_the_project_stops_its_scope_at_once(outcome: Outcome) -> None:
    project = state()

    answer(project, outcome)

    assert outcome.pause is not None
    (incident,) = project.unreported
    assert (incident.project, incident.scope, incident.change) == ("orders", outcome.pause.scope, Change.OPENED)
    assert (incident.reason, incident.lasts) == (outcome.error, outcome.pause.lasts)
    assert project.blocked == {outcome.pause.scope}


def test_each_scope_is_one_incident_however_many_answers_say_so() -> None:
    project = state()

    answer(project, *[TOPIC_QUOTA, NO_APNS_KEY, REVOKED, QUOTA, *[SILENT] * 5, *[GONE] * 20, *[OTHERS] * 80] * 3)

    assert begun(project) == [Scope.TOPICS, Scope.APNS_WEB, Scope.PROJECT, Scope.DEVICES]
    assert project.changes == 4


def test_an_incident_known_from_the_database_is_not_reported_again() -> None:
    project = state(*Scope)

    answer(project, REVOKED, TOPIC_QUOTA, NO_APNS_KEY, *[SILENT] * 3, *[GONE] * 20)

    assert project.unreported == []


def test_an_outage_lasts_until_a_probe_succeeds_and_quotes_the_last_answer() -> None:
    project = state()

    answer(project, SILENT, SILENT, BUSY)

    (incident,) = project.unreported
    assert incident == Incident(
        "orders", Scope.PROJECT, reason="an apparent outage; the last answer: 503 UNAVAILABLE: later"
    )


def test_an_exceeded_quota_says_how_fast_this_process_has_sent() -> None:
    project = state()

    answer(project, *[TAKEN] * 40, TOPIC_QUOTA, QUOTA)

    topics, whole = project.unreported
    assert topics.sent_rate is None
    assert whole.sent_rate == pytest.approx(40, rel=0.2)  # all within this second


def test_a_pause_without_an_end_says_nothing_of_a_rate() -> None:
    project = state()

    answer(project, *[TAKEN] * 40, REVOKED)

    assert [incident.sent_rate for incident in project.unreported] == [None]


def test_the_breaker_for_devices_trips_once_and_stops_no_delivery() -> None:
    project = state()
    answer(project, *[GONE] * 19)
    before = list(project.unreported)

    counts = answer(project, *[GONE] * 40)

    assert before == []
    assert [(incident.scope, incident.lasts) for incident in project.unreported] == [(Scope.DEVICES, None)]
    assert "unregistered" in (project.unreported[0].reason or "")
    assert all(counts)
    assert project.allows(ANDROID)


def test_a_fifth_that_is_unregistered_trips_nothing() -> None:
    project = state()

    answer(project, *[TAKEN, TAKEN, TAKEN, TAKEN, GONE] * 20)

    assert project.unreported == []


def test_tokens_mostly_of_another_sender_stop_the_project_once_and_count() -> None:
    project = state()
    answer(project, *[OTHERS] * 19)
    before = list(project.unreported)

    counts = answer(project, *[OTHERS] * 20)

    assert before == []
    assert [(incident.scope, incident.lasts) for incident in project.unreported] == [(Scope.PROJECT, None)]
    assert "another sender" in (project.unreported[0].reason or "")
    assert all(counts)


def test_tokens_half_of_which_are_another_senders_stop_nothing() -> None:
    project = state()

    answer(project, *[TAKEN, OTHERS] * 40)

    assert project.unreported == []


# ── probes ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("answered", [TAKEN, GONE, DEVICE_QUOTA])
def test_a_probe_that_fcm_answers_ends_the_pause_of_the_project(answered: Outcome) -> None:
    project = state()
    answer(project, *[SILENT] * 3)

    answer(project, answered, delivery=probe())

    assert project.unreported[1:] == [Incident("orders", Scope.PROJECT, change=Change.CLOSED)]
    assert project.blocked == frozenset()
    assert project.allows(ANDROID)


@pytest.mark.parametrize("wrong", [WRONG, TOO_BIG], ids=lambda given: str(given.http_status))
@pytest.mark.parametrize(
    ("delivery", "scopes"), [(ANDROID, [Scope.PROJECT]), (IOS, [Scope.PROJECT, Scope.APNS_WEB])], ids=["android", "ios"]
)
def test_a_probe_that_fails_by_its_own_fault_decides_nothing_and_asks_for_another(
    wrong: Outcome, delivery: Delivery, scopes: list[Scope]
) -> None:
    project = state(*Scope)
    answer(project, *[SILENT] * 30)

    counts = answer(project, wrong, delivery=probe(delivery))

    assert project.unreported == [Incident("orders", scope, change=Change.UNDECIDED) for scope in scopes]
    assert project.blocked == {*Scope}
    assert counts == [True]
    assert project.stats.is_outage(monotonic()), "what was seen before is not forgotten"


def test_a_failed_delivery_that_is_no_probe_asks_for_none() -> None:
    project = state(Scope.PROJECT)

    answer(project, WRONG)

    assert project.unreported == []


def test_a_probe_that_was_never_requested_asks_for_another() -> None:
    project = state(Scope.PROJECT)

    project.observe_undecided(probe())

    assert project.unreported == [Incident("orders", Scope.PROJECT, change=Change.UNDECIDED)]


def test_an_undecided_probe_hastens_no_probe_of_a_newer_pause() -> None:
    project = state()
    started = monotonic()
    project.sync(project.project, ["project"])

    project.observe(probe(), WRONG, started)

    assert project.unreported == []


@pytest.mark.parametrize("failed", [BUSY, SILENT, NEVER_LEFT, REVOKED, QUOTA])
def test_a_probe_that_fails_ends_nothing_reports_nothing_and_costs_no_attempt(failed: Outcome) -> None:
    project = state(Scope.PROJECT, Scope.APNS_WEB)

    counts = answer(project, failed, delivery=probe(IOS))

    assert project.unreported == []
    assert project.blocked == {Scope.PROJECT, Scope.APNS_WEB}
    assert counts == [failed.verdict is Verdict.PAUSED]  # which the history never counts


@pytest.mark.parametrize("delivery", [IOS, WEB])
def test_a_probe_to_ios_or_web_ends_their_pause_too(delivery: Delivery) -> None:
    project = state(*Scope)

    answer(project, TAKEN, delivery=probe(delivery))

    assert set(ended(project)) == {Scope.PROJECT, Scope.APNS_WEB}
    assert project.blocked == {Scope.TOPICS, Scope.DEVICES}


@pytest.mark.parametrize("delivery", [ANDROID, TOPIC, SOMEWHERE])
def test_another_probe_ends_the_pause_of_the_project_alone(delivery: Delivery) -> None:
    project = state(*Scope)

    answer(project, TAKEN, delivery=probe(delivery))

    assert ended(project) == [Scope.PROJECT]
    assert project.blocked == {Scope.APNS_WEB, Scope.TOPICS, Scope.DEVICES}


@pytest.mark.parametrize("known_from", ["an answer", "the database"])
def test_a_probe_ends_no_pause_that_became_known_while_it_was_in_flight(known_from: str) -> None:
    project = state(Scope.APNS_WEB)
    started = monotonic()
    if known_from == "an answer":
        answer(project, QUOTA)
    else:
        project.sync(project.project, ["apns_web", "project"])

    project.observe(probe(IOS), TAKEN, started)

    assert ended(project) == [Scope.APNS_WEB]
    assert project.blocked == {Scope.PROJECT}


@pytest.mark.parametrize("refused", [GONE, DEVICE_QUOTA], ids=lambda given: str(given.verdict))
def test_a_probe_to_ios_that_fcm_itself_refuses_does_not_end_the_ios_pause(refused: Outcome) -> None:
    project = state(Scope.PROJECT, Scope.APNS_WEB)

    answer(project, refused, delivery=probe(IOS))

    assert ended(project) == [Scope.PROJECT]
    assert project.blocked == {Scope.APNS_WEB}


def test_a_probe_to_ios_that_apple_still_refuses_leaves_ios_stopped() -> None:
    project = state(Scope.APNS_WEB)

    answer(project, NO_APNS_KEY, delivery=probe(IOS))

    assert project.unreported == []
    assert project.blocked == {Scope.APNS_WEB}


def test_a_success_that_is_no_probe_ends_no_pause() -> None:
    project = state()
    answer(project, *[SILENT] * 3)

    answer(project, *[TAKEN] * 5)

    assert ended(project) == []
    assert not project.allows(ANDROID)


def test_a_successful_probe_clears_earlier_trouble() -> None:
    project = state()
    answer(project, *[SILENT] * 30)
    answer(project, TAKEN, delivery=probe())

    counts = answer(project, SILENT, TAKEN, SILENT)

    assert counts == [True, True, True]
    assert (begun(project), ended(project)) == ([Scope.PROJECT], [Scope.PROJECT])


def test_an_outage_that_comes_again_is_an_incident_of_its_own() -> None:
    project = state()

    answer(project, *[SILENT] * 3)
    answer(project, TAKEN, delivery=probe())
    answer(project, *[SILENT] * 3)

    assert [incident.change for incident in project.unreported] == [Change.OPENED, Change.CLOSED, Change.OPENED]


def test_a_probe_with_a_foreign_token_does_not_end_the_mismatch_pause() -> None:
    project = state()
    answer(project, *[OTHERS] * 20)

    answer(project, OTHERS, delivery=probe())

    assert ended(project) == []
    assert not project.allows(ANDROID)


def test_a_probe_whose_access_token_was_refused_ends_nothing() -> None:
    """The worker stopped, or the lease was over, before the same request could be made with a new token."""
    project = state(Scope.PROJECT)

    answer(project, REFUSED_TOKEN, delivery=probe())

    assert ended(project) == []
    assert not project.allows(ANDROID)


# ── sync ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sync_blocks_and_unblocks_as_the_database_says() -> None:
    project = state()

    project.sync(project.project, ["apns_web", "topics"])
    stopped = project.blocked
    project.sync(project.project, ["topics"])

    assert stopped == {Scope.APNS_WEB, Scope.TOPICS}
    assert project.blocked == {Scope.TOPICS}
    assert (project.unreported, project.changes) == ([], 0)


def test_a_stale_sync_changes_no_incident_but_brings_the_row() -> None:
    project = state()
    answer(project, REVOKED)
    patient = replace(project.project, max_attempts=3)

    project.sync(patient, None)

    assert project.blocked == {Scope.PROJECT}
    assert project.policy.max_attempts == 3


def test_a_sync_that_unblocks_the_project_clears_its_stats() -> None:
    project = state()
    answer(project, *[SILENT] * 30)
    project.unreported.clear()

    project.sync(project.project, [])

    assert project.allows(ANDROID)
    assert answer(project, SILENT, SILENT) == [True, True]
    assert project.unreported == []


def test_after_a_resume_the_breaker_for_devices_does_not_trip_at_the_next_answer() -> None:
    project = state()
    answer(project, *[TAKEN] * 20, *[GONE] * 10)
    assert begun(project) == [Scope.DEVICES]
    project.unreported.clear()

    project.sync(project.project, [])
    answer(project, GONE)

    assert project.unreported == []


def test_the_log_names_the_cause_by_its_code_without_quoting(caplog: pytest.LogCaptureFixture) -> None:
    quotes = replace(REVOKED, error='403 No: {"title": "Your result"}', error_code="PERMISSION_DENIED", http_status=403)

    answer(state(), quotes)
    answer(state(), *[replace(BUSY, error="503: Your result")] * 3)

    opened = [(vars(record)["event"], vars(record)["answer"]) for record in caplog.records]
    assert opened == [("incident_opened", "403 PERMISSION_DENIED"), ("incident_opened", "503 unknown")]
    assert "result" not in caplog.text


@pytest.mark.parametrize("blocked", [["project"], ["project", "topics"]])
def test_a_sync_that_does_not_unblock_the_project_keeps_its_stats(blocked: list[str]) -> None:
    project = state(Scope.PROJECT, Scope.APNS_WEB)
    answer(project, *[SILENT] * 30)

    project.sync(project.project, blocked)

    assert project.stats.is_outage(monotonic())
