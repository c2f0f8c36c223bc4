"""The sandbox gives every answer that FCM is known to give: by address, by rate, and by switch while it runs."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from google.auth.exceptions import RefreshError

from notify_worker import sandbox
from notify_worker.errors import NotifyWorkerError
from notify_worker.sandbox import Sandbox
from notify_worker.sandbox.fcm import TokenBucket
from tests.support.fcm_client import SEND, GoogleAuthTransport, account, client_of, message_to, send
from tests.support.waiting import until


@pytest.fixture
def box(key: Path) -> Iterator[Sandbox]:
    with sandbox.start(key, seed=1) as box:
        yield box


def details(answer: httpx.Response) -> dict[str, dict[str, Any]]:
    """What an error says besides its text, by the end of its type."""
    return {each["@type"].rpartition(".")[2]: each for each in answer.json()["error"].get("details", ())}


def statuses(client: httpx.Client, *addresses: str) -> list[int]:
    return [send(client, address).status_code for address in addresses]


# By address: every row of the catalogue


@pytest.mark.parametrize(
    ("named", "says", "code", "types"),
    [
        (("malformed", 400), "The registration token is not a valid FCM", "INVALID_ARGUMENT", {"FcmError"}),
        (("oldmalformed", 400), "Request contains an invalid", "INVALID_ARGUMENT", {"FcmError", "BadRequest"}),
        (("badfield", 400), 'Invalid JSON payload received. Unknown name "x" at', None, {"BadRequest"}),
        (("invalid", 400), "Request contains an invalid", "INVALID_ARGUMENT", {"FcmError", "BadRequest"}),
        (("400", 400), "Request contains an invalid argument.", "INVALID_ARGUMENT", {"FcmError"}),
        (("toobig", 400), "The message is too big", None, set()),
        (("apnsdead", 400), "APNs device token is disabled.", "INVALID_ARGUMENT", {"FcmError", "ApnsError"}),
        (("apnsgone", 404), "Requested entity was not found.", "UNREGISTERED", {"FcmError", "ApnsError"}),
        (("dead", 404), "Requested entity was not found.", "UNREGISTERED", {"FcmError"}),
        (("mismatch", 403), "SenderId mismatch", "SENDER_ID_MISMATCH", {"FcmError"}),
        (("nobearer", 401), "Request is missing required authentication credential.", None, {"ErrorInfo"}),
        (("badbearer", 401), "Request had invalid authentication credentials.", None, set()),
        (("expiredbearer", 401), "Request had invalid authentication credentials.", None, {"ErrorInfo"}),
        (("thirdparty", 401), "Auth error from APNS or Web Push", "THIRD_PARTY_AUTH_ERROR", {"FcmError", "ApnsError"}),
        (("apidisabled", 403), "Firebase Cloud Messaging API has not been used", None, {"ErrorInfo", "Help"}),
        (("denied", 403), "Permission 'cloudmessaging.messages.create' denied", None, {"ErrorInfo"}),
        (("quota", 429), "Quota exceeded for quota metric 'Send requests'", None, {"ErrorInfo", "Help"}),
        (("topicquota", 429), "Topic quota exceeded.", "QUOTA_EXCEEDED", {"FcmError", "QuotaFailure"}),
        (("devicequota", 429), "Device quota exceeded.", "QUOTA_EXCEEDED", {"FcmError", "QuotaFailure"}),
        (("429", 429), "Device quota exceeded.", "QUOTA_EXCEEDED", {"FcmError", "QuotaFailure"}),
        (("internal", 500), "Internal error encountered.", "INTERNAL", {"FcmError"}),
        (("503", 503), "The service is currently unavailable.", "UNAVAILABLE", {"FcmError"}),
        (("504", 504), "Deadline expired", None, set()),
    ],
)
def test_an_address_asks_for_an_answer_in_json(
    open_client: httpx.Client, named: tuple[str, int], says: str, code: str | None, types: set[str]
) -> None:
    name, status = named

    answer = send(open_client, f"{name}:x")

    error = answer.json()["error"]
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert "Retry-After" not in answer.headers
    assert (answer.status_code, error["code"], error["message"].startswith(says)) == (status, status, True)
    assert (set(details(answer)), details(answer).get("FcmError", {}).get("errorCode")) == (types, code)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("oldmalformed", "BadRequest", ("fieldViolations", "message.token")),
        ("invalid", "BadRequest", ("fieldViolations", "message.android.ttl")),
        ("apnsdead", "ApnsError", (410, "Unregistered")),
        ("apnsgone", "ApnsError", (410, "Unregistered")),
        ("thirdparty", "ApnsError", (403, "InvalidProviderToken")),
        ("nobearer", "ErrorInfo", ("CREDENTIALS_MISSING", "SendMessage")),
        ("expiredbearer", "ErrorInfo", ("ACCESS_TOKEN_EXPIRED", "SendMessage")),
        ("apidisabled", "ErrorInfo", ("SERVICE_DISABLED", "googleapis.com")),
        ("denied", "ErrorInfo", ("IAM_PERMISSION_DENIED", "iam.googleapis.com")),
        ("quota", "ErrorInfo", ("RATE_LIMIT_EXCEEDED", "SendsPerMinutePerProject")),
        ("devicequota", "QuotaFailure", ("violations", "device")),
    ],
)
def test_the_details_say_why(open_client: httpx.Client, name: str, kind: str, said: tuple[Any, ...]) -> None:
    detail = json.dumps(details(send(open_client, f"{name}:x"))[kind])

    assert [json.dumps(each).strip('"') in detail for each in said] == [True] * len(said)


def test_only_a_garbage_bearer_gets_a_header_that_says_so(open_client: httpx.Client) -> None:
    named = [send(open_client, f"{name}:x").headers.get("WWW-Authenticate") for name in ("badbearer", "expiredbearer")]

    assert named == ['Bearer realm="https://accounts.google.com/", error="invalid_token"', None]


@pytest.mark.parametrize(("name", "status"), [("html401", 401), ("html404", 404), ("html502", 502), ("502", 502)])
def test_a_front_end_answers_with_a_page(open_client: httpx.Client, name: str, status: int) -> None:
    answer = send(open_client, f"{name}:x")

    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=UTF-8")
    assert answer.text.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(("name", "status"), [("bare429", 429), ("empty500", 500), ("599", 599)])
def test_an_answer_may_have_no_body(open_client: httpx.Client, name: str, status: int) -> None:
    answer = send(open_client, f"{name}:x")

    assert (answer.status_code, answer.content) == (status, b"")


def test_a_503_may_say_when_to_come_again_in_seconds_or_as_a_date(open_client: httpx.Client) -> None:
    in_seconds, as_date = send(open_client, "later503:x"), send(open_client, "datelater503:x")

    assert (in_seconds.status_code, in_seconds.headers["Retry-After"]) == (503, "30")
    assert as_date.status_code == 503
    ahead = parsedate_to_datetime(as_date.headers["Retry-After"]) - datetime.now(UTC)
    assert timedelta(seconds=27) < ahead <= timedelta(seconds=30)


def test_an_answer_that_is_cut_off_was_a_200_and_the_phone_shows_it(box: Sandbox, client: httpx.Client) -> None:
    with client.stream("POST", SEND, json=message_to("oncecut200:x")) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            answer.read()

    assert (box.accepted, box.by_status, len(box.shown)) == (1, {200: 1}, 1)
    assert send(client, "oncecut200:x").status_code == 200


def test_an_accepted_request_can_be_dropped_and_is_shown(box: Sandbox, client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        send(client, "accepteddrop:x", data={"notification_id": "1"})
    with pytest.raises(httpx.RemoteProtocolError):
        send(client, "accepteddrop:x", data={"notification_id": "1"})

    assert (box.received, box.accepted, box.doubles, box.in_flight, box.by_status) == (2, 2, 1, 0, {})


def test_an_accepted_request_that_hangs_is_shown_at_once(box: Sandbox, client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post(SEND, json=message_to("acceptedhang:x"), timeout=0.2)

    assert len(box.shown) == 1
    until("the sandbox has let go of it", lambda: box.in_flight == 0, within=5)
    assert box.by_status == {}


def test_an_accepted_request_may_be_answered_late(box: Sandbox, client: httpx.Client) -> None:
    before = monotonic()

    answer = send(client, "acceptedhang0.2:x")

    assert (answer.status_code, box.accepted, monotonic() - before >= 0.2) == (200, 1, True)


@pytest.mark.parametrize(
    ("kind", "address", "status"),
    [
        ("fid", "dead:x", 404),
        ("topic", "topicquota~news", 429),
        ("topic", "once503~news", 503),
        ("topic", "hang0.01~news", 200),
        ("topic", "news", 200),
        ("condition", "'topicquota~news' in topics && 'dead~x' in topics", 429),
        ("condition", "!('tents' in topics) && 'topicquota~news' in topics", 200),
    ],
)
def test_each_kind_of_address_can_ask_for_a_fault(
    box: Sandbox, client: httpx.Client, kind: str, address: str, status: int
) -> None:
    answer = client.post(SEND, json={"message": {kind: address, "data": {"a": "b"}}})

    assert (answer.status_code, box.requests_for(address)) == (status, 1)


# By rate


def test_a_rate_is_how_many_requests_fail(key: Path) -> None:
    with sandbox.start(key, seed=7, fail={"503": 0.2, "quota": 0.1}) as box, client_of(box) as client:
        answers = statuses(client, *["phone"] * 400)

    assert 0.14 < answers.count(503) / 400 < 0.26
    assert 0.06 < answers.count(429) / 400 < 0.14
    assert (box.accepted, box.by_status[503]) == (answers.count(200), box.by_fault["503"])


def test_a_device_that_is_dead_by_rate_stays_dead(key: Path) -> None:
    phones = [f"phone-{number}" for number in range(200)]

    with sandbox.start(key, seed=7, fail={"dead": 0.2, "mismatch": 0.1}) as box, client_of(box) as client:
        first, again = statuses(client, *phones), statuses(client, *phones)

    assert first == again
    assert 0.1 < first.count(404) / 200 < 0.3
    assert 0.04 < first.count(403) / 200 < 0.18


def test_the_same_seed_gives_the_same_faults(key: Path) -> None:
    def answers(seed: int) -> list[int]:
        with sandbox.start(key, seed=seed, fail={"503": 0.3, "dead": 0.3}) as box, client_of(box) as client:
            return statuses(client, *(f"phone-{number}" for number in range(60)))

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_an_address_that_asks_for_a_fault_meets_no_other(key: Path) -> None:
    with sandbox.start(key, fail={"503": 1.0}) as box, client_of(box) as client:
        assert statuses(client, "dead:x", "oncedead:y", "oncedead:y", "phone") == [404, 404, 200, 503]
        assert box.by_fault == {"dead": 2, "503": 1}


def test_a_topic_is_never_dead_by_rate(key: Path) -> None:
    with sandbox.start(key, fail={"dead": 1.0}) as box, client_of(box) as client:
        answer = client.post(SEND, json={"message": {"topic": "news", "data": {"a": "b"}}})

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        ({"504": 0.6, "503": 0.6}, "503, 504 add up to 1.2. Probabilities can add up to 1 at most"),
        ({"unavailible": 1}, '"unavailible" is no fault.'),
        ({"qouta": 1}, '"qouta" is no fault. Did you mean "quota"?'),
        ({"once503": 1}, '"once503" is no fault. Did you mean'),
        ({"503": -0.1}, "fail 503 is -0.1. Give it a number from 0 on."),
        ({"503": float("nan")}, "fail 503 is nan. Give it a number from 0 on."),
    ],
)
def test_an_invalid_rate_is_refused_at_start(tmp_path: Path, fail: dict[str, float], says: str) -> None:
    with pytest.raises(NotifyWorkerError, match=f"^{says}".replace(".", r"\.").replace("?", r"\?")):
        sandbox.start(tmp_path / "sandbox.json", fail=fail)

    assert not (tmp_path / "sandbox.json").exists()


# By switch


def test_an_outage_can_be_switched_while_the_sandbox_runs(box: Sandbox, client: httpx.Client) -> None:
    assert statuses(client, "phone") == [200]

    box.switch(fail={"503": 1.0})
    assert statuses(client, "phone", "tablet") == [503, 503]

    box.switch(fail=None)
    assert statuses(client, "phone") == [200]


def test_latency_is_switched(box: Sandbox, client: httpx.Client) -> None:
    box.switch(latency=0.2)
    before = monotonic()

    send(client, "phone")

    assert monotonic() - before >= 0.2


def test_a_switch_that_is_not_named_stays_unchanged(box: Sandbox) -> None:
    box.switch(latency=0.5, quota=10)

    stand = box.switch(quota=None)

    assert (stand.latency, stand.quota, box.switches) == (0.5, None, stand)


def test_revoked_bearers_are_unknown_and_newer_ones_are_not(box: Sandbox, client: httpx.Client) -> None:
    box.switch(revoked=True)

    refused = send(client, "phone")
    assert (refused.status_code, "WWW-Authenticate" in refused.headers, details(refused)) == (401, True, {})
    with client_of(box) as newer:
        assert statuses(newer, "phone") == [200]

    box.switch(revoked=False)
    assert statuses(client, "phone") == [200]


def test_a_deleted_key_gets_no_bearer_and_earlier_bearers_stay_valid(box: Sandbox, client: httpx.Client) -> None:
    box.switch(refuse_grants=True)

    with pytest.raises(RefreshError, match=r"invalid_grant: Invalid JWT Signature\."):
        account(box.credentials).refresh(GoogleAuthTransport())
    assert statuses(client, "phone") == [200]

    box.switch(refuse_grants=False)
    account(box.credentials).refresh(GoogleAuthTransport())


def test_the_token_endpoint_meets_faults_of_its_own(box: Sandbox) -> None:
    box.switch(grant_fault="html502")

    answer = httpx.post(f"{box.url}/token", data={}, verify=False)

    assert (answer.status_code, answer.text.startswith("<!DOCTYPE")) == (502, True)


def test_bearers_can_be_short_lived(box: Sandbox) -> None:
    box.switch(token_lifetime=0)

    with client_of(box) as client:
        answer = send(client, "phone")

    assert (answer.status_code, details(answer)["ErrorInfo"]["reason"]) == (401, "ACCESS_TOKEN_EXPIRED")


def test_switches_can_be_set_and_read_over_http(box: Sandbox, client: httpx.Client) -> None:
    answer = client.post("/switch", json={"fail": {"apidisabled": 1.0}, "retry_after": 7})

    assert (answer.status_code, answer.json()["fail"], answer.json()["latency"]) == (200, {"apidisabled": 1.0}, 0.0)
    assert client.get("/switch").json() == answer.json()
    assert statuses(client, "phone") == [403]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ('{"latancy": 1}', '"latancy" is no switch. Did you mean "latency"?'),
        ('{"x": 1}', '"x" is no switch. There are fail, latency, quota, '),
        ('{"latency": "slow"}', "latency is 'slow'. Give it a number from 0 on."),
        ('{"latency": true}', "latency is True. Give it a number from 0 on."),
        ('{"token_lifetime": 1.5}', "token_lifetime is 1.5. Give it a whole number of seconds."),
        ('{"revoked": 1}', "revoked is 1. It is either on (true) or off (false)."),
        ('{"grant_fault": 503}', "grant_fault is 503. Give it the name of a fault, such as 503."),
        ('{"fail": 0.5}', 'fail is 0.5. Give it faults and their probabilities, such as {"503": 0.1}.'),
        ('{"latency": 1, "fail": {"qouta": 1}}', '"qouta" is no fault. Did you mean "quota"?'),
        ("[]", "the body is no JSON object."),
        ("{", "the body is no JSON object."),
    ],
)
def test_an_unknown_switch_is_refused_and_changes_nothing(
    open_box: Sandbox, open_client: httpx.Client, asked: str, says: str
) -> None:
    before = open_box.switches

    answer = open_client.post("/switch", content=asked)

    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "text/plain; charset=UTF-8")
    assert answer.text.startswith(says)
    assert open_box.switches == before


def test_the_page_and_its_json_show_switches_and_faults(box: Sandbox, client: httpx.Client) -> None:
    box.switch(fail={"503": 0.5}, refuse_grants=True)
    send(client, "dead:x")

    page, state = client.get("/").text, client.get("/shown").json()

    assert "fail (503 0.5), " in page
    assert "refuse_grants" in page
    assert "by_fault (dead 1)" in page
    assert (state["by_fault"], state["switches"]["fail"]) == ({"dead": 1}, {"503": 0.5})


# Quota, and projects


def test_beyond_its_quota_a_project_is_refused_without_an_fcm_error(key: Path) -> None:
    with sandbox.start(key, quota=5) as box, client_of(box) as client:
        answers = [send(client, "phone") for _ in range(8)]

    refused = [answer for answer in answers if answer.status_code == 429]
    assert [answer.status_code for answer in answers[:5]] == [200] * 5
    assert len(refused) >= 2
    assert details(refused[0])["ErrorInfo"]["reason"] == "RATE_LIMIT_EXCEEDED"
    assert "Retry-After" not in refused[0].headers
    assert box.accepted == 8 - len(refused)


def test_a_quota_refusal_has_the_retry_after_that_is_switched_on(box: Sandbox, client: httpx.Client) -> None:
    box.switch(quota=0, retry_after=7)

    assert send(client, "phone").headers["Retry-After"] == "7"


def test_quota_refusals_use_up_no_quota_and_other_errors_do(box: Sandbox, client: httpx.Client) -> None:
    box.switch(quota=1)

    assert statuses(client, "devicequota:x", "bare429:x", "quota:x", "dead:x", "phone") == [429, 429, 429, 404, 429]


def test_a_bucket_holds_one_second_and_is_refilled_continuously() -> None:
    now = 0.0
    bucket = TokenBucket(lambda: now)

    assert [bucket.take(10) for _ in range(11)] == [True] * 10 + [False]
    now = 0.25
    assert [bucket.take(10) for _ in range(3)] == [True, True, False]
    now = 60.0
    assert [bucket.take(10) for _ in range(11)] == [True] * 10 + [False]
    now = 60.5
    assert [bucket.take(0.5), bucket.take(None), bucket.take(0)] == [False, True, False]


def test_projects_have_a_quota_and_counts_of_their_own(key: Path) -> None:
    with sandbox.start(key, projects=("sandbox", "other"), quota=1) as box, client_of(box) as client:
        answers = [
            client.post(f"/v1/projects/{name}/messages:send", json=message_to("phone"))
            for name in ("sandbox", "sandbox", "other", "third")
        ]
        state = client.get("/shown").json()

    assert [answer.status_code for answer in answers] == [200, 429, 200, 403]
    assert answers[2].json()["name"].startswith("projects/other/messages/")
    assert (box.received, box.project("sandbox").received, box.project("other").accepted) == (4, 2, 1)
    assert [shown.project for shown in box.shown] == ["sandbox", "other"]
    assert state["projects"]["sandbox"]["by_status"] == {"200": 1, "429": 1}
