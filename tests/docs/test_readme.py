"""The README is true: every statement and every command in it runs.

Two are left to others: `docker compose`, which needs an engine, and the test command, which is what runs this. Of the
first command, .ci/run runs the whole; here its last part.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryDirectory

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import notify_worker
from notify_worker import sandbox
from notify_worker.cli import SANDBOX_PORT
from notify_worker.dev import postgres
from notify_worker.settings import VARIABLES
from tests.support.waiting import until

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PROGRAMS = Path(sys.executable).parent
STAYS = {
    "notify-worker worker": "select count(*) = 1 from notify_worker.workers",
    "procrastinate --app=notify_worker.worker.app worker": """
        select count(*) > 0 from pg_stat_activity where datname = current_database() and query ilike 'listen %'
    """,
    "notify-worker sandbox": "select true",
    "notify-worker dev": "select true",
}
FIRST_WORDS = {
    "notify-worker sandbox": "a local FCM at http://127.0.0.1:",
    "notify-worker dev": "A PostgreSQL, a local FCM and a worker are up.",
}
"""The commands that stay until they are stopped, and how the database sees that they are there."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its own head."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


NOTHING_WAITS = """
    select not exists (select from notify_worker.notifications where state = 'pending' and send_at is null)
"""
COMMANDS = [row[-1].strip("`") for row in table("A command for each")]


@dataclass
class Reader:
    """Somebody who follows the README: their database is the one that libpq's variables name."""

    connection: psycopg.Connection
    environment: dict[str, str]
    folder: Path

    def start(self, command: str) -> subprocess.Popen[str]:
        words = shlex.split(command)
        known = PROGRAMS if (PROGRAMS / words[0]).exists() else postgres.binaries()
        return subprocess.Popen(
            [known / words[0], *words[1:]],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        with self.start(command) as process:
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return said

    def holds(self, query: str) -> bool:
        row = self.connection.execute(query.encode()).fetchone()
        return row is not None and bool(row[0])


@pytest.fixture
def reader(database: str, connection: psycopg.Connection, tmp_path: Path) -> Iterator[Reader]:
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    parts = conninfo_to_dict(database)
    with sandbox.start(tmp_path / "sandbox.json") as box, TemporaryDirectory() as home:
        environment = {
            "NOTIFY_WORKER_HOME": home,
            **os.environ,
            **{variable: str(parts[part]) for part, variable in names.items() if part in parts},
            "NOTIFY_WORKER_FCM_URL": box.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(box.credentials),
        }
        connection.execute("create table orders (id bigint, receiver_id text)")
        connection.execute("create table restock_requests (item_id bigint, receiver_id text)")
        yield Reader(connection, environment, tmp_path)


@pytest.fixture
def reader_of_sql(reader: Reader) -> Reader:
    """One who has run the SQL already."""
    for block in blocks("sql"):
        reader.connection.execute(block.encode())
    return reader


def test_every_statement_runs(reader_of_sql: Reader) -> None:
    told = reader_of_sql.connection.execute("select what from notify_worker.explain('order:42:paid')").fetchall()

    assert "was inserted for receiver u_42" in told[0][0]


def test_the_python_runs(reader_of_sql: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in reader_of_sql.environment.items():
        monkeypatch.setenv(name, value)

    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})

    assert reader_of_sql.holds("select true from notify_worker.notifications where event_id = 'order:43:paid'")


def test_the_first_command_ends_with_a_push() -> None:
    first = blocks("bash")[0].strip().split(" && ")

    assert first[0] == "python3 -m venv .venv"
    assert first[1] == ".venv/bin/pip install -q -e '.[test]'"
    said = subprocess.run(
        [PROGRAMS / first[2].removeprefix(".venv/bin/").split()[0], "demo"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Order 1 is paid" in said.stdout
    assert "The ledger balances" in said.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in STAYS])
def test_what_stays_comes_up_and_leaves_when_asked(reader: Reader, command: str) -> None:
    if command == "notify-worker sandbox" and is_taken(SANDBOX_PORT):
        pytest.skip("somebody who follows the README runs a sandbox on this machine")
    process = reader.start(command)

    try:
        until(f"{command} is there", lambda: process.poll() is not None or reader.holds(STAYS[command]), within=20)
        if command in FIRST_WORDS:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(FIRST_WORDS[command])
    finally:
        process.send_signal(SIGTERM)
        said, _ = process.communicate(timeout=25)

    assert process.returncode == 0, said


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_other_commands_run(reader_of_sql: Reader) -> None:
    reader = reader_of_sql
    worker = reader.start("notify-worker worker")

    try:
        for command in COMMANDS:
            if command.startswith("notify_worker."):
                eval(command, {"notify_worker": notify_worker, "connection": reader.connection})
            elif command not in STAYS:
                reader.run(command)
        until("all is sent", lambda: reader.holds(NOTHING_WAITS), within=15)
    finally:
        worker.terminate()
        worker.communicate(timeout=25)

    assert "it ended sent" in reader.run("notify-worker explain order:42:paid")


def test_the_settings_are_those_that_there_are() -> None:
    named = {row[0].strip("`") for row in table("Settings")} - {"GOOGLE_APPLICATION_CREDENTIALS"}

    assert named <= set(VARIABLES)


def test_the_programs_that_show_promises_are_there() -> None:
    for row in table("Promises"):
        for shown in re.findall(r"`(tests/[\w./]+|python -m benchmarks\.\w+)", row[-1]):
            path = shown if shown.startswith("tests/") else shown.removeprefix("python -m ").replace(".", "/") + ".py"
            assert (Path(__file__).parents[2] / path).exists(), path
