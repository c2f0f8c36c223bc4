"""The systems under test, behind one small interface: this project, and one procrastinate job per push."""

import asyncio
import sys
from collections.abc import Iterable, Mapping
from typing import Any, LiteralString, Protocol

import procrastinate
import psycopg

from chaos.book import Event, Push
from chaos.producers import RECEIVERS, devices_of
from notify_worker.database import schema
from notify_worker.sandbox import Sandbox
from tests.support.relay import Moment

Cursor = psycopg.Cursor[Any]
Connection = psycopg.Connection[Any]
Step = tuple[str, Moment]

PENDING, SENT = "pending", "sent"
REQUEST_TIMEOUT = 2.0
LEASE = 20.0
"""The shortest that such a timeout allows: 2 x (3 x 2 s + 4 s)."""


class System(Protocol):
    """What a run of chaos asks of a system."""

    name: str
    commands: Mapping[str, list[str]]
    """The kinds of worker, and how each is started."""
    slots: tuple[str, ...]
    """The kind of each worker."""
    pooled: str | None
    """The kind of worker that may connect through PgBouncer."""
    stays: frozenset[str]
    """The kinds that must never exit by themselves."""
    may_have_a_backlog: bool
    """Whether it may fall behind the producers: then the run waits for its backlog."""
    steps: Mapping[str, Step]
    """Where workers are killed: a part of the statement, and whether before or after it."""

    def install(self, conninfo: str) -> None: ...

    def environment(self, conninfo: str, box: Sandbox) -> dict[str, str]: ...

    def publish(self, cursor: Cursor, events: list[Event]) -> None: ...

    def delete_wakeups(self, connection: Connection) -> None:
        """Delete the wake-ups that wait, unless a wake-up is the push itself."""

    def pending(self, connection: Connection) -> int: ...

    def waits_for_a_probe(self, connection: Connection) -> bool: ...

    def recorded(self, connection: Connection, events: list[str]) -> set[Push]:
        """Return the pushes of these events that are recorded as sent."""

    def lease_holder(self, connection: Connection, event: str) -> int | None:
        """Return the pid of the worker that leased it, if known."""

    def live_pids(self, connection: Connection) -> set[int] | None:
        """Return the pids of the workers that are not stale; None if the system does not know stale workers."""

    def events_leased_by(self, connection: Connection, pid: int, events: list[str]) -> set[str]:
        """Return which of these events that worker has leased; all of them if that is unknown."""

    def ends(self, connection: Connection) -> dict[str, dict[str, str]]:
        """Return the state of each push, by event and address."""

    def story(self, connection: Connection, event: str) -> list[str]:
        """Return the history of an event, a line for each attempt, to find out what went wrong."""

    def who_lost(self, connection: Connection) -> dict[Push, set[int]]:
        """Return the pids of the workers that died before they recorded an attempt, by push, where known."""

    def unanswered(self, connection: Connection) -> set[Push]:
        """Return the pushes that FCM did not answer in time, as far as recorded."""

    def unbalanced(self, connection: Connection) -> list[str]: ...


def rows(connection: Connection, query: LiteralString, *values: object) -> list[Any]:
    return connection.execute(query, values).fetchall()


class NotifyWorker:
    """This project."""

    name = "notify_worker"
    commands: Mapping[str, list[str]] = {
        "notify-worker": [sys.executable, "-m", "notify_worker", "worker"],
        "procrastinate": [sys.executable, "-m", "procrastinate", "--app=notify_worker.worker.app", "worker"],
    }
    slots: tuple[str, ...] = ("notify-worker", "notify-worker", "procrastinate")
    pooled: str | None = "notify-worker"
    stays = frozenset({"notify-worker"})
    may_have_a_backlog = False
    steps: Mapping[str, Step] = {
        "killed after the claim": ("notify_worker.claim(", Moment.ANSWERED),
        "killed before the request": ("notify_worker.mark_started(", Moment.ANSWERED),
        "killed before the record": ("notify_worker.record(", Moment.ASKED),
        "killed in the record's commit": ("notify_worker.record(", Moment.PASSED),
    }

    def install(self, conninfo: str) -> None:
        schema.migrate(conninfo)
        with psycopg.connect(conninfo) as connection:
            connection.execute(
                """
                update notify_worker.projects
                set first_retry_after = '1 second', longest_retry_after = '4 seconds'
                """
            )
            for receiver in range(RECEIVERS):
                for address in devices_of(receiver):
                    connection.execute(
                        "select notify_worker.register_device(%s, 'token', %s, 'android')", [f"u_{receiver}", address]
                    )

    def environment(self, conninfo: str, box: Sandbox) -> dict[str, str]:
        return {
            "NOTIFY_WORKER_DATABASE_URL": conninfo,
            "NOTIFY_WORKER_FCM_URL": box.url,
            "NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS": str(REQUEST_TIMEOUT),
            "NOTIFY_WORKER_LEASE_SECONDS": str(LEASE),
            "GOOGLE_APPLICATION_CREDENTIALS": str(box.credentials),
        }

    def publish(self, cursor: Cursor, events: list[Event]) -> None:
        cursor.execute(
            """
            insert into notify_worker.notifications (event_id, receiver_id, kind, address, title, data, on_unknown)
            select
                event,
                receiver,
                case when receiver is null then 'token' end,
                case when receiver is null then address end,
                'Thank you',
                jsonb_build_object('event', event),
                case when hold then 'hold' else 'resend' end
            from unnest(%s::text[], %s::text[], %s::text[], %s::boolean[]) as each (event, receiver, address, hold)
            on conflict (event_id) do nothing
            """,
            [
                [event.id for event in events],
                [event.receiver for event in events],
                [event.addresses[0] for event in events],
                [event.hold for event in events],
            ],
        )

    def delete_wakeups(self, connection: Connection) -> None:
        with connection.transaction():
            connection.execute("set local search_path = notify_worker")
            connection.execute(
                "delete from procrastinate_jobs where task_name = 'notify_worker.drain' and status = 'todo'"
            )

    def pending(self, connection: Connection) -> int:
        return int(rows(connection, "select count(*) from notify_worker.notifications where state = 'pending'")[0][0])

    def waits_for_a_probe(self, connection: Connection) -> bool:
        return bool(rows(connection, "select from notify_worker.incidents where ended_at is null"))

    def recorded(self, connection: Connection, events: list[str]) -> set[Push]:
        return set(
            rows(
                connection,
                """
                select notification.event_id, delivery.address
                from notify_worker.notifications as notification
                join notify_worker.stored_deliveries as delivery on delivery.notification_id = notification.id
                join notify_worker.stored_attempts as attempt on attempt.delivery_id = delivery.id
                where notification.event_id = any (%s) and attempt.verdict = 'sent'
                """,
                events,
            )
        )

    def lease_holder(self, connection: Connection, event: str) -> int | None:
        found = rows(
            connection,
            """
            select worker.pid
            from notify_worker.notifications as notification
            join notify_worker.stored_workers as worker on worker.id = notification.leased_by
            where notification.event_id = %s
            """,
            event,
        )
        return found[0][0] if found else None

    def live_pids(self, connection: Connection) -> set[int] | None:
        return {
            pid
            for (pid,) in rows(
                connection,
                """
                select pid
                from notify_worker.stored_workers
                where ended_at is null
                group by pid
                having not bool_or(id in (select worker_id from notify_worker.stale_workers()))
                """,
            )
        }

    def events_leased_by(self, connection: Connection, pid: int, events: list[str]) -> set[str]:
        return {
            event
            for (event,) in rows(
                connection,
                """
                select notification.event_id
                from notify_worker.notifications as notification
                join notify_worker.stored_workers as worker on worker.id = notification.leased_by
                where notification.event_id = any (%s) and worker.pid = %s
                """,
                events,
                pid,
            )
        }

    def ends(self, connection: Connection) -> dict[str, dict[str, str]]:
        ends: dict[str, dict[str, str]] = {}
        for event, address, state in rows(
            connection,
            """
            select
                notification.event_id,
                coalesce(delivery.address, ''),
                case when notification.state = 'pending' then 'pending' else coalesce(delivery.state, notification.state) end
            from notify_worker.notifications as notification
            left join notify_worker.stored_deliveries as delivery on delivery.notification_id = notification.id
            """,
        ):
            ends.setdefault(event, {})[address] = state
        return ends

    def story(self, connection: Connection, event: str) -> list[str]:
        return [
            " ".join(map(str, row))
            for row in rows(
                connection,
                """
                select
                    delivery.address, delivery.state, attempt.number, attempt.verdict, attempt.worker, attempt.requests,
                    attempt.error_code, attempt.started_at, attempt.finished_at, attempt.recorded_at, attempt.late,
                    attempt.provider_message_id, attempt.lease
                from notify_worker.notifications as notification
                join notify_worker.stored_deliveries as delivery on delivery.notification_id = notification.id
                left join notify_worker.stored_attempts as attempt on attempt.delivery_id = delivery.id
                where notification.event_id = %s
                order by delivery.address, attempt.recorded_at
                """,
                event,
            )
        ]

    def who_lost(self, connection: Connection) -> dict[Push, set[int]]:
        lost: dict[Push, set[int]] = {}
        for event, address, pid in rows(
            connection,
            """
            select notification.event_id, delivery.address, worker.pid
            from notify_worker.stored_attempts as attempt
            join notify_worker.stored_workers as worker on worker.name = attempt.worker
            join notify_worker.stored_deliveries as delivery on delivery.id = attempt.delivery_id
            join notify_worker.notifications as notification on notification.id = delivery.notification_id
            where attempt.finished_at is null
            """,
        ):
            lost.setdefault((event, address), set()).add(pid)
        return lost

    def unanswered(self, connection: Connection) -> set[Push]:
        return set(
            rows(
                connection,
                """
                select distinct notification.event_id, delivery.address
                from notify_worker.stored_attempts as attempt
                join notify_worker.stored_deliveries as delivery on delivery.id = attempt.delivery_id
                join notify_worker.notifications as notification on notification.id = delivery.notification_id
                where (attempt.verdict = 'unknown' and attempt.finished_at is not null) or attempt.requests > 1
                """,
            )
        )

    def unbalanced(self, connection: Connection) -> list[str]:
        return [
            f"{what}: {expected} expected, {found} found"
            for what, expected, found in rows(
                connection, "select what, expected, found from notify_worker.ledger where not balanced"
            )
        ]


class OneJobPerPush:
    """One procrastinate job per push: the business row and its jobs in one transaction."""

    name = "one procrastinate job per push"
    commands: Mapping[str, list[str]] = {
        "procrastinate": [
            *(sys.executable, "-m", "procrastinate", "--app=chaos.one_job.app"),
            *("worker", "--concurrency=50", "--shutdown-graceful-timeout=5"),
        ]
    }
    slots: tuple[str, ...] = ("procrastinate", "procrastinate", "procrastinate")
    pooled: str | None = None
    stays: frozenset[str] = frozenset()
    may_have_a_backlog = True
    steps: Mapping[str, Step] = {
        "killed after the claim": ("procrastinate_fetch_job", Moment.ANSWERED),
        "killed before the record": ("procrastinate_finish_job", Moment.ASKED),
        "killed in the record's commit": ("procrastinate_finish_job", Moment.PASSED),
    }

    def install(self, conninfo: str) -> None:
        asyncio.run(self._apply_schema(conninfo))
        with psycopg.connect(conninfo) as connection:
            connection.execute("create table orders (event text primary key)")

    async def _apply_schema(self, conninfo: str) -> None:
        async with procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo)).open_async() as app:
            await app.schema_manager.apply_schema_async()

    def environment(self, conninfo: str, box: Sandbox) -> dict[str, str]:
        return {
            "ONE_JOB_DATABASE_URL": conninfo,
            "ONE_JOB_FCM_URL": box.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(box.credentials),
        }

    def publish(self, cursor: Cursor, events: list[Event]) -> None:
        """Defer a job for each address of what is new: this is the statement that procrastinate's own `defer` runs."""
        pushes = [(event.id, address) for event in events for address in event.addresses]
        cursor.execute(
            """
            with new as (
                insert into orders (event) select unnest(%s::text[]) on conflict do nothing returning event
            )
            select procrastinate_defer_jobs_v1(array_agg(row(
                'push', 'push', 0, null, null, jsonb_build_object('event', push.event, 'address', push.address), null
            )::procrastinate_job_to_defer_v1))
            from unnest(%s::text[], %s::text[]) as push (event, address)
            join new on new.event = push.event
            having count(*) > 0
            """,
            [[event.id for event in events], [each[0] for each in pushes], [each[1] for each in pushes]],
        )

    def delete_wakeups(self, connection: Connection) -> None:
        """Do nothing: the job is the push itself."""

    def pending(self, connection: Connection) -> int:
        return int(
            rows(
                connection,
                "select count(*) from procrastinate_jobs where task_name = 'push' and status in ('todo', 'doing')",
            )[0][0]
        )

    def waits_for_a_probe(self, connection: Connection) -> bool:
        return False

    def recorded(self, connection: Connection, events: Iterable[str]) -> set[Push]:
        return set(
            rows(
                connection,
                """
                select args ->> 'event', args ->> 'address'
                from procrastinate_jobs
                where status = 'succeeded' and args ->> 'event' = any (%s)
                """,
                list(events),
            )
        )

    def lease_holder(self, connection: Connection, event: str) -> int | None:
        return None

    def live_pids(self, connection: Connection) -> set[int] | None:
        return None

    def events_leased_by(self, connection: Connection, pid: int, events: list[str]) -> set[str]:
        return set(events)

    def ends(self, connection: Connection) -> dict[str, dict[str, str]]:
        ends: dict[str, dict[str, str]] = {}
        for event, address, status in rows(
            connection,
            """
            select args ->> 'event', args ->> 'address', case
                when status = 'succeeded' then 'sent'
                when status in ('todo', 'doing') then 'pending'
                else status::text
            end
            from procrastinate_jobs
            where task_name = 'push'
            """,
        ):
            ends.setdefault(event, {})[address] = status
        return ends

    def story(self, connection: Connection, event: str) -> list[str]:
        return [
            " ".join(map(str, row))
            for row in rows(
                connection,
                """
                select job.args, job.status, job.attempts, event.type, event.at
                from procrastinate_jobs as job
                join procrastinate_events as event on event.job_id = job.id
                where job.args ->> 'event' = %s
                order by event.at
                """,
                event,
            )
        ]

    def who_lost(self, connection: Connection) -> dict[Push, set[int]]:
        return {}

    def unanswered(self, connection: Connection) -> set[Push]:
        return set()

    def unbalanced(self, connection: Connection) -> list[str]:
        return []
