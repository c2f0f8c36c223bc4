"""What a process logs on stderr, and how a line looks: text for people, or one JSON object a line for machines.

Every record of ours carries the name of an event, and fields, in `extra`.
"""

import logging
import sys
import time
from types import TracebackType

QUIETER = ("procrastinate", "psycopg", "httpx", "httpcore", "asyncio")
"""Loggers of libraries: procrastinate alone logs every job, and one comes every two seconds."""

log = logging.getLogger(__name__)


class TextFormatter(logging.Formatter):
    """`2026-11-30 21:00:00,000+00:00 WARNING event=rescue_failed rescue failed: …`, in UTC.

    A record without an event has the name of its logger in that place.
    """

    converter = staticmethod(time.gmtime)

    def usesTime(self) -> bool:  # noqa: N802  logging's name
        """Every line begins with the time."""
        return True

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Write the line, without the traceback, which `format` appends."""
        event = getattr(record, "event", None)
        subject = f"event={event}" if event else f"{record.name}:"
        return f"{record.asctime}+00:00 {record.levelname} {subject} {record.message}"


def configure(log_format: str, level: int) -> None:
    """Log to stderr from now on, in place of whatever was configured before.

    Args:
        log_format: `text` or `json`. With `json`, Python's warnings and an uncaught exception are records, too.
        level: of our own loggers, such as `logging.INFO`. Above DEBUG, libraries log their warnings only.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        from notify_worker.cli.json_formatter import JsonFormatter  # noqa: PLC0415  --help does not need it

        handler.setFormatter(JsonFormatter())
        logging.captureWarnings(capture=True)
        sys.excepthook = log_uncaught
    else:
        handler.setFormatter(TextFormatter())
    if level > logging.DEBUG:
        handler.addFilter(drop_tracebacks_of_procrastinate)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in QUIETER:
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING) if level > logging.DEBUG else logging.INFO)
    if level > logging.DEBUG:
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each attempt to connect, while the database is away


def drop_tracebacks_of_procrastinate(record: logging.LogRecord) -> bool:
    """Keep the record without its traceback: a lost database stops procrastinate, and we log that we start it again."""
    if record.name.startswith("procrastinate"):
        record.exc_info = record.exc_text = None
    return True


def log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log the exception that ends the process, in place of the traceback that Python would print."""
    log.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace), extra={"event": "uncaught_exception"})
