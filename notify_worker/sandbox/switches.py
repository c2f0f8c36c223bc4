"""What can be changed while the sandbox runs: faults by rate, latency, quota, bearers and grants."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from math import isfinite
from typing import TypedDict

from notify_worker.errors import NotifyWorkerError
from notify_worker.model import Json
from notify_worker.sandbox.faults import DEVICE_FAULTS, check_name

ROUNDING = 1e-9


class Changes(TypedDict, total=False):
    """What `switch` takes. What is not named stays as it is; None is as if nobody had ever touched it."""

    fail: Mapping[str, float] | None
    latency: float | None
    quota: float | None
    retry_after: int | None
    token_lifetime: int | None
    refuse_grants: bool | None
    grant_fault: str | None
    revoked: bool | None
    goaway: bool | None


@dataclass(frozen=True, slots=True)
class Switches:
    """How the switches stand."""

    fail: Mapping[str, float] = field(default_factory=dict)
    """How likely each fault is, for a request whose address asks for none."""
    latency: float = 0.0
    """Seconds before each answer to a send."""
    quota: float | None = None
    """How many messages a second a project may send."""
    retry_after: int | None = None
    """Seconds of the Retry-After that goes with the answer for a project's quota."""
    token_lifetime: int = 3599
    """Seconds that a new bearer is good for."""
    refuse_grants: bool = False
    """The token endpoint answers invalid_grant, as for a key that was deleted."""
    grant_fault: str | None = None
    """The fault that requests to the token endpoint meet, such as 503 or hang."""
    revoked: bool = False
    """The bearers that had been given out when this was switched on are unknown; newer ones are not."""
    goaway: bool = False
    """Tell the clients on HTTP/2 that are connected now to go away. It is done at once, and off again."""

    def changed(self, changes: Mapping[str, Json]) -> "Switches":
        """Make these changes.

        Raises NotifyWorkerError where a name or a value is none.
        """
        for name, value in changes.items():
            check(name, value)
        return replace(self, **{name: kept(name, value) for name, value in changes.items()})

    def as_json(self) -> dict[str, Json]:
        """Write them as JSON."""
        return asdict(self)


DEFAULTS: Mapping[str, Json] = {each.name: getattr(Switches(), each.name) for each in fields(Switches)}


def kept(name: str, value: Json) -> Json:
    """Say what is kept of a value: a mapping might be changed by whoever gave it."""
    if value is None:
        return DEFAULTS[name]
    return dict(value) if isinstance(value, Mapping) else value


def check(name: str, value: Json) -> None:
    """Refuse a change that can't be made.

    Raises NotifyWorkerError.
    """
    if name not in CHECKS:
        nearest = get_close_matches(name, CHECKS, n=1)
        hint = f'Did you mean "{nearest[0]}"?' if nearest else f"There are {', '.join(CHECKS)}."
        raise NotifyWorkerError(f'"{name}" is no switch. {hint}')
    if value is not None:
        CHECKS[name](name, value)


def seconds(name: str, value: Json) -> None:
    """Refuse what is no number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise NotifyWorkerError(f"{name} is {value!r}. Give it a number from 0 on.")


def whole_seconds(name: str, value: Json) -> None:
    """Refuse what is no whole number from 0."""
    seconds(name, value)
    if not isinstance(value, int):
        raise NotifyWorkerError(f"{name} is {value!r}. Give it a whole number of seconds.")


def on_or_off(name: str, value: Json) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise NotifyWorkerError(f"{name} is {value!r}. It is either on (true) or off (false).")


def fault_name(name: str, value: Json) -> None:
    """Refuse what is no fault."""
    if not isinstance(value, str):
        raise NotifyWorkerError(f"{name} is {value!r}. Give it the name of a fault, such as 503.")
    check_name(value)


def rates(name: str, value: Json) -> None:
    """Refuse what is no likelihood of faults."""
    if not isinstance(value, Mapping):
        raise NotifyWorkerError(f'{name} is {value!r}. Give it faults and how likely they are, such as {{"503": 0.1}}.')
    for fault, likelihood in value.items():
        fault_name(name, fault)
        seconds(f"{name} {fault}", likelihood)
    for those in (value.keys() & DEVICE_FAULTS, value.keys() - DEVICE_FAULTS):
        if (together := sum(value[fault] for fault in those)) > 1 + ROUNDING:
            raise NotifyWorkerError(
                f"{', '.join(sorted(those))} come to {together:g}. No more than 1 can fail, which is all."
            )


CHECKS: Mapping[str, Callable[[str, Json], None]] = {
    "fail": rates,
    "latency": seconds,
    "quota": seconds,
    "retry_after": whole_seconds,
    "token_lifetime": whole_seconds,
    "refuse_grants": on_or_off,
    "grant_fault": fault_name,
    "revoked": on_or_off,
    "goaway": on_or_off,
}
