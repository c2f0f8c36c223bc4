"""The supervised run, `notify-worker worker`: procrastinate's worker kept running, a poll each second, the stop."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from time import monotonic

import psycopg

from notify_worker.database.connections import summary
from notify_worker.errors import DatabaseUnavailable, SchemaIsOlder
from notify_worker.log_once import LogOnce
from notify_worker.process.connector import TRANSACTION_POOLED, Process
from notify_worker.process.tasks import app

log = logging.getLogger(__name__)

POLL_INTERVAL = 1.0
"""Seconds between two polls without a wake-up, at most."""
MIN_POLL_INTERVAL = 0.01
"""Seconds between two polls, at least."""
POLL_INTERVAL_AFTER_ERROR = 0.2
"""Seconds between two polls while the database is away."""
PARTITIONS_INTERVAL = 3600.0
"""Seconds between two checks that the history has its partitions."""
STOP_WITHIN = 24.0
"""Seconds in which a worker that stops has left; platforms kill after 30."""
RESTART_AFTER = 0.5
"""Seconds after which procrastinate's worker, which stops when its database stumbles, is started again."""
RESTART_WITHIN = 6.0
"""Seconds in which it has to end before that; what hangs on a silent network is left behind."""
LISTEN_CHECK_INTERVAL = 5.0
"""Seconds between two checks that this process receives NOTIFY."""
DATABASE_WITHIN = 15.0
"""Seconds that a worker which starts waits for its database."""
SCHEMA_CHECK_INTERVAL = 2.0
"""Seconds between two checks whether the schema has been migrated."""


async def run() -> bool:
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
        return await serving


async def serve(stopping: asyncio.Event) -> bool:
    """Run procrastinate's worker, restarted when it stops, and a poll each second, until the worker stops.

    Returns:
        Whether everything was recorded.
    """
    app.connector.may_be_transaction_pooled = True
    async with contextlib.AsyncExitStack() as opened:
        await open_app(opened, stopping)
        if stopping.is_set():
            return True
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        polling = asyncio.create_task(run_every(partial(poll, process), stopping))
        beside = [
            asyncio.create_task(each)
            for each in (
                process.pipeline.projects.warm_up(),
                run_procrastinate(process, stopping),
                run_every(partial(create_partitions, process), stopping),
            )
        ]
        await stopping.wait()
        log.info("stopping: no new claim; what is in flight ends and is recorded", extra={"event": "worker_stopping"})
        for task in beside:
            task.cancel()
        # The poll is not cancelled: a claim under way would be lost with its answer. It sees that the worker stops.
        await asyncio.gather(polling, *beside, return_exceptions=True)
    return not process.pipeline.shutdown.unfinished


async def run_until_nothing_is_due() -> bool:
    """Drain once, without procrastinate, and leave. Return whether everything was recorded."""
    stopping = asyncio.Event()
    async with app.open_async(), stopped_by_signals(stopping):
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        await process.pipeline.drain()
    return not process.pipeline.shutdown.unfinished


async def open_app(opened: contextlib.AsyncExitStack, stopping: asyncio.Event) -> None:
    """Open the app, for `opened` to close.

    Waits while the schema is older, since a deploy may start workers before it migrates; and for 15 s while the database
    is away, since it may be failing over.

    Raises:
        DatabaseUnavailable, SchemaMismatch
    """
    once = LogOnce(log)
    give_up_at = monotonic() + DATABASE_WITHIN
    while not stopping.is_set():
        try:
            await opened.enter_async_context(app.open_async())
        except (SchemaIsOlder, DatabaseUnavailable) as error:
            if isinstance(error, DatabaseUnavailable) and monotonic() > give_up_at:
                raise
            once.warn("worker_waits", f"waiting: {error}", error=str(error))
        else:
            return
        await wait_for(stopping, SCHEMA_CHECK_INTERVAL)


async def run_procrastinate(process: Process, stopping: asyncio.Event) -> None:
    """Run procrastinate's worker; start it again where it returns, breaks or no longer receives NOTIFY."""
    if app.connector.transaction_pooled:
        log.warning(
            "%s: this worker can't listen, nor hold the lock that shows that it is alive. It finds commits by its poll, "
            "within a second, and what it holds when it dies is due again after half a lease.",
            TRANSACTION_POOLED,
            extra={"event": "transaction_pooled"},
        )
        return
    once = LogOnce(log)
    while not stopping.is_set():
        running = asyncio.create_task(app.run_worker_async(install_signal_handlers=False), name="procrastinate")
        running.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may ask for it any more
        try:
            await wait_until_stopped_or_deaf(running, process, once, stopping)
        finally:
            running.cancel()
            await asyncio.wait({running}, timeout=RESTART_WITHIN)
        error = running.exception() if running.done() and not running.cancelled() else None
        reason = f"failed ({summary(error.__cause__ or error)})" if error else "has stopped, or receives no NOTIFY"
        once.warn("procrastinate_restarted", f"procrastinate's worker {reason}; it is started again", reason=reason)
        await asyncio.sleep(RESTART_AFTER)


async def wait_until_stopped_or_deaf(
    running: "asyncio.Task[None]", process: Process, once: LogOnce, stopping: asyncio.Event
) -> None:
    """Return when procrastinate's worker has ended or receives no NOTIFY: checked every 5 s, and after a lost session.

    And when this one stops: a task that is cancelled in the middle of a statement may raise a database error instead.
    """
    while not running.done() and not stopping.is_set():
        process.heartbeat.registered.clear()
        registered = asyncio.create_task(process.heartbeat.registered.wait())
        await asyncio.wait({running, registered}, timeout=LISTEN_CHECK_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
        registered.cancel()
        try:
            if running.done() or not await app.connector.listen_check.check(process.store):
                return
            once.reset()
        except psycopg.Error:
            continue  # the database is away: the next check will tell
        except Exception:
            log.exception("LISTEN check failed", extra={"event": "listen_check_failed"})


async def run_every(act: Callable[[], Awaitable[float]], stopping: asyncio.Event) -> None:
    """Call `act` until the worker stops, whatever it raises. It returns the seconds until its next call."""
    once = LogOnce(log)
    while not stopping.is_set():
        wait = POLL_INTERVAL
        try:
            wait = await act()
            once.reset()
        except psycopg.Error as error:
            once.warn(
                "poll_failed",
                f"the database refuses or is away ({summary(error)}); polling again",
                error=summary(error),
            )
            wait = POLL_INTERVAL_AFTER_ERROR
        except Exception:
            log.exception("a poll failed; polling again", extra={"event": "poll_broke"})
        await wait_for(stopping, wait)


async def wait_for(stopping: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until the worker stops."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()


async def poll(process: Process) -> float:
    """Claim without a wake-up; return the seconds until the next poll: one, or until something is due before that."""
    began = monotonic()
    due_in = await process.store.next_due_in()  # asked first: what falls due meanwhile is not missed
    wait = POLL_INTERVAL if due_in is None else min(POLL_INTERVAL, max(due_in, MIN_POLL_INTERVAL))
    finished = await process.pipeline.drain(within=wait)
    return max(MIN_POLL_INTERVAL, wait - (monotonic() - began)) if finished else MIN_POLL_INTERVAL


async def create_partitions(process: Process) -> float:
    """Keep the history's partitions three months ahead; return the seconds until the next check."""
    await process.store.create_partitions()
    return PARTITIONS_INTERVAL


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
