"""Faults by address: an address that begins with the name of a fault behaves accordingly.

`[once|twice]FAULT:anything`, for example `dead:x`, `hang0.5:x`, `once503:phone-1`. FAULT is one of

    dead        404 UNREGISTERED
    503 …       the answer that FCM gives with this status, from 400 to 599
    drop        the request is read, then the connection is closed without an answer
    hang        no answer until the client leaves, or 60 s are over
    hang5       no answer for 5 s

With `once` and `twice` only the first or the first two requests for the address get the fault. A request that hangs
is received, and counts as in flight; its message is shown only when its turn to be answered comes. One that is
dropped is never shown. So what phones show is what FCM answered, or was about to.
"""

import re
from dataclasses import dataclass

from notify_worker.sandbox.answers import UNREGISTERED, Answer, by_status

PATTERN = re.compile(
    r"(?P<times>once|twice)?(?:(?P<dead>dead)|(?P<drop>drop)|(?P<hang>hang(?P<seconds>\d+(?:\.\d+)?)?)|(?P<status>[45]\d\d)):"
)
TIMES = {"once": 1, "twice": 2}
PATIENCE = 60.0
"""How long a plain `hang` waits for the client to leave, in seconds."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection without an answer."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Answer only after this many seconds."""

    seconds: float


Fault = Answer | Drop | Hang


def fault(address: str, number: int) -> Fault | None:
    """Say what is wrong with the `number`-th request (from 1) for an address; None: nothing."""
    asked = PATTERN.match(address)
    if asked is None or (asked["times"] and number > TIMES[asked["times"]]):
        return None
    if asked["dead"]:
        return UNREGISTERED
    if asked["drop"]:
        return Drop()
    if asked["hang"]:
        return Hang(float(asked["seconds"] or PATIENCE))
    return by_status(int(asked["status"]))
