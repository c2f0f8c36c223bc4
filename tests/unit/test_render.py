"""Content, params and message render to the message for FCM, or to the outcome that says why there is none."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from notify_worker.model import Content, Delivery, Json, Message, Outcome, Verdict
from notify_worker.pipeline.render import render
from tests.support.messages import ADDRESSES, DELIVERY, ID, TAG, body, nested

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a busy machine is no failure of the code

NONE = Content()


def of_campaign(words: Content, inline: Content = NONE, **params: Json) -> Delivery:
    return replace(DELIVERY, campaign_name="order_paid", campaign=words, inline=inline, params=params)


def refusal(delivery: Delivery) -> Outcome:
    outcome = render(delivery)
    assert isinstance(outcome, Outcome), outcome
    assert outcome.verdict is Verdict.FAILED
    assert not outcome.quickly_retryable
    return outcome


def title(words: str, **params: Json) -> Any:
    return body(of_campaign(Content(title=words), **params))["notification"]["title"]


def test_inline_content_wins_over_the_campaigns_field_by_field() -> None:
    campaign = Content(title="Thank you", body="Order {order_id} is paid", image="https://shop.example/paid.png")

    rendered = body(of_campaign(campaign, Content(body="It is paid"), order_id=42))

    assert rendered["notification"] == {
        "title": "Thank you",
        "body": "It is paid",
        "image": "https://shop.example/paid.png",
    }


def test_an_empty_inline_field_wins_too() -> None:
    assert body(of_campaign(Content(title="Thank you"), Content(title="")))["notification"] == {"title": ""}


def test_data_are_merged_by_key_and_the_inline_value_wins() -> None:
    campaign = Content(data={"screen": "orders", "sound": "bell"})

    rendered = body(of_campaign(campaign, Content(data={"screen": "order", "order": "42"})))

    assert rendered["data"] == {"screen": "order", "sound": "bell", "order": "42", **ID}


def test_the_message_is_merged_deeply_and_last() -> None:
    campaign = Content(title="Thank you", message={"android": {"ttl": "60s", "notification": {"color": "#ff0000"}}})
    inline = Content(message={"android": {"notification": {"color": "#00ff00"}}, "notification": {"title": "Thanks"}})

    rendered = body(of_campaign(campaign, inline))

    assert rendered["android"] == {"ttl": "60s", "notification": {"color": "#00ff00", "tag": TAG}}
    assert rendered["notification"] == {"title": "Thanks"}


def test_a_list_in_the_message_replaces_the_campaigns() -> None:
    campaign = Content(message={"webpush": {"notification": {"actions": [{"title": "{yes}"}, {"title": "No"}]}}})

    kept = body(of_campaign(campaign, yes="Oui"))
    replaced = body(of_campaign(campaign, Content(message={"webpush": {"notification": {"actions": []}}}), yes="Oui"))

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
    assert refusal(of_campaign(Content(title="{it}"), it=value)).error_code == "PARAM_MISSING"


def test_a_param_that_is_missing_fails_the_delivery_and_names_campaign_and_param() -> None:
    outcome = refusal(of_campaign(Content(body="Order {order_id} is paid")))

    assert outcome.error_code == "PARAM_MISSING"
    assert outcome.error == 'campaign "order_paid" needs the param "order_id"; given: none'


def test_the_error_names_params_but_not_their_values() -> None:
    outcome = refusal(of_campaign(Content(title="{order_id}"), phone="+49 170 555", code="s3cret"))

    assert outcome.error == 'campaign "order_paid" needs the param "order_id"; given: "code", "phone"'


@pytest.mark.parametrize("words", ["{x.__class__}", "{x[0]}", "{x!r}", "{x:>10}", "{0}", "{}", "{ x }"])
def test_a_placeholder_is_a_name_alone_and_reaches_nothing_else(words: str) -> None:
    assert refusal(of_campaign(Content(title=words), x="a")).error_code == "PARAM_MISSING"


def test_a_params_value_is_not_filled_again() -> None:
    assert title("{name}", name="{password}", password="s3cret") == "{password}"


def test_placeholders_in_inline_content_are_left_alone() -> None:
    inline = Content(title="{a}", body="{{b}}", data={"c": "{c}"}, message={"android": {"collapse_key": "{d}"}})

    rendered = body(of_campaign(Content(), inline, a="A", c="C", d="D"))

    assert rendered["notification"] == {"title": "{a}", "body": "{{b}}"}
    assert rendered["data"] == {"c": "{c}", **ID}
    assert rendered["android"]["collapse_key"] == "{d}"


def test_a_campaign_field_that_inline_content_replaces_needs_no_param() -> None:
    campaign = Content(title="{a}", body="{b}", image="{c}", data={"d": "{d}"})

    rendered = body(of_campaign(campaign, Content(title="1", body="2", image="3", data={"d": "4"})))

    assert rendered["notification"] == {"title": "1", "body": "2", "image": "3"}
    assert rendered["data"] == {"d": "4", **ID}


def test_params_fill_data_and_message_of_the_campaign_and_no_key() -> None:
    campaign = Content(data={"{order}": "{order}"}, message={"android": {"{order}": ["{order}", 1, None]}})

    rendered = body(of_campaign(campaign, order=42))

    assert rendered["data"] == {"{order}": "42", **ID}
    assert rendered["android"]["{order}"] == ["42", 1, None]


@pytest.mark.parametrize("kind", ADDRESSES)
def test_the_address_is_under_its_kind(kind: str) -> None:
    message = render(replace(DELIVERY, kind=kind, address=ADDRESSES[kind]))

    assert isinstance(message, Message)
    assert message.kind == kind
    assert {each: message.body[each] for each in ADDRESSES if each in message.body} == {kind: ADDRESSES[kind]}


def test_a_topic_may_come_with_the_prefix_that_googles_own_libraries_drop() -> None:
    assert body(replace(DELIVERY, kind="topic", address="/topics/news"))["topic"] == "news"


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        ("great tents", '"great tents"'),
        ("zelte/größe", '"zelte/größe"'),
        ("/topics/private/news", '"private/news"'),
        ("tents!" * 100, '"' + ("tents!" * 100)[:100] + '"'),
    ],
)
def test_a_topic_with_a_letter_that_fcm_does_not_take_is_refused(topic: str, shown: str) -> None:
    refused = refusal(replace(DELIVERY, kind="topic", address=topic))

    assert refused.error_code == "BAD_ADDRESS"
    assert refused.error == (
        f"{shown} is not a topic name; FCM accepts letters, digits and -_.~% (a leading /topics/ is dropped)"
    )


def terms(count: int) -> str:
    return " || ".join(f"'topic-{number}' in topics" for number in range(count))


def test_a_condition_may_have_five_topics() -> None:
    assert body(replace(DELIVERY, kind="condition", address=terms(5)))["condition"] == terms(5)


@pytest.mark.parametrize(("condition", "count"), [(terms(6), 6), (terms(100), 100), ("tents && boats", 0)])
def test_a_condition_needs_one_to_five_topics(condition: str, count: int) -> None:
    refused = refusal(replace(DELIVERY, kind="condition", address=condition))

    assert refused.error_code == "BAD_ADDRESS"
    assert refused.error == (
        f"the condition has {count} topics; FCM accepts 1 to 5 of them, such as 'tents' in topics && 'boats' in topics"
    )


@pytest.mark.parametrize("kind", ADDRESSES)
@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("not-for-your-eyes\n", "has the unprintable character U+000A"),
        ("not-for\0your-eyes", "has the unprintable character U+0000"),
        ("not-for-your-eyes\u2028", "has the unprintable character U+2028"),
    ],
)
def test_an_impossible_address_is_refused_and_not_shown(kind: str, address: str, wrong: str) -> None:
    refused = refusal(replace(DELIVERY, kind=kind, address=address))

    assert refused.error_code == "BAD_ADDRESS"
    assert (refused.error or "").startswith(f"the {kind} {wrong}; FCM accepts ")
    assert "eyes" not in (refused.error or "")


def test_a_topic_that_is_a_prefix_alone_is_empty() -> None:
    assert (refusal(replace(DELIVERY, kind="topic", address="/topics/")).error or "").startswith("the topic is empty")


@pytest.mark.parametrize("kind", ["token", "fid", "topic", "condition"])
@pytest.mark.parametrize("value", ["news", None])
def test_a_message_that_names_an_address_is_refused(kind: str, value: Json) -> None:
    inline = replace(DELIVERY, inline=Content(title="Thank you", message={kind: value}))
    campaign = of_campaign(Content(title="Thank you", message={kind: value}))

    for each in (inline, campaign):
        assert refusal(each).error_code == "MESSAGE_NAMES_AN_ADDRESS"
        assert f'"{kind}"' in (refusal(each).error or "")


@pytest.mark.parametrize(("kind", "limit"), [("token", 4096), ("fid", 4096), ("topic", 2048), ("condition", 2048)])
@pytest.mark.parametrize("letter", ["a", "ä", "🔔"])
def test_a_message_over_fcms_size_in_bytes_is_refused(kind: str, limit: int, letter: str) -> None:
    room = limit - len("titlebodynotification_id42" + "Hello")
    fits = letter * (room // len(letter.encode())) + "x" * (room % len(letter.encode()))

    largest = replace(DELIVERY, kind=kind, address=ADDRESSES[kind], inline=Content(title="Hello", body=fits))
    larger = replace(largest, inline=Content(title="Hello", body=fits + "x"))

    assert isinstance(render(largest), Message)
    assert refusal(larger).error_code == "MESSAGE_TOO_BIG"
    assert refusal(larger).error == f"notification and data have {limit + 1} bytes; FCM accepts {limit} for a {kind}"


def test_no_refusal_and_no_repr_holds_the_address() -> None:
    secret = replace(DELIVERY, address="fcm:not-for-your-eyes")

    assert "eyes" not in repr(secret)
    assert "eyes" not in repr(render(secret))
    assert "eyes" not in repr(render(replace(secret, inline=Content(body="x" * 5000))))


def test_rendering_does_not_change_the_campaigns_content() -> None:
    campaign = Content(data={"a": "1"}, message={"data": {"b": "2"}, "android": {"data": {"c": "3"}}})
    delivery = of_campaign(campaign, Content(title="x", message={"android": {"data": {"d": "4"}}}))

    assert body(delivery) == body(delivery)
    assert campaign == Content(data={"a": "1"}, message={"data": {"b": "2"}, "android": {"data": {"c": "3"}}})


TOO_DEEP = 3000


@pytest.mark.parametrize("depth", [10, TOO_DEEP])
@pytest.mark.parametrize("part", ["data", "message"])
def test_deeply_nested_content_renders_without_an_exception(part: str, depth: int) -> None:
    words = Content(**{part: nested(depth)})

    assert isinstance(render(of_campaign(words)), Message | Outcome)
    assert isinstance(render(of_campaign(words, words)), Message | Outcome)


@pytest.mark.parametrize("number", [float("inf"), float("-inf")])
def test_a_number_that_json_can_not_write_is_refused(number: float) -> None:
    inline = Content(message={"android": {"notification": {"vibrate": [number]}}})

    assert refusal(replace(DELIVERY, inline=inline)).error_code == "UNREADABLE"
