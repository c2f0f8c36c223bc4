"""Our extensions of procrastinate: a connector that opens the pipeline for the tasks, a worker, a retry strategy."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

import procrastinate
import psycopg
from procrastinate import jobs, worker
from procrastinate.app import WorkerOptions
from procrastinate.connector import Notify
from psycopg_pool import AsyncConnectionPool

from notify_worker.database import schema
from notify_worker.database.connections import APPLICATION_NAME, check, configure, is_transaction_pooled, pool, summary
from notify_worker.database.store import Store
from notify_worker.errors import NotifyWorkerError
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.pipeline import Pipeline
from notify_worker.process.listen_check import ListenCheck
from notify_worker.process.rescuer import Rescuer
from notify_worker.senders.factory import open_sender
from notify_worker.settings import Settings

log = logging.getLogger(__name__)

TRANSACTION_POOLED = (
    "The database is behind a pooler that shares sessions between transactions (PgBouncer's transaction mode)"
)


@dataclass(frozen=True, slots=True)
class Process:
    """The parts that the tasks of this process share: opened when first needed, closed with the app."""

    store: Store
    heartbeat: Heartbeat
    pipeline: Pipeline
    rescuer: Rescuer


class Connector(procrastinate.PsycopgConnector):
    """procrastinate's connector, on our schema. It also opens and closes the `Process`."""

    def __init__(self) -> None:
        own = partial(configure, application_name=f"{APPLICATION_NAME} procrastinate")
        super().__init__(pool_factory=self._pool, configure=own)
        self.listen_check = ListenCheck()
        self.transaction_pooled = False
        """Whether a pooler shares sessions between transactions; procrastinate can't listen then."""
        self.allows_transaction_pooled = False
        """Whether this process can work without procrastinate."""
        self._process: Process | None = None
        self._opening = asyncio.Lock()
        self._closing = contextlib.AsyncExitStack()

    def _pool(self, **options: Any) -> AsyncConnectionPool:
        return pool(Settings.from_env().database_url, **(options | {"check": check}))

    async def open_async(self, pool: AsyncConnectionPool | None = None) -> None:
        """Open the pool if the schema fits this release. Raises SchemaMismatch, DatabaseUnavailable."""
        url = Settings.from_env().database_url
        await asyncio.to_thread(schema.verify, url)
        self.transaction_pooled = await is_transaction_pooled(url)
        if not self.transaction_pooled:
            await super().open_async(pool)
        elif not self.allows_transaction_pooled:
            raise NotifyWorkerError(
                f"{TRANSACTION_POOLED}, and procrastinate's worker needs a session of its own. "
                "Connect directly or in session mode, or run: notify-worker worker"
            )

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Listen to procrastinate's channels, and to our own pings."""
        check = self.listen_check
        await super().listen_notify(check.intercept(on_notification), check.channels(channels))

    @contextlib.asynccontextmanager
    async def _get_standalone_connection(self) -> AsyncGenerator[psycopg.AsyncConnection]:
        """Name the connection that listens. This overrides a private method of procrastinate, pinned to 3.10."""
        async with super()._get_standalone_connection() as connection:
            await connection.execute("select set_config('application_name', %s, false)", [f"{APPLICATION_NAME} listen"])
            yield connection

    async def process(self) -> Process:
        """Return the process; first open the store and the pipeline, and start the rescuer, if that was not done yet."""
        async with self._opening:
            if self._process is None:
                settings = Settings.from_env()
                url, pooled = settings.database_url, self.transaction_pooled
                store = await self._closing.enter_async_context(Store(url, transaction_pooled=pooled))
                heartbeat = Heartbeat(url, settings.lease, transaction_pooled=pooled)
                pipeline = Pipeline(store, heartbeat, partial(open_sender, settings=settings), settings)
                self._closing.push_async_callback(pipeline.close)
                rescuer = Rescuer(store, heartbeat)
                rescuer.start()
                self._closing.push_async_callback(rescuer.stop)
                self._process = Process(store, heartbeat, pipeline, rescuer)
        return self._process

    def stop(self) -> None:
        """Claim no more and start no request."""
        if self._process is not None:
            self._process.pipeline.stop()

    async def close_async(self) -> None:
        """Wait until everything in flight has ended and is recorded, then close."""
        self._process = None
        await self._closing.aclose()
        if not self.transaction_pooled:
            await super().close_async()


class Worker(worker.Worker):
    """procrastinate's worker, which loses no wake-up.

    procrastinate forgets a NOTIFY that arrives during a fetch that finds nothing. This overrides private methods of it,
    pinned to 3.10.
    """

    app: "App"
    _notified = False

    async def _handle_notification(self, *, channel: str, notification: jobs.Notification) -> None:
        self._notified = True
        await super()._handle_notification(channel=channel, notification=notification)

    async def _fetch_and_process_jobs(self) -> None:
        self._notified = True
        while self._notified and not self._stop_event.is_set():
            self._notified = False
            await super()._fetch_and_process_jobs()  # type: ignore[no-untyped-call]

    async def _process_job(self, context: procrastinate.JobContext) -> None:
        """Process a job. If its end can't be stored, it stays `doing`, and is cleared as stalled."""
        try:
            await super()._process_job(context)
        except procrastinate.exceptions.ConnectorException as error:
            log.warning(
                "the end of job %s could not be stored (%s)",
                context.job.id,
                summary(error.__cause__ or error),
                extra={"event": "job_end_not_stored", "job_id": context.job.id},
            )

    def stop(self) -> None:
        """Stop fetching; if this worker handles the signals of its process, claim no more either."""
        super().stop()  # type: ignore[no-untyped-call]
        if self.install_signal_handlers:
            self.app.connector.stop()


class App(procrastinate.App):
    """procrastinate's app, with our worker and our connector."""

    connector: Connector

    def _worker(self, **options: Unpack[WorkerOptions]) -> Worker:
        chosen: WorkerOptions = {**self.worker_defaults, **options}
        return Worker(app=self, **chosen)


class RetryImmediately(procrastinate.BaseRetryStrategy):
    """Requeues a job at once after a database error, a stop or a bug, up to ten times; then it stays failed.

    FCM's answers are outcomes in the database, never errors of a job.
    """

    times: ClassVar[int] = 10

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> procrastinate.RetryDecision | None:  # noqa: ARG002
        """Requeue it without a schedule, so that a waiting drain is still a wake-up."""
        return procrastinate.RetryDecision(retry_in={"seconds": 0}) if job.attempts < self.times else None
