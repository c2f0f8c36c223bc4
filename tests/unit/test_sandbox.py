"""The sandbox behaves like FCM, as far as a sender can tell: over real sockets, with Google's own credentials."""

import json
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import RefreshError
from google.oauth2.service_account import Credentials

from notify_worker import sandbox
from notify_worker.errors import CredentialsError, NotifyWorkerError
from notify_worker.sandbox import Sandbox, Shown
from tests.support.fcm_client import SCOPE, SEND, GoogleAuthTransport, account, client_of, message_to, send
from tests.support.waiting import until


def fcm_code(answer: httpx.Response) -> str | None:
    details = answer.json()["error"].get("details", [])
    return next((each["errorCode"] for each in details if each["@type"].endswith("FcmError")), None)


# The token


def test_googles_own_credentials_get_a_bearer(open_box: Sandbox) -> None:
    ours: Any = Credentials.from_service_account_file(str(open_box.credentials), scopes=[SCOPE])  # type: ignore[no-untyped-call]

    ours.refresh(GoogleAuthTransport())

    assert ours.token.startswith("ya29.")
    assert ours.project_id == "sandbox"
    assert timedelta(seconds=3500) < ours.expiry - datetime.now(UTC).replace(tzinfo=None) <= timedelta(seconds=3599)


def test_the_credentials_are_for_their_owner_alone(open_box: Sandbox) -> None:
    assert stat.S_IMODE(open_box.credentials.stat().st_mode) == 0o600
    assert json.loads(open_box.credentials.read_text())["token_uri"] == f"{open_box.url}/token"


def test_a_foreign_key_is_refused(open_box: Sandbox, tmp_path: Path) -> None:
    info = json.loads(open_box.credentials.read_text())
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    forged = tmp_path / "forged.json"
    forged.write_text(
        json.dumps({**info, "private_key_id": "forged", "private_key": other.private_bytes(*pkcs8).decode()})
    )

    with pytest.raises(RefreshError, match=r"invalid_grant: Invalid JWT Signature\."):
        account(forged).refresh(GoogleAuthTransport())


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({}, "unsupported_grant_type"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}, "invalid_grant"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "a.b.c"}, "invalid_grant"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "W10.W10.W10"}, "invalid_grant"),
    ],
)
def test_an_unsigned_grant_is_refused(open_box: Sandbox, form: dict[str, str], code: str) -> None:
    answer = httpx.post(f"{open_box.url}/token", data=form, verify=False)

    assert (answer.status_code, answer.json()["error"]) == (400, code)


def test_credentials_without_a_scope_are_refused(open_box: Sandbox) -> None:
    with pytest.raises(RefreshError, match="invalid_scope"):
        account(open_box.credentials, "email").refresh(GoogleAuthTransport())


def test_a_restarted_sandbox_knows_the_key_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "sandbox.json"
    with sandbox.start(path) as first:
        before = json.loads(first.credentials.read_text())

    with sandbox.start(path) as second:
        after = json.loads(second.credentials.read_text())

    assert after["private_key"] == before["private_key"]


@pytest.mark.parametrize("text", ['{"client_email": "shop@real.iam.gserviceaccount.com"}', "[]", "not json"])
def test_a_real_key_is_never_overwritten(tmp_path: Path, text: str) -> None:
    real = tmp_path / "real.json"
    real.write_text(text)

    with pytest.raises(CredentialsError, match="the sandbox did not write it"):
        sandbox.start(real)

    assert real.read_text() == text


# Who may send


@pytest.mark.parametrize(
    ("authorization", "reason"), [({}, "CREDENTIALS_MISSING"), ({"Authorization": "Bearer ya29.made-up"}, None)]
)
def test_without_a_bearer_of_ours_nothing_is_sent(
    open_box: Sandbox, authorization: dict[str, str], reason: str | None
) -> None:
    before = open_box.accepted

    answer = httpx.post(f"{open_box.url}{SEND}", json=message_to("phone"), headers=authorization, verify=False)

    details = answer.json()["error"].get("details", [{"reason": None}])
    assert (answer.status_code, details[0]["reason"]) == (401, reason)
    assert ("WWW-Authenticate" in answer.headers) == (reason is None)
    assert open_box.accepted == before


def test_an_expired_bearer_is_refused(key: Path) -> None:
    with sandbox.start(key, token_lifetime=0) as box, client_of(box) as client:
        answer = send(client, "phone")

    assert answer.status_code == 401
    assert answer.json()["error"]["details"][0]["reason"] == "ACCESS_TOKEN_EXPIRED"


def test_another_project_is_forbidden_without_an_fcm_error(open_client: httpx.Client) -> None:
    answer = open_client.post("/v1/projects/shop/messages:send", json=message_to("phone"))

    assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    assert fcm_code(answer) is None


def test_an_unknown_path_gets_a_page_not_json(open_client: httpx.Client) -> None:
    answer = open_client.post("/batch")

    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "text/html; charset=UTF-8")


# What is accepted


def test_an_accepted_message_is_what_the_phone_shows(box: Sandbox, client: httpx.Client) -> None:
    answer = send(
        client,
        "phone-1",
        notification={"title": "Thank you", "body": "Order 42 is paid"},
        data={"notification_id": "7", "order": "42"},
        android={"notification": {"tag": "ab-7"}},
    )

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert answer.json()["name"].startswith("projects/sandbox/messages/0:")
    (shown,) = box.shown
    assert (shown.kind, shown.address, shown.title, shown.body) == ("token", "phone-1", "Thank you", "Order 42 is paid")
    assert (shown.data["order"], shown.tag, shown.notification_id) == ("42", "ab-7", "7")
    assert (box.received, box.accepted, box.doubles, box.in_flight) == (1, 1, 0, 0)
    assert box.by_status == {200: 1}


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("token", "abc:APA91b"),
        ("fid", "garbage"),
        ("topic", "tents-and.more_~%"),
        ("condition", "'a' in topics && ('b' in topics || !('c' in topics))"),
    ],
)
def test_each_kind_of_address_is_accepted(box: Sandbox, client: httpx.Client, kind: str, address: str) -> None:
    answer = client.post(SEND, json={"message": {kind: address, "data": {"a": "b"}}})

    assert answer.status_code == 200
    assert [(shown.kind, shown.address) for shown in box.shown] == [(kind, address)]


ANDROID_CAMEL = {"collapseKey": "a", "directBootOk": True, "notification": {"channelId": "c", "titleLocArgs": ["x"]}}
ANDROID_SNAKE = {
    "collapse_key": "a",
    "direct_boot_ok": True,
    "notification": {"channel_id": "c", "title_loc_args": ["x"]},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"android": ANDROID_CAMEL, "fcmOptions": {"analyticsLabel": "spring"}},
        {"android": ANDROID_SNAKE, "fcm_options": {"analytics_label": "spring"}},
        {"android": {"priority": "high", "ttl": "3.5s"}},
        {"android": {"priority": "HIGH", "ttl": "2419200s", "notification": {"notification_priority": "priority_max"}}},
        {"apns": {"headers": {"apns-priority": "5"}, "payload": {"aps": {"alert": {"title": "x"}}, "own": [1]}}},
        {"webpush": {"headers": {"TTL": "60"}, "notification": {"tag": "x", "actions": []}}, "android": None},
        {"data": {"notification_id": "1", "collapse_key": "x", "": ""}},
    ],
)
def test_every_form_that_google_takes_is_accepted(open_client: httpx.Client, fields: dict[str, Any]) -> None:
    assert send(open_client, "phone", **fields).status_code == 200


def test_a_rehearsal_is_checked_and_never_shown(box: Sandbox, client: httpx.Client) -> None:
    good = client.post(SEND, json={**message_to("phone"), "validateOnly": True})
    bad = client.post(SEND, json={**message_to("dead:phone"), "validate_only": True})

    assert good.json() == {"name": "projects/sandbox/messages/fake_message_id"}
    assert bad.status_code == 404
    assert (box.shown, box.accepted, box.received) == ([], 0, 2)


def test_doubles_are_counted_by_notification_and_address(box: Sandbox, client: httpx.Client) -> None:
    for address, notification_id in (("a", "1"), ("b", "1"), ("a", "2"), ("a", "1"), ("a", "1")):
        send(client, address, data={"notification_id": notification_id})
    send(client, "a")
    send(client, "a")

    assert box.doubles == 2
    assert len(box.shown) == 7


# What is refused


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ("{", None, None),
        ("[]", None, ""),
        ({}, "INVALID_ARGUMENT", "message"),
        ({"message": {"data": {"a": "b"}}}, "INVALID_ARGUMENT", "message"),
        ({"message": {"token": "", "data": {"a": "b"}}}, "INVALID_ARGUMENT", "message"),
        ({"message": {"token": "a", "topic": "b"}}, None, "message"),
        ({"message": {"token": 5}}, None, "message.token"),
        ({**message_to("a"), "dry_run": True}, None, ""),
        ({**message_to("a"), "validate_only": "yes"}, None, "validate_only"),
        (message_to("a", to="b"), None, "message"),
        (message_to("a", notification={"badge": "1"}), None, "message.notification"),
        (message_to("a", android={"notification": {"colour": "red"}}), None, "message.android.notification"),
        (message_to("a", data={"a": "b", "order": 42}), None, "message.data[1].value"),
        (message_to("a", data=["a"]), None, "message.data"),
        (message_to("a", data={"from": "x"}), "INVALID_ARGUMENT", "message.data"),
        (message_to("a", data={"google.x": "x"}), "INVALID_ARGUMENT", "message.data"),
        (message_to("a", android={"data": {"gcm.notification.x": "x"}}), "INVALID_ARGUMENT", "message.android.data"),
        (message_to("a", android={"ttl": "3600"}), None, "message.android.ttl"),
        (message_to("a", android={"ttl": "-1s"}), "INVALID_ARGUMENT", "message.android.ttl"),
        (message_to("a", android={"ttl": "2419201s"}), "INVALID_ARGUMENT", "message.android.ttl"),
        (message_to("a", android={"priority": "urgent"}), None, "message.android.priority"),
        (message_to("a", android={"notification": {"notification_count": True}}), None, None),
        (message_to("a", android={"notification": {"color": "red"}}), "INVALID_ARGUMENT", None),
        (message_to("a", android={"notification": {"body_loc_args": "x"}}), None, None),
        (message_to("a", fcm_options={"analytics_label": "a b"}), "INVALID_ARGUMENT", None),
        (message_to("a", data={"a": "é" * 2048}), None, None),
        ({"message": {"topic": "t", "data": {"a": "b" * 2048}}}, None, None),
        ({"message": {"topic": "/topics/t"}}, "INVALID_ARGUMENT", "message.topic"),
        ({"message": {"condition": "topics"}}, "INVALID_ARGUMENT", "message.condition"),
        ({"message": {"condition": " || ".join(["'a' in topics"] * 6)}}, "INVALID_ARGUMENT", "message.condition"),
    ],
)
def test_a_message_that_fcm_refuses_is_refused(
    open_box: Sandbox, open_client: httpx.Client, body: Any, code: str | None, field: str | None
) -> None:
    before = open_box.accepted

    answer = open_client.post(SEND, content=body if isinstance(body, str) else json.dumps(body))

    error = answer.json()["error"]
    fields = [violation["field"] for each in error.get("details", []) for violation in each.get("fieldViolations", [])]
    assert (answer.status_code, error["code"], error["status"], fcm_code(answer)) == (
        400,
        400,
        "INVALID_ARGUMENT",
        code,
    )
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert field is None or fields == [field]
    assert open_box.accepted == before


def test_a_message_of_just_the_largest_size_is_taken(open_client: httpx.Client) -> None:
    largest = {"a": "b" * 4095}

    assert open_client.post(SEND, json={"message": {"token": "phone", "data": largest}}).status_code == 200


# Faults by address


@pytest.mark.parametrize(
    ("address", "status", "code"),
    [
        ("dead:x", 404, "UNREGISTERED"),
        ("404:x", 404, "UNREGISTERED"),
        ("400:x", 400, "INVALID_ARGUMENT"),
        ("401:x", 401, None),
        ("403:x", 403, "SENDER_ID_MISMATCH"),
        ("429:x", 429, "QUOTA_EXCEEDED"),
        ("500:x", 500, "INTERNAL"),
        ("503:x", 503, "UNAVAILABLE"),
        ("504:x", 504, None),
    ],
)
def test_an_address_gets_the_answer_that_it_asks_for_each_time(
    box: Sandbox, client: httpx.Client, address: str, status: int, code: str | None
) -> None:
    answers = [send(client, address) for _ in range(3)]

    assert [(answer.status_code, fcm_code(answer)) for answer in answers] == [(status, code)] * 3
    assert (box.shown, box.requests_for(address), box.by_status) == ([], 3, {status: 3})


def test_a_front_end_that_is_down_answers_with_a_page(open_client: httpx.Client) -> None:
    assert send(open_client, "502:x").headers["Content-Type"] == "text/html; charset=UTF-8"


def test_an_undocumented_error_has_no_body(open_client: httpx.Client) -> None:
    answer = send(open_client, "599:x")

    assert (answer.status_code, answer.content) == (599, b"")


@pytest.mark.parametrize("address", ["fcm:abc", "503", "5031:x", "deadline:x", "hanger:x", "once:x", "x:dead:y"])
def test_an_address_that_names_no_fault_is_accepted(open_client: httpx.Client, address: str) -> None:
    assert send(open_client, address).status_code == 200


@pytest.mark.parametrize(
    ("address", "statuses"),
    [("once503:x", [503, 200, 200]), ("twice503:x", [503, 503, 200]), ("oncedead:x", [404, 200, 200])],
)
def test_a_fault_of_once_or_twice_ends(open_client: httpx.Client, address: str, statuses: list[int]) -> None:
    assert [send(open_client, address).status_code for _ in statuses] == statuses


def test_a_dropped_request_is_received_and_not_answered(box: Sandbox, client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        send(client, "oncedrop:x")

    assert (box.received, box.shown, box.in_flight) == (1, [], 0)
    assert send(client, "oncedrop:x").status_code == 200


def test_a_hanging_request_is_held_until_the_client_leaves(box: Sandbox, client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post(SEND, json=message_to("oncehang:x"), timeout=0.2)

    until("the sandbox has let go of it", lambda: box.in_flight == 0, within=5)
    assert (box.received, box.requests_for("oncehang:x"), box.shown) == (1, 1, [])
    assert send(client, "oncehang:x").status_code == 200


def test_a_hang_with_an_end_is_shown_when_it_ends(box: Sandbox, client: httpx.Client) -> None:
    before = monotonic()

    answer = send(client, "hang0.2:x")

    assert answer.status_code == 200
    assert monotonic() - before >= 0.2
    assert len(box.shown) == 1


def test_one_hanging_request_holds_no_other_up(box: Sandbox, client: httpx.Client) -> None:
    def hang() -> None:
        with client_of(box) as other, pytest.raises(httpx.RemoteProtocolError):
            send(other, "hang:x")

    hanging = Thread(target=hang)
    hanging.start()
    until("it hangs", lambda: box.in_flight == 1, within=5)

    assert send(client, "phone").status_code == 200
    assert box.in_flight == 1

    before = monotonic()
    box.stop()
    assert monotonic() - before < 1
    hanging.join(timeout=5)
    assert not hanging.is_alive()


def test_latency_comes_before_each_answer_and_after_the_message_is_shown(key: Path) -> None:
    with sandbox.start(key, latency=0.2) as box, client_of(box) as client:
        before = monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.post(SEND, json=message_to("phone"), timeout=0.1)
        assert len(box.shown) == 1

        send(client, "dead:x")
        assert monotonic() - before >= 0.3


# What there is to look at


def test_each_shown_message_is_streamed_at_once(key: Path) -> None:
    received: list[Shown] = []

    with sandbox.start(key, on_show=received.append) as box, client_of(box) as client:
        send(client, "dead:x")
        send(client, "phone")

        assert received == box.shown
    assert len(received) == 1


@pytest.mark.parametrize(
    ("address", "end"),
    [("cXyz:APA91bHPRgkF3JUikC", "…3JUikC"), ("once503:phone-1", "…phone-1"), ("abcdefghij", "…efghij")],
)
def test_a_line_shows_only_the_end_of_an_address(
    open_box: Sandbox, open_client: httpx.Client, address: str, end: str
) -> None:
    for _ in range(2):
        send(open_client, address, notification={"title": "Thank you", "body": "two\nlines\x1b[31m"})

    line = str(open_box.shown[-1])

    assert end in line
    assert address not in line
    assert address not in repr(open_box.shown[-1])
    assert line.endswith("Thank you: two lines [31m")


def test_a_silent_message_is_shown_by_the_names_of_its_data(box: Sandbox, client: httpx.Client) -> None:
    client.post(SEND, json={"message": {"token": "phone", "data": {"order": "42"}}})

    assert str(box.shown[0]).endswith("(data only: order)")


def test_the_page_shows_the_newest_first_and_escapes(box: Sandbox, client: httpx.Client) -> None:
    send(client, "phone", notification={"title": "first"})
    send(client, "phone", notification={"title": "<script>second</script>"})

    page = client.get("/")

    assert page.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert page.text.index("&lt;script&gt;second") < page.text.index("first")
    assert "<script>" not in page.text


def test_shown_messages_and_counts_are_served_as_json(box: Sandbox, client: httpx.Client) -> None:
    send(client, "once503:phone-1")
    send(client, "once503:phone-1", data={"notification_id": "7"})

    state = client.get("/shown").json()

    assert (state["received"], state["accepted"], state["doubles"], state["by_status"]) == (
        2,
        1,
        0,
        {"200": 1, "503": 1},
    )
    assert [(each["address"], each["notification_id"]) for each in state["shown"]] == [("phone-1", "7")]


# Start and stop


def test_a_taken_port_is_named(open_box: Sandbox, key: Path) -> None:
    port = int(open_box.url.rpartition(":")[2])

    with pytest.raises(NotifyWorkerError, match=rf"can't listen on 127\.0\.0\.1:{port}: .*in use"):
        sandbox.start(key, port=port)


@pytest.mark.parametrize("first", [b"", b"P", b"POST /token HTTP/1.1\r\n"])
def test_a_connection_without_a_whole_request_delays_neither_others_nor_the_stop(key: Path, first: bytes) -> None:
    with sandbox.start(key) as box, client_of(box) as client:
        port = httpx.URL(box.url).port or 0
        with socket.create_connection(("127.0.0.1", port), timeout=5) as silent:
            silent.sendall(first)
            assert send(client, "phone").status_code == 200

            box.stop()

            assert silent.recv(1) == b""


def test_a_request_may_arrive_byte_by_byte(key: Path) -> None:
    with sandbox.start(key) as box:
        port = httpx.URL(box.url).port or 0
        with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
            slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"PUT /batch HTTP/1.1\r\nHost: x\r\n\r\n":
                slow.sendall(bytes([byte]))

            assert slow.recv(65536).startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_a_sandbox_can_be_stopped_twice_and_started_again_on_its_port(key: Path) -> None:
    with sandbox.start(key) as first, client_of(first) as client:
        send(client, "phone")
        first.stop()

    with sandbox.start(key, port=int(first.url.rpartition(":")[2])) as second:
        assert second.url == first.url
        with client_of(second) as client:
            assert send(client, "phone").status_code == 200
