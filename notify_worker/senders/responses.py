"""FCM's responses: parsed, then classified by HTTP status first, by details second, by text last.

Pure. A body need not be JSON, and JSON need not be FCM's: details can be missing, of any type and in any order, and a proxy
may answer in HTML.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import MappingProxyType

import httpx

from notify_worker.model import DEVICE_KINDS, Json, Outcome, Pause, Scope, Verdict

QUOTA_WAIT = timedelta(seconds=60)
"""The wait after a 429 without a Retry-After: firebase.google.com/docs/cloud-messaging/scale-fcm"""

SHORTEST_PAUSE = timedelta(seconds=1)
"""The shortest pause after a 429, even if its Retry-After is zero or in the past."""

LONGEST_WAIT = timedelta(hours=1)
"""The longest wait that a Retry-After can ask for: a mistake in a header must not stop a project for a year."""

ADDRESS_FIELDS = ("message.token", "message.fid")

DEAD_AT_APNS = ("Unregistered", "BadDeviceToken", "DeviceTokenNotForTopic")
"""Apple's reasons that concern the device's token: its page "Handling notification responses from APNs"."""

MISCONFIGURED = Pause(Scope.PROJECT)
"""The project is misconfigured: none of its messages is sent until a probe succeeds."""

HINTS: Mapping[int, str] = MappingProxyType(
    {
        401: "Look at the project's credentials: FCM refuses every token that they give.",
        403: "Look whether the FCM API is enabled and the service account has the role "
        "Firebase Cloud Messaging API Admin.",
        404: "Look at firebase_project_id, and at NOTIFY_WORKER_FCM_URL.",
    }
)
APNS_HINT = "Look at the APNs key and the web push certificate in the Firebase console, Cloud Messaging."
OTHER_HINT = "Look at NOTIFY_WORKER_FCM_URL, and for a proxy that answers in FCM's place."


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of FCM, as far as it can be parsed."""

    status: int
    message: str
    """Its message, for people."""
    code: str
    """The most specific code in it."""
    fcm_code: str | None
    """The code in the FcmError, which only FCM itself sends."""
    reason: str | None
    """The reason in the ErrorInfo, which Google's front end sends too."""
    apns_reason: str | None
    wrong_fields: tuple[str | None, ...]
    """The fields that a BadRequest names; None stands for one that can't be read."""
    exceeded: str
    """The text of a QuotaFailure, which says whose quota is used up."""
    name: str | None
    retry_after: timedelta | None

    @property
    def is_apns_auth_error(self) -> bool:
        """Whether the project's key for Apple or for web push is refused. Our own access token is valid then."""
        return self.status == 401 and self.fcm_code in ("THIRD_PARTY_AUTH_ERROR", "APNS_AUTH_ERROR")

    @property
    def rejects_token(self) -> bool:
        """Whether the access token is missing, unknown or expired."""
        return self.status == 401 and not self.is_apns_auth_error


def classify(answer: Answer, kind: str) -> Outcome:
    """Return the outcome of an answer to a message for this kind of address."""
    verdict, pause = classify_status(answer, kind)
    if verdict is Verdict.SENT:
        return Outcome(verdict, http_status=answer.status, provider_message_id=answer.name)
    return Outcome(
        verdict,
        error=error_text(answer, pause),
        error_code=answer.code,
        http_status=answer.status,
        asked_to_wait=requested_wait(answer, pause),
        pause=pause,
        quickly_retryable=answer.status >= 500 and answer.retry_after is None,
    )


def classify_status(answer: Answer, kind: str) -> tuple[Verdict, Pause | None]:
    """Classify an answer by the table of firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode.

    A 5xx is unknown rather than retry: FCM has answered 503 to messages that it then delivered. A 404 means that the device
    is gone only if FCM itself sends it, for a device; from anything else it means that the project is misconfigured.
    """
    device = kind in DEVICE_KINDS
    found: tuple[Verdict, Pause | None]
    match answer.status, answer.fcm_code:
        case 200, _:  # also if the body is cut off
            found = Verdict.SENT, None
        case 400, "INVALID_ARGUMENT" if device and is_about_the_address(answer):
            found = Verdict.UNREGISTERED, None
        case 404, "UNREGISTERED" if device:
            found = Verdict.UNREGISTERED, None
        case ((400 | 413), _) | (403, "SENDER_ID_MISMATCH") | (404, "UNREGISTERED"):
            found = Verdict.FAILED, None
        case 401, _ if answer.is_apns_auth_error:
            found = Verdict.PAUSED, Pause(Scope.APNS_WEB)
        case 429, _:
            found = over_quota(answer, kind)
        case status, _ if 300 <= status < 500 and status != 408:
            found = Verdict.PAUSED, MISCONFIGURED
        case _:
            found = Verdict.UNKNOWN, None
    return found


def is_about_the_address(answer: Answer) -> bool:
    """Return True if a 400 is about the address alone: a wrong message gets INVALID_ARGUMENT too.

    A device is retired only if the message is certainly valid:
    firebase.google.com/docs/cloud-messaging/manage-tokens
    """
    if any(field not in ADDRESS_FIELDS for field in answer.wrong_fields):
        return False
    return bool(
        answer.wrong_fields or answer.apns_reason in DEAD_AT_APNS or "registration token" in answer.message.lower()
    )


def over_quota(answer: Answer, kind: str) -> tuple[Verdict, Pause | None]:
    """Classify a 429 by whose quota is used up: the project's, its topics', or this one device's."""
    lasts = QUOTA_WAIT if answer.retry_after is None else max(answer.retry_after, SHORTEST_PAUSE)
    if is_quota_of_project(answer):
        return Verdict.PAUSED, Pause(Scope.PROJECT, lasts)
    if kind in DEVICE_KINDS:
        return Verdict.RETRY, None
    return Verdict.PAUSED, Pause(Scope.TOPICS, lasts)


def is_quota_of_project(answer: Answer) -> bool:
    """Return True if the project's quota is used up. That answer often has no FcmError: firebase-admin-go issue 719."""
    if answer.fcm_code != "QUOTA_EXCEEDED" or answer.reason == "RATE_LIMIT_EXCEEDED":
        return True
    text = f"{answer.message} {answer.exceeded}".lower()
    return "project" in text and "device" not in text and "topic" not in text


def requested_wait(answer: Answer, pause: Pause | None) -> timedelta | None:
    """Return how long this delivery has to wait: at least a minute after a 429, also after one of the device's quota."""
    if pause is not None and pause.lasts is not None:
        return pause.lasts
    if answer.status == 429:
        return max(answer.retry_after or QUOTA_WAIT, QUOTA_WAIT)
    return answer.retry_after


def error_text(answer: Answer, pause: Pause | None) -> str:
    """Return the error for people. If it pauses the project, a hint says what to check."""
    what = f"{answer.status} {answer.code}: {answer.message}".rstrip(".")
    if answer.is_apns_auth_error:
        return f"{what}. {APNS_HINT}"
    return f"{what}. {HINTS.get(answer.status, OTHER_HINT)}" if pause == MISCONFIGURED else what


def parse_response(response: httpx.Response, body: bytes) -> Answer:
    """Parse a response as far as possible."""
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
        message=with_fields(text_in(found, "error", "message") or nothing, fields),
        code=fcm_code or reason or code_in(found, "error", "status") or f"HTTP_{response.status_code}",
        fcm_code=fcm_code,
        reason=reason,
        apns_reason=next(filter(None, apns_reasons), None),
        wrong_fields=tuple(text_in(each, "field") for each in fields),
        exceeded=" ".join(text_in(each, key) or "" for each in quotas for key in ("subject", "description")),
        name=text_in(found, "name"),
        retry_after=retry_delay(found) if in_header is None else in_header,
    )


def with_fields(message: str, fields: list[Json]) -> str:
    """Add the wrong fields with their descriptions, unless the message contains these already."""
    more = [f"{text_in(each, 'field') or '?'}: {text_in(each, 'description') or '?'}" for each in fields]
    new = [each for each in more if each.partition(": ")[2] not in message]
    return f"{message.rstrip('.')} ({'; '.join(new)})" if new else message


def parse(body: bytes) -> Json:
    """Parse JSON; return None if the body is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def text_in(found: Json, *path: str) -> str | None:
    """Return the text at this path of keys; None if there is none."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def code_in(found: Json, *path: str) -> str | None:
    """Return the code at this path of keys, such as NOT_FOUND; None for any other text."""
    text = text_in(found, *path)
    return text if text and re.fullmatch("[A-Z][A-Z0-9_]{1,62}", text) else None


def details(found: Json, kind: str) -> list[Json]:
    """Return the error's details of this type."""
    match found:
        case {"error": {"details": [*all_details]}}:
            return [each for each in all_details if (text_in(each, "@type") or "").endswith(kind)]
    return []


def first_code(found: Json, kind: str, key: str) -> str | None:
    """Return the first code under this key in the details of this type."""
    return next(filter(None, (code_in(each, key) for each in details(found, kind))), None)


def violations(found: Json, kind: str, key: str) -> list[Json]:
    """Return the items of the lists under this key in the details of this type."""
    lists = [each[key] for each in details(found, kind) if isinstance(each.get(key), list)]
    return [violation for each in lists for violation in each]


def retry_after(text: str, answered_at: str) -> timedelta | None:
    """Parse a Retry-After: seconds, or a date by the server's clock. Returns None if it can't be parsed."""
    try:
        if text.isdecimal():
            return timedelta(seconds=min(int(text), LONGEST_WAIT.total_seconds()))
        left = moment(text) - (moment(answered_at) if answered_at else datetime.now(UTC))
    except (ValueError, OverflowError):
        return None
    return min(max(left, timedelta()), LONGEST_WAIT)


def retry_delay(found: Json) -> timedelta | None:
    """Parse a RetryInfo, which Google's APIs may send in place of a Retry-After: google.aip.dev/194."""
    for each in details(found, "google.rpc.RetryInfo"):
        text = text_in(each, "retryDelay") or ""
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?s", text):
            return min(timedelta(seconds=float(text[:-1])), LONGEST_WAIT)
    return None


def moment(date: str) -> datetime:
    """Parse a date in HTTP's format. Raises ValueError if it is not one."""
    read = parsedate_to_datetime(date)
    return read if read.tzinfo else read.replace(tzinfo=UTC)
