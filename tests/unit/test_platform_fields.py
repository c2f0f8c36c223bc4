"""The fields that we add to a message: the notification's id, its tag, its time to live, its priority."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf

import pytest

from notify_worker.model import Content, Json
from tests.support.messages import DELIVERY, ID, TAG, body

FOUR_WEEKS = 28 * 24 * 60 * 60
SILENT = Content(data={"order": "42"})
BACKGROUND = {"apns-priority": "5", "apns-push-type": "background"}


def message(own: Mapping[str, Json], words: Content = DELIVERY.inline, **delivery: Json) -> Mapping[str, Json]:
    """The message of a delivery whose caller set these fields itself."""
    return body(replace(DELIVERY, inline=replace(words, message=own), **delivery))


# ── id and tag ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [Content(title="Thank you"), Content(body="It is paid"), Content(message={"notification": {"title": "Thank you"}})],
)
def test_a_visible_message_has_the_tag_on_all_three_platforms(words: Content) -> None:
    rendered = body(replace(DELIVERY, inline=words))

    assert rendered["android"]["notification"]["tag"] == TAG
    assert rendered["apns"]["headers"]["apns-collapse-id"] == TAG
    assert rendered["webpush"]["notification"]["tag"] == TAG


@pytest.mark.parametrize(
    ("platform", "own"),
    [
        ("android", {"notification": {"title_loc_key": "thanks"}}),
        ("apns", {"payload": {"aps": {"alert": "Thank you"}}}),
        ("webpush", {"notification": {"title": "Thank you"}}),
    ],
)
def test_a_message_visible_on_one_platform_has_the_tag_there_alone(platform: str, own: Json) -> None:
    rendered = body(replace(DELIVERY, inline=Content(message={platform: own})))

    assert TAG in json.dumps(rendered[platform])
    assert json.dumps(rendered).count(TAG) == 1


def test_the_callers_own_tag_wins_on_the_platform_that_it_names() -> None:
    own = {"android": {"notification": {"tag": "mine"}}, "apns": {"headers": {"apns-priority": "5"}}}

    rendered = body(replace(DELIVERY, inline=Content(title="Thank you", message=own)))

    assert rendered["android"]["notification"] == {"tag": "mine"}
    assert rendered["apns"]["headers"].items() >= {"apns-priority": "5", "apns-collapse-id": TAG}.items()
    assert rendered["webpush"]["notification"] == {"tag": TAG}


def test_the_notifications_id_is_in_each_platforms_own_data() -> None:
    own = {"android": {"data": {"a": "1"}}, "webpush": {"data": {"w": "2"}}, "data": {"d": "3"}}

    rendered = body(replace(DELIVERY, inline=Content(title="Thank you", message=own)))

    assert rendered["data"] == {"d": "3", **ID}
    assert rendered["android"]["data"] == {"a": "1", **ID}
    assert rendered["webpush"]["data"] == {"w": "2", **ID}


def test_a_platform_without_data_of_its_own_gets_none() -> None:
    rendered = body(replace(DELIVERY, inline=Content(title="Thank you", message={"android": {"ttl": "60s"}})))

    assert "data" not in rendered["android"]
    assert "data" not in rendered["webpush"]


@pytest.mark.parametrize("empty", [None, {}])
@pytest.mark.parametrize("platform", ["android", "webpush"])
def test_data_of_a_platform_that_are_empty_replace_nothing_and_stay_empty(platform: str, empty: Json) -> None:
    rendered = message({platform: {"data": empty}}, SILENT)

    assert rendered[platform]["data"] == empty
    assert rendered["data"] == {"order": "42", **ID}


@pytest.mark.parametrize("spelling", ["android_v2", "androidV2"])
def test_our_fields_go_into_android_v2_if_the_caller_uses_it(spelling: str) -> None:
    own = {spelling: {"background_sync": {}, "data": {"a": "1"}}}

    rendered = message(own, priority="high")

    assert "android" not in rendered
    assert rendered[spelling] == {"background_sync": {}, "data": {"a": "1", **ID}, "ttl": "86400s"}


def test_a_message_with_two_successors_of_android_is_left_to_fcm() -> None:
    rendered = message({"android_v2": {}, "androidV2": {}, "android": {"collapse_key": "a"}})

    assert rendered["android"] == {"collapse_key": "a"}
    assert rendered["androidV2"] == {}


# ── what shows nothing ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["token", "topic"])
def test_a_data_only_message_goes_to_ios_in_the_background(kind: str) -> None:
    rendered = body(replace(DELIVERY, kind=kind, address="there", inline=SILENT))

    assert rendered == {
        kind: "there",
        "data": {"order": "42", **ID},
        "android": {"ttl": "86400s"},
        "apns": {
            "headers": {"apns-expiration": "1800000000", **BACKGROUND},
            "payload": {"aps": {"content-available": 1}},
        },
        "webpush": {"headers": {"TTL": "86400"}},
    }


@pytest.mark.parametrize("priority", ["high", "normal", None])
def test_a_data_only_message_has_ios_priority_five_whatever_its_own(priority: str | None) -> None:
    rendered = message({}, SILENT, priority=priority)

    assert rendered["apns"]["headers"].items() >= BACKGROUND.items()
    assert rendered["android"].get("priority") == (priority and priority.upper())


@pytest.mark.parametrize("platform", ["android", "webpush"])
def test_a_message_visible_only_elsewhere_is_data_only_on_ios(platform: str) -> None:
    rendered = message({platform: {"notification": {"title": "Thank you"}}}, SILENT, priority="high")

    assert rendered["apns"]["headers"].items() >= BACKGROUND.items()


def test_the_callers_payload_stays_beside_our_background_fields() -> None:
    rendered = message({"apns": {"payload": {"own": [1], "aps": {"category": "x"}}}}, SILENT)

    assert rendered["apns"]["payload"] == {"own": [1], "aps": {"category": "x", "content-available": 1}}


@pytest.mark.parametrize(
    "apns",
    [
        {"payload": {"aps": {"alert": "Thank you"}}},
        {"payload": {"aps": {"badge": 0}}},
        {"payload": {"aps": {"sound": "bell"}}},
        {"live_activity_token": "abc"},
        {"liveActivityToken": "abc"},
        {"headers": {"apns-push-type": "voip"}},
        {"headers": {"Apns-Push-Type": "location"}},
    ],
)
def test_a_visible_or_special_ios_push_is_no_background_push(apns: Json) -> None:
    rendered = message({"apns": apns}, SILENT, priority="high")

    assert rendered["apns"]["headers"]["apns-priority"] == "10"
    assert rendered["apns"]["headers"].get("apns-push-type") in (None, "voip")
    assert rendered["apns"].get("payload") == apns.get("payload")


@pytest.mark.parametrize("words", [SILENT, DELIVERY.inline])
def test_a_callers_own_background_push_has_priority_five(words: Content) -> None:
    rendered = message({"apns": {"headers": {"APNS-Push-Type": "background"}}}, words, priority="high")

    assert rendered["apns"]["headers"]["apns-priority"] == "5"
    assert "apns-push-type" not in rendered["apns"]["headers"]


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        (86400, 86400),
        (59.999, 59),
        (0.5, 0),
        (0, 0),
        (-3, 0),
        (FOUR_WEEKS, FOUR_WEEKS),
        (FOUR_WEEKS + 1, FOUR_WEEKS),
        (1e15, FOUR_WEEKS),
        (inf, FOUR_WEEKS),
    ],
)
def test_android_and_web_ttl_are_the_time_left_in_whole_seconds_up_to_four_weeks(left: float, seconds: int) -> None:
    rendered = message({}, expires_in=left)

    assert rendered["android"]["ttl"] == f"{seconds}s"
    assert rendered["webpush"]["headers"]["TTL"] == str(seconds)


@pytest.mark.parametrize(
    ("left", "expires_at", "until"),
    [
        (86400, 1_800_000_000.9, "1800000000"),
        (FOUR_WEEKS, 1_800_000_000, "1800000000"),
        (FOUR_WEEKS + 60, 1_800_000_060, "1800000000"),
        (1e15, 1_800_000_000 - FOUR_WEEKS + 1e15, "1800000000"),
        (-60, 1_800_000_000, "1800000000"),
    ],
)
def test_apns_expiration_is_the_expiry_up_to_four_weeks_from_the_claim(
    left: float, expires_at: float, until: str
) -> None:
    rendered = message({}, expires_in=left, expires_at=expires_at)

    assert rendered["apns"]["headers"]["apns-expiration"] == until


def test_a_message_that_never_expires_has_fcms_default_on_apns() -> None:
    rendered = message({}, expires_in=inf, expires_at=inf)

    assert "apns-expiration" not in rendered["apns"]["headers"]


# ── priority ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("priority", "android", "apns", "webpush"), [("high", "HIGH", "10", "high"), ("normal", "NORMAL", "5", "normal")]
)
def test_a_priority_has_each_platforms_own_value(priority: str, android: str, apns: str, webpush: str) -> None:
    rendered = message({}, priority=priority)

    assert rendered["android"]["priority"] == android
    assert rendered["apns"]["headers"]["apns-priority"] == apns
    assert rendered["webpush"]["headers"]["Urgency"] == webpush


def test_without_a_priority_fcms_default_applies() -> None:
    rendered = message({})

    assert "priority" not in rendered["android"]
    assert "apns-priority" not in rendered["apns"]["headers"]
    assert "Urgency" not in rendered["webpush"]["headers"]


# ── the caller's own fields ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [SILENT, DELIVERY.inline])
def test_the_callers_own_time_and_priority_win(words: Content) -> None:
    own: Mapping[str, Json] = {
        "android": {"ttl": "60s", "priority": "normal"},
        "apns": {"headers": {"apns-expiration": "0", "apns-priority": "1"}},
        "webpush": {"headers": {"TTL": "60", "Urgency": "low"}},
    }

    rendered = message(own, words, priority="high")

    assert rendered["android"].items() >= own["android"].items()
    assert rendered["apns"]["headers"].items() >= own["apns"]["headers"].items()
    assert rendered["webpush"]["headers"].items() >= own["webpush"]["headers"].items()


@pytest.mark.parametrize("spelled", [str.upper, str.title, str.swapcase])
def test_the_callers_header_wins_in_any_case_and_appears_once(spelled: Callable[[str], str]) -> None:
    apns = {spelled(name): "own" for name in ("apns-expiration", "apns-priority", "apns-collapse-id")}
    webpush = {spelled(name): "own" for name in ("TTL", "Urgency", "Topic")}

    rendered = message({"apns": {"headers": apns}, "webpush": {"headers": webpush}}, priority="high")

    assert rendered["apns"]["headers"] == apns
    assert rendered["webpush"]["headers"] == webpush


@pytest.mark.parametrize("odd", [None, "x", [], ["x"], 1, False])
@pytest.mark.parametrize("words", [SILENT, DELIVERY.inline])
def test_a_wrong_type_in_place_of_an_object_is_left_to_fcm(odd: Json, words: Content) -> None:
    platforms = message({"android": odd, "apns": odd, "webpush": odd}, words, priority="high")
    headers = message({"apns": {"headers": odd, "payload": odd}, "webpush": {"headers": odd}}, words, priority="high")

    assert [platforms[each] for each in ("android", "apns", "webpush")] == [odd, odd, odd]
    assert headers["apns"] == {"headers": odd, "payload": odd}
    assert headers["webpush"]["headers"] == odd
