"""Running the command line in tests: a verb in this process or its own, its output and exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from notify_worker.cli.main import main
from tests.support.store_calls import EVENT, Connection

CHECKOUT = Path(__file__).parents[2]
HELLO = ("send", "--receiver", "u_42", "--title", "Hello")
NEEDS_THE_SCHEMA: list[tuple[str, ...]] = [
    ("status",),
    ("history", "u_42"),
    ("retry", EVENT),
    ("cancel", EVENT),
    ("pause", "default", "Black Friday"),
    ("resume", "default"),
    ("prune", "--older-than", "90 days"),
    HELLO,
    ("explain", EVENT),
    ("worker", "--drain"),
]
"""A call of each verb that works on the migrated database."""


@dataclass(frozen=True)
class Ended:
    """Output and exit code of a verb."""

    code: object
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on stderr: the error, without the program's name."""
        assert self.code == 2, self
        assert self.out == ""
        [line] = self.err.splitlines()
        assert line.startswith("notify-worker: ")
        return line.removeprefix("notify-worker: ")


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a verb; in this process unless it configures logging or signals."""

    def run(*arguments: str) -> Ended:
        if arguments[:1] in (("worker",), ("sandbox",)) and "--help" not in arguments:
            return ended(start(*arguments))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return Ended(left.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def shop(database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """A connection to the database that the verbs use."""
    monkeypatch.setenv("NOTIFY_WORKER_DATABASE_URL", database)
    return connection


def start(*arguments: str, **env: str) -> "subprocess.Popen[str]":
    """Run a verb in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "notify_worker", *arguments],
        cwd=CHECKOUT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", *, within: float = 20) -> Ended:
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"{process.args!r} has not ended within {within} s:\n{out}\n{err}")
    return Ended(process.returncode, out, err)


def accepts_password(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError:
        return False
    return True
