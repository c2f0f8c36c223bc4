"""A connection on which tests do what workers and producers do, each step one statement, as psql would run it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any, LiteralString, TypeVar
from uuid import uuid4

import psycopg
from psycopg.rows import TupleRow, dict_row
from psycopg.sql import SQL, Identifier, Placeholder
from psycopg.types.json import Jsonb

from notify_worker.producer import Columns
from tests.support.waiting import until

Row = dict[str, Any]
Result = TypeVar("Result")

EVENT = "order:42:paid"
SHORT_LEASE = timedelta(milliseconds=50)
"""A lease short enough to wait for."""
PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

# Outcomes of a delivery, as `record` reads them.
SENT: Row = {"verdict": "sent", "provider_message_id": "projects/p/messages/1"}
GIVEN_UP: Row = {"verdict": "retry", "error_code": "UNAVAILABLE", "error": "FCM is busy"}
RETRY = GIVEN_UP | {"retry_in": 0}
LATER = GIVEN_UP | {"retry_in": 3600}
PAUSED: Row = {"verdict": "paused", "error": "the credentials are wrong", "retry_in": 0}
FAILED: Row = {"verdict": "failed", "error_code": "INVALID_ARGUMENT", "error": "it is wrong"}
UNREGISTERED: Row = {"verdict": "unregistered", "error_code": "UNREGISTERED", "error": "it is gone"}
UNKNOWN: Row = {"verdict": "unknown", "error_code": "ReadTimeout", "error": "no answer came"}

ABOUT_SENDING = {
    *("event_id", "receiver_id", "kind", "address", "campaign", "priority"),
    *("send_at", "expires_at", "on_unknown", "project", "traceparent"),
}
CONTENT = set(Columns.__annotations__) - ABOUT_SENDING
"""The columns with what a notification says: a new one belongs to it, unless it stands above."""


@dataclass(frozen=True)
class Worker:
    id: int
    name: str


CLAIM: LiteralString = """
    select claimed.*
    from (select jsonb_object_agg(name, 1000000) as limits from notify_worker.projects) as every_project
    cross join lateral notify_worker.claim(%s, %s, %s, every_project.limits) as claimed
"""
"""A claim from every project, with no limit but its `most`."""


def outcome(delivery: Row, **came_to: object) -> Row:
    """Return the outcome of a delivery, as `record` reads it."""
    known = {name: delivery[name] for name in ("delivery_id", "notification_id", "lease")}
    return known | {"requests": 1, "started_ago": 0, "finished_ago": 0} | came_to


def without_code(came_to: Row) -> Row:
    """Return this outcome as a sender without error codes reports it."""
    return came_to | {"error_code": None}


def as_stored(column: object) -> object:
    return Jsonb(column) if isinstance(column, dict | list) else column


class Connection(psycopg.Connection[TupleRow]):
    """psycopg's connection, with a method for each statement that tests run often. Most are named after a SQL function."""

    def rows(self, statement: LiteralString, *values: object) -> list[Row]:
        with self.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, values or None).fetchall()

    def row(self, statement: LiteralString, *values: object) -> Row:
        (only,) = self.rows(statement, *values)
        return only

    def value(self, statement: LiteralString, *values: object) -> Any:
        (only,) = self.row(statement, *values).values()
        return only

    def insert(self, **columns: object) -> int:
        """Insert a notification with these columns and return its id; by default a title, to a token."""
        target = {} if "receiver_id" in columns else {"kind": "token", "address": "fcm:phone"}
        columns = {"title": "Hello", **target, **columns}
        statement = SQL("insert into notify_worker.notifications ({}) values ({}) returning id").format(
            SQL(", ").join(map(Identifier, columns)), SQL(", ").join(map(Placeholder, columns))
        )
        found = self.execute(statement, {name: as_stored(each) for name, each in columns.items()}).fetchone()
        assert found
        return int(found[0])

    def register_device(
        self, receiver_id: str, address: str, *, platform: str = "android", project: str = "default"
    ) -> int:
        statement: LiteralString = "select notify_worker.register_device(%s, 'token', %s, %s, %s)"
        return int(self.value(statement, receiver_id, address, platform, project))

    def insert_for_devices(self, count: int, **columns: object) -> int:
        """Insert a notification to receiver u_42, who has `count` devices."""
        for number in range(count):
            self.register_device("u_42", f"fcm:device-{number}")
        return self.insert(receiver_id="u_42", **columns)

    def register_worker(self, lease_length: timedelta = timedelta(minutes=2)) -> Worker:
        """Register a worker that lives as long as this session."""
        pid = self.info.backend_pid
        return Worker(
            **self.row("select id, name from notify_worker.register_worker('here', %s, %s)", pid, lease_length)
        )

    def unregister_worker(self, worker: Worker) -> None:
        self.value("select notify_worker.unregister_worker(array[%s]::integer[])", worker.id)

    def send_heartbeat(self, worker: Worker) -> bool:
        alive = self.rows("select notify_worker.heartbeat(array[%s]::integer[])", worker.id)
        return bool(alive)

    def claim(self, worker: Worker, most: int = 100) -> list[Row]:
        """Claim from every project under a new lease, and return the deliveries to send, each with that lease."""
        lease = uuid4()
        claimed = self.rows(CLAIM, worker.id, lease, most)
        return [each | {"lease": str(lease)} for each in claimed if each["delivery_id"] is not None]

    def claim_one(self, worker: Worker) -> Row:
        (only,) = self.claim(worker)
        return only

    def record(self, worker: Worker, *outcomes: Row) -> int:
        return int(self.value("select notify_worker.record(%s, %s)", worker.id, Jsonb(list(outcomes))))

    def send(self, worker: Worker, *came_to: Row) -> list[Row]:
        """Claim what is due and record these outcomes, in the order of the deliveries."""
        claimed = sorted(self.claim(worker), key=lambda each: int(each["delivery_id"]))
        self.record(worker, *[outcome(each, **became) for each, became in zip(claimed, came_to, strict=True)])
        return claimed

    def send_all(self, worker: Worker, **came_to: Row) -> list[Row]:
        """Claim what is due and record these outcomes by address; any other delivery was sent."""
        claimed = self.claim(worker)
        self.record(worker, *[outcome(each, **came_to.get(each["address"], SENT)) for each in claimed])
        return claimed

    def mark_started(self, *claimed: Row) -> list[int]:
        """Mark these deliveries as started; return the ids whose requests may begin."""
        ids, leases = [each["delivery_id"] for each in claimed], [each["lease"] for each in claimed]
        statement: LiteralString = "select notify_worker.mark_started(%s, %s::uuid[]) as id"
        return [each["id"] for each in self.rows(statement, ids, leases)]

    def rescue_worker(self, worker: Worker) -> int:
        """Rescue a worker without its grace period; return how many notifications are due again."""
        statement: LiteralString = """
            select notify_worker.rescue_worker(id, last_heartbeat_at) from notify_worker.stored_workers where id = %s
        """
        return int(self.value(statement, worker.id) or 0)

    def await_end_of_lease(self, notification_id: int) -> None:
        over = "select due_at <= clock_timestamp() from notify_worker.notifications where id = %s"
        until("the lease has run out", lambda: bool(self.value(over, notification_id)), within=10)

    def retry(self, number: int) -> int:
        return int(self.value("select notify_worker.retry(%s::bigint)", number))

    def notification(self, notification_id: int) -> Row:
        return self.row("select * from notify_worker.notifications where id = %s", notification_id)

    def state(self, notification_id: int) -> str:
        return str(self.notification(notification_id)["state"])

    def deliveries(self, notification_id: int) -> list[Row]:
        statement: LiteralString = (
            "select * from notify_worker.stored_deliveries where notification_id = %s order by id"
        )
        return self.rows(statement, notification_id)

    def only_delivery(self, notification_id: int) -> Row:
        (only,) = self.deliveries(notification_id)
        return only

    def attempts(self, notification_id: int) -> list[Row]:
        """Return the history of a notification, as the view shows it."""
        return self.rows(
            "select * from notify_worker.attempts where notification_id = %s order by delivery_id, number, late",
            notification_id,
        )

    def unbalanced(self) -> list[str]:
        """Return the lines of the ledger that do not balance."""
        return [line["what"] for line in self.rows("select * from notify_worker.ledger where not balanced")]

    def wakeups(self) -> int:
        """Count the jobs that wait to wake a worker."""
        return int(self.value("select count(*) from notify_worker.procrastinate_jobs where status = 'todo'"))

    def pause(self, project: str = "default", reason: str | None = "maintenance") -> None:
        self.execute("select notify_worker.pause(%s, %s)", [project, reason])

    def resume(self, project: str = "default") -> None:
        self.execute("select notify_worker.resume(%s)", [project])

    def open_incident(
        self,
        scope: str = "project",
        project: str = "default",
        *,
        reason: str = "its key was refused",
        lasts: float | None = None,
        sent_rate: float | None = None,
    ) -> None:
        """Block a scope of a project, as a worker does."""
        statement: LiteralString = "select notify_worker.open_incident(%s, %s, %s, %s, %s)"
        self.execute(statement, [project, scope, reason, lasts, sent_rate])

    def close_incident(self, scope: str = "project", project: str = "default") -> None:
        """Unblock a scope, as a successful probe does."""
        self.execute("select notify_worker.close_incident(%s, %s)", [project, scope])

    def project_pause(self, project: str = "default") -> tuple[str | None, str | None]:
        """Return the end or next probe of a project's pause, and its reason; (None, None) if it is not paused."""
        found = self.rows(
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

    def let_pass(self, **time: float) -> None:
        """Move every stored time this far into the past, in `timedelta`'s units. Workers stay alive."""
        for table, columns in {
            "devices": ["registered_at", "seen_at", "retired_at"],
            "notifications": [
                "created_at",
                "due_at",
                "send_at",
                "expires_at",
                "fanned_out_at",
                "leased_at",
                "settled_at",
            ],
            "stored_deliveries": ["created_at", "due_at", "settled_at"],
            "stored_incidents": ["began_at", "ends_at", "next_probe_at", "ended_at"],
        }.items():
            earlier = [SQL("{0} = {0} - %(time)s").format(Identifier(column)) for column in columns]
            self.execute(
                SQL("update notify_worker.{} set {}").format(Identifier(table), SQL(", ").join(earlier)),
                {"time": timedelta(**time)},
            )

    def insert_settled(self, verdict: str, **columns: object) -> int:
        """Insert a notification and record this verdict for it; return its id."""
        number = self.insert(**columns)
        worker = self.register_worker()
        error = None if verdict == "sent" else f"FCM said {verdict}"
        self.record(worker, outcome(self.claim_one(worker), verdict=verdict, error=error))
        self.unregister_worker(worker)
        return number

    def set_back(self, number: int, column: LiteralString, ago: timedelta) -> None:
        """Move one time of a notification into the past."""
        statement = f"update notify_worker.notifications set {column} = {column} - %s where id = %s"
        self.execute(statement, [ago, number])


@contextmanager
def connected(database: str) -> Iterator[Connection]:
    """Open another autocommit connection, and wait at the end until the server has dropped it with its locks."""
    with Connection.connect(database, autocommit=True) as session:
        pid = session.info.backend_pid
        yield session
    with Connection.connect(database, autocommit=True) as observer:
        gone = "select not exists (select from pg_stat_activity where pid = %s)"
        until("the session has ended", lambda: bool(observer.value(gone, pid)), within=10)


def at_once(*actions: Callable[[], Result]) -> list[Result]:
    """Run all actions at the same moment, each in its own thread."""
    barrier = Barrier(len(actions))

    def act(action: Callable[[], Result]) -> Result:
        barrier.wait(10)
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(act, actions))


def await_lock(observer: Connection, pid: int) -> None:
    """Wait until this session waits for a lock."""
    waits = "select exists (select from pg_stat_activity where pid = %s and wait_event_type = 'Lock')"
    until("the session waits for a lock", lambda: bool(observer.value(waits, pid)), within=10)


def cancel(connection: Connection, number: int) -> bool:
    return bool(connection.value("select notify_worker.cancel(%s::bigint)", number))
