"""The page of messages that phones would show, and the same as JSON."""

from collections.abc import Iterable, Mapping
from html import escape

from notify_worker.model import Json
from notify_worker.sandbox.phones import Shown, end_of

LATEST = 200
"""Messages on the page, newest first."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<title>What phones would show</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
  td {{ padding: .3rem 1rem .3rem 0; vertical-align: top }}
  small {{ color: #767676 }}
</style>
<h1>What phones would show</h1>
<p>{counts}</p>
<p><small>{switches}</small></p>
<table>
{rows}
</table>
</html>
"""
ROW = "<tr><td><small>{time}</small><td><small>{kind} …{end}</small><td>{text}"


def page(latest: Iterable[Shown], counts: Mapping[str, Json], switches: Mapping[str, Json]) -> bytes:
    """Return the page as HTML."""
    text = PAGE.format(
        counts=escape(one_line(counts)), switches=escape(one_line(switches)), rows="\n".join(map(row, latest))
    )
    return text.encode(errors="replace")


def one_line(named: Mapping[str, Json]) -> str:
    """Write names and values in one line; leave out those that are off or empty."""
    parts = (
        f"{name} ({one_line(value)})" if isinstance(value, Mapping) else f"{name} {value}"
        for name, value in named.items()
        if value not in (None, False, {})
    )
    return ", ".join(parts)


def row(shown: Shown) -> str:
    """Return a message as a row of the table."""
    return ROW.format(
        time=f"{shown.at.astimezone():%H:%M:%S}",
        kind=shown.kind,
        end=escape(end_of(shown.address)),
        text=escape(shown.text),
    )


def as_json(shown: Shown) -> Json:
    """Return a message as JSON; like the page, it shows only the end of the address."""
    return {
        "at": shown.at.isoformat(),
        "project": shown.project,
        "kind": shown.kind,
        "address": end_of(shown.address),
        "title": shown.title,
        "body": shown.body,
        "data": dict(shown.data),
        "tag": shown.tag,
        "notification_id": shown.notification_id,
    }
