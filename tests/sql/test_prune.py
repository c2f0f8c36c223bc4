"""Old data is deleted: settled notifications, whole months of the history, jobs of dead processes."""

from typing import LiteralString

import pytest
from psycopg.errors import LockNotAvailable

from tests.support.store_calls import FAILED, LATER, SENT, UNKNOWN, Connection, Worker, at_once, connected


def prune(connection: Connection, older_than: str = "30 days", most: int = 1_000) -> int:
    return int(connection.value("select notify_worker.prune(%s::interval, %s)", older_than, most))


def notifications(connection: Connection) -> list[int]:
    return [each["id"] for each in connection.rows("select id from notify_worker.notifications order by id")]


def grow_old(connection: Connection, by: str = "31 days") -> None:
    """Move everything this far into the past."""
    for column in ("created_at", "due_at", "settled_at"):
        for table in ("notifications", "stored_deliveries"):
            connection.execute(f"update notify_worker.{table} set {column} = {column} - interval '{by}'")


def test_prune_deletes_old_settled_notifications_with_their_deliveries(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.register_device("u_42", "fcm:tablet")
    sent, failed = connection.insert(receiver_id="u_42"), connection.insert(address="fails")
    waits, held = connection.insert(address="waits"), connection.insert(address="is held", on_unknown="hold")
    unsendable = connection.insert(campaign="no_such")
    connection.send_all(worker, **{"fails": FAILED, "waits": LATER, "is held": UNKNOWN})
    grow_old(connection)
    young = connection.insert()
    connection.send_all(worker)

    deleted = prune(connection)

    assert deleted == 3
    assert notifications(connection) == [waits, held, young]
    assert [len(connection.deliveries(number)) for number in (sent, failed, unsendable)] == [0, 0, 0]
    assert [len(connection.deliveries(number)) for number in (waits, held, young)] == [1, 1, 1]


def settle_many(connection: Connection, count: int) -> None:
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, state, settled_at, settled_reason)
        select 'topic', 'news', 'Hello', 'failed', now() - number * interval '1 day' + interval '1 hour', 'old'
        from generate_series(1, %s) as number
        """,
        [count],
    )


def test_prune_deletes_in_batches_the_oldest_first(connection: Connection) -> None:
    settle_many(connection, 60)  # the first a day ago, the last two months
    numbers = notifications(connection)

    deleted = [prune(connection, "20 days", most=15)]
    after_one = notifications(connection)
    deleted += [prune(connection, "20 days", most=15) for _ in range(3)]

    assert deleted == [15, 15, 10, 0]
    assert after_one == numbers[:45]
    assert notifications(connection) == numbers[:20]


def test_a_batch_is_a_thousand_by_default(connection: Connection) -> None:
    settle_many(connection, 1_100)

    assert connection.value("select notify_worker.prune('0')") == 1_000


def test_two_prunes_at_once_share_the_work_without_waiting(database: str, connection: Connection) -> None:
    settle_many(connection, 500)
    with connected(database) as business, connected(database) as one, connected(database) as two:
        for session in (one, two):
            session.execute("set lock_timeout = '5s'")
        business.execute("begin")
        business.execute("select from notify_worker.notifications order by id limit 1 for update")

        deleted = at_once(lambda: prune(one, "0", most=600), lambda: prune(two, "0", most=600))

        assert sum(deleted) == 499
    assert prune(connection, "0") == 1


def test_a_pruned_event_may_be_published_again(connection: Connection, worker: Worker) -> None:
    connection.insert(event_id="order:42:paid")
    connection.send(worker, SENT)

    assert prune(connection, "0") == 1

    assert connection.insert(event_id="order:42:paid")
    assert connection.unbalanced() == []


def drop_old_partitions(connection: Connection, older_than: str) -> int:
    return int(connection.value("select notify_worker.drop_old_partitions(%s::interval)", older_than))


def months(connection: Connection) -> list[str]:
    found = connection.rows(
        """
        select right(inhrelid::regclass::text, 7) as month
        from pg_inherits
        where inhparent = 'notify_worker.stored_attempts'::regclass
        order by 1
        """
    )
    return [each["month"] for each in found]


def add_month(connection: Connection, months_ago: int) -> str:
    """Make a partition for a month that is over; return its name."""
    begin = connection.value(
        "select (date_trunc('month', now() at time zone 'UTC') - make_interval(months => %s))::date", months_ago
    )
    end = connection.value("select (%s + interval '1 month')::date", begin)
    name = f"{begin:%Y_%m}"
    connection.execute(
        f"""
        create table notify_worker.stored_attempts_{name} partition of notify_worker.stored_attempts
        for values from ('{begin} 00:00+00') to ('{end} 00:00+00')
        """
    )
    return name


def test_only_whole_months_older_than_the_limit_are_dropped(connection: Connection) -> None:
    present = months(connection)
    oldest, older, last = [add_month(connection, ago) for ago in (14, 3, 1)]
    of_last_month = "now() - date_trunc('month', now() at time zone 'UTC') at time zone 'UTC'"

    dropped = [drop_old_partitions(connection, "1000 days"), drop_old_partitions(connection, "365 days")]
    after_a_year = months(connection)
    dropped.append(drop_old_partitions(connection, "32 days"))
    after_a_month = months(connection)
    just_too_young = connection.value(f"select ({of_last_month} + interval '1 minute')::text")
    just_old_enough = connection.value(f"select ({of_last_month} - interval '1 minute')::text")
    dropped += [drop_old_partitions(connection, just_too_young), drop_old_partitions(connection, just_old_enough)]

    assert dropped == [0, 1, 1, 0, 1]
    assert after_a_year == [older, last, *present]
    assert after_a_month == [last, *present]
    assert months(connection) == present
    assert oldest not in present


@pytest.mark.parametrize("timezone", ["Pacific/Kiritimati", "Pacific/Niue"])
def test_the_current_month_and_later_ones_are_never_dropped(connection: Connection, timezone: str) -> None:
    connection.execute("select set_config('timezone', %s, false)", [timezone])
    present = months(connection)

    assert drop_old_partitions(connection, "0") == 0
    assert months(connection) == present


def test_a_month_that_is_being_read_is_dropped_the_next_time(database: str, connection: Connection) -> None:
    old = add_month(connection, 14)
    with connected(database) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from notify_worker.attempts")

        with pytest.raises(LockNotAvailable):
            drop_old_partitions(connection, "365 days")
        assert old in months(connection)

    assert drop_old_partitions(connection, "365 days") == 1


JOBS: LiteralString = "select task_name, status::text from notify_worker.procrastinate_jobs order by id"


def put_in_job(connection: Connection, task: str, process: int | None, queue: str = "notify_worker") -> None:
    """Insert a job that this process is running."""
    connection.execute(
        """
        insert into notify_worker.procrastinate_jobs (queue_name, task_name, status, worker_id)
        values (%s, %s, 'doing', %s)
        """,
        [queue, task, process],
    )


def put_in_process(connection: Connection, seen_ago: str) -> int:
    statement: LiteralString = """
        insert into notify_worker.procrastinate_workers (last_heartbeat) values (now() - %s::interval) returning id
    """
    return int(connection.value(statement, seen_ago))


def test_jobs_of_a_dead_process_are_deleted_or_requeued(connection: Connection) -> None:
    connection.execute("set search_path = notify_worker")
    dead, alive = put_in_process(connection, "3 minutes"), put_in_process(connection, "1 minute")
    for process in (dead, None):
        put_in_job(connection, "notify_worker.drain", process)
        put_in_job(connection, "notify_worker.requeue_orphans", process)
        put_in_job(connection, "notify_worker.prune", process)
    put_in_job(connection, "notify_worker.drain", alive)
    put_in_job(connection, "theirs", dead, queue="another")
    connection.insert()

    swept = connection.value("select notify_worker.clear_stalled_jobs()")

    assert swept == 6
    assert [tuple(each.values()) for each in connection.rows(JOBS)] == [
        ("notify_worker.prune", "todo"),
        ("notify_worker.prune", "todo"),
        ("notify_worker.drain", "doing"),
        ("theirs", "doing"),
        ("notify_worker.drain", "todo"),
    ]
    assert connection.value("select notify_worker.clear_stalled_jobs()") == 0
