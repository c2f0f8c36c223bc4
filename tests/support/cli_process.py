"""Running the command line in tests: a verb in this process or in one of its own, and what it left behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from notify_worker.cli.main import main

CHECKOUT = Path(__file__).parents[2]
HELLO = ("send", "--receiver", "u_42", "--title", "Hello")


@dataclass(frozen=True)
class Ended:
    """What a verb left behind."""

    code: object
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong."""
        assert self.code == 2, self
        assert self.out == ""
        [line] = self.err.splitlines()
        assert line.startswith("notify-worker: ")
        return line.removeprefix("notify-worker: ")


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a verb; in this process, unless it sets up logging or signals for all of it."""

    def run(*arguments: str) -> Ended:
        if arguments[:1] in (("worker",), ("sandbox",)) and "--help" not in arguments:
            return ended(start(*arguments))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return Ended(left.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def shop(database: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> psycopg.Connection:
    """A connection to the database that the verbs work on."""
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


def lets_in(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError:
        return False
    return True
