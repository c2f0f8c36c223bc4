"""Renders the message of a delivery from a notification's content, its campaign and its params.

Pure: no clock, no database, no network. Only `{name}` is a placeholder; `str.format` would give access to attributes.
"""

import json
import re
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from notify_worker.model import ADDRESS_KINDS, UNREADABLE, Content, Delivery, Json, Message, Outcome, Verdict
from notify_worker.pipeline.platform_fields import mapping_at, merged, with_platform_fields

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
MAX_BYTES = {"token": 4096, "fid": 4096, "topic": 2048, "condition": 2048}
"""FCM's limits for keys and values of notification and data: firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode"""

TOPIC = re.compile(r"[a-zA-Z0-9\-_.~%]+")
IN_TOPICS = re.compile(r"\bin\s+topics\b")
MAX_TOPICS = 5
ADDRESS_RULES = {
    "token": "a registration token just as the app reported it",
    "fid": "a Firebase Installation ID just as the app reported it",
    "topic": "letters, digits and -_.~% (a leading /topics/ is dropped)",
    "condition": f"1 to {MAX_TOPICS} of them, such as 'tents' in topics && 'boats' in topics",
}
"""The addresses that FCM accepts: firebase.google.com/docs/cloud-messaging/send/v1-api"""

MAX_DEPTH = 50
NOT_JSON = (UNREADABLE, inf, -inf)
"""Values that PostgreSQL stores and JSON can't hold: Python reads a number of 400 digits with a fraction as infinite."""


class Unrenderable(Exception):
    """A delivery can't be rendered. `render` turns it into an outcome."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def render(delivery: Delivery) -> Message | Outcome:
    """Return the message of a delivery, or a failed outcome, such as for a missing param or too many bytes.

    Example:
        match render(delivery):
            case Message() as message: ...
            case Outcome() as outcome: ...  # outcome.error says what is wrong
    """
    try:
        check_depth(delivery)
        content = content_of(delivery)
        body = with_platform_fields(assemble(delivery, content), delivery)
        check_size(delivery.kind, body)
    except Unrenderable as error:
        return Outcome(Verdict.FAILED, error=str(error), error_code=error.code)
    return Message(kind=delivery.kind, body=body)


def check_depth(delivery: Delivery) -> None:
    """Refuse values that can't be read, or are nested so deeply that recursion over them could break the worker."""
    level: list[Json] = [
        delivery.params,
        *((content.data, content.message) for content in (delivery.inline, delivery.campaign) if content is not None),
    ]
    for _ in range(MAX_DEPTH):
        if any(each in level for each in NOT_JSON):
            break
        level = [each for value in level for each in children(value)]
        if not level:
            return
    raise Unrenderable(
        "UNREADABLE", f"params, data or message can't be read: a number too long, or nested deeper than {MAX_DEPTH}"
    )


def children(value: Json) -> Iterable[Json]:
    """Return the values in an object or an array."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def content_of(delivery: Delivery) -> Content:
    """Return the notification's own content, completed by its campaign's with the placeholders filled.

    Placeholders in fields that the notification sets itself are not filled, since their params may be missing.
    """
    inline, campaign = delivery.inline, delivery.campaign
    if campaign is None:
        return inline

    def fill(value: Json) -> Any:
        if isinstance(value, str):
            return PLACEHOLDER.sub(lambda found: param(found, delivery), value)
        if isinstance(value, Mapping):
            return {key: fill(each) for key, each in value.items()}
        return [fill(each) for each in value] if isinstance(value, list) else value

    own_data = inline.data or {}
    return Content(
        title=fill(campaign.title) if inline.title is None else inline.title,
        body=fill(campaign.body) if inline.body is None else inline.body,
        image=fill(campaign.image) if inline.image is None else inline.image,
        data={**fill({key: text for key, text in (campaign.data or {}).items() if key not in own_data}), **own_data},
        message=merged(fill(campaign.message) or {}, inline.message or {}),
    )


def param(found: re.Match[str], delivery: Delivery) -> str:
    """Return the text for one placeholder. `{{` and `}}` are braces; numbers and booleans are written as in JSON."""
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


def assemble(delivery: Delivery, content: Content) -> dict[str, Json]:
    """Build FCM's `message` object from the content; the caller's own `message` fields win."""
    notification = {"title": content.title, "body": content.body, "image": content.image}
    notification = {key: value for key, value in notification.items() if value is not None}
    common: dict[str, Json] = {"notification": notification} if notification else {}
    if content.data:
        common["data"] = dict(content.data)
    body = merged(common, content.message or {})
    for kind in ADDRESS_KINDS:
        if kind in body:
            raise Unrenderable(
                "MESSAGE_NAMES_AN_ADDRESS",
                f'message can\'t have the field "{kind}": the address has columns of its own',
            )
    return {delivery.kind: address(delivery), **body}


def address(delivery: Delivery) -> str:
    """Return the address in FCM's form. An error quotes a topic but never a token, which identifies a person's device."""
    kind = delivery.kind
    given = delivery.address.removeprefix("/topics/") if kind == "topic" else delivery.address
    if wrong := problem_with(kind, given):
        raise Unrenderable("BAD_ADDRESS", f"{wrong}; FCM accepts {ADDRESS_RULES[kind]}")
    return given


def problem_with(kind: str, address: str) -> str | None:
    """Return the error in an address; None if it has none."""
    strange = next((letter for letter in address if not letter.isprintable()), None)
    if strange is not None:
        return f"the {kind} has the unprintable character U+{ord(strange):04X}"
    if not address.strip():
        return f"the {kind} is empty"
    if kind == "topic" and not TOPIC.fullmatch(address):
        return f'"{address[:100]}" is not a topic name'
    topics = len(IN_TOPICS.findall(address))
    if kind == "condition" and not 1 <= topics <= MAX_TOPICS:
        return f"the condition has {topics} topics"
    return None


def check_size(kind: str, body: Mapping[str, Json]) -> None:
    """Refuse a message that is too big for FCM, which counts keys and values of notification and data."""
    counted = [*mapping_at(body, "notification").items(), *mapping_at(body, "data").items()]
    size = sum(len(f"{key}{value}".encode()) for key, value in counted)
    if size > MAX_BYTES[kind]:
        raise Unrenderable(
            "MESSAGE_TOO_BIG", f"notification and data have {size} bytes; FCM accepts {MAX_BYTES[kind]} for a {kind}"
        )
