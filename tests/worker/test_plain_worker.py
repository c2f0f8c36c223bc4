"""procrastinate's own worker on our app (`procrastinate --app=notify_worker.worker.app`), without our supervisor."""

import random
from datetime import timedelta
from uuid import uuid4

from tests.support.shop import LEASE, Shop
from tests.support.store_calls import CLAIM, Connection
from tests.support.waiting import until


def claim_and_die(shop: Shop) -> str:
    """Claim what is due as a worker would, in a session that then ends; return the dead worker's name."""
    with Connection.connect(shop.conninfo, autocommit=True) as session:
        row = session.execute(
            "select * from notify_worker.register_worker('here', 1, %s)", [timedelta(seconds=LEASE)]
        ).fetchone()
        assert row is not None
        worker_id, name = row
        session.execute(CLAIM, [worker_id, uuid4(), 10])
    return str(name)


def test_requeue_orphans_finds_notifications_without_a_wakeup_or_a_worker(shop: Shop) -> None:
    orphan = shop.notify("app:orphan")
    dead = claim_and_die(shop)
    without_wakeup = shop.notify("app:without_wakeup")
    shop.delete_wakeups()
    assert (shop.leased(), shop.wakeups()) == (1, 0)

    shop.procrastinate("defer", "notify_worker.requeue_orphans")
    shop.procrastinate("worker", "--one-shot")

    due = shop.rows(
        """
        select id
        from notify_worker.notifications
        where state = 'pending' and lease is null and due_at <= clock_timestamp()
        order by id
        """
    )
    assert [row["id"] for row in due] == [orphan, without_wakeup]
    assert shop.wakeups() >= 1  # the periodic one may have run beside it, and sent a wake-up in the same moment
    (cut_off,) = shop.attempts(orphan)
    assert (cut_off["verdict"], cut_off["worker"], cut_off["finished_at"]) == ("unknown", dead, None)
    assert shop.delivery(orphan)["attempts"] == 0
    leased_until = cut_off["started_at"] + timedelta(seconds=LEASE)
    assert shop.value("select clock_timestamp() < %s", leased_until), "this took longer than the lease itself"


def test_a_plain_worker_runs_requeue_orphans_and_finds_commits_without_a_wakeup(shop: Shop) -> None:
    shop.start_worker("procrastinate")
    until("the worker sleeps", shop.sleeps, within=5)

    with shop.connection.transaction():
        shop.connection.execute("set local notify_worker.wakeup = 'off'")
        without_wakeup = shop.notify("app:without_wakeup")

    until("it is sent", lambda: shop.state(without_wakeup) == "sent", within=5)
    deferred = shop.value(
        "select count(*) from notify_worker.procrastinate_periodic_defers where task_name = 'notify_worker.requeue_orphans'"
    )
    assert deferred == 1


def test_a_job_that_meets_a_database_error_is_retried(shop: Shop) -> None:
    shop.connection.execute("alter function notify_worker.claim rename to claim_is_away")
    shop.start_worker("procrastinate")
    sent_at_last = shop.notify("app:phone")
    attempted = "select max(attempts) from notify_worker.procrastinate_jobs where task_name = 'notify_worker.drain'"
    until("its job is retried", lambda: bool(shop.value(attempted)), within=5)

    shop.connection.execute("alter function notify_worker.claim_is_away rename to claim")

    until("it is sent", lambda: shop.state(sent_at_last) == "sent", within=5)
    assert shop.box.received == 1


FAR_AWAY = "--fetch-job-polling-interval=60"
"""So that a lost wake-up is noticed: the next fetch comes with the next periodic task, up to two seconds later."""


def test_two_commits_within_milliseconds_are_both_sent_at_once(shop: Shop) -> None:
    shop.start_worker("procrastinate", FAR_AWAY)
    jitter = random.Random(7)

    for pair in range(60):
        shop.notify(f"app:{pair}-first")
        with shop.connection.transaction():
            shop.connection.execute("select pg_sleep(%s)", [jitter.uniform(0, 0.012)])
            committed_at = shop.notify_at(f"app:{pair}-second")
        until("both are sent", lambda count=2 * pair + 2: shop.box.accepted == count, within=5)  # type: ignore[misc]
        assert shop.box.shown[-1].at - committed_at < timedelta(seconds=1)


def test_a_job_that_comes_while_the_worker_fetches_is_started_at_once(shop: Shop) -> None:
    """procrastinate's own worker forgets a NOTIFY that comes during a fetch which then finds nothing."""
    shop.connection.execute(
        """
        alter function notify_worker.procrastinate_fetch_job_v2 rename to fetch_at_once;
        create function notify_worker.procrastinate_fetch_job_v2(queues varchar[], worker bigint)
        returns notify_worker.procrastinate_jobs
        set search_path = notify_worker
        language plpgsql as $$
        declare
            job procrastinate_jobs := fetch_at_once(queues, worker);
        begin
            if job.id is null then
                perform pg_sleep(0.05);
            end if;
            return job;
        end
        $$
        """
    )
    shop.start_worker("procrastinate", FAR_AWAY)

    for _ in range(10):
        for after in (0, 0.02):
            shop.defer_job("notify_worker.requeue_orphans", after=after)
        until("both have been started", lambda: no_job_waits(shop), within=1)


def no_job_waits(shop: Shop) -> bool:
    return not shop.value("select exists (select from notify_worker.procrastinate_jobs where status = 'todo')")
