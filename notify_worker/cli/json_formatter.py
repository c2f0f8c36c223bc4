"""One JSON object a line: `at`, `level`, `logger`, `text`, every field of `extra`, and `traceback` where there is one."""

from typing import Any

from pythonjsonlogger.json import JsonFormatter as AnyJsonFormatter

NAMES = {"levelname": "level", "name": "logger", "message": "text", "exc_info": "traceback", "stack_info": "stack"}
"""Ours, for the fields of a record."""


class JsonFormatter(AnyJsonFormatter):
    """python-json-logger's formatter under our names. Times are ISO 8601 in UTC: 2026-11-30T21:00:00.123456+00:00."""

    def __init__(self) -> None:
        super().__init__(["levelname", "name", "message"], rename_fields=NAMES, timestamp="at")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Put the time first, and write the level in small letters."""
        return {"at": log_data["at"], **log_data, "level": log_data["level"].lower()}
