"""The projects as this process knows them: their rows, and a state, a sender and a rate limiter for each.

A claim reads the rows first, at most once a second. They are also read at each wake-up, after each registration of this
worker, and when a claimed delivery seems blocked, since its incident must have ended.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from time import monotonic

import psycopg

from notify_worker.database.store import Store
from notify_worker.errors import CredentialsError
from notify_worker.model import Delivery, Incident, Project
from notify_worker.pipeline.project_state import ProjectState
from notify_worker.pipeline.rate_limiter import RateLimiter
from notify_worker.senders.factory import LazySender

log = logging.getLogger(__name__)

READ_INTERVAL = 1.0
"""Seconds between two readings while this process claims: an incident of another worker takes so long to reach it."""

OpenSender = Callable[[Project], LazySender]


class Projects:
    """All projects. `read` them before each claim; `state` returns one."""

    def __init__(self, store: Store, open_sender: OpenSender) -> None:
        self._store = store
        self._open_sender = open_sender
        self._states: dict[str, ProjectState] = {}
        self._senders: dict[Project, LazySender] = {}
        self._read_at = float("-inf")
        self.limiters: dict[str, RateLimiter] = {}
        """By project, at the rate that was read last."""

    def state(self, name: str) -> ProjectState | None:
        """Return the state of a project; None if its row was deleted, or not read yet."""
        return self._states.get(name)

    async def read(self, *, force: bool = False) -> None:
        """Read the rows, unless that was done within the last second or is forced. Raises psycopg.Error."""
        if not force and monotonic() - self._read_at < READ_INTERVAL:
            return
        before = {name: state.changes for name, state in self._states.items()}
        rows = await self._store.projects()
        self._read_at = monotonic()
        for project, blocked, worker_rate in rows:
            state = self._states.get(project.name)
            # If this process learned something meanwhile, or could not report it, the row is older than that.
            knows_more = state is not None and (state.unreported or state.changes != before.get(project.name))
            self._sync(project, None if knows_more else blocked)
            self.limiters.setdefault(project.name, RateLimiter(worker_rate)).rate = worker_rate
        for gone in self._states.keys() - {project.name for project, *_ in rows}:
            del self._states[gone], self.limiters[gone]

    async def reread_if_blocked(self, claimed: Iterable[Delivery]) -> None:
        """Read the rows again if a delivery was claimed that seems blocked: its incident must have ended."""
        for delivery in claimed:
            state = self.state(delivery.project)
            if state is not None and not state.allows(delivery):
                await self.read(force=True)
                return

    def unreported(self) -> Iterator[Incident]:
        """Yield the incidents that this process has not reported yet, the oldest of each project first."""
        for state in self._states.values():
            yield from state.unreported

    def projects_with_unreported(self) -> set[str]:
        """Return the projects with unreported incidents."""
        return {incident.project for incident in self.unreported()}

    async def report(self) -> psycopg.errors.LockNotAvailable | None:
        """Report incidents to the database. What was not reported is kept.

        Return the error of a project whose lock another worker kept for too long: it holds up no other project. Raise any
        other psycopg.Error.
        """
        locked = None
        for state in list(self._states.values()):
            try:
                while state.unreported:
                    await self._store.report(state.unreported[0])
                    state.unreported.pop(0)
                    state.changes += 1
            except psycopg.errors.LockNotAvailable as error:
                locked = error
        return locked

    async def open_senders(self) -> None:
        """Open each project's sender, and log which can't be used. Raises CredentialsError if none can."""
        await self.read()
        problems: dict[str, CredentialsError] = {}
        for project, sender in self._projects_and_senders():
            try:
                await sender.open()
            except CredentialsError as error:
                problems[project.name] = error
        if problems and len(problems) == len(self._states):
            raise CredentialsError("\n".join(map(str, problems.values())))
        for name, problem in problems.items():
            warn_unusable(name, str(problem))

    async def warm_up(self) -> None:
        """Fetch each project's access token, so that the first push need not wait for it; log failures."""
        await self.read()
        for project, sender in self._projects_and_senders():
            try:
                await sender.warm_up()
            except CredentialsError as error:
                warn_unusable(project.name, str(error))
            except Exception as error:  # noqa: BLE001  another package's sender; its text may hold a secret
                warn_unusable(project.name, f"its sender breaks ({type(error).__name__})")

    async def aclose(self) -> None:
        """Close every sender that was opened, once no request is in flight."""
        for sender in self._senders.values():
            await sender.aclose()

    def _sync(self, project: Project, blocked: list[str] | None) -> None:
        sender = self._sender(project)
        state = self._states.setdefault(project.name, ProjectState(project, sender))
        state.sender = sender
        state.sync(project, blocked)

    def _sender(self, project: Project) -> LazySender:
        """Return a project's sender: the same one until the project's `sender_key` changes."""
        key = project.sender_key
        if key not in self._senders:
            self._senders[key] = self._open_sender(project)
        return self._senders[key]

    def _projects_and_senders(self) -> list[tuple[Project, LazySender]]:
        return [(state.project, self._sender(state.project)) for state in self._states.values()]


def warn_unusable(project: str, reason: str) -> None:
    """Log that a project can't send."""
    log.warning(
        "project %s can't send: %s",
        project,
        reason,
        extra={"event": "sender_unusable", "project": project, "reason": reason},
    )
