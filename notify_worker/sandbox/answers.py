"""How FCM writes its answers: a status, a body, and for errors Google's JSON with details of several types."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A status, a body and its headers; one that is cut ends in the middle of its body, and the connection with it."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    cut: bool = False


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


def apns_error(status: int, reason: str) -> Json:
    """Write the detail that carries what Apple said."""
    return {
        "@type": "type.googleapis.com/google.firebase.fcm.v1.ApnsError",
        "statusCode": status,
        "reason": reason,
    }


def error_info(reason: str, domain: str = "googleapis.com", metadata: Mapping[str, str] = FCM) -> Json:
    """Write the detail that names a reason."""
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": domain,
        "metadata": dict(metadata),
    }


def quota_failure(subject: str, description: str) -> Json:
    """Write the detail that says whose quota is used up."""
    violation = {"subject": subject, "description": description}
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def help_link(description: str, url: str) -> Json:
    """Write the detail that leads to a page for people."""
    return {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": description, "url": url}]}


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
    return told({"name": name})


def told(what: Json) -> Answer:
    """Answer well, with JSON."""
    return Answer(200, json.dumps(what).encode())
