"""What phones would show, and how often they would show it twice. Written by the sandbox's thread, read by any."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock

from notify_worker.model import Json
from notify_worker.sandbox.checks import Request

KEPT = 100_000
"""So many of the latest are kept to be looked at; the counts go on."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a phone shows of one accepted message. As text it is one line, with only the end of the address."""

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
    def words(self) -> str:
        """What there is to read, in one harmless line; of a silent message the names of its data."""
        words = ": ".join(filter(None, (self.title, self.body))) or f"(data only: {', '.join(self.data)})"
        return "".join(letter if letter.isprintable() else " " for letter in words)

    def __str__(self) -> str:
        return f"{self.at.astimezone():%H:%M:%S}  {self.kind} …{end_of(self.address)}  {self.words}"


def end_of(address: str) -> str:
    """Show what follows the colon if that is short, else six characters: nobody can send to so little."""
    name = address.rpartition(":")[2]
    return name if ":" in address and 0 < len(name) <= 12 else address[-6:]


def shown(request: Request, project: str) -> Shown:
    """Pick out of a message what a phone shows. The overrides of Android win, as they do there."""
    message = request.message
    android = message.get("android", {})
    words = {**message.get("notification", {}), **android.get("notification", {})}
    data = android.get("data") or message.get("data", {})
    return Shown(
        at=datetime.now(UTC),
        project=project,
        kind=request.kind,
        address=request.address,
        title=words.get("title"),
        body=words.get("body"),
        data=data,
        tag=words.get("tag") or message.get("apns", {}).get("headers", {}).get("apns-collapse-id") or web_tag(message),
        notification_id=data.get("notification_id"),
    )


def web_tag(message: Mapping[str, Json]) -> str | None:
    """Find the tag of a message for the web, where it is free JSON."""
    tag = message.get("webpush", {}).get("notification", {}).get("tag")
    return tag if isinstance(tag, str) else None


class Phones:
    """All phones of the world, as far as this sandbox has sent to them."""

    def __init__(self, on_show: Callable[[Shown], None] | None) -> None:
        self._on_show = on_show
        self._lock = Lock()
        self._latest: deque[Shown] = deque(maxlen=KEPT)
        self._seen: set[tuple[str, str, str]] = set()

    def show(self, request: Request, project: str) -> bool:
        """Take an accepted message; say whether the phone has shown it before."""
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
        """What phones show, oldest first."""
        with self._lock:
            return list(self._latest)
