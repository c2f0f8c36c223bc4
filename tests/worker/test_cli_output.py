"""The command line beside its verbs: examples, completion, version, and tables and colours on a terminal."""

import os
import pty
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest

from notify_worker.cli.main import app
from tests.support import cli_process
from tests.support.cli_process import CHECKOUT, Cli, Ended, ended, start
from tests.support.store_calls import EVENT, Connection

cli, shop = cli_process.cli, cli_process.shop  # fixtures

COLOUR = re.compile(r"\x1b\[[\d;]*3\dm")
EXPENSIVE = {
    "aiohttp",
    "alembic",
    "google",
    "httpx",
    "procrastinate",
    "psycopg",
    "pythonjsonlogger",
    "rich",
    "sqlalchemy",
}


def on_terminal(*arguments: str, ends: int = 0, **env: str) -> str:
    """Run a verb on a terminal until it ends with this code, and return what it shows."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "notify_worker", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "160", **env},
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while chunk := read(master):
        shown += chunk
    os.close(master)
    assert process.wait(20) == ends, shown
    return shown.decode()


def read(master: int) -> bytes:
    """Read what a terminal shows next; nothing: its last process has ended, which Linux reports as an error."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", app.commands)
def test_the_help_of_each_verb_ends_with_an_example_that_the_verb_takes(cli: Cli, verb: str) -> None:
    shown = cli(verb, "--help")

    title, example = shown.out.splitlines()[-2:]
    program, named, *arguments = shlex.split(example.partition("|")[0])
    assert title.strip() == "Example:"
    assert (program, named) == ("notify-worker", verb)
    assert app.commands[verb].make_context(verb, arguments)


def test_help_works_in_a_broken_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_WORKER_FCMURL", "http://127.0.0.1")

    assert cli("--help").code == cli("worker", "--help").code == 0


def test_help_imports_nothing_that_only_a_running_verb_needs() -> None:
    code = "import sys, notify_worker.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"

    imported = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)

    assert "click" in imported.stdout.split()
    assert EXPENSIVE.isdisjoint(imported.stdout.split())


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    assert cli("--version") == Ended(0, f"notify-worker {version('notify-worker')}\n", "")


# ── completion ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("notify-worker s", {"sandbox", "send", "status"}),
        ("notify-worker send --p", {"--param", "--priority", "--project"}),
    ],
)
def test_bash_completes_verbs_and_options(words: str, offered: set[str]) -> None:
    last = str(len(words.split()) - 1)

    asked = ended(start(_NOTIFY_WORKER_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=last))

    assert asked.code == 0, asked
    assert {line.partition(",")[2] for line in asked.out.splitlines()} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_that_the_help_names_is_printed_for_each_shell(cli: Cli, shell: str) -> None:
    assert f"{shell}_source" in cli("--help").out

    script = ended(start(_NOTIFY_WORKER_COMPLETE=f"{shell}_source"))

    assert script.code == 0, script
    assert "_NOTIFY_WORKER_COMPLETE" in script.out


# ── a terminal ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def told_shop(shop: Connection) -> Connection:
    """A receiver with a notification that had no device, and one that waits, whose event tries to be markup and control."""
    shop.insert(receiver_id="u_42", event_id=EVENT)
    shop.claim(shop.register_worker())
    shop.insert(receiver_id="u_42", event_id="[bold]\x1b[2Jorder\n")
    return shop


def test_a_terminal_gets_the_history_as_a_table_with_colours(told_shop: Connection) -> None:
    shown = on_terminal("history", "u_42")

    assert {"notification", "event", "state", "reason"} <= set(
        re.findall(r"[a-z]+", re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()[1])
    )
    assert EVENT in shown
    assert "[bold]" in shown
    assert "\x1b[2J" not in shown
    assert COLOUR.search(shown)


def test_no_color_turns_the_colours_of_a_table_off(told_shop: Connection) -> None:
    shown = on_terminal("history", "u_42", NO_COLOR="1")

    assert EVENT in shown
    assert not COLOUR.search(shown)


def test_a_terminal_gets_the_status_as_a_table(told_shop: Connection) -> None:
    shown = on_terminal("status")

    assert re.search(r"pending\W+1\b", shown)
    assert "pending           1" not in shown


def test_a_pipe_gets_plain_lines(cli: Cli, told_shop: Connection) -> None:
    for arguments in (("status",), ("history", "u_42")):
        shown = cli(*arguments)

        assert (shown.code, shown.err) == (0, "")
        assert shown.out.isascii() or "�" in shown.out
        assert "\x1b" not in shown.out
        assert not re.search("[┃│┏]", shown.out)


def test_an_error_on_a_terminal_is_coloured_unless_no_color_is_set() -> None:
    wrong = ("prune", "--older-than")

    in_colour, plain = on_terminal(*wrong, ends=2), on_terminal(*wrong, ends=2, NO_COLOR="1")

    assert COLOUR.search(in_colour)
    assert not COLOUR.search(plain)
    assert "notify-worker: Option '--older-than' requires an argument." in plain
