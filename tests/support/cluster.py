"""A PostgreSQL of a test's own that can be restarted in every way, with a synchronous standby that can be promoted.

The binaries are those of the embedded server, and so is the way each process is started: under root as nobody, and gone
with the process that started it.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any, LiteralString, Self

import psycopg
from psycopg.conninfo import make_conninfo

from notify_worker.dev import postgres
from tests.support.server import memory
from tests.support.waiting import until

FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT
"""The two ways to stop: sessions end and all is written; or everything stops as in a crash, and the next start recovers."""
SETTINGS = {
    **postgres.SETTINGS,
    "fsync": "off",  # a process that dies loses nothing; only a machine would
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "200",
    "wal_keep_size": "512MB",
    "wal_receiver_timeout": "5s",
    "wal_retrieve_retry_interval": "100ms",
}
STARTS_WITHIN = 60.0
IN_SYNC_WITHIN = 60.0


class Node:
    """One server: a folder and a port, whether it runs or not."""

    def __init__(self, programs: Path, folder: Path) -> None:
        folder.mkdir(mode=0o711)
        self.place = folder / "pg"
        self.port = postgres.free_port()
        self._programs = programs
        self._ends = ExitStack()
        self._server: Popen[Any] | None = None

    @property
    def conninfo(self) -> str:
        return postgres.conninfo(self.place, self.port)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {**SETTINGS, "port": str(self.port)}
        log = self.place.with_name("postgres.log")
        server = self._server = postgres.spawn(self._programs, self.place, settings, log, self._ends)
        until("the server answers", lambda: server.poll() is not None or self.answers(), within=STARTS_WITHIN)
        assert server.poll() is None, f"the server does not start: {postgres.last_lines(log.read_text())}"

    def stop(self, how: signal.Signals) -> None:
        """Stop it, and wait until it has ended."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(60)
            self._server = None
        self._ends.close()

    def answers(self) -> bool:
        try:
            self.ask("select 1")
        except psycopg.OperationalError:
            return False
        return True

    def ask(self, query: LiteralString, *values: object) -> Any:
        """Ask for one value, in a session of its own."""
        with psycopg.connect(self.conninfo, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(query, values)
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


class Cluster:
    """A primary and its synchronous standby: what is committed is on both."""

    def __init__(self, home: Path) -> None:
        programs = postgres.binaries()
        version = postgres.version_of(programs)
        self._programs = postgres.within_reach(programs, home / "programs")
        self.nodes = [Node(self._programs, home / name) for name in ("first", "second")]
        self.primary, self.standby = self.nodes
        postgres.initialise(self._programs, int(version.partition(".")[0]), self.primary.place)
        self.primary.start()
        self.rebuild_standby()

    def conninfo(self, **parts: str) -> str:
        """Say how to connect to whichever of the two takes writes."""
        return make_conninfo(
            self.primary.conninfo,
            host=",".join("127.0.0.1" for _ in self.nodes),
            port=",".join(str(node.port) for node in self.nodes),
            target_session_attrs="read-write",
            **parts,
        )

    def restart(self, how: signal.Signals) -> None:
        """Stop the primary and start it again, with all that it had committed."""
        self.primary.stop(how)
        self.primary.start()

    def fail_over(self) -> None:
        """Let the primary crash for good, and promote the standby. It has no standby of its own then."""
        self.primary.stop(IMMEDIATE)
        self.standby.ask("select pg_promote(true, 60)")
        self.primary, self.standby = self.standby, self.primary
        self._wait_for_standbys("")

    def rebuild_standby(self) -> None:
        """Make the other server a copy of the primary, and let each commit wait for it from then on."""
        new = postgres.empty(self.standby.place.with_name("pg.new"))
        postgres.give(new)
        postgres.output(
            *(self._programs / "pg_basebackup", "--pgdata", new / "data", "--dbname", self.primary.conninfo),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
            **postgres.unprivileged(),
        )
        shutil.copy(self.primary.place / "password", new / "password")
        shutil.rmtree(self.standby.place, ignore_errors=True)
        new.rename(self.standby.place)
        self.standby.start()
        self._wait_for_standbys("*")
        until("the standby is in sync", self.is_in_sync, within=IN_SYNC_WITHIN)

    def is_in_sync(self) -> bool:
        """Tell whether the standby has all that is committed."""
        return bool(
            self.primary.ask(
                """
                select exists (
                    select from pg_stat_replication
                    where sync_state = 'sync' and state = 'streaming' and flush_lsn is not null
                )
                """
            )
        )

    @contextmanager
    def commits_held(self) -> Iterator[None]:
        """Hold each commit after all of its statements: the standby does not say that it has it."""
        receiver = self.standby.ask("select pid from pg_stat_wal_receiver")
        if receiver is None:
            yield
            return
        os.kill(receiver, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(receiver, signal.SIGCONT)

    def close(self) -> None:
        for node in (self.standby, self.primary):
            node.stop(IMMEDIATE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for_standbys(self, names: str) -> None:
        with psycopg.connect(self.primary.conninfo, autocommit=True) as connection:
            connection.execute(f"alter system set synchronous_standby_names = '{names}'".encode())
            connection.execute("select pg_reload_conf()")


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """Make a cluster, in memory where there is room; it is gone at the end."""
    with TemporaryDirectory(prefix="notify-worker-cluster-", dir=memory()) as home:
        Path(home).chmod(0o711)  # under root the servers run as nobody, who has to pass through
        with Cluster(Path(home)) as cluster:
            yield cluster
