"""When a statement wakes a worker: one bell where nobody is awake and none waits, in the statement's own transaction."""

from collections.abc import Callable
from typing import LiteralString

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from tests.support.store_calls import claim, connected, insert, register_worker, rows, value

CHANNEL = "procrastinate_queue_v1#notify_worker"
BULK: LiteralString = """
    insert into notify_worker.notifications (receiver_id, title)
    select 'u_' || number, 'Back in stock' from generate_series(1, 5000) as number
"""


def bells(connection: psycopg.Connection) -> int:
    return int(value(connection, "select count(*) from notify_worker.procrastinate_jobs where status = 'todo'"))


def say_awake(connection: psycopg.Connection, milliseconds: int) -> None:
    """A worker said that it is awake for so long from now; less than nothing: it was."""
    mark = "select setval('notify_worker.awake_until', (extract(epoch from clock_timestamp()) * 1000)::bigint + %s)"
    value(connection, mark, milliseconds)


def mark_awake(connection: psycopg.Connection) -> float:
    """A worker stays awake. For how many milliseconds from now the mark then says so."""
    statement: LiteralString = """
        select (pg_sequence_last_value('notify_worker.awake_until')
            - extract(epoch from clock_timestamp()) * 1000)::double precision
        from notify_worker.mark_awake()
    """
    return float(value(connection, statement))


def add_job(
    connection: psycopg.Connection,
    *,
    queue: str = "notify_worker",
    task: str = "notify_worker.drain",
    status: str = "todo",
    ahead: str | None = None,
) -> None:
    connection.execute("set search_path = notify_worker")  # procrastinate's triggers name its tables without a schema
    value(
        connection,
        """
        insert into procrastinate_jobs (queue_name, task_name, status, scheduled_at)
        values (%s, %s, %s::procrastinate_job_status, now() + %s::interval)
        returning id
        """,
        *(queue, task, status, ahead),
    )


def heard(listener: psycopg.Connection, sender: psycopg.Connection) -> int:
    """How many notifications have come; one more is sent to know where to stop, since they arrive in order."""
    sender.execute("select pg_notify(%s, 'the end')", [CHANNEL])
    payloads = []
    for notice in listener.notifies(timeout=10):
        payloads.append(notice.payload)
        if notice.payload == "the end":
            break
    assert payloads[-1:] == ["the end"]
    return len(payloads) - 1


def test_a_statement_rings_in_its_own_transaction(database: str, connection: psycopg.Connection) -> None:
    with connected(database) as business:
        business.execute("begin")
        insert(business)

        assert bells(business) == 1
        assert bells(connection) == 0
        business.execute("commit")
        assert bells(connection) == 1


def test_a_rollback_takes_the_bell_with_it(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        insert(connection)

        assert bells(connection) == 1
    assert bells(connection) == 0


def test_five_thousand_rows_ring_once(connection: psycopg.Connection) -> None:
    connection.execute(BULK)

    assert bells(connection) == 1


def test_nobody_rings_while_a_bell_waits(connection: psycopg.Connection) -> None:
    with connection.transaction():
        insert(connection)
        insert(connection)
    insert(connection)

    assert bells(connection) == 1


@pytest.mark.parametrize(
    "not_a_bell",
    [{"ahead": "1 hour"}, {"status": "doing"}, {"status": "failed"}, {"queue": "another"}, {"task": "another"}],
    ids=str,
)
def test_what_will_wake_nobody_now_keeps_nobody_from_ringing(
    connection: psycopg.Connection, not_a_bell: dict[str, str]
) -> None:
    add_job(connection, **not_a_bell)
    before = bells(connection)

    insert(connection)

    assert bells(connection) == before + 1


def test_the_bell_is_a_job_that_procrastinate_runs(connection: psycopg.Connection) -> None:
    insert(connection)

    (job,) = rows(connection, "select * from notify_worker.procrastinate_jobs")
    assert (job["queue_name"], job["task_name"], job["args"]) == ("notify_worker", "notify_worker.drain", {})
    assert job["lock"] is job["queueing_lock"] is job["scheduled_at"] is None


def test_two_open_transactions_ring_without_waiting_for_each_other(
    database: str, connection: psycopg.Connection
) -> None:
    with connected(database) as first, connected(database) as second:
        for business in (first, second):
            business.execute("set lock_timeout = '5s'")
            business.execute("begin")
            insert(business)

        second.execute("commit")
        first.execute("commit")

    assert bells(connection) == 2


def test_bell_always_rings_for_every_statement(connection: psycopg.Connection) -> None:
    connection.execute("set notify_worker.wakeup = 'always'")
    say_awake(connection, 10_000)

    with connection.transaction():
        for _ in range(3):
            insert(connection)

    assert bells(connection) == 3


def test_bell_off_rings_for_no_statement_of_its_transaction(connection: psycopg.Connection) -> None:
    with connection.transaction():
        connection.execute("set local notify_worker.wakeup = 'off'")
        insert(connection)
    assert bells(connection) == 0

    insert(connection)

    assert bells(connection) == 1


@pytest.mark.parametrize("setting", ["auto", "", "nonsense"])
def test_any_other_setting_is_auto(connection: psycopg.Connection, setting: str) -> None:
    value(connection, "select set_config('notify_worker.wakeup', %s, false)", setting)

    insert(connection)
    insert(connection)

    assert bells(connection) == 1


def test_nobody_rings_while_a_worker_is_awake(connection: psycopg.Connection) -> None:
    say_awake(connection, 10_000)

    insert(connection)

    assert bells(connection) == 0


def test_a_statement_rings_when_the_mark_has_run_out(connection: psycopg.Connection) -> None:
    say_awake(connection, -1)

    insert(connection)

    assert bells(connection) == 1


def test_awake_is_seen_at_once_by_a_transaction_with_an_older_snapshot(
    database: str, connection: psycopg.Connection
) -> None:
    with connected(database) as business:
        business.execute("begin isolation level repeatable read")
        business.execute("select")
        say_awake(connection, 10_000)
        insert(business)
        business.execute("commit")

    assert bells(connection) == 0


def test_a_worker_that_stays_awake_says_so_for_a_fifth_of_a_second(connection: psycopg.Connection) -> None:
    assert 100 < mark_awake(connection) <= 201


def test_a_mark_that_is_fresh_is_not_written_again(connection: psycopg.Connection) -> None:
    say_awake(connection, 290)

    assert mark_awake(connection) > 200


@pytest.mark.parametrize("milliseconds", [-5, 5_000, 3_600_000])
def test_a_mark_that_is_past_or_seconds_ahead_is_set_anew(connection: psycopg.Connection, milliseconds: int) -> None:
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
def test_a_role_that_may_only_insert_rings_and_can_neither_move_the_mark_nor_ring_by_itself(
    connection: psycopg.Connection, forbidden: LiteralString
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("create role only_inserts")
        connection.execute("grant usage on schema notify_worker to only_inserts")
        connection.execute("grant insert on notify_worker.notifications to only_inserts")
        connection.execute("set local role only_inserts")

        connection.execute("insert into notify_worker.notifications (receiver_id, title) values ('u_42', 'Paid')")
        with pytest.raises(InsufficientPrivilege), connection.transaction():
            connection.execute(forbidden)

        connection.execute("reset role")
        assert bells(connection) == 1


def test_a_statement_without_rows_does_no_harm(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)

    connection.execute("insert into notify_worker.notifications (receiver_id, title) select 'u_42', 'Paid' where false")

    assert bells(connection) <= 1
    assert claim(connection, worker) == []
    assert bells(connection) == 0


def test_one_notify_arrives_with_the_commit(database: str, connection: psycopg.Connection) -> None:
    with connected(database) as listener:
        listener.execute(f'listen "{CHANNEL}"')

        with connection.transaction():
            connection.execute(BULK)
            insert(connection)

        assert heard(listener, connection) == 1


def test_no_notify_arrives_after_a_rollback(database: str, connection: psycopg.Connection) -> None:
    with connected(database) as listener:
        listener.execute(f'listen "{CHANNEL}"')

        with connection.transaction(force_rollback=True):
            insert(connection)

        assert heard(listener, connection) == 0


def open_insert(session: psycopg.Connection) -> None:
    session.execute("begin")
    insert(session)


def open_select(session: psycopg.Connection) -> None:
    session.execute("begin")
    session.execute("select from notify_worker.notifications for update")


def ended_insert(session: psycopg.Connection) -> None:
    insert(session)


@pytest.mark.parametrize(
    ("does", "writes"),
    [(open_insert, True), (open_select, False), (ended_insert, False)],
)
def test_somebody_writes_while_another_session_has_an_insert_open(
    database: str, connection: psycopg.Connection, does: Callable[[psycopg.Connection], None], writes: bool
) -> None:
    with connected(database) as business:
        does(business)

        assert value(connection, "select notify_worker.has_open_writers()") is writes


def test_somebody_does_not_mean_oneself(connection: psycopg.Connection) -> None:
    with connection.transaction():
        insert(connection)

        assert value(connection, "select notify_worker.has_open_writers()") is False


def test_all_bells_that_wait_are_taken_down_and_no_other_job(connection: psycopg.Connection) -> None:
    add_job(connection)
    add_job(connection, ahead="-1 second")
    add_job(connection, ahead="1 hour")
    add_job(connection, status="doing")
    add_job(connection, queue="another")
    add_job(connection, task="notify_worker.prune")

    assert value(connection, "select notify_worker.delete_wakeups()") == 2

    left = rows(
        connection, "select queue_name, task_name, status, scheduled_at > now() as ahead from procrastinate_jobs"
    )
    assert sorted((job["queue_name"], job["task_name"], job["status"], bool(job["ahead"])) for job in left) == [
        ("another", "notify_worker.drain", "todo", False),
        ("notify_worker", "notify_worker.drain", "doing", False),
        ("notify_worker", "notify_worker.drain", "todo", True),
        ("notify_worker", "notify_worker.prune", "todo", False),
    ]


def test_a_bell_that_procrastinate_is_just_fetching_is_left_to_it(
    database: str, connection: psycopg.Connection
) -> None:
    insert(connection)
    with connected(database) as fetching:
        fetching.execute("begin")
        fetching.execute("select from notify_worker.procrastinate_jobs for update")

        assert value(connection, "select notify_worker.delete_wakeups()") == 0


def test_a_claim_takes_the_bells_down(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    insert(connection)

    claim(connection, worker)

    assert bells(connection) == 0
