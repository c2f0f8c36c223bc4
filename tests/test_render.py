"""What becomes of words, params and message: the message that FCM is given, or the outcome that says why there is none."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notify_worker.model import Delivery, Json, Message, OnUnknown, Outcome, Verdict, Words
from notify_worker.render import render

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # that the machine is busy is no fault of what is tested

DELIVERY = Delivery(
    id=7,
    notification_id=42,
    lease=UUID(int=1),
    worker_id=1,
    start_by=float("inf"),
    project="default",
    kind="token",
    address="fcm:abc",
    platform="android",
    on_unknown=OnUnknown.RESEND,
    priority=None,
    attempts=0,
    tries=0,
    probe=False,
    expires_in=86400,
    expires_at=1_800_000_000,
    expires_by=float("inf"),
    tag="0badcafe-42",
    inline=Words(title="Thank you"),
    campaign_name=None,
    campaign=None,
    params={},
)

NONE = Words()
ID = {"notification_id": "42"}
TAG = "0badcafe-42"


def of_campaign(words: Words, inline: Words = NONE, **params: Json) -> Delivery:
    return replace(DELIVERY, campaign_name="order_paid", campaign=words, inline=inline, params=params)


def body(delivery: Delivery) -> Mapping[str, Json]:
    message = render(delivery)
    assert isinstance(message, Message), message
    return message.body


def refusal(delivery: Delivery) -> Outcome:
    outcome = render(delivery)
    assert isinstance(outcome, Outcome), outcome
    assert outcome.verdict is Verdict.FAILED
    assert not outcome.mendable
    return outcome


def title(words: str, **params: Json) -> Any:
    return body(of_campaign(Words(title=words), **params))["notification"]["title"]


def test_inline_words_win_over_the_campaigns_field_by_field() -> None:
    campaign = Words(title="Thank you", body="Order {order_id} is paid", image="https://shop.example/paid.png")

    rendered = body(of_campaign(campaign, Words(body="It is paid"), order_id=42))

    assert rendered["notification"] == {
        "title": "Thank you",
        "body": "It is paid",
        "image": "https://shop.example/paid.png",
    }


def test_an_empty_inline_word_wins_too() -> None:
    assert body(of_campaign(Words(title="Thank you"), Words(title="")))["notification"] == {"title": ""}


def test_data_are_merged_by_key_and_the_inline_value_wins() -> None:
    campaign = Words(data={"screen": "orders", "sound": "bell"})

    rendered = body(of_campaign(campaign, Words(data={"screen": "order", "order": "42"})))

    assert rendered["data"] == {"screen": "order", "sound": "bell", "order": "42", **ID}


def test_the_message_is_merged_deeply_and_last() -> None:
    campaign = Words(title="Thank you", message={"android": {"ttl": "60s", "notification": {"color": "#ff0000"}}})
    inline = Words(message={"android": {"notification": {"color": "#00ff00"}}, "notification": {"title": "Thanks"}})

    rendered = body(of_campaign(campaign, inline))

    assert rendered["android"] == {"ttl": "60s", "notification": {"color": "#00ff00", "tag": TAG}}
    assert rendered["notification"] == {"title": "Thanks"}


def test_a_list_in_the_message_replaces_the_campaigns() -> None:
    campaign = Words(message={"webpush": {"notification": {"actions": [{"title": "{yes}"}, {"title": "No"}]}}})

    kept = body(of_campaign(campaign, yes="Oui"))
    replaced = body(of_campaign(campaign, Words(message={"webpush": {"notification": {"actions": []}}}), yes="Oui"))

    assert kept["webpush"]["notification"]["actions"] == [{"title": "Oui"}, {"title": "No"}]
    assert replaced["webpush"]["notification"]["actions"] == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("{{order}}", "{order}"),
        ("{{{order}}}", "{42}"),
        ("}}{{", "}{"),
        ("{order}{order}", "4242"),
        ("100 % {order} %s", "100 % 42 %s"),
    ],
)
def test_doubled_braces_are_braces_and_the_rest_stays_as_it_is(words: str, shown: str) -> None:
    assert title(words, order=42) == shown


@pytest.mark.parametrize("words", ["a lone { stays", "a lone } stays", "{order", "order}"])
def test_a_brace_that_opens_or_closes_nothing_stays(words: str) -> None:
    assert title(words, order=42) == words


@pytest.mark.parametrize(
    ("value", "written"),
    [("x", "x"), ("", ""), (42, "42"), (4.5, "4.5"), (1e100, "1e+100"), (True, "true"), (False, "false"), (0, "0")],
)
def test_params_are_written_as_text_or_as_in_json(value: Json, written: str) -> None:
    assert title("[{it}]", it=value) == f"[{written}]"


@pytest.mark.parametrize("value", [None, [42], {"id": 42}])
def test_a_param_that_is_null_an_array_or_an_object_counts_as_missing(value: Json) -> None:
    assert refusal(of_campaign(Words(title="{it}"), it=value)).error_code == "PARAM_MISSING"


def test_a_param_that_is_missing_fails_the_delivery_and_names_campaign_and_param() -> None:
    outcome = refusal(of_campaign(Words(body="Order {order_id} is paid")))

    assert outcome.error_code == "PARAM_MISSING"
    assert outcome.error == 'campaign "order_paid" needs the param "order_id"; given: none'


def test_the_error_names_the_params_that_are_there_and_none_of_their_values() -> None:
    outcome = refusal(of_campaign(Words(title="{order_id}"), phone="+49 170 555", code="s3cret"))

    assert outcome.error == 'campaign "order_paid" needs the param "order_id"; given: "code", "phone"'


@pytest.mark.parametrize("words", ["{x.__class__}", "{x[0]}", "{x!r}", "{x:>10}", "{0}", "{}", "{ x }"])
def test_a_placeholder_is_a_name_alone_and_reaches_nothing_else(words: str) -> None:
    assert refusal(of_campaign(Words(title=words), x="a")).error_code == "PARAM_MISSING"


def test_what_a_param_brings_is_not_filled_again() -> None:
    assert title("{name}", name="{password}", password="s3cret") == "{password}"


def test_placeholders_in_inline_words_are_left_alone() -> None:
    inline = Words(title="{a}", body="{{b}}", data={"c": "{c}"}, message={"android": {"collapse_key": "{d}"}})

    rendered = body(of_campaign(Words(), inline, a="A", c="C", d="D"))

    assert rendered["notification"] == {"title": "{a}", "body": "{{b}}"}
    assert rendered["data"] == {"c": "{c}", **ID}
    assert rendered["android"]["collapse_key"] == "{d}"


def test_a_word_that_the_notification_brings_itself_needs_no_param() -> None:
    campaign = Words(title="{a}", body="{b}", image="{c}", data={"d": "{d}"})

    rendered = body(of_campaign(campaign, Words(title="1", body="2", image="3", data={"d": "4"})))

    assert rendered["notification"] == {"title": "1", "body": "2", "image": "3"}
    assert rendered["data"] == {"d": "4", **ID}


def test_params_fill_data_and_message_of_the_campaign_and_no_key() -> None:
    campaign = Words(data={"{order}": "{order}"}, message={"android": {"{order}": ["{order}", 1, None]}})

    rendered = body(of_campaign(campaign, order=42))

    assert rendered["data"] == {"{order}": "42", **ID}
    assert rendered["android"] == {"{order}": ["42", 1, None]}


@pytest.mark.parametrize(
    "words",
    [
        Words(title="Thank you"),
        Words(body="It is paid"),
        Words(message={"notification": {"title": "Thank you"}}),
        Words(message={"android": {"notification": {"title_loc_key": "thanks"}}}),
        Words(message={"apns": {"payload": {"aps": {"alert": "Thank you"}}}}),
        Words(message={"webpush": {"notification": {"title": "Thank you"}}}),
    ],
)
def test_what_is_visible_carries_the_tag_on_all_three_platforms(words: Words) -> None:
    rendered = body(replace(DELIVERY, inline=words))

    assert rendered["android"]["notification"]["tag"] == TAG
    assert rendered["apns"]["headers"]["apns-collapse-id"] == TAG
    assert rendered["webpush"]["notification"]["tag"] == TAG


def test_the_callers_own_tag_wins_on_the_platform_that_it_names() -> None:
    own = {"android": {"notification": {"tag": "mine"}}, "apns": {"headers": {"apns-priority": "5"}}}

    rendered = body(replace(DELIVERY, inline=Words(title="Thank you", message=own)))

    assert rendered["android"]["notification"] == {"tag": "mine"}
    assert rendered["apns"]["headers"] == {"apns-priority": "5", "apns-collapse-id": TAG}
    assert rendered["webpush"]["notification"] == {"tag": TAG}


@pytest.mark.parametrize(
    "words",
    [
        Words(data={"order": "42"}),
        Words(data={"order": "42"}, message={"android": {"ttl": "60s"}, "apns": {"payload": {"aps": {"badge": 1}}}}),
        Words(message={"apns": {"payload": {"aps": {"content-available": 1}}}}),
    ],
)
def test_what_is_data_only_stays_data_only(words: Words) -> None:
    rendered = body(replace(DELIVERY, inline=words))

    assert rendered == {"token": "fcm:abc", **(words.message or {}), "data": {**(words.data or {}), **ID}}


def test_the_notifications_id_stands_in_the_data_of_every_platform_that_has_its_own() -> None:
    own = {"android": {"data": {"a": "1"}}, "webpush": {"data": {"w": "2"}}, "data": {"d": "3"}}

    rendered = body(replace(DELIVERY, inline=Words(title="Thank you", message=own)))

    assert rendered["data"] == {"d": "3", **ID}
    assert rendered["android"]["data"] == {"a": "1", **ID}
    assert rendered["webpush"]["data"] == {"w": "2", **ID}


def test_a_platform_without_data_of_its_own_gets_none() -> None:
    rendered = body(replace(DELIVERY, inline=Words(title="Thank you", message={"android": {"ttl": "60s"}})))

    assert "data" not in rendered["android"]
    assert "data" not in rendered["webpush"]


@pytest.mark.parametrize("kind", ["token", "fid", "topic", "condition"])
def test_the_address_stands_under_its_kind(kind: str) -> None:
    message = render(replace(DELIVERY, kind=kind, address="there"))

    assert isinstance(message, Message)
    assert message.kind == kind
    assert message.body[kind] == "there"


@pytest.mark.parametrize("kind", ["token", "fid", "topic", "condition"])
@pytest.mark.parametrize("value", ["news", None])
def test_a_message_that_names_an_address_is_refused(kind: str, value: Json) -> None:
    inline = replace(DELIVERY, inline=Words(title="Thank you", message={kind: value}))
    campaign = of_campaign(Words(title="Thank you", message={kind: value}))

    for each in (inline, campaign):
        assert refusal(each).error_code == "MESSAGE_NAMES_AN_ADDRESS"
        assert f'"{kind}"' in (refusal(each).error or "")


@pytest.mark.parametrize(("kind", "limit"), [("token", 4096), ("fid", 4096), ("topic", 2048), ("condition", 2048)])
@pytest.mark.parametrize("letter", ["a", "ä", "🔔"])
def test_what_is_larger_than_fcm_takes_is_refused_counted_in_bytes(kind: str, limit: int, letter: str) -> None:
    room = limit - len("titlebodynotification_id42" + "Hello")
    fits = letter * (room // len(letter.encode())) + "x" * (room % len(letter.encode()))

    largest = replace(DELIVERY, kind=kind, inline=Words(title="Hello", body=fits))
    larger = replace(DELIVERY, kind=kind, inline=Words(title="Hello", body=fits + "x"))

    assert isinstance(render(largest), Message)
    assert refusal(larger).error_code == "MESSAGE_TOO_BIG"
    assert refusal(larger).error == f"words and data take {limit + 1} bytes; FCM takes {limit} for a {kind}"


def test_no_refusal_and_no_repr_holds_the_address() -> None:
    secret = replace(DELIVERY, address="fcm:not-for-your-eyes")

    assert "eyes" not in repr(secret)
    assert "eyes" not in repr(render(secret))
    assert "eyes" not in repr(render(replace(secret, inline=Words(body="x" * 5000))))


def test_the_words_of_the_campaign_stay_as_they_were() -> None:
    campaign = Words(data={"a": "1"}, message={"data": {"b": "2"}, "android": {"data": {"c": "3"}}})
    delivery = of_campaign(campaign, Words(title="x", message={"android": {"data": {"d": "4"}}}))

    assert body(delivery) == body(delivery)
    assert campaign == Words(data={"a": "1"}, message={"data": {"b": "2"}, "android": {"data": {"c": "3"}}})


# What Postgres takes as jsonb: neither NUL nor half of a surrogate pair, and no infinity.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
fields = st.sampled_from(
    ["android", "apns", "webpush", "notification", "data", "payload", "aps", "alert", "headers", "tag", "token", "a"]
)
keys = fields | text
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
objects = st.dictionaries(keys, anything, max_size=4)
with_placeholders = st.lists(st.sampled_from(["{", "}", "{{", "}}", "{a}", "{a.b}", "a"]) | text).map("".join)
any_words = st.builds(
    Words,
    title=st.none() | with_placeholders,
    body=st.none() | with_placeholders,
    image=st.none() | with_placeholders,
    data=st.none() | objects,
    message=st.none() | objects,
)


@given(any_words, st.none() | any_words, objects, st.sampled_from(["token", "fid", "topic", "condition"]))
def test_whatever_stands_in_the_rows_there_is_a_message_or_an_outcome_and_json_can_write_it(
    inline: Words, campaign: Words | None, params: Mapping[str, Json], kind: str
) -> None:
    delivery = replace(DELIVERY, kind=kind, inline=inline, campaign_name="any", campaign=campaign, params=params)

    rendered = render(delivery)

    if isinstance(rendered, Message):
        assert json.loads(json.dumps(dict(rendered.body)))[kind] == "fcm:abc"
        assert rendered.body["data"]["notification_id"] == "42"
    else:
        assert rendered.verdict is Verdict.FAILED
        assert rendered.error


def nested(depth: int) -> Json:
    value: Json = "deep"
    for _ in range(depth):
        value = {"a": value}
    return value


TOO_DEEP = 3000


@pytest.mark.parametrize("depth", [10, TOO_DEEP])
@pytest.mark.parametrize("part", ["data", "message"])
def test_words_that_are_nested_deeply_are_a_message_or_an_outcome_too(part: str, depth: int) -> None:
    words = Words(**{part: nested(depth)})

    assert isinstance(render(of_campaign(words)), Message | Outcome)
    assert isinstance(render(of_campaign(words, words)), Message | Outcome)
