"""What this process knows of the projects: their rows, followed as they change, and how each stands."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from time import monotonic

import psycopg

from notify_worker.errors import CredentialsError
from notify_worker.model import Delivery, Incident, Project
from notify_worker.rate_limiter import RateLimiter
from notify_worker.senders.opening import LazySender
from notify_worker.standing import Standing
from notify_worker.store import Store

log = logging.getLogger(__name__)

READ_EVERY = 1.0
"""Seconds after which the rows are read again, while this process looks for work: so soon a pause of another reaches it."""

OpenSender = Callable[[Project], LazySender]


class Projects:
    """The projects. `read` before each claim; `standing` tells how one stands."""

    def __init__(self, store: Store, open_sender: OpenSender) -> None:
        self._store = store
        self._open_sender = open_sender
        self._standings: dict[str, Standing] = {}
        self._senders: dict[Project, LazySender] = {}
        self._read_at = float("-inf")
        self.limiters: dict[str, RateLimiter] = {}
        """One a project, at the rate that was read last."""

    def standing(self, name: str) -> Standing | None:
        """Tell how a project stands; None: its row is gone, or not read yet."""
        return self._standings.get(name)

    async def read(self, *, anew: bool = False) -> None:
        """Read the rows, where that was not done within the last second. Raises psycopg.Error."""
        if not anew and monotonic() - self._read_at < READ_EVERY:
            return
        before = self._changes()
        rows = await self._store.projects()
        self._read_at = monotonic()
        # Else what was read may be older than what this process has found out.
        current = self._changes() == before and not any(self.found())
        for project, closed, worker_rate in rows:
            new = project.name not in self._standings
            self._follow(project, closed if current or new else None)
            self.limiters.setdefault(project.name, RateLimiter(worker_rate)).rate = worker_rate
        for gone in self._standings.keys() - {project.name for project, *_ in rows}:
            del self._standings[gone], self.limiters[gone]

    async def read_what_is_claimed(self, claimed: Iterable[Delivery]) -> None:
        """Read the rows again where a claim knows more: a pause that is over."""
        for delivery in claimed:
            standing = self.standing(delivery.project)
            if standing is not None and not standing.lets(delivery):
                await self.read(anew=True)
                return

    def found(self) -> Iterator[Incident]:
        """List what this process has found out and not told yet, the oldest of each project first."""
        for standing in self._standings.values():
            yield from standing.found

    def untold(self) -> set[str]:
        """List the projects of which this process has found out something that it has not told yet."""
        return {incident.project for incident in self.found()}

    async def tell(self) -> None:
        """Tell the database. Raises psycopg.Error: what was not told stays to be told."""
        for standing in list(self._standings.values()):
            while standing.found:
                await self._tell(standing.found[0])
                standing.found.pop(0)
                standing.changes += 1

    async def _tell(self, incident: Incident) -> None:
        try:
            await self._store.tell(incident)
        except (psycopg.DataError, UnicodeError):  # words of another package's sender that Postgres can't hold
            await self._store.tell(replace(incident, because="its sender's words can't be kept"))

    async def open_senders(self) -> None:
        """Open each project's sender; log which can't be used. Raises CredentialsError, which says why, where none can."""
        await self.read()
        problems: dict[str, CredentialsError] = {}
        for project, sender in self._each():
            try:
                await sender.open()
            except CredentialsError as error:
                problems[project.name] = error
        if problems and len(problems) == len(self._standings):
            raise CredentialsError("\n".join(map(str, problems.values())))
        for name, problem in problems.items():
            log.warning("project %s can't send: %s", name, problem)

    async def warm_up(self) -> None:
        """Fetch each project's token, so that the first push need not wait; log what can't be had."""
        await self.read()
        for project, sender in self._each():
            try:
                await sender.warm_up()
            except CredentialsError as error:
                log.warning("project %s can't send: %s", project.name, error)
            except Exception as error:  # noqa: BLE001  another package's sender; its text may hold a secret
                log.warning("project %s can't send: its sender breaks (%s)", project.name, type(error).__name__)

    async def aclose(self) -> None:
        """Close every sender that was opened. What is in flight must have ended before."""
        for sender in self._senders.values():
            await sender.aclose()

    def _follow(self, project: Project, closed: list[str] | None) -> None:
        sender = self._sender(project)
        standing = self._standings.get(project.name)
        if standing is None:
            standing = self._standings[project.name] = Standing(project, sender)
        standing.sender = sender
        standing.follow(project, closed)

    def _sender(self, project: Project) -> LazySender:
        """Give the sender of a project: the same one as long as the row says nothing else about the way."""
        way = project.way
        if way not in self._senders:
            self._senders[way] = self._open_sender(project)
        return self._senders[way]

    def _each(self) -> list[tuple[Project, LazySender]]:
        return [(standing.project, self._sender(standing.project)) for standing in self._standings.values()]

    def _changes(self) -> int:
        return sum(standing.changes for standing in self._standings.values())
