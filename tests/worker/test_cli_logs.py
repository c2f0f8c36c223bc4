"""The log of a process: text for people, or one JSON object a line, to the last line."""

import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from notify_worker.cli.logs import TextFormatter, json_formatter
from tests.support import cli_process
from tests.support.cli_process import ended, start

shop = cli_process.shop  # a fixture

AWAY = {"NOTIFY_WORKER_DATABASE_URL": "host=127.0.0.1 port=1 password=opensesame"}
AT = datetime(2026, 11, 30, 21, 0, 0, 123456, UTC)


def record(**extra: object) -> logging.LogRecord:
    made = logging.getLogger("shop").makeRecord(
        "shop", logging.WARNING, "shop.py", 1, "rescue failed: %s; retrying", ("timeout",), None, extra=extra
    )
    made.created, made.msecs = AT.timestamp(), 123
    return made


def lines(text: str) -> list[dict[str, Any]]:
    """Read a log of which every line is one JSON object."""
    read = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(line, dict) for line in read)
    return read


# ── a line ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_of_text_has_the_time_in_utc_and_the_event_before_the_sentence() -> None:
    line = TextFormatter().format(record(event="rescue_failed"))

    assert line == "2026-11-30 21:00:00,123+00:00 WARNING event=rescue_failed rescue failed: timeout; retrying"


def test_a_line_of_text_without_an_event_names_its_logger() -> None:
    line = TextFormatter().format(record())

    assert line == "2026-11-30 21:00:00,123+00:00 WARNING shop: rescue failed: timeout; retrying"


def test_a_line_of_json_has_every_field_of_the_record() -> None:
    fields = {"event": "rescue_failed", "error": "timeout", "worker_id": UUID(int=7), "after": timedelta(seconds=2)}

    (read,) = lines(json_formatter().format(record(**fields)))

    at = datetime.fromisoformat(read.pop("at"))
    assert (at, at.utcoffset()) == (AT, timedelta(0))
    assert read == {
        "level": "warning",
        "logger": "shop",
        "text": "rescue failed: timeout; retrying",
        "event": "rescue_failed",
        "error": "timeout",
        "worker_id": str(UUID(int=7)),
        "after": "0:00:02",
    }


# ── a process ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "env", "text"),
    [
        (("worker", "--drain"), AWAY, "No connection to the database: "),
        (("-v", "migrate"), AWAY, "No connection to the database: "),
        (("status",), AWAY, "No connection to the database: "),
        (("worker",), {"NOTIFY_WORKER_FCMURL": "x"}, "NOTIFY_WORKER_FCMURL is not a setting"),
        (("worker", "--dran"), {}, "No such option '--dran'. Did you mean '--drain'?"),
    ],
    ids=["a worker", "verbose", "another verb", "a setting", "an option"],
)
def test_the_last_line_of_a_log_in_json_is_the_error_that_ends_the_process(
    arguments: tuple[str, ...], env: dict[str, str], text: str
) -> None:
    left = ended(start(*arguments, NOTIFY_WORKER_LOG_FORMAT="json", **env))

    last = lines(left.err)[-1]
    assert (left.code, left.out) == (2, "")
    assert (last["event"], last["level"], last["exit_code"]) == ("command_failed", "error", 2)
    assert last["text"].startswith(text)
    assert "sesame" not in left.err


def test_a_json_log_of_a_worker_without_credentials_ends_with_the_error(shop: psycopg.Connection) -> None:
    env = {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json", "NOTIFY_WORKER_LOG_FORMAT": "json"}

    left = ended(start("worker", "--drain", **env))

    assert left.code == 2
    assert "GOOGLE_APPLICATION_CREDENTIALS" in lines(left.err)[-1]["text"]


def test_an_unexpected_exception_is_one_json_object() -> None:
    code = (
        "from notify_worker.cli import logs; logs.configure('json', 20); import warnings; warnings.warn('odd'); 1 / 0"
    )

    left = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)

    warned, died = lines(left.stderr)
    assert left.returncode == 1
    assert "UserWarning: odd" in warned["text"]
    assert (died["event"], died["level"]) == ("uncaught_exception", "critical")
    assert died["traceback"].endswith("ZeroDivisionError: division by zero")


def test_the_log_of_a_worker_in_text_has_a_time_in_utc_on_every_line(shop: psycopg.Connection) -> None:
    shop.execute("update notify_worker.projects set sender = 'console'")

    left = ended(start("worker", "--drain", TZ="Asia/Seoul"))

    stamps = [line.partition(" INFO ")[0] for line in left.err.splitlines()]
    assert left.code == 0
    assert stamps
    for stamp in stamps:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\+00:00", stamp)
        assert abs(datetime.now(UTC) - datetime.fromisoformat(stamp)) < timedelta(minutes=1)
