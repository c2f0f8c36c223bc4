"""What FCM answers, word for word where its words are known: the catalogue of successes and errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from notify_worker.model import Json

JSON: Mapping[str, str] = MappingProxyType({"Content-Type": "application/json; charset=UTF-8"})
HTML: Mapping[str, str] = MappingProxyType({"Content-Type": "text/html; charset=UTF-8"})
WWW_AUTHENTICATE = 'Bearer realm="https://accounts.google.com/", error="invalid_token"'
WRONG_CREDENTIALS = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential."
)
INVALID = "Request contains an invalid argument."
FCM = {"service": "fcm.googleapis.com", "method": "google.firebase.fcm.v1.FcmService.SendMessage"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a body and its headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)


class RefusedError(Exception):
    """A request is refused with this answer. It never leaves the sandbox."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def error(status: int, name: str, message: str, *details: Json, headers: Mapping[str, str] = JSON) -> Answer:
    """Write an error as Google's services do."""
    told: dict[str, Json] = {"code": status, "message": message, "status": name}
    if details:
        told["details"] = list(details)
    return Answer(status, json.dumps({"error": told}).encode(), headers)


def fcm_error(code: str) -> Json:
    """Write the detail that carries FCM's own code."""
    return {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}


def bad_request(path: str, description: str) -> Json:
    """Write the detail that names a field."""
    violation = {"field": path, "description": description}
    return {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}


def error_info(reason: str, domain: str = "googleapis.com") -> Json:
    """Write the detail that names a reason."""
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": domain, "metadata": FCM}


def html(status: int, says: str) -> Answer:
    """Write the page that a front end of Google's gives: no JSON at all."""
    page = f"<!DOCTYPE html>\n<html lang=en>\n<title>Error {status}</title>\n<p><b>{status}.</b> {says}\n"
    return Answer(status, page.encode(), HTML)


def malformed(path: str, description: str) -> Answer:
    """Refuse what can't be read as a request: unknown fields, wrong types. No FcmError."""
    return error(400, "INVALID_ARGUMENT", description, bad_request(path, description))


def invalid(path: str, description: str, message: str = INVALID) -> Answer:
    """Refuse what can be read and may not be sent."""
    detail = bad_request(path, description)
    return error(400, "INVALID_ARGUMENT", message, detail, fcm_error("INVALID_ARGUMENT"))


def accepted(name: str) -> Answer:
    """Say under what name the message was accepted."""
    return Answer(200, json.dumps({"name": name}).encode())


NO_TARGET = invalid("message", "Recipient of the message is not set.", "Recipient of the message is not set.")
TOO_BIG = error(400, "INVALID_ARGUMENT", "The message is too big.")
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
WRONG_PROJECT = error(
    403,
    "PERMISSION_DENIED",
    "Permission 'cloudmessaging.messages.create' denied on resource '//cloudresourcemanager.googleapis.com/projects/…' "
    "(or it may not exist).",
    error_info("IAM_PERMISSION_DENIED", "iam.googleapis.com"),
)
UNREGISTERED = error(404, "NOT_FOUND", "Requested entity was not found.", fcm_error("UNREGISTERED"))
NO_SUCH_PAGE = html(404, "The requested URL was not found on this server.")

BY_STATUS: Mapping[int, Answer] = MappingProxyType(
    {
        400: error(
            400,
            "INVALID_ARGUMENT",
            "The registration token is not a valid FCM registration token",
            fcm_error("INVALID_ARGUMENT"),
        ),
        401: EXPIRED_BEARER,
        403: error(403, "PERMISSION_DENIED", "SenderId mismatch", fcm_error("SENDER_ID_MISMATCH")),
        404: UNREGISTERED,
        429: error(429, "RESOURCE_EXHAUSTED", "Device quota exceeded.", fcm_error("QUOTA_EXCEEDED")),
        500: error(500, "INTERNAL", "Internal error encountered.", fcm_error("INTERNAL")),
        502: html(502, "The server encountered a temporary error. Please try again in 30 seconds."),
        503: error(503, "UNAVAILABLE", "The service is currently unavailable.", fcm_error("UNAVAILABLE")),
        504: error(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    }
)
"""What FCM answers for one address. 429 is the device's quota: the project's would pause everything else as well."""


def by_status(status: int) -> Answer:
    """Give FCM's answer of this status; an empty body for one that FCM is not known to give."""
    return BY_STATUS.get(status) or Answer(status, b"")
