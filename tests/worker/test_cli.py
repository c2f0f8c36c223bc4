"""The command line: what each verb prints, where, and its exit code."""

import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path
from stat import S_IMODE
from urllib.request import urlopen

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from notify_worker import defer
from notify_worker.cli.logs import json_formatter
from notify_worker.cli.main import app
from notify_worker.database import schema
from notify_worker.dev import postgres
from notify_worker.sandbox import start as start_sandbox
from tests.support import cli_process
from tests.support.cli_process import HELLO, NEEDS_THE_SCHEMA, Cli, Ended, accepts_password, ended, start
from tests.support.waiting import until

VERBS = tuple(app.commands)

cli, shop = cli_process.cli, cli_process.shop  # fixtures


def count(connection: psycopg.Connection) -> int:
    return len(connection.execute("select from notify_worker.notifications").fetchall())


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_has_a_line_for_each_verb(cli: Cli) -> None:
    shown = cli("--help")

    assert shown.code == 0
    assert shown.err == ""
    for verb in VERBS:
        assert re.search(rf"^ +{verb}\s+[A-Z]\w+", shown.out, re.MULTILINE), verb


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_begins_with_its_usage(cli: Cli, verb: str) -> None:
    shown = cli(verb, "--help")

    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: notify-worker {verb}")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Missing command"),
        (("post",), "No such command 'post'"),
        (("sned",), "No such command 'sned'. Did you mean 'send'?"),
        ((*HELLO, "--boddy", "x"), "No such option '--boddy'. Did you mean '--body'?"),
        (("send", "--title", "Hello"), "give exactly one of --receiver, --token, --fid, --topic and --condition"),
        (
            ("send", "--receiver", "u_42", "--topic", "news"),
            "give exactly one of --receiver, --token, --fid, --topic and --condition",
        ),
        ((*HELLO, "--data", "order"), '--data\': "order" is not NAME=VALUE'),
        (("explain",), "Missing argument 'NOTIFICATION'"),
        (("history",), "Missing argument 'RECEIVER'"),
        (("cancel",), "Missing argument 'NOTIFICATION'"),
        (("pause", "default"), "Missing argument 'REASON'"),
        (("resume",), "Missing argument 'PROJECT'"),
        (("prune",), "Missing option '--older-than'"),
        (("retry", "--delivery", "first"), "Invalid value for '--delivery': 'first' is not a valid integer"),
    ],
)
def test_a_usage_error_shows_the_usage(cli: Cli, arguments: tuple[str, ...], complaint: str) -> None:
    result = cli(*arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: notify-worker")
    assert complaint in result.err.splitlines()[-1]


# ── migrate ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_migrate_creates_the_schema_and_can_be_repeated(
    cli: Cli, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", empty_database)

    first, second = cli("migrate"), cli("migrate")

    assert first == second == Ended(0, f"the schema notify_worker has version {schema.versions()[-1]}\n", "")
    schema.verify(empty_database)


def test_the_sql_that_migrate_prints_creates_the_schema_through_psql(cli: Cli, empty_database: str) -> None:
    printed = cli("migrate", "--sql")
    assert (printed.code, printed.err) == (0, "")

    fed = subprocess.run(
        [postgres.binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database],
        input=printed.out,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    assert fed.returncode == 0, fed.stderr
    schema.verify(empty_database)


# ── what is wrong ───────────────────────────────────────────────────────────────────────────────────────────────────────

NEEDS_THE_DATABASE: list[tuple[str, ...]] = [("migrate",), *NEEDS_THE_SCHEMA]


@pytest.mark.parametrize("arguments", NEEDS_THE_DATABASE, ids=lambda arguments: arguments[0])
def test_without_a_database_every_verb_says_so_and_hides_the_password(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", "host=127.0.0.1 port=1 user=me password=opensesame")

    complaint = cli(*arguments).complaint

    assert complaint.startswith("No connection to the database: ")
    assert complaint.endswith("Is it up, and is NOTIFY_WORKER_DATABASE_URL right (or libpq's own PG*)?")
    assert "sesame" not in complaint


@pytest.mark.parametrize("arguments", NEEDS_THE_DATABASE, ids=lambda arguments: arguments[0])
def test_a_wrong_password_is_reported_and_not_shown(
    cli: Cli, database: str, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    wrong = make_conninfo(database, password="opensesame")
    if accepts_password(wrong):
        pytest.skip("this server asks for no password")
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", wrong)

    complaint = cli(*arguments).complaint

    assert 'password authentication failed for user "postgres"' in complaint
    assert "sesame" not in complaint


@pytest.mark.parametrize("arguments", NEEDS_THE_SCHEMA, ids=lambda arguments: arguments[0])
def test_a_database_without_our_schema_gets_the_hint_to_migrate(
    cli: Cli, empty_database: str, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", empty_database)

    assert cli(*arguments).complaint.endswith("has no schema notify_worker. Run: notify-worker migrate")


@pytest.mark.parametrize("arguments", NEEDS_THE_DATABASE, ids=lambda arguments: arguments[0])
def test_a_variable_that_is_no_setting_stops_every_verb(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_FCMURL", "http://127.0.0.1")

    complaint = cli(*arguments).complaint

    assert complaint == "NOTIFY_WORKER_FCMURL is not a setting. Did you mean NOTIFY_WORKER_FCM_URL?"


def test_a_lease_that_is_too_short_stops_the_worker(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_LEASE_SECONDS", "30")

    assert "NOTIFY_WORKER_LEASE_SECONDS is 30: too short. " in cli("worker").complaint


def test_a_refusal_of_the_database_is_shown_with_its_hint_and_without_the_row(
    cli: Cli, shop: psycopg.Connection
) -> None:
    refused = cli("send", "--token", "fcm:not-for-your-eyes", "--title", "Hello", "--priority", "urgent")

    assert refused.complaint == (
        "the priority of a notification can't be \"urgent\". Use high or normal; null is FCM's own default."
    )
    assert count(shop) == 0


def test_the_detail_of_a_database_error_which_may_hold_an_address_is_not_shown(
    cli: Cli, shop: psycopg.Connection
) -> None:
    shop.execute("alter table notify_worker.notifications add constraint no_news check (address <> 'fcm:your-eyes')")

    refused = cli("send", "--token", "fcm:your-eyes", "--title", "Hello")

    assert 'violates check constraint "no_news"' in refused.complaint
    assert "eyes" not in refused.err


def test_an_unknown_event_is_named(cli: Cli, shop: psycopg.Connection) -> None:
    assert cli("explain", "order:43:paid").complaint == (
        'there is no notification with the event_id or id "order:43:paid"'
    )
    assert '"99999999999999999999"' in cli("explain", "99999999999999999999").complaint


@pytest.mark.parametrize("arguments", [("explain", "²"), ("sandbox", "--port", "99999")], ids=lambda each: each[0])
def test_an_invalid_number_causes_no_traceback(shop: psycopg.Connection, arguments: tuple[str, ...]) -> None:
    result = ended(start(*arguments))

    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


def test_only_verbose_shows_where_an_error_came_from() -> None:
    lost = {"NOTIFY_WORKER_DATABASE_URL": "host=127.0.0.1 port=1 password=opensesame"}
    quiet, verbose = start("migrate", **lost), start("-v", "migrate", **lost)

    assert ended(quiet).complaint.startswith("No connection to the database: ")
    result = ended(verbose)
    assert result.code == 2
    assert "Traceback (most recent call last):" in result.err
    assert result.err.splitlines()[-1].startswith("notify-worker: No connection to the database: ")
    assert "sesame" not in result.err


# ── send and explain ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_send_inserts_one_notification_with_its_options(cli: Cli, shop: psycopg.Connection) -> None:
    sent = cli(
        *("send", "--topic", "news", "--campaign", "restock", "--body", "Back", "--image", "https://shop.example/t.png"),
        *("--param", "item=tent", "--param", "sum=1=1", "--data", "screen=shop", "--priority", "high", "--project", "p"),
    )  # fmt: skip

    row = shop.execute(
        """
        select kind, address, campaign, title, body, image, params, data, priority, project
        from notify_worker.notifications
        where id = %s
        """,
        [int(sent.out.removeprefix("notification "))],
    ).fetchone()
    assert (sent.code, sent.err) == (0, "")
    assert row == (
        *("topic", "news", "restock", None, "Back", "https://shop.example/t.png"),
        *({"item": "tent", "sum": "1=1"}, {"screen": "shop"}, "high", "p"),
    )  # fmt: skip


def test_send_of_an_event_that_is_there_already_inserts_nothing_and_succeeds(
    cli: Cli, shop: psycopg.Connection
) -> None:
    cli(*HELLO, "--event-id", "order:42:paid")

    again = cli(*HELLO, "--event-id", "order:42:paid", "--wait")

    assert again == Ended(0, 'the event "order:42:paid" exists already: nothing was inserted\n', "")
    assert count(shop) == 1


def test_explain_takes_an_event_or_a_number(cli: Cli, shop: psycopg.Connection) -> None:
    number = defer(shop, event_id="order:42:paid", receiver_id="u_42", title="Hello")

    by_event, by_number = cli("explain", "order:42:paid"), cli("explain", str(number))

    for result in (by_event, by_number):
        assert (result.code, result.err) == (0, "")
        inserted, stands = result.out.splitlines()
        assert inserted.endswith(f"notification {number} (event order:42:paid) was inserted for receiver u_42")
        assert "it is pending" in stands
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}  ", inserted)


def test_a_numeric_event_id_comes_before_a_notification_id(cli: Cli, shop: psycopg.Connection) -> None:
    number = defer(shop, receiver_id="by number", title="Hello")
    defer(shop, event_id=str(number), receiver_id="by event", title="Hello")

    assert "receiver by event" in cli("explain", str(number)).out


def test_send_with_wait_prints_what_explain_prints_and_exits_by_the_result(
    cli: Cli, shop: psycopg.Connection, tmp_path: Path
) -> None:
    shop.execute("select notify_worker.register_device('u_42', 'token', 'alive:phone', 'android')")
    with start_sandbox(tmp_path / "sandbox.json") as box:
        env = {"NOTIFY_WORKER_FCM_URL": box.url, "GOOGLE_APPLICATION_CREDENTIALS": str(box.credentials)}
        alive = start(*HELLO, "--event-id", "order:42:paid", "--wait")
        dead = start("send", "--token", "dead:phone", "--title", "Hello", "--wait")
        until("both are inserted", lambda: count(shop) == 2, within=20)

        drained = ended(start("worker", "--drain", NOTIFY_WORKER_LOG_FORMAT="json", **env))
        sent, unreachable = ended(alive), ended(dead)
        [shown] = box.shown

    assert (drained.code, drained.out) == (0, "")
    assert (sent.code, shown.title) == (0, "Hello")
    assert sent.err == "" or sent.err.startswith("waiting; the state so far:\n")  # on a busy machine
    number, *story = sent.out.splitlines()
    assert re.fullmatch(r"notification \d", number)
    assert [line.split("  ")[1].split(" ")[0] for line in story] == ["notification", "delivery", "delivery", "it"]
    assert "came to sent: FCM has accepted it as projects/" in story[2]
    assert story[-1].endswith("it ended sent")
    assert unreachable.code == 1
    assert "came to unregistered" in unreachable.out
    assert unreachable.out.endswith("it ended unreachable\n")
    assert "alive:phone" not in sent.out + drained.err
    assert cli("explain", "order:42:paid") == Ended(0, "".join(f"{line}\n" for line in story), "")


@pytest.mark.parametrize("value", ["1e5000", "[" * 2000 + "]" * 2000], ids=["long number", "deep list"])
def test_a_row_that_python_cannot_read_delays_no_other(shop: psycopg.Connection, tmp_path: Path, value: str) -> None:
    shop.execute(
        """
        insert into notify_worker.notifications (kind, address, title, params)
        values ('token', 'healthy', 'Hello', null), ('token', 'poisoned', 'Hello', %s)
        """,
        [f'{{"it": {value}}}'],
    )

    with start_sandbox(tmp_path / "sandbox.json") as box:
        env = {"NOTIFY_WORKER_FCM_URL": box.url, "GOOGLE_APPLICATION_CREDENTIALS": str(box.credentials)}
        drained = ended(start("worker", "--drain", **env))
        shown = [each.address for each in box.shown]

    assert (drained.code, "healthy" in shown) == (0, True)


# ── worker and sandbox ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_line_of_a_json_log_is_an_object_with_its_fields(shop: psycopg.Connection) -> None:
    shop.execute("update notify_worker.projects set sender = 'console'")

    worker = ended(start("-v", "worker", "--drain", NOTIFY_WORKER_LOG_FORMAT="json"))

    lines = [json.loads(line) for line in worker.err.splitlines()]
    assert (worker.code, worker.out) == (0, "")
    assert all({"at", "level", "logger", "text"} <= line.keys() for line in lines)
    registered = [line["logger"] for line in lines if line.get("event") == "worker_registered"]
    assert registered == ["notify_worker.pipeline.heartbeat"]


def test_a_json_log_keeps_a_traceback_in_its_line() -> None:
    try:
        int("many")
    except ValueError:
        record = logging.LogRecord("shop", logging.ERROR, "shop.py", 1, "it broke: %s", ("so",), sys.exc_info())

    [line] = json_formatter().format(record).splitlines()

    read = json.loads(line)
    assert (read["level"], read["logger"], read["text"]) == ("error", "shop", "it broke: so")
    assert read["traceback"].endswith("invalid literal for int() with base 10: 'many'")


def test_a_worker_exits_cleanly_on_sigterm(shop: psycopg.Connection) -> None:
    shop.execute("update notify_worker.projects set sender = 'console'")
    worker = start("worker")
    until("the worker is here", lambda: shop.execute("select from notify_worker.workers").rowcount == 1, within=20)

    worker.send_signal(signal.SIGTERM)

    left = ended(worker)
    assert (left.code, left.out) == (0, "")
    assert "Traceback" not in left.err


def test_a_command_line_session_has_its_own_application_name(shop: psycopg.Connection) -> None:
    waiting = start("send", "--token", "app:phone", "--title", "Hello", "--wait")
    named = "select from pg_stat_activity where datname = current_database() and application_name = 'notify-worker cli'"

    until("its session is there", lambda: shop.execute(named).rowcount == 1, within=20)

    waiting.kill()
    waiting.communicate()


def test_the_sandbox_says_where_it_is_and_how_to_use_it_and_ends_on_sigterm(tmp_path: Path) -> None:
    credentials = tmp_path / "key.json"
    sandbox = start("sandbox", "--port", "0", "--credentials", str(credentials))
    assert sandbox.stdout
    url = sandbox.stdout.readline().removeprefix("a local FCM at ").strip()
    export = sandbox.stdout.readline()

    with urlopen(url, timeout=5) as page:
        assert page.status == 200
    sandbox.send_signal(signal.SIGTERM)

    assert export == f"export NOTIFY_WORKER_FCM_URL={url} GOOGLE_APPLICATION_CREDENTIALS={credentials}\n"
    assert S_IMODE(credentials.stat().st_mode) == 0o600
    assert ended(sandbox) == Ended(0, "", "")


def test_the_sandbox_takes_faults_as_options(tmp_path: Path) -> None:
    sandbox = start(
        *("sandbox", "--port", "0", "--credentials", str(tmp_path / "key.json"), "--latency", "0.5", "--quota", "50"),
        *("--token-lifetime", "60", "--fail", "503=0.1", "--fail", "dead=0.02"),
    )
    assert sandbox.stdout
    url = sandbox.stdout.readline().removeprefix("a local FCM at ").strip()

    with urlopen(f"{url}/switch", timeout=5) as answer:
        switches = json.load(answer)
    sandbox.send_signal(signal.SIGTERM)

    assert ended(sandbox).code == 0
    assert switches["fail"] == {"503": 0.1, "dead": 0.02}
    assert (switches["latency"], switches["quota"], switches["token_lifetime"]) == (0.5, 50.0, 60)


@pytest.mark.parametrize(
    ("fail", "complaint"),
    [
        ("qouta=1", '"qouta" is no fault. Did you mean "quota"?'),
        ("503=often", '"often" is not a rate from 0 to 1'),
        ("503", '"503" is not NAME=VALUE'),
    ],
)
def test_an_invalid_fault_option_is_refused(tmp_path: Path, fail: str, complaint: str) -> None:
    result = ended(start("sandbox", "--credentials", str(tmp_path / "key.json"), "--fail", fail))

    assert (result.code, result.out) == (2, "")
    assert result.err.endswith(f"{complaint}\n")


def test_a_port_that_is_taken_is_named(cli: Cli, tmp_path: Path) -> None:
    with start_sandbox(tmp_path / "first.json") as box:
        port = box.url.rpartition(":")[2]
        complaint = cli("sandbox", "--port", port, "--credentials", str(tmp_path / "second.json")).complaint

    assert complaint.startswith(f"the sandbox can't listen on 127.0.0.1:{port}: Address already in use")
    assert complaint.endswith("Choose another host or port.")
