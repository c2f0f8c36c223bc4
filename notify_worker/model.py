"""The data of the pipeline: deliveries that are claimed, messages that are sent, and their outcomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

Json = Any
"""Anything that `json.loads` returns."""


UNREADABLE: Json = object()
"""Stands for JSON that PostgreSQL stores and Python can't parse, such as a number of 5,000 digits or 1,000 nested levels."""


BUG = "BUG"
"""The `error_code` after an exception in the worker, or in another package's sender; it says nothing about the provider."""


DEVICE_KINDS = ("token", "fid")
"""The kinds of address of one device."""
TOPIC_KINDS = ("topic", "condition")
ADDRESS_KINDS = (*DEVICE_KINDS, *TOPIC_KINDS)
"""The kinds of address."""


class Verdict(StrEnum):
    """The result of an attempt in one word. The SQL function `apply_history` turns it into a state.

    CONTRIBUTING.md lists what else a new verdict needs.
    """

    SENT = "sent"
    """FCM has accepted the message."""
    RETRY = "retry"
    """FCM does not have the message: no request reached it, or it refuses more messages for this device now."""
    FAILED = "failed"
    """FCM refuses this message, or it can't be rendered."""
    UNREGISTERED = "unregistered"
    """The address is gone, and its device is retired."""
    UNKNOWN = "unknown"
    """FCM may have the message, or not."""
    PAUSED = "paused"
    """The project's fault, or its quota is used up: other messages would be refused too."""


class Scope(StrEnum):
    """The part of a project that an incident blocks."""

    PROJECT = "project"
    APNS_WEB = "apns_web"
    TOPICS = "topics"
    DEVICES = "devices"


class Change(StrEnum):
    """What happened to an incident."""

    OPENED = "opened"
    CLOSED = "closed"
    UNDECIDED = "undecided"
    """Its probe decided nothing: the next one is due at once."""


class OnUnknown(StrEnum):
    """What to do when it is unknown whether FCM has the message."""

    RESEND = "resend"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a message, from a campaign or from the notification itself."""

    title: str | None = None
    body: str | None = None
    image: str | None = None
    data: Mapping[str, str] | None = None
    message: Mapping[str, Json] | None = None


MAX_ATTEMPTS = 10
FIRST_RETRY_AFTER = timedelta(seconds=10)
LONGEST_RETRY_AFTER = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Project:
    """A project, as its row in `projects` describes it."""

    name: str
    firebase_project_id: str | None = None
    credentials: str | None = None
    sender: str = "fcm"
    max_attempts: int = MAX_ATTEMPTS
    first_retry_after: timedelta = FIRST_RETRY_AFTER
    longest_retry_after: timedelta = LONGEST_RETRY_AFTER

    @property
    def sender_key(self) -> "Project":
        """The part of the row that a sender depends on; a new retry policy opens no new sender."""
        return Project(self.name, self.firebase_project_id, self.credentials, self.sender)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notification to one address, claimed under a lease: a row of SQL `claim`, as `read_delivery` reads it."""

    id: int
    notification_id: int
    lease: UUID
    worker_id: int
    start_by: float
    """No request starts after this (`time.monotonic()`), so that the lease outlasts the longest attempt."""
    project: str
    kind: str
    address: str = field(repr=False)
    platform: str | None
    on_unknown: OnUnknown
    priority: str | None
    attempts: int
    """The attempts so far that count against the project's `max_attempts`."""
    last_attempt_number: int
    """The number of its rows in the history."""
    probe: bool
    """Whether it is sent during an incident as a probe, to find out whether the incident is over."""
    expires_in: float
    """Seconds from the claim, by the database's clock."""
    expires_at: float
    """Seconds since 1970, by the database's clock."""
    expires_by: float
    """No request starts after this (`time.monotonic()`)."""
    tag: str
    """`<installation>-<notification id>`: a second copy replaces the first on the screen."""
    inline: Content = field(repr=False)
    campaign_name: str | None
    campaign: Content | None = field(repr=False)
    params: Mapping[str, Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """A rendered message for a sender: FCM's `message` object, with the address in it."""

    kind: str
    body: Mapping[str, Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """An answer's consequence for its project: no other request of this scope is worth making now."""

    scope: Scope
    lasts: timedelta | None = None
    """How long; None: until a probe succeeds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a request, or of not making one."""

    verdict: Verdict
    error: str | None = None
    """For people: one line, without the address and without any secret."""
    error_code: str | None = None
    """For programs: FCM's code (`UNREGISTERED`), or the name of the exception (`ConnectError`)."""
    http_status: int | None = None
    provider_message_id: str | None = None
    """FCM's name of the message."""
    asked_to_wait: timedelta | None = None
    """FCM's Retry-After."""
    pause: Pause | None = None
    """The scope to pause, beyond this delivery."""
    quickly_retryable: bool = False
    """Whether a quick retry may succeed: the request was never sent, its access token was rejected for the first time, or
    FCM answered 5xx without a Retry-After."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one attempt (1 to 3 requests): one row of `attempts`. Times are `time.monotonic()` of this process."""

    delivery: Delivery
    outcome: Outcome
    started: float
    finished: float
    requests: int
    counts: bool = True
    """Whether it counts against the project's `max_attempts`."""
    retry_in: timedelta | None = None
    """How long until the delivery is due again; None if it is not retried."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A change of an incident that this process reports to all others."""

    project: str
    scope: Scope
    change: Change = Change.OPENED
    reason: str | None = None
    lasts: timedelta | None = None
    """How long it lasts; None: until a probe succeeds."""
    sent_rate: float | None = None
    """After an exceeded quota: messages a second that FCM accepted from this process just before."""
