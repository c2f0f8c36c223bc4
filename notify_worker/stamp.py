"""What each message carries besides its words: the notification's id, its tag, how long it is good for, how urgent it is.

Pure: no clock, no database, no network. All but the id lies under the caller's own fields. What a caller put where FCM
wants an object stays as it is, and FCM's 400 says so.
"""

from collections.abc import Mapping
from math import floor, isfinite

from notify_worker.model import Delivery, Json

FOUR_WEEKS = 28 * 24 * 60 * 60
"""The longest `ttl` that FCM takes, in seconds."""

ANDROID_V2 = ("android_v2", "androidV2")
"""The successor of `android`, in both spellings that FCM reads."""

URGENCY: Mapping[str | None, Mapping[str, Json]] = {
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

IN_THE_BACKGROUND = {
    "apns": {
        "headers": {"apns-priority": "5", "apns-push-type": "background"},
        "payload": {"aps": {"content-available": 1}},
    }
}
"""What shows nothing on iOS is refused with a higher priority:
firebase.google.com/docs/cloud-messaging/customize-messages/setting-message-priority"""


def stamped(body: Mapping[str, Json], delivery: Delivery) -> Mapping[str, Json]:
    """Put the notification's id into the data, and lay its time, its urgency and its tag under the caller's fields.

    What is data only stays data only: a tag would make it visible.
    """
    body = identified(body, delivery.notification_id)
    ours = merged(lifetime(delivery), URGENCY.get(delivery.priority, {}))
    ours = merged(ours, tags(body, delivery.tag))
    if is_silent_on_ios(body):
        ours = merged(ours, IN_THE_BACKGROUND)
    return merged(without_rivals(ours, body), body)


def identified(body: Mapping[str, Json], notification_id: int) -> Mapping[str, Json]:
    """Put the id into the data. A platform's own data replaces the common one, so it goes there too; empty is none."""
    marked = {"data": {"notification_id": str(notification_id)}}
    for platform in ("android", *ANDROID_V2, "webpush"):
        if part(part(body, platform), "data"):
            body = merged(body, {platform: marked})
    return merged(body, marked)


def lifetime(delivery: Delivery) -> dict[str, Json]:
    """Say how long a message may wait for its phone: as long as was left at the claim, at most four weeks."""
    seconds = floor(max(0, min(delivery.expires_in, FOUR_WEEKS)))
    fields: dict[str, Json] = {"android": {"ttl": f"{seconds}s"}, "webpush": {"headers": {"TTL": str(seconds)}}}
    until = delivery.expires_at - max(0, delivery.expires_in - FOUR_WEEKS)
    if isfinite(until):  # without an end, FCM sets 30 days
        fields["apns"] = {"headers": {"apns-expiration": str(floor(max(0, until)))}}
    return fields


def tags(body: Mapping[str, Json], tag: str) -> dict[str, Json]:
    """Say under which name a second copy replaces the first, wherever a screen shows something of it by itself."""
    places: dict[str, dict[str, Json]] = {
        "android": {"notification": {"tag": tag}},
        "apns": {"headers": {"apns-collapse-id": tag}},
        "webpush": {"notification": {"tag": tag}},
    }
    return {platform: place for platform, place in places.items() if platform in visible_on(body)}


def visible_on(body: Mapping[str, Json]) -> set[str]:
    """List the platforms that show something of this message by themselves: what is data only there must stay so."""
    if body.get("notification"):
        return {"android", "apns", "webpush"}
    shown = {platform for platform in ("android", "webpush") if part(body, platform).get("notification")}
    return shown | ({"apns"} if part(body, "apns", "payload", "aps").get("alert") else set())


def is_silent_on_ios(body: Mapping[str, Json]) -> bool:
    """Tell whether Apple has to take this message for a background one: the caller says so, or nothing else can be."""
    apns = part(body, "apns")
    for name, value in part(apns, "headers").items():
        if name.lower() == "apns-push-type":
            return bool(value == "background")
    aps = part(apns, "payload", "aps")
    return not (
        body.get("notification")
        or apns.get("live_activity_token")
        or apns.get("liveActivityToken")
        or any(aps.get(key) is not None for key in ("alert", "badge", "sound"))
    )


def without_rivals(ours: Mapping[str, Json], body: Mapping[str, Json]) -> Mapping[str, Json]:
    """Leave out of our fields what can't stand beside the caller's: FCM refuses `android` next to `android_v2`.

    A header of theirs, in whatever case, stands for ours. What `android_v2` is says how urgent it is.
    """
    ours = dict(ours)
    for platform in ("apns", "webpush"):
        theirs = {name.lower() for name in part(body, platform, "headers")}
        headers = {name: value for name, value in part(ours, platform, "headers").items() if name.lower() not in theirs}
        if platform in ours:
            ours[platform] = {**ours[platform], "headers": headers}
    successors = [name for name in ANDROID_V2 if body.get(name) is not None]
    if successors:
        ours[successors[0]] = {"ttl": ours.pop("android")["ttl"]}
    return ours


def merged(under: Mapping[str, Json], over: Mapping[str, Json]) -> dict[str, Json]:
    """Merge two objects deeply; what lies over wins."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def part(body: Mapping[str, Json], *path: str) -> Mapping[str, Json]:
    """Return an object within an object, or an empty one."""
    for key in path:
        value = body.get(key)
        body = value if isinstance(value, Mapping) else {}
    return body
