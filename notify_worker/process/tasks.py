"""The procrastinate app and its tasks: drain, requeue_orphans, retry, prune.

Nothing is connected when this is imported: the environment is read when the app opens.
"""

import asyncio

from notify_worker.process.connector import App, Connector, RetryImmediately

QUEUE = "notify_worker"
"""Not procrastinate's default: its channels are those of the database, and a host application may use procrastinate, too."""
DRAIN_WITHIN = 5.0
"""Seconds after which `drain` returns and defers another wake-up: short jobs make a short stop."""

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


@app.task(name="notify_worker.drain", queue=QUEUE, retry=RetryImmediately())
async def drain() -> None:
    """Claim, render, send and record until nothing is due; after five seconds, wake a worker for the rest."""
    process = await app.connector.process()
    try:
        await process.pipeline.projects.read(force=True)  # the commit that woke this worker may have made a project
        finished = await process.pipeline.drain(within=DRAIN_WITHIN)
    except asyncio.CancelledError:  # the job is requeued; if the worker stops, deliveries in flight end first
        if process.pipeline.stopping.is_set():
            await process.pipeline.finish()
        raise
    if not finished:
        await process.store.wake_worker()


@app.periodic(cron="* * * * * */2")
@app.task(name="notify_worker.requeue_orphans", queue=QUEUE, priority=1, retry=RetryImmediately())
async def requeue_orphans(timestamp: int | None = None) -> None:
    """Make the notifications of dead workers due again, and wake a worker if any are due without a wake-up."""
    process = await app.connector.process()
    await process.rescuer.rescue()
    await process.store.clear_stalled_jobs()
    if await process.store.has_due():
        await process.store.wake_worker()
    if timestamp is None or timestamp % 3600 == 0:
        await process.store.create_partitions()


@app.task(name="notify_worker.retry", queue=QUEUE, retry=RetryImmediately())
async def retry(
    notification_id: int | None = None,
    event_id: str | None = None,
    delivery_id: int | None = None,
    project: str | None = None,
    since: str | None = None,
) -> int:
    """Retry a notification, by its id or event, or a delivery, or all dead letters of a project since a time.

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


@app.task(name="notify_worker.prune", queue=QUEUE, retry=RetryImmediately())
async def prune(older_than: str) -> int:
    """Delete notifications settled longer ago than an interval such as "90 days"; return how many."""
    return await (await app.connector.process()).store.prune(older_than)
