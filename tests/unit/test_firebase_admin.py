"""Google's own firebase-admin works against the sandbox as against FCM.

It has no option for another address than FCM's, so a private constant is overwritten; `token_uri` of the key is honoured.
"""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from notify_worker import sandbox
from notify_worker.sandbox import Sandbox

firebase_admin, credentials, exceptions, messaging, http_client = (
    cast("Any", pytest.importorskip(f"firebase_admin{part}", reason="it needs firebase-admin, of the extra firebase"))
    for part in ("", ".credentials", ".exceptions", ".messaging", "._http_client")
)
pytestmark = pytest.mark.filterwarnings("ignore:Message.token is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox.start(tmp_path_factory.mktemp("key") / "sandbox.json") as box:
        yield box


@pytest.fixture
def app(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Google's client, which waits for nothing between its retries."""
    monkeypatch.setattr(messaging._MessagingService, "FCM_URL", f"{box.url}/v1/projects/{{0}}/messages:send")
    monkeypatch.setattr(http_client.DEFAULT_RETRY_CONFIG, "backoff_factor", 0)
    monkeypatch.setattr(http_client.DEFAULT_HTTPX_RETRY_CONFIG, "backoff_factor", 0)
    app = firebase_admin.initialize_app(credentials.Certificate(str(box.credentials)), name="sandbox")
    yield app
    firebase_admin.delete_app(app)


def to(address: str, **fields: Any) -> Any:
    return messaging.Message(
        token=address, notification=messaging.Notification(title="Thank you", body="Order 42 is paid"), **fields
    )


def test_a_message_is_accepted_and_shown(app: Any, box: Sandbox) -> None:
    name = messaging.send(to("phone-1", data={"notification_id": "7"}), app=app)

    assert name.startswith("projects/sandbox/messages/0:")
    assert (box.shown[-1].title, box.shown[-1].notification_id) == ("Thank you", "7")


def test_everything_that_google_documents_is_accepted(app: Any) -> None:
    everything = to(
        "phone-1",
        android=messaging.AndroidConfig(
            collapse_key="a",
            priority="high",
            ttl=3600.5,
            notification=messaging.AndroidNotification(
                tag="t",
                color="#ff0000",
                priority="max",
                visibility="private",
                vibrate_timings_millis=[100, 1500],
                light_settings=messaging.LightSettings("#ff0000", 100, 200),
            ),
        ),
        apns=messaging.APNSConfig(
            headers={"apns-priority": "10"},
            payload=messaging.APNSPayload(
                messaging.Aps(alert=messaging.ApsAlert(title="x"), badge=1, custom_data={"a": 1})
            ),
        ),
        webpush=messaging.WebpushConfig(
            headers={"TTL": "60"},
            notification=messaging.WebpushNotification(title="x", tag="t"),
            fcm_options=messaging.WebpushFCMOptions(link="https://shop.example"),
        ),
        fcm_options=messaging.FCMOptions(analytics_label="spring"),
    )

    assert messaging.send(everything, app=app).startswith("projects/sandbox/messages/")


@pytest.mark.parametrize(
    "target", [{"topic": "news"}, {"topic": "/topics/news"}, {"condition": "'a' in topics && 'b' in topics"}]
)
def test_topics_and_conditions_are_accepted(app: Any, target: dict[str, str]) -> None:
    assert messaging.send(messaging.Message(**target, data={"a": "b"}), app=app)


def test_a_dry_run_is_checked_and_never_shown(app: Any, box: Sandbox) -> None:
    before = box.accepted

    assert messaging.send(to("phone-1"), dry_run=True, app=app) == "projects/sandbox/messages/fake_message_id"
    with pytest.raises(messaging.UnregisteredError):
        messaging.send(to("dead:x"), dry_run=True, app=app)
    assert box.accepted == before


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("dead", messaging.UnregisteredError),
        ("apnsgone", messaging.UnregisteredError),
        ("mismatch", messaging.SenderIdMismatchError),
        ("topicquota", messaging.QuotaExceededError),
        ("devicequota", messaging.QuotaExceededError),
        ("thirdparty", messaging.ThirdPartyAuthError),
        ("malformed", exceptions.InvalidArgumentError),
        ("oldmalformed", exceptions.InvalidArgumentError),
        ("invalid", exceptions.InvalidArgumentError),
        ("badfield", exceptions.InvalidArgumentError),
        ("toobig", exceptions.InvalidArgumentError),
        ("apnsdead", exceptions.InvalidArgumentError),
        ("badbearer", exceptions.UnauthenticatedError),
        ("expiredbearer", exceptions.UnauthenticatedError),
        ("html401", exceptions.UnauthenticatedError),
        ("apidisabled", exceptions.PermissionDeniedError),
        ("denied", exceptions.PermissionDeniedError),
        ("html404", exceptions.NotFoundError),
        ("bare429", exceptions.ResourceExhaustedError),
        ("internal", exceptions.InternalError),
        ("empty500", exceptions.InternalError),
        ("html502", exceptions.UnknownError),
        ("503", exceptions.UnavailableError),
        ("504", exceptions.DeadlineExceededError),
        ("drop", exceptions.UnavailableError),
    ],
)
def test_an_answer_is_raised_as_google_documents_it(app: Any, fault: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        messaging.send(to(f"{fault}:x"), app=app)

    assert type(raised.value) is error


def test_googles_client_does_not_take_a_projects_quota_for_a_quota(app: Any, box: Sandbox) -> None:
    """Without an FCM code it sees no quota, only that something is exhausted."""
    with pytest.raises(exceptions.ResourceExhaustedError, match="Quota exceeded for quota metric") as raised:
        messaging.send(to("quota:x"), app=app)

    assert not isinstance(raised.value, messaging.QuotaExceededError)


@pytest.mark.parametrize(("address", "requests"), [("once503:retried", 2), ("503:given-up", 5), ("dead:gone", 1)])
def test_googles_client_retries_what_it_says_it_does(app: Any, box: Sandbox, address: str, requests: int) -> None:
    try:
        messaging.send(to(address), app=app)
    except exceptions.FirebaseError:
        assert not address.startswith("once")

    assert box.requests_for(address) == requests


def test_several_at_once_each_get_their_own_answer(app: Any) -> None:
    addresses = ["phone-1", "dead:x", "phone-2", "mismatch:x", "devicequota:x", "malformed:x"]

    answers = messaging.send_each([to(address) for address in addresses], app=app)

    assert (answers.success_count, answers.failure_count) == (2, 4)
    assert [type(answer.exception) for answer in answers.responses] == [
        type(None),
        messaging.UnregisteredError,
        type(None),
        messaging.SenderIdMismatchError,
        messaging.QuotaExceededError,
        exceptions.InvalidArgumentError,
    ]


async def test_several_at_once_from_asyncio_each_get_their_own_answer(app: Any, box: Sandbox) -> None:
    before = box.accepted

    answers = await messaging.send_each_async(
        [to(address) for address in ("phone-1", "dead:x", "once503:async", *["phone-3"] * 20)], app=app
    )
    await messaging._get_messaging_service(
        app
    )._async_client.aclose()  # closing the app would begin another loop for it

    assert (answers.success_count, answers.failure_count, box.accepted - before) == (22, 1, 22)
    assert isinstance(answers.responses[1].exception, messaging.UnregisteredError)
    assert box.requests_for("once503:async") == 2


def test_a_deleted_key_is_reported(app: Any, box: Sandbox) -> None:
    box.switch(refuse_grants=True)

    try:
        with pytest.raises(Exception, match="Invalid JWT Signature"):
            messaging.send(to("phone-1"), app=app)
    finally:
        box.switch(refuse_grants=False)
    assert messaging.send(to("phone-1"), app=app)


def test_bearers_that_were_revoked_are_renewed(app: Any, box: Sandbox) -> None:
    messaging.send(to("phone-1"), app=app)

    box.switch(revoked=True)

    assert messaging.send(to("phone-1"), app=app)
