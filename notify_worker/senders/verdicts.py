"""What FCM's answers mean: each is read, then judged by its HTTP status first, its details second, its text last.

Pure. A body is never assumed to be JSON, nor JSON to be of FCM's shape: details may be missing, come in any order and be
of any type, and what stands between may answer in HTML.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import MappingProxyType

import httpx

from notify_worker.model import Json, Outcome, Pause, Scope, Verdict

QUOTA_WAIT = timedelta(seconds=60)
"""After a 429 that names no time: firebase.google.com/docs/cloud-messaging/scale-fcm"""

SHORTEST_PAUSE = timedelta(seconds=1)
"""A 429 that asks for no wait at all, or for one until yesterday, still is a 429."""

LONGEST_WAIT = timedelta(hours=1)
"""What a Retry-After can ask for: a mistake in a header must not silence a project for a year."""

DEVICE_KINDS = ("token", "fid")
"""What names one device. Nothing that FCM says of a topic retires anything."""

ADDRESS_FIELDS = ("message.token", "message.fid")

DEAD_AT_APNS = ("Unregistered", "BadDeviceToken", "DeviceTokenNotForTopic")
"""Apple's reasons that are about the device's token: its page "Handling notification responses from APNs"."""

BADLY_SET_UP = Pause(Scope.PROJECT)
"""Nothing of the project is worth a request until a probe gets through."""

LOOK_AT: Mapping[int, str] = MappingProxyType(
    {
        401: "Look at the project's credentials: FCM refuses every token that they give.",
        403: "Look whether the FCM API is enabled and the service account has the role "
        "Firebase Cloud Messaging API Admin.",
        404: "Look at firebase_project_id, and at NOTIFY_WORKER_FCM_URL.",
    }
)
LOOK_AT_APNS = "Look at the APNs key and the web push certificate in the Firebase console, Cloud Messaging."
LOOK_BETWEEN = "Look at NOTIFY_WORKER_FCM_URL, and for a proxy that answers in FCM's place."


@dataclass(frozen=True, slots=True)
class Answer:
    """What FCM said, as far as it can be read."""

    status: int
    said: str
    """Its own words, for people."""
    code: str
    """The best code that there is."""
    fcm_code: str | None
    """The code of the FcmError: only FCM itself gives one."""
    reason: str | None
    """The reason of the ErrorInfo: what stands before FCM gives one too."""
    apns_reason: str | None
    wrong_fields: tuple[str | None, ...]
    """The fields that a BadRequest names; None: one that can't be read."""
    exceeded: str
    """What a QuotaFailure says of whose quota it was."""
    name: str | None
    retry_after: timedelta | None

    @property
    def accuses_apns(self) -> bool:
        """The key for Apple or for web push that the Firebase project keeps is refused; our own token is good."""
        return self.status == 401 and self.fcm_code in ("THIRD_PARTY_AUTH_ERROR", "APNS_AUTH_ERROR")

    @property
    def refuses_token(self) -> bool:
        """The access token is missing, unknown or over."""
        return self.status == 401 and not self.accuses_apns


def judge(answer: Answer, kind: str) -> Outcome:
    """Say what an answer to a message for this kind of address comes to."""
    verdict, pause = meaning(answer, kind)
    if verdict is Verdict.SENT:
        return Outcome(verdict, http_status=answer.status, sent_as=answer.name)
    return Outcome(
        verdict,
        error=told(answer, pause),
        error_code=answer.code,
        http_status=answer.status,
        asked_to_wait=wait(answer, pause),
        pause=pause,
        mendable=answer.status >= 500 and answer.retry_after is None,
    )


def meaning(answer: Answer, kind: str) -> tuple[Verdict, Pause | None]:
    """Look an answer up in the table of firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode.

    A 5xx is unknown and no mere retry: FCM has answered 503 for messages that it then delivered. A 404 means that the
    device is gone only where FCM itself says so; from anybody else it is the fault of the project's set-up.
    """
    device = kind in DEVICE_KINDS
    found: tuple[Verdict, Pause | None]
    match answer.status, answer.fcm_code:
        case 200, _:  # a body that is cut off takes nothing back
            found = Verdict.SENT, None
        case 400, "INVALID_ARGUMENT" if device and blames_the_address(answer):
            found = Verdict.UNREGISTERED, None
        case 404, "UNREGISTERED" if device:
            found = Verdict.UNREGISTERED, None
        case ((400 | 413), _) | (403, "SENDER_ID_MISMATCH") | (404, "UNREGISTERED"):
            found = Verdict.FAILED, None
        case 401, _ if answer.accuses_apns:
            found = Verdict.PAUSED, Pause(Scope.APNS_WEB)
        case 429, _:
            found = over_quota(answer, kind)
        case status, _ if 300 <= status < 500 and status != 408:
            found = Verdict.PAUSED, BADLY_SET_UP
        case _:
            found = Verdict.UNKNOWN, None
    return found


def blames_the_address(answer: Answer) -> bool:
    """Say whether a 400 is about the address alone. INVALID_ARGUMENT says as much of a message that is wrong.

    The device is given up only where the message is known to be good:
    firebase.google.com/docs/cloud-messaging/manage-tokens
    """
    if any(field not in ADDRESS_FIELDS for field in answer.wrong_fields):
        return False
    return bool(
        answer.wrong_fields or answer.apns_reason in DEAD_AT_APNS or "registration token" in answer.said.lower()
    )


def over_quota(answer: Answer, kind: str) -> tuple[Verdict, Pause | None]:
    """Say whose quota is used up: the project's, that of its topics, or this one device's."""
    lasts = QUOTA_WAIT if answer.retry_after is None else max(answer.retry_after, SHORTEST_PAUSE)
    if is_quota_of_project(answer):
        return Verdict.PAUSED, Pause(Scope.PROJECT, lasts)
    if kind in DEVICE_KINDS:
        return Verdict.RETRY, None
    return Verdict.PAUSED, Pause(Scope.TOPICS, lasts)


def is_quota_of_project(answer: Answer) -> bool:
    """The quota of sends per minute often comes without any FcmError: firebase-admin-go issue 719."""
    if answer.fcm_code != "QUOTA_EXCEEDED" or answer.reason == "RATE_LIMIT_EXCEEDED":
        return True
    words = f"{answer.said} {answer.exceeded}".lower()
    return "project" in words and "device" not in words and "topic" not in words


def wait(answer: Answer, pause: Pause | None) -> timedelta | None:
    """Say how long FCM wants this delivery to wait: after a 429 a minute, also where it is the device's own."""
    if pause is not None and pause.lasts is not None:
        return pause.lasts
    if answer.status == 429:
        return max(answer.retry_after or QUOTA_WAIT, QUOTA_WAIT)
    return answer.retry_after


def told(answer: Answer, pause: Pause | None) -> str:
    """Write what happened; where it stops the project, also where to look."""
    what = f"{answer.status} {answer.code}: {answer.said}".rstrip(".")
    if answer.accuses_apns:
        return f"{what}. {LOOK_AT_APNS}"
    return f"{what}. {LOOK_AT.get(answer.status, LOOK_BETWEEN)}" if pause == BADLY_SET_UP else what


def read(response: httpx.Response, body: bytes) -> Answer:
    """Read an answer, as far as it goes."""
    found = parse(body)
    fcm_code = first_code(found, "google.firebase.fcm.v1.FcmError", "errorCode")
    reason = first_code(found, "google.rpc.ErrorInfo", "reason")
    apns_reasons = [text_in(each, "reason") for each in details(found, "google.firebase.fcm.v1.ApnsError")]
    quotas = violations(found, "google.rpc.QuotaFailure", "violations")
    content_type = response.headers.get("content-type", "no content type")
    fields = violations(found, "google.rpc.BadRequest", "fieldViolations")
    nothing = f"{len(body)} bytes of {content_type}, not an error of FCM" if body else "an empty body"
    in_header = retry_after(response.headers.get("retry-after", ""), response.headers.get("date", ""))
    return Answer(
        status=response.status_code,
        said=with_fields(text_in(found, "error", "message") or nothing, fields),
        code=fcm_code or reason or code_in(found, "error", "status") or f"HTTP_{response.status_code}",
        fcm_code=fcm_code,
        reason=reason,
        apns_reason=next(filter(None, apns_reasons), None),
        wrong_fields=tuple(text_in(each, "field") for each in fields),
        exceeded=" ".join(text_in(each, key) or "" for each in quotas for key in ("subject", "description")),
        name=text_in(found, "name"),
        retry_after=retry_delay(found) if in_header is None else in_header,
    )


def with_fields(said: str, fields: list[Json]) -> str:
    """Add which field is wrong, and why, where the message itself does not say so."""
    more = [f"{text_in(each, 'field') or '?'}: {text_in(each, 'description') or '?'}" for each in fields]
    new = [each for each in more if each.partition(": ")[2] not in said]
    return f"{said.rstrip('.')} ({'; '.join(new)})" if new else said


def parse(body: bytes) -> Json:
    """Read JSON; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def text_in(found: Json, *path: str) -> str | None:
    """Follow keys to a text, where there is one."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def code_in(found: Json, *path: str) -> str | None:
    """Follow keys to a code such as NOT_FOUND; anything else is nobody's code."""
    text = text_in(found, *path)
    return text if text and re.fullmatch("[A-Z][A-Z0-9_]{1,62}", text) else None


def details(found: Json, kind: str) -> list[Json]:
    """Give the error's details of this kind."""
    match found:
        case {"error": {"details": [*all_details]}}:
            return [each for each in all_details if (text_in(each, "@type") or "").endswith(kind)]
    return []


def first_code(found: Json, kind: str, key: str) -> str | None:
    """Give the first code that stands under this key in the details of this kind."""
    return next(filter(None, (code_in(each, key) for each in details(found, kind))), None)


def violations(found: Json, kind: str, key: str) -> list[Json]:
    """Give what the lists under this key in the details of this kind hold."""
    lists = [each[key] for each in details(found, kind) if isinstance(each.get(key), list)]
    return [violation for each in lists for violation in each]


def retry_after(text: str, answered_at: str) -> timedelta | None:
    """Read a Retry-After: seconds, or a date by the clock of who sent it. None: there is none that can be read."""
    try:
        if text.isdecimal():
            return timedelta(seconds=min(int(text), LONGEST_WAIT.total_seconds()))
        left = moment(text) - (moment(answered_at) if answered_at else datetime.now(UTC))
    except (ValueError, OverflowError):
        return None
    return min(max(left, timedelta()), LONGEST_WAIT)


def retry_delay(found: Json) -> timedelta | None:
    """Read a RetryInfo, which Google's APIs may send in place of a Retry-After: google.aip.dev/194."""
    for each in details(found, "google.rpc.RetryInfo"):
        text = text_in(each, "retryDelay") or ""
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?s", text):
            return min(timedelta(seconds=float(text[:-1])), LONGEST_WAIT)
    return None


def moment(date: str) -> datetime:
    """Read a date as HTTP writes it. Raises ValueError."""
    read = parsedate_to_datetime(date)
    return read if read.tzinfo else read.replace(tzinfo=UTC)
