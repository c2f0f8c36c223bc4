"""The procrastinate app and its tasks, and the supervised run that `notify-worker worker` adds to them.

`procrastinate --app=notify_worker.worker.app worker` sends, retries and re-queues too. Nothing is connected when this is
imported: the environment is read when the app opens.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, ClassVar, Unpack

import procrastinate
import psycopg
from procrastinate import jobs, worker
from procrastinate.app import WorkerOptions
from psycopg_pool import AsyncConnectionPool

from notify_worker import schema
from notify_worker.drain import Pipeline
from notify_worker.liveness import Liveness, rescue
from notify_worker.liveness import requeue_orphans as put_in_line
from notify_worker.senders.opening import open_sender
from notify_worker.settings import Settings
from notify_worker.store import Store, configure, in_brief

log = logging.getLogger(__name__)

QUEUE = "notify_worker"
"""A name of our own: procrastinate's channels belong to the database, and a host's jobs must not meet ours."""
A_JOB_LASTS = 5.0
"""Seconds after which `drain` returns and rings again: a job stays short, so a stop does."""
LOOK_EVERY = 1.0
"""Seconds between two looks without a bell, at most."""
SOONEST = 0.01
"""Seconds between two looks, at least."""
STOP_WITHIN = 24.0
"""Seconds in which a worker that stops has left; platforms kill after 30."""
RESTART_AFTER = 1.0
"""Seconds after which procrastinate's worker, which stops when its database stumbles, is started again."""


@dataclass(frozen=True, slots=True)
class Process:
    """What this process keeps: made when first needed, closed with the app."""

    settings: Settings
    store: Store
    liveness: Liveness
    pipeline: Pipeline


class Connector(procrastinate.PsycopgConnector):
    """procrastinate's connector, on our schema; it also opens and closes what the tasks share."""

    def __init__(self) -> None:
        super().__init__(pool_factory=self._pool, configure=configure)
        self._process: Process | None = None
        self._opening = asyncio.Lock()
        self._closing = contextlib.AsyncExitStack()
        self._first_rescue: asyncio.Task[None] | None = None

    def _pool(self, **options: Any) -> AsyncConnectionPool:
        return AsyncConnectionPool(Settings.from_env().database_url, **options)

    async def open_async(self, pool: AsyncConnectionPool | None = None) -> None:
        """Open the pool, if the schema in the database is this release's. Raises SchemaMismatch, DatabaseUnavailable."""
        await asyncio.to_thread(schema.verify, Settings.from_env().database_url)
        await super().open_async(pool)

    async def process(self) -> Process:
        """Open the store and the pipeline, once."""
        async with self._opening:
            if self._process is None:
                settings = Settings.from_env()
                store = await self._closing.enter_async_context(Store(settings.database_url))
                liveness = Liveness(settings.database_url, settings.lease)
                pipeline = Pipeline(store, liveness, partial(open_sender, settings=settings), settings)
                self._closing.push_async_callback(pipeline.close)
                self._process = Process(settings, store, liveness, pipeline)
        return self._process

    def see_after_the_dead_once(self, store: Store) -> None:
        """Begin a rescue with the first drain: perhaps this process is the successor of one that was killed."""
        if self._first_rescue is None:
            self._first_rescue = asyncio.create_task(rescue_and_ring(store))

    def stop(self) -> None:
        """Claim no more."""
        if self._process is not None:
            self._process.pipeline.stop()

    async def close_async(self) -> None:
        """Let what is in flight end and record it; then close."""
        if self._first_rescue is not None:
            self._first_rescue.cancel()
            await asyncio.wait({self._first_rescue})
            self._first_rescue = None
        self._process = None
        await self._closing.aclose()
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


app = App(
    connector=Connector(),
    worker_defaults={
        "queues": [QUEUE],
        "concurrency": 3,
        "shutdown_graceful_timeout": 5,
        "delete_jobs": "successful",
        "fetch_job_polling_interval": 1,
    },
)


@app.task(name="notify_worker.drain", queue=QUEUE, retry=PutBack())
async def drain() -> None:
    """Claim, render, send and record until nothing is due; after five seconds, ring for the rest."""
    process = await app.connector.process()
    app.connector.see_after_the_dead_once(process.store)
    try:
        finished = await process.pipeline.drain(within=A_JOB_LASTS)
    except asyncio.CancelledError:  # the job goes back; where the worker stops, what is in flight ends first
        if process.pipeline.stopping:
            await process.pipeline.finish()
        raise
    if not finished:
        await process.store.ring()


@app.periodic(cron="* * * * * */2")
@app.task(name="notify_worker.requeue_orphans", queue=QUEUE, priority=1, retry=PutBack())
async def requeue_orphans(timestamp: int | None = None) -> None:
    """Put back in line what dead workers held, and ring for what is due and has nobody."""
    store = (await app.connector.process()).store
    await put_in_line(store)
    if timestamp is None or timestamp % 3600 == 0:
        await store.keep_partitions()


@app.task(name="notify_worker.retry", queue=QUEUE, retry=PutBack())
async def retry(
    notification_id: int | None = None,
    event_id: str | None = None,
    delivery_id: int | None = None,
    project: str | None = None,
    since: str | None = None,
) -> int:
    """Put back in line: a notification, the one of an event, a delivery, or all that failed in a project since then.

    Returns how many deliveries are due again.
    """
    store = (await app.connector.process()).store
    match notification_id, event_id, delivery_id, project, since:
        case int(number), None, None, None, None:
            return await store.retry(number)
        case None, str(event), None, None, None:
            return await store.retry(event)
        case None, None, int(number), None, None:
            return await store.retry_delivery(number)
        case None, None, None, str(name), str(moment):
            return await store.retry_dead_letters(name, moment)
    raise ValueError("give one of notification_id, event_id and delivery_id, or project and since together")


@app.task(name="notify_worker.prune", queue=QUEUE, retry=PutBack())
async def prune(older_than: str) -> int:
    """Delete what settled longer ago than an interval such as "90 days"; returns how many notifications."""
    return await (await app.connector.process()).store.prune(older_than)


async def run() -> None:
    """Run a worker until SIGTERM or SIGINT, and then for 24 s at most: a database that is away keeps nobody longer.

    Raises CredentialsError where no project's credentials can be used.
    """
    stopping = asyncio.Event()
    async with stopped_by_signals(stopping):
        serving = asyncio.create_task(serve(stopping))
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        await asyncio.wait({serving}, timeout=STOP_WITHIN)
        if not serving.done():
            log.error("not everything could be ended in %g s; others will find what is left", STOP_WITHIN)
            logging.shutdown()
            os._exit(1)  # as if killed: what holds it up would hold up every gentler way too
        await serving


async def serve(stopping: asyncio.Event) -> None:
    """Run procrastinate's worker, started again when it stops, a look each second, and the rescue of the dead."""
    async with app.open_async():
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        await process.store.keep_partitions()
        looking = asyncio.create_task(again_and_again(partial(look, process), stopping))
        beside = [
            asyncio.create_task(way)
            for way in (
                process.pipeline.projects.warm_up(),
                run_procrastinate(stopping),
                again_and_again(partial(see_after_the_dead, process), stopping),
            )
        ]
        await stopping.wait()
        log.info("stopping: no new claim; what is in flight ends and is recorded")
        for task in beside:
            task.cancel()
        # The look is not cancelled: a claim that is under way would be lost with its answer. It sees that the worker stops.
        await asyncio.gather(looking, *beside, return_exceptions=True)


async def run_until_nothing_is_due() -> None:
    """Drain once, without procrastinate, and leave."""
    stopping = asyncio.Event()
    async with app.open_async(), stopped_by_signals(stopping):
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        await process.pipeline.drain()


async def run_procrastinate(stopping: asyncio.Event) -> None:
    """Run procrastinate's worker; it returns, often without an error, when its database stumbles: start it again."""
    while not stopping.is_set():
        try:
            await app.run_worker_async(install_signal_handlers=False)
            log.warning("procrastinate's worker has stopped by itself; it is started again")
        except Exception:
            log.exception("procrastinate's worker has broken; it is started again")
        await asyncio.sleep(RESTART_AFTER)


async def again_and_again(what: Callable[[], Awaitable[float]], stopping: asyncio.Event) -> None:
    """Do something, whatever happens, until the worker stops; `what` returns the seconds to wait before the next time."""
    while not stopping.is_set():
        wait = LOOK_EVERY
        try:
            wait = await what()
        except psycopg.Error as error:
            log.warning("the database refuses or is away (%s); looking again", in_brief(error))
        except Exception:
            log.exception("a look has broken; looking again")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await stopping.wait()


async def look(process: Process) -> float:
    """Claim without a bell; look again in a second, or as soon as something is due before that."""
    began = monotonic()
    due_in = await process.store.next_due_in()  # asked first: what falls due meanwhile is not missed
    wait = LOOK_EVERY if due_in is None else min(LOOK_EVERY, max(due_in, SOONEST))
    finished = await process.pipeline.drain(within=wait)
    return max(SOONEST, wait - (monotonic() - began)) if finished else SOONEST


async def see_after_the_dead(process: Process) -> float:
    """Put back in line what dead workers held, and ring for it; look again in a second."""
    await rescue_and_ring(process.store)
    return LOOK_EVERY


async def rescue_and_ring(store: Store) -> None:
    """Put back in line what dead workers held, and ring for it."""
    try:
        if await rescue(store):
            await store.ring()
    except psycopg.Error as error:
        log.warning("the dead were not seen after (%s)", in_brief(error))


@contextlib.asynccontextmanager
async def stopped_by_signals(stopping: asyncio.Event) -> AsyncIterator[None]:
    """Turn SIGTERM and SIGINT into a stop: the first one drains, a second one is just a crash."""
    loop = asyncio.get_running_loop()

    def forget() -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)

    def stop() -> None:
        stopping.set()
        app.connector.stop()
        forget()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        forget()
