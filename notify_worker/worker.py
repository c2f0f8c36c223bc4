"""The procrastinate app and its tasks, and the supervised run that `notify-worker worker` adds to them.

`procrastinate --app=notify_worker.worker.app worker` sends, retries and re-queues too. Nothing is connected when this is
imported: the environment is read when the app opens.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

import procrastinate
import psycopg
from procrastinate import jobs, worker
from procrastinate.app import WorkerOptions
from psycopg_pool import AsyncConnectionPool

from notify_worker.drain import Pipeline
from notify_worker.liveness import Liveness, rescue
from notify_worker.liveness import requeue_orphans as put_in_line
from notify_worker.senders.opening import open_sender
from notify_worker.settings import Settings
from notify_worker.store import Store, configure

log = logging.getLogger(__name__)

QUEUE = "notify_worker"
"""A name of our own: procrastinate's channels belong to the database, and a host's jobs must not meet ours."""
A_JOB_LASTS = 5.0
"""Seconds after which `drain` returns and rings again: a job stays short, so a stop does."""
LOOK_EVERY = 1.0
"""Seconds between two looks without a bell, at most."""
SOONEST = 0.01
"""Seconds between two looks, at least."""
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
        self._closing = contextlib.AsyncExitStack()

    def _pool(self, **options: Any) -> AsyncConnectionPool:
        return AsyncConnectionPool(Settings.from_env().database_url, **options)

    async def process(self) -> Process:
        """Open the store and the pipeline, once."""
        if self._process is None:
            settings = Settings.from_env()
            store = await self._closing.enter_async_context(Store(settings.database_url))
            liveness = Liveness(settings.database_url, settings.lease)
            pipeline = Pipeline(store, liveness, partial(open_sender, settings=settings), settings)
            self._closing.push_async_callback(pipeline.close)
            self._process = Process(settings, store, liveness, pipeline)
        return self._process

    def stop(self) -> None:
        """Claim no more."""
        if self._process is not None:
            self._process.pipeline.stop()

    async def close_async(self) -> None:
        """Let what is in flight end and record it; then close."""
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
    try:
        finished = await process.pipeline.drain(within=A_JOB_LASTS)
    except asyncio.CancelledError:  # a stop: what is in flight ends, the job goes back
        await process.pipeline.settle()
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
    """Run a worker until SIGTERM or SIGINT: procrastinate's, started again when it stops, and a look each second.

    Raises CredentialsError where no project's credentials can be used.
    """
    stopping = asyncio.Event()
    async with app.open_async(), stopped_by_signals(stopping):
        process = await app.connector.process()
        await process.pipeline.open_senders()
        await process.store.keep_partitions()
        looking = asyncio.create_task(again_and_again(partial(look, process), stopping))
        beside = [
            asyncio.create_task(way)
            for way in (
                process.pipeline.warm_up(),
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
        await process.pipeline.open_senders()
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
            log.warning("the database is away (%s); looking again", type(error).__name__)
        except Exception:
            log.exception("a look has broken; looking again")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await stopping.wait()


async def look(process: Process) -> float:
    """Claim without a bell; look again in a second, or as soon as something is due before that."""
    await process.pipeline.drain()
    next_due_in = await process.store.next_due_in()
    return LOOK_EVERY if next_due_in is None else min(LOOK_EVERY, max(next_due_in, SOONEST))


async def see_after_the_dead(process: Process) -> float:
    """Put back in line what dead workers held, and ring for it; look again in a second."""
    if await rescue(process.store):
        await process.store.ring()
    return LOOK_EVERY


@contextlib.asynccontextmanager
async def stopped_by_signals(stopping: asyncio.Event) -> AsyncIterator[None]:
    """Turn SIGTERM and SIGINT into a stop: the first one drains, a second one is just a crash."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        app.connector.stop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)
