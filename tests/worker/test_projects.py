"""The projects that a process knows: it follows their rows, keeps their senders, and reports and syncs incidents."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio

from notify_worker.database.store import Store
from notify_worker.model import Message, Outcome, Pause, Project, Scope, Verdict
from notify_worker.pipeline.project_state import ProjectState
from notify_worker.pipeline.projects import Projects
from notify_worker.senders import Sender
from notify_worker.senders.factory import LazySender
from tests.support.messages import DELIVERY
from tests.support.relay import Relay
from tests.support.store_calls import Connection, connected
from tests.support.waiting import auntil

READING = "from notify_worker.projects"
WITHIN_A_SECOND = 1.5
"""With what a busy machine takes for the reading itself."""
A_MINUTE = timedelta(minutes=1)
REVOKED = Outcome(Verdict.PAUSED, error="invalid_grant", pause=Pause(Scope.PROJECT))
TOPIC_QUOTA = Outcome(Verdict.PAUSED, error="too many topics", pause=Pause(Scope.TOPICS, A_MINUTE))
NO_APNS_KEY = Outcome(Verdict.PAUSED, error="no key for Apple", pause=Pause(Scope.APNS_WEB))
TAKEN = Outcome(Verdict.SENT, http_status=200)
PROBE = replace(DELIVERY, probe=True)
INCIDENTS: LiteralString = (
    "select project, scope, by, reason, ended_at is not null as ended from notify_worker.stored_incidents order by id"
)


@dataclass
class Letters:
    """A sender that accepts everything, and notes its credentials and whether it was closed."""

    credentials: str | None
    answer: Outcome
    closed: bool = False

    async def warm_up(self) -> None: ...

    async def send(self, message: Message) -> Outcome:
        return self.answer

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Post:
    """Opens senders, and remembers them."""

    opened: list[Letters] = field(default_factory=list)
    answer: Outcome = TAKEN

    def open_sender(self, project: Project) -> LazySender:
        async def opened() -> Sender:
            self.opened.append(Letters(project.credentials, self.answer))
            return self.opened[-1]

        return LazySender(opened)


@pytest.fixture
def relay(database: str) -> Iterator[Relay]:
    """A relay between a process and the database, which counts statements."""
    with Relay(database) as relay:
        yield relay


@pytest_asyncio.fixture
async def store(relay: Relay) -> AsyncIterator[Store]:
    async with Store(relay.conninfo) as store:
        yield store


@pytest_asyncio.fixture
async def other(database: str) -> AsyncIterator[Projects]:
    """What another process knows."""
    async with Store(database) as store:
        yield Projects(store, Post().open_sender)


def knows(projects: Projects, name: str = "default") -> ProjectState:
    found = projects.state(name)
    assert found is not None
    return found


async def follows(projects: Projects, what: str, holds: Callable[[ProjectState], bool]) -> None:
    """Read as a polling worker does, until this holds."""

    async def read() -> bool:
        await projects.read()
        return holds(knows(projects))

    await auntil(what, read, within=WITHIN_A_SECOND)


def is_blocked(*scopes: Scope) -> Callable[[ProjectState], bool]:
    return lambda state: state.blocked == set(scopes)


# ── rows and senders ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_changed_policy_applies_within_a_second_and_opens_no_other_sender(
    connection: Connection, store: Store
) -> None:
    post = Post()
    projects = Projects(store, post.open_sender)
    await projects.open_senders()
    before = knows(projects)
    sender = before.sender

    connection.execute(
        """
        update notify_worker.projects
        set max_attempts = 3, first_retry_after = '20 s', longest_retry_after = '30 s', max_per_second = 5
        """
    )
    await follows(projects, "the policy is followed", lambda state: state.policy.max_attempts == 3)
    await projects.open_senders()

    assert knows(projects) is before  # with its answer statistics
    assert before.policy.wait(1, jitter=0) == timedelta(seconds=20)
    assert before.sender is sender
    assert len(post.opened) == 1


@pytest.mark.parametrize(
    "change", ["credentials = 'file:new.json'", "firebase_project_id = 'another'", "sender = 'console'"]
)
async def test_another_sender_key_opens_another_sender_and_both_are_closed(
    connection: Connection, store: Store, change: LiteralString
) -> None:
    post = Post()
    projects = Projects(store, post.open_sender)
    await projects.open_senders()
    state = knows(projects)
    before = state.sender

    connection.execute(f"update notify_worker.projects set {change}")
    await projects.read(force=True)
    await state.sender.send(Message("token", {"token": "fcm:abc"}))

    assert knows(projects) is state
    assert state.sender is not before
    assert [letters.closed for letters in post.opened] == [False, False]
    await projects.aclose()
    assert [letters.closed for letters in post.opened] == [True, True]


async def test_credentials_that_come_back_use_their_earlier_sender(connection: Connection, store: Store) -> None:
    post = Post()
    projects = Projects(store, post.open_sender)

    for credentials in ("file:old.json", "file:new.json", "file:old.json"):
        connection.execute("update notify_worker.projects set credentials = %s", [credentials])
        await projects.read(force=True)
        await projects.open_senders()

    assert [letters.credentials for letters in post.opened] == ["file:old.json", "file:new.json"]


async def test_project_rows_are_read_at_most_once_a_second(store: Store, relay: Relay) -> None:
    projects = Projects(store, Post().open_sender)

    for _ in range(50):
        await projects.read()

    assert relay.asked(READING) == 1
    await projects.read(force=True)
    assert relay.asked(READING) == 2


async def test_a_new_project_has_a_limiter_once_it_is_read(connection: Connection, store: Store) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    connection.execute("insert into notify_worker.projects (name, max_attempts) values ('orders', 4)")

    await projects.read()
    too_early = projects.state("orders"), "orders" in projects.limiters
    await projects.read(force=True)

    assert too_early == (None, False)
    assert knows(projects, "orders").policy.max_attempts == 4
    assert projects.limiters["orders"].available(monotonic()) >= 1


async def test_a_new_rate_applies_to_the_same_limiter(connection: Connection, store: Store) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    limiter = projects.limiters["default"]

    connection.execute("update notify_worker.projects set max_per_second = 42")
    await projects.read(force=True)

    assert projects.limiters["default"] is limiter
    assert limiter.rate == 42


async def test_a_claim_from_a_project_believed_paused_rereads_the_projects_once(
    connection: Connection, store: Store, relay: Relay
) -> None:
    projects = Projects(store, Post().open_sender)
    connection.pause("default", "maintenance")
    await projects.read()
    stopped = knows(projects).blocked
    connection.resume("default")
    connection.insert()

    claim = await store.claim(connection.register_worker().id, uuid4(), 10, {"default": 10}, A_MINUTE)
    await projects.reread_if_blocked(claim.deliveries)
    await projects.reread_if_blocked(claim.deliveries)

    (delivery,) = claim.deliveries
    assert stopped == {Scope.PROJECT}
    assert knows(projects).allows(delivery)
    assert relay.asked(READING) == 2


async def test_a_deleted_project_is_forgotten(connection: Connection, store: Store) -> None:
    projects = Projects(store, Post().open_sender)
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    await projects.read()
    knows(projects, "orders")

    connection.execute("delete from notify_worker.projects where name = 'orders'")
    await projects.read(force=True)

    assert projects.state("orders") is None
    assert list(projects.limiters) == ["default"]
    knows(projects)


# ── report ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_incidents_are_reported_in_order_and_once(connection: Connection, store: Store) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    state = knows(projects)
    for outcome in (REVOKED, TOPIC_QUOTA, NO_APNS_KEY):
        state.observe(DELIVERY, outcome)

    await projects.report()
    await projects.report()

    incidents = connection.rows(INCIDENTS)
    assert [(each["scope"], each["reason"]) for each in incidents] == [
        ("project", "invalid_grant"),
        ("topics", "too many topics"),
        ("apns_web", "no key for Apple"),
    ]
    assert {(each["project"], each["by"], each["ended"]) for each in incidents} == {("default", "worker", False)}
    assert list(projects.unreported()) == []


async def test_a_pause_that_ends_unreported_is_opened_and_closed(connection: Connection, store: Store) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    state = knows(projects)
    state.observe(DELIVERY, REVOKED)
    state.observe(PROBE, TAKEN)

    await projects.report()

    (only,) = connection.rows(INCIDENTS)
    assert only["ended"]
    assert connection.project_pause() == (None, None)


async def test_an_incident_pauses_its_own_project_alone(connection: Connection, store: Store) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    projects = Projects(store, Post().open_sender)
    await projects.read()
    knows(projects, "orders").observe(DELIVERY, REVOKED)

    await projects.report()

    assert connection.project_pause("orders")[1] == "invalid_grant"
    assert connection.project_pause() == (None, None)
    assert knows(projects).allows(DELIVERY)


async def test_a_refused_incident_is_reported_later_once_and_no_sync_undoes_it(
    connection: Connection, store: Store
) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    state = knows(projects)
    for outcome in (REVOKED, TOPIC_QUOTA, NO_APNS_KEY):
        state.observe(DELIVERY, outcome)
    connection.execute(
        "alter table notify_worker.stored_incidents add constraint no_topics check (scope <> 'topics') not valid"
    )

    with pytest.raises(psycopg.errors.CheckViolation):
        await projects.report()
    kept = [incident.scope for incident in projects.unreported()]
    await projects.read(force=True)
    still_blocked = state.blocked
    connection.execute("alter table notify_worker.stored_incidents drop constraint no_topics")
    await projects.report()

    assert kept == [Scope.TOPICS, Scope.APNS_WEB]
    assert still_blocked == {Scope.PROJECT, Scope.TOPICS, Scope.APNS_WEB}
    assert [each["scope"] for each in connection.rows(INCIDENTS)] == ["project", "topics", "apns_web"]


async def test_while_the_database_is_away_an_incident_stays_unreported_and_still_blocks(
    connection: Connection, relay: Relay
) -> None:
    async with Store(relay.conninfo) as store:
        projects = Projects(store, Post().open_sender)
        await projects.read()
    state = knows(projects)
    state.observe(DELIVERY, REVOKED)

    with pytest.raises(psycopg.OperationalError):
        await projects.report()
    with pytest.raises(psycopg.OperationalError):
        await projects.read(force=True)

    assert [incident.scope for incident in projects.unreported()] == [Scope.PROJECT]
    assert not state.allows(DELIVERY)
    assert connection.rows(INCIDENTS) == []


async def test_an_incident_with_a_lost_answer_is_reported_again_and_stored_once(
    connection: Connection, store: Store, relay: Relay
) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    knows(projects).observe(DELIVERY, REVOKED)
    relay.lose_the_answer_to("open_incident(")

    with pytest.raises(psycopg.OperationalError):
        await projects.report()
    kept = list(projects.unreported())
    await projects.report()

    assert relay.has_lost("open_incident(")
    assert len(kept) == 1
    assert list(projects.unreported()) == []
    assert len(connection.rows(INCIDENTS)) == 1


async def test_an_incident_with_text_that_postgres_refuses_is_stored_sanitised(
    connection: Connection, store: Store
) -> None:
    """The outcome of a plugin sender passes LazySender, which sanitises it."""
    post = Post(answer=Outcome(Verdict.PAUSED, error="it broke at \0", pause=Pause(Scope.PROJECT)))
    projects = Projects(store, post.open_sender)
    await projects.read()
    state = knows(projects)
    state.observe(DELIVERY, await state.sender.send(Message("token", {"token": "app:phone"})))

    await projects.report()

    assert (connection.row(INCIDENTS)["scope"], connection.row(INCIDENTS)["reason"]) == ("project", "it broke at")


# ── two processes ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_process_follows_a_pause_within_a_second(store: Store, other: Projects) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    await other.read()
    state = knows(projects)

    state.observe(DELIVERY, REVOKED)
    state.observe(DELIVERY, NO_APNS_KEY)
    await projects.report()

    await follows(other, "the other one stops", is_blocked(Scope.PROJECT, Scope.APNS_WEB))
    assert not knows(other).allows(DELIVERY)
    assert list(other.unreported()) == []


async def test_another_process_follows_the_end_of_a_pause_within_a_second(
    connection: Connection, store: Store, other: Projects
) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    knows(projects).observe(DELIVERY, REVOKED)
    await projects.report()
    await other.read()
    followed = knows(other).blocked

    knows(other).observe(PROBE, TAKEN)
    await other.report()

    assert followed == {Scope.PROJECT}
    await follows(projects, "the first one goes on", is_blocked())
    assert [each["ended"] for each in connection.rows(INCIDENTS)] == [True]


async def test_an_operators_pause_and_resume_are_followed_within_a_second(
    connection: Connection, other: Projects
) -> None:
    await other.read()

    connection.pause("default", "maintenance")
    await follows(other, "it stops", is_blocked(Scope.PROJECT))
    connection.resume("default")

    await follows(other, "it goes on", is_blocked())


async def test_a_pause_with_an_end_ends_by_itself(store: Store) -> None:
    projects = Projects(store, Post().open_sender)
    await projects.read()
    short = Pause(Scope.PROJECT, timedelta(milliseconds=300))
    knows(projects).observe(DELIVERY, Outcome(Verdict.PAUSED, error="quota", http_status=429, pause=short))
    await projects.report()
    await projects.read(force=True)
    stopped = knows(projects).blocked

    async def is_over() -> bool:
        await projects.read(force=True)
        return not knows(projects).blocked

    await auntil("it is over", is_over, within=WITHIN_A_SECOND)
    assert stopped == {Scope.PROJECT}


# ── a reading under way ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def slow_answers(connection: Connection) -> None:
    """A query that has read the blocked scopes answers only once nobody holds this advisory lock."""
    connection.execute(
        """
        create schema as_it_is;
        alter function notify_worker.blocked_scopes(text) set schema as_it_is;
        create function notify_worker.blocked_scopes(project text) returns text[] language plpgsql stable as $$
        declare
            seen text[] := as_it_is.blocked_scopes(project);
        begin
            perform pg_advisory_xact_lock_shared(5);
            return seen;
        end
        $$;
        """
    )


async def under_way(connection: Connection) -> None:
    waits: LiteralString = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    await auntil("the reading has seen, and answers late", lambda: bool(connection.value(waits)), within=5)


@pytest.mark.usefixtures("slow_answers")
@pytest.mark.parametrize("news", ["it is stopped", "it goes on"])
@pytest.mark.parametrize("order", ["read, observe", "read, observe, report", "observe, read, report"])
async def test_an_older_sync_does_not_undo_an_incident_of_this_process(
    connection: Connection, database: str, store: Store, order: str, news: str
) -> None:
    before, meanwhile = order.split("read")
    projects = Projects(store, Post().open_sender)
    await projects.read()
    state = knows(projects)
    if news == "it goes on":
        state.observe(DELIVERY, REVOKED)
        await projects.report()
    now = {Scope.PROJECT} if news == "it is stopped" else set()

    async def do(steps: str) -> None:
        if "observe" in steps:
            state.observe(*((DELIVERY, REVOKED) if news == "it is stopped" else (PROBE, TAKEN)))
        if "report" in steps:
            await projects.report()

    with connected(database) as somebody:
        somebody.execute("select pg_advisory_lock(5)")
        await do(before)
        reading = asyncio.create_task(projects.read(force=True))
        await under_way(connection)

        await do(meanwhile)
        somebody.execute("select pg_advisory_unlock(5)")
        await reading

    assert state.blocked == now
    await projects.report()
    await projects.read(force=True)
    assert state.blocked == now
