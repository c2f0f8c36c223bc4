"""Properties of every message: no content, params or fields of a caller break a worker."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from notify_worker.model import UNREADABLE, Content, Delivery, Json, Message, Verdict
from notify_worker.pipeline.platform_fields import merged, visible_on
from notify_worker.pipeline.render import render
from tests.support.messages import ADDRESSES, DELIVERY, TAG, body, nested

FOUR_WEEKS = 28 * 24 * 60 * 60
LARGEST = {"token": 4096, "fid": 4096, "topic": 2048, "condition": 2048}
HEADERS = ("TTL", "ttl", "Urgency", "Apns-Expiration", "apns-priority", "apns-push-type", "APNS-COLLAPSE-ID")
NAMES = (
    "android",
    "android_v2",
    "androidV2",
    "apns",
    "webpush",
    "notification",
    "data",
    "headers",
    "payload",
    "aps",
    "alert",
)

# What Postgres takes as jsonb: neither NUL nor half of a surrogate pair.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
keys = st.sampled_from(NAMES + HEADERS + tuple(ADDRESSES)) | text
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text | st.just(UNREADABLE)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
objects = st.dictionaries(keys, anything, max_size=4)
strings = st.dictionaries(text, text, max_size=4)
odd: st.SearchStrategy[Json] = st.sampled_from([None, False, 1, 0.5, "", "x", [], ["x"], [{}]])


def fields(**each: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """An object with some of these fields, or sometimes something odd in its place."""
    meant = st.fixed_dictionaries({}, optional=each)
    return meant | meant | meant | odd


headers = st.dictionaries(st.sampled_from(HEADERS), text | st.just("background"), max_size=3) | odd
what_shows_nothing = st.fixed_dictionaries(
    {},
    optional={
        "android": fields(ttl=text, priority=text, data=strings),
        "android_v2": fields(ttl=text, data=strings),
        "androidV2": fields(ttl=text, data=strings),
        "apns": fields(headers=headers, payload=fields(aps=fields(category=text), own=text)),
        "webpush": fields(headers=headers, data=strings | odd),
        "fcm_options": objects,
    },
)
shown = fields(title=text, tag=text)
what_shows_something = st.fixed_dictionaries(
    {},
    optional={
        "notification": fields(title=text),
        "android": fields(notification=shown, ttl=text),
        "apns": fields(headers=headers, payload=fields(aps=fields(alert=text, badge=st.integers(), sound=text))),
        "webpush": fields(notification=shown, headers=headers),
    },
)
messages = what_shows_nothing | what_shows_something
with_placeholders = st.lists(st.sampled_from(["{", "}", "{{", "}}", "{a}", "{a.b}", "a"]) | text).map("".join)
any_content = st.builds(
    Content,
    title=st.none() | with_placeholders,
    body=st.none() | with_placeholders,
    image=st.none() | with_placeholders,
    data=st.none() | strings | objects,
    message=st.none() | messages | objects,
)
params = st.dictionaries(st.sampled_from(["a", "a.b"]) | text, anything, max_size=3)
kinds = st.sampled_from(sorted(ADDRESSES))
priorities = st.sampled_from(["high", "normal", None])
seconds = st.floats(allow_nan=False) | st.floats(-10, FOUR_WEEKS + 10)
any_deliveries = st.builds(
    lambda **columns: replace(DELIVERY, campaign_name="any", **columns),
    inline=any_content,
    campaign=st.none() | any_content,
    params=params,
    priority=priorities,
    expires_in=seconds,
    expires_at=seconds,
)


def rendered(**delivery: Any) -> Mapping[str, Json]:
    """The message of a delivery, where there is one."""
    message = render(replace(DELIVERY, **delivery))
    assume(isinstance(message, Message))
    assert isinstance(message, Message)
    return message.body


def stands(body: Json, *path: str) -> bool:
    """Tell whether a field is there, in any case, or something odd of the caller's where it would be."""
    for key in path:
        if not isinstance(body, Mapping):
            return True
        spelled = {name.lower(): name for name in body}
        if key.lower() not in spelled:
            return False
        body = body[spelled[key.lower()]]
    return True


def lowered(body: Mapping[str, Json], platform: str) -> list[str]:
    """The names of a platform's headers; none where something odd stands in their place."""
    for key in (platform, "headers"):
        value = body.get(key)
        body = value if isinstance(value, Mapping) else {}
    return [name.lower() for name in body]


# ── nothing breaks ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(any_deliveries, kinds)
def test_any_row_renders_to_a_json_message_or_an_outcome(delivery: Delivery, kind: str) -> None:
    result = render(replace(delivery, kind=kind, address=ADDRESSES[kind]))

    if isinstance(result, Message):
        assert json.loads(json.dumps(dict(result.body), allow_nan=False))[kind] == ADDRESSES[kind]
        assert [each for each in ADDRESSES if each in result.body] == [kind]
        assert result.body["data"]["notification_id"] == "42"
    else:
        assert result.verdict is Verdict.FAILED
        assert result.error
        assert result.error_code


@given(st.sampled_from(["android", "apns", "webpush", "fcm_options"]), st.integers(0, 2000))
def test_a_callers_fields_are_rendered_only_below_48_levels(field: str, depth: int) -> None:
    result = render(replace(DELIVERY, inline=Content(message={field: nested(depth)})))

    assert isinstance(result, Message) == (depth < 48)


addresses = st.text() | st.sampled_from(sorted(ADDRESSES.values())) | st.builds("{}fcm:hidden{}".format, text, text)


@given(kinds, addresses)
def test_any_address_is_accepted_or_refused_and_only_a_topic_is_shown(kind: str, address: str) -> None:
    result = render(replace(DELIVERY, kind=kind, address=address))

    if isinstance(result, Message):
        assert result.body[kind] == address.removeprefix("/topics/" if kind == "topic" else "")
        assert address.isprintable()
        assert address.strip()
    else:
        assert result.error_code == "BAD_ADDRESS"
        assert kind == "topic" or "hidden" not in (result.error or "")


# ── size ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

letters = st.sampled_from("aä🔔")
lengths = st.integers(0, 2200)


@given(kinds, letters, lengths, lengths)
@example("topic", "a", 1000, 2048 - 1000 - len("bodyanotification_id42"))
@example("topic", "a", 1000, 2049 - 1000 - len("bodyanotification_id42"))
def test_only_messages_within_fcms_size_are_rendered(kind: str, letter: str, words: int, data: int) -> None:
    text, value = letter * words, letter * data

    result = render(replace(DELIVERY, kind=kind, address=ADDRESSES[kind], inline=Content(body=text, data={"a": value})))

    size = len(f"body{text}a{value}notification_id42".encode())
    assert isinstance(result, Message) == (size <= LARGEST[kind])


# ── placeholders ────────────────────────────────────────────────────────────────────────────────────────────────────────

names = st.text(st.characters(exclude_characters="{}\0", exclude_categories=["Cs"]), max_size=5)
known = st.dictionaries(names, text | st.integers() | st.booleans(), min_size=1, max_size=4)


@given(st.data(), known)
def test_every_placeholder_of_a_known_param_is_filled_and_every_other_letter_stays(
    data: st.DataObject, known: Mapping[str, Json]
) -> None:
    said = text | st.sampled_from(["{", "}", "{}", "{{a}}"])
    pieces = data.draw(st.lists(st.tuples(st.booleans(), said, st.sampled_from(sorted(known))), max_size=6))
    words = "".join(
        f"{{{name}}}" if is_param else said.replace("{", "{{").replace("}", "}}") for is_param, said, name in pieces
    )
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}
    expected = "".join(values[name] if is_param else said for is_param, said, name in pieces)
    campaign = Content(title=words, body=words, data={"a": words}, message={"android": {"collapse_key": [words]}})

    result = rendered(inline=Content(), campaign_name="any", campaign=campaign, params=known)

    assert result["notification"] == {"title": expected, "body": expected}
    assert result["data"]["a"] == expected
    assert result["android"]["collapse_key"] == [expected]


# ── what every message carries ──────────────────────────────────────────────────────────────────────────────────────────


@given(messages, st.none() | text, st.none() | strings, priorities)
def test_the_notifications_id_is_in_all_data_of_the_caller(
    message: Json, title: str | None, data: Mapping[str, str] | None, priority: str | None
) -> None:
    result = rendered(inline=Content(title=title, data=data, message=message), priority=priority)

    for platform in (result, *(result.get(each) for each in ("android", "android_v2", "androidV2", "webpush"))):
        brought = platform.get("data") if isinstance(platform, Mapping) else None
        if isinstance(brought, Mapping) and brought:
            assert brought["notification_id"] == "42"


@given(what_shows_something, st.none() | text, priorities)
def test_the_tag_is_there_on_each_platform_where_the_message_is_visible_and_only_then(
    message: Json, title: str | None, priority: str | None
) -> None:
    words = Content(title=title, message=message)
    visible = visible_on(merged({} if title is None else {"notification": {"title": title}}, message))

    result = rendered(inline=words, priority=priority)

    assert visible_on(result) == visible
    assert "android" not in visible or stands(result, "android", "notification", "tag")
    assert "apns" not in visible or stands(result, "apns", "headers", "apns-collapse-id")
    assert "webpush" not in visible or stands(result, "webpush", "notification", "tag")
    assert json.dumps(result).count(TAG) <= len(visible)


@given(what_shows_nothing, strings, priorities)
def test_a_data_only_message_stays_so_and_has_ios_priority_five_by_default(
    message: Json, data: Mapping[str, str], priority: str | None
) -> None:
    result = rendered(inline=Content(data=data, message=message), priority=priority)

    assert not visible_on(result)
    assert TAG not in json.dumps(result)
    assert not stands(result, "notification")
    assert stands(result, "apns", "headers", "apns-push-type")
    assert stands(result, "apns", "headers", "apns-priority") or "apns-push-type" in lowered(message, "apns")
    if "apns" not in message:
        assert result["apns"]["headers"]["apns-priority"] == "5"
        assert result["apns"]["payload"] == {"aps": {"content-available": 1}}


@given(messages, st.none() | text, priorities)
def test_the_callers_fields_win_and_no_header_appears_twice(
    message: Json, title: str | None, priority: str | None
) -> None:
    result = rendered(inline=Content(title=title, message=message), priority=priority)

    assert merged(result, message) == result
    for platform in ("apns", "webpush"):
        theirs = lowered(message, platform)
        assert sorted(theirs) == sorted(name for name in lowered(result, platform) if name in theirs)


@given(seconds, seconds, st.booleans())
def test_the_time_to_live_is_never_more_than_was_left_nor_than_fcm_takes(
    expires_in: float, expires_at: float, visible: bool
) -> None:
    words = DELIVERY.inline if visible else Content(data={})

    result = body(replace(DELIVERY, inline=words, expires_in=expires_in, expires_at=expires_at))

    lives = int(result["webpush"]["headers"]["TTL"])
    assert result["android"]["ttl"] == f"{lives}s"
    assert 0 <= lives <= min(max(expires_in, 0), FOUR_WEEKS)
    assert lives > min(expires_in, FOUR_WEEKS) - 1
    until = result["apns"]["headers"].get("apns-expiration")
    assert until is None or 0 <= int(until) <= max(expires_at, 0)
