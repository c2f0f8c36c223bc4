"""A statement sends one wake-up, in its own transaction, unless a worker is awake or a wake-up already waits."""

from collections.abc import Callable
from typing import LiteralString

import pytest
from psycopg.errors import InsufficientPrivilege

from tests.support.store_calls import Connection, Worker, connected

CHANNEL = "procrastinate_queue_v1#notify_worker"
BULK: LiteralString = """
    insert into notify_worker.notifications (receiver_id, title)
    select 'u_' || number, 'Back in stock' from generate_series(1, 5000) as number
"""


def say_awake(connection: Connection, milliseconds: int) -> None:
    """Set the awake mark to end this long from now; a negative number sets a mark that has expired."""
    mark = "select setval('notify_worker.awake_until', (extract(epoch from clock_timestamp()) * 1000)::bigint + %s)"
    connection.value(mark, milliseconds)


def mark_awake(connection: Connection) -> float:
    """Mark a worker awake, and return for how many milliseconds from now the mark holds."""
    statement: LiteralString = """
        select (pg_sequence_last_value('notify_worker.awake_until')
            - extract(epoch from clock_timestamp()) * 1000)::double precision
        from notify_worker.mark_awake()
    """
    return float(connection.value(statement))


def add_job(
    connection: Connection,
    *,
    queue: str = "notify_worker",
    task: str = "notify_worker.drain",
    status: str = "todo",
    ahead: str | None = None,
) -> None:
    connection.execute("set search_path = notify_worker")  # procrastinate's triggers name its tables without a schema
    connection.value(
        """
        insert into procrastinate_jobs (queue_name, task_name, status, scheduled_at)
        values (%s, %s, %s::procrastinate_job_status, now() + %s::interval)
        returning id
        """,
        *(queue, task, status, ahead),
    )


def heard(listener: Connection, sender: Connection) -> int:
    """How many notifications have come; one more is sent to know where to stop, since they arrive in order."""
    sender.execute("select pg_notify(%s, 'the end')", [CHANNEL])
    payloads = []
    for notice in listener.notifies(timeout=10):
        payloads.append(notice.payload)
        if notice.payload == "the end":
            break
    assert payloads[-1:] == ["the end"]
    return len(payloads) - 1


def test_a_statement_sends_its_wakeup_in_its_own_transaction(database: str, connection: Connection) -> None:
    with connected(database) as business:
        business.execute("begin")
        business.insert()

        assert business.wakeups() == 1
        assert connection.wakeups() == 0
        business.execute("commit")
        assert connection.wakeups() == 1


def test_a_rollback_removes_the_wakeup(connection: Connection) -> None:
    with connection.transaction(force_rollback=True):
        connection.insert()

        assert connection.wakeups() == 1
    assert connection.wakeups() == 0


def test_five_thousand_rows_send_one_wakeup(connection: Connection) -> None:
    connection.execute(BULK)

    assert connection.wakeups() == 1


def test_no_wakeup_is_sent_while_one_waits(connection: Connection) -> None:
    with connection.transaction():
        connection.insert()
        connection.insert()
    connection.insert()

    assert connection.wakeups() == 1


@pytest.mark.parametrize(
    "not_a_wakeup",
    [{"ahead": "1 hour"}, {"status": "doing"}, {"status": "failed"}, {"queue": "another"}, {"task": "another"}],
    ids=str,
)
def test_a_job_that_wakes_no_worker_now_prevents_no_wakeup(
    connection: Connection, not_a_wakeup: dict[str, str]
) -> None:
    add_job(connection, **not_a_wakeup)
    before = connection.wakeups()

    connection.insert()

    assert connection.wakeups() == before + 1


def test_the_wakeup_is_a_job_that_procrastinate_runs(connection: Connection) -> None:
    connection.insert()

    (job,) = connection.rows("select * from notify_worker.procrastinate_jobs")
    assert (job["queue_name"], job["task_name"], job["args"]) == ("notify_worker", "notify_worker.drain", {})
    assert job["lock"] is job["queueing_lock"] is job["scheduled_at"] is None


def test_two_open_transactions_send_wakeups_without_waiting(database: str, connection: Connection) -> None:
    with connected(database) as first, connected(database) as second:
        for business in (first, second):
            business.execute("set lock_timeout = '5s'")
            business.execute("begin")
            business.insert()

        second.execute("commit")
        first.execute("commit")

    assert connection.wakeups() == 2


def test_wakeup_always_sends_one_for_every_statement(connection: Connection) -> None:
    connection.execute("set notify_worker.wakeup = 'always'")
    say_awake(connection, 10_000)

    with connection.transaction():
        for _ in range(3):
            connection.insert()

    assert connection.wakeups() == 3


def test_wakeup_off_sends_none_in_its_transaction(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("set local notify_worker.wakeup = 'off'")
        connection.insert()
    assert connection.wakeups() == 0

    connection.insert()

    assert connection.wakeups() == 1


@pytest.mark.parametrize("setting", ["auto", "", "nonsense"])
def test_any_other_setting_is_auto(connection: Connection, setting: str) -> None:
    connection.value("select set_config('notify_worker.wakeup', %s, false)", setting)

    connection.insert()
    connection.insert()

    assert connection.wakeups() == 1


def test_no_wakeup_is_sent_while_a_worker_is_awake(connection: Connection) -> None:
    say_awake(connection, 10_000)

    connection.insert()

    assert connection.wakeups() == 0


def test_a_wakeup_is_sent_once_the_awake_mark_has_expired(connection: Connection) -> None:
    say_awake(connection, -1)

    connection.insert()

    assert connection.wakeups() == 1


def test_the_awake_mark_is_seen_by_a_transaction_with_an_older_snapshot(database: str, connection: Connection) -> None:
    with connected(database) as business:
        business.execute("begin isolation level repeatable read")
        business.execute("select")
        say_awake(connection, 10_000)
        business.insert()
        business.execute("commit")

    assert connection.wakeups() == 0


def test_the_awake_mark_holds_for_at_most_a_fifth_of_a_second(connection: Connection) -> None:
    assert 100 < mark_awake(connection) <= 201


def test_a_mark_that_is_fresh_is_not_written_again(connection: Connection) -> None:
    say_awake(connection, 290)

    assert mark_awake(connection) > 200


@pytest.mark.parametrize("milliseconds", [-5, 5_000, 3_600_000])
def test_a_mark_that_is_past_or_seconds_ahead_is_set_anew(connection: Connection, milliseconds: int) -> None:
    say_awake(connection, milliseconds)

    assert 100 < mark_awake(connection) <= 201


@pytest.mark.parametrize(
    "forbidden",
    [
        "select setval('notify_worker.awake_until', 1)",
        "select nextval('notify_worker.awake_until')",
        "select notify_worker.mark_awake()",
        "select notify_worker.wake_worker(true)",
    ],
)
def test_a_producer_role_sends_wakeups_only_by_inserting(connection: Connection, forbidden: LiteralString) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("create role only_inserts")
        connection.execute("grant usage on schema notify_worker to only_inserts")
        connection.execute("grant insert on notify_worker.notifications to only_inserts")
        connection.execute("set local role only_inserts")

        connection.execute("insert into notify_worker.notifications (receiver_id, title) values ('u_42', 'Paid')")
        with pytest.raises(InsufficientPrivilege), connection.transaction():
            connection.execute(forbidden)

        connection.execute("reset role")
        assert connection.wakeups() == 1


def test_a_statement_without_rows_sends_at_most_one_wakeup(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.notifications (receiver_id, title) select 'u_42', 'Paid' where false")

    assert connection.wakeups() <= 1
    assert connection.claim(worker) == []
    assert connection.wakeups() == 0


def test_one_notify_arrives_with_the_commit(database: str, connection: Connection) -> None:
    with connected(database) as listener:
        listener.execute(f'listen "{CHANNEL}"')

        with connection.transaction():
            connection.execute(BULK)
            connection.insert()

        assert heard(listener, connection) == 1


def test_no_notify_arrives_after_a_rollback(database: str, connection: Connection) -> None:
    with connected(database) as listener:
        listener.execute(f'listen "{CHANNEL}"')

        with connection.transaction(force_rollback=True):
            connection.insert()

        assert heard(listener, connection) == 0


def open_insert(session: Connection) -> None:
    session.execute("begin")
    session.insert()


def open_select(session: Connection) -> None:
    session.execute("begin")
    session.execute("select from notify_worker.notifications for update")


def ended_insert(session: Connection) -> None:
    session.insert()


@pytest.mark.parametrize(("does", "writes"), [(open_insert, True), (open_select, False), (ended_insert, False)])
def test_has_open_writers_is_true_while_another_insert_is_open(
    database: str, connection: Connection, does: Callable[[Connection], None], writes: bool
) -> None:
    with connected(database) as business:
        does(business)

        assert connection.value("select notify_worker.has_open_writers()") is writes


def test_has_open_writers_ignores_its_own_transaction(connection: Connection) -> None:
    with connection.transaction():
        connection.insert()

        assert connection.value("select notify_worker.has_open_writers()") is False


def test_all_waiting_wakeups_are_deleted_and_no_other_job(connection: Connection) -> None:
    add_job(connection)
    add_job(connection, ahead="-1 second")
    add_job(connection, ahead="1 hour")
    add_job(connection, status="doing")
    add_job(connection, queue="another")
    add_job(connection, task="notify_worker.prune")

    assert connection.value("select notify_worker.delete_wakeups()") == 2

    left = connection.rows(
        "select queue_name, task_name, status, scheduled_at > now() as ahead from procrastinate_jobs"
    )
    assert sorted((job["queue_name"], job["task_name"], job["status"], bool(job["ahead"])) for job in left) == [
        ("another", "notify_worker.drain", "todo", False),
        ("notify_worker", "notify_worker.drain", "doing", False),
        ("notify_worker", "notify_worker.drain", "todo", True),
        ("notify_worker", "notify_worker.prune", "todo", False),
    ]


def test_a_wakeup_that_procrastinate_is_fetching_stays(database: str, connection: Connection) -> None:
    connection.insert()
    with connected(database) as fetching:
        fetching.execute("begin")
        fetching.execute("select from notify_worker.procrastinate_jobs for update")

        assert connection.value("select notify_worker.delete_wakeups()") == 0


def test_a_claim_deletes_the_wakeups(connection: Connection, worker: Worker) -> None:
    connection.insert()

    connection.claim(worker)

    assert connection.wakeups() == 0
