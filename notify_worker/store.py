"""The worker's SQL: one method per function of sql/functions, each one round trip in its own transaction.

Nothing here is held over a request: a method takes a connection of the pool, asks, and gives it back.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, LiteralString, NamedTuple, Self
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb, set_json_loads
from psycopg_pool import AsyncConnectionPool

from notify_worker.model import UNREADABLE, Attempt, Delivery, Incident, Json, OnUnknown, Project, Words

CONNECTIONS = 2
"""One that claims and one that records; neither waits for FCM."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A worker whose lock nobody holds, and when it was last seen."""

    worker_id: int
    seen_at: datetime


class Claim(NamedTuple):
    """What a claim came to."""

    deliveries: list[Delivery]
    again_in: float | None
    """Seconds after which it is worth claiming again: what is due may not be sent yet, by the project's rate. None: nothing
    is due."""


class Number(float):
    """A number as it was written: a price of 19.90 is not 19.9."""

    def __new__(cls, text: str) -> Self:
        """Keep the text beside the value."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


def loads(text: str | bytes) -> Json:
    """Read JSON; what can't be read is said to be so, since it stands in one row among many."""
    try:
        return json.loads(text, parse_float=Number)
    except (ValueError, RecursionError):
        return UNREADABLE


def in_brief(error: BaseException) -> str:
    """Say what the database said, in one line and without its DETAIL, which may hold an address."""
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return f"{type(error).__name__}: {said or str(error).partition(chr(10))[0]}"


def without_detail(error: psycopg.Error) -> psycopg.Error:
    """Leave out the DETAIL, which may hold a whole row: procrastinate logs whatever a job of it raises."""
    return type(error)(error.diag.message_primary or str(error).partition("\n")[0])


async def configure(connection: AsyncConnection[Any]) -> None:
    """Make a connection ours: our schema's names, one statement a transaction, and commits that are durable.

    A claim that commits synchronously also makes the producer's commit durable before anything leaves.
    """
    set_json_loads(loads, connection)
    await connection.set_autocommit(True)
    await connection.execute(
        """
        select
            set_config('search_path', 'notify_worker, pg_catalog, pg_temp', false),
            set_config('application_name', 'notify-worker', false),
            set_config('timezone', 'UTC', false),
            case when current_setting('synchronous_commit') in ('off', 'local')
                then set_config('synchronous_commit', 'on', false)
            end
        """
    )


class Store:
    """The database as a worker sees it. `async with Store(conninfo)` opens and closes its pool of two connections."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        self._pool = AsyncConnectionPool(
            conninfo, min_size=1, max_size=CONNECTIONS, configure=configure, open=False, name="notify_worker"
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pool.close()

    async def claim(self, worker_id: int, lease: UUID, most: int, start_within: timedelta) -> Claim:
        """Take up to `most` due notifications under a lease, for what is to be sent of them.

        `start_within` is how long, from before the claim, a request may still start.
        """
        now = monotonic()
        rows = await self._rows("select * from claim(%s, %s, %s)", worker_id, lease, most)
        if not rows:
            return Claim([], None)
        if rows[0]["delivery_id"] is None:
            return Claim([], rows[0]["again_in"])
        return Claim([delivery(row, lease, worker_id, now, start_within) for row in rows], 0.0)

    async def mark(self, deliveries: list[Delivery]) -> set[int]:
        """Write down that requests of these deliveries are about to begin; return those of which that may be."""
        rows = await self._rows(
            "select mark(%s, %s) as id", [each.id for each in deliveries], [each.lease for each in deliveries]
        )
        return {row["id"] for row in rows}

    async def tell(self, incident: Incident) -> None:
        """Tell all workers what this one found out about a project."""
        if incident.over:
            await self._value("select end_incident(%s, %s)", incident.project, incident.scope.value)
            return
        await self._value(
            "select begin_incident(%s, %s, %s, %s, %s)",
            incident.project,
            incident.scope.value,
            incident.because,
            incident.lasts.total_seconds() if incident.lasts is not None else None,
            incident.per_second,
        )

    async def record(self, worker_id: int, attempts: Iterable[Attempt]) -> None:
        """Write down what became of deliveries. The same attempts again change nothing."""
        now = monotonic()
        await self._value("select record(%s, %s)", worker_id, Jsonb([outcome(attempt, now) for attempt in attempts]))

    async def release(self, lease: UUID, delivery_ids: list[int] | None = None) -> None:
        """Give back deliveries that were claimed and not sent: these, or all of the lease."""
        await self._value("select release(%s, %s)", lease, delivery_ids)

    async def stay_awake(self) -> None:
        """Say for the next 200 ms that a worker is awake and looks."""
        await self._value("select stay_awake()")

    async def somebody_writes(self) -> bool:
        """Say whether a transaction is open that has inserted notifications."""
        return bool(await self._value("select somebody_writes()"))

    async def something_is_due(self) -> bool:
        """Say whether a notification is due and nobody holds it."""
        return bool(await self._value("select something_is_due()"))

    async def next_due_in(self) -> float | None:
        """Say in how many seconds the next notification is due; None: there is none."""
        seconds: float | None = await self._value("select next_due_in()")
        return seconds

    async def ring(self) -> None:
        """Wake a worker, unless a bell waits already."""
        await self._value("select ring()")

    async def suspects(self) -> list[Suspect]:
        """List the workers that may be dead."""
        return [Suspect(**row) for row in await self._rows("select worker_id, seen_at from suspects()")]

    async def bury(self, suspect: Suspect) -> int:
        """Put back in line what a dead worker held; return how many notifications."""
        return int(await self._value("select bury(%s, %s)", suspect.worker_id, suspect.seen_at))

    async def sweep_jobs(self) -> None:
        """Take care of the jobs that dead processes left as doing."""
        await self._value("select sweep_jobs()")

    async def keep_partitions(self) -> None:
        """Keep the history's partitions three months ahead."""
        await self._value("select keep_partitions()")

    async def retry(self, which: int | str) -> int:
        """Put a notification back in line, by its number or its event; return how many deliveries are due again."""
        kind = "bigint" if isinstance(which, int) else "text"
        return int(await self._value(f"select retry(%s::{kind})", which))

    async def retry_delivery(self, delivery_id: int) -> int:
        """Put one delivery back in line; return 1, or 0."""
        return int(await self._value("select retry_delivery(%s)", delivery_id))

    async def retry_dead_letters(self, project: str, since: str) -> int:
        """Put back in line what failed in a project since then; return how many deliveries are due again."""
        return int(await self._value("select retry_dead_letters(%s, %s::text::timestamptz)", project, since))

    async def prune(self, older_than: str) -> int:
        """Delete what settled longer ago, in small transactions; then the months of the history that are older."""
        deleted = 0
        while gone := int(await self._value("select prune(%s::text::interval)", older_than)):
            deleted += gone
        await self._value("select drop_old_partitions(%s::text::interval)", older_than)
        return deleted

    async def projects(self) -> list[tuple[Project, list[str]]]:
        """Read what the projects' rows say, and what of each is not to be sent just now."""
        rows = await self._rows(
            """
            select
                name, firebase_project_id, credentials, sender, max_attempts, first_retry_after, longest_retry_after,
                closed(projects) as closed
            from projects
            """
        )
        return [(Project(**row), closed) for row in rows for closed in (row.pop("closed"),)]

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
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            yield cursor


def delivery(row: Row, lease: UUID, worker_id: int, claimed_at: float, start_within: timedelta) -> Delivery:
    """Read a row of `claim`."""
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
        tries=row["tries"],
        probe=row["probe"],
        expires_in=row["expires_in"],
        expires_at=row["expires_at"],
        expires_by=claimed_at + row["expires_in"],
        tag=row["tag"],
        inline=words(row),
        campaign_name=row["campaign"],
        campaign=words(row["campaign_words"]) if row["campaign_words"] is not None else None,
        params=row["params"] or {},
    )


def words(row: Mapping[str, Any]) -> Words:
    """Read the words of a notification or of a campaign."""
    return Words(title=row["title"], body=row["body"], image=row["image"], data=row["data"], message=row["message"])


def outcome(attempt: Attempt, now: float) -> Row:
    """Write an attempt as `record` reads it: ages, never times, since only the database's clock counts."""
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
        "sent_as": result.sent_as,
        "counts": attempt.counts,
    }
