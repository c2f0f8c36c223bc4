"""The faults that the sandbox can simulate: by address, or by rate for addresses that name none.

An address that begins with the name of a fault gets that fault: `[once|twice]FAULT:anything`, for example `dead:x`,
`hang0.5:x`, `once503:phone-1`. A topic can't contain a colon: write `topicquota~news`. In a condition, the first topic
decides. FAULT is one of

    dead, apnsgone                    404 UNREGISTERED, the second with Apple's words
    malformed, oldmalformed           400 for a token that is none, in two forms
    apnsdead                          400 for a token that Apple has disabled
    badfield, invalid, toobig         400 for a bad message: an unknown field, a bad value, its size
    nobearer, badbearer, expiredbearer, html401         401 for the bearer
    thirdparty                        401 for the key that Firebase holds for Apple or for the web
    mismatch                          403 for a token of another sender
    apidisabled, denied               403 for the project
    html404                           a page, which says nothing of the token
    quota, bare429                    429 of the project; with an empty body
    topicquota, devicequota           429 of the topic or the device
    internal, empty500, html502       500 and 502; with an empty body, as a page
    later503, datelater503            503 with `Retry-After`: 30, or as a date
    503 …                             the answer that FCM gives with this status, from 400 to 599
    drop, accepteddrop                the request is read, then the connection is closed without an answer
    hang, acceptedhang                no answer until the client leaves, or 60 s are over
    hang5, acceptedhang5              no answer for 5 s
    cut200                            the message is accepted, and the connection closed in the middle of the answer

With `once` and `twice`, only the first one or two requests for the address get the fault. A request that hangs counts as
received and in flight; its message is shown only when it is answered. The message of a dropped request is never shown. With
`accepted…` and `cut200` the message is shown at once: the phone has it, but the client can't know.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from math import inf
from random import Random
from secrets import randbits

from notify_worker.errors import NotifyWorkerError, did_you_mean
from notify_worker.model import DEVICE_KINDS
from notify_worker.sandbox.answers import NAMED, Answer, by_status, unavailable_with_retry_after
from notify_worker.sandbox.checks import Request

ADDRESS = re.compile(r"(?P<times>once|twice)?(?P<name>[a-z0-9.]+)[:~]")
FIRST_TOPIC = re.compile(r"'([^']*)'")
HANG = re.compile(r"(?P<accepted>accepted)?hang(?P<seconds>\d+(?:\.\d+)?)?", re.ASCII)
STATUS = re.compile(r"[45]\d\d", re.ASCII)
TIMES = {"once": 1, "twice": 2, None: inf}
LONGEST_HANG = timedelta(seconds=60)
"""How long a plain `hang` waits for the client to leave."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection without an answer."""

    accepted: bool


@dataclass(frozen=True, slots=True)
class Hang:
    """Answer only after this many seconds. The message is accepted before the wait, or after it."""

    seconds: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """Accept the message, and close the connection in the middle of the answer."""


Fault = Answer | Drop | Hang | Cut

WITHOUT_ANSWER: dict[str, Fault] = {"drop": Drop(accepted=False), "accepteddrop": Drop(accepted=True), "cut200": Cut()}
LATER_503 = {"later503": False, "datelater503": True}
DEVICE_FAULTS = frozenset({"dead", "404", "malformed", "oldmalformed", "apnsdead", "apnsgone", "mismatch", "403"})
"""Faults of a device, which all its requests meet."""


def fault_named(name: str) -> Fault | None:
    """Return the fault of this name; None if there is none."""
    if known := NAMED.get(name) or WITHOUT_ANSWER.get(name):
        return known
    if name in LATER_503:
        return unavailable_with_retry_after(as_date=LATER_503[name])
    if hang := HANG.fullmatch(name):
        return Hang(float(hang["seconds"] or LONGEST_HANG.total_seconds()), accepted=bool(hang["accepted"]))
    return by_status(int(name)) if STATUS.fullmatch(name) else None


def check_name(name: str) -> None:
    """Raise NotifyWorkerError if no fault has this name. It suggests the closest one."""
    if fault_named(name) is None:
        known = (*NAMED, *WITHOUT_ANSWER, *LATER_503, "hang", "acceptedhang", "500", "503", "504")
        hint = did_you_mean(name, known, form='"{}"', otherwise="Use one such as 503, dead or hang.")
        raise NotifyWorkerError(f'"{name}" is no fault. {hint}')


@dataclass(frozen=True, slots=True)
class AddressFault:
    """The fault that an address names, and how many of its requests get it."""

    name: str
    times: float


def fault_of_address(request: Request) -> AddressFault | None:
    """Return the fault that an address names; None if it names none."""
    first_topic = FIRST_TOPIC.search(request.address) if request.kind == "condition" else None
    found = ADDRESS.match(first_topic[1] if first_topic else request.address)
    if found is None or fault_named(found["name"]) is None:
        return None
    return AddressFault(found["name"], TIMES[found["times"]])


class RandomFaults:
    """Faults by rate. Those of requests are random; those of devices depend on the address: a dead device stays dead."""

    def __init__(self, seed: int | None) -> None:
        self._seed = randbits(32) if seed is None else seed
        self._random = Random(self._seed)  # noqa: S311  no secret depends on it

    def draw(self, request: Request, rates: Mapping[str, float]) -> str | None:
        """Return the name of this request's fault. Those of requests come first: a 503 hides that a device is dead."""
        of_requests = {name: rate for name, rate in rates.items() if name not in DEVICE_FAULTS}
        if fault := pick(of_requests.items(), self._random.random()):
            return fault
        if request.kind not in DEVICE_KINDS:
            return None
        of_devices = ((name, rate) for name, rate in rates.items() if name in DEVICE_FAULTS)
        return pick(of_devices, self._number_of(request.address))

    def _number_of(self, address: str) -> float:
        """Hash an address to a number in [0, 1)."""
        digest = blake2b(f"{self._seed}:{address}".encode(errors="replace"), digest_size=6).digest()
        return int.from_bytes(digest) / (1 << 48)


def pick(rates: Iterable[tuple[str, float]], number: float) -> str | None:
    """Return the fault whose share of [0, 1) contains the number; None if no share does."""
    for name, rate in rates:
        if number < rate:
            return name
        number -= rate
    return None
