"""Faults by address: an address that begins with the name of a fault behaves accordingly.

`[once|twice]FAULT:anything`, for example `dead:x`, `hang0.5:x`, `once503:phone-1`; in a topic, which can't have a colon,
`topicquota~news`, and a condition is read by its first topic. FAULT is one of

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

With `once` and `twice` only the first or the first two requests for the address get the fault. A request that hangs
is received, and counts as in flight; its message is shown only when its turn to be answered comes. One that is
dropped is never shown. What is `accepted…` or cut is shown at once: the phone has it, and the client can't know.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from math import inf

from notify_worker.errors import NotifyWorkerError
from notify_worker.sandbox.answers import Answer
from notify_worker.sandbox.catalogue import LATER, NAMED, by_status, unavailable_until
from notify_worker.sandbox.checks import Request

ADDRESS = re.compile(r"(?P<times>once|twice)?(?P<name>[a-z0-9.]+)[:~]")
FIRST_TOPIC = re.compile(r"'([^']*)'")
HANG = re.compile(r"(?P<accepted>accepted)?hang(?P<seconds>\d+(?:\.\d+)?)?", re.ASCII)
STATUS = re.compile(r"[45]\d\d", re.ASCII)
TIMES = {"once": 1, "twice": 2, None: inf}
PATIENCE = timedelta(seconds=60)
"""How long a plain `hang` waits for the client to leave."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection without an answer."""

    accepted: bool


@dataclass(frozen=True, slots=True)
class Hang:
    """Answer only after this many seconds; accepted before them, or after."""

    seconds: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """Accept, and close the connection in the middle of the answer."""


Fault = Answer | Drop | Hang | Cut

WITHOUT_ANSWER: dict[str, Fault] = {"drop": Drop(accepted=False), "accepteddrop": Drop(accepted=True), "cut200": Cut()}
LATER_503 = {"later503": False, "datelater503": True}
DEVICE_FAULTS = frozenset({"dead", "404", "malformed", "oldmalformed", "apnsdead", "apnsgone", "mismatch", "403"})
"""What is wrong with a device each time, not with a request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The fault that an address asks for, and how many requests get it."""

    name: str
    times: float


def asked_by(request: Request) -> Asked | None:
    """Read the fault in an address; None: it asks for none."""
    first_topic = FIRST_TOPIC.search(request.address) if request.kind == "condition" else None
    found = ADDRESS.match(first_topic[1] if first_topic else request.address)
    if found is None or behaviour(found["name"]) is None:
        return None
    return Asked(found["name"], TIMES[found["times"]])


def behaviour(name: str) -> Fault | None:
    """Say what a fault of this name does; None: no fault has this name."""
    if known := NAMED.get(name) or WITHOUT_ANSWER.get(name):
        return known
    if name in LATER_503:
        return unavailable_until(LATER, as_date=LATER_503[name])
    if hang := HANG.fullmatch(name):
        return Hang(float(hang["seconds"] or PATIENCE.total_seconds()), accepted=bool(hang["accepted"]))
    return by_status(int(name)) if STATUS.fullmatch(name) else None


def check_name(name: str) -> None:
    """Refuse the name of a fault that is none.

    Raises NotifyWorkerError.
    """
    if behaviour(name) is None:
        known = (*NAMED, *WITHOUT_ANSWER, *LATER_503, "hang", "acceptedhang", "500", "503", "504")
        nearest = get_close_matches(name, known, n=1)
        hint = f'Did you mean "{nearest[0]}"?' if nearest else "Take one such as 503, dead or hang."
        raise NotifyWorkerError(f'"{name}" is no fault. {hint}')
