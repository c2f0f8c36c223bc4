"""The database restarts, crashes, is full or stays down: the worker survives, and nothing is lost or sent twice."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from notify_worker.database import schema
from notify_worker.dev import postgres
from notify_worker.dev.shop import Worker
from tests.support.server import created, memory
from tests.support.shop import Row, Shop, a_shop
from tests.support.store_calls import Connection
from tests.support.waiting import until

SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "40"}
"""Fast; yet commits survive a crash of the server, since the kernel keeps running."""
PATIENT: dict[str, Any] = {"NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS": 10, "NOTIFY_WORKER_LEASE_SECONDS": 68}
"""For a worker that waits for answers which take seconds."""
BACK_WITHIN = 2.0
"""Seconds after a restart in which the next commit is sent."""
HEARD_WITHIN = timedelta(milliseconds=300)
"""From a commit to the phone, if a wake-up wakes the worker."""
AWAY_FOR = 20.0
HALF_A_LEASE = 60.0
"""Seconds: half the lease that `Connection.register_worker` takes by default."""

both_ways = pytest.mark.parametrize("mode", ["fast", "immediate"])


class Server:
    """A server that restarts under its old address."""

    def __init__(self, home: Path) -> None:
        home.chmod(0o711)
        self._home = home
        self._owned = postgres.start(home, SETTINGS)
        self.conninfo = self._owned.conninfo

    def restart(self, mode: str) -> None:
        self._control("restart", "-m", mode)

    def stop(self, mode: str = "fast") -> None:
        self._control("stop", "-m", mode)

    def start(self) -> None:
        self._control("restart")  # with the options that it had

    def end(self) -> None:
        self.stop("immediate")
        self._owned.stop()

    def _control(self, *command: str) -> None:
        (data,) = self._home.glob("pg*/data")
        copied = [path.parent for path in self._home.glob("postgres-*/*/*/bin/pg_ctl")]
        program = (copied or [postgres.binaries()])[0] / "pg_ctl"
        postgres.output(
            program, "-D", data, "-w", "-l", data.with_name("restarts.log"), *command, **postgres.unprivileged()
        )


@pytest.fixture(scope="module")
def mortal() -> Iterator[Server]:
    """A server of this module's own."""
    with TemporaryDirectory(prefix="notify-worker-", dir=memory()) as home, ExitStack() as ends:
        server = Server(Path(home))
        ends.callback(server.end)
        yield server


@pytest.fixture(scope="module")
def migrated(mortal: Server) -> Iterator[str]:
    """The name of a migrated database on it."""
    with created(mortal.conninfo) as name:
        schema.migrate(make_conninfo(mortal.conninfo, dbname=name))
        yield name


@pytest.fixture
def shop(mortal: Server, migrated: str, tmp_path: Path) -> Iterator[Shop]:
    with a_shop(mortal.conninfo, migrated, tmp_path) as shop:
        yield shop


def commit_is_sent(shop: Shop, address: str, *, within: float) -> None:
    number = shop.notify(address)
    until(f"{address} is sent", lambda: shop.state(number) == "sent", within=within)


def assert_it_listens_again(shop: Shop) -> None:
    """A lone commit wakes the worker every time: a poll alone would come half a second late on average."""
    until("it listens again", lambda: bool(shop.listeners()), within=10)
    for number in range(4):
        until("the worker sleeps", shop.sleeps, within=10)
        shown, committed_at = len(shop.box.shown), shop.notify_at(f"app:heard-{number}")
        until("it is shown", lambda before=shown: len(shop.box.shown) > before, within=5)  # type: ignore[misc]
        assert shop.box.shown[-1].at - committed_at < HEARD_WITHIN


def assert_each_was_sent_once(shop: Shop, count: int) -> None:
    until("all are sent", lambda: shop.all_sent(count), within=30)
    assert (shop.box.received, shop.box.doubles) == (count, 0)
    assert shop.unbalanced() == []


def assert_it_still_runs(worker: Worker, shop: Shop) -> None:
    assert not worker.has_left
    assert worker.stop() == 0
    assert not [
        line for line in shop.log.read_text().splitlines() if "ERROR notify_worker" in line or "ERROR event=" in line
    ]


# It restarts


@both_ways
def test_after_a_restart_an_idle_worker_sends_the_next_commit_and_listens_again(
    mortal: Server, shop: Shop, mode: str
) -> None:
    worker = shop.start_worker()
    commit_is_sent(shop, "app:before", within=10)
    until("the worker sleeps", shop.sleeps, within=10)

    mortal.restart(mode)
    shop.connect_again()

    commit_is_sent(shop, "app:after", within=BACK_WITHIN)
    assert_it_listens_again(shop)
    assert_it_still_runs(worker, shop)
    assert shop.box.doubles == 0


@both_ways
def test_a_restart_while_a_hundred_requests_hang_loses_no_outcome_and_doubles_nothing(
    mortal: Server, shop: Shop, mode: str
) -> None:
    worker = shop.start_worker(**PATIENT)
    shop.notify_many(150, "hang4")
    until("a hundred hang", lambda: shop.box.in_flight == 100, within=10)

    mortal.restart(mode)
    shop.connect_again()

    assert_each_was_sent_once(shop, 150)
    assert shop.value("select array_agg(distinct verdict) from notify_worker.attempts") == ["sent"]
    assert_it_still_runs(worker, shop)


def test_answers_that_come_while_the_server_is_away_are_recorded_when_it_is_back(mortal: Server, shop: Shop) -> None:
    worker = shop.start_worker(**PATIENT)
    shop.notify_many(100, "hang2")
    until("a hundred hang", lambda: shop.box.in_flight == 100, within=10)

    mortal.stop()
    until("FCM has answered all", lambda: shop.box.in_flight == 0, within=10)
    until("the answers wait", lambda: shop.said("event=record_failed"), within=10)
    mortal.start()
    shop.connect_again()

    assert_each_was_sent_once(shop, 100)
    assert_it_still_runs(worker, shop)


@pytest.mark.slow
def test_under_load_workers_survive_twenty_seconds_without_a_server_and_send_each_once(
    mortal: Server, shop: Shop
) -> None:
    workers = [shop.start_worker(**PATIENT) for _ in range(2)]
    shop.notify_many(3000)
    until("they are in the middle of it", lambda: shop.box.accepted > 300, within=10)

    mortal.stop()
    back_at = monotonic() + AWAY_FOR
    until("it was away", lambda: monotonic() > back_at, within=AWAY_FOR + 1)
    mortal.start()
    shop.connect_again()

    assert_each_was_sent_once(shop, 3000)
    assert_it_listens_again(shop)
    for worker in workers:
        assert_it_still_runs(worker, shop)


@both_ways
def test_after_a_restart_a_worker_without_its_session_has_half_a_lease_of_grace(
    mortal: Server, shop: Shop, mode: str
) -> None:
    with Connection.connect(shop.conninfo, autocommit=True) as session:
        worker = session.register_worker()

        mortal.restart(mode)
        shop.connect_again()

        assert stale_workers(shop) == [{"worker_id": worker.id, "grace_period": HALF_A_LEASE}]


# It crashes


def test_after_a_crash_recovery_a_worker_without_its_session_has_half_a_lease_of_grace(shop: Shop) -> None:
    with Connection.connect(shop.conninfo, autocommit=True) as session:
        worker = session.register_worker()
        victim = Connection.connect(shop.conninfo)
        started_at = shop.value("select pg_postmaster_start_time()")

        os.kill(victim.info.backend_pid, SIGKILL)
        until("all sessions have ended", lambda: is_broken(session) and is_broken(shop.connection), within=10)
        until("it is back", lambda: is_back(shop), within=20)
        shop.connect_again()
        victim.close()

        assert shop.value("select pg_postmaster_start_time()") == started_at
        assert stale_workers(shop) == [{"worker_id": worker.id, "grace_period": HALF_A_LEASE}]


def stale_workers(shop: Shop) -> list[Row]:
    return shop.rows("select worker_id, grace_period from notify_worker.stale_workers()")


def is_broken(connection: Connection) -> bool:
    try:
        connection.execute("select 1")
    except psycopg.Error:
        return True
    return False


def is_back(shop: Shop) -> bool:
    try:
        Connection.connect(shop.conninfo).close()
    except psycopg.OperationalError:
        return False
    return True


# Its sessions end


def test_a_worker_goes_on_after_repeatedly_losing_every_session(shop: Shop) -> None:
    worker = shop.start_worker(**PATIENT)
    shop.notify_many(1000, "hang0.5")

    for part in (100, 300, 500):
        until("it is in the middle of it", lambda least=part: shop.box.accepted > least, within=20)  # type: ignore[misc]
        assert end_every_session(shop) > 0

    assert_each_was_sent_once(shop, 1000)
    assert_it_listens_again(shop)
    assert_it_still_runs(worker, shop)


def end_every_session(shop: Shop) -> int:
    """End every session but the shop's own; return how many."""
    return len(
        shop.rows(
            """
            select pg_terminate_backend(pid)
            from pg_stat_activity
            where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
            """
        )
    )


def test_a_worker_waits_while_no_connection_is_free_and_sends_afterwards(shop: Shop) -> None:
    worker = shop.start_worker()
    commit_is_sent(shop, "app:before", within=10)

    with full(shop.conninfo) as others:
        end_every_other_session(shop, others)
        take_what_is_free(shop.conninfo, others)
        during = shop.notify("app:during")
        until("the worker is refused", lambda: shop.said("too many clients"), within=10)
        assert not worker.has_left
        assert shop.state(during) == "pending"

    until("it is sent", lambda: shop.state(during) == "sent", within=5)
    assert_it_listens_again(shop)
    assert_it_still_runs(worker, shop)


@contextmanager
def full(conninfo: str) -> Iterator[list[Connection]]:
    """Others hold all connections that are free."""
    others: list[Connection] = []
    try:
        take_what_is_free(conninfo, others)
        yield others
    finally:
        for other in others:
            other.close()


def take_what_is_free(conninfo: str, others: list[Connection]) -> None:
    with pytest.raises(psycopg.OperationalError, match="too many clients"):
        others.extend(Connection.connect(conninfo) for _ in count())


def end_every_other_session(shop: Shop, others: list[Connection]) -> None:
    shop.rows(
        """
        select pg_terminate_backend(pid)
        from pg_stat_activity
        where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
            and pid <> all (%s)
        """,
        [other.info.backend_pid for other in others],
    )


# How it leaves


def test_a_worker_that_cannot_start_says_why_and_fails(mortal: Server, shop: Shop) -> None:
    mortal.stop()
    try:
        worker = shop.launch()

        until("it has left", lambda: worker.has_left, within=40)
    finally:
        mortal.start()
        shop.connect_again()

    assert worker.poll() == 2
    assert shop.said("No connection to the database")
    assert "Traceback" not in shop.log.read_text()


def test_a_stop_with_unrecorded_answers_while_the_server_is_away_exits_with_1(mortal: Server, shop: Shop) -> None:
    worker = shop.start_worker(**PATIENT)
    shop.notify_many(50, "hang1")
    until("they hang", lambda: shop.box.in_flight == 50, within=10)

    mortal.stop()
    try:
        until("the answers wait", lambda: shop.said("event=record_failed"), within=10)
        code = worker.stop()
    finally:
        mortal.start()
        shop.connect_again()

    assert code == 1
    assert shop.said("event=stopped_unfinished")


def test_an_idle_worker_stops_quickly_while_the_server_is_away(mortal: Server, shop: Shop) -> None:
    worker = shop.start_worker()
    until("the worker sleeps", shop.sleeps, within=10)

    mortal.stop()
    try:
        began = monotonic()
        worker.stop()
        took = monotonic() - began
    finally:
        mortal.start()
        shop.connect_again()

    assert took < 10
    assert not shop.said("never retrieved")
