"""The settings that can be changed while the sandbox runs: fault rates, latency, quota, bearer tokens and grants."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from typing import TypedDict

from notify_worker.errors import NotifyWorkerError, did_you_mean
from notify_worker.model import Json
from notify_worker.sandbox.faults import DEVICE_FAULTS, check_name

ROUNDING = 1e-9


class Changes(TypedDict, total=False):
    """The arguments of `Sandbox.switch`. A switch that is left out keeps its value; None resets it to its default."""

    fail: Mapping[str, float] | None
    latency: float | None
    quota: float | None
    retry_after: int | None
    token_lifetime: int | None
    refuse_grants: bool | None
    grant_fault: str | None
    revoked: bool | None


@dataclass(frozen=True, slots=True)
class Switches:
    """The values of all switches."""

    fail: Mapping[str, float] = field(default_factory=dict)
    """The probability of each fault, from 0 to 1, for requests whose address names none."""
    latency: float = 0.0
    """Seconds before each answer to a send request."""
    quota: float | None = None
    """The messages a second that each project may send; None is no limit."""
    retry_after: int | None = None
    """The `Retry-After`, in seconds, of a 429 for the project's quota; None leaves it out."""
    token_lifetime: int = 3599
    """Seconds for which new bearer tokens are valid."""
    refuse_grants: bool = False
    """Whether the token endpoint answers invalid_grant, as Google's does for a deleted key."""
    grant_fault: str | None = None
    """The fault that requests to the token endpoint meet, such as 503 or hang."""
    revoked: bool = False
    """Whether bearer tokens that were granted before this was switched on are refused."""

    def changed(self, changes: Mapping[str, Json]) -> "Switches":
        """Return the switches with these changes. Raises NotifyWorkerError if a name or a value is wrong."""
        for name, value in changes.items():
            check(name, value)
        return replace(self, **{name: value_or_default(name, value) for name, value in changes.items()})

    def as_json(self) -> dict[str, Json]:
        """Return the switches as JSON."""
        return asdict(self)


DEFAULTS: Mapping[str, Json] = {each.name: getattr(Switches(), each.name) for each in fields(Switches)}


def value_or_default(name: str, value: Json) -> Json:
    """Return the value to store. A mapping is copied, since the caller may change it later."""
    if value is None:
        return DEFAULTS[name]
    return dict(value) if isinstance(value, Mapping) else value


def check(name: str, value: Json) -> None:
    """Raise NotifyWorkerError if a name or a value is wrong. It says what is allowed."""
    if name not in CHECKS:
        hint = did_you_mean(name, CHECKS, form='"{}"', otherwise=f"There are {', '.join(CHECKS)}.")
        raise NotifyWorkerError(f'"{name}" is no switch. {hint}')
    if value is not None:
        CHECKS[name](name, value)


def seconds(name: str, value: Json) -> None:
    """Refuse a value that is not a number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise NotifyWorkerError(f"{name} is {value!r}. Give it a number from 0 on.")


def whole_seconds(name: str, value: Json) -> None:
    """Refuse a value that is not a whole number from 0 on."""
    seconds(name, value)
    if not isinstance(value, int):
        raise NotifyWorkerError(f"{name} is {value!r}. Give it a whole number of seconds.")


def on_or_off(name: str, value: Json) -> None:
    """Refuse a value that is neither true nor false."""
    if not isinstance(value, bool):
        raise NotifyWorkerError(f"{name} is {value!r}. It is either on (true) or off (false).")


def fault_name(name: str, value: Json) -> None:
    """Refuse a value that is not the name of a fault."""
    if not isinstance(value, str):
        raise NotifyWorkerError(f"{name} is {value!r}. Give it the name of a fault, such as 503.")
    check_name(value)


def rates(name: str, value: Json) -> None:
    """Refuse a value that does not map faults to probabilities."""
    if not isinstance(value, Mapping):
        raise NotifyWorkerError(f'{name} is {value!r}. Give it faults and their probabilities, such as {{"503": 0.1}}.')
    for fault, likelihood in value.items():
        fault_name(name, fault)
        seconds(f"{name} {fault}", likelihood)
    for those in (value.keys() & DEVICE_FAULTS, value.keys() - DEVICE_FAULTS):
        if (together := sum(value[fault] for fault in those)) > 1 + ROUNDING:
            raise NotifyWorkerError(
                f"{', '.join(sorted(those))} add up to {together:g}. Probabilities can add up to 1 at most."
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
}
