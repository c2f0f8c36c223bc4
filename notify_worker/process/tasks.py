"""The procrastinate app and its tasks: drain, requeue_orphans, retry, prune.

Nothing is connected when this is imported: the environment is read when the app opens.
"""

import asyncio

from notify_worker.process.connector import App, Connector, RetryImmediately

QUEUE = "notify_worker"
"""A name of our own: procrastinate's channels belong to the database, and a host's jobs must not meet ours."""
A_JOB_LASTS = 5.0
"""Seconds after which `drain` returns and rings again: a job stays short, so a stop does."""

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
    """Claim, render, send and record until nothing is due; after five seconds, ring for the rest."""
    process = await app.connector.process()
    try:
        finished = await process.pipeline.drain(within=A_JOB_LASTS)
    except asyncio.CancelledError:  # the job goes back; where the worker stops, what is in flight ends first
        if process.pipeline.shutdown.stopping.is_set():
            await process.pipeline.shutdown.finish()
        raise
    if not finished:
        await process.store.wake_worker()


@app.periodic(cron="* * * * * */2")
@app.task(name="notify_worker.requeue_orphans", queue=QUEUE, priority=1, retry=RetryImmediately())
async def requeue_orphans(timestamp: int | None = None) -> None:
    """Make due again what dead workers held, and wake a worker for what is due and has lost its wake-up."""
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


@app.task(name="notify_worker.prune", queue=QUEUE, retry=RetryImmediately())
async def prune(older_than: str) -> int:
    """Delete what settled longer ago than an interval such as "90 days"; returns how many notifications."""
    return await (await app.connector.process()).store.prune(older_than)
