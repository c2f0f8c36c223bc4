"""The command line: `notify-worker VERB`. Exit 0: well. 1: something failed. 2: asked wrongly, or nothing to work with."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from signal import SIGINT, SIGTERM, signal
from tempfile import TemporaryDirectory
from threading import Event

import psycopg

from notify_worker import schema, supervision, verbs
from notify_worker.dev import demo
from notify_worker.errors import NotifyWorkerError
from notify_worker.model import ADDRESS_KINDS
from notify_worker.sandbox import start as start_sandbox
from notify_worker.settings import Settings

WELL, FAILED, ASKED_WRONGLY = 0, 1, 2
SANDBOX_PORT = 8787


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb, and leave with its exit code. An error is one message, without a traceback unless -v asks for it."""
    options = parser().parse_args(arguments)
    try:
        Settings.from_env()  # a variable that is not ours is an error of every verb
        code = options.verb(options)
    except (NotifyWorkerError, psycopg.Error) as error:
        if options.verbose:
            logging.getLogger(__name__).exception("%s failed", options.verb.__name__)
        print(f"notify-worker: {in_words(error)}", file=sys.stderr)
        code = ASKED_WRONGLY
    except UnicodeEncodeError:
        print("notify-worker: an argument is not UTF-8", file=sys.stderr)
        code = ASKED_WRONGLY
    except BrokenPipeError:  # whoever read this has read enough; what is still in the buffer has nowhere to go
        sys.stdout = None
        code = FAILED
    except KeyboardInterrupt:
        code = FAILED
    sys.exit(code)


def in_words(error: NotifyWorkerError | psycopg.Error) -> str:
    """Say what is wrong; of what the database said its message and its hint, never its DETAIL, which may hold an address."""
    if isinstance(error, NotifyWorkerError):
        return str(error)
    primary = error.diag.message_primary or str(error).partition("\n")[0]
    return f"{primary}. {error.diag.message_hint}" if error.diag.message_hint else primary


def parser() -> argparse.ArgumentParser:
    """Describe the verbs."""
    top = argparse.ArgumentParser(
        prog="notify-worker", description="Push notifications out of your Postgres transaction."
    )
    top.add_argument("-v", "--verbose", action="store_true", help="log more, and show where an error came from")
    known = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(function: Callable[[argparse.Namespace], int], name: str) -> argparse.ArgumentParser:
        what = (function.__doc__ or "").partition("\n")[0]
        added = known.add_parser(name, help=what, description=function.__doc__)
        added.set_defaults(verb=function)
        return added

    def about_one(added: argparse.ArgumentParser, *, nargs: str | None = None) -> argparse.ArgumentParser:
        added.add_argument("notification", nargs=nargs, help="an event_id, or the number of a notification")
        return added

    verb(run_demo, "demo")
    verb(dev, "dev")
    verb(migrate, "migrate").add_argument(
        "--sql", action="store_true", help="print the SQL for psql, and change nothing"
    )
    verb(work, "worker").add_argument("--drain", action="store_true", help="leave when nothing is due")
    describe_sandbox(verb(sandbox, "sandbox"))
    describe_send(verb(verbs.send, "send"))
    verb(verbs.status, "status").add_argument("--json", action="store_true", help="print one object")
    about_one(verb(verbs.explain, "explain"))
    describe_history(verb(verbs.history, "history"))
    describe_retry(about_one(verb(verbs.retry, "retry"), nargs="?"))
    about_one(verb(verbs.cancel, "cancel"))
    describe_pause(verb(verbs.pause, "pause"))
    verb(verbs.resume, "resume").add_argument("project")
    verb(verbs.prune, "prune").add_argument("--older-than", required=True, metavar="INTERVAL", help='such as "90 days"')
    return top


def describe_history(history: argparse.ArgumentParser) -> None:
    """Describe the options of `history`."""
    history.add_argument("receiver", help="the application's user id")
    history.add_argument("--since", default="-infinity", metavar="TIME", help="such as 2027-01-02, or yesterday")


def describe_retry(retry: argparse.ArgumentParser) -> None:
    """Describe the options of `retry`."""
    retry.add_argument("--delivery", type=int, metavar="NUMBER", help="this one alone")
    retry.add_argument("--project", help="all dead letters of a project, with --since")
    retry.add_argument("--since", default="-infinity", metavar="TIME", help="such as 2027-01-02 09:00, or yesterday")


def describe_pause(pause: argparse.ArgumentParser) -> None:
    """Describe the options of `pause`."""
    pause.add_argument("project")
    pause.add_argument("because", help="why; whoever asks about its notifications will read it")


def describe_sandbox(sandbox: argparse.ArgumentParser) -> None:
    """Describe the options of `sandbox`."""
    sandbox.add_argument("--host", default="127.0.0.1")
    sandbox.add_argument("--port", type=port, default=SANDBOX_PORT)
    sandbox.add_argument("--latency", type=float, metavar="SECONDS", help="how long each answer takes")
    sandbox.add_argument("--quota", type=float, metavar="NUMBER", help="how many messages a second it takes")
    sandbox.add_argument("--token-lifetime", type=int, metavar="SECONDS", help="how long a bearer is good for")
    sandbox.add_argument(
        "--fail",
        type=rate,
        action="append",
        default=[],
        metavar="FAULT=RATE",
        help="how often what goes wrong, such as 503=0.1 or dead=0.02; GET and POST /switch show and change it",
    )
    sandbox.add_argument(
        "--credentials", type=Path, default=Path("sandbox.json"), metavar="FILE",
        help="where to write the service-account file that it accepts (default: %(default)s)",
    )  # fmt: skip


def describe_send(send: argparse.ArgumentParser) -> None:
    """Describe the options of `send`: who, and what."""
    who = send.add_mutually_exclusive_group(required=True)
    who.add_argument("--receiver", metavar="ID", help="the application's user id: all live devices")
    for kind in ADDRESS_KINDS:
        who.add_argument(f"--{kind}", metavar="ADDRESS")
    for name in ("event-id", "campaign", "title", "body", "image", "priority", "project"):
        send.add_argument(f"--{name}")
    for name in ("param", "data"):
        send.add_argument(f"--{name}", action="append", default=[], metavar="NAME=VALUE", type=pair)
    send.add_argument("--wait", action="store_true", help="wait until it is settled, and say what happened")


def port(text: str) -> int:
    """Read the number of a port; 0 is any free one."""
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < 65536):
        raise argparse.ArgumentTypeError(f'"{text}" is no port from 0 to 65535')
    return int(text)


def pair(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=VALUE')
    return name, value


def rate(text: str) -> tuple[str, float]:
    """Read FAULT=RATE."""
    name, likelihood = pair(text)
    try:
        return name, float(likelihood)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{likelihood}" is no rate from 0 to 1') from None


def run_demo(options: argparse.Namespace) -> int:
    """Show all of it on an embedded PostgreSQL and a local FCM; ends by itself, in less than 30 seconds."""
    configure_logging(Settings(), logging.DEBUG if options.verbose else logging.ERROR)
    with TemporaryDirectory(prefix="notify-worker-demo-") as home:
        return WELL if demo.run(Path(home), tell=lambda line: print(line, flush=True)) else FAILED


def dev(options: argparse.Namespace) -> int:
    """The same parts as the demo, which stay up: type what it prints into another terminal; Ctrl-C ends it."""
    settings = Settings.from_env()
    configure_logging(settings, logging.DEBUG if options.verbose else logging.ERROR)
    told = told_to_stop()
    demo.stay_up(settings.home, tell=lambda line: print(line, flush=True), until=told.wait)
    return WELL


def told_to_stop() -> Event:
    """Return what SIGINT and SIGTERM set from now on. (Blocked signals would stay blocked in workers that are started.)"""
    told = Event()
    for name in (SIGINT, SIGTERM):
        signal(name, lambda *_: told.set())
    return told


def migrate(options: argparse.Namespace) -> int:
    """Bring the schema in the database to this release's version."""
    if options.sql:
        schema.print_sql(sys.stdout)
        return WELL
    version = schema.migrate(Settings.from_env().database_url)
    print(f"the schema notify_worker has version {version}")
    return WELL


def work(options: argparse.Namespace) -> int:
    """Send what is due, woken by commits, until SIGTERM."""
    settings = Settings.from_env()
    configure_logging(settings, logging.DEBUG if options.verbose else logging.INFO)
    all_recorded = asyncio.run(supervision.run_until_nothing_is_due() if options.drain else supervision.run())
    return WELL if all_recorded else FAILED


def sandbox(options: argparse.Namespace) -> int:
    """Be a local FCM: a token endpoint, messages:send, faults by address, a line for each thing a phone would show."""
    told = told_to_stop()
    with start_sandbox(
        options.credentials, host=options.host, port=options.port, on_show=lambda shown: print(shown, flush=True),
        latency=options.latency, quota=options.quota, token_lifetime=options.token_lifetime, fail=dict(options.fail),
    ) as box:  # fmt: skip
        print(
            f"a local FCM at {box.url}\n"
            f"export NOTIFY_WORKER_FCM_URL={box.url} "
            f"GOOGLE_APPLICATION_CREDENTIALS={quote(str(box.credentials.absolute()))}",
            flush=True,
        )
        told.wait()
    return WELL


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write time, level, logger, text, and a traceback where there is one."""
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(settings: Settings, level: int) -> None:
    """Log to stderr. procrastinate tells of every job, and one comes every two seconds: only its warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter() if settings.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )  # fmt: skip
    if level > logging.DEBUG:
        handler.addFilter(without_procrastinates_tracebacks)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("procrastinate", "psycopg", "httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING) if level > logging.DEBUG else logging.INFO)
    if level > logging.DEBUG:
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each try to connect, while the database is away


def without_procrastinates_tracebacks(record: logging.LogRecord) -> bool:
    """Leave out where procrastinate stumbled over a database that is away: it is started again, and that is said."""
    if record.name.startswith("procrastinate"):
        record.exc_info = record.exc_text = None
    return True
