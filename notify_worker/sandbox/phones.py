"""The messages that phones would show, and which they would show twice. The sandbox's thread writes, any thread reads."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock

from notify_worker.model import Json
from notify_worker.sandbox.checks import Request

KEPT = 100_000
"""Latest messages that are kept to be shown; the counts include all."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One accepted message as a phone shows it. Its str() is one line, with only the end of the address."""

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
        """Title and body in one printable line; for a silent message the names of its data."""
        text = ": ".join(filter(None, (self.title, self.body))) or f"(data only: {', '.join(self.data)})"
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def __str__(self) -> str:
        return f"{self.at.astimezone():%H:%M:%S}  {self.kind} …{end_of(self.address)}  {self.text}"


def end_of(address: str) -> str:
    """Return the part after the colon if it is short, else the last six characters: too little to send to."""
    name = address.rpartition(":")[2]
    return name if ":" in address and 0 < len(name) <= 12 else address[-6:]


def shown(request: Request, project: str) -> Shown:
    """Read from a message what a phone shows. Android's overrides win, as on an Android phone."""
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
        """Show an accepted message; return whether the phone has shown it before."""
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
