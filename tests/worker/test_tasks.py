"""The tasks that procrastinate's command line can defer: what each does, and how a wrong one fails."""

import json
import subprocess
import sys
from datetime import timedelta
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.jobs import Job

from notify_worker.worker import app
from tests.support.shop import Row, Shop
from tests.support.store_calls import EVENT
from tests.support.waiting import until

TASKS = {
    f"notify_worker.{name}": app.tasks[f"notify_worker.{name}"]
    for name in ("drain", "requeue_orphans", "retry", "prune")
}
each_task = pytest.mark.parametrize("name", TASKS)


def run(shop: Shop, *jobs: tuple[str, dict[str, Any]]) -> None:
    """Defer these jobs and work until none waits, not even a wake-up of theirs, by procrastinate's own command line."""
    for task, arguments in jobs:
        shop.procrastinate("defer", f"notify_worker.{task}", json.dumps(arguments))
    while any(job["status"] == "todo" for job in jobs_of(shop)):
        shop.procrastinate("worker", "--one-shot")


def jobs_of(shop: Shop) -> list[Row]:
    """The jobs that are left, without those that procrastinate defers by itself."""
    return shop.rows(
        """
        select task_name, args, status::text
        from notify_worker.procrastinate_jobs
        where task_name <> 'notify_worker.requeue_orphans'
        order by id
        """
    )


# ── what stands in the contract ─────────────────────────────────────────────────────────────────────────────────────────


def test_no_other_tasks_are_ours() -> None:
    assert {name for name in app.tasks if name.startswith("notify_worker")} == set(TASKS)


@each_task
def test_each_task_waits_in_our_own_queue(name: str) -> None:
    assert TASKS[name].queue == "notify_worker"


def test_a_worker_takes_our_queue_alone_and_stops_before_a_platform_kills_it() -> None:
    defaults = app.worker_defaults

    assert defaults.get("queues") == ["notify_worker"]
    assert defaults.get("concurrency") == 3
    assert defaults.get("shutdown_graceful_timeout") == 5
    assert defaults.get("delete_jobs") == "successful"


@each_task
@pytest.mark.parametrize("error", [psycopg.OperationalError("away"), RuntimeError("a bug")], ids=str)
def test_a_failed_job_is_retried_up_to_ten_times(name: str, error: Exception) -> None:
    decisions = [after(name, error, attempts) for attempts in range(11)]

    assert all(decision is not None and decision.retry_at is not None for decision in decisions[:10])
    assert decisions[10] is None


def after(name: str, error: Exception, attempts: int) -> procrastinate.RetryDecision | None:
    """What becomes of a job after so many attempts and this error."""
    strategy = TASKS[name].retry_strategy
    assert strategy is not None
    job = Job(
        id=1, queue="notify_worker", lock=None, queueing_lock=None, task_name=name, task_kwargs={}, attempts=attempts
    )
    return strategy.get_retry_decision(exception=error, job=job)


def test_the_app_imports_with_any_environment() -> None:
    wrong = {"NOTIFY_WORKER_NONSENSE": "1", "NOTIFY_WORKER_DATABASE_URL": "nonsense"}

    for env in ({}, wrong):
        imported = subprocess.run(
            [sys.executable, "-c", "from notify_worker.worker import app; print(*sorted(app.tasks))"],
            check=False,
            env=env,
            capture_output=True,
            text=True,
        )
        assert (imported.returncode, imported.stderr) == (0, "")
        assert set(TASKS) <= set(imported.stdout.split())


# ── retry ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_retry_sends_again_by_notification_event_or_delivery(shop: Shop) -> None:
    first, second, third, untouched = (
        shop.connection.insert_settled("failed", event_id=event) for event in (None, EVENT, None, None)
    )
    delivery = shop.delivery(third)["id"]

    run(
        shop,
        ("retry", {"notification_id": first}),
        ("retry", {"event_id": EVENT}),
        ("retry", {"delivery_id": delivery}),
    )

    assert [shop.state(number) for number in (first, second, third, untouched)] == ["sent", "sent", "sent", "failed"]
    assert shop.box.accepted == 3
    assert jobs_of(shop) == []
    assert shop.unbalanced() == []


def test_retry_by_project_sends_failures_since_a_time_again(shop: Shop) -> None:
    shop.connection.execute("insert into notify_worker.projects (name) values ('other')")
    old, new, of_other = (
        shop.connection.insert_settled("failed", project=name) for name in ("default", "default", "other")
    )
    shop.connection.execute(
        "update notify_worker.stored_deliveries set settled_at = settled_at - interval '2 days' where notification_id = %s",
        [old],
    )

    run(shop, ("retry", {"project": "default", "since": "yesterday"}))

    assert [shop.state(number) for number in (old, new, of_other)] == ["failed", "sent", "failed"]
    assert jobs_of(shop) == []


WRONG: list[dict[str, Any]] = [{}, {"notification_id": 1, "event_id": EVENT}, {"event": EVENT}]


def test_a_job_with_invalid_arguments_fails_and_stays_in_the_table(shop: Shop) -> None:
    number = shop.connection.insert_settled("failed", event_id=EVENT)

    for arguments in WRONG:
        shop.procrastinate("defer", "notify_worker.retry", json.dumps(arguments))
    shop.procrastinate("defer", "notify_worker.prune", '{"older_than": "a while"}')
    shop.start_worker("procrastinate")

    until("all have failed", lambda: {job["status"] for job in jobs_of(shop)} == {"failed"}, within=10)
    assert [job["args"] for job in jobs_of(shop)] == [*WRONG, {"older_than": "a while"}]
    assert shop.state(number) == "failed"


# ── prune ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prune_deletes_only_what_settled_long_ago(shop: Shop) -> None:
    old, new = shop.connection.insert_settled("failed"), shop.connection.insert_settled("failed")
    waiting = shop.connection.insert(send_at="tomorrow")
    shop.connection.set_back(old, "settled_at", timedelta(days=91))
    shop.connection.set_back(waiting, "created_at", timedelta(days=91))

    run(shop, ("prune", {"older_than": "90 days"}))

    kept = shop.rows("select id from notify_worker.notifications order by id")
    assert [row["id"] for row in kept] == [new, waiting]
    assert jobs_of(shop) == []
