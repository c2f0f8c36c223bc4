"""The log on stderr: lines of text for people, or one JSON object a line for machines.

Our records carry the name of an event, and fields, in `extra`.
"""

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any

QUIETER = ("procrastinate", "psycopg", "httpx", "httpcore", "asyncio")
"""Loggers of libraries that log too much: procrastinate logs every job, one every two seconds."""
JSON_NAMES = {"levelname": "level", "name": "logger", "message": "text", "exc_info": "traceback", "stack_info": "stack"}

log = logging.getLogger(__name__)


class TextFormatter(logging.Formatter):
    """`2026-11-30 21:00:00,000+00:00 WARNING event=rescue_failed rescue failed: …`, in UTC.

    A record without an event has the name of its logger in its place.
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
    """Log to stderr from now on, replacing any earlier configuration.

    Args:
        log_format: `text` or `json`. With `json`, Python's warnings and an uncaught exception are logged too.
        level: The level of our own loggers, such as `logging.INFO`. Above DEBUG, libraries log only warnings.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(json_formatter())
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


def json_formatter() -> logging.Formatter:
    """Return a formatter for one JSON object a line: `at` (ISO 8601, UTC), `level`, `logger`, `text`, and all of `extra`."""
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415  --help does not need it

    return JsonFormatter(list(JSON_NAMES)[:3], rename_fields=JSON_NAMES, timestamp="at", json_serializer=as_json)


def as_json(fields: dict[str, Any], **options: Any) -> str:
    """Serialise a record with its time first and its level in lower case."""
    return json.dumps({"at": fields["at"], **fields, "level": fields["level"].lower()}, **options)


def drop_tracebacks_of_procrastinate(record: logging.LogRecord) -> bool:
    """Remove procrastinate's tracebacks: a lost database stops it, and we log that we restart it."""
    if record.name.startswith("procrastinate"):
        record.exc_info = record.exc_text = None
    return True


def log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log the exception that ends the process, instead of the traceback that Python would print."""
    log.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace), extra={"event": "uncaught_exception"})
