"""Runs `notify-worker worker`: restarts procrastinate's worker, polls each second, and stops on a signal."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from time import monotonic
from typing import NoReturn

import psycopg

from notify_worker.database.connections import summary
from notify_worker.errors import DatabaseUnavailable, SchemaIsOlder
from notify_worker.log_once import LogOnce
from notify_worker.pipeline.slots import wait_for
from notify_worker.process.connector import TRANSACTION_POOLED, Process
from notify_worker.process.tasks import app

log = logging.getLogger(__name__)

POLL_INTERVAL = 1.0
"""Seconds between two polls, at most."""
MIN_POLL_INTERVAL = 0.01
"""Seconds between two polls, at least."""
POLL_INTERVAL_AFTER_ERROR = 0.2
"""Seconds between two polls while the database is away."""
PARTITIONS_INTERVAL = 3600.0
"""Seconds between two checks that the history has its partitions."""
STOP_WITHIN = 24.0
"""Seconds after a signal in which the process exits; platforms kill after 30."""
RESTART_DELAY = 0.5
"""Seconds before procrastinate's worker, which ends on a database error, is started again."""
CANCEL_WITHIN = 6.0
"""Seconds in which its tasks have to end before that; tasks that hang on a silent network are abandoned."""
LISTEN_CHECK_INTERVAL = 5.0
"""Seconds between two checks that this process receives NOTIFY."""
DATABASE_WITHIN = 15.0
"""Seconds for which a worker that starts waits for its database."""
OPEN_INTERVAL = 2.0
"""Seconds between two tries to open the app."""


async def run() -> bool:
    """Run a worker until SIGTERM or SIGINT, and then for at most 24 s, even while the database is away.

    Returns whether everything was recorded. Raises CredentialsError if no project's credentials can be used.
    """
    stopping = asyncio.Event()
    async with stop_on_signals(stopping):
        serving = asyncio.create_task(serve(stopping))
        serving.add_done_callback(lambda _: stopping.set())
        await stopping.wait()
        leave_at = monotonic() + STOP_WITHIN
        await asyncio.wait({serving}, timeout=STOP_WITHIN)
        if not serving.done():
            log.error(
                "did not stop in %g s; other workers rescue the rest", STOP_WITHIN, extra={"event": "stop_timed_out"}
            )
            leave(1)
        recorded = await serving
        if not await end_tasks_left_behind(leave_at - monotonic()):
            leave(0 if recorded else 1)
        return recorded


async def end_tasks_left_behind(within: float) -> bool:
    """Cancel what still runs, such as a procrastinate worker on a silent network. Return whether all of it ended in time."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    return not left or not (await asyncio.wait(left, timeout=max(0.0, within)))[1]


def leave(code: int) -> NoReturn:
    """End the process as if it were killed: a clean exit would wait for what hangs."""
    logging.shutdown()
    os._exit(code)


async def serve(stopping: asyncio.Event) -> bool:
    """Keep procrastinate's worker running and poll each second, until `stopping`. Return whether everything was recorded."""
    app.connector.allows_transaction_pooled = True
    async with contextlib.AsyncExitStack() as opened:
        await open_app(opened, stopping)
        if stopping.is_set():
            return True
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        polling = asyncio.create_task(run_every("poll", partial(poll, process), stopping))
        cancelled = [
            asyncio.create_task(each)
            for each in (
                process.pipeline.projects.warm_up(),
                run_procrastinate(process, stopping),
                run_every("create_partitions", partial(create_partitions, process), stopping),
            )
        ]
        await stopping.wait()
        log.info(
            "stopping: no new claims; deliveries in flight end and are recorded", extra={"event": "worker_stopping"}
        )
        for task in cancelled:
            task.cancel()
        # The poll ends by itself. If it were cancelled during a claim, the claimed deliveries would be lost.
        await asyncio.gather(polling, *cancelled, return_exceptions=True)
    return not process.pipeline.unfinished


async def run_until_nothing_is_due() -> bool:
    """Drain once, without procrastinate. Return whether everything was recorded."""
    stopping = asyncio.Event()
    async with app.open_async(), stop_on_signals(stopping):
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        await process.pipeline.drain()
    return not process.pipeline.unfinished


async def open_app(opened: contextlib.AsyncExitStack, stopping: asyncio.Event) -> None:
    """Open the app, for `opened` to close. Raises DatabaseUnavailable, SchemaMismatch.

    Waits while the schema is older, since a deploy may start workers before it migrates. Waits up to 15 s while the
    database is away, since it may be failing over.
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
        await wait_for(stopping, OPEN_INTERVAL)


async def run_procrastinate(process: Process, stopping: asyncio.Event) -> None:
    """Run procrastinate's worker. Start it again when it returns, breaks or no longer receives NOTIFY."""
    if app.connector.transaction_pooled:
        log.warning(
            "%s, so this worker can't LISTEN or hold an advisory lock. It finds new notifications by polling, within a "
            "second; if it dies, its deliveries are due again after half a lease.",
            TRANSACTION_POOLED,
            extra={"event": "transaction_pooled"},
        )
        return
    once = LogOnce(log)
    while not stopping.is_set():
        running = asyncio.create_task(app.run_worker_async(install_signal_handlers=False), name="procrastinate")
        running.add_done_callback(lambda task: task.cancelled() or task.exception())  # fetch what nobody may await
        try:
            await wait_until_stopped_or_deaf(running, process, once, stopping)
        finally:
            running.cancel()
            await asyncio.wait({running}, timeout=CANCEL_WITHIN)
        error = running.exception() if running.done() and not running.cancelled() else None
        reason = f"failed ({summary(error.__cause__ or error)})" if error else "stopped, or received no NOTIFY"
        once.warn("procrastinate_restarted", f"procrastinate's worker {reason}; restarting it", reason=reason)
        await asyncio.sleep(RESTART_DELAY)


async def wait_until_stopped_or_deaf(
    running: "asyncio.Task[None]", process: Process, once: LogOnce, stopping: asyncio.Event
) -> None:
    """Return when procrastinate's worker has ended, receives no NOTIFY, or the process stops.

    LISTEN is checked every 5 s, and after a lost session. `stopping` is checked, too: a task that is cancelled during a
    statement may raise a database error instead.
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
            continue  # the database is away, which says nothing about LISTEN
        except Exception:
            log.exception("LISTEN check failed", extra={"event": "listen_check_failed"})


async def run_every(name: str, act: Callable[[], Awaitable[float]], stopping: asyncio.Event) -> None:
    """Call `act`, which returns the seconds until its next call, until the worker stops. Log whatever it raises."""
    once = LogOnce(log)
    while not stopping.is_set():
        wait = POLL_INTERVAL
        try:
            wait = await act()
            once.reset()
        except psycopg.Error as error:
            once.warn(
                f"{name}_failed",
                f"{name} failed, the database is away or refuses: {summary(error)}",
                error=summary(error),
            )
            wait = POLL_INTERVAL_AFTER_ERROR
        except Exception:
            log.exception("%s broke; retrying", name, extra={"event": f"{name}_broke"})
        await wait_for(stopping, wait)


async def poll(process: Process) -> float:
    """Drain without a wake-up. Return the seconds until the next poll: one, or fewer if a notification is due earlier."""
    began = monotonic()
    due_in = await process.store.next_due_in()  # read first, so that nothing that becomes due meanwhile is missed
    wait = POLL_INTERVAL if due_in is None else min(POLL_INTERVAL, max(due_in, MIN_POLL_INTERVAL))
    finished = await process.pipeline.drain(within=wait)
    return max(MIN_POLL_INTERVAL, wait - (monotonic() - began)) if finished else MIN_POLL_INTERVAL


async def create_partitions(process: Process) -> float:
    """Keep the history's partitions three months ahead; return the seconds until the next check."""
    await process.store.create_partitions()
    return PARTITIONS_INTERVAL


@contextlib.asynccontextmanager
async def stop_on_signals(stopping: asyncio.Event) -> AsyncIterator[None]:
    """Let the first SIGTERM or SIGINT stop the worker gracefully; a second one ends it at once."""
    loop = asyncio.get_running_loop()

    def restore() -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)

    def stop() -> None:
        stopping.set()
        app.connector.stop()
        restore()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        restore()
