"""FCM's rules for a message beyond the types of its fields: one target, sizes, reserved keys, ranges, patterns."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from notify_worker.model import ADDRESS_KINDS, Json
from notify_worker.sandbox.answers import NO_TARGET, TOO_BIG, RefusedError, error, invalid, malformed
from notify_worker.sandbox.fields import REQUEST

RESERVED = frozenset({"from", "message_type", "notification"})
RESERVED_PREFIXES = ("google", "gcm")
LONGEST_TTL = 28 * 24 * 60 * 60
LARGEST = {"token": 4096, "fid": 4096, "topic": 2048, "condition": 2048}
TOPIC = re.compile(r"[a-zA-Z0-9\-_.~%]+")
LABEL = re.compile(r"[a-zA-Z0-9\-_.~%]{1,50}")
COLOR = re.compile(r"#[0-9a-fA-F]{6}")
TERM = re.compile(r"'[a-zA-Z0-9\-_.~%]+'\s+in\s+topics")
BETWEEN_TERMS = re.compile(r"[\s()!&|]*")
MOST_TERMS = 5


@dataclass(frozen=True, slots=True)
class Request:
    """A send request that FCM would accept."""

    kind: str
    address: str = field(repr=False)
    message: Mapping[str, Json] = field(repr=False)
    validate_only: bool


def read(body: bytes) -> Request:
    """Parse a send request. Raises RefusedError with FCM's answer."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as broken:
        text = "Invalid JSON payload received. Unexpected end of string or token."
        raise RefusedError(error(400, "INVALID_ARGUMENT", text)) from broken
    request = REQUEST(asked, "")
    message = request.get("message", {})
    kind = target(message)
    for check in (data_keys, ttl, labels, color, topic, condition):
        check(message)
    if size(message) > LARGEST[kind]:
        raise RefusedError(TOO_BIG)
    return Request(kind, message[kind], message, request.get("validate_only", False))


def target(message: Mapping[str, Json]) -> str:
    """Return the kind of address that the message has. Raises RefusedError unless it has exactly one."""
    kinds = [kind for kind in message if kind in ADDRESS_KINDS and message[kind]]
    if not kinds:
        raise RefusedError(NO_TARGET)
    if len(kinds) > 1:
        taken = f"oneof field 'target' is already set. Cannot set '{kinds[1]}'"
        raise RefusedError(malformed("message", f"Invalid value at 'message' (oneof), {taken}"))
    return kinds[0]


def refuse(path: str, description: str) -> RefusedError:
    """Build the refusal of a field's value."""
    return RefusedError(invalid(f"message.{path}", description))


def data_keys(message: Mapping[str, Json]) -> None:
    """Refuse data keys that FCM reserves, by the stricter reading of its documentation."""
    for path, part in (
        ("data", message),
        ("android.data", message.get("android")),
        ("webpush.data", message.get("webpush")),
    ):
        for key in (part or {}).get("data", ()):
            if key in RESERVED or key.startswith(RESERVED_PREFIXES):
                raise refuse(path, f"Invalid data payload key: {key}")


def ttl(message: Mapping[str, Json]) -> None:
    """Refuse an android.ttl outside 0 s to 28 days."""
    if not 0 <= message.get("android", {}).get("ttl", 0) <= LONGEST_TTL:
        raise refuse("android.ttl", f"Invalid ttl: it has to be between 0s and {LONGEST_TTL}s")


def labels(message: Mapping[str, Json]) -> None:
    """Refuse an analytics label with forbidden characters, or longer than 50."""
    for path, part in (
        ("", message),
        *((name + ".", message.get(name, {})) for name in ("android", "apns", "webpush")),
    ):
        label = part.get("fcm_options", {}).get("analytics_label")
        if label is not None and not LABEL.fullmatch(label):
            raise refuse(f"{path}fcm_options.analytics_label", "Invalid analytics label")


def color(message: Mapping[str, Json]) -> None:
    """Refuse a colour other than #rrggbb."""
    asked = message.get("android", {}).get("notification", {}).get("color")
    if asked is not None and not COLOR.fullmatch(asked):
        raise refuse("android.notification.color", "Invalid color: it has to be #rrggbb")


def topic(message: Mapping[str, Json]) -> None:
    """Refuse a topic with forbidden characters, such as those of the prefix /topics/."""
    if message.get("topic") and not TOPIC.fullmatch(message["topic"]):
        raise refuse("topic", "Malformed topic name")


def condition(message: Mapping[str, Json]) -> None:
    """Refuse a condition that does not consist of one to five topics."""
    asked = message.get("condition")
    if not asked:
        return
    between, terms = TERM.subn("", asked)
    if not terms or not BETWEEN_TERMS.fullmatch(between):
        raise refuse("condition", "Invalid condition expression provided.")
    if terms > MOST_TERMS:
        raise refuse("condition", f"Invalid condition: it has {terms} topics, at most {MOST_TERMS} are allowed")


def size(message: Mapping[str, Json]) -> int:
    """Count the bytes of keys and values in `data` and `notification`. FCM does not document exactly what it counts."""
    parts = (message.get("data"), message.get("notification"))
    return sum(len(f"{key}{value}".encode(errors="replace")) for part in parts if part for key, value in part.items())
