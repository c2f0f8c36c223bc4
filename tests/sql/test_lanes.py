"""High goes before normal, and normal is never starved: an eighth is reserved for it."""

from collections import Counter
from typing import LiteralString

import pytest

from tests.support.store_calls import Connection, Worker, connected

HIGH, NORMAL = "high", "normal"


@pytest.fixture
def connection(connection: Connection) -> Connection:
    """Chance is the same in each run."""
    connection.execute("select setseed(0.42)")
    return connection


def fill(connection: Connection, count: int, priority: str | None, project: str = "default") -> None:
    """Insert this many due notifications; the high ones have been due for longer."""
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, priority, project)
        select 'topic', 'news', 'Hello', %s, %s from generate_series(1, %s)
        """,
        [priority, project, count],
    )
    connection.execute("update notify_worker.notifications set due_at = due_at - interval '1 minute' where lane = 0")
    connection.execute("analyze notify_worker.notifications")


def lock_due(connection: Connection, most: int, times: int = 1) -> Counter[str]:
    """Count by lane what this many claims would take, each rolled back so that the next finds the same rows."""
    statement: LiteralString = """
        select case notification.lane when 0 then 'high' else 'normal' end as lane
        from notify_worker.lock_due(%s, clock_timestamp(), '{"default": 1000}')
        join notify_worker.notifications as notification using (id)
    """
    counted: Counter[str] = Counter()
    for _ in range(times):
        with connection.transaction(force_rollback=True):
            counted.update(each["lane"] for each in connection.rows(statement, most))
    return counted


@pytest.mark.parametrize("most", [1, 3, 9, 20, 300])
def test_high_gets_all_where_no_normal_is_due(connection: Connection, most: int) -> None:
    fill(connection, 400, "high")
    connection.insert(send_at="2100-01-01")

    assert lock_due(connection, most, times=20) == {HIGH: 20 * most}


@pytest.mark.parametrize("priority", ["normal", None])
@pytest.mark.parametrize("most", [1, 3, 20, 300])
def test_normal_gets_all_where_no_high_is_due(connection: Connection, most: int, priority: str | None) -> None:
    fill(connection, 400, priority)

    assert lock_due(connection, most, times=20) == {NORMAL: 20 * most}


def test_high_goes_before_normal_up_to_seven_eighths(connection: Connection) -> None:
    fill(connection, 100, "normal")
    fill(connection, 100, "high")

    assert lock_due(connection, 16, times=10) == {HIGH: 140, NORMAL: 20}


def test_the_normal_lane_gets_what_high_leaves(connection: Connection) -> None:
    fill(connection, 100, "normal")
    fill(connection, 4, "high")

    assert lock_due(connection, 20) == {HIGH: 4, NORMAL: 16}


def test_the_high_lane_gets_what_normal_leaves(connection: Connection) -> None:
    fill(connection, 1, "normal")
    fill(connection, 100, "high")

    assert lock_due(connection, 20) == {HIGH: 19, NORMAL: 1}


# Of n claims with a chance of p each for one normal: the bounds are four times sqrt(n p (1 - p)) away.
@pytest.mark.parametrize(
    ("most", "times", "least", "greatest"),
    [(16, 50, 100, 100), (20, 200, 472, 528), (3, 300, 77, 148), (1, 300, 14, 61)],
)
def test_with_ten_thousand_high_due_normal_gets_an_eighth(
    connection: Connection, most: int, times: int, least: int, greatest: int
) -> None:
    fill(connection, 100, "normal")
    fill(connection, 10_000, "high")

    picked = lock_due(connection, most, times)

    assert picked.total() == most * times
    assert least <= picked[NORMAL] <= greatest


def test_with_ten_thousand_high_due_a_worker_claims_an_eighth_of_normal(connection: Connection, worker: Worker) -> None:
    fill(connection, 60, "normal")
    fill(connection, 10_000, "high")

    claimed = [connection.claim(worker, most=16) for _ in range(20)]

    assert [len(each) for each in claimed] == [16] * 20
    assert [sum(each["priority"] == "normal" for each in batch) for batch in claimed] == [2] * 20
    assert all(batch[0]["priority"] == "high" for batch in claimed)


def test_each_project_has_lanes_of_its_own(connection: Connection, worker: Worker) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    fill(connection, 1_000, "high")
    fill(connection, 100, "normal", "orders")

    claimed = connection.claim(worker, most=40)

    assert Counter(each["project"] for each in claimed) == {"default": 20, "orders": 20}


@pytest.mark.parametrize(("locked", "free"), [("high", NORMAL), ("normal", HIGH)])
@pytest.mark.parametrize("most", [1, 20])
def test_a_lane_that_is_locked_takes_no_place_from_the_other(
    database: str, connection: Connection, most: int, locked: str, free: str
) -> None:
    fill(connection, 30, "normal")
    fill(connection, 30, "high")
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications where priority = %s for update", [locked])

        assert lock_due(connection, most, times=30) == {free: 30 * most}


def test_locked_rows_at_the_head_of_both_lanes_delay_no_claim(database: str, connection: Connection) -> None:
    fill(connection, 100, "normal")
    fill(connection, 80, "high")
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.lock_due(80, clock_timestamp(), '{\"default\": 80}')")

        assert lock_due(connection, 16, times=5) == {HIGH: 50, NORMAL: 30}
