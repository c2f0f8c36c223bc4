"""Every answer that FCM is known to give, in FCM's own words if they are known.

The functions build an answer: a status, headers, and for errors Google's JSON with its typed details. The constants are the
answers; `NAMED` gives the names that addresses and fault rates use.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import MappingProxyType

from notify_worker.model import Json

JSON: Mapping[str, str] = MappingProxyType({"Content-Type": "application/json; charset=UTF-8"})
HTML: Mapping[str, str] = MappingProxyType({"Content-Type": "text/html; charset=UTF-8"})
TEXT: Mapping[str, str] = MappingProxyType({"Content-Type": "text/plain; charset=UTF-8"})
INVALID = "Request contains an invalid argument."
FCM: Mapping[str, str] = MappingProxyType(
    {"service": "fcm.googleapis.com", "method": "google.firebase.fcm.v1.FcmService.SendMessage"}
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a body and headers. With `cut`, the connection closes in the middle of the body."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    cut: bool = False


class RefusedError(Exception):
    """Carries the answer that refuses a request. It never leaves the sandbox."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def error(status: int, name: str, message: str, *details: Json, headers: Mapping[str, str] = JSON) -> Answer:
    """Build an error in the JSON form of Google's services (google.rpc.Status)."""
    status_json: dict[str, Json] = {"code": status, "message": message, "status": name}
    if details:
        status_json["details"] = list(details)
    return Answer(status, json.dumps({"error": status_json}).encode(), headers)


def fcm_error(code: str) -> Json:
    """Build the detail with FCM's own error code."""
    return {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}


def bad_request(path: str, description: str) -> Json:
    """Build the detail that names an invalid field."""
    violation = {"field": path, "description": description}
    return {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}


def apns_error(status: int, reason: str) -> Json:
    """Build the detail with the answer of Apple's push service."""
    return {
        "@type": "type.googleapis.com/google.firebase.fcm.v1.ApnsError",
        "statusCode": status,
        "reason": reason,
    }


def error_info(reason: str, domain: str = "googleapis.com", metadata: Mapping[str, str] = FCM) -> Json:
    """Build the detail with a reason."""
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": domain,
        "metadata": dict(metadata),
    }


def quota_failure(subject: str, description: str) -> Json:
    """Build the detail that says whose quota is used up."""
    violation = {"subject": subject, "description": description}
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def help_link(description: str, url: str) -> Json:
    """Build the detail with a link to a help page."""
    return {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": description, "url": url}]}


def html(status: int, message: str) -> Answer:
    """Build the HTML page of a Google front end, without JSON."""
    page = f"<!DOCTYPE html>\n<html lang=en>\n<title>Error {status}</title>\n<p><b>{status}.</b> {message}\n"
    return Answer(status, page.encode(), HTML)


def malformed(path: str, description: str) -> Answer:
    """Refuse a body with unknown fields or wrong types. That answer has no FcmError."""
    return error(400, "INVALID_ARGUMENT", description, bad_request(path, description))


def invalid(path: str, description: str, message: str = INVALID) -> Answer:
    """Refuse a request with a value that FCM does not allow."""
    detail = bad_request(path, description)
    return error(400, "INVALID_ARGUMENT", message, detail, fcm_error("INVALID_ARGUMENT"))


def accepted(name: str) -> Answer:
    """Accept the message under this name."""
    return ok({"name": name})


def ok(content: Json) -> Answer:
    """Answer 200 with JSON."""
    return Answer(200, json.dumps(content).encode())


RETRY_AFTER = timedelta(seconds=30)
"""The `Retry-After` of a 503 that has one."""
WWW_AUTHENTICATE = 'Bearer realm="https://accounts.google.com/", error="invalid_token"'
WRONG_CREDENTIALS = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential."
)
CONSUMER = "projects/1234567890"
QUOTA_METADATA = {
    "service": "fcm.googleapis.com",
    "consumer": CONSUMER,
    "quota_metric": "fcm.googleapis.com/send_requests",
    "quota_limit": "SendsPerMinutePerProject",
    "quota_limit_value": "600000",
    "quota_unit": "1/min/{project}",
    "quota_location": "global",
}

NO_TARGET = invalid("message", "Recipient of the message is not set.", "Recipient of the message is not set.")
MALFORMED_TOKEN = error(
    400,
    "INVALID_ARGUMENT",
    "The registration token is not a valid FCM registration token",
    fcm_error("INVALID_ARGUMENT"),
)
TOO_BIG = error(400, "INVALID_ARGUMENT", "The message is too big.")
APNS_DEAD = error(
    400,
    "INVALID_ARGUMENT",
    "APNs device token is disabled.",
    apns_error(410, "Unregistered"),
    fcm_error("INVALID_ARGUMENT"),
)
NO_BEARER = error(
    401,
    "UNAUTHENTICATED",
    "Request is missing required authentication credential. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential.",
    error_info("CREDENTIALS_MISSING"),
)
UNKNOWN_BEARER = error(
    401, "UNAUTHENTICATED", WRONG_CREDENTIALS, headers={**JSON, "WWW-Authenticate": WWW_AUTHENTICATE}
)
EXPIRED_BEARER = error(401, "UNAUTHENTICATED", WRONG_CREDENTIALS, error_info("ACCESS_TOKEN_EXPIRED"))
THIRD_PARTY = error(
    401,
    "UNAUTHENTICATED",
    "Auth error from APNS or Web Push Service",
    apns_error(403, "InvalidProviderToken"),
    fcm_error("THIRD_PARTY_AUTH_ERROR"),
)
MISMATCH = error(403, "PERMISSION_DENIED", "SenderId mismatch", fcm_error("SENDER_ID_MISMATCH"))
WRONG_PROJECT = error(
    403,
    "PERMISSION_DENIED",
    "Permission 'cloudmessaging.messages.create' denied on resource '//cloudresourcemanager.googleapis.com/projects/…' "
    "(or it may not exist).",
    error_info("IAM_PERMISSION_DENIED", "iam.googleapis.com"),
)
API_PAGE = "https://console.developers.google.com/apis/api/fcm.googleapis.com/overview?project=1234567890"
API_DISABLED = error(
    403,
    "PERMISSION_DENIED",
    "Firebase Cloud Messaging API has not been used in project 1234567890 before or it is disabled. Enable it by visiting "
    f"{API_PAGE} then retry. If you enabled this API recently, wait a few minutes for the action to propagate to our "
    "systems and retry.",
    help_link("Google developers console API activation", API_PAGE),
    error_info("SERVICE_DISABLED", metadata={"service": "fcm.googleapis.com", "consumer": CONSUMER}),
)
UNREGISTERED = error(404, "NOT_FOUND", "Requested entity was not found.", fcm_error("UNREGISTERED"))
APNS_GONE = error(
    404,
    "NOT_FOUND",
    "Requested entity was not found.",
    apns_error(410, "Unregistered"),
    fcm_error("UNREGISTERED"),
)
NO_SUCH_PAGE = html(404, "The requested URL was not found on this server.")
QUOTA = error(
    429,
    "RESOURCE_EXHAUSTED",
    "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' of service "
    "'fcm.googleapis.com' for consumer 'project_number:1234567890'.",
    error_info("RATE_LIMIT_EXCEEDED", metadata=QUOTA_METADATA),
    help_link("Request a higher quota limit.", "https://cloud.google.com/docs/quotas/help/request_increase"),
)
TOPIC_QUOTA = error(
    429,
    "RESOURCE_EXHAUSTED",
    "Topic quota exceeded.",
    quota_failure("topic", "Topic quota exceeded."),
    fcm_error("QUOTA_EXCEEDED"),
)
DEVICE_QUOTA = error(
    429,
    "RESOURCE_EXHAUSTED",
    "Device quota exceeded.",
    quota_failure("device", "Device quota exceeded."),
    fcm_error("QUOTA_EXCEEDED"),
)
INTERNAL = error(500, "INTERNAL", "Internal error encountered.", fcm_error("INTERNAL"))
FRONT_END_DOWN = html(502, "The server encountered a temporary error. Please try again in 30 seconds.")
UNAVAILABLE = error(503, "UNAVAILABLE", "The service is currently unavailable.", fcm_error("UNAVAILABLE"))

NAMED: Mapping[str, Answer] = MappingProxyType(
    {
        "malformed": MALFORMED_TOKEN,
        "oldmalformed": invalid("message.token", "Invalid registration token"),
        "badfield": malformed(
            "message", "Invalid JSON payload received. Unknown name \"x\" at 'message': Cannot find field."
        ),
        "invalid": invalid("message.android.ttl", "Invalid ttl: it has to be between 0s and 2419200s"),
        "toobig": TOO_BIG,
        "apnsdead": APNS_DEAD,
        "nobearer": NO_BEARER,
        "badbearer": UNKNOWN_BEARER,
        "expiredbearer": EXPIRED_BEARER,
        "html401": html(401, "Unauthorized"),
        "thirdparty": THIRD_PARTY,
        "mismatch": MISMATCH,
        "apidisabled": API_DISABLED,
        "denied": WRONG_PROJECT,
        "dead": UNREGISTERED,
        "apnsgone": APNS_GONE,
        "html404": NO_SUCH_PAGE,
        "quota": QUOTA,
        "bare429": Answer(429, b""),
        "topicquota": TOPIC_QUOTA,
        "devicequota": DEVICE_QUOTA,
        "internal": INTERNAL,
        "empty500": Answer(500, b""),
        "html502": FRONT_END_DOWN,
    }
)
BY_STATUS: Mapping[int, Answer] = MappingProxyType(
    {
        400: error(400, "INVALID_ARGUMENT", INVALID, fcm_error("INVALID_ARGUMENT")),
        401: EXPIRED_BEARER,
        403: MISMATCH,
        404: UNREGISTERED,
        429: DEVICE_QUOTA,
        500: INTERNAL,
        502: FRONT_END_DOWN,
        503: UNAVAILABLE,
        504: error(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    }
)
"""The answers of addresses that name a status. 429 is the device's quota: the project's would pause all deliveries."""


def by_status(status: int) -> Answer:
    """Return FCM's answer with this status; with an empty body if FCM is not known to use it."""
    return BY_STATUS.get(status) or Answer(status, b"")


def unavailable_with_retry_after(*, as_date: bool) -> Answer:
    """Return the 503 with `Retry-After`, in seconds or as a date."""
    date = format_datetime((datetime.now(UTC) + RETRY_AFTER).replace(microsecond=0), usegmt=True)
    return with_retry_after(UNAVAILABLE, date if as_date else f"{RETRY_AFTER.total_seconds():.0f}")


def with_retry_after(answer: Answer, retry_after: str) -> Answer:
    """Add the header `Retry-After` to an answer."""
    return replace(answer, headers={**answer.headers, "Retry-After": retry_after})
