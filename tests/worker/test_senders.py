"""The sender of a project: `projects.sender` names FCM, the console, or a plugin of another package."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from notify_worker.errors import CredentialsError
from notify_worker.model import BUG, Message, Outcome, Pause, Scope, Verdict
from notify_worker.senders.console import ConsoleSender
from notify_worker.senders.factory import LazySender
from tests.support.shop import Shop
from tests.support.waiting import until

PIGEONS = """
import os

from notify_worker.model import Outcome, Verdict


class Pigeons:
    def __init__(self, project, settings):
        self.project = project.name
        self.timeout = settings.request_timeout.total_seconds()

    async def warm_up(self):
        if self.project == "sick":
            raise RuntimeError("the pigeons are sick")

    async def send(self, message):
        address = message.body[message.kind]
        if address == "loft:lost":
            raise RuntimeError(f"a pigeon is lost on its way to {address}")
        with open(os.environ["PIGEONS_LOG"], "a") as log:
            print(self.project, self.timeout, address, message.body["notification"]["title"], file=log)
        return Outcome(Verdict.SENT, provider_message_id="pigeon-7")

    async def aclose(self):
        with open(os.environ["PIGEONS_LOG"], "a") as log:
            print(self.project, "closed", file=log)


def hungry(project, settings):
    raise OSError("no corn, and the key is opensesame")
"""
ENTRY_POINTS = """
[notify_worker.senders]
pigeons = pigeons:Pigeons
hungry = pigeons:hungry
missing = pigeons_that_are_not_there:Pigeons
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Another package as pip would install it: its module and its metadata."""
    folder = tmp_path / "installed"
    about = folder / "pigeons-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "pigeons.py").write_text(PIGEONS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeons\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def drain(shop: Shop, package: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `worker --drain` to its end; `package` is importable there."""
    drained = subprocess.run(
        [sys.executable, "-m", "notify_worker", "worker", "--drain"],
        check=False,
        env=shop.environment(PIGEONS_LOG=shop.folder / "pigeons.log", PYTHONPATH=python_path(package)),
        cwd=shop.folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    print(drained.stderr)
    assert drained.returncode == 0
    return drained


def python_path(package: Path | None) -> str:
    return os.pathsep.join(filter(None, [str(package or ""), os.environ.get("PYTHONPATH")]))


def project(shop: Shop, name: str, sender: str) -> None:
    shop.connection.execute("insert into notify_worker.projects (name, sender) values (%s, %s)", [name, sender])


def pigeons_log(shop: Shop) -> list[str]:
    return (shop.folder / "pigeons.log").read_text().splitlines()


# ── console ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_console_prints_a_line_for_each_message_without_its_address(shop: Shop) -> None:
    shop.connection.execute("update notify_worker.projects set sender = 'console'")
    numbers = [
        shop.notify("fcm:not-for-your-eyes", title="Zoë 🔔", body="first\nsecond", data={"screen": "orders"}),
        shop.notify("not-for-your-eyes", kind="topic", title="News"),
    ]

    drained = drain(shop)

    by_title = {line["notification"]["title"]: line for line in map(json.loads, drained.stdout.splitlines())}
    assert by_title["Zoë 🔔"]["to"] == "token"
    assert by_title["Zoë 🔔"]["notification"]["body"] == "first\nsecond"
    assert by_title["Zoë 🔔"]["data"] == {"screen": "orders", "notification_id": str(numbers[0])}
    assert by_title["News"]["to"] == "topic"
    assert len(by_title) == 2
    assert "eyes" not in drained.stdout + drained.stderr
    assert [shop.state(number) for number in numbers] == ["sent", "sent"]
    assert shop.box.received == 0
    assert shop.unbalanced() == []


# ── from another package ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plugin_sender_is_used_for_its_project_alone(shop: Shop, package: Path) -> None:
    project(shop, "birds", "pigeons")
    by_pigeon = shop.notify("loft:7", project="birds", title="Coo")
    by_fcm = shop.notify("app:phone")

    drain(shop, package)

    assert pigeons_log(shop) == ["birds 2.0 loft:7 Coo", "birds closed"]
    assert (shop.state(by_pigeon), shop.delivery(by_pigeon)["provider_message_id"]) == ("sent", "pigeon-7")
    assert (shop.state(by_fcm), [shown.address for shown in shop.box.shown]) == ("sent", ["app:phone"])
    assert shop.unbalanced() == []


def test_a_sender_that_raises_makes_that_delivery_unknown_and_no_other(shop: Shop, package: Path) -> None:
    project(shop, "birds", "pigeons")
    lost, safe = (shop.notify(address, project="birds") for address in ("loft:lost", "loft:7"))

    drained = drain(shop, package)

    [attempt] = shop.attempts(lost)
    assert (attempt["verdict"], attempt["error_code"], attempt["requests"]) == ("unknown", "BUG", 1)
    assert (shop.state(lost), shop.delivery(lost)["attempts"]) == ("pending", 1)
    assert shop.state(safe) == "sent"
    assert "event=sender_raised the sender of project birds raised RuntimeError" in drained.stderr
    assert "loft:lost" not in drained.stderr + str(attempt["error"])
    assert shop.unbalanced() == []


SAID = {
    "doves": 'There is no sender "doves", which project "birds" names. There are: fcm, console, hungry, missing, pigeons.',
    "hungry": 'The sender "hungry" of project "birds" fails: OSError',
    "missing": 'The sender "missing" of project "birds" fails: ModuleNotFoundError',
}


@pytest.mark.parametrize("sender", SAID)
def test_a_missing_or_broken_sender_pauses_its_project_and_costs_no_attempt(
    shop: Shop, package: Path, sender: str
) -> None:
    project(shop, "birds", sender)
    waits, goes = shop.notify("loft:7", project="birds"), shop.notify("app:phone")

    drained = drain(shop, package)

    [attempt] = shop.attempts(waits)
    assert (attempt["verdict"], attempt["error"], attempt["error_code"]) == ("paused", SAID[sender], "CREDENTIALS")
    assert (shop.state(waits), shop.delivery(waits)["attempts"]) == ("pending", 0)
    assert shop.state(goes) == "sent"
    assert "sesame" not in drained.stderr
    assert shop.unbalanced() == []


async def test_a_sender_that_does_not_open_pauses_its_project_and_opens_once_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notify_worker.senders.factory.REOPEN_AFTER", 0)
    closed = [CredentialsError("The key is not there.")]

    async def opened() -> ConsoleSender:
        if closed:
            raise closed.pop()
        return ConsoleSender()

    sender = LazySender(opened)
    message = Message("token", {"token": "app:phone"})

    outcomes = [await sender.send(message) for _ in range(2)]

    stopped = Outcome(
        Verdict.PAUSED, error="The key is not there.", error_code="CREDENTIALS", pause=Pause(Scope.PROJECT)
    )
    assert outcomes == [stopped, Outcome(Verdict.SENT)]


SANITISED: dict[str, tuple[Any, Outcome]] = {
    "no outcome": ("sent", Outcome(Verdict.UNKNOWN, error="the project's sender returned no outcome", error_code=BUG)),
    "no verdict": (
        Outcome("sent"),  # type: ignore[arg-type]
        Outcome(Verdict.UNKNOWN, error="the project's sender returned no outcome", error_code=BUG),
    ),
    "text that Postgres can't hold": (
        Outcome(Verdict.FAILED, error="a\x00b\ud800c\nd", error_code="A\x00B", provider_message_id="\ud800"),
        Outcome(Verdict.FAILED, error="a b c d", error_code="A B"),
    ),
    "long text": (Outcome(Verdict.RETRY, error="x" * 10_000), Outcome(Verdict.RETRY, error="x" * 600)),
    "wrong types": (
        Outcome(
            Verdict.SENT,
            error=ValueError("?"),  # type: ignore[arg-type]
            error_code=["?"],  # type: ignore[arg-type]
            http_status="200",  # type: ignore[arg-type]
            provider_message_id=b"7",  # type: ignore[arg-type]
            asked_to_wait=30,  # type: ignore[arg-type]
            pause="project",  # type: ignore[arg-type]
            quickly_retryable="yes",  # type: ignore[arg-type]
        ),
        Outcome(Verdict.SENT),
    ),
    "impossible status": (Outcome(Verdict.SENT, http_status=10**12), Outcome(Verdict.SENT)),
    "endless waits": (
        Outcome(Verdict.PAUSED, asked_to_wait=timedelta.max, pause=Pause(Scope.TOPICS, timedelta.min)),
        Outcome(Verdict.PAUSED, asked_to_wait=timedelta(hours=1), pause=Pause(Scope.TOPICS, timedelta())),
    ),
    "pause without a scope": (
        Outcome(Verdict.PAUSED, pause=Pause("all")),  # type: ignore[arg-type]
        Outcome(Verdict.PAUSED),
    ),
    "nothing odd": (
        Outcome(
            Verdict.RETRY,
            "503 UNAVAILABLE: ü 🔔",
            "UNAVAILABLE",
            503,
            asked_to_wait=timedelta(seconds=30),
            quickly_retryable=True,
        ),
        Outcome(
            Verdict.RETRY,
            "503 UNAVAILABLE: ü 🔔",
            "UNAVAILABLE",
            503,
            asked_to_wait=timedelta(seconds=30),
            quickly_retryable=True,
        ),
    ),
}


@pytest.mark.parametrize(("returned", "sanitised"), SANITISED.values(), ids=SANITISED)
async def test_an_outcome_of_a_plugin_sender_is_sanitised(returned: Any, sanitised: Outcome) -> None:
    class Foreign(ConsoleSender):
        async def send(self, message: Message) -> Outcome:
            outcome: Outcome = returned
            return outcome

    async def opener() -> ConsoleSender:
        return Foreign()

    assert await LazySender(opener).send(Message("token", {"token": "app:phone"})) == sanitised


def test_a_sender_that_breaks_at_start_is_named_in_the_log(shop: Shop, package: Path) -> None:
    project(shop, "sick", "pigeons")

    shop.start_worker(PYTHONPATH=python_path(package), PIGEONS_LOG=shop.folder / "pigeons.log")

    until("it is named", lambda: "project sick can't send: " in shop.log.read_text(), within=3)


def test_notifications_wait_for_their_sender_and_are_sent(shop: Shop, package: Path) -> None:
    project(shop, "birds", "pigeons")
    number = shop.notify("loft:7", project="birds")
    drain(shop)
    assert shop.attempts(number)[0]["verdict"] == "paused"
    shop.connection.resume("birds")
    shop.connection.execute("update notify_worker.notifications set due_at = now() where id = %s", [number])
    shop.connection.execute(
        "update notify_worker.stored_deliveries set due_at = now() where notification_id = %s", [number]
    )

    drain(shop, package)

    assert (shop.state(number), shop.delivery(number)["attempts"]) == ("sent", 1)
