"""A shop for the tests of the running worker: a database, a local FCM, and workers that are processes of their own.

A test asks for the fixture `shop`; or a module opens one with `a_shop` for several tests.
What its workers have logged is shown where a test fails.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString, Unpack

import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from notify_worker import sandbox
from notify_worker.dev import shop
from notify_worker.dev.shop import Worker
from notify_worker.producer import Columns, defer
from notify_worker.sandbox import Sandbox
from notify_worker.sandbox.switches import Changes
from tests.support.server import created
from tests.support.store_calls import Connection
from tests.support.waiting import until

PROCRASTINATE = [sys.executable, "-m", "procrastinate", "--app=notify_worker.worker.app"]
COMMANDS = {
    "notify-worker": [sys.executable, "-m", "notify_worker", "worker"],
    "procrastinate": [*PROCRASTINATE, "worker"],
}
"""The two ways to run a worker. They share everything but the poll each second, and the supervision."""
both_kinds = pytest.mark.parametrize("kind", COMMANDS)

REQUEST_TIMEOUT = 2.0
LEASE = 20.0
"""The shortest that such a timeout allows: 2 x (3 x 2 s + 4 s)."""
LOG_LINES = 60

Row = dict[str, Any]


class Shop(shop.Shop):
    """The demo's shop with more methods for tests; its workers may be procrastinate's own, and have short timeouts."""

    connection: Connection

    def __init__(self, conninfo: str, box: Sandbox, folder: Path) -> None:
        super().__init__(conninfo, box, folder / "workers.log")
        self.connect_again()
        self.folder = folder

    def connect_again(self) -> None:
        """Take another session, after a restart of the server."""
        self.connection.close()
        self.connection = Connection.connect(self.conninfo, autocommit=True)

    # What a shop does

    def notify(self, to: str, **columns: Unpack[Columns]) -> int:
        """Commit one notification to an address; return its id."""
        content: Columns = {"title": "Thank you", "kind": "token", "address": to}
        content.update(columns)
        notification_id = defer(self.connection, **content)
        assert notification_id is not None
        return notification_id

    def notify_at(self, address: str) -> datetime:
        """Commit one notification; return the moment just before its COMMIT."""
        with self.connection.transaction():
            self.notify(address)
            return datetime.now(UTC)

    def notify_many(self, count: int, fault: str = "app") -> None:
        """Commit so many notifications in one statement, each to an address of its own."""
        self.connection.execute(
            """
            insert into notify_worker.notifications (event_id, kind, address, title)
            select 'event:' || number, 'token', %s || ':phone-' || number, 'Thank you'
            from generate_series(1, %s) as number
            """,
            [fault, count],
        )

    # What stands in the database

    def rows(self, query: LiteralString, *values: object) -> list[Row]:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, values).fetchall()

    def value(self, query: LiteralString, *values: object) -> Any:
        row = self.connection.execute(query, values).fetchone()
        return row[0] if row else None

    def states(self) -> Counter[str]:
        """Count the notifications by state."""
        return Counter(
            {
                row["state"]: row["count"]
                for row in self.rows("select state, count(*) from notify_worker.notifications group by state")
            }
        )

    def all_sent(self, count: int) -> bool:
        """Return whether this many are sent and there is no other. It asks FCM first, since counting rows takes a while."""
        return self.box.accepted >= count and self.states() == {"sent": count}

    def state(self, which: int | str) -> str:
        """The state of a notification, by its id, or by the id of its event."""
        by_id = "select state from notify_worker.notifications where id = %s"
        return str(super().state(which) if isinstance(which, str) else self.value(by_id, which))

    def delivery(self, notification_id: int) -> Row:
        """The one delivery of a notification; `due_in` in seconds."""
        (row,) = self.rows(
            """
            select *, extract(epoch from due_at - clock_timestamp())::float as due_in
            from notify_worker.deliveries
            where notification_id = %s
            """,
            notification_id,
        )
        return row

    def attempts(self, notification_id: int) -> list[Row]:
        return self.rows(
            "select * from notify_worker.attempts where notification_id = %s order by number", notification_id
        )

    def unbalanced(self) -> list[Row]:
        """The lines of the ledger that do not balance."""
        return self.rows("select * from notify_worker.ledger where not balanced")

    def wakeups(self) -> int:
        """Count the wake-ups that wait."""
        return int(
            self.value(
                """
                select count(*)
                from notify_worker.procrastinate_jobs
                where task_name = 'notify_worker.drain' and status = 'todo'
                """
            )
        )

    def delete_wakeups(self) -> None:
        """Delete the wake-ups that wait."""
        with self.among_procrastinates_tables():
            self.connection.execute("delete from procrastinate_jobs where task_name = 'notify_worker.drain'")

    def defer_job(self, task: str, *, after: float) -> None:
        """Defer a job of procrastinate's in SQL, and commit it after so many seconds."""
        with self.among_procrastinates_tables():
            self.connection.execute("select pg_sleep(%s)", [after])
            self.connection.execute(
                """
                select procrastinate_defer_jobs_v1(
                    array[row('notify_worker', %s, 0, null, null, '{}', null)::procrastinate_job_to_defer_v1]
                )
                """,
                [task],
            )

    @contextmanager
    def among_procrastinates_tables(self) -> Iterator[None]:
        """A transaction in which procrastinate's own triggers find their tables: they rely on the search_path."""
        with self.connection.transaction():
            self.connection.execute("set local search_path = notify_worker")
            yield

    def leased(self) -> int:
        """Count the notifications that a worker has leased."""
        return int(self.value("select count(*) from notify_worker.notifications where lease is not null"))

    def backends(self) -> list[Row]:
        """The sessions of everybody but this shop. `part` tells whose, by its last query; null: it has run none."""
        return self.rows(
            """
            select
                pid,
                application_name,
                wait_event,
                coalesce(clock_timestamp() - xact_start, '0') as in_transaction_for,
                case
                    when query ilike 'listen%%' then 'listener'
                    when query ~ '(heartbeat|(un)?register_worker)\\(' then 'heartbeat'
                    when query ~ '(claim|record|release|mark_awake|has_open_writers|has_due|next_due_in)\\('
                        or query ~ '(wake_worker|rescue_dead_workers|clear_stalled_jobs|create_partitions)\\('
                        or query ~ 'from projects'
                        then 'store'
                    when query ~ 'procrastinate_' then 'procrastinate'
                end as part
            from pg_stat_activity
            where datname = current_database()
                and backend_type = 'client backend'
                and pid <> pg_backend_pid()
            """
        )

    def sleeps(self) -> bool:
        """Return whether no worker has been awake for half a second."""
        return bool(
            self.value(
                """
                select coalesce(pg_sequence_last_value('notify_worker.awake_until'), 0)
                    < 1000 * extract(epoch from clock_timestamp() - interval '500 ms')
                    and not exists (
                        select
                        from notify_worker.procrastinate_jobs
                        where task_name = 'notify_worker.drain' and status = 'todo'  -- the dead leave some as doing
                    )
                """
            )
        )

    # Its workers

    def busy(self) -> Worker:
        """The worker that recorded the first attempt."""
        pid = self.value(
            """
            select pid
            from notify_worker.workers
            where name = (select worker from notify_worker.attempts order by finished_at limit 1)
            """
        )
        return next(worker for worker in self._workers if worker.pid == pid)

    def start_worker(self, kind: str = "notify-worker", /, *options: str, **settings: object) -> Worker:
        """Start a worker, and wait until it listens. `settings` are variables of the environment."""
        before = self.listeners()
        worker = self.launch(kind, *options, **settings)
        until("the worker listens", lambda: worker.has_left or bool(self.listeners() - before), within=15)
        assert not worker.has_left, f"the worker has left: {worker.returncode}"
        return worker

    def launch(self, kind: str = "notify-worker", /, *options: str, **settings: object) -> Worker:
        """Start a worker, and wait for nothing."""
        return self._spawn([*COMMANDS[kind], *options], settings)

    def procrastinate(self, *arguments: str) -> None:
        """Run procrastinate's command line to its end."""
        with self.log.open("ab") as log:
            subprocess.run(
                [*PROCRASTINATE, *arguments],
                env=self.environment(),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                check=True,
                timeout=30,
            )

    def environment(self, **settings: object) -> dict[str, str]:
        """What a worker of this shop finds in its environment."""
        impatient = {"NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS": REQUEST_TIMEOUT, "NOTIFY_WORKER_LEASE_SECONDS": LEASE}
        return super().environment(**(impatient | settings))

    def listeners(self) -> set[int]:
        """The sessions that listen."""
        return {backend["pid"] for backend in self.backends() if backend["part"] == "listener"}

    def said(self, words: str) -> bool:
        """Return whether a worker has logged this."""
        return self.log.exists() and words in self.log.read_text(errors="replace")

    def close(self) -> None:
        """Kill the workers that are left, and print the end of what they have logged: pytest shows it for a failure."""
        for worker in self._workers:
            worker.kill()
        self.connection.close()
        if self.log.exists():
            print("\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]))


@contextmanager
def a_shop(server: str, template: str, folder: Path, **switches: Unpack[Changes]) -> Iterator[Shop]:
    """Open a shop, on a database of its own; `switches` are the local FCM's, such as the seconds of its `latency`."""
    with created(server, template) as name, sandbox.start(folder / "sandbox.json", **switches) as box:
        shop = Shop(make_conninfo(server, dbname=name), box, folder)
        try:
            yield shop
        finally:
            shop.close()
