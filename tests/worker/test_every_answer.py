"""Every answer that FCM can give, and its consequences: the specification as a table, checked on running workers.

All rows run at once under one worker. A row that blocks something has its own project, so that it affects no other row.
"""

import asyncio
import json
import re
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Thread
from typing import Literal
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from notify_worker.model import Verdict
from notify_worker.sandbox.account import account_info, write
from notify_worker.sandbox.answers import NAMED
from notify_worker.sandbox.faults import LATER_503, WITHOUT_ANSWER
from tests.support.hostile import Act, HostileServer, answer, reset, then_close, then_stall
from tests.support.shop import Row, Shop, a_shop
from tests.support.waiting import until

Kind = Literal["token", "fid", "topic", "condition"]
Platform = Literal["android", "ios", "web"]
Where = Literal["sandbox", "hostile", "nobody"]
"""Who answers: the sandbox, a server of faults that it can't do, or nobody."""

EVERYTHING = frozenset({"android", "ios", "topic"})
"""What else each project has to send."""


# What an answer can come to


@dataclass(frozen=True)
class Fate:
    """What becomes of a delivery, its notification and its device, and what is blocked in its project."""

    verdict: str
    state: str
    """Of the delivery."""
    story: tuple[str, ...]
    """What `explain` says from the attempt on. `{said}`: the answer, in words."""
    counts: int = 1
    due_in: float | None = None
    """Seconds from the attempt until the delivery is due again, and up to a fifth more. A pause may hold it longer."""
    retired: bool = False
    stops: tuple[tuple[str, float], ...] = ()
    """The scope of the incident, if there is one, and the seconds from its beginning until the next probe, or its end."""
    probed: bool = False
    goes_on: frozenset[str] = EVERYTHING


SENT = Fate("sent", "sent", story=("{tried} came to sent: {said}", "it ended sent"))
UNREGISTERED = Fate(
    "unregistered",
    "failed",
    story=("{tried} came to unregistered: {said}", "{phone} ended failed: {said}", "it ended unreachable"),
    retired=True,
)
FAILED = Fate(
    "failed", "failed", story=("{tried} came to failed: {said}", "{phone} ended failed: {said}", "it ended failed")
)
PROJECT_PAUSED = Fate(
    "paused",
    "pending",
    story=(
        "{tried} came to paused: {said}",
        "project {project} was paused by a worker: {said}",
        "it is pending, and its project is paused until a probe gets through, the next one at <time>: {said}",
    ),
    counts=0,
    due_in=0,
    stops=(("project", 10),),
    probed=True,
    goes_on=frozenset(),
)
APNS_AND_WEB_PAUSED = replace(
    PROJECT_PAUSED,
    story=(
        "{tried} came to paused: {said}",
        "iOS and web of project {project} were paused by a worker: {said}",
        "it is pending, due at <time>",
    ),
    due_in=900,
    stops=(("apns_web", 900),),
    goes_on=EVERYTHING - {"ios"},
)
ANOTHERS_APNS_AND_WEB_PAUSED = replace(
    APNS_AND_WEB_PAUSED, story=("{tried} came to paused: {said}", "it is pending, due at <time>")
)
"""A delivery of a platform that the pause does not block waits as long by itself."""
TOPICS_PAUSED = replace(
    PROJECT_PAUSED,
    story=(
        "{tried} came to paused: {said}",
        "topics of project {project} were paused by a worker: {said}",
        "it is pending, due at <time>",
    ),
    due_in=60,
    stops=(("topics", 60),),
    probed=False,
    goes_on=EVERYTHING - {"topic"},
)
UNKNOWN = Fate(
    "unknown",
    "pending",
    story=("{tried} came to unknown: {said}, to be tried again at <time>", "it is pending, due at <time>"),
    due_in=10,
)
HELD = Fate(
    "unknown",
    "held",
    story=(
        "{tried} came to unknown: {said}",
        "it is held: it is unknown whether FCM has it, and it is for a person to decide",
    ),
)
NEVER_LEFT = Fate(
    "retry",
    "pending",
    story=("{tried} came to retry: {said}, to be tried again at <time>", "it is pending, due at <time>"),
    due_in=10,
)
DEVICE_OVER_QUOTA = replace(NEVER_LEFT, due_in=60)


def over_quota(seconds: float) -> Fate:
    """The whole project waits for this many seconds."""
    story = (*PROJECT_PAUSED.story[:2], "it is pending, and its project is paused until <time>: {said}")
    return replace(PROJECT_PAUSED, story=story, stops=(("project", seconds),), probed=False)


def asked_to_wait(seconds: float) -> Fate:
    """Unknown, and FCM said when to come again."""
    return replace(UNKNOWN, due_in=seconds)


# What FCM says: status and code, where there are any, and its words


ACCEPTED = "FCM has accepted it as <name>"
ACCEPTED_SOMEHOW = "FCM has accepted it"
GONE = "404 UNREGISTERED: Requested entity was not found"
NO_TOKEN = "400 INVALID_ARGUMENT: The registration token is not a valid FCM registration token"
DEAD_AT_APNS = "400 INVALID_ARGUMENT: APNs device token is disabled"
INVALID = "400 INVALID_ARGUMENT: Request contains an invalid argument"
WRONG_TOKEN = f"{INVALID} (message.token: Invalid registration token)"
WRONG_TTL = f"{INVALID} (message.android.ttl: Invalid ttl: it has to be between 0s and 2419200s)"
NO_SUCH_FIELD = (
    "400 INVALID_ARGUMENT: Invalid JSON payload received. Unknown name \"x\" at 'message': Cannot find field"
)
TOO_BIG = "400 INVALID_ARGUMENT: The message is too big"
MISMATCH = "403 SENDER_ID_MISMATCH: SenderId mismatch"
NO_BEARER = (
    "401 CREDENTIALS_MISSING: Request is missing required authentication credential. Expected OAuth 2 access token, "
    "login cookie or other valid authentication credential"
)
BAD_BEARER = (
    "401 UNAUTHENTICATED: Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie "
    "or other valid authentication credential"
)
OLD_BEARER = BAD_BEARER.replace("UNAUTHENTICATED", "ACCESS_TOKEN_EXPIRED")
NO_KEY_FOR_APNS = "401 THIRD_PARTY_AUTH_ERROR: Auth error from APNS or Web Push Service"
API_IS_OFF = (
    "403 SERVICE_DISABLED: Firebase Cloud Messaging API has not been used in project 1234567890 before or it is "
    "disabled. Enable it by visiting "
    "https://console.developers.google.com/apis/api/fcm.googleapis.com/overview?project=1234567890 then retry. If you "
    "enabled this API recently, wait a few minutes for the action to propagate to our systems and retry"
)
NO_PERMISSION = (
    "403 IAM_PERMISSION_DENIED: Permission 'cloudmessaging.messages.create' denied on resource "
    "'//cloudresourcemanager.googleapis.com/projects/…' (or it may not exist)"
)
PROJECT_QUOTA = (
    "429 RATE_LIMIT_EXCEEDED: Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' of "
    "service 'fcm.googleapis.com' for consumer 'project_number:1234567890'"
)
TOPIC_QUOTA = "429 QUOTA_EXCEEDED: Topic quota exceeded"
DEVICE_QUOTA = "429 QUOTA_EXCEEDED: Device quota exceeded"
INTERNAL = "500 INTERNAL: Internal error encountered"
UNAVAILABLE = "503 UNAVAILABLE: The service is currently unavailable"
TOO_LATE = "504 DEADLINE_EXCEEDED: Deadline expired before operation could complete"
NO_ANSWER = "ReadTimeout: no answer within 4 s; FCM may have it"
UNREADABLE = "the answer could not be read; FCM may have it"


def a_page(status: int, size: int) -> str:
    return f"{status} HTTP_{status}: {size} bytes of text/html; charset=UTF-8, not an error of FCM"


def an_empty(status: int) -> str:
    return f"{status} HTTP_{status}: an empty body"


def look(said: str, where: str) -> str:
    """What the answer said, and where an operator should look."""
    return f"{said}. Look {where}"


AT_CREDENTIALS = "at the project's credentials: FCM refuses every token that they give."
AT_APNS = "at the APNs key and the web push certificate in the Firebase console, Cloud Messaging."
AT_ROLE = "whether the FCM API is enabled and the service account has the role Firebase Cloud Messaging API Admin."
AT_NAME = "at firebase_project_id, and at NOTIFY_WORKER_FCM_URL."
AT_URL = "at NOTIFY_WORKER_FCM_URL, and for a proxy that answers in FCM's place."


# The table


@dataclass(frozen=True)
class Answer:
    """A row: an answer, to a message for a kind of address, and what becomes of it."""

    fault: str
    fate: Fate
    said: str
    """Status, code and words, as the attempt keeps them. Where no answer came, how they begin: with the exception's name."""
    code: str | None = None
    """The error code, if `said` does not contain it."""
    requests: int = 1
    kind: Kind = "token"
    platform: Platform | None = "android"
    where: Where = "sandbox"
    credentials: str | None = None
    """What stands in the project's row. None: the key that the sandbox knows."""
    on_unknown: Literal["resend", "hold"] = "resend"

    def __str__(self) -> str:
        return " ".join((self.credentials or self.fault, self.where, self.platform or self.kind, self.on_unknown))


TABLE = [
    # 200, also with a body that is cut off
    Answer("app", SENT, ACCEPTED),
    Answer("hang0.5", SENT, ACCEPTED),
    Answer("cut200", SENT, ACCEPTED_SOMEHOW),
    Answer("empty200", SENT, ACCEPTED_SOMEHOW, where="hostile"),
    Answer("stalled200", SENT, ACCEPTED_SOMEHOW, where="hostile"),
    # 404 with UNREGISTERED; 400 that names the registration token as invalid
    Answer("dead", UNREGISTERED, GONE),
    Answer("dead", UNREGISTERED, GONE, kind="fid"),
    Answer("apnsgone", UNREGISTERED, GONE, platform="ios"),
    Answer("malformed", UNREGISTERED, NO_TOKEN),
    Answer("oldmalformed", UNREGISTERED, WRONG_TOKEN),
    Answer("apnsdead", UNREGISTERED, DEAD_AT_APNS, platform="ios"),
    # the same of a topic, which is no device
    Answer("dead", FAILED, GONE, kind="topic", platform=None),
    Answer("malformed", FAILED, NO_TOKEN, kind="condition", platform=None),
    # 400 otherwise; message too big
    Answer("400", FAILED, INVALID),
    Answer("badfield", FAILED, NO_SUCH_FIELD),
    Answer("invalid", FAILED, WRONG_TTL),
    Answer("toobig", FAILED, TOO_BIG),
    Answer("413", FAILED, an_empty(413)),
    # 403 SENDER_ID_MISMATCH
    Answer("mismatch", FAILED, MISMATCH),
    # 401 without an FCM code: with another token, once more
    Answer("onceexpiredbearer", SENT, ACCEPTED, requests=2),
    Answer("nobearer", PROJECT_PAUSED, look(NO_BEARER, AT_CREDENTIALS), requests=2),
    Answer("badbearer", PROJECT_PAUSED, look(BAD_BEARER, AT_CREDENTIALS), requests=2),
    Answer("expiredbearer", PROJECT_PAUSED, look(OLD_BEARER, AT_CREDENTIALS), requests=2),
    Answer("html401", PROJECT_PAUSED, look(a_page(401, 84), AT_CREDENTIALS), requests=2),
    # 401 THIRD_PARTY_AUTH_ERROR
    Answer("thirdparty", APNS_AND_WEB_PAUSED, look(NO_KEY_FOR_APNS, AT_APNS), platform="ios"),
    Answer("thirdparty", APNS_AND_WEB_PAUSED, look(NO_KEY_FOR_APNS, AT_APNS), platform="web"),
    Answer("thirdparty", ANOTHERS_APNS_AND_WEB_PAUSED, look(NO_KEY_FOR_APNS, AT_APNS), platform=None),
    Answer("thirdparty", ANOTHERS_APNS_AND_WEB_PAUSED, look(NO_KEY_FOR_APNS, AT_APNS), kind="topic", platform=None),
    Answer("thirdparty", ANOTHERS_APNS_AND_WEB_PAUSED, look(NO_KEY_FOR_APNS, AT_APNS), platform="android"),
    # 403 otherwise, HTML 404, any 3xx and 4xx that nobody knows; no token to be had
    Answer("apidisabled", PROJECT_PAUSED, look(API_IS_OFF, AT_ROLE)),
    Answer("denied", PROJECT_PAUSED, look(NO_PERMISSION, AT_ROLE)),
    Answer("html404", PROJECT_PAUSED, look(a_page(404, 119), AT_NAME)),
    Answer("402", PROJECT_PAUSED, look(an_empty(402), AT_URL)),
    Answer("moved301", PROJECT_PAUSED, look(an_empty(301), AT_URL), where="hostile"),
    Answer("app", PROJECT_PAUSED, "No token for project", code="RefreshError", credentials="file:foreign.json"),
    Answer("app", PROJECT_PAUSED, "credentials of project", code="CREDENTIALS", credentials="file:missing.json"),
    # 429 of the project
    Answer("quota", over_quota(60), PROJECT_QUOTA),
    Answer("quota", over_quota(60), PROJECT_QUOTA, kind="topic", platform=None),
    Answer("bare429", over_quota(60), an_empty(429)),
    Answer("in-90s429", over_quota(90), an_empty(429), where="hostile"),
    Answer("on-a-date429", over_quota(30), an_empty(429), where="hostile"),
    # 429 of a topic, or of a device
    Answer("topicquota", TOPICS_PAUSED, TOPIC_QUOTA, kind="topic", platform=None),
    Answer("topicquota", TOPICS_PAUSED, TOPIC_QUOTA, kind="condition", platform=None),
    Answer("devicequota", DEVICE_OVER_QUOTA, DEVICE_QUOTA),
    Answer("devicequota", DEVICE_OVER_QUOTA, DEVICE_QUOTA, kind="fid"),
    # 500, 502, 503, 504: quick retries, then the table
    Answer("once503", SENT, ACCEPTED, requests=2),
    Answer("internal", UNKNOWN, INTERNAL, requests=3),
    Answer("empty500", UNKNOWN, an_empty(500), requests=3),
    Answer("html502", UNKNOWN, a_page(502, 145), requests=3),
    Answer("503", UNKNOWN, UNAVAILABLE, requests=3),
    Answer("504", UNKNOWN, TOO_LATE, requests=3),
    Answer("599", UNKNOWN, an_empty(599), requests=3),
    Answer("later503", asked_to_wait(30), UNAVAILABLE),
    Answer("datelater503", asked_to_wait(29), UNAVAILABLE),
    Answer("in-a-week503", asked_to_wait(3600), an_empty(503), where="hostile"),
    # a timeout, or a reset or close after the request was written
    Answer("408", UNKNOWN, an_empty(408)),
    Answer("hang", UNKNOWN, NO_ANSWER),
    Answer("hang5", UNKNOWN, NO_ANSWER),
    Answer("acceptedhang", UNKNOWN, NO_ANSWER),
    Answer("drop", UNKNOWN, "RemoteProtocolError"),
    Answer("accepteddrop", UNKNOWN, "RemoteProtocolError"),
    Answer("reset", UNKNOWN, "RemoteProtocolError", where="hostile"),
    Answer("half-a-line", UNKNOWN, f"RemoteProtocolError: {UNREADABLE}", where="hostile"),
    Answer("not-http", UNKNOWN, f"ReadError: {UNREADABLE}", where="hostile"),
    # the request never left
    Answer("app", NEVER_LEFT, "ConnectError", requests=3, where="nobody"),
]
ON_HOLD = [
    replace(row, fate=HELD, requests=1, on_unknown="hold") for row in TABLE if row.fate.verdict == UNKNOWN.verdict
]
"""With `on_unknown = hold` every unknown outcome is held after one request. Everything else is as in the table."""
ROWS = TABLE + ON_HOLD


def is_alone(row: Answer) -> bool:
    return bool(row.fate.stops) or row.where != "sandbox"


ALONE = [row for row in ROWS if is_alone(row)]
PAIRED = [row for row in ROWS if not is_alone(row)]
PROJECTS = {
    **{row: f"project-{number}" for number, row in enumerate(ALONE)},
    **{row: f"pair-{number // 2}" for number, row in enumerate(PAIRED)},
}
"""The project of each row. By twos: three attempts in a row without an answer would be an outage."""


# Who answers


async def until_a_date(writer: asyncio.StreamWriter) -> None:
    date = format_datetime((datetime.now(UTC) + timedelta(seconds=30)).replace(microsecond=0), usegmt=True)
    await answer(429, retry_after=date)(writer)


async def half_a_line(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 2")
    await writer.drain()


async def not_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    await writer.drain()


HOSTILE: Mapping[str, Act] = {
    "empty200": answer(200),
    "stalled200": then_stall(answer(200, content_length="500")),
    "moved301": answer(301, location="http://127.0.0.1:9/"),
    "in-90s429": answer(429, retry_after="90"),
    "on-a-date429": until_a_date,
    "in-a-week503": answer(503, retry_after="604800"),
    "reset": reset,
    "half-a-line": then_close(half_a_line),
    "not-http": then_close(not_http),
}


@contextmanager
def hostile_server() -> Iterator[str]:
    """A server, in a thread, that answers for each Firebase project by the act of this name; gives its address."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    server = HostileServer({"": answer(404)} | {f"/v1/projects/{name}/": act for name, act in HOSTILE.items()})
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(5)
    try:
        yield server.url
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def closed_port() -> Iterator[str]:
    """The address of a port that is taken, and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


# What became of it


@dataclass(frozen=True)
class Facts:
    """What there is to see of a row."""

    state: str
    delivery: Row
    attempts: list[Row]
    incidents: list[Row]
    retired: bool
    story: list[str]
    requests: int
    """Which the sandbox has seen."""
    went_on: set[str] = field(default_factory=set)
    """What else of its project was sent afterwards."""


@pytest.fixture(scope="module")
def facts(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> dict[Answer, Facts]:
    """Insert all rows at once, read what each first attempt came to, and notify other devices of their projects."""
    with ExitStack() as stack:
        shops: dict[Where, Shop] = {
            where: stack.enter_context(a_shop(server, template, with_short_key(tmp_path_factory.mktemp("shop"))))
            for where in ("sandbox", "hostile", "nobody")
        }
        addresses: dict[Where, str] = {
            "sandbox": shops["sandbox"].box.url,
            "hostile": stack.enter_context(hostile_server()),
            "nobody": stack.enter_context(closed_port()),
        }
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(start_worker, shops.values(), shops, addresses.values()))

        inserted = {row: notify_row(shops[row.where], row) for row in ROWS}
        until("each has its attempt", lambda: not any(map(untried, shops.values())), within=30)
        with suppress(AssertionError):  # the tests say what did not come
            until("what stops is stopped", lambda: all(is_stopped(shops[row.where], row) for row in ALONE), within=2)
        seen = {row: look_at(shops[row.where], row, inserted[row]) for row in ROWS}
        postpone_probes(shops["sandbox"])

        beside = {row: notify_others(shops["sandbox"], PROJECTS[row]) for row in ROWS if row.where == "sandbox"}
        with suppress(AssertionError):
            until(
                "what is not stopped is sent",
                lambda: all(sent(shops["sandbox"], others) >= row.fate.goes_on for row, others in beside.items()),
                within=10,
            )
        return {row: replace(seen[row], went_on=sent(shops[row.where], beside.get(row, {}))) for row in ROWS}


def with_short_key(folder: Path) -> Path:
    """Leave a key for the sandbox: each project reads it once, and checks it, which takes a while for one that is long."""
    write(folder / "sandbox.json", account_info("short", short_key(), "http://127.0.0.1:9/token", "sandbox"))
    return folder


def short_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


def start_worker(shop: Shop, where: Where, fcm_url: str) -> None:
    """Start a worker of the projects of which the rows are answered there."""
    write_foreign_key(shop)
    for row, project in PROJECTS.items():
        if row.where == where:
            shop.connection.execute(
                """
                insert into notify_worker.projects (name, firebase_project_id, credentials)
                values (%s, %s, %s)
                on conflict do nothing
                """,
                [project, row.fault if where == "hostile" else "sandbox", row.credentials],
            )
    shop.start_worker(
        NOTIFY_WORKER_FCM_URL=fcm_url,
        NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS=4,  # no longer than the quick retries take, with room
        NOTIFY_WORKER_LEASE_SECONDS=40,
    )


def write_foreign_key(shop: Shop) -> None:
    """Write a key file that the token endpoint refuses into the folder in which the shop's workers run."""
    account = json.loads(shop.box.credentials.read_text())
    (shop.folder / "foreign.json").write_text(json.dumps(account | {"private_key": short_key()}))


def untried(shop: Shop) -> int:
    return int(
        shop.value(
            """
            select count(*)
            from notify_worker.notifications as notification
            where not exists (select from notify_worker.attempts where notification_id = notification.id)
            """
        )
    )


def is_stopped(shop: Shop, row: Answer) -> bool:
    begun = shop.value("select count(*) from notify_worker.stored_incidents where project = %s", PROJECTS[row])
    return int(begun) >= len(row.fate.stops)


def postpone_probes(shop: Shop) -> None:
    """Postpone every probe and the end of every pause, for as long as a busy machine takes for the rest."""
    shop.connection.execute(
        """
        update notify_worker.stored_incidents
        set ends_at = ends_at + interval '1 hour',
            next_probe_at = next_probe_at + interval '1 hour'
        where ended_at is null
        """
    )


def notify_row(shop: Shop, row: Answer) -> int:
    return notify(shop, PROJECTS[row], address_of(row), row.kind, row.platform, row.on_unknown)


def address_of(row: Answer) -> str:
    """An address that the sandbox answers so; each row has another."""
    number = ROWS.index(row)
    topic = f"{row.fault}~{number}"
    return {"topic": topic, "condition": f"'{topic}' in topics"}.get(row.kind, f"{row.fault}:phone-{number}")


def notify_others(shop: Shop, project: str) -> dict[str, int]:
    return {
        "android": notify(shop, project, f"app:{uuid4()}", "token", "android"),
        "ios": notify(shop, project, f"app:{uuid4()}", "token", "ios"),
        "topic": notify(shop, project, "news", "topic"),
    }


def notify(  # noqa: PLR0917
    shop: Shop,
    project: str,
    address: str,
    kind: Kind,
    platform: Platform | None = None,
    on_unknown: Literal["resend", "hold"] = "resend",
) -> int:
    """Commit a notification to an address; where it is a device's, to its receiver. Return its id."""
    if kind in ("topic", "condition"):
        return shop.notify(address, kind=kind, project=project, on_unknown=on_unknown)
    whose = f"owner of {address}"
    shop.value("select notify_worker.register_device(%s, %s, %s, %s, %s)", whose, kind, address, platform, project)
    return shop.notify("", kind=None, address=None, receiver_id=whose, project=project, on_unknown=on_unknown)


def sent(shop: Shop, inserted: Mapping[str, int]) -> set[str]:
    return {whom for whom, number in inserted.items() if shop.state(number) == "sent"}


def look_at(shop: Shop, row: Answer, number: int) -> Facts:
    return Facts(
        shop.state(number),
        shop.delivery(number),
        shop.attempts(number),
        shop.rows(BEGUN, PROJECTS[row]),
        bool(shop.value(RETIRED, address_of(row))),
        [
            fit_to_compare(line["what"])
            for line in shop.rows("select what from notify_worker.explain(%s::bigint)", number)
        ],
        shop.box.requests_for(address_of(row)),
    )


BEGUN = """
    select
        scope,
        date_part('epoch', coalesce(next_probe_at, ends_at) - began_at) as lasts,
        next_probe_at is not null as probed,
        probe_count
    from notify_worker.stored_incidents
    where project = %s
    order by id
"""
RETIRED = "select retired_at is not null from notify_worker.devices where address = %s"


def fit_to_compare(line: str) -> str:
    """Take out what differs from run to run."""
    line = re.sub(r"\d{4}-\d\d-\d\d [\d:.]+\+00", "<time>", line)
    return re.sub(r"projects/sandbox/messages/\S+", "<name>", line)


# The specification


each_answer = pytest.mark.parametrize("row", ROWS, ids=str)


@each_answer
def test_each_answer_has_its_verdict_and_its_consequences(facts: dict[Answer, Facts], row: Answer) -> None:
    fate, found = row.fate, facts[row]

    (attempt,) = found.attempts
    assert (attempt["verdict"], attempt["requests"]) == (fate.verdict, row.requests)
    assert (attempt["http_status"], attempt["error_code"]) == read(row)
    if attempt["error"]:
        assert attempt["error"] == row.said if attempt["http_status"] else attempt["error"].startswith(row.said)
    assert found.requests == (row.requests if row.where == "sandbox" and row.credentials is None else 0)
    assert (found.delivery["state"], found.delivery["attempts"], found.retired) == (
        fate.state,
        fate.counts,
        fate.retired,
    )
    assert found.state == ("unreachable" if fate is UNREGISTERED else fate.state)
    if fate.due_in is not None:
        due_in = (found.delivery["due_at"] - attempt["finished_at"]).total_seconds()
        assert fate.due_in - 1 <= due_in <= 1.2 * fate.due_in + 2
    assert [tuple(incident.values()) for incident in found.incidents] == [
        (scope, pytest.approx(lasts, abs=1.1), fate.probed, 0) for scope, lasts in fate.stops
    ]


def read(row: Answer) -> tuple[int | None, str | None]:
    """Read status and code in what a row's answer said."""
    if row.fate is SENT:
        return 200, None
    found = re.match(r"(?:(?P<status>\d{3}) )?(?P<code>\w+)", row.said)
    assert found
    return int(found["status"]) if found["status"] else None, row.code or found["code"]


@each_answer
def test_explain_shows_the_consequence_of_each_answer(facts: dict[Answer, Facts], row: Answer) -> None:
    found = facts[row]
    phone = f"delivery {found.delivery['id']} ({row.platform or row.kind} …{found.delivery['address']})"
    names = {
        "phone": phone,
        "tried": f"{phone}: attempt 1 by {found.attempts[0]['worker']}",
        "project": found.delivery["project"],
        "said": found.attempts[0]["error"] or row.said,
    }

    # What began an incident may seem to have ended a moment after it: two readings of two clocks.
    (*lines, last), expected = found.story[2:], [line.format(**names) for line in row.fate.story]
    assert (sorted(lines), last) == (sorted(expected[:-1]), expected[-1])


@pytest.mark.parametrize("row", [row for row in ROWS if row.where == "sandbox"], ids=str)
def test_beside_each_answer_the_rest_of_its_project_goes_on_or_waits(facts: dict[Answer, Facts], row: Answer) -> None:
    assert facts[row].went_on == row.fate.goes_on


def test_the_table_has_every_answer_of_the_sandbox() -> None:
    assert {*NAMED, *WITHOUT_ANSWER, *LATER_503, "hang", "acceptedhang"} <= {row.fault for row in TABLE}


def test_the_table_has_every_verdict() -> None:
    assert {row.fate.verdict for row in ROWS} == set(Verdict)


# When it is over


def end_the_wait(shop: Shop, project: str = "default") -> None:
    """Move the next probe, or the end of a pause, to now."""
    with shop.connection.transaction():
        shop.connection.execute(
            """
            select notify_worker.resume_postponed(project, blocked_until)
            from notify_worker.open_incidents
            where project = %s and scope <> 'project'
            """,
            [project],
        )
        shop.connection.execute(
            """
            update notify_worker.stored_incidents
            set ends_at = case when next_probe_at is null then now() else ends_at end,
                next_probe_at = case when next_probe_at is not null then now() end
            where project = %s and ended_at is null
            """,
            [project],
        )


def verdicts(shop: Shop, number: int) -> list[str]:
    return [attempt["verdict"] for attempt in shop.attempts(number)]


def test_a_successful_probe_ends_the_pause_and_the_rest_is_sent(shop: Shop) -> None:
    shop.start_worker()
    first = shop.notify("oncehtml404:phone")
    until("the project is paused", lambda: verdicts(shop, first) == ["paused"], within=20)
    for number in range(5):
        shop.notify(f"app:phone-{number}")
    until("the worker sleeps", shop.sleeps, within=20)
    assert shop.box.received == 1

    end_the_wait(shop)

    until("all are sent", lambda: shop.all_sent(6), within=8)  # a probe would come by itself after 10
    (incident,) = shop.rows("select * from notify_worker.incidents")
    assert incident["ended_at"] is not None
    assert verdicts(shop, first) == ["paused", "sent"]
    assert shop.delivery(first)["attempts"] == 1
    assert (shop.box.received, shop.box.doubles, shop.unbalanced()) == (7, 0, [])
    story = [line["what"] for line in shop.rows("select what from notify_worker.explain(%s::bigint)", first)]
    assert "project default was resumed" in story


def test_a_failed_probe_costs_no_attempt_and_postpones_the_next_one(shop: Shop) -> None:
    shop.start_worker()
    first = shop.notify("denied:first")
    until("the project is paused", lambda: verdicts(shop, first) == ["paused"], within=20)
    until("the worker sleeps", shop.sleeps, within=10)  # a delivery that it had claimed would not be new to the probe
    for number in range(3):
        shop.notify(f"denied:{number}")

    for probes, wait in ((1, 20), (2, 40)):
        end_the_wait(shop)
        until("a probe is made", lambda count=1 + probes: shop.box.received == count, within=8)  # type: ignore[misc]
        (incident,) = shop.rows(
            "select probe_count, ended_at, next_probe_at - now() as wait from notify_worker.stored_incidents"
        )
        assert (incident["probe_count"], incident["ended_at"]) == (probes, None)
        assert wait - 5 < incident["wait"].total_seconds() <= wait
        until("it is recorded", lambda: shop.leased() == 0, within=20)

    assert shop.states() == {"pending": 4}
    assert shop.value("select sum(attempts) from notify_worker.deliveries") == 0
    by_time = shop.rows("select notification_id from notify_worker.attempts order by started_at")
    assert len({attempt["notification_id"] for attempt in by_time[1:]}) == 2, "the same delivery was probed with twice"


def test_ios_and_web_wait_for_a_probe_while_android_goes_on(shop: Shop) -> None:
    shop.start_worker()
    first = notify(shop, "default", "oncethirdparty:first", "token", "ios")
    until("iOS and web are paused", lambda: verdicts(shop, first) == ["paused"], within=20)
    waiting = [notify(shop, "default", f"app:{platform}", "token", platform) for platform in ("ios", "web")]
    android = notify(shop, "default", "app:android", "token", "android")
    until("what is of Android is sent", lambda: shop.state(android) == "sent", within=20)
    until("the others wait", lambda: all(shop.delivery(each)["due_in"] > 800 for each in (first, *waiting)), within=20)
    assert [verdicts(shop, number) for number in waiting] == [[], []]

    end_the_wait(shop)

    until("all are sent", lambda: shop.all_sent(4), within=20)
    assert shop.value("select count(*) from notify_worker.incidents where ended_at is null") == 0
    assert shop.box.received == 5


def test_a_quota_is_over_without_a_probe(shop: Shop) -> None:
    shop.start_worker()
    first = shop.notify("oncequota:phone")
    until("the project is paused", lambda: verdicts(shop, first) == ["paused"], within=20)

    end_the_wait(shop)

    until("it is sent", lambda: shop.state(first) == "sent", within=20)
    assert shop.value("select bool_and(ended_at is not null) from notify_worker.incidents") is True
    assert (shop.delivery(first)["attempts"], shop.box.received) == (1, 2)


# What a project's row says


def test_a_running_worker_applies_an_update_of_a_projects_row(shop: Shop) -> None:
    write_foreign_key(shop)
    shop.connection.execute("insert into notify_worker.projects (name) values ('patient'), ('thrifty'), ('rekeyed')")
    shop.start_worker()
    for project in ("patient", "thrifty", "rekeyed"):
        shop.notify(f"app:{project}", project=project)
    until("the worker knows all three", lambda: shop.all_sent(3), within=20)

    with shop.connection.transaction():
        shop.connection.execute(
            """
            update notify_worker.projects set first_retry_after = '40 seconds' where name = 'patient';
            update notify_worker.projects set max_attempts = 1 where name = 'thrifty';
            update notify_worker.projects set credentials = 'file:foreign.json' where name = 'rekeyed'
            """
        )
    send_at = datetime.now(UTC) + timedelta(seconds=2)
    retried = shop.notify("drop:a", project="patient", send_at=send_at)
    given_up = shop.notify("drop:b", project="thrifty", send_at=send_at)
    paused = shop.notify("app:c", project="rekeyed", send_at=send_at)

    until("each has its attempt", lambda: all(map(shop.attempts, (retried, given_up, paused))), within=20)
    assert 38 < shop.delivery(retried)["due_in"] <= 48
    assert shop.state(given_up) == "failed"
    assert verdicts(shop, paused) == ["paused"]

    shop.connection.execute("update notify_worker.projects set credentials = null where name = 'rekeyed'")
    until("the pause is known", lambda: bool(shop.rows("select from notify_worker.incidents")), within=20)

    def is_sent_by_a_probe() -> bool:  # not by the first one, perhaps: the worker reads the rows once a second
        end_the_wait(shop, "rekeyed")
        return shop.state(paused) == "sent"

    until("with the key of before it is sent", is_sent_by_a_probe, within=20)
    assert shop.delivery(paused)["attempts"] == 1
