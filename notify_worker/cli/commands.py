"""The verbs that run parts of the product: the demo, a sandbox, the migration, a worker."""

import logging
import sys
from functools import partial
from pathlib import Path
from shlex import quote
from signal import SIGINT, SIGTERM, signal
from tempfile import TemporaryDirectory
from threading import Event

import click

from notify_worker.cli import logs
from notify_worker.cli.verb import EXIT_FAILED, EXIT_OK, FaultRate, Verb, is_verbose
from notify_worker.settings import Settings

SANDBOX_PORT = 8787

print_now = partial(print, flush=True)


@click.command(cls=Verb, example="notify-worker demo")
@click.pass_context
def demo(ctx: click.Context) -> int:
    """Show all of it on an embedded PostgreSQL and a local FCM.

    The demo ends by itself, in less than 30 seconds.
    """
    from notify_worker.dev import demo as story  # noqa: PLC0415

    configure_logging(ctx, logging.ERROR)
    with TemporaryDirectory(prefix="notify-worker-demo-") as home:
        return EXIT_OK if story.run(Path(home), tell=print_now) else EXIT_FAILED


@click.command(cls=Verb, example="notify-worker dev")
@click.pass_context
def dev(ctx: click.Context) -> None:
    """Keep a PostgreSQL, a local FCM and a worker up for development.

    It prints the commands to type into another terminal. Ctrl-C ends it.
    """
    from notify_worker.dev import demo as story  # noqa: PLC0415

    configure_logging(ctx, logging.ERROR)
    stopped = stopped_by_signal()
    story.stay_up(Settings.from_env().home, tell=print_now, until=stopped.wait)


@click.command(cls=Verb, example="notify-worker migrate --sql | psql -v ON_ERROR_STOP=1 -d shop")
@click.option("--sql", is_flag=True, help="Print the SQL for psql, and change nothing.")
def migrate(*, sql: bool) -> None:
    """Bring the schema in the database to this release's version."""
    from notify_worker.database import schema  # noqa: PLC0415

    if sql:
        schema.print_sql(sys.stdout)
        return
    version = schema.migrate(Settings.from_env().database_url)
    print(f"the schema notify_worker has version {version}")


@click.command(cls=Verb, example="notify-worker worker --drain")
@click.option("--drain", is_flag=True, help="Exit when nothing is due.")
@click.pass_context
def worker(ctx: click.Context, *, drain: bool) -> int:
    """Send what is due, woken by commits, until SIGTERM."""
    import asyncio  # noqa: PLC0415

    from notify_worker.process import supervisor  # noqa: PLC0415

    configure_logging(ctx, logging.INFO)
    all_recorded = asyncio.run(supervisor.run_until_nothing_is_due() if drain else supervisor.run())
    return EXIT_OK if all_recorded else EXIT_FAILED


@click.command(cls=Verb, example="notify-worker sandbox --latency 0.2 --fail 503=0.1 --fail dead=0.02")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=SANDBOX_PORT, show_default=True, help="0 takes any free port."
)
@click.option("--latency", type=float, metavar="SECONDS", help="How long each answer takes.")
@click.option("--quota", type=float, metavar="NUMBER", help="How many messages it accepts in a second.")
@click.option("--token-lifetime", type=int, metavar="SECONDS", help="How long a bearer token is valid.")
@click.option(
    "--fail",
    type=FaultRate(),
    multiple=True,
    metavar="FAULT=RATE",
    help="How often a fault occurs, such as 503=0.1 or dead=0.02. GET and POST /switch show and change it.",
)
@click.option(
    "--credentials",
    type=click.Path(path_type=Path),
    default=Path("sandbox.json"),
    show_default=True,
    metavar="FILE",
    help="Where to write the service-account file that it accepts.",
)
def sandbox(
    *,
    host: str,
    port: int,
    latency: float | None,
    quota: float | None,
    token_lifetime: int | None,
    fail: tuple[tuple[str, float], ...],
    credentials: Path,
) -> None:
    """Run a local FCM, with faults by address, by rate and by switch.

    It serves a token endpoint and messages:send, and prints one line for each notification that a phone would show.
    """
    from notify_worker.sandbox import start  # noqa: PLC0415

    stopped = stopped_by_signal()
    with start(
        credentials, host=host, port=port, on_show=print_now,
        latency=latency, quota=quota, token_lifetime=token_lifetime, fail=dict(fail),
    ) as box:  # fmt: skip
        print_now(
            f"a local FCM at {box.url}\n"
            f"export NOTIFY_WORKER_FCM_URL={box.url} "
            f"GOOGLE_APPLICATION_CREDENTIALS={quote(str(box.credentials.absolute()))}"
        )
        stopped.wait()


VERBS = (demo, dev, migrate, worker, sandbox)


def configure_logging(ctx: click.Context, level: int) -> None:
    """Log from this level on, and everything with `-v`."""
    logs.configure(Settings.from_env().log_format, logging.DEBUG if is_verbose(ctx) else level)


def stopped_by_signal() -> Event:
    """Return an event that SIGINT and SIGTERM set. (Blocked signals would stay blocked in workers that are started.)"""
    stopped = Event()
    for name in (SIGINT, SIGTERM):
        signal(name, lambda *_: stopped.set())
    return stopped
