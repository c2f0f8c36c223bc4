"""The messages that phones would show, and which of them twice. The sandbox's thread writes; any thread may read."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from threading import Lock

from notify_worker.model import Json
from notify_worker.sandbox.checks import Request

KEPT = 100_000
"""The latest messages that are kept. The counts include all messages."""
LATEST = 200
"""The messages on the page and in its JSON."""

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


@dataclass(frozen=True, slots=True)
class Shown:
    """An accepted message as a phone shows it. Its str() is one line with only the end of the address."""

    at: datetime
    project: str
    kind: str
    address: str = field(repr=False)
    title: str | None = field(repr=False)
    body: str | None = field(repr=False)
    data: Mapping[str, str] = field(repr=False)
    tag: str | None
    notification_id: str | None

    @property
    def text(self) -> str:
        """Title and body as one printable line; for a silent message, the names of its data."""
        text = ": ".join(filter(None, (self.title, self.body))) or f"(data only: {', '.join(self.data)})"
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def __str__(self) -> str:
        return f"{self.at.astimezone():%H:%M:%S}  {self.kind} …{end_of(self.address)}  {self.text}"


def end_of(address: str) -> str:
    """Return the part after the colon if it is short, else the last six characters: not enough to send to."""
    name = address.rpartition(":")[2]
    return name if ":" in address and 0 < len(name) <= 12 else address[-6:]


def shown(request: Request, project: str) -> Shown:
    """Return a message as an Android phone shows it: Android's overrides win."""
    message = request.message
    android = message.get("android", {})
    notification = {**message.get("notification", {}), **android.get("notification", {})}
    data = android.get("data") or message.get("data", {})
    return Shown(
        at=datetime.now(UTC),
        project=project,
        kind=request.kind,
        address=request.address,
        title=notification.get("title"),
        body=notification.get("body"),
        data=data,
        tag=notification.get("tag")
        or message.get("apns", {}).get("headers", {}).get("apns-collapse-id")
        or web_tag(message),
        notification_id=data.get("notification_id"),
    )


def web_tag(message: Mapping[str, Json]) -> str | None:
    """Return the tag of a web message, whose notification is free JSON."""
    tag = message.get("webpush", {}).get("notification", {}).get("tag")
    return tag if isinstance(tag, str) else None


class Phones:
    """All phones to which this sandbox has sent."""

    def __init__(self, on_show: Callable[[Shown], None] | None) -> None:
        self._on_show = on_show
        self._lock = Lock()
        self._latest: deque[Shown] = deque(maxlen=KEPT)
        self._seen: set[tuple[str, str, str]] = set()

    def show(self, request: Request, project: str) -> bool:
        """Show an accepted message. Returns True if the phone has shown it before."""
        new = shown(request, project)
        with self._lock:
            self._latest.append(new)
        if self._on_show:
            self._on_show(new)
        return self._is_double(new)

    def _is_double(self, new: Shown) -> bool:
        if new.notification_id is None:
            return False
        key = (new.project, new.notification_id, new.address)
        double = key in self._seen
        self._seen.add(key)
        return double

    def latest(self) -> list[Shown]:
        """Return the messages that phones show, oldest first."""
        with self._lock:
            return list(self._latest)


def page(latest: Iterable[Shown], counts: Mapping[str, Json], switches: Mapping[str, Json]) -> bytes:
    """Return the page of shown messages as HTML."""
    text = PAGE.format(
        counts=escape(one_line(counts)), switches=escape(one_line(switches)), rows="\n".join(map(row, latest))
    )
    return text.encode(errors="replace")


def one_line(named: Mapping[str, Json]) -> str:
    """Format names and values as one line, without those that are off or empty."""
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
    """Return a message as JSON, like the page with only the end of the address."""
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
