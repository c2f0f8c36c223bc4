"""The outcome of each answer of FCM: every row of the catalogue, and any other answer of a server."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notify_worker.model import ADDRESS_KINDS, Outcome, Pause, Scope, Verdict
from notify_worker.senders.responses import Answer, classify, parse_response

DEVICES = ("token", "fid")
MANY = ("topic", "condition")

HTML = b"<!DOCTYPE html><html lang=en><title>Error</title><p>That's an error. Try again in 30 seconds.</html>"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"

PROJECT = Pause(Scope.PROJECT)
APNS_WEB = Pause(Scope.APNS_WEB)


def of_project(seconds: float) -> Pause:
    return Pause(Scope.PROJECT, timedelta(seconds=seconds))


def of_topics(seconds: float) -> Pause:
    return Pause(Scope.TOPICS, timedelta(seconds=seconds))


def error(status: int, name: str, message: str, *details: Any) -> bytes:
    told = {"code": status, "message": message, "status": name, "details": list(details)}
    return json.dumps({"error": told}).encode()


def fcm(code: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}


def apns(status: int, reason: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.firebase.fcm.v1.ApnsError", "statusCode": status, "reason": reason}


def info(reason: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}


def bad(*fields: Any) -> dict[str, Any]:
    return {"@type": BAD_REQUEST, "fieldViolations": [{"field": field, "description": "No."} for field in fields]}


def retry_in(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def quota(subject: str, description: str = "No more.") -> dict[str, Any]:
    return {"@type": QUOTA_FAILURE, "violations": [{"subject": subject, "description": description}]}


HELP = {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": "More", "url": "https://a.example"}]}
WRONG_BEARER = "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other."
INVALID = "Request contains an invalid argument."
GONE = "Requested entity was not found."
METRIC = (
    "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' of service "
    "'fcm.googleapis.com' for consumer 'project_number:7'."
)


def answered(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Read an answer; `headers` are written with _ for -."""
    return parse_response(
        httpx.Response(status, headers={name.replace("_", "-"): text for name, text in headers.items()}), body
    )


@dataclass(frozen=True)
class Row:
    """A line of the table: what is answered, to which kinds of address, and what that comes to."""

    name: str
    status: int
    body: bytes
    verdict: Verdict
    pause: Pause | None = None
    code: str | None = None
    waits: float | None = None
    quickly_retryable: bool = False
    kinds: tuple[str, ...] = ADDRESS_KINDS
    headers: Mapping[str, str] = field(default_factory=dict)


INVALID_CODE = fcm("INVALID_ARGUMENT")
SENT, RETRY, FAILED = Verdict.SENT, Verdict.RETRY, Verdict.FAILED
UNREGISTERED, UNKNOWN, PAUSED = Verdict.UNREGISTERED, Verdict.UNKNOWN, Verdict.PAUSED


def invalid(*details: Any, message: str = INVALID) -> bytes:
    return error(400, "INVALID_ARGUMENT", message, *details)


def exhausted(*details: Any, message: str = "Quota exceeded.") -> bytes:
    return error(429, "RESOURCE_EXHAUSTED", message, *details)


def unauthenticated(*details: Any, message: str = WRONG_BEARER) -> bytes:
    return error(401, "UNAUTHENTICATED", message, *details)


NOT_VALID = "The registration token is not a valid FCM registration token"
DEAD_APNS = invalid(apns(410, "Unregistered"), INVALID_CODE, message="APNs device token is disabled.")

CATALOGUE = [
    Row("accepted", 200, b'{"name": "projects/p/messages/7"}', SENT),
    Row("accepted, cut off", 200, b'{"name": "proj', SENT),
    Row("accepted, HTML", 200, HTML, SENT),
    Row("accepted, empty", 200, b"", SENT),
    # 400
    Row("malformed token", 400, invalid(INVALID_CODE, message=NOT_VALID), UNREGISTERED, kinds=DEVICES),
    Row("malformed token, of a topic", 400, invalid(INVALID_CODE, message=NOT_VALID), FAILED, kinds=MANY),
    Row("malformed token, older", 400, invalid(INVALID_CODE, bad("message.token")), UNREGISTERED, kinds=DEVICES),
    Row("the other order", 400, invalid(bad("message.token"), INVALID_CODE), UNREGISTERED, kinds=DEVICES),
    Row("older, of a topic", 400, invalid(INVALID_CODE, bad("message.token")), FAILED, kinds=MANY),
    Row("malformed fid", 400, invalid(INVALID_CODE, bad("message.fid")), UNREGISTERED, kinds=DEVICES),
    Row("token and message", 400, invalid(INVALID_CODE, bad("message.token", "message.android.ttl")), FAILED),
    Row("two BadRequests", 400, invalid(bad("message.token"), INVALID_CODE, bad("message.data")), FAILED),
    Row("a field of a wrong type", 400, invalid(INVALID_CODE, bad("message.token", 7)), FAILED),
    Row("token, without FcmError", 400, invalid(bad("message.token"), message=NOT_VALID), FAILED),
    Row("token, with another code", 400, invalid(fcm("INTERNAL"), message=NOT_VALID), FAILED, code="INTERNAL"),
    Row(
        "no target", 400, invalid(bad("message"), INVALID_CODE, message="Recipient of the message is not set."), FAILED
    ),
    Row("data not a string", 400, invalid(bad("message.data[0].value"), message="Invalid value at 'message.…"), FAILED),
    Row("unknown field", 400, invalid(bad("message"), message="Invalid JSON payload received."), FAILED),
    Row("too big, bare", 400, error(400, "INVALID_ARGUMENT", INVALID), FAILED),
    Row("too big, in words", 400, invalid(INVALID_CODE, message="The message is too big."), FAILED),
    Row("too big, from a proxy", 413, HTML, FAILED, code="HTTP_413"),
    Row("APNs token dead", 400, DEAD_APNS, UNREGISTERED, kinds=DEVICES),
    Row("APNs token dead, of a topic", 400, DEAD_APNS, FAILED, kinds=MANY),
    Row("APNs bad token", 400, invalid(INVALID_CODE, apns(400, "BadDeviceToken")), UNREGISTERED, kinds=DEVICES),
    Row("APNs other app", 400, invalid(apns(400, "DeviceTokenNotForTopic"), INVALID_CODE), UNREGISTERED, kinds=DEVICES),
    Row("APNs, the message's fault", 400, invalid(INVALID_CODE, apns(413, "PayloadTooLarge")), FAILED),
    Row("APNs token dead and a bad field", 400, invalid(INVALID_CODE, apns(410, "Unregistered"), bad("x")), FAILED),
    Row("APNs token dead, without FcmError", 400, invalid(apns(410, "Unregistered")), FAILED),
    Row("400 empty", 400, b"", FAILED, code="HTTP_400"),
    Row("400 HTML", 400, HTML, FAILED, code="HTTP_400"),
    # 404
    Row("dead", 404, error(404, "NOT_FOUND", GONE, fcm("UNREGISTERED")), UNREGISTERED, kinds=DEVICES),
    Row("dead topic", 404, error(404, "NOT_FOUND", GONE, fcm("UNREGISTERED")), FAILED, kinds=MANY),
    Row(
        "dead at APNs",
        404,
        error(404, "NOT_FOUND", GONE, apns(410, "Unregistered"), fcm("UNREGISTERED")),
        UNREGISTERED,
        code="UNREGISTERED",
        kinds=DEVICES,
    ),
    Row("not found, without FcmError", 404, error(404, "NOT_FOUND", GONE), PAUSED, PROJECT, "NOT_FOUND"),
    Row("unknown path", 404, HTML, PAUSED, PROJECT, "HTTP_404"),
    Row("404 empty", 404, b"", PAUSED, PROJECT, "HTTP_404"),
    Row("404 cut", 404, error(404, "NOT_FOUND", GONE, fcm("UNREGISTERED"))[:-4], PAUSED, PROJECT, "HTTP_404"),
    Row("404 junk code", 404, error(404, "gone", GONE, fcm("unregistered")), PAUSED, PROJECT, "HTTP_404"),
    Row("404 a list", 404, b'["UNREGISTERED"]', PAUSED, PROJECT, "HTTP_404"),
    Row("404 a number", 404, b"7", PAUSED, PROJECT, "HTTP_404"),
    Row("404 no object", 404, b'{"error": "UNREGISTERED"}', PAUSED, PROJECT, "HTTP_404"),
    Row("404 nested too deep", 404, b"[" * 100_000, PAUSED, PROJECT, "HTTP_404"),
    # 403
    Row(
        "other sender",
        403,
        error(403, "PERMISSION_DENIED", "SenderId mismatch", fcm("SENDER_ID_MISMATCH")),
        FAILED,
        code="SENDER_ID_MISMATCH",
    ),
    Row("API off", 403, error(403, "PERMISSION_DENIED", "Off.", HELP, info("SERVICE_DISABLED")), PAUSED, PROJECT),
    Row("API off, bare", 403, error(403, "PERMISSION_DENIED", "Off.", HELP), PAUSED, PROJECT, code="PERMISSION_DENIED"),
    Row("no permission", 403, error(403, "PERMISSION_DENIED", "No.", info("IAM_PERMISSION_DENIED")), PAUSED, PROJECT),
    Row("403 HTML", 403, HTML, PAUSED, PROJECT, "HTTP_403"),
    Row("403 empty", 403, b"", PAUSED, PROJECT, "HTTP_403"),
    # 401
    Row("no bearer", 401, unauthenticated(info("CREDENTIALS_MISSING")), PAUSED, PROJECT, "CREDENTIALS_MISSING"),
    Row("garbage bearer", 401, unauthenticated(), PAUSED, PROJECT, "UNAUTHENTICATED"),
    Row("expired bearer", 401, unauthenticated(info("ACCESS_TOKEN_EXPIRED")), PAUSED, PROJECT),
    Row("401 HTML", 401, HTML, PAUSED, PROJECT, "HTTP_401"),
    Row("401 empty", 401, b"", PAUSED, PROJECT, "HTTP_401"),
    Row("401 other code", 401, unauthenticated(fcm("INVALID_ARGUMENT")), PAUSED, PROJECT, "INVALID_ARGUMENT"),
    Row(
        "APNs key",
        401,
        unauthenticated(
            apns(403, "InvalidProviderToken"),
            fcm("THIRD_PARTY_AUTH_ERROR"),
            message="Auth error from APNS or Web Push Service",
        ),
        PAUSED,
        APNS_WEB,
        "THIRD_PARTY_AUTH_ERROR",
    ),
    Row("APNs key, older", 401, unauthenticated(fcm("APNS_AUTH_ERROR")), PAUSED, APNS_WEB, "APNS_AUTH_ERROR"),
    # 429
    Row(
        "project quota",
        429,
        exhausted(info("RATE_LIMIT_EXCEEDED"), HELP, message=METRIC),
        PAUSED,
        of_project(60),
        "RATE_LIMIT_EXCEEDED",
        waits=60,
    ),
    Row("429 bare", 429, exhausted(), PAUSED, of_project(60), "RESOURCE_EXHAUSTED", waits=60),
    Row("429 HTML", 429, HTML, PAUSED, of_project(60), "HTTP_429", waits=60),
    Row("429 empty", 429, b"", PAUSED, of_project(60), "HTTP_429", waits=60),
    Row("429 empty, 7 s", 429, b"", PAUSED, of_project(7), waits=7, headers={"retry-after": "7"}),
    Row("429 empty, 0 s", 429, b"", PAUSED, of_project(1), waits=1, headers={"retry-after": "0"}),
    Row("429 empty, a year", 429, b"", PAUSED, of_project(3600), waits=3600, headers={"retry-after": "31536000"}),
    Row("429 empty, soon", 429, b"", PAUSED, of_project(60), waits=60, headers={"retry-after": "soon"}),
    Row(
        "project quota, both codes",
        429,
        exhausted(fcm("QUOTA_EXCEEDED"), info("RATE_LIMIT_EXCEEDED")),
        PAUSED,
        of_project(60),
        "QUOTA_EXCEEDED",
        waits=60,
    ),
    Row(
        "project quota, by words",
        429,
        exhausted(fcm("QUOTA_EXCEEDED"), message=METRIC),
        PAUSED,
        of_project(60),
        waits=60,
    ),
    Row(
        "project quota, by subject",
        429,
        exhausted(fcm("QUOTA_EXCEEDED"), quota("project:7")),
        PAUSED,
        of_project(60),
        waits=60,
    ),
    Row(
        "topic quota",
        429,
        exhausted(fcm("QUOTA_EXCEEDED"), message="Topic quota exceeded."),
        PAUSED,
        of_topics(60),
        waits=60,
        kinds=MANY,
    ),
    Row(
        "topic quota of a project",
        429,
        exhausted(quota("project:7", "Too many topic messages."), fcm("QUOTA_EXCEEDED")),
        PAUSED,
        of_topics(90),
        waits=90,
        kinds=MANY,
        headers={"retry-after": "90"},
    ),
    Row("quota of a topic, bare", 429, exhausted(fcm("QUOTA_EXCEEDED")), PAUSED, of_topics(60), waits=60, kinds=MANY),
    Row("quota of a device, bare", 429, exhausted(fcm("QUOTA_EXCEEDED")), RETRY, waits=60, kinds=DEVICES),
    Row(
        "device quota",
        429,
        exhausted(fcm("QUOTA_EXCEEDED"), quota("device:x", "The project sends it too much.")),
        RETRY,
        code="QUOTA_EXCEEDED",
        waits=60,
        kinds=DEVICES,
        headers={"retry-after": "9"},
    ),
    Row(
        "device quota, 90 s",
        429,
        exhausted(fcm("QUOTA_EXCEEDED")),
        RETRY,
        waits=90,
        kinds=DEVICES,
        headers={"retry-after": "90"},
    ),
    # 5xx
    Row(
        "internal",
        500,
        error(500, "INTERNAL", "Internal error encountered.", fcm("INTERNAL")),
        UNKNOWN,
        quickly_retryable=True,
    ),
    Row("500 empty", 500, b"", UNKNOWN, code="HTTP_500", quickly_retryable=True),
    Row("front end down", 502, HTML, UNKNOWN, code="HTTP_502", quickly_retryable=True),
    Row("overloaded", 503, error(503, "UNAVAILABLE", "No.", fcm("UNAVAILABLE")), UNKNOWN, quickly_retryable=True),
    Row("503 HTML", 503, HTML, UNKNOWN, code="HTTP_503", quickly_retryable=True),
    Row("503, 9 s", 503, HTML, UNKNOWN, waits=9, headers={"retry-after": "9"}),
    Row("503, 0 s", 503, HTML, UNKNOWN, waits=0, headers={"retry-after": "0"}),
    Row("503, 2.5 s in the body", 503, error(503, "UNAVAILABLE", "No.", retry_in("2.5s")), UNKNOWN, waits=2.5),
    Row("503, hours in the body", 503, error(503, "UNAVAILABLE", "No.", retry_in("9999s")), UNKNOWN, waits=3600),
    Row(
        "503, soon in the body", 503, error(503, "UNAVAILABLE", "No.", retry_in("-3s")), UNKNOWN, quickly_retryable=True
    ),
    Row(
        "503, 9 s, and 2.5 s in the body",
        503,
        error(503, "UNAVAILABLE", "No.", retry_in("2.5s")),
        UNKNOWN,
        waits=9,
        headers={"retry-after": "9"},
    ),
    Row("429, 7 s in the body", 429, exhausted(retry_in("7s")), PAUSED, of_project(7), waits=7),
    Row("503, soon", 503, HTML, UNKNOWN, quickly_retryable=True, headers={"retry-after": "soon"}),
    Row(
        "deadline",
        504,
        error(504, "DEADLINE_EXCEEDED", "No."),
        UNKNOWN,
        code="DEADLINE_EXCEEDED",
        quickly_retryable=True,
    ),
    Row("503 that says gone", 503, error(503, "NOT_FOUND", GONE, fcm("UNREGISTERED")), UNKNOWN, quickly_retryable=True),
    Row("503 that says quota", 503, exhausted(fcm("QUOTA_EXCEEDED")), UNKNOWN, quickly_retryable=True),
    Row(
        "details of wrong types",
        503,
        error(
            503, "UNAVAILABLE", "No.", None, 7, [], fcm(None), fcm(["UNREGISTERED"]), {"@type": 7}, quota("x") | bad()
        ),
        UNKNOWN,
        code="UNAVAILABLE",
        quickly_retryable=True,
    ),
    Row(
        "details no list", 503, b'{"error": {"details": {"@type": "x"}, "message": 7}}', UNKNOWN, quickly_retryable=True
    ),
    # others
    Row("408", 408, HTML, UNKNOWN, code="HTTP_408"),
    Row("redirect", 307, b"", PAUSED, PROJECT, "HTTP_307"),
    Row("405", 405, HTML, PAUSED, PROJECT, "HTTP_405"),
    Row("410", 410, error(410, "GONE", "Gone."), PAUSED, PROJECT, "GONE"),
    Row("204", 204, b"", UNKNOWN, code="HTTP_204"),
]


@pytest.mark.parametrize(
    ("row", "kind"), [pytest.param(row, kind, id=f"{row.name}, {kind}") for row in CATALOGUE for kind in row.kinds]
)
def test_each_answer_has_the_outcome_of_the_table(row: Row, kind: str) -> None:
    outcome = classify(answered(row.status, row.body, **row.headers), kind)

    assert (outcome.verdict, outcome.pause, outcome.quickly_retryable) == (
        row.verdict,
        row.pause,
        row.quickly_retryable,
    )
    assert outcome.asked_to_wait == (None if row.waits is None else timedelta(seconds=row.waits))
    assert outcome.http_status == row.status
    assert row.code in (None, outcome.error_code)
    assert (outcome.error is None) is (row.verdict is SENT)


def test_a_sent_message_has_the_name_that_fcm_gave_it() -> None:
    outcome = classify(answered(200, b'{"name": "projects/p/messages/7"}'), "token")

    assert outcome == Outcome(SENT, http_status=200, provider_message_id="projects/p/messages/7")


NOT_OF_FCM = "6 bytes of text/html, not an error of FCM"
LOOK_AT_APNS = "Look at the APNs key and the web push certificate in the Firebase console, Cloud Messaging."


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (400, invalid(message="Bad value."), "400 INVALID_ARGUMENT: Bad value"),
        (502, b"<html>", f"502 HTTP_502: {NOT_OF_FCM}"),
        (
            401,
            unauthenticated(message="No."),
            "401 UNAUTHENTICATED: No. Look at the project's credentials: FCM refuses every token that they give.",
        ),
        (404, b"<html>", f"404 HTTP_404: {NOT_OF_FCM}. Look at firebase_project_id, and at NOTIFY_WORKER_FCM_URL."),
        (
            307,
            b"<html>",
            f"307 HTTP_307: {NOT_OF_FCM}. Look at NOTIFY_WORKER_FCM_URL, and for a proxy that answers in FCM's place.",
        ),
        (429, exhausted(), "429 RESOURCE_EXHAUSTED: Quota exceeded"),
        (503, b"", "503 HTTP_503: an empty body"),
        (400, invalid(bad("message.token"), message="Wrong."), "400 INVALID_ARGUMENT: Wrong (message.token: No.)"),
        (400, invalid(bad("message.token"), message="No. And no again."), "400 INVALID_ARGUMENT: No. And no again"),
        (
            401,
            unauthenticated(fcm("THIRD_PARTY_AUTH_ERROR"), message="No."),
            f"401 THIRD_PARTY_AUTH_ERROR: No. {LOOK_AT_APNS}",
        ),
    ],
)
def test_an_error_says_what_happened_and_where_to_check(status: int, body: bytes, text: str) -> None:
    assert classify(answered(status, body, content_type="text/html"), "token").error == text


# ── Retry-After ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000", ""])
def test_a_retry_after_date_may_write_its_zone_in_any_way(zone: str) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True).removesuffix("GMT") + zone

    waits = classify(answered(503, HTML, retry_after=at), "token").asked_to_wait

    assert waits is not None
    assert timedelta(seconds=90) < waits <= timedelta(seconds=100)


@pytest.mark.parametrize(("status", "waits"), [(503, 0), (429, 1)])
def test_a_date_in_the_past_asks_for_no_wait_and_a_429_waits_all_the_same(status: int, waits: float) -> None:
    outcome = classify(answered(status, b"", retry_after="Sun, 06 Nov 1994 08:49:37 GMT"), "token")

    assert outcome.asked_to_wait == timedelta(seconds=waits)


# ── whatever else ───────────────────────────────────────────────────────────────────────────────────────────────────────

KEYS = st.sampled_from(
    ["error", "details", "@type", "errorCode", "reason", "message", "status", "name", "fieldViolations", "field"]
)
TYPES = (*(each["@type"] for each in (fcm(0), apns(0, ""), info(""), retry_in(""))), BAD_REQUEST, QUOTA_FAILURE)
CODES = ("UNREGISTERED", "INVALID_ARGUMENT", "QUOTA_EXCEEDED", "THIRD_PARTY_AUTH_ERROR", "Unregistered")
WORDS = st.sampled_from([*TYPES, *CODES, "message.token", "the registration token", "project", "topic"])
DELAYS = st.from_regex(r"-?\d{0,13}(\.\d{0,10})?s?", fullmatch=True)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | WORDS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(), inner, max_size=4),
    max_leaves=12,
)
DETAILS = st.lists(
    st.fixed_dictionaries({"@type": WORDS}, optional={"errorCode": WORDS, "reason": WORDS, "retryDelay": DELAYS})
    | JSON_VALUES
)
ERRORS = st.builds(lambda details, message: {"error": {"details": details, "message": message}}, DETAILS, JSON_VALUES)
BODIES = st.binary() | JSON_VALUES.map(json.dumps).map(str.encode) | ERRORS.map(json.dumps).map(str.encode)
DATES = st.from_regex(r"\w{3}, \d{1,9} (Nov|Jan) -?\d{1,12} \d\d:\d\d(:\d\d)?( [-+]?\d{1,9}| GMT)?", fullmatch=True)
HEADERS = st.fixed_dictionaries(
    {}, optional={b"retry-after": st.binary() | (st.text() | DATES).map(str.encode), b"content-type": st.binary()}
)


@given(status=st.integers(100, 999), body=BODIES, headers=HEADERS, kind=st.sampled_from(ADDRESS_KINDS))
def test_any_answer_has_a_consistent_outcome(status: int, body: bytes, headers: dict[bytes, bytes], kind: str) -> None:
    outcome = classify(parse_response(httpx.Response(status, headers=list(headers.items())), body), kind)

    assert (outcome.verdict is SENT) is (status == 200)
    assert outcome.verdict is UNKNOWN or not 500 <= status <= 599
    assert outcome.verdict is not UNREGISTERED or (status in (400, 404) and kind in DEVICES)
    assert (outcome.pause is not None) is (outcome.verdict is PAUSED)
    assert outcome.asked_to_wait is None or timedelta() <= outcome.asked_to_wait <= timedelta(hours=1)


@given(
    details=st.permutations([INVALID_CODE, bad("message.token"), apns(410, "Unregistered"), info("X"), HELP, None, 7])
)
def test_details_may_stand_in_any_order(details: list[Any]) -> None:
    assert classify(answered(400, invalid(*details)), "token").verdict is UNREGISTERED
