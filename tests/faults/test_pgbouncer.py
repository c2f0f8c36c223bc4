"""Behind PgBouncer: producers need no setting, a worker logs what it loses, and no pooled session is changed.

Needs PgBouncer: the binary that PGBOUNCER names, else the one in PATH.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import psycopg
import pytest

from notify_worker.database.connections import is_transaction_pooled
from notify_worker.dev.shop import Worker
from notify_worker.producer import Columns, defer, defer_async, defer_many, defer_many_async
from tests.support.pooler import HOW_TO_HAVE_IT, Pooler, program
from tests.support.server import memory
from tests.support.shop import PROCRASTINATE, Shop
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(program() is None, reason=HOW_TO_HAVE_IT)

TRANSACTION_POOLED = "event=transaction_pooled"
FOUND_WITHIN = 2.0
"""Seconds from a commit to FCM if only the poll finds it: one second, and what a busy machine takes."""
HEARD_WITHIN = timedelta(milliseconds=300)
SESSION = "select current_setting(name) from unnest(%s::text[]) as name"
NAMES = ["search_path", "application_name", "timezone", "statement_timeout", "synchronous_commit"]


@contextmanager
def pooled(shop: Shop, mode: str, size: int = 20) -> Iterator[Pooler]:
    with TemporaryDirectory(prefix="notify-worker-pgbouncer-", dir=memory()) as folder:
        pooler = Pooler(shop.conninfo, Path(folder), mode, size)
        pooler.start()
        try:
            yield pooler
        finally:
            pooler.stop()


@pytest.fixture
def transactions(shop: Shop) -> Iterator[Pooler]:
    """A pooler in transaction mode: each transaction may get another session."""
    with pooled(shop, "transaction") as pooler:
        yield pooler


def start_worker(shop: Shop, pooler: Pooler) -> Worker:
    """Start a worker that connects through the pooler alone, and wait until it has registered."""
    worker = shop.launch(NOTIFY_WORKER_DATABASE_URL=pooler.conninfo)
    until("the worker is here", lambda: worker.has_left or shop.said(TRANSACTION_POOLED), within=15)
    until("it has registered", lambda: worker.has_left or bool(workers(shop)), within=15)
    assert not worker.has_left
    return worker


def workers(shop: Shop) -> list[dict[str, object]]:
    return shop.rows("select * from notify_worker.workers")


def locks(shop: Shop) -> int:
    return int(
        shop.value(
            """
            select count(*)
            from pg_locks
            where locktype = 'advisory' and classid = notify_worker.presence_lock_class()::oid
                and database = (select oid from pg_database where datname = current_database())
            """
        )
    )


# Producers


def test_plain_inserts_through_the_pooler_commit_and_send_one_wakeup(shop: Shop, transactions: Pooler) -> None:
    with psycopg.connect(transactions.conninfo, prepare_threshold=None) as connection:
        for number in range(12):
            connection.execute(
                "insert into notify_worker.notifications (kind, address, title) values ('token', %s, 'Hello')",
                [f"app:{number}"],
            )
            connection.commit()

    assert shop.states() == {"pending": 12}
    assert shop.wakeups() == 1


def test_defer_and_defer_many_work_through_the_pooler_however_often_called(shop: Shop, transactions: Pooler) -> None:
    with psycopg.connect(transactions.conninfo) as ours, psycopg.connect(transactions.conninfo) as others:
        for number in range(12):  # from the sixth time on psycopg would prepare a statement
            assert defer(ours, kind="token", address=f"app:{number}", title="Hello")
            assert all(defer_many(ours, two(number)))
            others.execute("select 1", prepare=False)
            for connection in (ours, others):  # the session that is free last is taken first: they swap
                connection.commit()

    assert shop.states() == {"pending": 12 * 3}


async def test_defer_async_and_defer_many_async_work_through_the_pooler_too(shop: Shop, transactions: Pooler) -> None:
    async with (
        await psycopg.AsyncConnection.connect(transactions.conninfo) as ours,
        await psycopg.AsyncConnection.connect(transactions.conninfo) as others,
    ):
        for number in range(12):
            assert await defer_async(ours, kind="token", address=f"app:{number}", title="Hello")
            assert all(await defer_many_async(ours, two(number)))
            await others.execute("select 1", prepare=False)
            for connection in (ours, others):
                await connection.commit()

    assert shop.states() == {"pending": 12 * 3}


def two(number: int) -> list[Columns]:
    return [{"kind": "token", "address": f"app:many-{number}-{each}", "title": "Hello"} for each in range(2)]


def test_a_commit_through_the_pooler_wakes_a_direct_worker(shop: Shop, transactions: Pooler) -> None:
    shop.start_worker()
    with psycopg.connect(transactions.conninfo, autocommit=True) as connection:
        for number in range(3):
            until("the worker sleeps", shop.sleeps, within=10)
            began = monotonic()
            defer(connection, kind="token", address=f"app:{number}", title="Hello")
            until("it is shown", lambda count=number: shop.box.accepted > count, within=5)  # type: ignore[misc]
            assert monotonic() - began < 0.5


# A worker in transaction mode


async def test_transaction_mode_is_detected_and_session_mode_is_not_taken_for_it(shop: Shop) -> None:
    for size in (1, 20):
        with pooled(shop, "transaction", size) as pooler:
            assert await is_transaction_pooled(pooler.conninfo)
    with pooled(shop, "session") as pooler:
        assert not await is_transaction_pooled(pooler.conninfo)


def test_a_pooled_worker_logs_its_limits_takes_no_lock_and_polls(shop: Shop, transactions: Pooler) -> None:
    worker = start_worker(shop, transactions)

    for number in range(3):
        began = monotonic()
        notification_id = shop.notify(f"app:{number}")
        until("it is sent", lambda each=notification_id: shop.state(each) == "sent", within=10)  # type: ignore[misc]
        assert monotonic() - began < FOUND_WITHIN

    assert shop.value("select array_agg(holds_lock) from notify_worker.stored_workers") == [False]
    assert locks(shop) == 0
    assert shop.listeners() == set()
    assert worker.stop() == 0
    assert workers(shop) == []
    assert "Traceback" not in shop.log.read_text()


def test_a_worker_sends_many_each_once(shop: Shop, transactions: Pooler) -> None:
    worker = start_worker(shop, transactions)

    shop.notify_many(1000)

    until("all are sent", lambda: shop.all_sent(1000), within=30)
    assert (shop.box.received, shop.box.doubles) == (1000, 0)
    assert shop.unbalanced() == []
    assert worker.stop() == 0
    assert shop.leased() == 0


def test_a_worker_survives_a_restart_of_the_pooler_and_sends_each_once(shop: Shop, transactions: Pooler) -> None:
    worker = start_worker(shop, transactions)
    shop.notify_many(200, "hang1")
    until("requests hang", lambda: shop.box.in_flight == 100, within=10)

    transactions.stop()
    until("FCM has answered", lambda: shop.box.in_flight == 0, within=10)
    transactions.start()

    until("all are sent", lambda: shop.all_sent(200), within=20)
    assert (shop.box.received, shop.box.doubles) == (200, 0)
    after = shop.notify("app:after")
    until("the next commit is sent", lambda: shop.state(after) == "sent", within=FOUND_WITHIN)
    assert worker.stop() == 0
    assert shop.unbalanced() == []


def test_a_dead_workers_notifications_are_sent_after_half_a_lease(shop: Shop, transactions: Pooler) -> None:
    worker = start_worker(shop, transactions)
    shop.notify_many(10, "hang1.5")
    until("requests hang", lambda: shop.box.in_flight == 10, within=10)

    worker.kill()
    killed = monotonic()
    start_worker(shop, transactions)

    until("all are sent", lambda: shop.all_sent(10), within=20)
    assert 9 < monotonic() - killed < 17
    assert shop.box.doubles <= 10


def test_a_shared_session_is_left_unchanged(shop: Shop) -> None:
    with psycopg.connect(shop.conninfo) as fresh:
        usual = [value for (value,) in fresh.execute(SESSION, [NAMES])]
    with pooled(shop, "transaction", size=3) as pooler:
        worker = start_worker(shop, pooler)
        shop.notify_many(300)
        until("all are sent", lambda: shop.all_sent(300), within=20)

        for found in sessions_of_the_pool(pooler, size=3):
            assert found == usual
        assert worker.stop() == 0


def sessions_of_the_pool(pooler: Pooler, size: int) -> list[list[str]]:
    """Return the settings of each session of a pool, by as many transactions at once as it has sessions."""
    others = [psycopg.connect(pooler.conninfo) for _ in range(size)]
    try:
        return [[value for (value,) in other.execute(SESSION, [NAMES])] for other in others]
    finally:
        for other in others:
            other.close()


# A worker in session mode


def test_in_session_mode_wakeups_arrive_and_the_worker_holds_its_lock(shop: Shop) -> None:
    with pooled(shop, "session") as pooler:
        worker = shop.start_worker(NOTIFY_WORKER_DATABASE_URL=pooler.conninfo)
        assert not shop.said(TRANSACTION_POOLED)

        for number in range(3):
            until("the worker sleeps", shop.sleeps, within=10)
            committed_at = shop.notify_at(f"app:{number}")
            until("it is shown", lambda count=number: shop.box.accepted > count, within=5)  # type: ignore[misc]
            assert shop.box.shown[-1].at - committed_at < HEARD_WITHIN
        assert locks(shop) == 1
        assert worker.stop() == 0


# procrastinate's own command line


def test_procrastinate_alone_is_refused_in_transaction_mode(shop: Shop, transactions: Pooler) -> None:
    environment = shop.environment(NOTIFY_WORKER_DATABASE_URL=transactions.conninfo)

    done = subprocess.run(
        [*PROCRASTINATE, "worker"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=shop.folder,
        check=False,
        timeout=30,
    )

    assert done.returncode != 0
    assert "Connect directly or in session mode, or run: notify-worker worker" in done.stdout + done.stderr
