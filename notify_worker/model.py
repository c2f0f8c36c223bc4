"""The nouns of the flow, as frozen data: what is claimed, what is sent, what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

Json = Any
"""What `json.loads` can give."""


UNREADABLE: Json = object()
"""Stands for JSON that Postgres holds and Python can't read: a number of 5,000 digits, a nesting of 1,000 levels."""


BUG = "BUG"
"""`error_code` where the worker itself, or a sender of another package, broke: it says nothing of the provider."""


ADDRESS_KINDS = ("token", "fid", "topic", "condition")
"""What an address can be."""


class Verdict(StrEnum):
    """What an attempt came to."""

    SENT = "sent"
    RETRY = "retry"
    FAILED = "failed"
    UNREGISTERED = "unregistered"
    UNKNOWN = "unknown"
    PAUSED = "paused"


class Scope(StrEnum):
    """What of a project an incident stops."""

    PROJECT = "project"
    APNS_WEB = "apns_web"
    TOPICS = "topics"
    DEVICES = "devices"


class OnUnknown(StrEnum):
    """What the caller wants where nobody can say whether FCM has the message."""

    RESEND = "resend"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Words:
    """What a message is made of, as it stands in a campaign or inline in a notification."""

    title: str | None = None
    body: str | None = None
    image: str | None = None
    data: Mapping[str, str] | None = None
    message: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A Firebase project as its row in `projects` describes it."""

    name: str
    firebase_project_id: str | None = None
    credentials: str | None = None
    sender: str = "fcm"
    max_attempts: int = 10
    first_retry_after: timedelta = timedelta(seconds=10)
    longest_retry_after: timedelta = timedelta(minutes=15)

    @property
    def way(self) -> "Project":
        """What of the row says how its messages are carried: another policy is no reason for another connection."""
        return Project(self.name, self.firebase_project_id, self.credentials, self.sender)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notification to one address, claimed under a lease."""

    id: int
    notification_id: int
    lease: UUID
    worker_id: int
    start_by: float
    """Until when a request may start (`time.monotonic()`): the lease has to outlast the longest attempt."""
    project: str
    kind: str
    address: str = field(repr=False)
    platform: str | None
    on_unknown: OnUnknown
    priority: str | None
    attempts: int
    """How many attempts count against the project's `max_attempts` so far."""
    tries: int
    """How many rows the history holds for it so far."""
    probe: bool
    """It is sent to see whether its project, or iOS and web, can be sent to again."""
    expires_in: float
    """Seconds from the claim, by the database's clock."""
    expires_at: float
    """Seconds since 1970, by the database's clock."""
    expires_by: float
    """After this no request of it may start (`time.monotonic()`)."""
    tag: str
    """`<installation>-<notification id>`: a second copy replaces the first on the screen."""
    inline: Words = field(repr=False)
    campaign_name: str | None
    campaign: Words | None = field(repr=False)
    params: Mapping[str, Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """The rendered thing that a sender is given: FCM's `message` object, with its address in it."""

    kind: str
    body: Mapping[str, Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """What an answer says beyond its own delivery: nothing else of this scope is worth a request now."""

    scope: Scope
    lasts: timedelta | None = None
    """How long; None: until a probe gets through."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request, or the want of one, came to."""

    verdict: Verdict
    error: str | None = None
    """For people: what happened, in one line, without the address and without any secret."""
    error_code: str | None = None
    """For machines: FCM's code (`UNREGISTERED`), or the name of the exception (`ConnectError`)."""
    http_status: int | None = None
    sent_as: str | None = None
    """FCM's name of the message."""
    asked_to_wait: timedelta | None = None
    """FCM's Retry-After."""
    pause: Pause | None = None
    """What else is not worth a request now."""
    mendable: bool = False
    """The same request may be made again within seconds: it surely never left, its token was refused for the first time,
    or FCM answered a 5xx and named no time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a delivery, as the history keeps it. Times are `time.monotonic()` of this process."""

    delivery: Delivery
    outcome: Outcome
    started: float
    finished: float
    requests: int
    counts: bool = True
    """Whether it counts against the project's `max_attempts`."""
    retry_in: timedelta | None = None
    """How long until the delivery is due again; None: never."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What a process found out about a project, for all the others: that something stops, or goes on (`over`)."""

    project: str
    scope: Scope
    over: bool = False
    because: str | None = None
    lasts: timedelta | None = None
    per_second: float | None = None
    """After an exceeded quota: what this process has sent just before."""
