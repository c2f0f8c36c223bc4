"""The outcomes of FCM's answers and failures, over real sockets, with a service account and a token endpoint."""

import asyncio
import json
import socket
import traceback
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from errno import ECONNRESET
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from notify_worker.errors import CredentialsError
from notify_worker.model import Message, Outcome, Pause, Project, Scope, Verdict
from notify_worker.senders.fcm import FcmSender
from tests.support.hostile import (
    Act,
    HostileServer,
    answer,
    close,
    in_turn,
    once,
    reset,
    silence,
    then_close,
    then_stall,
)

ADDRESS = "device-address:APA91b_not-for-your-eyes"
MESSAGE = Message("token", {"token": ADDRESS, "notification": {"title": "Thank you"}})
SEND = "/v1/projects/demo/messages:send"
TIMEOUT = timedelta(seconds=30)
"""Nothing that is answered comes too late, however busy the machine."""
SHORT = timedelta(seconds=0.6)
NAME = {"name": "projects/demo/messages/0:17%ab"}
HTML = b"<html><title>Error</title>try again in 30 seconds</html>"

FCM = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
INFO = "type.googleapis.com/google.rpc.ErrorInfo"


def error(status: int, name: str, message: str, *details: Any, **headers: str) -> Act:
    return answer(
        status, {"error": {"code": status, "status": name, "message": message, "details": details}}, **headers
    )


def fcm_error(status: int, name: str, code: str, message: str = "No.", **headers: str) -> Act:
    return error(status, name, message, {"@type": FCM, "errorCode": code}, **headers)


def tokens(expires_in: Any = 3599) -> Act:
    """A token endpoint: each token is another one."""
    numbers = count(1)

    async def act(writer: asyncio.StreamWriter) -> None:
        token = {"access_token": f"ya29.secret-{next(numbers)}", "expires_in": expires_in, "token_type": "Bearer"}
        await answer(200, token)(writer)

    return act


@pytest.fixture(scope="session")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, plain).decode()


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with HostileServer() as server:
        server.acts["/token"] = tokens()
        server.acts["/v1"] = answer(200, NAME)
        yield server


@pytest.fixture
def service_account(server: HostileServer, private_key: str) -> dict[str, str]:
    return {
        "type": "service_account",
        "project_id": "demo",
        "private_key_id": "1",
        "private_key": private_key,
        "client_email": "worker@demo.iam.gserviceaccount.com",
        "token_uri": server.url + "/token",
    }


@pytest.fixture
def project(service_account: dict[str, str], tmp_path: Path) -> Project:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(service_account))
    return Project("default", credentials=f"file:{path}")


@pytest.fixture
def patience() -> timedelta:
    """The timeout of the whole request; a test that is about it says another."""
    return TIMEOUT


@pytest.fixture
async def sender(server: HostileServer, project: Project, patience: timedelta) -> AsyncIterator[FcmSender]:
    sender = await FcmSender.open(project, server.url, patience, 100)
    yield sender
    await sender.aclose()


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names nothing."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    return monkeypatch


async def test_a_message_goes_out_once_and_as_it_is(server: HostileServer, sender: FcmSender) -> None:
    outcome = await sender.send(MESSAGE)

    [seen] = [seen for seen in server.seen if seen.path == SEND]
    assert seen.method == "POST"
    assert seen.headers["authorization"] == "Bearer ya29.secret-1"
    assert seen.headers["content-type"] == "application/json"
    assert seen.json() == {"message": MESSAGE.body}
    assert outcome == Outcome(Verdict.SENT, http_status=200, provider_message_id="projects/demo/messages/0:17%ab")


CUT = {"content_length": "500"}


@pytest.mark.parametrize(
    ("act", "provider_message_id"),
    [
        pytest.param(answer(200), None, id="empty"),
        pytest.param(answer(200, b"\xff\xfe not JSON"), None, id="not JSON"),
        pytest.param(answer(200, b"[" * 100_000), None, id="nested too deep"),
        pytest.param(answer(200, ["a list"]), None, id="another shape"),
        pytest.param(answer(200, {"name": "a\0b\ud800"}), "a b", id="a name that Postgres would refuse"),
        pytest.param(then_close(answer(200, b'{"na', **CUT)), None, id="cut off"),
        pytest.param(answer(200, b"no gzip", content_encoding="gzip"), None, id="can't be unpacked"),
    ],
)
async def test_a_200_is_sent_whatever_its_body(
    server: HostileServer, sender: FcmSender, act: Act, provider_message_id: str | None
) -> None:
    server.acts["/v1"] = act

    outcome = await sender.send(MESSAGE)

    assert outcome == Outcome(Verdict.SENT, http_status=200, provider_message_id=provider_message_id)


async def test_a_200_whose_body_stalls_is_sent(server: HostileServer, project: Project) -> None:
    server.acts["/v1"] = then_stall(answer(200, b'{"na', **CUT))
    sender = await FcmSender.open(project, server.url, TIMEOUT, 1)

    outcome = await sender.send(MESSAGE)

    await sender.aclose()
    assert outcome.verdict is Verdict.SENT


async def test_a_200_with_a_body_that_stalls_until_the_deadline_is_sent(
    server: HostileServer, project: Project
) -> None:
    """To wait for the rest of a body may take longer than what is left."""
    server.acts["/v1"] = then_stall(answer(200, b'{"na', **CUT))
    sender = await FcmSender.open(project, server.url, timedelta(seconds=0.9), 1)

    outcome = await sender.send(MESSAGE)

    await sender.aclose()
    assert outcome.verdict is Verdict.SENT


GONE = "404 UNREGISTERED: Requested entity was not found"
EXPIRED = {"@type": INFO, "reason": "ACCESS_TOKEN_EXPIRED"}
DISABLED = {"@type": INFO, "reason": "SERVICE_DISABLED"}


@pytest.mark.parametrize(
    ("act", "verdict", "code", "pause", "waits"),
    [
        (
            fcm_error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "The registration token is not a valid one"),
            Verdict.UNREGISTERED,
            "INVALID_ARGUMENT",
            None,
            None,
        ),
        (fcm_error(404, "NOT_FOUND", "UNREGISTERED"), Verdict.UNREGISTERED, "UNREGISTERED", None, None),
        (error(403, "PERMISSION_DENIED", "Off.", DISABLED), Verdict.PAUSED, "SERVICE_DISABLED", Scope.PROJECT, None),
        (answer(429, HTML, retry_after="7"), Verdict.PAUSED, "HTTP_429", Scope.PROJECT, 7),
        (fcm_error(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), Verdict.RETRY, "QUOTA_EXCEEDED", None, 60),
        (answer(503, HTML, retry_after="9"), Verdict.UNKNOWN, "HTTP_503", None, 9),
        (then_close(answer(503, b'{"err', **CUT)), Verdict.UNKNOWN, "HTTP_503", None, None),
    ],
)
async def test_each_answer_has_the_verdict_of_the_table(
    server: HostileServer,
    sender: FcmSender,
    act: Act,
    *,
    verdict: Verdict,
    code: str,
    pause: Scope | None,
    waits: float | None,
) -> None:
    server.acts["/v1"] = act

    outcome = await sender.send(MESSAGE)

    assert (outcome.verdict, outcome.error_code) == (verdict, code)
    assert (outcome.pause and outcome.pause.scope) == pause
    assert outcome.asked_to_wait == (None if waits is None else timedelta(seconds=waits))
    assert outcome.error is not None
    assert outcome.error.startswith(f"{outcome.http_status} {code}: ")
    assert server.count("/v1") == 1


async def test_the_message_kind_decides_which_quota_was_exceeded(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = fcm_error(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "Topic quota exceeded.")

    outcome = await sender.send(Message("topic", {"topic": "news"}))

    assert outcome.pause == Pause(Scope.TOPICS, timedelta(seconds=60))


async def test_a_redirect_is_not_followed(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = answer(307, location=server.url + "/elsewhere")

    await sender.send(MESSAGE)

    assert server.count("/elsewhere") == 0


async def test_an_error_is_one_line_for_people(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = fcm_error(404, "NOT_FOUND", "UNREGISTERED", "Requested entity\r\n was\0 not found.")

    outcome = await sender.send(MESSAGE)

    assert outcome.error == GONE


async def test_an_error_that_echoes_address_and_token_hides_both(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = error(400, "INVALID_ARGUMENT", f"{'x' * 280} {ADDRESS} ya29.secret-1 {ADDRESS}")

    outcome = await sender.send(MESSAGE)

    assert outcome.error is not None
    assert len(outcome.error) <= 600
    assert ADDRESS[:10] not in outcome.error
    assert "ya29" not in outcome.error


async def test_a_refused_connection_was_not_sent_and_is_quickly_retryable(
    server: HostileServer, project: Project
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        sender = await FcmSender.open(project, f"http://127.0.0.1:{nobody.getsockname()[1]}", TIMEOUT, 1)

        outcome = await sender.send(MESSAGE)

    await sender.aclose()
    assert (outcome.verdict, outcome.quickly_retryable, outcome.error_code) == (Verdict.RETRY, True, "ConnectError")


NO_WORD = "RemoteProtocolError: Server disconnected"
RESET = f"ReadError: [Errno {ECONNRESET}] Connection reset by peer"
UNREADABLE = "the answer could not be read"


async def half_a_line(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 2")
    await writer.drain()


async def not_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("act", "patience", "errors"),
    [
        pytest.param(close, TIMEOUT, {NO_WORD}, id="closed after reading"),
        pytest.param(reset, TIMEOUT, {NO_WORD, RESET}, id="reset after reading"),
        pytest.param(then_close(half_a_line), TIMEOUT, {f"RemoteProtocolError: {UNREADABLE}"}, id="half a status line"),
        pytest.param(not_http, TIMEOUT, {f"ReadError: {UNREADABLE}"}, id="not HTTP"),
        pytest.param(silence, timedelta(seconds=2), {"ReadTimeout: no answer within 2 s"}, id="silence"),
    ],
)
async def test_a_request_that_was_read_and_not_answered_is_unknown_and_not_made_again(
    server: HostileServer, sender: FcmSender, act: Act, errors: set[str]
) -> None:
    server.acts["/v1"] = act

    outcome = await sender.send(MESSAGE)

    assert (outcome.verdict, outcome.quickly_retryable, outcome.http_status) == (Verdict.UNKNOWN, False, None)
    assert outcome.error in {f"{error}; FCM may have it" for error in errors}
    assert outcome.error_code == outcome.error.partition(":")[0]
    assert server.count("/v1") == 1


class Broken(httpx.AsyncBaseTransport):
    """A transport that fails in a way that nobody has foreseen, or stalls for good."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.error:
            raise self.error
        await asyncio.Event().wait()
        raise AssertionError


async def warm(sender: FcmSender) -> None:
    """Fetch the token, however long it takes: where one gives up waiting, the next finds it."""
    async with asyncio.timeout(20):
        while True:
            with suppress(CredentialsError):
                return await sender.warm_up()


@pytest.mark.parametrize(
    ("problem", "code"),
    [(None, "ReadTimeout"), (ValueError("Bearer ya29.secret-1"), "ValueError"), (httpx.ReadError("x"), "ReadError")],
)
async def test_any_failure_after_the_token_is_unknown(
    server: HostileServer, project: Project, problem: Exception | None, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    sender = FcmSender(project, server.url, TIMEOUT if problem else SHORT, 1, Broken(problem))
    await warm(sender)

    outcome = await sender.send(MESSAGE)

    await sender.aclose()
    assert (outcome.verdict, outcome.quickly_retryable, outcome.error_code) == (Verdict.UNKNOWN, False, code)
    assert "secret" not in caplog.text + repr(outcome)
    raised = [vars(record)["error"] for record in caplog.records if vars(record).get("event") == "sender_raised"]
    assert raised == ([code] if code == "ValueError" else [])


async def test_a_cancelled_send_is_cancelled(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = silence
    sending = asyncio.create_task(sender.send(MESSAGE))
    await server.has_read("/v1")

    sending.cancel()

    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_fifty_waiting_deliveries_share_one_token_request(server: HostileServer, sender: FcmSender) -> None:
    outcomes = await asyncio.gather(*(sender.send(MESSAGE) for _ in range(50)))

    assert {outcome.verdict for outcome in outcomes} == {Verdict.SENT}
    assert (server.count("/token"), server.count("/v1")) == (1, 50)


async def test_a_token_that_ran_out_is_renewed_before_the_request(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/token"] = tokens(expires_in=0)

    await sender.send(MESSAGE)
    await sender.send(MESSAGE)

    sent = [seen.headers["authorization"] for seen in server.seen if seen.path == SEND]
    assert sent == ["Bearer ya29.secret-1", "Bearer ya29.secret-2"]


async def test_a_token_near_its_end_stays_in_use_while_one_renewal_runs(
    server: HostileServer, sender: FcmSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notify_worker.senders.credentials.RENEW_PAUSE", 0)
    server.acts["/token"] = in_turn(tokens(expires_in=200), silence)
    await sender.send(MESSAGE)

    outcomes = [await sender.send(MESSAGE) for _ in range(5)]
    await server.has_read("/token", count=2)

    assert {outcome.verdict for outcome in outcomes} == {Verdict.SENT}
    assert {seen.headers["authorization"] for seen in server.seen if seen.path == SEND} == {"Bearer ya29.secret-1"}
    assert server.count("/token") == 2


REFUSED = error(401, "UNAUTHENTICATED", "Expired.", EXPIRED)
AGAIN = (Verdict.PAUSED, None, True)
STOP = (Verdict.PAUSED, Pause(Scope.PROJECT), False)


def in_short(outcome: Outcome) -> tuple[Verdict, Pause | None, bool]:
    return outcome.verdict, outcome.pause, outcome.quickly_retryable


async def send_at_once(sender: FcmSender, times: int) -> set[tuple[Verdict, Pause | None, bool]]:
    return {in_short(outcome) for outcome in await asyncio.gather(*(sender.send(MESSAGE) for _ in range(times)))}


async def test_a_refused_token_is_renewed_once_for_all_requests(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = REFUSED
    refused = await send_at_once(sender, 50)
    server.acts["/v1"] = answer(200, NAME)

    after = await send_at_once(sender, 50)

    assert (refused, after) == ({AGAIN}, {(Verdict.SENT, None, False)})
    assert (server.count("/token"), server.count("/v1")) == (2, 100)


async def test_a_new_token_that_is_refused_as_well_pauses_the_project(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = REFUSED

    rounds = [await send_at_once(sender, times) for times in (50, 50, 1, 1)]

    assert rounds == [{AGAIN}, {STOP}, {STOP}, {STOP}]
    assert (server.count("/token"), server.count("/v1")) == (4, 102)


async def test_the_reason_of_a_refused_token_says_where_to_check(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = REFUSED
    await sender.send(MESSAGE)

    outcome = await sender.send(MESSAGE)

    assert outcome.error == (
        "401 ACCESS_TOKEN_EXPIRED: Expired. Look at the project's credentials: FCM refuses every token that they give."
    )


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(answer(200, NAME), id="sent"),
        pytest.param(fcm_error(404, "NOT_FOUND", "UNREGISTERED"), id="gone"),
        pytest.param(fcm_error(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), id="only the key of APNs is refused"),
    ],
)
async def test_after_an_accepted_token_the_next_refusal_counts_as_the_first(
    server: HostileServer, sender: FcmSender, act: Act
) -> None:
    server.acts["/v1"] = in_turn(REFUSED, REFUSED, act, REFUSED)
    before = [in_short(await sender.send(MESSAGE)) for _ in range(2)]
    await sender.send(MESSAGE)

    outcome = await sender.send(MESSAGE)

    assert (before, in_short(outcome)) == ([AGAIN, STOP], AGAIN)
    assert server.count("/token") == 3


async def test_an_old_token_accepted_late_does_not_vouch_for_the_new_one(
    server: HostileServer, sender: FcmSender
) -> None:
    refused = asyncio.Event()
    server.acts["/v1"] = in_turn(once(refused, answer(200, NAME)), REFUSED)
    late = asyncio.create_task(sender.send(MESSAGE))
    await server.has_read("/v1")
    await sender.send(MESSAGE)

    refused.set()
    await late
    outcome = await sender.send(MESSAGE)

    assert in_short(outcome) == STOP


@pytest.mark.parametrize("act", [answer(401, HTML), answer(401), fcm_error(401, "UNAUTHENTICATED", "UNAVAILABLE")])
async def test_any_401_renews_the_token(server: HostileServer, sender: FcmSender, act: Act) -> None:
    server.acts["/v1"] = act

    rounds = [await send_at_once(sender, 1) for _ in range(2)]

    assert rounds == [{AGAIN}, {STOP}]
    assert server.count("/token") == 2


async def test_a_401_that_comes_late_leaves_the_new_token_alone(server: HostileServer, sender: FcmSender) -> None:
    renewed = asyncio.Event()
    server.acts["/v1"] = in_turn(once(renewed, REFUSED), REFUSED, answer(200, NAME))
    late = asyncio.create_task(sender.send(MESSAGE))
    await server.has_read("/v1")
    await sender.send(MESSAGE)
    await sender.send(MESSAGE)

    renewed.set()
    refused = await late
    outcome = await sender.send(MESSAGE)

    assert (in_short(refused), outcome.verdict) == (AGAIN, Verdict.SENT)
    assert server.count("/token") == 2


async def test_a_cancelled_waiter_takes_the_token_from_no_other(server: HostileServer, sender: FcmSender) -> None:
    given_up = asyncio.Event()
    server.acts["/token"] = once(given_up, tokens())
    impatient = asyncio.create_task(sender.send(MESSAGE))
    patient = asyncio.create_task(sender.send(MESSAGE))
    await server.has_read("/token")

    impatient.cancel()
    await asyncio.wait([impatient])
    given_up.set()

    assert (await patient).verdict is Verdict.SENT
    assert server.count("/token") == 1


async def test_a_401_about_the_apns_key_fetches_no_new_token(server: HostileServer, sender: FcmSender) -> None:
    server.acts["/v1"] = fcm_error(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR")

    await sender.send(MESSAGE)
    await sender.send(MESSAGE)

    assert server.count("/token") == 1


@pytest.mark.parametrize(
    ("act", "patience", "code", "text"),
    [
        (
            answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT"}),
            TIMEOUT,
            "RefreshError",
            "invalid_grant",
        ),
        (answer(401, {"error": "invalid_client"}), TIMEOUT, "RefreshError", "Look at the key of the service account"),
        (close, TIMEOUT, "TransportError", "127.0.0.1"),
        (answer(200, b"<html>"), TIMEOUT, "TypeError", "the answer can't be read"),
        (tokens(expires_in="next week"), TIMEOUT, "ValueError", "the answer can't be read"),
        (silence, SHORT, "TimeoutError", "within 0.2 s"),
    ],
)
async def test_a_failed_token_request_pauses_the_project_and_sends_nothing(
    server: HostileServer, sender: FcmSender, act: Act, code: str, text: str
) -> None:
    server.acts["/token"] = act

    outcome = await sender.send(MESSAGE)

    assert (in_short(outcome), outcome.error_code, outcome.http_status) == (STOP, code, None)
    assert outcome.error is not None
    assert outcome.error.startswith('No token for project "default"')
    assert text in outcome.error
    assert server.count("/v1") == 0


NO_GRANT = answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})


def key_file(project: Project) -> Path:
    return Path((project.credentials or "").removeprefix("file:"))


async def test_a_refused_key_that_is_replaced_on_disk_sends_again(
    server: HostileServer, project: Project, sender: FcmSender, service_account: dict[str, str]
) -> None:
    server.acts["/token"] = NO_GRANT
    server.acts["/token/of-another"] = tokens()
    before = await send_at_once(sender, 20)
    key_file(project).write_text(
        json.dumps(service_account | {"token_uri": server.url + "/token/of-another", "project_id": "other"})
    )

    after = await send_at_once(sender, 20)

    assert (before, after) == ({STOP}, {(Verdict.SENT, None, False)})
    assert {seen.path for seen in server.seen} == {"/token", "/token/of-another", "/v1/projects/other/messages:send"}
    assert server.count("/token/of-another") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "names a file that is not there"),
        ("{", "which is not JSON"),
        ('{"type": "authorized_user"}', "not to a service account"),
    ],
)
async def test_a_missing_or_broken_key_file_is_reported_and_sends_again_once_restored(
    server: HostileServer, project: Project, sender: FcmSender, text: str | None, says: str
) -> None:
    good, path = key_file(project).read_text(), key_file(project)
    server.acts["/token"] = in_turn(NO_GRANT, tokens())
    await sender.send(MESSAGE)
    path.write_text(text) if text else path.unlink()

    outcome = await sender.send(MESSAGE)
    path.write_text(good)
    after = await sender.send(MESSAGE)

    assert (in_short(outcome), after.verdict) == (STOP, Verdict.SENT)
    assert outcome.error is not None
    assert says in outcome.error


async def test_a_replaced_key_that_names_no_project_says_so_and_sends_nothing(
    server: HostileServer, project: Project, sender: FcmSender, service_account: dict[str, str]
) -> None:
    server.acts["/token"] = in_turn(NO_GRANT, tokens())
    await sender.send(MESSAGE)
    key_file(project).write_text(json.dumps(service_account | {"project_id": None}))

    outcome = await sender.send(MESSAGE)

    assert in_short(outcome) == STOP
    assert outcome.error is not None
    assert "Set firebase_project_id in its row of projects" in outcome.error
    assert server.count("/v1") == 0


async def test_a_key_whose_tokens_were_refused_is_read_again_before_the_next(
    server: HostileServer, project: Project, sender: FcmSender, service_account: dict[str, str]
) -> None:
    server.acts["/v1"] = REFUSED
    server.acts["/v1/projects/other"] = answer(200, NAME)
    await sender.send(MESSAGE)
    key_file(project).write_text(json.dumps(service_account | {"project_id": "other"}))

    outcome = await sender.send(MESSAGE)

    assert outcome.verdict is Verdict.SENT


async def test_a_key_without_permission_is_read_again_and_sends_once_replaced(
    server: HostileServer,
    project: Project,
    sender: FcmSender,
    service_account: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notify_worker.senders.credentials.RENEW_PAUSE", 0)
    server.acts["/v1"] = error(403, "PERMISSION_DENIED", "No.", DISABLED)
    server.acts["/v1/projects/other"] = answer(200, NAME)
    await sender.send(MESSAGE)
    key_file(project).write_text(json.dumps(service_account | {"project_id": "other"}))

    outcomes = [await sender.send(MESSAGE)]
    async with asyncio.timeout(30):
        while outcomes[-1].verdict is not Verdict.SENT:
            outcomes.append(await sender.send(MESSAGE))

    assert {in_short(outcome) for outcome in outcomes[:-1]} == {STOP}


async def test_a_project_that_is_refused_for_good_fetches_no_token_for_each_refusal(
    server: HostileServer, sender: FcmSender
) -> None:
    server.acts["/v1"] = error(403, "PERMISSION_DENIED", "No.", DISABLED)

    for _ in range(5):
        await send_at_once(sender, 10)

    assert (server.count("/token"), server.count("/v1")) == (1, 50)


async def test_the_project_of_the_row_wins_over_that_of_the_credential(server: HostileServer, project: Project) -> None:
    sender = await FcmSender.open(replace(project, firebase_project_id="an/other"), server.url, TIMEOUT, 1)

    await sender.send(MESSAGE)

    await sender.aclose()
    assert server.count("/v1/projects/an%2Fother/messages:send") == 1


async def test_without_a_project_the_error_says_what_to_set(
    service_account: dict[str, str], outside: pytest.MonkeyPatch
) -> None:
    outside.setenv("FCM_KEY", json.dumps(service_account | {"project_id": None}))

    with pytest.raises(CredentialsError, match=r'"default" name no Firebase project\. Set firebase_project_id'):
        FcmSender(Project("default", credentials="env:FCM_KEY"), "http://127.0.0.1", TIMEOUT, 1)


@pytest.mark.parametrize("credentials", ["env:FCM_KEY", None])
async def test_credentials_come_from_a_variable_or_googles_default(
    server: HostileServer,
    project: Project,
    service_account: dict[str, str],
    outside: pytest.MonkeyPatch,
    credentials: str | None,
) -> None:
    outside.setenv("FCM_KEY", json.dumps(service_account))
    outside.setenv("GOOGLE_APPLICATION_CREDENTIALS", (project.credentials or "").removeprefix("file:"))
    sender = await FcmSender.open(replace(project, credentials=credentials), server.url, TIMEOUT, 1)

    outcome = await sender.send(MESSAGE)

    await sender.aclose()
    assert outcome.verdict is Verdict.SENT


def test_a_missing_default_credential_says_so(outside: pytest.MonkeyPatch) -> None:
    outside.setenv("GOOGLE_APPLICATION_CREDENTIALS", "key.json")

    text = refused(None)

    assert text == (
        "GOOGLE_APPLICATION_CREDENTIALS names a file that is not there: key.json. "
        "Point it at your project's service-account file."
    )


def test_without_default_credentials_the_error_says_what_to_set(outside: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outside.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    outside.setenv("NO_GCE_CHECK", "true")

    assert "Set GOOGLE_APPLICATION_CREDENTIALS to the path" in refused(None)


@pytest.mark.parametrize(
    ("credentials", "value", "expected"),
    [
        (
            "file:/nowhere/key.json",
            None,
            'credentials of project "default" names a file that is not there: /nowhere/key',
        ),
        ("file:/", None, "names a file that can't be read: / (Is a directory)"),
        ("env:FCM_KEY", None, "names a variable that is not set: FCM_KEY"),
        ("env:FCM_KEY", "hush hush", "names FCM_KEY, which is not JSON"),
        ("env:FCM_KEY", "[1]", "leads to JSON of type null, not to a service account"),
        ("env:FCM_KEY", '{"type": "authorized_user"}', 'leads to JSON of type "authorized_user", not to a service'),
        ('{"private_key": "hush hush"}', None, "is neither file:PATH nor env:NAME"),
        ("file:", None, "is neither file:PATH nor env:NAME"),
    ],
)
def test_a_credential_that_cannot_be_loaded_says_why_and_quotes_nothing(
    outside: pytest.MonkeyPatch, credentials: str, value: str | None, expected: str
) -> None:
    if value:
        outside.setenv("FCM_KEY", value)

    text = refused(credentials)

    assert expected in text
    assert "hush" not in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"token_uri": "http://tokens.example/token"},
            'token_uri is "http://tokens.example/token". It has to begin with',
        ),
        ({"token_uri": None}, 'token_uri is "". It has to begin with'),
        ({"private_key": "hush hush"}, "without a usable client_email and private_key"),
        ({"client_email": None}, "without a usable client_email and private_key"),
    ],
)
def test_a_service_account_that_cannot_be_used_says_why(
    service_account: dict[str, str], outside: pytest.MonkeyPatch, change: dict[str, str | None], expected: str
) -> None:
    changed = {name: value for name, value in (service_account | change).items() if value is not None}
    outside.setenv("FCM_KEY", json.dumps(changed))

    text = refused("env:FCM_KEY")

    assert expected in text
    assert "hush" not in text


def refused(credentials: str | None) -> str:
    with pytest.raises(CredentialsError) as caught:
        FcmSender(Project("default", credentials=credentials), "https://fcm.googleapis.com", TIMEOUT, 1)
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)
