"""The worker's SQL: a method for each function in sql/functions that it calls, one round trip in its own transaction.

No connection is held over a request: each method takes one from the pool and returns it.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, LiteralString, NamedTuple, Self, assert_never
from uuid import UUID

import psycopg
from psycopg import AsyncCursor
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from notify_worker.database.connections import (
    ANSWER_WITHIN,
    APPLICATION_NAME,
    answer_within,
    configure,
    configure_pooled,
    pool,
    without_detail,
)
from notify_worker.model import UNREADABLE, Attempt, Change, Content, Delivery, Incident, Json, OnUnknown, Project

CONNECTIONS = 2
"""The size of the pool: one claims, one records, and neither waits for FCM."""

Row = dict[str, Any]


class Rescue(NamedTuple):
    """The result of one rescue."""

    workers: int
    """The dead workers found."""
    notifications: int
    """Their notifications that became due again."""
    again_in: float | None
    """Seconds until another worker may count as dead; None if none may."""


class Claim(NamedTuple):
    """The result of a claim."""

    deliveries: list[Delivery]
    picked: int
    """How many notifications were claimed, including those that were settled or postponed without a delivery to send."""


class Store:
    """The database for a worker: a pool of two connections, and a method for each call.

    Every method raises psycopg.Error: the database is away, refuses, or took longer than 15 s. A statement whose connection
    broke may have committed all the same.

    Args:
        conninfo: The database, as a libpq connection string.
        transaction_pooled: Whether each transaction may find another session, so that sessions are not configured.
        application_name: The sessions' name in pg_stat_activity.

    Example:
        async with Store(conninfo) as store:
            await store.wake_worker()
    """

    def __init__(
        self, conninfo: str, *, transaction_pooled: bool = False, application_name: str = APPLICATION_NAME
    ) -> None:
        own: dict[str, Any] = (
            {"configure": configure_pooled, "kwargs": {"prepare_threshold": None}}
            if transaction_pooled
            else {"configure": partial(configure, application_name=application_name)}
        )
        self._pool = pool(conninfo, min_size=1, max_size=CONNECTIONS, name="notify_worker", **own)

    async def __aenter__(self) -> Self:
        await self._pool.open(wait=True, timeout=ANSWER_WITHIN)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pool.close()

    async def claim(
        self, worker_id: int, lease: UUID, most: int, limits: Mapping[str, int], start_within: timedelta
    ) -> Claim:
        """Claim due notifications under a lease; return their deliveries.

        Args:
            worker_id: The id under which this process is registered.
            lease: A new token, chosen by the caller.
            most: The most notifications to claim.
            limits: The most of each project; other projects are not claimed.
            start_within: How long after the beginning of the call a request may start.

        Raises:
            psycopg.errors.ObjectNotInPrerequisiteState: The worker is not registered, or was rescued as dead.
        """
        now = monotonic()
        rows = await self._rows(
            "select * from notify_worker.claim(%s, %s, %s, %s)", worker_id, lease, most, Jsonb(limits)
        )
        to_send = [row for row in rows if row["delivery_id"] is not None]
        return Claim(
            deliveries=[read_delivery(row, lease, worker_id, now, start_within) for row in to_send],
            picked=len({row["notification_id"] for row in rows}),
        )

    async def mark_started(self, deliveries: list[Delivery]) -> set[int]:
        """Mark that requests of these deliveries are about to start; return the ids of those that may start."""
        rows = await self._rows(
            "select notify_worker.mark_started(%s, %s) as id",
            [each.id for each in deliveries],
            [each.lease for each in deliveries],
        )
        return {row["id"] for row in rows}

    async def report(self, incident: Incident) -> None:
        """Open or close an incident, or ask for another probe at once."""
        match incident.change:
            case Change.OPENED:
                await self._value(
                    "select notify_worker.open_incident(%s, %s, %s, %s, %s)",
                    incident.project,
                    incident.scope.value,
                    incident.reason,
                    incident.lasts.total_seconds() if incident.lasts is not None else None,
                    incident.sent_rate,
                )
            case Change.CLOSED:
                await self._value("select notify_worker.close_incident(%s, %s)", incident.project, incident.scope.value)
            case Change.UNDECIDED:
                await self._value("select notify_worker.make_probe_due(%s, %s)", incident.project, incident.scope.value)
            case _:
                assert_never(incident.change)

    async def record(self, worker_id: int, attempts: list[Attempt]) -> None:
        """Record results of attempts. The same attempts again change nothing."""
        await self._value("select notify_worker.record(%s, %s)", worker_id, Jsonb(attempts, dumps=dump_attempts))

    async def release(self, lease: UUID, delivery_ids: list[int] | None = None) -> None:
        """Release deliveries that were claimed and not sent: these, or all under the lease."""
        await self._value("select notify_worker.release(%s, %s)", lease, delivery_ids)

    async def mark_awake(self) -> None:
        """Set the awake mark: for the next 200 ms, commits wake no worker."""
        await self._value("select notify_worker.mark_awake()")

    async def has_open_writers(self) -> bool:
        """Return whether a transaction that has inserted notifications is open."""
        return bool(await self._value("select notify_worker.has_open_writers()"))

    async def has_due(self) -> bool:
        """Return whether a notification is due and not leased."""
        return bool(await self._value("select notify_worker.has_due()"))

    async def next_due_in(self) -> float | None:
        """Return the seconds until the next notification is due; None if there is none."""
        seconds: float | None = await self._value("select notify_worker.next_due_in()")
        return seconds

    async def wake_worker(self) -> None:
        """Wake a worker, unless a wake-up is waiting already."""
        await self._value("select notify_worker.wake_worker()")

    async def ping(self, channel: str) -> None:
        """Send a NOTIFY on a channel that only this process listens to."""
        await self._value("select pg_notify(%s, '')", channel)

    async def rescue_dead_workers(self, reconnected_ago: float | None) -> Rescue:
        """Make the notifications of dead workers due again, and wake a worker for them.

        `reconnected_ago` is the seconds since this process replaced a lost session; None if it lost none.
        """
        (row,) = await self._rows("select * from notify_worker.rescue_dead_workers(%s)", reconnected_ago)
        return Rescue(**row)

    async def clear_stalled_jobs(self) -> None:
        """Requeue or delete the jobs that dead processes left in the status doing."""
        await self._value("select notify_worker.clear_stalled_jobs()")

    async def create_partitions(self) -> None:
        """Create the history's partitions for the next three months."""
        await self._value("select notify_worker.create_partitions()")

    async def retry(self, which: int | str) -> int:
        """Retry a notification, by its id or its event id; return how many deliveries are due again."""
        kind = "bigint" if isinstance(which, int) else "text"
        return int(await self._value(f"select notify_worker.retry(%s::{kind})", which))

    async def retry_delivery(self, delivery_id: int) -> int:
        """Retry a delivery; return 1, or 0 if it can't be retried."""
        return int(await self._value("select notify_worker.retry_delivery(%s)", delivery_id))

    async def retry_dead_letters(self, project: str, since: str) -> int:
        """Retry a project's dead letters since a time; return how many deliveries are due again."""
        return int(
            await self._value("select notify_worker.retry_dead_letters(%s, %s::text::timestamptz)", project, since)
        )

    async def prune(self, older_than: str) -> int:
        """Delete notifications settled longer ago, in small transactions, and older partitions; return their number."""
        deleted = 0
        while gone := int(await self._value("select notify_worker.prune(%s::text::interval)", older_than)):
            deleted += gone
        await self._value("select notify_worker.drop_old_partitions(%s::text::interval)", older_than)
        return deleted

    async def projects(self) -> list[tuple[Project, list[str], float]]:
        """Return each project's row, its blocked scopes, and its worker rate.

        The worker rate is the project's rate divided by the number of live workers, in deliveries a second.
        """
        rows = await self._rows(
            """
            select
                name, firebase_project_id, credentials, sender, max_attempts, first_retry_after, longest_retry_after,
                notify_worker.blocked_scopes(name) as blocked_scopes,
                notify_worker.project_rate(projects)
                    / greatest(1, (select count(*) from notify_worker.workers)) as worker_rate
            from notify_worker.projects
            """
        )
        columns = [(row.pop("blocked_scopes"), row.pop("worker_rate")) for row in rows]
        return [(Project(**row), *computed) for row, computed in zip(rows, columns, strict=True)]

    async def _rows(self, statement: LiteralString, *values: object) -> list[Row]:
        async with self._cursor() as cursor:
            try:
                await cursor.execute(statement, values)
                return await cursor.fetchall()
            except psycopg.Error as error:
                raise without_detail(error) from None

    async def _value(self, statement: LiteralString, *values: object) -> Any:
        rows = await self._rows(statement, *values)
        return next(iter(rows[0].values())) if rows else None

    @asynccontextmanager
    async def _cursor(self) -> AsyncIterator[AsyncCursor[Row]]:
        async with (
            self._pool.connection() as connection,
            answer_within(connection, ANSWER_WITHIN),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            yield cursor


def read_delivery(row: Row, lease: UUID, worker_id: int, claimed_at: float, start_within: timedelta) -> Delivery:
    """Build a delivery from a row of `claim`. `claimed_at` is `time.monotonic()` before the call."""
    return Delivery(
        id=row["delivery_id"],
        notification_id=row["notification_id"],
        lease=lease,
        worker_id=worker_id,
        start_by=claimed_at + start_within.total_seconds(),
        project=row["project"],
        kind=row["kind"],
        address=row["address"],
        platform=row["platform"],
        on_unknown=OnUnknown(row["on_unknown"]),
        priority=row["priority"],
        attempts=row["attempts"],
        last_attempt_number=row["last_attempt_number"],
        probe=row["probe"],
        expires_in=row["expires_in"],
        expires_at=row["expires_at"],
        expires_by=claimed_at + row["expires_in"],
        tag=row["tag"],
        inline=read_content(row),
        campaign_name=row["campaign"],
        campaign=read_content(row["campaign_content"]) if row["campaign_content"] is not None else None,
        params=row["params"] or {},
    )


def read_content(row: Json) -> Content:
    """Build the content of a notification or a campaign. A campaign's is unreadable as a whole."""
    if row is UNREADABLE:
        return Content(message=UNREADABLE)
    return Content(title=row["title"], body=row["body"], image=row["image"], data=row["data"], message=row["message"])


def dump_attempts(attempts: list[Attempt]) -> str:
    """Dump attempts for `record`, at the moment at which they are sent, since their ages grow until then."""
    now = monotonic()
    return json.dumps([dump_attempt(attempt, now) for attempt in attempts])


def dump_attempt(attempt: Attempt, now: float) -> Row:
    """Dump an attempt for `record`: with ages instead of times, since only the database's clock counts."""
    result = attempt.outcome
    return {
        "delivery_id": attempt.delivery.id,
        "notification_id": attempt.delivery.notification_id,
        "lease": str(attempt.delivery.lease),
        "verdict": result.verdict.value,
        "requests": attempt.requests,
        "started_ago": now - attempt.started,
        "finished_ago": now - attempt.finished,
        "http_status": result.http_status,
        "error_code": result.error_code,
        "error": result.error,
        "retry_in": attempt.retry_in.total_seconds() if attempt.retry_in is not None else None,
        "provider_message_id": result.provider_message_id,
        "counts": attempt.counts,
    }
