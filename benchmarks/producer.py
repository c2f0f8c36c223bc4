"""The cost of a notification to the business transaction, compared with a plain extra row.

    python -m benchmarks.producer [--rounds 5] [--seconds 3] [--clients 1 16 48]

pgbench runs `begin; insert into orders; insert into X; commit` (prepared), where X is either a plain table with the same
columns, primary key and unique event_id, or notify_worker.notifications. Rounds are shuffled and interleaved, on an embedded
PostgreSQL with fsync on. Prints the medians of each round's ratio to its plain run: transactions a second, and CPU of all
server processes per transaction.

    awake    the awake mark is set all the time (no worker runs, so that the transactions have all cores)
    none     no worker runs: the first commit sends a wake-up, the others find it waiting
    idle     single commits on an idle machine, each of which sends a wake-up: the duration of each
"""

import argparse
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import monotonic, sleep

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from notify_worker.database import schema
from notify_worker.dev import postgres

COLUMNS = "(event_id, receiver_id, campaign, params)"
ROW = """('order:' || :random, 'u_42', 'order_paid', '{"order_id": 42}')"""
SCRIPT = """\\set random random(1, 9000000000000000000)
begin;
insert into orders (id, receiver_id) values (:random, 'u_42');
insert into {table} {columns} values {row} on conflict (event_id) do nothing;
commit;
"""
PLAIN, NOTIFICATION = "plain", "notify_worker.notifications"


@dataclass(frozen=True)
class Run:
    """One run of pgbench."""

    per_second: float
    cpu_microseconds: float


class Bench:
    """Runs pgbench on a server."""

    def __init__(self, conninfo: str, folder: Path) -> None:
        self.conninfo = conninfo
        # procrastinate's triggers name their tables without a schema.
        self.connection = psycopg.connect(conninfo, autocommit=True, options="-c search_path=notify_worker,public")
        self.connection.execute("create table public.orders (id bigint primary key, receiver_id text)")
        self.connection.execute(
            "create table public.plain (like notify_worker.notifications including defaults including identity, "
            "primary key (id), unique (event_id))"
        )
        self.scripts = {}
        for table in (PLAIN, NOTIFICATION):
            self.scripts[table] = folder / f"{table}.sql"
            self.scripts[table].write_text(SCRIPT.format(table=table, columns=COLUMNS, row=ROW))
        row = self.connection.execute("select pg_backend_pid()").fetchone()
        assert row is not None
        self.postmaster = psutil.Process(row[0]).parent()

    def clean(self) -> None:
        """Empty the tables, so that every run starts with the same size."""
        self.connection.execute("truncate orders, plain, notify_worker.notifications")
        self.connection.execute("delete from procrastinate_jobs")
        self.connection.execute("checkpoint")

    def run(self, table: str, clients: int, seconds: int) -> Run:
        """Run pgbench once."""
        parts = conninfo_to_dict(self.conninfo)
        environment = {"PGPASSWORD": str(parts["password"]), "PGSSLMODE": "disable", "LC_ALL": "C"}
        before = self.cpu()
        output = subprocess.run(
            [
                *(postgres.binaries() / "pgbench", "-n", "-M", "prepared", "-f", self.scripts[table]),
                *("-c", str(clients), "-j", "1", "-T", str(seconds)),
                *("-h", str(parts["host"]), "-p", str(parts["port"]), "-U", str(parts["user"]), str(parts["dbname"])),
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        done = int(found(r"transactions actually processed: (\d+)", output))
        return Run(float(found(r"tps = ([\d.]+)", output)), (self.cpu() - before) * 1e6 / done)

    def cpu(self) -> float:
        """Return the CPU seconds of the server, including its processes that have ended."""
        total = 0.0
        for process in (self.postmaster, *self.postmaster.children()):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
            if process is self.postmaster:
                total += times.children_user + times.children_system
        return total

    @contextmanager
    def worker_awake(self) -> Iterator[None]:
        """Keep the awake mark set, without a worker."""
        over = Event()

        def mark_awake() -> None:
            with psycopg.connect(self.conninfo, autocommit=True) as connection:
                while not over.wait(0.05):
                    connection.execute("select notify_worker.mark_awake()")

        thread = Thread(target=mark_awake)
        thread.start()
        sleep(0.2)
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextmanager
    def no_worker(self) -> Iterator[None]:
        """Let the last awake mark expire."""
        sleep(0.5)
        yield


def found(pattern: str, text: str) -> str:
    """Find a number in the output of pgbench."""
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


def under_load(
    bench: Bench, state: Callable[[], AbstractContextManager[None]], name: str, options: argparse.Namespace
) -> None:
    """Print the ratios for one state of the worker, by number of clients."""
    for clients in options.clients:
        ratios: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            runs: dict[str, Run] = {}
            for table in random.sample((PLAIN, NOTIFICATION), 2):
                bench.clean()
                with state():
                    runs[table] = bench.run(table, clients, options.seconds)
            plain, ours = runs[PLAIN], runs[NOTIFICATION]
            ratios.append((ours.per_second / plain.per_second, ours.cpu_microseconds / plain.cpu_microseconds))
        rate, cpu = (median(column) for column in zip(*ratios, strict=True))
        spread = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratio for ratio, _ in ratios))
        print(
            f"{name:<7} {clients:>3} clients: {rate:.2f} x the rate ({spread}), {cpu:.2f} x the server's CPU",
            flush=True,
        )


def idle(bench: Bench, samples: int) -> None:
    """Print the duration of a single transaction that sends a wake-up, and of the plain one."""
    bench.clean()
    taken: dict[str, list[float]] = {PLAIN: [], NOTIFICATION: []}
    with psycopg.connect(bench.conninfo, autocommit=True) as connection:
        for number in range(2 * samples):
            table = (PLAIN, NOTIFICATION)[number % 2]
            bench.connection.execute("select notify_worker.delete_wakeups()")
            began = monotonic()
            with connection.transaction():
                connection.execute("insert into orders (id, receiver_id) values (%s, 'u_42')", [number])
                connection.execute(
                    f"insert into {table} {COLUMNS} values (%s, 'u_42', 'order_paid', '{{}}')".encode(), [f"e:{number}"]
                )
            taken[table].append(1000 * (monotonic() - began))
            sleep(0.02)
    print(
        f"idle: a commit with a wake-up {median(taken[NOTIFICATION]):.2f} ms, the plain one {median(taken[PLAIN]):.2f} ms "
        f"(medians of {samples})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 48])
    options = parser.parse_args()
    with ExitStack() as ends:
        home = Path(ends.enter_context(TemporaryDirectory(prefix="notify-worker-producer-")))
        server = ends.enter_context(postgres.start(home, {"max_wal_size": "4GB", "max_connections": "100"}))
        schema.migrate(server.conninfo)
        bench = Bench(server.conninfo, home)
        under_load(bench, bench.worker_awake, "awake", options)
        under_load(bench, bench.no_worker, "none", options)
        idle(bench, 200)
        bench.connection.close()


if __name__ == "__main__":
    main()
