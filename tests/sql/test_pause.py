"""A paused project sends nothing and delays no other; its incidents, and their end."""

from datetime import timedelta
from typing import LiteralString

import pytest
from psycopg.errors import UndefinedObject

from tests.support.store_calls import Connection, Worker, outcome

INCIDENTS: LiteralString = "select * from notify_worker.incidents order by began_at, project"


@pytest.fixture
def connection(connection: Connection) -> Connection:
    """Two projects."""
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    return connection


def breaker(connection: Connection, scope: str, until: str = "infinity") -> None:
    """Store the incident that a worker opens by itself."""
    connection.execute(
        """
        insert into notify_worker.stored_incidents (project, scope, by, began_at, ends_at, reason)
        values ('orders', %s, 'worker', now() - interval '3 hours', %s::timestamptz, 'its quota')
        """,
        [scope, until],
    )


def test_a_paused_project_is_not_claimed_and_the_others_are(connection: Connection, worker: Worker) -> None:
    waiting = [connection.insert(project="orders"), connection.insert(project="orders", priority="high")]
    other = connection.insert()

    connection.pause("orders")

    assert connection.claim_one(worker)["notification_id"] == other
    assert connection.claim(worker) == []
    assert [connection.state(number) for number in waiting] == ["pending", "pending"]
    assert connection.project_pause("orders") == ("infinity", "maintenance")


def test_due_notifications_of_a_paused_project_cause_no_poll(connection: Connection) -> None:
    connection.insert(project="orders")
    connection.pause("orders")
    alone = connection.value("select notify_worker.has_due()")
    connection.execute(
        "insert into notify_worker.notifications (receiver_id, title, send_at) values ('u_42', 'Hello', 'infinity')"
    )

    beside_what_is_scheduled = connection.value("select notify_worker.has_due()")

    assert (alone, beside_what_is_scheduled) == (False, False)


def test_a_leased_notification_finishes_during_a_pause(connection: Connection, worker: Worker) -> None:
    sent, retried = connection.insert(project="orders"), connection.insert(project="orders")
    first, second = connection.claim(worker)

    connection.pause("orders")
    connection.record(
        worker, outcome(first, verdict="sent"), outcome(second, verdict="retry", error="busy", retry_in=0)
    )

    assert [connection.state(number) for number in (sent, retried)] == ["sent", "pending"]
    assert connection.claim(worker) == []


def test_a_pause_costs_no_attempt(connection: Connection, worker: Worker) -> None:
    number = connection.insert(project="orders")
    connection.pause("orders")
    assert connection.claim(worker) == []

    connection.resume("orders")

    claimed = connection.claim_one(worker)
    assert (claimed["notification_id"], claimed["attempts"], claimed["last_attempt_number"]) == (number, 0, 0)
    assert connection.attempts(number) == []
    assert connection.only_delivery(number)["attempts"] == 0


def test_a_pause_by_a_worker_ends_by_itself(connection: Connection, worker: Worker) -> None:
    number = connection.insert(project="orders")
    connection.open_incident(project="orders", lasts=3600)
    assert connection.claim(worker) == []

    connection.let_pass(hours=1)

    assert connection.claim_one(worker)["notification_id"] == number


def pages(connection: Connection) -> int:
    """How many pages it touches to pick 100, in a session that has settled on its plans."""
    explain = (
        "explain (analyze, buffers, format json) "
        'select * from notify_worker.lock_due(100, clock_timestamp(), \'{"default": 100, "orders": 100}\')'
    )
    for _ in range(6):
        with connection.transaction(force_rollback=True):
            (plan,) = connection.value(explain)
    assert plan["Plan"]["Actual Rows"] == 100
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def test_twenty_thousand_paused_rows_do_not_slow_other_claims(connection: Connection) -> None:
    fill: LiteralString = """
        insert into notify_worker.notifications (kind, address, title, project)
        select 'topic', 'news', 'Hello', %s from generate_series(1, %s)
    """
    connection.execute(fill, ["default", 200])
    connection.execute("analyze notify_worker.notifications")
    alone = pages(connection)

    connection.pause("orders")
    connection.execute(fill, ["orders", 20_000])
    connection.execute("analyze notify_worker.notifications")

    assert pages(connection) <= 1.5 * alone


def test_a_pause_is_an_incident_until_resume(connection: Connection) -> None:
    connection.pause("orders", "their certificate has expired")
    (open_one,) = connection.rows(INCIDENTS)

    connection.resume("orders")

    (ended,) = connection.rows(INCIDENTS)
    assert (open_one["project"], open_one["scope"], open_one["by"]) == ("orders", "project", "operator")
    assert (open_one["reason"], open_one["ended_at"]) == ("their certificate has expired", None)
    assert ended["began_at"] == open_one["began_at"] < ended["ended_at"]
    assert connection.project_pause("orders") == (None, None)


def test_resume_ends_every_incident_of_its_project_and_sends_a_wakeup(connection: Connection) -> None:
    for scope in ("project", "apns_web", "topics", "devices"):
        breaker(connection, scope)
    connection.pause("orders")
    connection.pause("orders", "once more")
    connection.pause("default")

    connection.resume("orders")

    left = [each for each in connection.rows(INCIDENTS) if each["ended_at"] is None]
    assert [(each["project"], each["by"]) for each in left] == [("default", "operator")]
    assert len(connection.rows(INCIDENTS)) == 7
    assert connection.wakeups() == 1


def test_resume_does_not_move_the_end_of_an_earlier_incident(connection: Connection) -> None:
    breaker(connection, "project", connection.value("select (now() - interval '2 hours')::text"))
    (before,) = connection.rows(INCIDENTS)
    connection.pause("orders")

    connection.resume("orders")

    ended = connection.rows(INCIDENTS)[0]
    assert timedelta(minutes=59) < before["ended_at"] - before["began_at"] < timedelta(minutes=61)
    assert ended == before


def test_resuming_a_running_project_changes_nothing(connection: Connection) -> None:
    connection.resume("orders")

    assert connection.rows(INCIDENTS) == []
    assert connection.project_pause("orders") == (None, None)


@pytest.mark.parametrize(
    ("project", "message"),
    [("order", 'there is no project "order"; did you mean "orders"?'), ("xyz", 'there is no project "xyz"')],
)
@pytest.mark.parametrize("statement", ["select notify_worker.pause(%s, 'x')", "select notify_worker.resume(%s)"])
def test_an_unknown_project_is_refused_with_the_closest_name(
    connection: Connection, statement: LiteralString, project: str, message: str
) -> None:
    with pytest.raises(UndefinedObject) as refused:
        connection.execute(statement, [project])

    assert refused.value.diag.message_primary == message
    assert connection.rows(INCIDENTS) == []


def test_a_rolled_back_pause_leaves_no_incident_and_blocks_nothing(connection: Connection, worker: Worker) -> None:
    number = connection.insert(project="orders")

    with connection.transaction(force_rollback=True):
        connection.pause("orders")

    assert connection.claim_one(worker)["notification_id"] == number
    assert connection.rows(INCIDENTS) == []


@pytest.mark.parametrize(
    ("reason", "said"), [("maintenance", "maintenance"), (None, "no reason given")], ids=["reason", "none"]
)
def test_explain_and_history_say_that_the_project_is_paused(
    connection: Connection, reason: str | None, said: str
) -> None:
    number = connection.insert(receiver_id="u_42", project="orders")
    connection.pause("orders", reason)

    explained = [line["what"] for line in connection.rows("select what from notify_worker.explain(%s::bigint)", number)]

    assert explained[1].startswith("project orders was paused by an operator")
    assert explained[2:] == [f"it is pending, and its project is paused until somebody resumes it: {said}"]
    assert connection.value("select reason from notify_worker.history('u_42')") == f"its project is paused: {said}"


def test_explain_shows_only_pauses_while_the_notification_was_pending(connection: Connection) -> None:
    connection.pause("orders", "too early")
    connection.resume("orders")
    worker = connection.register_worker()
    number = connection.insert(project="orders")
    connection.pause("orders", "in its time")
    connection.pause("default", "another project")
    connection.resume("orders")
    connection.record(worker, outcome(connection.claim_one(worker), verdict="sent"))
    connection.pause("orders", "too late")

    explained = [line["what"] for line in connection.rows("select what from notify_worker.explain(%s::bigint)", number)]

    assert [line.partition(": ")[2] for line in explained if "paused" in line] == ["in its time"]
    assert explained[-1] == "it ended sent"


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("maintenance", "project orders was paused by an operator: maintenance"),
        (None, "project orders was paused by an operator"),
    ],
)
def test_explain_says_who_paused_the_project_and_why(connection: Connection, reason: str | None, line: str) -> None:
    number = connection.insert(project="orders")
    connection.pause("orders", reason)

    explained = connection.rows("select what from notify_worker.explain(%s::bigint)", number)

    assert explained[1]["what"] == line
