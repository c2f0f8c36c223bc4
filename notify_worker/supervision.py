"""The supervised run, `notify-worker worker`: procrastinate's worker kept up, a look each second, the rescue, the stop."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from time import monotonic

import psycopg

from notify_worker.complaint import Complaint
from notify_worker.connector import A_SHARED_SESSION, Process
from notify_worker.errors import DatabaseUnavailable, SchemaIsOlder
from notify_worker.session import in_brief
from notify_worker.worker import app

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks without a bell, at most."""
LOOK_AFTER_AN_ERROR = 0.2
"""Seconds between two looks while the database is away."""
PARTITIONS_EVERY = 3600.0
"""Seconds between two looks whether the history has its partitions."""
SOONEST = 0.01
"""Seconds between two looks, at least."""
STOP_WITHIN = 24.0
"""Seconds in which a worker that stops has left; platforms kill after 30."""
RESTART_AFTER = 0.5
"""Seconds after which procrastinate's worker, which stops when its database stumbles, is started again."""
RESTART_WITHIN = 6.0
"""Seconds in which it has to end before that; what hangs on a silent network is left behind."""
LISTEN_AGAIN_EVERY = 5.0
"""Seconds between two checks that this process hears."""
DATABASE_WITHIN = 15.0
"""Seconds that a worker which starts waits for its database."""
MIGRATED_AGAIN_AFTER = 2.0
"""Seconds between two looks whether the schema has been migrated."""


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
    """Run procrastinate's worker, started again when it stops, a look each second, and the rescue of the dead.

    Return whether all was recorded.
    """
    app.connector.may_be_shared = True
    async with contextlib.AsyncExitStack() as opened:
        await open_app(opened, stopping)
        if stopping.is_set():
            return True
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        looking = asyncio.create_task(again_and_again(partial(look, process), stopping))
        beside = [
            asyncio.create_task(way)
            for way in (
                process.pipeline.projects.warm_up(),
                run_procrastinate(process, stopping),
                again_and_again(partial(see_after_the_dead, process), stopping),
                again_and_again(partial(keep_partitions, process), stopping),
            )
        ]
        await stopping.wait()
        log.info("stopping: no new claim; what is in flight ends and is recorded")
        for task in beside:
            task.cancel()
        # The look is not cancelled: a claim that is under way would be lost with its answer. It sees that the worker stops.
        await asyncio.gather(looking, *beside, return_exceptions=True)
    return not process.pipeline.shutdown.unfinished


async def run_until_nothing_is_due() -> bool:
    """Drain once, without procrastinate, and leave. Return whether all was recorded."""
    stopping = asyncio.Event()
    async with app.open_async(), stopped_by_signals(stopping):
        process = await app.connector.process()
        await process.pipeline.projects.open_senders()
        await process.pipeline.drain()
    return not process.pipeline.shutdown.unfinished


async def open_app(opened: contextlib.AsyncExitStack, stopping: asyncio.Event) -> None:
    """Open the app, for `opened` to close. Wait while the schema is older: a deploy may start workers before it migrates.

    And a little while the database is away: it may be failing over. Raises DatabaseUnavailable, SchemaMismatch.
    """
    complaint = Complaint(log)
    patience = monotonic() + DATABASE_WITHIN
    while not stopping.is_set():
        try:
            await opened.enter_async_context(app.open_async())
        except (SchemaIsOlder, DatabaseUnavailable) as error:
            if isinstance(error, DatabaseUnavailable) and monotonic() > patience:
                raise
            complaint.say(f"waiting: {error}")
        else:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MIGRATED_AGAIN_AFTER):
                await stopping.wait()


async def run_procrastinate(process: Process, stopping: asyncio.Event) -> None:
    """Run procrastinate's worker; where it returns, breaks or no longer hears, which it may do silently, start it again."""
    if app.connector.shared:
        log.warning(
            "%s: this worker can't listen, nor hold the lock that shows that it lives. It finds commits by its look, within "
            "a second, and what it holds when it dies moves after half a lease.",
            A_SHARED_SESSION,
        )
        return
    complaint = Complaint(log)
    while not stopping.is_set():
        running = asyncio.create_task(app.run_worker_async(install_signal_handlers=False), name="procrastinate")
        running.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # whoever left it behind does not ask
        try:
            await until_it_ends_or_is_deaf(running, process, complaint, stopping)
        finally:
            running.cancel()
            await asyncio.wait({running}, timeout=RESTART_WITHIN)
        error = running.exception() if running.done() and not running.cancelled() else None
        why = f"has broken ({in_brief(error.__cause__ or error)})" if error else "has stopped, or is deaf"
        complaint.say(f"procrastinate's worker {why}; it is started again")
        await asyncio.sleep(RESTART_AFTER)


async def until_it_ends_or_is_deaf(
    running: "asyncio.Task[None]", process: Process, complaint: Complaint, stopping: asyncio.Event
) -> None:
    """Return when procrastinate's worker has ended, or hears nothing: asked every 5 s, and after a lost session.

    And when this one stops: whoever is cancelled in the middle of a statement may meet an error of the database instead.
    """
    while not running.done() and not stopping.is_set():
        process.liveness.entered.clear()
        entered = asyncio.create_task(process.liveness.entered.wait())
        await asyncio.wait({running, entered}, timeout=LISTEN_AGAIN_EVERY, return_when=asyncio.FIRST_COMPLETED)
        entered.cancel()
        try:
            if running.done() or not await app.connector.ears.hear(process.store):
                return
            complaint.over()
        except psycopg.Error:
            continue  # the database is away: the next look will tell
        except Exception:
            log.exception("nobody can say whether procrastinate's worker hears")


async def again_and_again(what: Callable[[], Awaitable[float]], stopping: asyncio.Event) -> None:
    """Do something, whatever happens, until the worker stops; `what` returns the seconds to wait before the next time."""
    complaint = Complaint(log)
    while not stopping.is_set():
        wait = LOOK_EVERY
        try:
            wait = await what()
            complaint.over()
        except psycopg.Error as error:
            complaint.say(f"the database refuses or is away ({in_brief(error)}); looking again")
            wait = LOOK_AFTER_AN_ERROR
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


async def keep_partitions(process: Process) -> float:
    """Keep the history's partitions three months ahead; look again in an hour."""
    await process.store.keep_partitions()
    return PARTITIONS_EVERY


async def see_after_the_dead(process: Process) -> float:
    """Put back in line what dead workers held, and ring for it; look again in a second."""
    await process.rescue.run_and_ring()
    return LOOK_EVERY


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
