"""The fields of an FCM request and their types, parsed as proto3 JSON: refuses what Google's parser refuses.

Names may be in `snake_case` or `lowerCamelCase`; the result has snake_case names. Null fields are left out.
"""

import json
import re
from collections.abc import Callable, Mapping

from notify_worker.model import Json
from notify_worker.sandbox.answers import RefusedError, malformed

Read = Callable[[Json, str], Json]
"""Takes a value and its path, returns the parsed value; raises RefusedError."""


def wrong(path: str, wanted: str, value: Json) -> RefusedError:
    """Build the refusal of a value's type."""
    return RefusedError(malformed(path, f"Invalid value at '{path}' ({wanted}), {json.dumps(value)}"))


def unknown(path: str, name: str) -> RefusedError:
    """Build the refusal of an unknown field."""
    place = f" at '{path}'" if path else ""
    return RefusedError(
        malformed(path, f"Invalid JSON payload received. Unknown name {json.dumps(name)}{place}: Cannot find field.")
    )


def of_type(wanted: str, *types: type) -> Read:
    """Parse a plain value. A boolean is not a number here, although Python's is an int."""

    def read(value: Json, path: str) -> Json:
        if type(value) not in types:
            raise wrong(path, wanted, value)
        return value

    return read


text = of_type("TYPE_STRING", str)
flag = of_type("TYPE_BOOL", bool)
whole = of_type("TYPE_INT32", int)
number = of_type("TYPE_FLOAT", int, float)
anything = of_type("google.protobuf.Struct", dict)


def text_map(value: Json, path: str) -> Json:
    """Parse a map from string to string."""
    for at, each in enumerate(anything(value, path).values()):
        text(each, f"{path}[{at}].value")
    return value


def many(item: Read) -> Read:
    """Parse a list."""

    def read(value: Json, path: str) -> Json:
        if not isinstance(value, list):
            raise wrong(path, "repeated", value)
        return [item(each, f"{path}[{at}]") for at, each in enumerate(value)]

    return read


def choice(*names: str) -> Read:
    """Parse an enum in upper or lower case: the documentation uses upper case, Google's SDKs send lower case."""

    def read(value: Json, path: str) -> Json:
        if text(value, path).upper() not in names:
            raise wrong(path, "TYPE_ENUM", value)
        return value.upper()

    return read


def duration(value: Json, path: str) -> Json:
    """Parse a duration such as `3.5s` into seconds."""
    if not re.fullmatch(r"-?\d{1,12}(\.\d{1,9})?s", text(value, path), re.ASCII):
        raise wrong(path, "google.protobuf.Duration", value)
    return float(value[:-1])


def camel(name: str) -> str:
    """Convert a name to lowerCamelCase."""
    first, *others = name.split("_")
    return first + "".join(each.capitalize() for each in others)


def record(fields: Mapping[str, Read]) -> Read:
    """Parse an object with these fields and no others."""
    known = {form: (name, read) for name, read in fields.items() for form in (name, camel(name))}

    def read(value: Json, path: str) -> Json:
        found = {}
        for name, each in anything(value, path).items():
            if name not in known:
                raise unknown(path, name)
            if each is not None:
                snake, read_field = known[name]
                found[snake] = read_field(each, f"{path}.{snake}" if path else snake)
        return found

    return read


OPTIONS = record({"analytics_label": text})
COLOR = record(dict.fromkeys(("red", "green", "blue", "alpha"), number))
LIGHTS = record({"color": COLOR, "light_on_duration": duration, "light_off_duration": duration})
ANDROID_NOTIFICATION = record(
    dict.fromkeys(("title", "body", "image", "icon", "color", "sound", "tag", "click_action", "channel_id"), text)
    | dict.fromkeys(("ticker", "event_time", "body_loc_key", "title_loc_key"), text)
    | dict.fromkeys(("sticky", "local_only", "bypass_proxy_notification"), flag)
    | dict.fromkeys(("default_sound", "default_vibrate_timings", "default_light_settings"), flag)
    | {
        "body_loc_args": many(text),
        "title_loc_args": many(text),
        "notification_priority": choice(
            "PRIORITY_UNSPECIFIED",
            "PRIORITY_MIN",
            "PRIORITY_LOW",
            "PRIORITY_DEFAULT",
            "PRIORITY_HIGH",
            "PRIORITY_MAX",
        ),
        "vibrate_timings": many(duration),
        "visibility": choice("VISIBILITY_UNSPECIFIED", "PRIVATE", "PUBLIC", "SECRET"),
        "notification_count": whole,
        "light_settings": LIGHTS,
        "proxy": choice("PROXY_UNSPECIFIED", "ALLOW", "DENY", "IF_PRIORITY_LOWERED"),
    }
)
ANDROID = record(
    {
        "collapse_key": text,
        "priority": choice("NORMAL", "HIGH"),
        "ttl": duration,
        "restricted_package_name": text,
        "data": text_map,
        "notification": ANDROID_NOTIFICATION,
        "fcm_options": OPTIONS,
        "direct_boot_ok": flag,
        "bandwidth_constrained_ok": flag,
        "restricted_satellite_ok": flag,
    }
)
APNS = record(
    {
        "headers": text_map,
        "payload": anything,
        "fcm_options": record({"analytics_label": text, "image": text}),
        "live_activity_token": text,
    }
)
WEBPUSH = record(
    {
        "headers": text_map,
        "data": text_map,
        "notification": anything,
        "fcm_options": record({"link": text, "analytics_label": text}),
    }
)
MESSAGE = record(
    {
        "name": text,
        "data": text_map,
        "notification": record({"title": text, "body": text, "image": text}),
        "android": ANDROID,
        "android_v2": anything,
        "apns": APNS,
        "webpush": WEBPUSH,
        "fcm_options": OPTIONS,
        "token": text,
        "fid": text,
        "topic": text,
        "condition": text,
    }
)
REQUEST = record({"message": MESSAGE, "validate_only": flag})
