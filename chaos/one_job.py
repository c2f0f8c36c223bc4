"""One procrastinate job per push, as procrastinate's documentation shows: the system that we compare with.

A task that posts to FCM, a retry strategy, and the periodic task that the documentation gives for stalled jobs. It runs
each minute here, and not every ten: that is to its advantage.
"""

import os
from collections.abc import Iterable
from typing import Any

import google.auth.transport.requests
import httpx
from google.oauth2 import service_account
from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
TIMEOUT = 2.0

app = App(connector=PsycopgConnector(conninfo=os.environ.get("ONE_JOB_DATABASE_URL", "")))
client = httpx.AsyncClient(timeout=TIMEOUT)
credentials: Any = None


def bearer() -> str:
    """Return a bearer token; google-auth fetches another one when it is about to expire."""
    global credentials  # noqa: PLW0603
    if credentials is None:
        credentials = service_account.Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"], scopes=[SCOPE]
        )
    if not credentials.valid:
        credentials.refresh(google.auth.transport.requests.Request())
    return str(credentials.token)


@app.task(
    name="push",
    queue="push",
    retry=RetryStrategy(max_attempts=10, wait=1, linear_wait=1, retry_exceptions=[httpx.HTTPError]),
)
async def push(event: str, address: str) -> None:
    """Post one message."""
    message = {"token": address, "notification": {"title": "Thank you"}, "data": {"event": event}}
    answer = await client.post(
        f"{os.environ['ONE_JOB_FCM_URL']}/v1/projects/sandbox/messages:send",
        headers={"Authorization": f"Bearer {bearer()}"},
        json={"message": message},
    )
    answer.raise_for_status()


@app.periodic(cron="* * * * *")
@app.task(name="retry_stalled_jobs", queue="push", queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:
    """Requeue stalled jobs."""
    stalled: Iterable[Any] = await app.job_manager.get_stalled_jobs()
    for job in stalled:
        await app.job_manager.retry_job(job)
