"""The verbs that query the database, and those that keep running: output and exit code."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp

import psutil
import pytest
from psycopg.conninfo import make_conninfo

from notify_worker.database import schema
from tests.support import cli_process
from tests.support.cli_process import NEEDS_THE_SCHEMA, Cli, Ended, ended, start
from tests.support.store_calls import EVENT, Connection
from tests.support.waiting import until

cli, shop = cli_process.cli, cli_process.shop  # fixtures

PROGRAMS = Path(sys.executable).parent
each_that_needs_the_schema = pytest.mark.parametrize("arguments", NEEDS_THE_SCHEMA, ids=lambda arguments: arguments[0])


# ── roles ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "call",
    [
        ("notify_worker_auditor", "status"),
        ("notify_worker_auditor", "explain", EVENT),
        ("notify_worker_auditor", "history", "u_42"),
        ("notify_worker_producer", "send", "--receiver", "u_42", "--title", "Hello"),
        ("notify_worker_producer", "cancel", EVENT),
    ],
    ids=lambda call: call[1],
)
def test_a_verb_needs_no_more_than_its_role(
    cli: Cli, shop: Connection, database: str, monkeypatch: pytest.MonkeyPatch, call: tuple[str, ...]
) -> None:
    role, *arguments = call
    shop.insert(event_id=EVENT)
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", make_conninfo(database, options=f"-c role={role}"))

    result = cli(*arguments)

    assert (result.code, result.err) == (0, "")


# ── status ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def busy_shop(shop: Connection) -> Connection:
    """A notification each: sent, failed, held, leased, due for a minute, scheduled, and of a paused project."""
    shop.execute("insert into notify_worker.projects (name) values ('paused')")
    shop.execute("select notify_worker.pause('paused', 'Black Friday')")
    shop.insert_settled("sent")
    shop.insert_settled("failed")
    shop.insert_settled("unknown", on_unknown="hold")
    shop.insert()
    shop.claim(shop.register_worker())
    shop.set_back(shop.insert(), "due_at", timedelta(minutes=1))
    shop.insert(send_at="tomorrow")
    shop.insert(project="paused")
    return shop


EXPECTED = {
    "pending": 4,
    "due": 1,
    "leased": 1,
    "orphans": 0,
    "held": 1,
    "dead_letters": 1,
    "workers": 1,
    "paused_projects": 1,
    "sent_last_minute": 1,
}


def test_status_in_json_is_the_view_with_durations_in_seconds(cli: Cli, busy_shop: Connection) -> None:
    result = cli("status", "--json")

    found = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert list(found) == list(busy_shop.row("select * from notify_worker.status"))
    assert 60 <= found.pop("oldest_due_for") < 90
    assert found == EXPECTED


def test_status_has_a_line_for_each_column_of_the_view(cli: Cli, busy_shop: Connection) -> None:
    result = cli("status")

    shown = dict(line.split("  ", 1) for line in result.out.splitlines())
    found = {name.strip().replace(" ", "_"): text.strip() for name, text in shown.items()}
    assert (result.code, result.err) == (0, "")
    assert list(found) == list(busy_shop.row("select * from notify_worker.status"))
    assert found.pop("oldest_due_for").startswith("0:01:")
    assert found == {name: str(count) for name, count in EXPECTED.items()}


def test_without_a_due_notification_status_has_no_oldest_due_for(cli: Cli, shop: Connection) -> None:
    assert json.loads(cli("status", "--json").out)["oldest_due_for"] is None
    assert "oldest due for    -\n" in cli("status").out


# ── history ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def told_shop(shop: Connection) -> Connection:
    """Two notifications to u_42, one of them settled and two days old, and one to u_43."""
    shop.insert(receiver_id="u_42", event_id=EVENT, campaign="order_paid")
    shop.claim(shop.register_worker())
    shop.set_back(1, "created_at", timedelta(days=2))
    shop.insert(receiver_id="u_42", send_at="2099-01-02 09:00+09")
    shop.insert(receiver_id="u_43")
    return shop


def test_history_has_a_line_for_each_of_a_receivers_notifications_the_newest_first(
    cli: Cli, told_shop: Connection
) -> None:
    result = cli("history", "u_42")

    newest, oldest = (line[len("2027-01-02 09:00:00.123456") :] for line in result.out.splitlines())
    assert (result.code, result.err) == (0, "")
    assert newest.startswith("  notification 2: pending: due at 2099-01-02 00:00:00+00")
    assert oldest.startswith(f"  notification 1 (event {EVENT}), campaign order_paid: ")
    assert re.search(r": (failed|unreachable): .+", oldest)


@pytest.mark.parametrize(("since", "numbers"), [("yesterday", ["2"]), ("2020-01-02", ["2", "1"]), ("tomorrow", [])])
def test_history_goes_back_no_further_than_asked(
    cli: Cli, told_shop: Connection, since: str, numbers: list[str]
) -> None:
    result = cli("history", "u_42", "--since", since)

    assert result.code == 0
    assert re.findall(r"notification (\d+)", result.out) == numbers


def test_a_receiver_without_notifications_has_no_history(cli: Cli, shop: Connection) -> None:
    assert cli("history", "u_44") == Ended(0, "", "")


@pytest.mark.parametrize(
    "arguments", [("history", "u_42"), ("retry", "--project", "default")], ids=lambda each: each[0]
)
def test_an_invalid_time_is_named(cli: Cli, shop: Connection, arguments: tuple[str, ...]) -> None:
    complaint = cli(*arguments, "--since", "the day before").complaint

    assert complaint.startswith('invalid input syntax for type timestamp with time zone: "the day before"')


# ── retry ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

RETRIED = "deliveries are due again; a notification that has none yet gets its own with the next claim\n"


@pytest.mark.parametrize("way", [(EVENT,), ("1",), ("--delivery", "1"), ("--project", "default")])
def test_retry_takes_an_event_a_number_a_delivery_or_a_project(
    cli: Cli, shop: Connection, way: tuple[str, ...]
) -> None:
    number = shop.insert_settled("failed", event_id=EVENT)
    assert shop.state(number) == "failed"

    result = cli("retry", *way)

    assert result == Ended(0, f"1 {RETRIED}", "")
    assert shop.state(number) == "pending"


def test_retry_by_project_leaves_out_other_projects_and_earlier_failures(cli: Cli, shop: Connection) -> None:
    shop.execute("insert into notify_worker.projects (name) values ('other')")
    old, new, of_other = (shop.insert_settled("failed", project=name) for name in ("default", "default", "other"))
    shop.execute(
        "update notify_worker.stored_deliveries set settled_at = settled_at - interval '2 days' where notification_id = %s",
        [old],
    )

    result = cli("retry", "--project", "default", "--since", "yesterday")

    assert result == Ended(0, f"1 {RETRIED}", "")
    assert [shop.state(number) for number in (old, new, of_other)] == ["failed", "pending", "failed"]


def test_a_numeric_event_id_comes_before_a_notification_id(cli: Cli, shop: Connection) -> None:
    by_number, by_event = shop.insert_settled("failed"), shop.insert_settled("failed", event_id="1")

    cli("retry", "1")

    assert (shop.state(by_number), shop.state(by_event)) == ("failed", "pending")


def test_a_sent_notification_is_not_retried(cli: Cli, shop: Connection) -> None:
    number = shop.insert_settled("sent")

    assert cli("retry", str(number)) == Ended(0, f"0 {RETRIED}", "")
    assert shop.state(number) == "sent"


def test_retry_of_a_leased_notification_says_to_try_again(cli: Cli, shop: Connection) -> None:
    shop.insert()
    shop.claim(shop.register_worker())

    assert cli("retry", "1").complaint.startswith(
        "notification 1 is leased by a worker. Retry it once the worker has recorded it"
    )


@pytest.mark.parametrize(
    "arguments", [(), ("--since", "yesterday"), (EVENT, "--delivery", "1"), ("--delivery", "1", "--project", "default")]
)
def test_retry_needs_exactly_one_target(cli: Cli, shop: Connection, arguments: tuple[str, ...]) -> None:
    assert cli("retry", *arguments).complaint == (
        "retry takes one of: a notification, --delivery NUMBER, --project NAME (with --since TIME)"
    )


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("which", [EVENT, "1"])
def test_cancel_settles_a_waiting_notification(cli: Cli, shop: Connection, which: str) -> None:
    shop.insert(event_id=EVENT)

    result = cli("cancel", which)

    assert result == Ended(0, "cancelled: nothing of it was sent, and it will not arrive\n", "")
    assert shop.state(1) == "cancelled"


@pytest.mark.parametrize("becomes", ["sent", "leased"])
def test_cancel_of_a_sent_or_leased_notification_fails_and_points_to_explain(
    cli: Cli, shop: Connection, becomes: str
) -> None:
    if becomes == "sent":
        shop.insert_settled("sent")
    else:
        shop.insert()
        shop.claim(shop.register_worker())

    result = cli("cancel", "1")

    assert (result.code, result.err) == (1, "")
    assert result.out.startswith("too late: it has settled, or may have been sent, or a worker has leased it; ")
    command = result.out.rstrip("\n").partition("Its story: notify-worker ")[2]
    assert "notification 1 was inserted" in cli(*command.split()).out


@pytest.mark.parametrize("verb", ["retry", "cancel"])
def test_an_unknown_notification_is_named(cli: Cli, shop: Connection, verb: str) -> None:
    assert cli(verb, "order:43").complaint == 'there is no notification with the event_id or id "order:43"'


def test_an_unknown_delivery_is_named(cli: Cli, shop: Connection) -> None:
    assert cli("retry", "--delivery", "7").complaint == "there is no delivery 7"


# ── pause, resume, prune ────────────────────────────────────────────────────────────────────────────────────────────────


def test_pause_opens_an_incident_until_resume(cli: Cli, shop: Connection) -> None:
    paused = cli("pause", "default", "Black Friday")
    incidents = shop.rows("select by, reason, ended_at from notify_worker.incidents")
    resumed = cli("resume", "default")

    assert paused == Ended(0, "project default is paused until: notify-worker resume default\n", "")
    assert incidents == [{"by": "operator", "reason": "Black Friday", "ended_at": None}]
    assert resumed == Ended(0, "project default sends again\n", "")
    assert shop.value("select count(*) from notify_worker.incidents where ended_at is null") == 0


@pytest.mark.parametrize(
    "arguments",
    [("pause", "defualt", "why"), ("resume", "defualt"), ("retry", "--project", "defualt")],
    ids=lambda each: each[0],
)
def test_an_unknown_project_is_named_with_the_closest(cli: Cli, shop: Connection, arguments: tuple[str, ...]) -> None:
    assert cli(*arguments).complaint == 'there is no project "defualt"; did you mean "default"?'


def test_prune_deletes_old_settled_notifications_and_prints_their_number(cli: Cli, shop: Connection) -> None:
    old, new, waiting = shop.insert_settled("failed"), shop.insert_settled("sent"), shop.insert()
    shop.set_back(old, "settled_at", timedelta(days=91))
    shop.set_back(waiting, "created_at", timedelta(days=91))

    result = cli("prune", "--older-than", "90 days")

    assert result == Ended(0, "1 notifications deleted\n", "")
    assert [kept["id"] for kept in shop.rows("select id from notify_worker.notifications order by id")] == [
        new,
        waiting,
    ]
    assert shop.deliveries(old) == []


@pytest.mark.parametrize("interval", ["a while", ""])
def test_prune_names_an_invalid_interval(cli: Cli, shop: Connection, interval: str) -> None:
    shop.insert_settled("sent")

    complaint = cli("prune", "--older-than", interval).complaint

    assert complaint.startswith(f'invalid input syntax for type interval: "{interval}"')
    assert len(shop.rows("select from notify_worker.notifications")) == 1


# ── what is wrong with the database ─────────────────────────────────────────────────────────────────────────────────────


def test_a_newer_schema_works_and_is_not_migrated(cli: Cli, shop: Connection) -> None:
    shop.execute("update notify_worker.schema_version set version_num = '9999'")

    assert (cli("status").code, cli("migrate").complaint) == (
        0,
        (
            f"The schema notify_worker has version 9999, and the newest that this release knows is {schema.versions()[-1]}. "
            "Install the release of notify-worker that migrated it, or a later one."
        ),
    )


@each_that_needs_the_schema
def test_a_schema_that_is_behind_asks_to_migrate(cli: Cli, shop: Connection, arguments: tuple[str, ...]) -> None:
    shop.execute("update notify_worker.schema_version set version_num = '0001'")

    assert cli(*arguments).complaint == (
        f"The schema notify_worker has version 0001, and this release needs {schema.versions()[-1]}. "
        "Run: notify-worker migrate"
    )


# ── a worker without credentials ────────────────────────────────────────────────────────────────────────────────────────

NOT_ONE = {
    "none at all": (None, "Google's default chain gives no credentials"),
    "no JSON": ("-----BEGIN PRIVATE KEY----- sesame", "key.json, which is not JSON"),
    "another JSON": ('{"password": "sesame"}', "key.json does not have a valid type"),
}


@pytest.mark.parametrize(("content", "said"), NOT_ONE.values(), ids=NOT_ONE)
def test_a_worker_without_usable_credentials_says_so_exits_and_fails_no_notification(
    shop: Connection, tmp_path: Path, content: str | None, said: str
) -> None:
    env = no_credentials(tmp_path)
    if content is not None:
        key = tmp_path / "key.json"
        key.write_text(content)
        env["GOOGLE_APPLICATION_CREDENTIALS"] = str(key)
    number = shop.insert()

    stays, drains = start("worker", **env), start("worker", "--drain", **env)

    for left in (ended(stays), ended(drains)):
        *log, complaint = left.err.splitlines()
        assert (left.code, left.out) == (2, "")
        assert complaint.startswith("notify-worker: ")
        assert said in complaint
        assert "GOOGLE_APPLICATION_CREDENTIALS" in complaint
        assert said not in "\n".join(log)
        assert "sesame" not in left.err
        assert "Traceback" not in left.err
    assert (shop.state(number), shop.deliveries(number)) == ("pending", [])


def no_credentials(folder: Path) -> dict[str, str]:
    """An environment in which Google's default chain finds nothing, and asks no metadata server."""
    return {"HOME": str(folder), "CLOUDSDK_CONFIG": str(folder), "NO_GCE_CHECK": "true"}


def test_where_only_one_project_has_no_credentials_the_worker_says_so_and_works_for_the_others(
    shop: Connection, tmp_path: Path
) -> None:
    shop.execute("insert into notify_worker.projects (name, sender) values ('printed', 'console')")
    waits, goes = shop.insert(), shop.insert(project="printed")

    drained = ended(start("worker", "--drain", **no_credentials(tmp_path)))

    assert (drained.code, shop.state(goes)) == (0, "sent")
    assert "project default can't send: Google's default chain gives no credentials" in drained.err
    assert (shop.state(waits), shop.deliveries(waits)[0]["attempts"]) == ("pending", 0)
    assert [attempt["verdict"] for attempt in shop.attempts(waits)] == ["paused"]
    assert "Traceback" not in drained.err


# ── dev ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


ENDS_WITHIN = 10.0


@dataclass(frozen=True)
class Dev:
    """A `notify-worker dev`, in a process group of its own as a terminal would start it."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def says(self) -> str:
        return self.log.read_text()

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.says()
        return "Ctrl-C ends it." in self.says()

    def what_to_type(self) -> str:
        return self.says().split("\n\n")[1]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self) -> psutil.Process:
        return next(child for child in self.children() if child.cmdline()[-1] == "worker")

    def database(self) -> str:
        """The conninfo that it prints."""
        return shlex.split(self.what_to_type())[1].removeprefix("NOTIFY_WORKER_DATABASE_URL=")

    def type(self, commands: str) -> Ended:
        """Type these commands into another terminal."""
        typed = subprocess.run(
            ["bash", "-eu", "-c", commands],
            check=False,
            env={**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        return Ended(typed.returncode, typed.stdout, typed.stderr)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home that only `dev` has made. Its folder is open to nobody, as whom PostgreSQL runs for root."""
    folder = Path(mkdtemp())
    folder.chmod(0o711)
    yield folder / "a home"
    shutil.rmtree(folder)


@contextmanager
def running_dev(home: Path, log: Path) -> Iterator[Dev]:
    """Start one, and wait until it says what to type."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "notify_worker", "dev"],
            env={**os.environ, "NOTIFY_WORKER_HOME": str(home)},
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    dev = Dev(process, log)
    children: list[psutil.Process] = []
    try:
        until("it is up", dev.is_up, within=60)
        children = dev.children()
        yield dev
        process.terminate()
        assert process.wait(ENDS_WITHIN) == 0
    finally:
        process.kill()
        process.wait()
        for child in children:
            if child.is_running():
                child.kill()
        print(dev.says())


@pytest.fixture
def dev(home: Path, tmp_path: Path) -> Iterator[Dev]:
    with running_dev(home, tmp_path / "dev.log") as dev:
        yield dev


def test_dev_starts_in_its_home_and_prints_working_commands(dev: Dev, home: Path) -> None:
    typed = dev.type(dev.what_to_type())

    assert (typed.code, typed.err) == (0, "")
    assert re.match(r"notification \d+\n", typed.out)
    assert "it ended sent\n" in typed.out
    assert re.search(r"^workers +1$", typed.out, re.MULTILINE)
    assert re.search(r"^phone  .*Hello", dev.says(), re.MULTILINE)
    assert (home / "sandbox.json").exists()


def test_a_second_dev_in_the_same_home_is_refused_and_leaves_the_first_as_it_was(dev: Dev, home: Path) -> None:
    credentials = (home / "sandbox.json").read_bytes()

    second = subprocess.run(
        [sys.executable, "-m", "notify_worker", "dev"],
        env={**os.environ, "NOTIFY_WORKER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (second.returncode, second.stdout) == (2, "")
    assert f"Another process runs the embedded PostgreSQL in {home}" in second.stderr
    assert (home / "sandbox.json").read_bytes() == credentials
    export = dev.what_to_type().splitlines()[0]
    assert dev.type(f"{export}\nnotify-worker send --token app:phone --title Again --wait").code == 0


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT])
def test_dev_exits_cleanly_on_a_signal_and_leaves_no_process(dev: Dev, ends: signal.Signals) -> None:
    children = dev.children()
    assert {"postgres", "sh"} < {child.name() for child in children}

    if ends == signal.SIGINT:
        os.killpg(dev.process.pid, ends)  # as Ctrl-C does: to all that the terminal has started
    else:
        dev.process.send_signal(ends)

    assert dev.process.wait(ENDS_WITHIN) == 0
    assert [child for child in children if child.is_running()] == []
    assert "Traceback" not in dev.says()
