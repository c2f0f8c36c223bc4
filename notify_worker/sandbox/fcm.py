"""`messages:send`: checks the bearer token, the project's quota and the message, simulates the fault, and counts."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from time import monotonic, time_ns

from notify_worker.model import Json
from notify_worker.sandbox.account import Account
from notify_worker.sandbox.answers import QUOTA, WRONG_PROJECT, Answer, RefusedError, accepted, with_retry_after
from notify_worker.sandbox.checks import Request, read
from notify_worker.sandbox.faults import Cut, Drop, Hang, RandomFaults, fault_named, fault_of_address
from notify_worker.sandbox.phones import Phones
from notify_worker.sandbox.switches import Switches


@dataclass(slots=True)
class Counts:
    """The numbers of send requests and their results. The sandbox's thread writes; any thread may read."""

    received: int = 0
    accepted: int = 0
    doubles: int = 0
    in_flight: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    """Well-formed, authorised requests by address. `Sandbox` describes the others."""

    def as_json(self) -> dict[str, Json]:
        """Return the counts as JSON, without addresses."""
        return {
            "received": self.received,
            "accepted": self.accepted,
            "doubles": self.doubles,
            "in_flight": self.in_flight,
            "by_status": {str(status): times for status, times in sorted(self.by_status.items())},
            "by_fault": dict(sorted(self.by_fault.items())),
        }


class TokenBucket:
    """A project's quota: holds the requests of one second, refilled continuously at a rate that can be switched."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._available: float | None = None
        self._refilled_at = clock()

    def take(self, rate: float | None) -> bool:
        """Take a token, at `rate` tokens a second (None: no limit). Returns False if there is none."""
        if rate is None:
            self._available = None
            return True
        capacity = max(rate, 1.0) if rate else 0.0  # below one a second, no request would ever succeed
        available = self._refill(rate, capacity)
        self._available = available - 1 if available >= 1 else available
        return available >= 1

    def put_back(self) -> None:
        """Return a token: a request that is answered 429 uses no quota."""
        if self._available is not None:
            self._available += 1

    def _refill(self, rate: float, capacity: float) -> float:
        now = self._clock()
        elapsed, self._refilled_at = now - self._refilled_at, now
        return capacity if self._available is None else min(capacity, self._available + elapsed * rate)


@dataclass(slots=True)
class Project:
    """A Firebase project for which the service account may send."""

    name: str
    counts: Counts = field(default_factory=Counts)
    quota: TokenBucket = field(default_factory=TokenBucket)


class Fcm:
    """Answers send requests."""

    def __init__(self, account: Account, phones: Phones, projects: Iterable[str], random_faults: RandomFaults) -> None:
        self.counts = Counts()
        self.projects = {name: Project(name) for name in projects}
        self._account = account
        self.phones = phones
        self._random_faults = random_faults
        self._serial = count(1)

    async def send(self, project: str, authorization: str | None, body: bytes, switches: Switches) -> Answer | None:
        """Answer a send request. None closes the connection without an answer.

        An accepted message is shown before the latency: a client that is killed meanwhile has sent its message.
        """
        known = self.projects.get(project)
        counted = [self.counts, known.counts] if known else [self.counts]
        with in_flight(counted):
            answer = await self._answer(known, authorization, body, switches)
            if switches.latency:
                await asyncio.sleep(switches.latency)
        if answer:
            for counts in counted:
                counts.by_status[answer.status] += 1
        return answer

    async def _answer(
        self, project: Project | None, authorization: str | None, body: bytes, switches: Switches
    ) -> Answer | None:
        if refused := self._account.refuse(authorization):
            return refused
        if project is None:
            return WRONG_PROJECT
        has_quota = project.quota.take(switches.quota)
        answer = await self._within_quota(project, body, switches) if has_quota else QUOTA
        if has_quota and answer and answer.status == 429:
            project.quota.put_back()
        if answer is QUOTA and switches.retry_after is not None:
            return with_retry_after(QUOTA, str(switches.retry_after))
        return answer

    async def _within_quota(self, project: Project, body: bytes, switches: Switches) -> Answer | None:
        try:
            request = read(body)
        except RefusedError as refused:
            return refused.answer
        fault = self._fault(project, request, switches)
        return await apply_fault(fault, lambda: self._accept(project, request))

    def _fault(self, project: Project, request: Request, switches: Switches) -> str | None:
        """Return the name of the fault that a request meets, and count it."""
        both = (self.counts, project.counts)
        for counts in both:
            counts.requests[request.address] += 1
        if fault := fault_of_address(request):
            name = fault.name if self.counts.requests[request.address] <= fault.times else None
        else:
            name = self._random_faults.draw(request, switches.fail)
        if name:
            for counts in both:
                counts.by_fault[name] += 1
        return name

    def _accept(self, project: Project, request: Request) -> Answer:
        if request.validate_only:
            return accepted(f"projects/{project.name}/messages/fake_message_id")
        double = self.phones.show(request, project.name)
        for counts in (self.counts, project.counts):
            counts.accepted += 1
            counts.doubles += double
        return accepted(f"projects/{project.name}/messages/0:{time_ns() // 1000}%{next(self._serial):016x}")


async def apply_fault(fault: str | None, accept: Callable[[], Answer]) -> Answer | None:
    """Simulate the fault of this name, or accept if there is none. None closes the connection without an answer."""
    match fault_named(fault) if fault else None:
        case Answer() as answer:
            return answer
        case Drop(accepted=was_accepted):
            if was_accepted:
                accept()
            return None
        case Hang(seconds, accepted=True):
            answer = accept()
            await asyncio.sleep(seconds)
            return answer
        case Hang(seconds):
            await asyncio.sleep(seconds)
        case Cut():
            return replace(accept(), cut=True)
    return accept()


@contextmanager
def in_flight(counted: Iterable[Counts]) -> Iterator[None]:
    """Count a request as received, and as in flight until it is answered."""
    for counts in counted:
        counts.received += 1
        counts.in_flight += 1
    try:
        yield
    finally:
        for counts in counted:
            counts.in_flight -= 1
