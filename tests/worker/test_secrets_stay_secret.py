"""No token, key, full address or content appears in a log, an error text, an incident, or the CLI's output.

Every secret here carries a mark that appears nowhere else, or has a known shape, so that one search finds it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString, Unpack

import psycopg
import pytest

from notify_worker import sandbox
from notify_worker.producer import Columns, defer
from notify_worker.sandbox.answers import NAMED
from tests.support.shop import Shop
from tests.support.waiting import until

MARK = "qzxmark"
TALKATIVE = """
import asyncio, logging

logging.basicConfig(level=logging.DEBUG)

from notify_worker.process import supervisor

for name in logging.root.manager.loggerDict:
    logging.getLogger(name).setLevel(logging.NOTSET)
asyncio.run(supervisor.run(), debug=True)
"""
"""A worker that logs everything that any library in its process logs."""

WITHOUT_ANSWER = ("drop", "accepteddrop", "cut200", "hang", "acceptedhang")
FAULTS = (*NAMED, "500", "503", "504", "408", "later503", "datelater503", *WITHOUT_ANSWER)
BEARER = re.compile(r"ya29\.|Bearer [\w.-]{8}")
ASSERTION = re.compile(r"assertion=|eyJ[\w-]{20,}\.")
CONTENT: Columns = {
    "title": f"{MARK} title",
    "body": f"{MARK} body",
    "image": f"https://example.com/{MARK}.png",
    "data": {f"{MARK}_key": f"{MARK} data"},
    "message": {"android": {"notification": {"channel_id": f"{MARK}_channel"}}},
    "params": {"name": f"{MARK} param"},
}


def with_content(**columns: Unpack[Columns]) -> Columns:
    """Every column of content, and these columns."""
    return {**CONTENT, **columns}


@pytest.fixture
def keys(shop: Shop, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Unusable credentials by project, as written in its row."""
    with sandbox.start(tmp_path / "foreign.json") as another:
        foreign = json.loads(another.credentials.read_text())
        broken = tmp_path / "broken.json"
        broken.write_text(json.dumps(foreign | {"private_key": foreign["private_key"].replace("\n", "", 3) + MARK}))
        cut_off = tmp_path / "cut_off.json"
        cut_off.write_text(another.credentials.read_text()[:400] + MARK)
        yield {
            "foreign key": f"file:{another.credentials}",
            "broken key": f"file:{broken}",
            "key cut off": f"file:{cut_off}",
            "no key": "env:NOWHERE",
        }


def test_no_secret_is_logged_recorded_or_printed(shop: Shop, keys: dict[str, str]) -> None:
    numbers = [*every_fault(shop), *every_wrong_key(shop, keys), *what_cannot_be_rendered(shop)]

    with talkative_worker(shop):
        until("each has been tried, or has ended", lambda: not untried(shop), within=60)
        refuse(shop, "stored_deliveries", f"provider_message_id is null or address not like '%{MARK}-refused'")
        shop.notify(f"app:{MARK}-refused", **CONTENT)
        until("an outcome is refused", lambda: "refused" in shop.log.read_text(), within=10)

    assert leaks(shop.log.read_text(), shop, keys) == []
    assert leaks(stories(shop, numbers), shop, keys) == []
    for arguments in (["status"], ["status", "--json"], ["explain", str(numbers[0])]):
        assert leaks(printed(shop, *arguments), shop, keys) == []


def test_a_claim_that_the_database_refuses_is_logged_without_the_row(shop: Shop) -> None:
    refuse(shop, "notifications", "lease is null or event_id is distinct from 'unclaimable'")

    with talkative_worker(shop):
        shop.notify(f"app:{MARK}-unclaimable", **with_content(event_id="unclaimable"))
        until("a poll is refused", lambda: "poll failed" in shop.log.read_text(), within=10)
        until("its job has failed", lambda: "to retry" in shop.log.read_text(), within=10)

    assert leaks(shop.log.read_text(), shop, {}) == []


@pytest.mark.parametrize(
    "options",
    [[], ["--priority", "urgent"], ["--data", f"google.{MARK}={MARK}"], ["--project", "nowhere"]],
    ids=["sent", "an unknown priority", "a reserved key", "an unknown project"],
)
def test_send_prints_neither_address_nor_content_even_when_verbose(shop: Shop, options: list[str]) -> None:
    said = printed(shop, "send", "--token", f"app:{MARK}-phone", "--title", f"{MARK} title", *options)

    assert leaks(said, shop, {}) == []


BAD_ROWS: dict[str, Columns] = {
    "a kind that is none": {"kind": "fax"},  # type: ignore[typeddict-item]
    "two targets": {"receiver_id": "u_42"},
    "data that is no text": {"data": {MARK: 1}},  # type: ignore[dict-item]
    "a reserved key": {"data": {f"google.{MARK}": MARK}},
    "an unknown priority": {"priority": "urgent"},  # type: ignore[typeddict-item]
    "a key that is too long": {"event_id": "e" * 513},
}


@pytest.mark.parametrize("columns", BAD_ROWS.values(), ids=BAD_ROWS)
def test_the_error_of_a_refused_notification_shows_neither_address_nor_content(
    connection: psycopg.Connection, columns: Columns
) -> None:
    bad: Columns = {**with_content(kind="token", address=f"app:{MARK}-phone"), **columns}

    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        defer(connection, **bad)

    assert MARK not in all_of(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [("u_42", "topic", None), ("u_42", "token", "iPhone"), (None, "token", None)],
    ids=["an unknown kind", "an unknown platform", "no receiver"],
)
def test_the_error_of_a_refused_device_does_not_show_its_address(
    connection: psycopg.Connection, arguments: tuple[str | None, str, str | None]
) -> None:
    receiver_id, kind, platform = arguments

    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        connection.execute(
            "select notify_worker.register_device(%s, %s, %s, %s)", [receiver_id, kind, f"app:{MARK}-phone", platform]
        )

    assert MARK not in all_of(refused.value)


# What happens


def every_fault(shop: Shop) -> list[int]:
    """Notify one device for each fault, each in its own project, so that a pause affects no other fault."""
    numbers = []
    for fault in FAULTS:
        make_project(shop, fault, None)
        numbers.append(shop.notify(f"{fault}:{MARK}-phone", **with_content(project=fault)))
    numbers.append(shop.notify(f"topicquota~{MARK}", **with_content(kind="topic", project="topicquota")))
    numbers.append(
        shop.notify(f"'topicquota~{MARK}' in topics", **with_content(kind="condition", project="topicquota"))
    )
    return numbers


def every_wrong_key(shop: Shop, keys: dict[str, str]) -> list[int]:
    for project, credentials in keys.items():
        make_project(shop, project, credentials)
    return [shop.notify(f"app:{MARK}-phone", **with_content(project=project)) for project in keys]


def what_cannot_be_rendered(shop: Shop) -> list[int]:
    """Missing campaigns and params, and messages that are too big or have the wrong shape."""
    shop.connection.execute(
        "insert into notify_worker.campaigns (name, title) values ('restock', %s)", [f"{MARK} {{missing}}"]
    )
    lacks_a_param: Columns = {"title": None, "campaign": "restock", "params": {"name": f"{MARK} param"}}
    lacks_a_campaign: Columns = {**lacks_a_param, "campaign": "restok"}
    return [
        shop.notify(f"app:{MARK}-phone", **lacks_a_param),
        shop.notify(f"app:{MARK}-phone", **lacks_a_campaign),
        shop.notify(f"app:{MARK}-phone", title=f"{MARK} title" * 1_000),
        shop.notify(f"app:{MARK}-phone", message={"android": "no object"}),  # FCM quotes it
        shop.notify(f"app:{MARK}-phone", **with_content(project="nowhere")),
    ]


def make_project(shop: Shop, name: str, credentials: str | None) -> None:
    shop.connection.execute(
        "insert into notify_worker.projects (name, credentials) values (%s, %s)", [name, credentials]
    )


def refuse(shop: Shop, table: LiteralString, unless: str) -> None:
    """Let the database refuse rows of a table as a CHECK does: with all of the row in its DETAIL."""
    shop.connection.execute(
        f"alter table notify_worker.{table} add constraint refuse check ({unless}) not valid".encode()
    )


def untried(shop: Shop) -> list[Any]:
    """The pending notifications without a finished attempt."""
    return shop.rows(
        """
        select id, project
        from notify_worker.notifications as notification
        where state = 'pending'
            and not exists (
                select from notify_worker.attempts
                where notification_id = notification.id and finished_at is not null
            )
        """
    )


@contextmanager
def talkative_worker(shop: Shop) -> Iterator[None]:
    """Run a worker that logs all there is to log into the shop's log."""
    with (
        shop.log.open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-c", TALKATIVE], env=shop.environment(), stdout=log, stderr=log, cwd=shop.folder
        ) as worker,
    ):
        try:
            yield
        finally:
            worker.kill()


# What is logged, recorded or printed


def stories(shop: Shop, numbers: list[int]) -> str:
    """All the text that the database shows to people, without what the application wrote itself."""
    said = [
        *shop.rows("select error, error_code, provider_message_id from notify_worker.attempts"),
        *shop.rows("select last_error, provider_message_id from notify_worker.deliveries"),
        *shop.rows("select settled_reason from notify_worker.notifications"),
        *shop.rows("select reason from notify_worker.incidents"),
        *shop.rows("select retired_reason from notify_worker.devices"),
        *(row for each in numbers for row in shop.rows("select * from notify_worker.explain(%s::bigint)", each)),
    ]
    return "\n".join(map(str, said))


def printed(shop: Shop, *arguments: str) -> str:
    """What the CLI prints with -v."""
    done = subprocess.run(
        [sys.executable, "-m", "notify_worker", "-v", *arguments],
        env=shop.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr


def all_of(error: psycopg.Error) -> str:
    """The text of an error with its detail, hint and context."""
    return "\n".join(map(str, (error, error.diag.message_detail, error.diag.message_hint, error.diag.context)))


def leaks(said: str, shop: Shop, keys: dict[str, str]) -> list[str]:
    """The lines that contain a secret."""
    of_keys = lines_of_key(shop.box.credentials.read_text())
    for credentials in keys.values():
        of_keys |= lines_of_key(Path(credentials[5:]).read_text() if credentials.startswith("file:") else credentials)
    return [
        line
        for line in said.splitlines()
        if MARK in line
        or "PRIVATE KEY" in line
        or BEARER.search(line)
        or ASSERTION.search(line)
        or any(secret in line for secret in of_keys)
    ]


def lines_of_key(credentials: str) -> set[str]:
    """The lines of a private key, as they stand in a file's JSON."""
    return set(re.findall(r"[\w+/]{64}", credentials.replace("\\n", "\n")))
