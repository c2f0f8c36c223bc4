"""The settings, read from the environment once and checked as a whole. Errors list every problem; reprs show no secret."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from math import ceil
from os import environ
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from notify_worker.errors import SettingsError, did_you_mean

PREFIX = "NOTIFY_WORKER_"
LONGEST_REQUEST_TIMEOUT = timedelta(seconds=20)

QUICK_WAITS = ((1.0, 1.2), (2.0, 2.4))
"""Seconds to wait before the second and the third request of an attempt: the shortest, and the longest with its jitter."""
QUICK_REQUESTS = len(QUICK_WAITS) + 1
"""The most requests in one attempt."""
QUICK_RETRY_WAITS = timedelta(seconds=ceil(sum(longest for _, longest in QUICK_WAITS)))
"""The longest that one attempt can wait in all, rounded up to whole seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one process; `VARIABLES` names the environment variable of each.

    Example:
        settings = Settings.from_env({"NOTIFY_WORKER_CONCURRENCY": "200"})
    """

    database_url: str = field(default="", repr=False)
    """A libpq connection string or URI: postgresql.org/docs/current/libpq-connect.html. Empty: libpq's PG* variables."""
    fcm_url: str = "https://fcm.googleapis.com"
    """The base URL of FCM. Plain http is allowed for this machine only."""
    home: Path = field(default_factory=lambda: Path.home() / ".local" / "share" / "notify-worker")
    """The folder of the embedded PostgreSQL that `notify-worker dev` runs."""
    concurrency: int = 100
    """The most requests in flight per worker, from 1 to 10,000."""
    request_timeout: timedelta = timedelta(seconds=15)
    """The timeout of one whole request to FCM, at most 20 s."""
    lease: timedelta = timedelta(seconds=120)
    """How long a claimed notification belongs to its worker: at least two of the longest attempts."""
    log_format: str = "text"
    """`text`, or `json` for one JSON object a line."""

    @property
    def longest_attempt(self) -> timedelta:
        """How long one attempt can take: every request times out, and every wait between them is the longest."""
        return QUICK_REQUESTS * self.request_timeout + QUICK_RETRY_WAITS

    @classmethod
    def from_env(cls, env: Mapping[str, str] = environ) -> "Settings":
        """Read the settings from the environment. An empty variable counts as not set.

        Args:
            env: The environment variables.

        Raises:
            SettingsError: A value is wrong, values contradict each other, or a NOTIFY_WORKER_ variable is unknown. The text
                lists every problem, one line each.
        """
        problems = [unknown(name) for name in sorted(env) if name.startswith(PREFIX) and name not in VARIABLES]
        values: dict[str, Any] = {}
        for name, (attribute, parse) in VARIABLES.items():
            if not env.get(name):
                continue
            try:
                values[attribute] = parse(env[name])
            except ValueError as error:
                problems.append(f"{name} {error}")
        settings = cls(**values)
        if not problems:
            problems = settings.contradictions()
        if problems:
            raise SettingsError("\n".join(problems))
        return settings

    def contradictions(self) -> list[str]:
        """Return the problems between settings that are valid on their own."""
        shortest = 2 * self.longest_attempt
        if self.lease < shortest:
            problem = (
                f"NOTIFY_WORKER_LEASE_SECONDS is {seconds(self.lease)}: too short. A lease lasts for two attempts, and one "
                f"takes up to {QUICK_REQUESTS} x {seconds(self.request_timeout)} s + {seconds(QUICK_RETRY_WAITS)} s. "
                f"Set it to {seconds(shortest)} or more, or lower NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS."
            )
            return [problem]
        return []


def unknown(name: str) -> str:
    """Return the problem of a variable that is not a setting. Only the part after the prefix is compared."""
    known = [variable.removeprefix(PREFIX) for variable in VARIABLES]
    hint = did_you_mean(
        name.removeprefix(PREFIX), known, form=PREFIX + "{}", otherwise=f"The settings are: {', '.join(VARIABLES)}."
    )
    return f"{name} is not a setting. {hint}"


def seconds(length: timedelta) -> str:
    """Format a length of time in seconds, without a trailing .0."""
    return f"{length.total_seconds():g}"


def whole_number(text: str) -> int:
    """Parse a number of requests in flight."""
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 10_000):
        raise ValueError(f'is "{text}". It has to be a whole number from 1 to 10000.')
    return int(text)


def length(text: str) -> timedelta:
    """Parse a length of time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0.001 <= value <= 3600:
        raise ValueError(f'is "{text}". It has to be a number of seconds, more than 0 and at most 3600.')
    return timedelta(seconds=value)


def request_timeout(text: str) -> timedelta:
    """Parse the timeout of a request. FCM's own calls take up to 10 s; waiting beyond 20 s is pointless."""
    value = length(text)
    if value > LONGEST_REQUEST_TIMEOUT:
        raise ValueError(f'is "{text}". It can be at most {seconds(LONGEST_REQUEST_TIMEOUT)}.')
    return value


def url(text: str) -> str:
    """Parse a URL to which secrets are sent: it uses TLS, or stays on this machine."""
    try:
        parts = urlsplit(text)
        usable = parts.port != 0 and text.isprintable() and not (parts.username or parts.query or parts.fragment)
    except ValueError:
        parts, usable = urlsplit(""), False
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if usable and safe and parts.hostname:
        return text.rstrip("/")
    shown = re.sub(r"(//[^/:]*):[^/]*@", r"\1:…@", text)  # a password
    raise ValueError(
        f'is "{shown}". It has to begin with https://; plain http goes to this machine only (http://127.0.0.1:…). '
        "Host, port and path alone: no user, no ?, no #."
    )


def is_loopback(host: str) -> bool:
    """Return True if a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def log_format(text: str) -> str:
    """Parse the format of the log."""
    if text not in ("text", "json"):
        raise ValueError(f'is "{text}". It has to be text or json.')
    return text


VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "NOTIFY_WORKER_DATABASE_URL": ("database_url", str),
    "NOTIFY_WORKER_FCM_URL": ("fcm_url", url),
    "NOTIFY_WORKER_HOME": ("home", lambda text: Path(text).absolute()),
    "NOTIFY_WORKER_CONCURRENCY": ("concurrency", whole_number),
    "NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS": ("request_timeout", request_timeout),
    "NOTIFY_WORKER_LEASE_SECONDS": ("lease", length),
    "NOTIFY_WORKER_LOG_FORMAT": ("log_format", log_format),
}
