"""README and docs are true: every statement, every line of Python and every command in them runs, page by page.

A page is followed from top to bottom, as its reader would. The comment `<!-- not run: why -->` before a block leaves it out.
Blocks of SQL run on one connection, which commits each statement. Each line of a `bash` block is a command; one that stays
(`notify-worker worker`) goes on until the page ends, and then has to stop cleanly.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryDirectory
from textwrap import dedent

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import notify_worker
from notify_worker import sandbox
from notify_worker.cli.commands import SANDBOX_PORT
from notify_worker.dev import postgres
from tests.support.waiting import until

CHECKOUT = Path(notify_worker.__file__).parents[1]
PAGES = {
    str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8")
    for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
README = PAGES["README.md"]
PROGRAMS = Path(sys.executable).parent
STAYS = {
    "notify-worker worker": "select count(*) = 1 from notify_worker.workers",
    "procrastinate --app=notify_worker.worker.app worker": """
        select count(*) > 0 from pg_stat_activity where datname = current_database() and query ilike 'listen %'
    """,
    "notify-worker sandbox": "select true",
    "notify-worker dev": "select true",
}
"""The commands that stay until they are stopped, and how the database shows that they are up."""
FIRST_WORDS = {
    "notify-worker sandbox": "a local FCM at http://127.0.0.1:",
    "notify-worker dev": "A PostgreSQL, a local FCM and a worker are up.",
}
LAST_WORDS = {"notify-worker dev": "Ctrl-C ends it."}
NOTHING_WAITS = """
    select not exists (select from notify_worker.notifications where state = 'pending' and send_at is null)
"""


# What stands on a page


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: str
    line: int
    language: str
    text: str
    not_run_since: str | None


BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<why>\S.*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>sql|python|bash)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: str, *languages: str) -> list[Block]:
    return [
        Block(
            page,
            PAGES[page].count("\n", 0, found.start("text")) + 1,
            found["language"],
            dedent(found["text"]),
            found["why"],
        )
        for found in BLOCK.finditer(PAGES[page])
        if not languages or found["language"] in languages
    ]


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its own head."""
    section = re.split(rf"^#+ {heading}$", PAGES[page], flags=re.MULTILINE)[1]
    section = re.split(r"^#", section, flags=re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


COMMANDS = [row[-1].strip("`") for row in table("docs/operating/commands.md", "A command for each task")]


# Who reads it


@dataclass
class Reader:
    """Somebody who follows a page: their database is the one that libpq's variables name."""

    connection: psycopg.Connection
    environment: dict[str, str]
    folder: Path
    names: dict[str, object] = field(default_factory=dict)
    """What the page's Python has defined so far."""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """The commands that stay, since they were started."""

    def follow(self, block: Block, monkeypatch: pytest.MonkeyPatch, elsewhere: Collection[str] = ()) -> None:
        """Do what a block says, except for commands that are run elsewhere."""
        match block.language:
            case "sql":
                self.connection.execute(block.text.encode())
            case "python":
                for name, value in self.environment.items():
                    monkeypatch.setenv(name, value)
                lines = "\n" * (block.line - 1)  # so that a traceback names the line of the page
                exec(compile(lines + block.text, CHECKOUT / block.page, "exec"), self.names)
            case _:
                for command in commands(block.text):
                    if command in elsewhere:
                        continue
                    if command in STAYS:
                        self.start(command)
                    else:
                        self.run(command)

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def start(self, command: str) -> None:
        """Start a command that stays, and wait until it is up."""
        words = shlex.split(command)
        with self.output(command).open("wb") as output:
            process = subprocess.Popen(
                [PROGRAMS / words[0], *words[1:]], env=self.environment, cwd=self.folder, stdout=output, stderr=output
            )
        self.running[command] = process
        until(f"{command} is up", lambda: process.poll() is not None or self.is_up(command), within=30)
        if command == "notify-worker dev":
            self.take_over_exports(command)

    def is_up(self, command: str) -> bool:
        said = self.output(command).read_text(errors="replace")
        return (
            said.startswith(FIRST_WORDS.get(command, ""))
            and LAST_WORDS.get(command, "") in said
            and self.holds(STAYS[command])
        )

    def take_over_exports(self, command: str) -> None:
        """Type the `export` lines that a command has printed, and connect to the database that they name."""
        for line in self.output(command).read_text().splitlines():
            if line.startswith("export "):
                self.environment |= dict(word.split("=", 1) for word in shlex.split(line)[1:])
        self.connection.close()
        self.connection = psycopg.connect(self.environment["NOTIFY_WORKER_DATABASE_URL"], autocommit=True)

    def stop_all(self) -> None:
        """Stop what stays, as a platform does; each has to leave cleanly."""
        for process in self.running.values():
            process.send_signal(SIGTERM)
        for process in self.running.values():
            process.wait(timeout=25)
        for command, process in self.running.items():
            assert process.returncode == 0, f"{command}\n{self.output(command).read_text(errors='replace')}"

    def output(self, command: str) -> Path:
        """Where a command that stays writes."""
        return self.folder / f"{re.sub(r'[^a-z]+', '-', command)}.log"

    def holds(self, query: str) -> bool:
        row = self.connection.execute(query.encode()).fetchone()
        return row is not None and bool(row[0])


def commands(block: str) -> list[str]:
    """The commands of a block, one a line: a comment is none, and a backslash joins two lines."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.partition(" # ")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture
def reader(database: str, connection: psycopg.Connection, tmp_path: Path) -> Iterator[Reader]:
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    parts = conninfo_to_dict(database)
    with sandbox.start(tmp_path / "sandbox.json") as box, TemporaryDirectory() as home:
        Path(home).chmod(0o711)
        environment = {
            "NOTIFY_WORKER_HOME": home,
            **os.environ,
            **{variable: str(parts[part]) for part, variable in names.items() if part in parts},
            "PATH": os.pathsep.join([str(PROGRAMS), os.environ["PATH"], str(postgres.binaries())]),
            "NOTIFY_WORKER_FCM_URL": box.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(box.credentials),
        }
        connection.execute("create table orders (id bigint, receiver_id text)")
        connection.execute("create table restock_requests (item_id bigint, receiver_id text)")
        (tmp_path / "sql").symlink_to(CHECKOUT / "sql")
        reader = Reader(connection, environment, tmp_path)
        try:
            yield reader
        finally:
            reader.connection.close()
            for process in reader.running.values():
                process.kill()
                process.wait()


@pytest.fixture
def reader_of_the_readme(reader: Reader) -> Reader:
    """One who has run the SQL of README already; the guides build on it."""
    for block in blocks("README.md", "sql"):
        reader.connection.execute(block.text.encode())
    return reader


# What is true of the pages


IN_ORDER = ("README.md", "docs/tutorial.md")
"""The pages of which each command has to be run where it stands. Elsewhere, what the table of commands has is run once."""


@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.not_run_since for block in blocks(page))])
def test_a_page_runs_from_top_to_bottom(page: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    if page not in IN_ORDER:  # the guides build on README
        for block in blocks("README.md", "sql"):
            reader.follow(block, monkeypatch)
    elsewhere = () if page in IN_ORDER else COMMANDS

    for block in blocks(page):
        if not block.not_run_since:
            reader.follow(block, monkeypatch, elsewhere)

    if reader.running:
        until("all is sent", lambda: reader.holds(NOTHING_WAITS), within=20)
    reader.stop_all()


def test_the_readmes_sql_and_python_each_insert_their_notification(
    reader_of_the_readme: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in blocks("README.md", "python"):
        reader_of_the_readme.follow(block, monkeypatch)

    explained = reader_of_the_readme.connection.execute(
        "select what from notify_worker.explain('order:42:paid')"
    ).fetchall()

    assert "was inserted for receiver u_42" in explained[0][0]
    assert reader_of_the_readme.holds("select true from notify_worker.notifications where event_id = 'order:43:paid'")


def test_the_first_command_ends_with_a_push() -> None:
    first = blocks("README.md", "bash")[0].text.strip().split(" && ")

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


@pytest.mark.parametrize(
    "command", [command for command in STAYS if not any(f"\n{command}\n" in PAGES[page] for page in IN_ORDER)]
)
def test_a_command_that_stays_comes_up_and_leaves_when_asked(reader: Reader, command: str) -> None:
    assert command in COMMANDS
    if command == "notify-worker sandbox" and is_taken(SANDBOX_PORT):
        pytest.skip("somebody who follows the README runs a sandbox on this machine")

    reader.start(command)

    assert reader.running[command].poll() is None
    reader.stop_all()


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_other_commands_run(reader_of_the_readme: Reader) -> None:
    reader = reader_of_the_readme
    reader.start("notify-worker worker")

    for command in COMMANDS:
        if command.startswith("notify_worker."):
            eval(command, {"notify_worker": notify_worker, "connection": reader.connection})
        elif command not in STAYS:
            reader.run(command)

    until("all is sent", lambda: reader.holds(NOTHING_WAITS), within=15)
    reader.stop_all()
    assert "it ended sent" in reader.run("notify-worker explain order:42:paid")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 170


# Paths

OURS = r"(?:tests|chaos|benchmarks|notify_worker|sql|alembic|docs|\.github|\.ci)/[\w./-]*"


NAMING = PAGES | {
    name: (CHECKOUT / name).read_text(encoding="utf-8")
    for name in ("CONTRACT.md", "CONTRIBUTING.md", ".github/SECURITY.md")
}


def paths(page: str) -> set[str]:
    """The files and folders of this project that a page names, by a code span, a command or a link."""
    text = NAMING[page]
    named = set(re.findall(rf"`({OURS})`", text)) | set(re.findall(r"(?<= )(?:sql|tests)/[\w./]+\w", text))
    programs = {
        str(Path(name.replace(".", "/")).with_suffix("" if name == "chaos" else ".py"))
        for name in re.findall(r"python -m (chaos|(?:benchmarks|tests)[.\w]+)", text)
    }
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^):]+)\)", text)} - {""}
    return named | programs | {str(Path(page).parent / link) for link in links}


def test_every_path_that_a_page_names_exists() -> None:
    missing = {(page, path) for page in NAMING for path in paths(page) if not (CHECKOUT / path).exists()}

    assert missing == set()
