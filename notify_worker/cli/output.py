"""How the verbs print: plain lines into a pipe, tables and colours on a terminal.

rich honours NO_COLOR by itself (https://no-color.org).
"""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

STYLES = {"sent": "green", "failed": "red", "unreachable": "red", "pending": "yellow", "held": "magenta"}
"""Colours of the states of a notification."""


def is_terminal() -> bool:
    """Return True if stdout is a terminal, read by a person."""
    return sys.stdout.isatty()


def print_line(text: str) -> None:
    """Print text from the database as one line."""
    print(one_line(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for a person, without a heading if every column's name is empty. The column `state` is in colour."""
    from rich.console import Console  # noqa: PLC0415  a pipe does not need it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, show_header=any(columns))
    for row in rows:
        cells = [one_line("-" if value is None else str(value)) for value in row]
        styles = [
            STYLES.get(cell, "") if column == "state" else "" for column, cell in zip(columns, cells, strict=True)
        ]
        table.add_row(*(Text(cell, style, overflow="fold") for cell, style in zip(cells, styles, strict=True)))
    Console().print(table)


def one_line(text: str) -> str:
    """Replace what is not printable: no text of a producer or of FCM may break a line or control a terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def timestamp(at: datetime) -> str:
    """Format a time in the time zone of this machine."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S.%f}"


def in_seconds(value: object) -> object:
    """Return a length of time as JSON has it: a number of seconds. Everything else stays what it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value
