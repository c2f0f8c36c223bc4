"""A project that is paused sends nothing and is in nobody's way; its incidents, and the end of them."""

from datetime import timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg.errors import UndefinedObject

from tests.support.store_calls import (
    attempts,
    begin,
    claim,
    claim_one,
    insert,
    let_pass,
    only_delivery,
    outcome,
    paused,
    record,
    register_worker,
    rows,
    state,
    value,
)

INCIDENTS: LiteralString = "select * from notify_worker.incidents order by began_at, project"
BELLS: LiteralString = (
    "select count(*) from notify_worker.procrastinate_jobs where task_name = 'notify_worker.drain' and status = 'todo'"
)


@pytest.fixture
def connection(connection: psycopg.Connection) -> psycopg.Connection:
    """Two projects."""
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    return connection


def pause(connection: psycopg.Connection, project: str, reason: str | None = "maintenance") -> None:
    connection.execute("select notify_worker.pause(%s, %s)", [project, reason])


def resume(connection: psycopg.Connection, project: str) -> None:
    connection.execute("select notify_worker.resume(%s)", [project])


def breaker(connection: psycopg.Connection, scope: str, until: str = "infinity") -> None:
    """What a worker writes down when it stops something by itself."""
    connection.execute(
        """
        insert into notify_worker.stored_incidents (project, scope, by, began_at, ends_at, reason)
        values ('orders', %s, 'worker', now() - interval '3 hours', %s::timestamptz, 'its quota')
        """,
        [scope, until],
    )


def test_nothing_of_a_paused_project_is_claimed_and_everything_of_the_others(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    waiting = [insert(connection, project="orders"), insert(connection, project="orders", priority="high")]
    other = insert(connection)

    pause(connection, "orders")

    assert claim_one(connection, worker)["notification_id"] == other
    assert claim(connection, worker) == []
    assert [state(connection, number) for number in waiting] == ["pending", "pending"]
    assert paused(connection, "orders") == ("infinity", "maintenance")


def test_what_a_paused_project_has_due_is_no_reason_to_look_again(connection: psycopg.Connection) -> None:
    insert(connection, project="orders")
    pause(connection, "orders")
    alone = value(connection, "select notify_worker.has_due()")
    connection.execute(
        "insert into notify_worker.notifications (receiver_id, title, send_at) values ('u_42', 'Hello', 'infinity')"
    )

    beside_what_is_scheduled = value(connection, "select notify_worker.has_due()")

    assert (alone, beside_what_is_scheduled) == (False, False)


def test_what_a_worker_holds_at_the_pause_ends_as_it_ends(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    sent, retried = insert(connection, project="orders"), insert(connection, project="orders")
    first, second = claim(connection, worker)

    pause(connection, "orders")
    record(
        connection, worker, outcome(first, verdict="sent"), outcome(second, verdict="retry", error="busy", retry_in=0)
    )

    assert [state(connection, number) for number in (sent, retried)] == ["sent", "pending"]
    assert claim(connection, worker) == []


def test_a_pause_costs_no_attempt(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection, project="orders")
    pause(connection, "orders")
    assert claim(connection, worker) == []

    resume(connection, "orders")

    claimed = claim_one(connection, worker)
    assert (claimed["notification_id"], claimed["attempts"], claimed["last_attempt_number"]) == (number, 0, 0)
    assert attempts(connection, number) == []
    assert only_delivery(connection, number)["attempts"] == 0


def test_a_pause_of_a_worker_ends_by_itself(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection, project="orders")
    begin(connection, project="orders", lasts=3600)
    assert claim(connection, worker) == []

    let_pass(connection, hours=1)

    assert claim_one(connection, worker)["notification_id"] == number


def pages(connection: psycopg.Connection) -> int:
    """How many pages it touches to pick 100, in a session that has settled on its plans."""
    explain = (
        "explain (analyze, buffers, format json) "
        'select * from notify_worker.lock_due(100, clock_timestamp(), \'{"default": 100, "orders": 100}\')'
    )
    for _ in range(6):
        with connection.transaction(force_rollback=True):
            (plan,) = value(connection, explain)
    assert plan["Plan"]["Actual Rows"] == 100
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def test_twenty_thousand_that_are_paused_make_the_claim_of_others_no_dearer(connection: psycopg.Connection) -> None:
    fill: LiteralString = """
        insert into notify_worker.notifications (kind, address, title, project)
        select 'topic', 'news', 'Hello', %s from generate_series(1, %s)
    """
    connection.execute(fill, ["default", 200])
    connection.execute("analyze notify_worker.notifications")
    alone = pages(connection)

    pause(connection, "orders")
    connection.execute(fill, ["orders", 20_000])
    connection.execute("analyze notify_worker.notifications")

    assert pages(connection) <= 1.5 * alone


def test_a_pause_is_an_incident_until_somebody_resumes(connection: psycopg.Connection) -> None:
    pause(connection, "orders", "their certificate has expired")
    (open_one,) = rows(connection, INCIDENTS)

    resume(connection, "orders")

    (ended,) = rows(connection, INCIDENTS)
    assert (open_one["project"], open_one["scope"], open_one["by"]) == ("orders", "project", "operator")
    assert (open_one["reason"], open_one["ended_at"]) == ("their certificate has expired", None)
    assert ended["began_at"] == open_one["began_at"] < ended["ended_at"]
    assert paused(connection, "orders") == (None, None)


def test_a_resume_ends_every_pause_and_breaker_of_its_project_alone_and_rings(connection: psycopg.Connection) -> None:
    for scope in ("project", "apns_web", "topics", "devices"):
        breaker(connection, scope)
    pause(connection, "orders")
    pause(connection, "orders", "once more")
    pause(connection, "default")

    resume(connection, "orders")

    left = [each for each in rows(connection, INCIDENTS) if each["ended_at"] is None]
    assert [(each["project"], each["by"]) for each in left] == [("default", "operator")]
    assert len(rows(connection, INCIDENTS)) == 7
    assert value(connection, BELLS) == 1


def test_an_incident_that_ended_by_itself_keeps_its_end_when_somebody_resumes(connection: psycopg.Connection) -> None:
    breaker(connection, "project", value(connection, "select (now() - interval '2 hours')::text"))
    (before,) = rows(connection, INCIDENTS)
    pause(connection, "orders")

    resume(connection, "orders")

    ended = rows(connection, INCIDENTS)[0]
    assert timedelta(minutes=59) < before["ended_at"] - before["began_at"] < timedelta(minutes=61)
    assert ended == before


def test_who_resumes_what_is_not_paused_changes_nothing(connection: psycopg.Connection) -> None:
    resume(connection, "orders")

    assert rows(connection, INCIDENTS) == []
    assert paused(connection, "orders") == (None, None)


@pytest.mark.parametrize(
    ("project", "message"),
    [
        ("order", 'there is no project "order"; did you mean "orders"?'),
        ("xyz", 'there is no project "xyz"'),
    ],
)
@pytest.mark.parametrize("statement", ["select notify_worker.pause(%s, 'x')", "select notify_worker.resume(%s)"])
def test_a_project_that_is_not_there_is_refused_with_the_nearest_name(
    connection: psycopg.Connection, statement: LiteralString, project: str, message: str
) -> None:
    with pytest.raises(UndefinedObject) as refused:
        connection.execute(statement, [project])

    assert refused.value.diag.message_primary == message
    assert rows(connection, INCIDENTS) == []


def test_a_pause_that_is_rolled_back_was_never_there(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = insert(connection, project="orders")

    with connection.transaction(force_rollback=True):
        pause(connection, "orders")

    assert claim_one(connection, worker)["notification_id"] == number
    assert rows(connection, INCIDENTS) == []


@pytest.mark.parametrize(
    ("reason", "said"), [("maintenance", "maintenance"), (None, "no reason given")], ids=["reason", "none"]
)
def test_the_story_and_the_history_of_what_waits_say_that_its_project_is_paused(
    connection: psycopg.Connection, reason: str | None, said: str
) -> None:
    number = insert(connection, receiver_id="u_42", project="orders")
    pause(connection, "orders", reason)

    told = [line["what"] for line in rows(connection, "select what from notify_worker.explain(%s::bigint)", number)]

    assert told[1].startswith("project orders was paused by an operator")
    assert told[2:] == [f"it is pending, and its project is paused until somebody resumes it: {said}"]
    assert value(connection, "select reason from notify_worker.history('u_42')") == f"its project is paused: {said}"


def test_the_story_tells_of_the_pauses_of_its_own_time_alone(connection: psycopg.Connection) -> None:
    pause(connection, "orders", "too early")
    resume(connection, "orders")
    worker = register_worker(connection)
    number = insert(connection, project="orders")
    pause(connection, "orders", "in its time")
    pause(connection, "default", "another project")
    resume(connection, "orders")
    record(connection, worker, outcome(claim_one(connection, worker), verdict="sent"))
    pause(connection, "orders", "too late")

    told = [line["what"] for line in rows(connection, "select what from notify_worker.explain(%s::bigint)", number)]

    assert [line.partition(": ")[2] for line in told if "paused" in line] == ["in its time"]
    assert told[-1] == "it ended sent"


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("maintenance", "project orders was paused by an operator: maintenance"),
        (None, "project orders was paused by an operator"),
    ],
)
def test_the_line_of_a_pause_reads_well(connection: psycopg.Connection, reason: str | None, line: str) -> None:
    number = insert(connection, project="orders")
    pause(connection, "orders", reason)

    told = rows(connection, "select what from notify_worker.explain(%s::bigint)", number)

    assert told[1]["what"] == line
