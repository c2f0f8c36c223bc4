"""What the tests of the SQL side say again and again: a worker enters, claims, records. Plain SQL, as psql would."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any, LiteralString, TypeVar
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier, Placeholder
from psycopg.types.json import Jsonb

from tests.support.waiting import until

Row = dict[str, Any]
Result = TypeVar("Result")

EVENT = "order:42:paid"
A_MOMENT = timedelta(milliseconds=50)
"""A lease that a test can wait for."""
PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

# What a delivery may come to, as `record` reads it.
SENT: Row = {"verdict": "sent", "provider_message_id": "projects/p/messages/1"}
GIVEN_UP: Row = {"verdict": "retry", "error_code": "UNAVAILABLE", "error": "FCM is busy"}
RETRY = GIVEN_UP | {"retry_in": 0}
LATER = GIVEN_UP | {"retry_in": 3600}
PAUSED: Row = {"verdict": "paused", "error": "the credentials are wrong", "retry_in": 0}
FAILED: Row = {"verdict": "failed", "error_code": "INVALID_ARGUMENT", "error": "it is wrong"}
UNREGISTERED: Row = {"verdict": "unregistered", "error_code": "UNREGISTERED", "error": "it is gone"}
UNKNOWN: Row = {"verdict": "unknown", "error_code": "ReadTimeout", "error": "no answer came"}


@dataclass(frozen=True)
class Worker:
    id: int
    name: str


def rows(connection: psycopg.Connection, statement: LiteralString, *values: object) -> list[Row]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values or None).fetchall()


def row(connection: psycopg.Connection, statement: LiteralString, *values: object) -> Row:
    (only,) = rows(connection, statement, *values)
    return only


def value(connection: psycopg.Connection, statement: LiteralString, *values: object) -> Any:
    (only,) = row(connection, statement, *values).values()
    return only


@contextmanager
def connected(database: str) -> Iterator[psycopg.Connection]:
    """One more session, which commits each statement. At the end it is gone from the server too, with its locks."""
    with psycopg.connect(database, autocommit=True) as session:
        pid = session.info.backend_pid
        yield session
    with psycopg.connect(database, autocommit=True) as observer:
        gone = "select not exists (select from pg_stat_activity where pid = %s)"
        until("the session has ended", lambda: bool(value(observer, gone, pid)), within=10)


def at_once(*actions: Callable[[], Result]) -> list[Result]:
    """Do all of it at the same moment, each in a thread of its own."""
    barrier = Barrier(len(actions))

    def act(action: Callable[[], Result]) -> Result:
        barrier.wait(10)
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(act, actions))


def await_lock(observer: psycopg.Connection, pid: int) -> None:
    """Return when this session waits for somebody's lock."""
    waits = "select exists (select from pg_stat_activity where pid = %s and wait_event_type = 'Lock')"
    until("the session waits for a lock", lambda: bool(value(observer, waits, pid)), within=10)


def insert(connection: psycopg.Connection, **columns: object) -> int:
    """Insert a notification with these columns and return its id; what is not said is a title, for a token."""
    target = {} if "receiver_id" in columns else {"kind": "token", "address": "fcm:phone"}
    columns = {"title": "Hello", **target, **columns}
    statement = SQL("insert into notify_worker.notifications ({}) values ({}) returning id").format(
        SQL(", ").join(map(Identifier, columns)), SQL(", ").join(map(Placeholder, columns))
    )
    found = connection.execute(statement, {name: as_stored(each) for name, each in columns.items()}).fetchone()
    assert found
    return int(found[0])


def as_stored(column: object) -> object:
    return Jsonb(column) if isinstance(column, dict | list) else column


def register(
    connection: psycopg.Connection,
    receiver_id: str,
    address: str,
    *,
    platform: str = "android",
    project: str = "default",
) -> int:
    statement: LiteralString = "select notify_worker.register_device(%s, 'token', %s, %s, %s)"
    return int(value(connection, statement, receiver_id, address, platform, project))


def insert_for_devices(connection: psycopg.Connection, count: int, **columns: object) -> int:
    """Insert a notification to receiver u_42, who has so many devices."""
    for number in range(count):
        register(connection, "u_42", f"fcm:device-{number}")
    return insert(connection, receiver_id="u_42", **columns)


def register_worker(connection: psycopg.Connection, lease_length: timedelta = timedelta(minutes=2)) -> Worker:
    """A worker enters. It lives as long as this session."""
    pid = connection.info.backend_pid
    return Worker(
        **row(connection, "select id, name from notify_worker.register_worker('here', %s, %s)", pid, lease_length)
    )


def unregister_worker(connection: psycopg.Connection, worker: Worker) -> None:
    value(connection, "select notify_worker.unregister_worker(array[%s]::integer[])", worker.id)


def send_heartbeat(connection: psycopg.Connection, worker: Worker) -> bool:
    alive = rows(connection, "select notify_worker.heartbeat(array[%s]::integer[])", worker.id)
    return bool(alive)


CLAIM: LiteralString = """
    select claimed.*
    from (select jsonb_object_agg(name, 1000000) as limits from notify_worker.projects) as every_project
    cross join lateral notify_worker.claim(%s, %s, %s, every_project.limits) as claimed
"""
"""A claim of every project, with no limit but `most`."""


def claim(connection: psycopg.Connection, worker: Worker, most: int = 100) -> list[Row]:
    """Claim of every project under a new lease, and return the deliveries with it; what ended or waits is left out."""
    lease = uuid4()
    claimed = rows(connection, CLAIM, worker.id, lease, most)
    return [each | {"lease": str(lease)} for each in claimed if each["delivery_id"] is not None]


def claim_one(connection: psycopg.Connection, worker: Worker) -> Row:
    (only,) = claim(connection, worker)
    return only


def outcome(delivery: Row, **came_to: object) -> Row:
    """What became of a delivery, as `record` reads it."""
    known = {name: delivery[name] for name in ("delivery_id", "notification_id", "lease")}
    return known | {"requests": 1, "started_ago": 0, "finished_ago": 0} | came_to


def record(connection: psycopg.Connection, worker: Worker, *outcomes: Row) -> int:
    return int(value(connection, "select notify_worker.record(%s, %s)", worker.id, Jsonb(list(outcomes))))


def send(connection: psycopg.Connection, worker: Worker, *came_to: Row) -> list[Row]:
    """Claim what is due and record what became of it, in the order of the deliveries."""
    claimed = sorted(claim(connection, worker), key=lambda each: int(each["delivery_id"]))
    record(connection, worker, *[outcome(each, **became) for each, became in zip(claimed, came_to, strict=True)])
    return claimed


def send_all(connection: psycopg.Connection, worker: Worker, **came_to: Row) -> list[Row]:
    """Claim what is due and record what became of it, by address; what is not named was sent."""
    claimed = claim(connection, worker)
    record(connection, worker, *[outcome(each, **came_to.get(each["address"], SENT)) for each in claimed])
    return claimed


def mark(connection: psycopg.Connection, *claimed: Row) -> list[int]:
    """Say that requests of these deliveries are about to begin; return those of which that may be."""
    ids, leases = [each["delivery_id"] for each in claimed], [each["lease"] for each in claimed]
    statement: LiteralString = "select notify_worker.mark_started(%s, %s::uuid[]) as id"
    return [each["id"] for each in rows(connection, statement, ids, leases)]


def rescue_worker(connection: psycopg.Connection, worker: Worker) -> int:
    """Rescue what a worker held, without its grace period; return how many notifications are due again."""
    statement: LiteralString = """
        select notify_worker.rescue_worker(id, last_heartbeat_at) from notify_worker.stored_workers where id = %s
    """
    return int(value(connection, statement, worker.id) or 0)


def await_end_of_lease(connection: psycopg.Connection, notification_id: int) -> None:
    over = "select due_at <= clock_timestamp() from notify_worker.notifications where id = %s"
    until("the lease has run out", lambda: bool(value(connection, over, notification_id)), within=10)


def cancel(connection: psycopg.Connection, number: int) -> bool:
    return bool(value(connection, "select notify_worker.cancel(%s::bigint)", number))


def retry(connection: psycopg.Connection, number: int) -> int:
    return int(value(connection, "select notify_worker.retry(%s::bigint)", number))


def notification(connection: psycopg.Connection, notification_id: int) -> Row:
    return row(connection, "select * from notify_worker.notifications where id = %s", notification_id)


def state(connection: psycopg.Connection, notification_id: int) -> str:
    return str(notification(connection, notification_id)["state"])


def deliveries(connection: psycopg.Connection, notification_id: int) -> list[Row]:
    statement: LiteralString = "select * from notify_worker.stored_deliveries where notification_id = %s order by id"
    return rows(connection, statement, notification_id)


def only_delivery(connection: psycopg.Connection, notification_id: int) -> Row:
    (only,) = deliveries(connection, notification_id)
    return only


def attempts(connection: psycopg.Connection, notification_id: int) -> list[Row]:
    """The history of a notification, as the view shows it."""
    return rows(
        connection,
        "select * from notify_worker.attempts where notification_id = %s order by delivery_id, number, late",
        notification_id,
    )


def unbalanced(connection: psycopg.Connection) -> list[str]:
    """The lines of the ledger that do not balance."""
    return [line["what"] for line in rows(connection, "select * from notify_worker.ledger where not balanced")]


def begin(
    connection: psycopg.Connection,
    scope: str = "project",
    project: str = "default",
    *,
    reason: str = "its key was refused",
    lasts: float | None = None,
    sent_rate: float | None = None,
) -> None:
    """A worker found that this is not worth a request."""
    statement: LiteralString = "select notify_worker.open_incident(%s, %s, %s, %s, %s)"
    connection.execute(statement, [project, scope, reason, lasts, sent_rate])


def end(connection: psycopg.Connection, scope: str = "project", project: str = "default") -> None:
    """A probe got through."""
    connection.execute("select notify_worker.close_incident(%s, %s)", [project, scope])


def paused(connection: psycopg.Connection, project: str = "default") -> tuple[str | None, str | None]:
    """Until when a project is paused, or probed next, and why; twice None: it is not."""
    found = rows(
        connection,
        """
        select blocked_until::text, reason
        from notify_worker.open_incidents
        where project = %s and scope = 'project'
        order by blocked_until desc, id
        limit 1
        """,
        project,
    )
    return (found[0]["blocked_until"], found[0]["reason"]) if found else (None, None)


def let_pass(connection: psycopg.Connection, **time: float) -> None:
    """Let time pass, as `timedelta` names it: what stands in the tables was then longer ago. Workers stay alive."""
    for table, columns in {
        "devices": ["registered_at", "seen_at", "retired_at"],
        "notifications": ["created_at", "due_at", "send_at", "expires_at", "fanned_out_at", "leased_at", "settled_at"],
        "stored_deliveries": ["created_at", "due_at", "settled_at"],
        "stored_incidents": ["began_at", "ends_at", "next_probe_at", "ended_at"],
    }.items():
        earlier = [SQL("{0} = {0} - %(time)s").format(Identifier(column)) for column in columns]
        connection.execute(
            SQL("update notify_worker.{} set {}").format(Identifier(table), SQL(", ").join(earlier)),
            {"time": timedelta(**time)},
        )


def settled(connection: psycopg.Connection, verdict: str, **columns: object) -> int:
    """Insert a notification to a token and let a worker bring it to this verdict; return its number."""
    number = insert(connection, **columns)
    worker = register_worker(connection)
    error = None if verdict == "sent" else f"FCM said {verdict}"
    record(connection, worker, outcome(claim_one(connection, worker), verdict=verdict, error=error))
    unregister_worker(connection, worker)
    return number


def move(connection: psycopg.Connection, number: int, column: LiteralString, ago: timedelta) -> None:
    """Move a time of a notification into the past."""
    statement = f"update notify_worker.notifications set {column} = {column} - %s where id = %s"
    connection.execute(statement, [ago, number])
