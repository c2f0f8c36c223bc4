"""The page that shows what phones would show, and the same as JSON."""

from collections.abc import Iterable, Mapping
from html import escape

from notify_worker.model import Json
from notify_worker.sandbox.phones import Shown, end_of

LATEST = 200
"""So many fit on a page."""

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
ROW = "<tr><td><small>{time}</small><td><small>{kind} …{end}</small><td>{words}"


def page(latest: Iterable[Shown], counts: Mapping[str, Json], switches: Mapping[str, Json]) -> bytes:
    """Write the page."""
    text = PAGE.format(
        counts=escape(in_words(counts)), switches=escape(in_words(switches)), rows="\n".join(map(row, latest))
    )
    return text.encode(errors="replace")


def in_words(named: Mapping[str, Json]) -> str:
    """Write what is named in one line, without what is off; of what is counted by name, each."""
    parts = (
        f"{name} ({in_words(value)})" if isinstance(value, Mapping) else f"{name} {value}"
        for name, value in named.items()
        if value not in (None, False, {})
    )
    return ", ".join(parts)


def row(shown: Shown) -> str:
    """Write one line of the page."""
    return ROW.format(
        time=f"{shown.at.astimezone():%H:%M:%S}",
        kind=shown.kind,
        end=escape(end_of(shown.address)),
        words=escape(shown.words),
    )


def as_json(shown: Shown) -> Json:
    """Write one as JSON, like the page with only the end of its address."""
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
