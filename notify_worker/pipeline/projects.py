"""What this process knows of the projects: their rows, read again as they change, and the state of each."""

import logging
from collections.abc import Callable, Iterable, Iterator
from time import monotonic

from notify_worker.database.store import Store
from notify_worker.errors import CredentialsError
from notify_worker.model import Delivery, Incident, Project
from notify_worker.pipeline.project_state import ProjectState
from notify_worker.pipeline.rate_limiter import RateLimiter
from notify_worker.senders.factory import LazySender

log = logging.getLogger(__name__)

READ_EVERY = 1.0
"""Seconds after which the rows are read again, while this process looks for work: so soon a pause of another reaches it."""

OpenSender = Callable[[Project], LazySender]


class Projects:
    """The projects. `read` before each claim; `state` returns what is known of one."""

    def __init__(self, store: Store, open_sender: OpenSender) -> None:
        self._store = store
        self._open_sender = open_sender
        self._states: dict[str, ProjectState] = {}
        self._senders: dict[Project, LazySender] = {}
        self._read_at = float("-inf")
        self.limiters: dict[str, RateLimiter] = {}
        """One a project, at the rate that was read last."""

    def state(self, name: str) -> ProjectState | None:
        """Return what is known of a project; None: its row is gone, or not read yet."""
        return self._states.get(name)

    async def read(self, *, anew: bool = False) -> None:
        """Read the rows, where that was not done within the last second. Raises psycopg.Error."""
        if not anew and monotonic() - self._read_at < READ_EVERY:
            return
        before = self._changes()
        rows = await self._store.projects()
        self._read_at = monotonic()
        # Else what was read may be older than what this process has found out.
        current = self._changes() == before and not any(self.unreported())
        for project, blocked, worker_rate in rows:
            new = project.name not in self._states
            self._sync(project, blocked if current or new else None)
            self.limiters.setdefault(project.name, RateLimiter(worker_rate)).rate = worker_rate
        for gone in self._states.keys() - {project.name for project, *_ in rows}:
            del self._states[gone], self.limiters[gone]

    async def read_what_is_claimed(self, claimed: Iterable[Delivery]) -> None:
        """Read the rows again where a claim knows more: a pause that is over."""
        for delivery in claimed:
            state = self.state(delivery.project)
            if state is not None and not state.allows(delivery):
                await self.read(anew=True)
                return

    def unreported(self) -> Iterator[Incident]:
        """List what this process has found out and not reported yet, the oldest of each project first."""
        for state in self._states.values():
            yield from state.unreported

    def projects_with_unreported(self) -> set[str]:
        """List the projects of which something is not reported yet."""
        return {incident.project for incident in self.unreported()}

    async def report(self) -> None:
        """Report what was found out to the database. Raises psycopg.Error: what was not reported yet is kept."""
        for state in list(self._states.values()):
            while state.unreported:
                await self._store.report(state.unreported[0])
                state.unreported.pop(0)
                state.changes += 1

    async def open_senders(self) -> None:
        """Open each project's sender; log which can't be used. Raises CredentialsError, which says why, where none can."""
        await self.read()
        problems: dict[str, CredentialsError] = {}
        for project, sender in self._each():
            try:
                await sender.open()
            except CredentialsError as error:
                problems[project.name] = error
        if problems and len(problems) == len(self._states):
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

    def _sync(self, project: Project, blocked: list[str] | None) -> None:
        sender = self._sender(project)
        state = self._states.get(project.name)
        if state is None:
            state = self._states[project.name] = ProjectState(project, sender)
        state.sender = sender
        state.sync(project, blocked)

    def _sender(self, project: Project) -> LazySender:
        """Return a project's sender: the same one until the row changes in a way that concerns the sender."""
        key = project.sender_key
        if key not in self._senders:
            self._senders[key] = self._open_sender(project)
        return self._senders[key]

    def _each(self) -> list[tuple[Project, LazySender]]:
        return [(state.project, self._sender(state.project)) for state in self._states.values()]

    def _changes(self) -> int:
        return sum(state.changes for state in self._states.values())
