"""What procrastinate is given: a connector that opens what the tasks share, its worker mended, a retry strategy."""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

import procrastinate
from procrastinate import jobs, worker
from procrastinate.app import WorkerOptions
from procrastinate.connector import Notify
from psycopg_pool import AsyncConnectionPool

from notify_worker import schema
from notify_worker.ears import Ears
from notify_worker.errors import NotifyWorkerError
from notify_worker.liveness import Liveness, Rescue
from notify_worker.pipeline import Pipeline
from notify_worker.senders.opening import open_sender
from notify_worker.session import check, configure, is_shared, pool
from notify_worker.settings import Settings
from notify_worker.store import Store

A_SHARED_SESSION = (
    "The database is behind a pooler that shares sessions between transactions (PgBouncer's transaction mode)"
)


@dataclass(frozen=True, slots=True)
class Process:
    """What this process keeps: made when first needed, closed with the app."""

    store: Store
    liveness: Liveness
    pipeline: Pipeline
    rescue: Rescue


class Connector(procrastinate.PsycopgConnector):
    """procrastinate's connector, on our schema; it also opens and closes what the tasks share."""

    def __init__(self) -> None:
        super().__init__(pool_factory=self._pool, configure=configure)
        self.ears = Ears()
        self.shared = False
        """Whether a pooler shares sessions: then procrastinate can't work."""
        self.may_be_shared = False
        """Whether this process can do without procrastinate."""
        self._process: Process | None = None
        self._opening = asyncio.Lock()
        self._closing = contextlib.AsyncExitStack()
        self._first_rescue: asyncio.Task[None] | None = None

    def _pool(self, **options: Any) -> AsyncConnectionPool:
        return pool(Settings.from_env().database_url, **(options | {"check": check}))

    async def open_async(self, pool: AsyncConnectionPool | None = None) -> None:
        """Open the pool, if the schema in the database fits. Raises SchemaMismatch, DatabaseUnavailable."""
        url = Settings.from_env().database_url
        await asyncio.to_thread(schema.verify, url)
        self.shared = await is_shared(url)
        if not self.shared:
            await super().open_async(pool)
        elif not self.may_be_shared:
            raise NotifyWorkerError(
                f"{A_SHARED_SESSION}, and procrastinate's worker needs one of its own. "
                "Connect directly or in session mode, or run: notify-worker worker"
            )

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Listen, to ourselves too."""
        await super().listen_notify(self.ears.beside(on_notification), self.ears.channels(channels))

    async def process(self) -> Process:
        """Open the store and the pipeline, once."""
        async with self._opening:
            if self._process is None:
                settings = Settings.from_env()
                store = await self._closing.enter_async_context(Store(settings.database_url, shared=self.shared))
                liveness = Liveness(settings.database_url, settings.lease, shared=self.shared)
                pipeline = Pipeline(store, liveness, partial(open_sender, settings=settings), settings)
                self._closing.push_async_callback(pipeline.close)
                self._process = Process(store, liveness, pipeline, Rescue(store, liveness))
        return self._process

    def see_after_the_dead_once(self, process: Process) -> None:
        """Begin a rescue with the first drain: perhaps this process is the successor of one that was killed."""
        if self._first_rescue is None:
            self._first_rescue = asyncio.create_task(process.rescue.run_and_ring())

    def stop(self) -> None:
        """Claim no more."""
        if self._process is not None:
            self._process.pipeline.shutdown.request()

    async def close_async(self) -> None:
        """Let what is in flight end and record it; then close."""
        if self._first_rescue is not None:
            self._first_rescue.cancel()
            await asyncio.wait({self._first_rescue})
            self._first_rescue = None
        self._process = None
        await self._closing.aclose()
        if not self.shared:
            await super().close_async()


class Worker(worker.Worker):
    """procrastinate's worker, with its lost wake-up mended.

    After a fetch that found nothing it forgets a NOTIFY that came while that fetch was on its way. Pinned to 3.10.
    """

    app: "App"
    _heard = False

    async def _handle_notification(self, *, channel: str, notification: jobs.Notification) -> None:
        self._heard = True
        await super()._handle_notification(channel=channel, notification=notification)

    async def _fetch_and_process_jobs(self) -> None:
        self._heard = True
        while self._heard and not self._stop_event.is_set():
            self._heard = False
            await super()._fetch_and_process_jobs()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Stop fetching; where this worker is the process, claim no more either."""
        super().stop()  # type: ignore[no-untyped-call]
        if self.install_signal_handlers:
            self.app.connector.stop()


class App(procrastinate.App):
    """procrastinate's app, with our worker and our connector."""

    connector: Connector

    def _worker(self, **options: Unpack[WorkerOptions]) -> Worker:
        chosen: WorkerOptions = {**self.worker_defaults, **options}
        return Worker(app=self, **chosen)


class PutBack(procrastinate.BaseRetryStrategy):
    """A database error, a stop or a bug puts the job back at once, ten times; then it stays failed, for a person to retry.

    FCM's answers never come here: they are rows.
    """

    times: ClassVar[int] = 10

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> procrastinate.RetryDecision | None:  # noqa: ARG002
        """Put it back: a drain that waits unscheduled is a bell."""
        return procrastinate.RetryDecision(retry_in={"seconds": 0}) if job.attempts < self.times else None
