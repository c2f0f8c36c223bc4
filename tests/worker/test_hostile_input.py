"""Hostile input in SQL, FCM's answers, the command line and the environment: a clear error each, nothing else lost.

All committed rows go to one running worker at once, with healthy neighbours in between. The tests of each entry point cover
what it refuses for a plain mistake.
"""

import asyncio
import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any, LiteralString
from uuid import uuid4

import httpx
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from psycopg import errors
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier, Placeholder

from notify_worker.cli.main import main
from notify_worker.database.store import Store
from notify_worker.errors import SettingsError
from notify_worker.model import Message, Outcome, Verdict
from notify_worker.pipeline.projects import Projects
from notify_worker.pipeline.render import render
from notify_worker.pipeline.retry import RetryPolicy
from notify_worker.sandbox.account import account_info, write
from notify_worker.senders.factory import open_sender
from notify_worker.senders.transport import AiohttpTransport
from notify_worker.settings import Settings
from tests.support.hostile import Act, HostileServer, answer, in_turn, then_close, then_stall
from tests.support.server import created
from tests.support.shop import Shop, a_shop
from tests.support.store_calls import Connection, as_stored, connected, outcome
from tests.support.waiting import until

HEALTHY = 20
"""Healthy neighbours of the hostile rows, in the same batch."""
NAME = {"name": "projects/demo/messages/1"}
INJECTED = "x\r\nAuthorization: Bearer injected"
SQL_IN_IT = "'; drop table notify_worker.notifications; --\"\\"
INVISIBLE = "\u202etfel-ot-thgir\u200b\u200d\u2066"
MEGABYTE = 1 << 20
FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"


# ── SQL: what is refused at once ────────────────────────────────────────────────────────────────────────────────────────

IMPOSSIBLE: list[tuple[str, type[psycopg.Error], dict[str, object]]] = [
    ("a NUL in a title", psycopg.DataError, {"title": "a\0b"}),
    ("a NUL in params", errors.UntranslatableCharacter, {"params": {"x": "\0"}}),
    ("a NUL in a key of data", errors.UntranslatableCharacter, {"data": {"\0": "x"}}),
    ("a lone surrogate in params", errors.InvalidTextRepresentation, {"params": {"x": "\ud800"}}),
    ("a lone surrogate in message", errors.InvalidTextRepresentation, {"message": {"\udfff": "x"}}),
    ("a number of 200,000 digits", errors.NumericValueOutOfRange, {"params": '{"x": 1e200000}'}),
    ("params nested 100,000 deep", errors.StatementTooComplex, {"params": '{"x": ' + "[" * 100_000}),
    ("an address of 10 KB", errors.CheckViolation, {"address": "x" * 10_000}),
    ("a receiver of 10 KB", errors.CheckViolation, {"receiver_id": "x" * 10_000}),
    ("an event of 10 KB", errors.CheckViolation, {"event_id": "x" * 10_000}),
    ("a project of 10 KB", errors.CheckViolation, {"project": "x" * 10_000}),
    ("a time after all times", errors.DatetimeFieldOverflow, {"send_at": "300000-01-01"}),
    ("a time that is none", errors.InvalidDatetimeFormat, {"send_at": SQL_IN_IT}),
    ("an end before all times", errors.CheckViolation, {"send_at": "infinity", "expires_at": "infinity"}),
]


@pytest.mark.parametrize(("error", "columns"), [each[1:] for each in IMPOSSIBLE], ids=[each[0] for each in IMPOSSIBLE])
def test_an_invalid_notification_is_refused_in_its_transaction(
    connection: Connection, error: type[psycopg.Error], columns: dict[str, object]
) -> None:
    with pytest.raises(error) as refused:
        connection.insert(**columns)

    if error is errors.CheckViolation:
        assert refused.value.diag.constraint_name
        assert refused.value.diag.message_hint
    assert connection.value("select count(*) from notify_worker.notifications") == 0
    assert connection.insert()


NO_PROJECT: list[tuple[str, LiteralString]] = [
    ("projects_max_per_second_is_positive", "max_per_second = 0"),
    ("projects_max_per_second_is_positive", "max_per_second = -2147483648"),
    ("projects_max_attempts_is_positive", "max_attempts = 0"),
    ("projects_retry_grows", "first_retry_after = '-1 second'"),
    ("projects_retry_grows", "first_retry_after = 'infinity'"),
    ("projects_retry_grows", "first_retry_after = '1 day'"),
    ("projects_retry_grows", "longest_retry_after = '-infinity'"),
    ("projects_credentials_are_a_place", """credentials = '{"type": "service_account", "private_key": "sesame"}'"""),
    ("projects_credentials_are_a_place", "credentials = 'https://evil.example/key.json'"),
    ("projects_credentials_are_a_place", "credentials = ' file:key.json'"),
]


NO_INFINITY = (errors.InvalidDatetimeFormat,)
"""PostgreSQL 15 and 16 know no infinite interval, and refuse the word."""


@pytest.mark.parametrize(("rule", "change"), NO_PROJECT, ids=[each[1][:40] for each in NO_PROJECT])
def test_an_invalid_project_is_refused_by_a_named_rule(
    connection: Connection, rule: str, change: LiteralString
) -> None:
    with pytest.raises((errors.CheckViolation, *NO_INFINITY)) as refused:
        connection.execute("update notify_worker.projects set " + change)

    if isinstance(refused.value, errors.CheckViolation):
        assert refused.value.diag.constraint_name == rule
    else:
        assert connection.info.server_version < 170000
        assert "infinity" in change


OUT_OF_REACH: list[LiteralString] = [
    "longest_retry_after = '5000000 years'",
    "expires_after = '300000 years'",
    "expires_after = '-300000 years'",
    "stale_after = '10000 years'",
    "stale_after = '170000000 years'",
]


@pytest.mark.parametrize("change", OUT_OF_REACH)
async def test_an_interval_beyond_all_dates_blocks_no_other_project(database: str, change: LiteralString) -> None:
    with connected(database) as connection:
        healthy = connection.insert()
        connection.register_device("u_42", "fcm:hostile", project="hostile")
        connection.execute("insert into notify_worker.projects (name) values ('hostile')")
        with suppress(errors.CheckViolation):
            connection.execute("update notify_worker.projects set " + change + " where name = 'hostile'")
        connection.insert(receiver_id="u_42", project="hostile")

        async with Store(database) as store:
            await store.projects()
        claimed = connection.claim(connection.register_worker())

    assert healthy in {each["notification_id"] for each in claimed}


def test_unknown_project_names_hide_no_real_project(connection: Connection) -> None:
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, project, send_at)
        select 'token', 'x', 't', '!' || number, now() + interval '20 years' from generate_series(1, 2000) as number
        """
    )
    number = connection.insert()

    assert connection.value("select notify_worker.has_due()")
    assert connection.value("select sum(due) from notify_worker.status") == 1
    assert [each["notification_id"] for each in connection.claim(connection.register_worker())] == [number]


@pytest.mark.parametrize("wait", ["infinity", "200000 years"])
async def test_a_retry_interval_beyond_all_dates_is_refused_or_recorded(database: str, wait: str) -> None:
    with connected(database) as connection:
        number = connection.insert()
        with suppress(errors.CheckViolation, *NO_INFINITY):
            connection.execute(
                "update notify_worker.projects set first_retry_after = %s, longest_retry_after = %s", [wait, wait]
            )
        async with Store(database) as store:
            ((project, *_),) = await store.projects()
        worker = connection.register_worker()
        claimed = connection.claim(worker)

        retry_in = RetryPolicy.of(project).wait(1, jitter=0.9)
        connection.record(worker, outcome(claimed[0], verdict="retry", retry_in=retry_in.total_seconds()))

        assert [attempt["verdict"] for attempt in connection.attempts(number)] == ["retry"]


@pytest.mark.parametrize("message", ['{"x": 1e5000}', '{"x": ' + "[" * 5_000 + "]" * 5_000 + "}"], ids=["long", "deep"])
async def test_a_campaign_that_can_not_be_read_fails_its_own_rows_alone(database: str, message: str) -> None:
    with connected(database) as connection:
        connection.execute("insert into notify_worker.campaigns (name, message) values ('hostile', %s)", [message])
        hostile, healthy = connection.insert(campaign="hostile"), connection.insert()
        worker = connection.register_worker()

    async with Store(database) as store:
        claimed = await store.claim(worker.id, uuid4(), 100, {"default": 1000}, timedelta(seconds=60))

    rendered = {delivery.notification_id: render(delivery) for delivery in claimed.deliveries}
    assert isinstance(rendered[healthy], Message)
    assert isinstance(rendered[hostile], Outcome)


# ── SQL: what the worker decides ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Hostile:
    """A row that commits, and what becomes of it."""

    columns: Mapping[str, object]
    state: str
    says: str = ""
    """What its story says of the end."""
    shown: str | None = None
    """The title that FCM was given."""
    campaign: Mapping[str, object] = field(default_factory=dict)
    """The content of its campaign."""


def content(title: str, params: object, says: str = "", *, shown: str | None = None) -> Hostile:
    """A campaign, and params for it."""
    return Hostile({"params": params}, "failed" if shown is None else "sent", says, shown, campaign={"title": title})


def needs(name: str) -> str:
    return f'needs the param "{name}"'


ROWS = {
    # placeholders
    "an attribute": content("{x.__class__}", {"x": "a"}, needs("x.__class__")),
    "an attribute of globals": content("{x.__init__.__globals__}", {"x": "a"}, needs("x.__init__.__globals__")),
    "a position": content("{0}", {"x": "a"}, needs("0")),
    "no name": content("{}", {"x": "a"}, needs("")),
    "an index": content("{x[0]}", {"x": ["a"]}, needs("x[0]")),
    "a conversion": content("{x!r}", {"x": "a"}, needs("x!r")),
    "a format bomb": content("{x:>9999999999}", {"x": "a"}, needs("x:>9999999999")),
    "a name of 10 KB": content("{" + "x" * 10_000 + "}", {}, 'needs the param "xxx'),
    "braces around braces": content("{{{x}}} {{{{x}}}}", {"x": "a"}, shown="{a} {{x}}"),
    "braces without an end": content("{x} {x {{ }", {"x": "a"}, shown="a {x { }"),
    "a param that is a placeholder": content("{x}", {"x": "{y} {x}", "y": "secret"}, shown="{y} {x}"),
    "another language's placeholders": content("%s %(x)s ${x} $1 :x %n", {"x": "a"}, shown="%s %(x)s $a $1 :x %n"),
    # params
    "a number of 400 digits": content("{x}", '{"x": 1e400}', shown="1" + "0" * 400),
    "a number of 5,000 digits": content("{x}", '{"x": 1e5000}', "can't be read"),
    "a fraction beyond all floats": content("{x}", f'{{"x": -{"1" * 400}.5}}', "can't be read"),
    "params of 70 KB": content("{x}", {"x": "a" * 70_000}, "more than 64 KB"),
    "params that were packed": content("{x}", {"x": "a" * MEGABYTE}, "more than 64 KB"),
    "params nested 5,000 deep": content("{x}", '{"x": ' + "[" * 5_000 + "]" * 5_000 + "}", "can't be read"),
    "4,000 params": content("{x}", {f"x{number}": 1 for number in range(4_000)}, needs("x")),
    # message and data
    "another address in message": Hostile(
        {"message": {"topic": "everybody"}}, "failed", 'can\'t have the field "topic"'
    ),
    "an address as null": Hostile({"message": {"token": None}}, "failed", 'can\'t have the field "token"'),
    "parts of another shape": Hostile(
        {"message": {"android": [], "apns": 5, "webpush": "x", "notification": None, "data": [1]}}, "sent"
    ),
    "headers in message": Hostile({"message": {"apns": {"headers": {"authorization": INJECTED}}}}, "sent"),
    "headers in data": Hostile({"data": {"authorization": INJECTED, INJECTED: "x"}}, "sent"),
    "a title of 5 KB": Hostile({"title": "a" * 5_000}, "failed", "FCM accepts 4096"),
    # whom
    "an address with a header": Hostile({"address": INJECTED}, "failed", "unprintable character U+000D"),
    "an address right to left": Hostile({"address": INVISIBLE}, "failed", "unprintable character U+202E"),
    "an empty address": Hostile({"address": ""}, "failed", "the token is empty"),
    "an address that ends its JSON": Hostile({"address": '"},"topic":"everybody'}, "sent"),
    "an address of SQL": Hostile({"address": SQL_IN_IT}, "sent"),
    "a topic above its folder": Hostile({"kind": "topic", "address": "../projects"}, "failed", "is not a topic name"),
    "a condition without end": Hostile(
        {"kind": "condition", "address": "'a' in topics || " * 100}, "failed", "the condition has 100 topics"
    ),
    "a receiver of SQL": Hostile({"receiver_id": SQL_IN_IT}, "unreachable", "has no live device"),
    "a receiver right to left": Hostile({"receiver_id": INVISIBLE}, "unreachable", "has no live device"),
    # names
    "an event of SQL": Hostile({"event_id": SQL_IN_IT}, "sent"),
    "an event right to left": Hostile({"event_id": INVISIBLE}, "sent"),
    "an event of control characters": Hostile({"event_id": "\x1b[2J\x07\r\n"}, "sent"),
    "a campaign of SQL": Hostile({"campaign": SQL_IN_IT}, "failed", f'there is no campaign "{SQL_IN_IT}"'),
    "a campaign of 1 MB": Hostile({"campaign": "x" * MEGABYTE}, "failed", "there is no campaign"),
    "a campaign of formats": Hostile({"campaign": "%s%I%1$s%"}, "failed", 'there is no campaign "%s%I%1$s%"'),
    "a project above its folder": Hostile({"project": "../default\n"}, "failed", "there is no project"),
    "a traceparent that is none": Hostile({"traceparent": INJECTED * 1_000}, "sent"),
    # times
    "sent before all times": Hostile({"send_at": "-infinity"}, "sent"),
    "sent at the end of times": Hostile({"send_at": "infinity"}, "pending"),
    "sent on the last day": Hostile({"send_at": "294276-12-31 23:59:59+00"}, "pending"),
    "expired before all times": Hostile({"expires_at": "-infinity"}, "expired", "it expired"),
    "expires never": Hostile({"expires_at": "infinity"}, "sent"),
    "expires on the last day": Hostile({"expires_at": "294276-12-31 23:59:59+00"}, "sent"),
}


# ── the projects' rows, and what FCM answers ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Answered:
    """A project of its own, and what the first attempt of its one notification comes to."""

    verdict: str
    says: str
    act: Act | None = None
    row: Mapping[str, object] = field(default_factory=dict)
    """What its row says. Empty: FCM answers with the act."""


def raw(data: bytes) -> Act:
    """Write these bytes."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return act


def drip(head: bytes, drop: bytes) -> Act:
    """Write a little again and again, without end."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.02)

    return act


def said(status: int, message: Any, *details: Any, code: Any = "INVALID_ARGUMENT") -> Act:
    """An error in FCM's shape."""
    return answer(status, {"error": {"code": status, "status": code, "message": message, "details": details}})


OK = b"HTTP/1.1 200 OK\r\n"
SENT_WITH_ITS_NAME = OK + b"Content-Length: 36\r\n\r\n" + json.dumps(NAME).encode()
UNREADABLE = "could not be read; FCM may have it"
UNTIL_THE_END = "no answer within 2 s; FCM may have it"

PROJECTS = {
    # firebase_project_id
    "above its folder": Answered("paused", "Look at firebase_project_id", row={"firebase_project_id": "../../../evil"}),
    "two dots": Answered("paused", "Look at firebase_project_id", row={"firebase_project_id": ".."}),
    "a query": Answered("paused", "Look at firebase_project_id", row={"firebase_project_id": "a?b#c@evil.example:1/"}),
    "a header": Answered("paused", "Look at firebase_project_id", row={"firebase_project_id": INJECTED}),
    "right to left": Answered("paused", "Look at firebase_project_id", row={"firebase_project_id": INVISIBLE}),
    # credentials and sender
    "a folder": Answered("paused", "can't be read: .", row={"credentials": "file:."}),
    "no file": Answered("paused", "is not there: ../../no", row={"credentials": "file:../../no"}),
    "a path of 10 KB": Answered("paused", "can't be read", row={"credentials": f"file:{'x' * 10_000}"}),
    "a path of two lines": Answered("paused", "is not there", row={"credentials": "file:a\n2027-01-02 ERROR forged"}),
    "an empty file": Answered("paused", "is not JSON", row={"credentials": "file:empty.json"}),
    "10 MB of spaces": Answered("paused", "is not JSON", row={"credentials": "file:spaces.json"}),
    "a list": Answered("paused", "leads to JSON of type null", row={"credentials": "file:list.json"}),
    "no path": Answered("paused", "neither file:PATH nor env:NAME", row={"credentials": "file:"}),
    "no variable": Answered("paused", "is not set: NOT_SET", row={"credentials": "env:NOT_SET"}),
    "a variable of another kind": Answered("paused", "is not JSON", row={"credentials": "env:PATH"}),
    "a token endpoint in the clear": Answered("paused", "token_uri is", row={"credentials": "file:foreign.json"}),
    "a sender that is a module": Answered("paused", 'no sender "os.system"', row={"sender": "os.system"}),
    "a sender that is a path": Answered("paused", 'no sender "../x:y"', row={"sender": "../x:y"}),
    # headers
    "an injected header": Answered("paused", "429", answer(429, retry_after=f"60{INJECTED[1:]}")),
    "a wait of 5,000 digits": Answered("paused", "429", answer(429, retry_after="9" * 5_000)),
    "a wait of no number": Answered("paused", "429", answer(429, retry_after="NaN")),
    "a wait until no date": Answered(
        "paused", "429", answer(429, retry_after="Wed, 99 Foo 99999 99:99:99 +99999999999")
    ),
    "a cookie": Answered("sent", "", in_turn(answer(503, set_cookie="session=stolen; Path=/"), answer(200, NAME))),
    "a header of 1 MB": Answered("unknown", UNREADABLE, answer(200, NAME, x="a" * MEGABYTE)),
    "100,000 headers": Answered("unknown", "FCM may have it", raw(OK + b"X: y\r\n" * 100_000 + b"\r\n")),
    "headers without end": Answered("unknown", UNTIL_THE_END, drip(OK, b"x")),
    "a NUL in a header": Answered("unknown", UNREADABLE, answer(200, NAME, x="a\0b")),
    # what stands between
    "a redirect": Answered("paused", "307"),
    "100 Continue": Answered("sent", "", raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + SENT_WITH_ITS_NAME)),
    "103 Early Hints": Answered(
        "sent", "", raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + SENT_WITH_ITS_NAME)
    ),
    "100 without end": Answered("unknown", UNTIL_THE_END, drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    "101 Switching": Answered(
        "unknown", "", raw(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    ),
    "HTTP/1.0": Answered("sent", "", then_close(raw(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(NAME).encode()))),
    "HTTP/9.9": Answered("unknown", UNREADABLE, raw(SENT_WITH_ITS_NAME.replace(b"1.1", b"9.9"))),
    "a status of 999": Answered("unknown", "999", answer(999)),
    "no number of a status": Answered("unknown", UNREADABLE, raw(b"HTTP/1.1 abc OK\r\n\r\n")),
    "204": Answered("unknown", "204", raw(b"HTTP/1.1 204 No Content\r\n\r\n")),
    # lengths
    "too short a length": Answered("unknown", UNREADABLE, answer(200, NAME, content_length="2")),
    "too long a length": Answered("sent", "", then_stall(answer(200, NAME, content_length="5000"))),
    "no number of a length": Answered("unknown", UNREADABLE, answer(200, NAME, content_length="-1")),
    "a chunk of no length": Answered("unknown", UNREADABLE, raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")),
    "a body without end": Answered("sent", "", drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")),
    "a body of 10 MB": Answered("failed", "bytes of text/html", answer(400, b"x" * 10 * MEGABYTE)),
    "a name of 1 MB": Answered("sent", "", answer(200, {"name": "x" * MEGABYTE})),
    # bodies
    "a NUL in an error": Answered("failed", "a b", said(400, "a\0b")),
    "a surrogate in an error": Answered("failed", "a b", said(400, "a\ud800b")),
    "an error of many lines": Answered("failed", "a [2J injected", said(400, "a\n\x1b[2J\r\ninjected")),
    "a name of control characters": Answered("sent", "", answer(200, {"name": "a\0\n\x1bb"})),
    "no UTF-8": Answered("failed", "not an error of FCM", answer(400, b"\xff\xfe\x00")),
    "JSON nested 100,000 deep": Answered("failed", "not an error of FCM", answer(400, b"[" * 100_000)),
    "a number of 10,000 digits": Answered("failed", "not an error of FCM", answer(400, b"1" * 10_000)),
    "a code of HTML": Answered("failed", "HTTP_400: no", said(400, "no", code="<script>")),
    "details of another shape": Answered(
        "failed", "no", said(400, "no", None, 5, [], {"@type": 5}, {"@type": FCM_ERROR, "errorCode": ["UNREGISTERED"]})
    ),
}


# ── what became of it ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Facts:
    """What there is to see at the end."""

    rows: dict[int, dict[str, Any]]
    inserted: dict[str, int]
    """The number of each notification."""
    healthy: list[str]
    """The states of the neighbours."""
    requests: list[Any]
    """What FCM has read."""
    elsewhere: int
    """Requests to the host that the redirect names."""
    log: str
    unbalanced: list[Any]
    worker_lives: bool

    def of(self, name: str) -> dict[str, Any]:
        return self.rows[self.inserted[name]]

    def title(self, name: str) -> str:
        """The title that FCM was given."""
        number = str(self.inserted[name])
        (message,) = (each for each in map(message_of, self.requests) if each["data"]["notification_id"] == number)
        return str(message["notification"]["title"])


def message_of(seen: Any) -> dict[str, Any]:
    return dict(seen.json()["message"])


@pytest.fixture(scope="module")
def facts(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    """Commit everything at once, and wait until the worker has got through it."""
    folder = with_short_key(tmp_path_factory.mktemp("shop"))
    acts = {f"/v1/projects/{number}/": each.act for number, each in enumerate(PROJECTS.values()) if each.act}
    with served({"": answer(404)}) as elsewhere, a_shop(server, template, folder) as shop:
        redirect = answer(307, location=f"{elsewhere.url}/v1/projects/x/messages:send")
        acts[f"/v1/projects/{list(PROJECTS).index('a redirect')}/"] = redirect
        with served({"": answer(404), "/v1/projects/sandbox/": answer(200, NAME)} | acts) as fcm:
            inserted = insert_all(shop)
            worker = shop.start_worker(NOTIFY_WORKER_FCM_URL=by_name(fcm.url))
            with suppress(AssertionError):  # the tests say what did not come
                until("the worker has got through", lambda: has_got_through(shop, inserted), within=15)
            story = shop.rows(STORY)
            yield Facts(
                rows={row["id"]: row for row in story},
                inserted=inserted,
                healthy=[row["state"] for row in story if str(row["event_id"]).startswith("healthy:")],
                requests=list(fcm.seen),
                elsewhere=len(elsewhere.seen),
                log=shop.log.read_text(errors="replace"),
                unbalanced=shop.unbalanced(),
                worker_lives=not worker.has_left,
            )


STORY: LiteralString = """
    select
        notification.id,
        notification.event_id,
        notification.state,
        concat_ws(' ', notification.settled_reason, delivery.last_error) as reason,
        attempt.verdict,
        attempt.error,
        attempt.error_code,
        attempt.provider_message_id,
        attempt.requests
    from notify_worker.notifications as notification
    left join notify_worker.deliveries as delivery
        on delivery.notification_id = notification.id
    left join notify_worker.attempts as attempt
        on attempt.delivery_id = delivery.id
        and attempt.number = 1
"""


def with_short_key(folder: Path) -> Path:
    """Leave a key for the sandbox, short since each project reads and checks it; and files that are none."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write(folder / "sandbox.json", account_info("short", pem.decode(), "http://127.0.0.1:9/token", "sandbox"))
    foreign = json.loads((folder / "sandbox.json").read_text()) | {"token_uri": "http://evil.example/token"}
    (folder / "foreign.json").write_text(json.dumps(foreign))
    (folder / "list.json").write_text("[]")
    (folder / "empty.json").touch()
    (folder / "spaces.json").write_text(" " * 10 * MEGABYTE)
    return folder


@contextmanager
def served(acts: dict[str, Act]) -> Iterator[HostileServer]:
    """Serve from a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    server = HostileServer(acts)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(5)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def by_name(url: str) -> str:
    """Replace the IP address by a name: no client keeps a cookie of an IP address."""
    return url.replace("127.0.0.1", "localhost")


def insert_all(shop: Shop) -> dict[str, int]:
    """Commit everything, in one transaction."""
    inserted = {}
    with shop.connection.transaction():
        for number, (name, hostile) in enumerate(ROWS.items()):
            columns = dict(hostile.columns)
            if hostile.campaign:
                put(shop.connection, "campaigns", {"name": name, **hostile.campaign})
                columns |= {"campaign": name, "title": None}
            if number % 3 == 0:
                shop.connection.insert(event_id=f"healthy:{number}")
            inserted[name] = shop.connection.insert(**columns)
        for number, (name, answered) in enumerate(PROJECTS.items()):
            put(shop.connection, "projects", {"name": name, "firebase_project_id": str(number), **answered.row})
            if number % 3 == 0:
                shop.connection.insert(event_id=f"healthy:too:{number}")
            inserted[name] = shop.connection.insert(project=name)
    return inserted


def put(connection: Connection, table: str, columns: Mapping[str, object]) -> None:
    connection.execute(
        SQL("insert into notify_worker.{} ({}) values ({})").format(
            Identifier(table), SQL(", ").join(map(Identifier, columns)), SQL(", ").join(map(Placeholder, columns))
        ),
        {name: as_stored(each) for name, each in columns.items()},
    )


def has_got_through(shop: Shop, inserted: Mapping[str, int]) -> bool:
    """Say whether each has come to its end, or to its first attempt."""
    story = {row["id"]: row for row in shop.rows(STORY)}
    return all(story[inserted[name]]["state"] == hostile.state for name, hostile in ROWS.items()) and all(
        story[inserted[name]]["verdict"] for name in PROJECTS
    )


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_row_ends_as_it_should_and_says_why(facts: Facts, name: str) -> None:
    hostile, row = ROWS[name], facts.of(name)

    assert (row["state"], row["verdict"] in (None, hostile.state)) == (hostile.state, True), row
    assert hostile.says in row["reason"]
    if hostile.shown is not None:
        assert facts.title(name) == hostile.shown


@pytest.mark.parametrize("name", PROJECTS)
def test_a_hostile_project_or_answer_has_its_documented_result(facts: Facts, name: str) -> None:
    answered, row = PROJECTS[name], facts.of(name)

    assert row["verdict"] == answered.verdict, row
    assert answered.says in (row["error"] or "")
    assert all(
        each is None or (each.isprintable() and len(each) <= 600) for each in (row["error"], row["provider_message_id"])
    )


def test_every_healthy_neighbour_is_sent(facts: Facts) -> None:
    assert facts.healthy == ["sent"] * len(facts.healthy)
    assert len(facts.healthy) >= HEALTHY
    assert facts.worker_lives
    assert facts.unbalanced == []


def test_every_request_has_fcms_path_one_target_and_no_injected_header(facts: Facts) -> None:
    assert facts.requests
    for seen in facts.requests:
        assert re.fullmatch(r"/v1/(projects/[^/?#\s]+/)?messages:send", seen.path)
        assert re.fullmatch(r"Bearer \S+", seen.headers["authorization"])
        assert "injected" not in str(seen.headers)
        assert "cookie" not in seen.headers
        assert len({"token", "fid", "topic", "condition"} & message_of(seen).keys()) == 1


def test_a_redirect_takes_the_bearer_nowhere(facts: Facts) -> None:
    assert facts.elsewhere == 0


def test_the_log_holds_no_bearer_no_traceback_and_no_escape_character(facts: Facts) -> None:
    assert "Traceback" not in facts.log
    assert "Bearer " not in facts.log
    assert "\x1b" not in facts.log


# ── what a worker reads at its start ────────────────────────────────────────────────────────────────────────────────────

KEYS: dict[str, Mapping[str, object] | bytes] = {
    "nested 100,000 deep": b"[" * 100_000,
    "a project that is a number": {"project_id": 42},
    "a project that is an object": {"project_id": {"a": 1}},
    "a project of 70 KB": {"project_id": "x" * 70_000},
    "a project that is half a letter": {"project_id": "\ud800"},
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_a_hostile_key_of_one_project_keeps_no_other_project_from_sending(
    database: str, tmp_path: Path, key: Mapping[str, object] | bytes
) -> None:
    account = json.loads((with_short_key(tmp_path) / "sandbox.json").read_text())
    (tmp_path / "hostile.json").write_bytes(key if isinstance(key, bytes) else json.dumps(account | key).encode())

    await open_both(database, credentials=f"file:{tmp_path / 'hostile.json'}")


async def test_a_long_firebase_project_id_keeps_no_other_project_from_sending(database: str, tmp_path: Path) -> None:
    key = with_short_key(tmp_path) / "sandbox.json"

    await open_both(database, credentials=f"file:{key}", firebase_project_id="x" * 70_000)


async def test_a_credential_that_is_a_silent_pipe_does_not_block_the_start(database: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)

    try:
        async with asyncio.timeout(1):
            await open_both(database, credentials=f"file:{pipe}")
    finally:
        with suppress(OSError):  # nobody reads: it is as it should be
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


async def open_both(database: str, **columns: str) -> None:
    """Open the senders of a healthy project and of a hostile one, as a worker does at its start; the healthy one sends."""
    with connected(database) as connection:
        connection.execute("update notify_worker.projects set sender = 'console'")
        put(connection, "projects", {"name": "hostile", **columns})
    async with Store(database) as store:
        projects = Projects(store, lambda project: open_sender(project, Settings()))
        await projects.open_senders()
        healthy = projects.state("default")
        assert healthy is not None
        sent = await healthy.sender.send(Message("token", {"token": "app:phone"}))
        await projects.aclose()
    assert sent.verdict is Verdict.SENT


# ── a body that is larger than it looks ─────────────────────────────────────────────────────────────────────────────────


def poured(size: int) -> Act:
    """Answer 200 with a body that is made as it goes."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + f"Content-Length: {size}\r\n\r\n".encode())
        for _ in range(0, size, MEGABYTE):
            writer.write(bytes(MEGABYTE))
            await writer.drain()

    return act


@pytest.mark.parametrize(
    "act",
    [answer(200, gzip.compress(bytes(100 * MEGABYTE)), content_encoding="gzip"), poured(50 * MEGABYTE)],
    ids=["packed", "as it is"],
)
async def test_a_huge_answer_takes_less_than_eight_megabytes_of_memory(act: Act) -> None:
    async with HostileServer({"": answer(200), "/huge": act}) as server, AiohttpTransport(in_flight=1) as transport:
        await transport.handle_async_request(httpx.Request("POST", server.url))
        tracemalloc.start()
        try:
            response = await transport.handle_async_request(httpx.Request("POST", server.url + "/huge"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert response.status_code == 200
    assert peak < 8 * MEGABYTE


# ── a session of the caller's own ───────────────────────────────────────────────────────────────────────────────────────

SHADOWS: LiteralString = """
    create temp table caught (what text);
    grant all on caught to public;
    create temp table notifications (like notify_worker.notifications);
    create temp table devices (like notify_worker.devices);
    create temp table stored_deliveries (like notify_worker.stored_deliveries);
    create temp table procrastinate_jobs (like notify_worker.procrastinate_jobs);
    create function pg_temp.now() returns timestamptz language sql as
        $$ insert into caught values ('now'); select 'infinity'::timestamptz $$;
    create function pg_temp.clock_timestamp() returns timestamptz language sql as
        $$ insert into caught values ('clock_timestamp'); select 'infinity'::timestamptz $$;
    create function pg_temp.format(text, variadic text[]) returns text language sql as
        $$ insert into caught values ('format'); select 'a' $$;
    create function pg_temp.octet_length(text) returns integer language sql as
        $$ insert into caught values ('octet_length'); select 0 $$;
    create function pg_temp.wake_worker(boolean) returns boolean language sql as
        $$ insert into caught values ('wake_worker'); select true $$;
    create function pg_temp.settle(bigint[]) returns void language sql as $$ insert into caught values ('settle') $$;
    set search_path = pg_temp, notify_worker, pg_catalog;
    set notify_worker.wakeup = 'junk''; drop table notify_worker.notifications; --';
    set timezone = 'Pacific/Kiritimati';
    set datestyle = 'German';
    set intervalstyle = 'sql_standard';
    set standard_conforming_strings = on;
    set default_transaction_isolation = 'serializable';
    set enable_indexscan = off;
"""


def test_a_producers_temporary_objects_shadow_nothing(database: str, connection: Connection) -> None:
    with connected(database) as shop:
        shop.execute(SHADOWS)
        shop.execute("set role notify_worker_producer")
        device = shop.register_device("u_42", "fcm:phone")
        shop.insert(receiver_id="u_42", event_id="order:42:paid")
        taken_back = shop.insert(receiver_id="u_42", event_id="order:43:paid")
        with pytest.raises(errors.CheckViolation):
            shop.insert(event_id="x" * 513)
        shop.execute("select notify_worker.cancel('order:43:paid')")
        caught = shop.rows("select what from caught")

    assert caught == []
    assert connection.state(taken_back) == "cancelled"
    (claimed,) = connection.claim(connection.register_worker())
    assert [each["device_id"] for each in connection.deliveries(claimed["notification_id"])] == [device]


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────────

ODD = "\udc80"
"""A byte that is no UTF-8, as Python reads an argument."""

ARGUMENTS: list[tuple[tuple[str, ...], str]] = [
    (("explode",), "No such command 'explode'"),
    (("explain", ""), 'the event_id or id ""'),
    (("explain", "a\0b"), "NUL"),
    (("explain", ODD), "an argument is not UTF-8"),
    (("explain", "9" * 5_000), "there is no notification with the event_id or id"),
    (("explain", "9223372036854775808"), "there is no notification with the event_id or id"),
    (("explain", "--", "-1"), "there is no notification with the event_id or id"),
    (("explain", "-1"), "No such option '-1'"),
    (("explain", SQL_IN_IT), "there is no notification with the event_id or id"),
    (("cancel", "1e3"), "there is no notification with the event_id or id"),
    (("cancel", "٣"), "there is no notification with the event_id or id"),
    (("retry", "0x10"), "there is no notification with the event_id or id"),
    (("retry", "--delivery", "9" * 30), "there is no delivery 999"),
    (("retry", "--delivery", "-1"), "there is no delivery -1"),
    (("retry", "--delivery", "1.5"), "'1.5' is not a valid integer"),
    (("retry", "--delivery", "9" * 5_000), "is not a valid integer"),
    (("retry", "--project", SQL_IN_IT), "there is no project"),
    (("retry", "--project", "default", "--since", "whenever"), "invalid input syntax for type timestamp"),
    (("retry", "--project", "default", "--since", "99999999-01-01"), "out of range"),
    (("history", "u_42", "--since", SQL_IN_IT), "invalid input syntax for type timestamp"),
    (("history", "u_42", "--since", ""), "invalid input syntax for type timestamp"),
    (("history", "u_42", "--since", "a\0b"), "NUL"),
    (("history", ODD), "an argument is not UTF-8"),
    (("pause", "defualt", "a sale"), 'did you mean "default"'),
    (("pause", "default", "a\0b"), "NUL"),
    (("resume", "../default"), "there is no project"),
    (("prune", "--older-than", "9" * 30 + " days"), "out of range"),
    (("prune", "--older-than", "300000 years"), "out of range"),
    (("prune", "--older-than", SQL_IN_IT), "invalid input syntax for type interval"),
    (("send", "--receiver", "u_42", "--campaign", "a", "--param", "order"), '"order" is not NAME=VALUE'),
    (("send", "--receiver", "u_42", "--title", "a\0b"), "NUL"),
    (("send", "--receiver", ODD, "--title", "Hello"), "an argument is not UTF-8"),
    (("send", "--receiver", "u_42", "--campaign", "a", "--param", "x=a\0b"), "Unicode escape"),
    (("send", "--receiver", "u_42", "--campaign", "a", "--param", f"x={ODD}"), "invalid input syntax for type json"),
    (("send", "--receiver", "u_42", "--title", "Hello", "--data", "from=me"), "reserved"),
    (("send", "--receiver", "u" * 1_000, "--title", "Hello"), "is too long"),
    (("send", "--token", "t" * 5_000, "--title", "Hello"), "is too long"),
    (("send", "--receiver", "u_42", "--title", "Hello", "--event-id", "e" * 513), "is too long"),
    (("send", "--receiver", "u_42", "--title", "Hello", "--priority", INJECTED), "use high or normal"),
    (("sandbox", "--port", "-1"), "-1 is not in the range 0<=x<=65535"),
    (("sandbox", "--latency", "soon"), "is not a valid float"),
]


@pytest.mark.parametrize(("arguments", "says"), ARGUMENTS, ids=[" ".join(each[0])[:60] for each in ARGUMENTS])
def test_a_hostile_argument_gets_a_clear_error(
    shared: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)

    result = capsys.readouterr()
    assert (left.value.code, result.out) == (2, "")
    assert says.lower() in result.err.splitlines()[-1].lower()
    with Connection.connect(shared) as connection:
        assert connection.value("select count(*) from notify_worker.notifications") == 0


@pytest.fixture(scope="module")
def shared(server: str, template: str) -> Iterator[str]:
    """A database that stays empty, and that the verbs work on: everything that is tried in it is refused."""
    with created(server, template) as name, pytest.MonkeyPatch.context() as environment:
        conninfo = make_conninfo(server, dbname=name)
        environment.setenv("NOTIFY_WORKER_DATABASE_URL", conninfo)
        yield conninfo


@pytest.mark.parametrize("verb", ["explain", "history"])
def test_no_content_of_a_producer_reaches_an_operators_terminal_raw(
    database: str,
    connection: Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", database)
    number = connection.insert(receiver_id="u_42", event_id="order\x1b[2J\n2027-01-02 09:00:00  it ended sent")

    with pytest.raises(SystemExit):
        main([verb, str(number) if verb == "explain" else "u_42"])

    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == {"explain": 2, "history": 1}[verb]
    assert all(line.isprintable() for line in shown.splitlines())


# ── the environment ─────────────────────────────────────────────────────────────────────────────────────────────────────

VARIABLES: list[tuple[str, str, str]] = [
    ("CONCURRENCY", "9" * 5_000, "has to be a whole number from 1 to 10000"),
    ("CONCURRENCY", "-100", "has to be a whole number from 1 to 10000"),
    ("CONCURRENCY", "٣", "has to be a whole number from 1 to 10000"),
    ("CONCURRENCY", "0x64", "has to be a whole number from 1 to 10000"),
    ("REQUEST_TIMEOUT_SECONDS", "1e308", "has to be a number of seconds"),
    ("REQUEST_TIMEOUT_SECONDS", "-15", "has to be a number of seconds"),
    ("REQUEST_TIMEOUT_SECONDS", "15s", "has to be a number of seconds"),
    ("LEASE_SECONDS", "NaN", "has to be a number of seconds"),
    ("LEASE_SECONDS", "9" * 5_000, "has to be a number of seconds"),
    ("LOG_FORMAT", "JSON", "has to be text or json"),
    ("LOG_FORMAT", "{x.__class__}", "has to be text or json"),
    ("FCM_URL", "http://fcm.example", "has to begin with https://"),
    ("FCM_URL", "http://evil.example\\@fcm.example", "has to begin with https://"),
    ("FCM_URL", "http://127.0.0.1\n.evil.example", "has to begin with https://"),
    ("FCM_URL", "http://localhost.evil.example", "has to begin with https://"),
    ("FCM_URL", "http://0177.0.0.1", "has to begin with https://"),
    ("FCM_URL", "http://2130706433", "has to begin with https://"),
    ("FCM_URL", "http://[::ffff:10.0.0.1]", "has to begin with https://"),
    ("FCM_URL", "file:///etc/passwd", "has to begin with https://"),
    ("FCM_URL", "javascript:alert(1)", "has to begin with https://"),
    ("FCM_URL", "https:fcm.googleapis.com", "has to begin with https://"),
    ("FCM_URI", "https://fcm.googleapis.com", "Did you mean NOTIFY_WORKER_FCM_URL?"),
    ("CONCURENCY", "100", "Did you mean NOTIFY_WORKER_CONCURRENCY?"),
    ("\x1b[2J", "x", "is not a setting"),
    ("", "x", "is not a setting"),
]

ADDRESSES: list[tuple[str, str, str]] = [
    ("FCM_URL", "https://fcm.googleapis.com:99999", "port"),
    ("FCM_URL", "https://fcm.googleapis.com:-1", "port"),
    ("FCM_URL", "https://fcm.googleapis.com:many", "port"),
    ("FCM_URL", "https://me:opensesame@fcm.googleapis.com", ""),
    ("FCM_URL", "https://fcm.googleapis.com/?key=x", ""),
    ("FCM_URL", "https://fcm.googleapis.com/#x", ""),
    ("FCM_URL", "http://127.0.0.1#@evil.example", ""),
    ("FCM_URL", "https://fcm.googleapis.com\r\nX: y", ""),
]


@pytest.mark.parametrize(("name", "text", "says"), [*VARIABLES, *ADDRESSES], ids=lambda each: each[:40])
def test_a_hostile_variable_is_named_with_its_expected_value(name: str, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({f"NOTIFY_WORKER_{name}": text, "NOTIFY_WORKER_HOME": "/nowhere"})

    assert str(refused.value).startswith(f"NOTIFY_WORKER_{name} ")
    assert says in str(refused.value)
    assert "sesame" not in str(refused.value)


DATABASES = [
    "nonsense",
    "postgresql//me:opensesame@db/shop",
    "host=127.0.0.1 port=99999 password=opensesame",
    "host=127.0.0.1 port=-1",
    "postgresql://me:opensesame@127.0.0.1:99999/shop",
    "postgresql://me:opensesame@[::1/shop",
    "mysql://me:opensesame@127.0.0.1/shop",
    "host=127.0.0.1 passwort=opensesame",
    "host=127.0.0.1 port=1 password='opensesame",
    "\udc80",
]


@pytest.mark.parametrize("conninfo", DATABASES)
@pytest.mark.parametrize("verb", ["status", "migrate"])
def test_an_unreachable_database_is_reported_without_its_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, conninfo: str, verb: str
) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", conninfo)

    with pytest.raises(SystemExit) as left:
        main([verb])

    result = capsys.readouterr()
    assert (left.value.code, result.out) == (2, "")
    assert result.err.startswith("notify-worker: ")
    assert "sesame" not in result.err
