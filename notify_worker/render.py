"""Turn a campaign's words and a notification's params into the message that FCM is given.

Pure: no clock, no database, no network. A placeholder is `{name}` alone: `str.format` would reach attributes of objects.
"""

import json
import re
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from notify_worker.model import ADDRESS_KINDS, UNREADABLE, Delivery, Json, Message, Outcome, Verdict, Words
from notify_worker.stamp import merged, part, stamped

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
BYTES_OF_A_MESSAGE = {"token": 4096, "fid": 4096, "topic": 2048, "condition": 2048}
"""What FCM takes, keys and values of words and data: firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode"""

TOPIC = re.compile(r"[a-zA-Z0-9\-_.~%]+")
IN_TOPICS = re.compile(r"\bin\s+topics\b")
MOST_TOPICS = 5
TAKEN = {
    "token": "a registration token just as the app reported it",
    "fid": "a Firebase Installation ID just as the app reported it",
    "topic": "letters, digits and -_.~% (a leading /topics/ is dropped)",
    "condition": f"1 to {MOST_TOPICS} of them, such as 'tents' in topics && 'boats' in topics",
}
"""What an address may be: firebase.google.com/docs/cloud-messaging/send/v1-api"""

DEEPEST = 50
UNSENDABLE = (UNREADABLE, inf, -inf)
"""What JSON can't write, though Postgres holds it: Python reads a number of 400 digits and a fraction as infinite."""


class Unrenderable(Exception):
    """What keeps this module's steps from making a message. Never leaves it: `render` makes an outcome of it."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def render(delivery: Delivery) -> Message | Outcome:
    """Make the message of a delivery, or say why there can't be one: a param missing, or more bytes than FCM takes."""
    try:
        check_depth(delivery)
        words = chosen(delivery)
        body = stamped(assembled(delivery, words), delivery)
        check_size(delivery.kind, body)
    except Unrenderable as error:
        return Outcome(Verdict.FAILED, error=str(error), error_code=error.code)
    return Message(kind=delivery.kind, body=body)


def check_depth(delivery: Delivery) -> None:
    """Refuse what can't be read, or is nested so deeply that to walk it could break the worker."""
    level: list[Json] = [
        delivery.params,
        *((words.data, words.message) for words in (delivery.inline, delivery.campaign) if words is not None),
    ]
    for _ in range(DEEPEST):
        if any(each in level for each in UNSENDABLE):
            break
        level = [each for value in level for each in parts(value)]
        if not level:
            return
    raise Unrenderable(
        "UNREADABLE", f"params, data or message can't be read: a number too long, or nested deeper than {DEEPEST}"
    )


def parts(value: Json) -> Iterable[Json]:
    """Give what an object or an array holds."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def chosen(delivery: Delivery) -> Words:
    """Take the inline words where there are any, the campaign's elsewhere, with its placeholders filled."""
    inline = delivery.inline
    if delivery.campaign is None:
        return inline
    campaign = filled(delivery.campaign, delivery)
    return Words(
        title=campaign.title if inline.title is None else inline.title,
        body=campaign.body if inline.body is None else inline.body,
        image=campaign.image if inline.image is None else inline.image,
        data={**(campaign.data or {}), **(inline.data or {})},
        message=merged(campaign.message or {}, inline.message or {}),
    )


def filled(campaign: Words, delivery: Delivery) -> Words:
    """Fill the placeholders of a campaign; of a word that the notification brings itself, none is needed."""

    def fill(value: Json) -> Any:
        if isinstance(value, str):
            return PLACEHOLDER.sub(lambda found: param(found, delivery), value)
        if isinstance(value, Mapping):
            return {key: fill(each) for key, each in value.items()}
        return [fill(each) for each in value] if isinstance(value, list) else value

    inline = delivery.inline
    return Words(
        title=fill(campaign.title) if inline.title is None else None,
        body=fill(campaign.body) if inline.body is None else None,
        image=fill(campaign.image) if inline.image is None else None,
        data=fill({key: value for key, value in (campaign.data or {}).items() if key not in (inline.data or {})}),
        message=fill(campaign.message),
    )


def param(found: re.Match[str], delivery: Delivery) -> str:
    """Write what stands for one placeholder: `{{` and `}}` are braces, numbers and booleans are written as in JSON."""
    name = found.group(1)
    if name is None:
        return found.group()[0]
    value = delivery.params.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return str(value)
    given = ", ".join(f'"{each}"' for each in sorted(delivery.params)) or "none"
    raise Unrenderable(
        "PARAM_MISSING", f'campaign "{delivery.campaign_name}" needs the param "{name[:100]}"; given: {given[:200]}'
    )


def assembled(delivery: Delivery, words: Words) -> dict[str, Json]:
    """Put the words into FCM's shape: what is common first, the caller's own fields over it."""
    notification = {"title": words.title, "body": words.body, "image": words.image}
    notification = {key: value for key, value in notification.items() if value is not None}
    common: dict[str, Json] = {"notification": notification} if notification else {}
    if words.data:
        common["data"] = dict(words.data)
    body = merged(common, words.message or {})
    for kind in ADDRESS_KINDS:
        if kind in body:
            raise Unrenderable(
                "MESSAGE_NAMES_AN_ADDRESS", f'message can\'t have the field "{kind}": the address stands beside it'
            )
    return {delivery.kind: address(delivery), **body}


def address(delivery: Delivery) -> str:
    """Read the address as FCM takes it. A refusal shows no more than a topic: who has a token can be told by it."""
    kind = delivery.kind
    given = delivery.address.removeprefix("/topics/") if kind == "topic" else delivery.address
    if wrong := wrong_with(kind, given):
        raise Unrenderable("BAD_ADDRESS", f"{wrong}; FCM takes {TAKEN[kind]}")
    return given


def wrong_with(kind: str, address: str) -> str | None:
    """Say what keeps FCM from taking this address, where that can be seen."""
    strange = next((letter for letter in address if not letter.isprintable()), None)
    if strange is not None:
        return f"the {kind} has the unprintable character U+{ord(strange):04X}"
    if not address.strip():
        return f"the {kind} is empty"
    if kind == "topic" and not TOPIC.fullmatch(address):
        return f'"{address[:100]}" is no name of a topic'
    topics = len(IN_TOPICS.findall(address))
    if kind == "condition" and not 1 <= topics <= MOST_TOPICS:
        return f"the condition has {topics} topics"
    return None


def check_size(kind: str, body: Mapping[str, Json]) -> None:
    """Refuse what FCM would refuse: it counts keys and values of words and data."""
    counted = [*part(body, "notification").items(), *part(body, "data").items()]
    size = sum(len(f"{key}{value}".encode()) for key, value in counted)
    if size > BYTES_OF_A_MESSAGE[kind]:
        raise Unrenderable(
            "MESSAGE_TOO_BIG", f"words and data take {size} bytes; FCM takes {BYTES_OF_A_MESSAGE[kind]} for a {kind}"
        )
