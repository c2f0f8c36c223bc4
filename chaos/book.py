"""The record of a chaos run: commits of the producers, messages at the phones, and faults.

It knows nothing of the system under test.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from time import monotonic

from notify_worker.sandbox import Shown

UNANSWERED = "onceaccepteddrop"
"""The prefix of an address whose first message FCM accepts without an answer: nobody can know, so it comes twice."""
NO_FAULT, NO_ANSWER = "no fault", "no answer from FCM"
READ_LATE = 2.0
AT_RISK_FOR = 60.0
"""Seconds after which what was shown is recorded, or lost its answer to an earlier fault."""

Push = tuple[str, str]
"""An event and an address: what must arrive, and once."""


@dataclass(frozen=True)
class Event:
    """One notification of a producer: to a receiver with these addresses, or to one address."""

    id: str
    addresses: tuple[str, ...]
    receiver: str | None = None
    hold: bool = False
    born: float = field(default_factory=monotonic)


@dataclass
class Fault:
    """A fault that struck. `at_risk`: the unrecorded messages that FCM may have had then, its limit of doubles."""

    kind: str
    loses_answers: bool
    began: float
    ended: float = float("inf")
    at_risk: int = 0
    pid: int | None = None
    """The worker that it struck, if it was one."""


@dataclass(frozen=True)
class Double:
    """A push that was shown twice, and when."""

    push: Push
    first: float
    again: float


class Book:
    """Written from many threads."""

    def __init__(self) -> None:
        self.committed: dict[str, Event] = {}
        self.rolled_back: dict[str, Event] = {}
        self.uncertain: dict[str, Event] = {}
        """COMMIT was asked for, and its answer never came."""
        self.faults: list[Fault] = []
        self._shown: defaultdict[Push, list[float]] = defaultdict(list)
        self._latest: deque[tuple[float, Push]] = deque(maxlen=20_000)
        self._lock = Lock()

    # What producers saw

    def asked_to_commit(self, events: Iterable[Event]) -> None:
        with self._lock:
            self.uncertain.update({event.id: event for event in events})

    def was_committed(self, events: Iterable[Event]) -> None:
        with self._lock:
            for event in events:
                self.committed[event.id] = event
                self.uncertain.pop(event.id, None)

    def was_rolled_back(self, events: Iterable[Event]) -> None:
        with self._lock:
            self.rolled_back.update({event.id: event for event in events})

    def resolve_uncertain(self, present: set[str]) -> None:
        """Decide by the database's final contents whether commits with lost answers came through."""
        with self._lock:
            for name, event in self.uncertain.items():
                (self.committed if name in present else self.rolled_back)[name] = event
            self.uncertain.clear()

    # What phones saw

    def show(self, shown: Shown) -> None:
        with self._lock:
            push = (shown.data["event"], shown.address)
            self._shown[push].append(monotonic())
            self._latest.append((monotonic(), push))

    def lately_shown(self) -> set[Push]:
        """Return the pushes that were shown within the last minute."""
        with self._lock:
            return {push for at, push in self._latest if at > monotonic() - AT_RISK_FOR}

    def shown(self) -> set[Push]:
        with self._lock:
            return set(self._shown)

    def times_shown(self) -> int:
        with self._lock:
            return sum(map(len, self._shown.values()))

    def doubles(self) -> list[Double]:
        with self._lock:
            return [
                Double(push, before, after) for push, times in self._shown.items() for before, after in pairwise(times)
            ]

    # Who is to blame

    def fault_behind(self, double: Double, unanswered: set[Push], lost_by: set[int]) -> str:
        """Name the fault that made a message come twice; first of all one that struck the worker which lost its answer."""
        if double.push[1].startswith(UNANSWERED):
            return NO_ANSWER
        between = [each for each in self.faults if each.began <= double.again and each.ended >= double.first]
        losing = [each for each in between if each.loses_answers]
        if guilty := [each for each in losing if each.pid in lost_by] or losing:
            return fault_that_lost(guilty, double.first).kind
        frozen = [each for each in between if "frozen" in each.kind]
        if double.push in unanswered and not frozen:
            return NO_ANSWER
        return next((each.kind for each in frozen or between), NO_FAULT)

    def fault_at(self, moment: float) -> str:
        """Name the last fault that had begun at this moment."""
        return next((each.kind for each in reversed(self.faults) if each.began <= moment), NO_FAULT)


def fault_that_lost(faults: list[Fault], shown: float) -> Fault:
    """Choose the fault that lost the answer to a message shown at this moment: the first after it, else the last before.

    FCM may read a request a moment after its sender was killed.
    """
    after = [each for each in faults if each.began >= shown - READ_LATE]
    return min(after, key=lambda each: each.began) if after else max(faults, key=lambda each: each.began)
