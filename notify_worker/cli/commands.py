"""The verbs that run something: the demo, the development environment, the migration, a worker, the sandbox."""

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
    """Show all features on an embedded PostgreSQL and a local FCM.

    Takes less than 30 seconds.
    """
    from notify_worker.dev import demo as story  # noqa: PLC0415

    configure_logging(ctx, logging.ERROR)
    with TemporaryDirectory(prefix="notify-worker-demo-") as home:
        return EXIT_OK if story.run(Path(home), tell=print_now) else EXIT_FAILED


@click.command(cls=Verb, example="notify-worker dev")
@click.pass_context
def dev(ctx: click.Context) -> None:
    """Run a PostgreSQL, a local FCM and a worker for development, until Ctrl-C.

    Prints the commands to type in another terminal.
    """
    from notify_worker.dev import demo as story  # noqa: PLC0415

    configure_logging(ctx, logging.ERROR)
    stopped = stopped_by_signal()
    story.stay_up(Settings.from_env().home, tell=print_now, until=stopped.wait)


@click.command(cls=Verb, example="notify-worker migrate --sql | psql -v ON_ERROR_STOP=1 -d shop")
@click.option("--sql", is_flag=True, help="Print the SQL for psql instead of running it.")
def migrate(*, sql: bool) -> None:
    """Migrate the schema in the database to this release's version."""
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
    """Send notifications as they become due, until SIGTERM."""
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
@click.option("--latency", type=float, metavar="SECONDS", help="How long to wait before each answer.")
@click.option("--quota", type=float, metavar="NUMBER", help="How many messages a second each project may send.")
@click.option("--token-lifetime", type=int, metavar="SECONDS", help="How long access tokens are valid.")
@click.option(
    "--fail",
    type=FaultRate(),
    multiple=True,
    metavar="FAULT=RATE",
    help="The probability of a fault, for example 503=0.1 or dead=0.02. POST /switch changes it.",
)
@click.option(
    "--credentials",
    type=click.Path(path_type=Path),
    default=Path("sandbox.json"),
    show_default=True,
    metavar="FILE",
    help="Where to write the service-account file that clients use.",
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
    """Run a local FCM that can simulate faults.

    Serves the token endpoint and messages:send, and prints a line for each notification that a phone would show.
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
    """Log records of this level and above; with `-v`, all."""
    logs.configure(Settings.from_env().log_format, logging.DEBUG if is_verbose(ctx) else level)


def stopped_by_signal() -> Event:
    """Return an event that SIGINT and SIGTERM set. Handlers, since child processes would inherit blocked signals."""
    stopped = Event()
    for name in (SIGINT, SIGTERM):
        signal(name, lambda *_: stopped.set())
    return stopped
