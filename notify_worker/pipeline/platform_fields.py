"""The fields that every message gets besides its content: the notification's id, a tag, a lifetime and a priority.

Pure: no clock, no database, no network. The caller's own fields win, except over the id. If the caller put another value
where FCM expects an object, the value stays, and FCM answers 400.

FCM shows a message that has anything under `notification`, so such a field is added only for the platforms in `visible_on`.
"""

from collections.abc import Mapping
from math import floor, isfinite

from notify_worker.model import Delivery, Json

FOUR_WEEKS = 28 * 24 * 60 * 60
"""The longest `ttl` that FCM accepts, in seconds."""

ANDROID_V2 = ("android_v2", "androidV2")
"""The successor of `android`, in both spellings that FCM accepts."""

PRIORITY_FIELDS: Mapping[str | None, Mapping[str, Json]] = {
    "high": {
        "android": {"priority": "HIGH"},
        "apns": {"headers": {"apns-priority": "10"}},
        "webpush": {"headers": {"Urgency": "high"}},
    },
    "normal": {
        "android": {"priority": "NORMAL"},
        "apns": {"headers": {"apns-priority": "5"}},
        "webpush": {"headers": {"Urgency": "normal"}},
    },
}

APNS_BACKGROUND = {
    "apns": {
        "headers": {"apns-priority": "5", "apns-push-type": "background"},
        "payload": {"aps": {"content-available": 1}},
    }
}
"""Apple refuses a higher priority for a message that shows nothing:
firebase.google.com/docs/cloud-messaging/customize-messages/setting-message-priority"""


def with_platform_fields(body: Mapping[str, Json], delivery: Delivery) -> Mapping[str, Json]:
    """Add the notification's id to the data, and lifetime, priority and tag unless the caller set them.

    A data message gets no tag, which would make it visible.
    """
    body = with_notification_id(body, delivery.notification_id)
    ours = merged(lifetime(delivery), PRIORITY_FIELDS.get(delivery.priority, {}))
    ours = merged(ours, tags(body, delivery.tag))
    if is_silent_on_ios(body):
        ours = merged(ours, APNS_BACKGROUND)
    return merged(without_conflicts(ours, body), body)


def with_notification_id(body: Mapping[str, Json], notification_id: int) -> Mapping[str, Json]:
    """Add the id to the common data, and to each platform's own data, which replaces the common data unless it is empty."""
    id_field = {"data": {"notification_id": str(notification_id)}}
    for platform in ("android", *ANDROID_V2, "webpush"):
        if mapping_at(mapping_at(body, platform), "data"):
            body = merged(body, {platform: id_field})
    return merged(body, id_field)


def lifetime(delivery: Delivery) -> dict[str, Json]:
    """Return the fields that make FCM keep a message until its expiry, for at most four weeks."""
    seconds = floor(max(0, min(delivery.expires_in, FOUR_WEEKS)))
    fields: dict[str, Json] = {"android": {"ttl": f"{seconds}s"}, "webpush": {"headers": {"TTL": str(seconds)}}}
    until = delivery.expires_at - max(0, delivery.expires_in - FOUR_WEEKS)
    if isfinite(until):  # without an end, FCM sets 30 days
        fields["apns"] = {"headers": {"apns-expiration": str(floor(max(0, until)))}}
    return fields


def tags(body: Mapping[str, Json], tag: str) -> dict[str, Json]:
    """Return the fields that make a second copy replace the first, for each platform that shows the message by itself."""
    tag_fields: dict[str, dict[str, Json]] = {
        "android": {"notification": {"tag": tag}},
        "apns": {"headers": {"apns-collapse-id": tag}},
        "webpush": {"notification": {"tag": tag}},
    }
    return {platform: field for platform, field in tag_fields.items() if platform in visible_on(body)}


def visible_on(body: Mapping[str, Json]) -> set[str]:
    """Return the platforms that show this message by themselves; for the others it is a data message."""
    if body.get("notification"):
        return {"android", "apns", "webpush"}
    shown = {platform for platform in ("android", "webpush") if mapping_at(body, platform).get("notification")}
    return shown | ({"apns"} if mapping_at(body, "apns", "payload", "aps").get("alert") else set())


def is_silent_on_ios(body: Mapping[str, Json]) -> bool:
    """Return whether this is a background message on iOS: the caller says so, or it has nothing to show."""
    apns = mapping_at(body, "apns")
    for name, value in mapping_at(apns, "headers").items():
        if name.lower() == "apns-push-type":
            return bool(value == "background")
    aps = mapping_at(apns, "payload", "aps")
    return not (
        body.get("notification")
        or apns.get("live_activity_token")
        or apns.get("liveActivityToken")
        or any(aps.get(key) is not None for key in ("alert", "badge", "sound"))
    )


def without_conflicts(ours: Mapping[str, Json], body: Mapping[str, Json]) -> Mapping[str, Json]:
    """Return our fields without those that conflict with the caller's.

    A caller's header wins in upper and lower case. FCM refuses `android` beside `android_v2`, which gets only the `ttl`,
    since its own type sets the priority.
    """
    ours = dict(ours)
    for platform in ("apns", "webpush"):
        theirs = {name.lower() for name in mapping_at(body, platform, "headers")}
        headers = {
            name: value for name, value in mapping_at(ours, platform, "headers").items() if name.lower() not in theirs
        }
        if platform in ours:
            ours[platform] = {**ours[platform], "headers": headers}
    successors = [name for name in ANDROID_V2 if body.get(name) is not None]
    if successors:
        ours[successors[0]] = {"ttl": ours.pop("android")["ttl"]}
    return ours


def merged(under: Mapping[str, Json], over: Mapping[str, Json]) -> dict[str, Json]:
    """Merge two objects deeply; `over` wins."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def mapping_at(body: Mapping[str, Json], *path: str) -> Mapping[str, Json]:
    """Return the object at a path of keys; an empty one if there is none."""
    for key in path:
        value = body.get(key)
        body = value if isinstance(value, Mapping) else {}
    return body
