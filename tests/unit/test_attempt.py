"""One attempt of a delivery, with a scripted provider: slots, quick retries, stopping, and bugs."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest

from notify_worker.model import (
    Attempt,
    Change,
    Content,
    Delivery,
    Incident,
    Message,
    OnUnknown,
    Outcome,
    Pause,
    Project,
    Scope,
    Verdict,
)
from notify_worker.pipeline.attempt import AttemptRun
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.project_state import ProjectState
from notify_worker.pipeline.slots import Slots
from notify_worker.pipeline.start_marks import StartMarks
from tests.support.messages import DELIVERY
from tests.support.waiting import auntil

SENT = Outcome(Verdict.SENT, http_status=200)
FAILED = Outcome(Verdict.FAILED, http_status=400)
RETRYABLE = Outcome(Verdict.UNKNOWN, http_status=503, quickly_retryable=True)
NEVER_LEFT = Outcome(Verdict.RETRY, quickly_retryable=True)
REFUSED_TOKEN = Outcome(Verdict.PAUSED, http_status=401, quickly_retryable=True)
QUOTA = Outcome(Verdict.PAUSED, http_status=429, pause=Pause(Scope.PROJECT, timedelta(minutes=1)))
SHORT_WAIT = 0.9
"""Seconds in which no wait of a quick retry can have passed."""


@dataclass
class ScriptedSender:
    """Gives each address the answers of its own script, in turn, as soon as `go` is set; SENT where there is none."""

    scripts: dict[str, list[Outcome | Exception]] = field(default_factory=dict)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0

    async def warm_up(self) -> None: ...

    async def aclose(self) -> None: ...

    async def send(self, message: Message) -> Outcome:
        address = message.body["token"]
        self.asked.append(address)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        await self.go.wait()
        self.busy -= 1
        answer = self.scripts[address].pop(0) if self.scripts.get(address) else SENT
        if isinstance(answer, Exception):
            raise answer
        return answer


def ready(**scripts: list[Outcome | Exception]) -> ScriptedSender:
    """A sender that answers at once."""
    sender = ScriptedSender(scripts)
    sender.go.set()
    return sender


def attempt(
    sender: ScriptedSender,
    address: str = "a",
    *,
    slots: Slots | None = None,
    stopping: asyncio.Event | None = None,
    quick_retry_window: float = 60,
    state: ProjectState | None = None,
    marks: StartMarks | None = None,
    alive: bool = True,
    **delivery: Any,
) -> AttemptRun:
    return AttemptRun(
        replace(DELIVERY, address=address, **delivery),
        state or ProjectState(Project("default"), sender),
        slots=slots or Slots(100),
        stopping=stopping or asyncio.Event(),
        quick_retry_window=quick_retry_window,
        marks=marks or Book(sender, Slots(1)),
        heartbeat=Alive(alive=alive),
    )


class Alive(Heartbeat):
    """The heartbeat of a worker that still holds its leases, or no longer does."""

    def __init__(self, *, alive: bool) -> None:
        self._alive = alive

    def holds(self, worker_id: int) -> bool:
        return self._alive


def project(sender: ScriptedSender, *answered: Outcome, blocked: tuple[Scope, ...] = ()) -> ProjectState:
    """A project that has got these answers within the last minute, and in which these scopes are blocked."""
    state = ProjectState(Project("default"), sender, blocked=frozenset(blocked))
    for answer in answered:
        state.stats.add_answer(answer, monotonic())
    return state


async def made(attempt: AttemptRun) -> Attempt:
    result = await attempt.run()
    assert result is not None
    return result


async def test_a_message_that_is_sent_is_one_request_and_never_due_again() -> None:
    sender, before = ready(), monotonic()

    result = await made(attempt(sender))

    assert result.outcome is SENT
    assert (result.requests, result.retry_in) == (1, None)
    assert before <= result.started <= result.finished <= monotonic()


async def test_no_more_are_in_flight_than_there_are_slots() -> None:
    sender, slots = ScriptedSender(), Slots(3)
    attempts = [asyncio.create_task(made(attempt(sender, slots=slots))) for _ in range(20)]
    await auntil("every slot is taken and the others wait", lambda: slots.waiting == 17, within=5)
    assert (slots.taken, sender.busy) == (3, 3)

    sender.go.set()
    results = await asyncio.gather(*attempts)

    assert [result.outcome for result in results] == [SENT] * 20
    assert sender.most_busy == 3
    assert (slots.taken, slots.waiting) == (0, 0)


async def test_an_attempt_starts_with_its_first_request() -> None:
    sender, slots = ready(), Slots(1)
    async with slots:
        waiting = asyncio.create_task(made(attempt(sender, slots=slots)))
        await auntil("it waits for the slot", lambda: slots.waiting == 1, within=5)
        freed = monotonic()

    assert (await waiting).started >= freed


async def test_quick_retries_take_seconds_and_hold_no_slot_meanwhile() -> None:
    """Side by side, since the waits of quick retries are real: 1 s and 2 s."""
    begun = monotonic()
    one_slot = Slots(1)
    in_turn = ready(first=[RETRYABLE])
    repeated = ready(a=[RETRYABLE] * 3)
    lease_over = ready(a=[RETRYABLE])

    first, second, given_up, cut_short, retried_late = await asyncio.gather(
        made(attempt(in_turn, "first", slots=one_slot)),
        made(attempt(in_turn, "second", slots=one_slot)),
        made(attempt(repeated)),
        made(attempt(lease_over, start_by=begun + 0.5, quick_retry_window=0)),
        made(attempt(ready(a=[RETRYABLE]), start_by=begun + 0.5, quick_retry_window=60)),
    )

    assert in_turn.asked == ["first", "second", "first"]  # with one slot, the second one left while the first waited
    assert (first.outcome, first.requests) == (SENT, 2)
    assert second.finished < begun + SHORT_WAIT
    assert (given_up.outcome, given_up.requests) == (RETRYABLE, 3)
    assert given_up.retry_in is not None
    assert 3 <= given_up.finished - given_up.started < 3.6 + SHORT_WAIT
    assert (cut_short.outcome, cut_short.requests, len(lease_over.asked)) == (RETRYABLE, 1, 1)
    assert (retried_late.outcome, retried_late.requests) == (SENT, 2)


@pytest.mark.parametrize(
    ("outcome", "on_unknown"),
    [
        (RETRYABLE, OnUnknown.HOLD),
        (Outcome(Verdict.RETRY, quickly_retryable=True), OnUnknown.HOLD),
        (replace(RETRYABLE, quickly_retryable=False), OnUnknown.RESEND),
        (FAILED, OnUnknown.RESEND),
    ],
)
async def test_an_outcome_that_is_not_quickly_retryable_gets_one_request(
    outcome: Outcome, on_unknown: OnUnknown
) -> None:
    sender = ready(a=[outcome])

    async with asyncio.timeout(SHORT_WAIT):
        result = await made(attempt(sender, on_unknown=on_unknown))

    assert (result.outcome, result.requests) == (outcome, 1)


async def test_nothing_is_retried_quickly_once_the_worker_stops() -> None:
    sender, stopping = ScriptedSender({"a": [RETRYABLE]}), asyncio.Event()
    running = asyncio.create_task(made(attempt(sender, stopping=stopping)))
    await auntil("the request is in flight", lambda: sender.busy == 1, within=5)

    stopping.set()
    sender.go.set()
    async with asyncio.timeout(SHORT_WAIT):
        result = await running

    assert (result.outcome, result.requests) == (RETRYABLE, 1)


async def test_a_stop_ends_the_wait_for_a_quick_retry_and_keeps_the_outcome() -> None:
    sender, stopping, slots = ready(a=[RETRYABLE]), asyncio.Event(), Slots(1)
    running = asyncio.create_task(made(attempt(sender, stopping=stopping, slots=slots)))
    await auntil("it waits between two requests", lambda: len(sender.asked) == 1 and not slots.taken, within=SHORT_WAIT)

    stopping.set()
    async with asyncio.timeout(SHORT_WAIT):
        result = await running

    assert (result.outcome, result.requests, len(sender.asked)) == (RETRYABLE, 1, 1)


async def test_a_stop_ends_the_wait_for_a_slot_without_a_request() -> None:
    sender, stopping, slots = ScriptedSender(), asyncio.Event(), Slots(1)
    in_flight = asyncio.create_task(made(attempt(sender, "in flight", slots=slots, stopping=stopping)))
    await auntil("the slot is taken", lambda: sender.busy == 1, within=5)
    waiting = [asyncio.create_task(attempt(sender, slots=slots, stopping=stopping).run()) for _ in range(3)]
    await auntil("the others wait", lambda: slots.waiting == 3, within=5)

    stopping.set()
    slots.wake_waiters()

    assert await asyncio.gather(*waiting) == [None] * 3
    assert sender.asked == ["in flight"]
    sender.go.set()
    assert (await in_flight).outcome is SENT


async def test_a_slot_that_comes_too_late_is_not_used() -> None:
    sender, slots, start_by = ready(), Slots(1), monotonic() + 0.05

    async with slots:
        late = asyncio.create_task(attempt(sender, slots=slots, start_by=start_by).run())
        await auntil("its time is over", lambda: monotonic() > start_by, within=5)

    assert await late is None
    assert sender.asked == []


async def test_a_worker_whose_heartbeat_has_ended_starts_no_request() -> None:
    sender = ready()

    assert await attempt(sender, alive=False).run() is None
    assert sender.asked == []


async def test_an_exception_is_an_unknown_outcome_of_this_delivery_alone(caplog: pytest.LogCaptureFixture) -> None:
    sender, slots = ready(broken=[RuntimeError("a bug")]), Slots(1)

    broken, *others = await asyncio.gather(
        *(made(attempt(sender, address, slots=slots)) for address in ("broken", "a", "b"))
    )

    assert broken.outcome.verdict is Verdict.UNKNOWN
    assert (broken.outcome.error_code, broken.requests) == ("BUG", 1)
    assert broken.retry_in is not None
    assert "a bug" not in (broken.outcome.error or "")
    assert [other.outcome for other in others] == [SENT, SENT]
    assert slots.taken == 0
    (record,) = caplog.records
    assert (vars(record)["event"], vars(record)["delivery_id"]) == ("attempt_broke", 7)
    assert "RuntimeError: a bug" in caplog.text


async def test_an_exception_on_a_delivery_with_hold_is_never_retried() -> None:
    sender = ready(a=[RuntimeError("a bug")])

    result = await made(attempt(sender, on_unknown=OnUnknown.HOLD))

    assert (result.outcome.verdict, result.retry_in) == (Verdict.UNKNOWN, None)


async def test_a_delivery_that_cannot_be_rendered_fails_without_a_request() -> None:
    sender = ready()

    result = await made(attempt(sender, inline=Content(body="x" * 5000)))

    assert (result.outcome.verdict, result.outcome.error_code) == (Verdict.FAILED, "MESSAGE_TOO_BIG")
    assert (result.requests, result.retry_in, sender.asked) == (0, None, [])


# ── pauses ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_blocked_project_sends_nothing() -> None:
    sender = ready()
    state = project(sender, blocked=(Scope.PROJECT,))

    assert await attempt(sender, state=state).run() is None
    assert sender.asked == []


async def test_a_probe_is_sent_despite_open_incidents() -> None:
    sender = ready()
    state = project(sender, blocked=tuple(Scope))

    result = await made(attempt(sender, state=state, probe=True))

    assert (result.outcome, result.requests) == (SENT, 1)
    assert Scope.PROJECT not in state.blocked


UNDECIDED = [Incident("default", Scope.PROJECT, change=Change.UNDECIDED)]


@pytest.mark.parametrize("why", ["it can not be rendered", "rendering breaks", "the worker stops", "it is not marked"])
async def test_a_probe_without_a_request_decides_nothing(why: str) -> None:
    sender, stopping = ready(), asyncio.Event()
    state = project(sender, blocked=(Scope.PROJECT,))
    delivery: dict[str, Any] = {"probe": True}
    match why:
        case "it can not be rendered":
            delivery["inline"] = Content(body="x" * 5000)
        case "rendering breaks":
            delivery["inline"] = None
        case "the worker stops":
            stopping.set()
        case "it is not marked":
            delivery |= {"on_unknown": OnUnknown.HOLD, "marks": Book(sender, Slots(1), allows=False)}

    await attempt(sender, state=state, stopping=stopping, **delivery).run()

    assert (state.unreported, state.blocked) == (UNDECIDED, frozenset({Scope.PROJECT}))
    assert sender.asked == []


async def test_a_bug_of_the_sender_in_a_probe_requests_no_other_probe() -> None:
    sender = ready(a=[RuntimeError("a bug")])
    state = project(sender, blocked=(Scope.PROJECT,))

    await made(attempt(sender, state=state, probe=True))

    assert (state.unreported, state.blocked) == ([], frozenset({Scope.PROJECT}))


async def test_a_pause_ends_the_wait_for_a_slot_without_a_request() -> None:
    sender, slots = ScriptedSender({"a": [QUOTA]}), Slots(1)
    state = project(sender)
    in_flight = asyncio.create_task(made(attempt(sender, state=state, slots=slots)))
    await auntil("the slot is taken", lambda: sender.busy == 1, within=5)
    waiting = [asyncio.create_task(attempt(sender, state=state, slots=slots).run()) for _ in range(3)]
    await auntil("the others wait", lambda: slots.waiting == 3, within=5)

    sender.go.set()

    assert await asyncio.gather(*waiting) == [None] * 3
    assert (await in_flight).outcome is QUOTA
    assert sender.asked == ["a"]
    assert (slots.taken, slots.waiting) == (0, 0)


async def test_every_answer_counts_in_the_projects_stats() -> None:
    gone = Outcome(Verdict.UNREGISTERED, http_status=404)
    sender = ready(a=[gone] * 20)
    state = project(sender)

    for _ in range(19):
        await made(attempt(sender, state=state))
    before = state.blocked
    await made(attempt(sender, state=state))

    assert before == frozenset()
    assert state.blocked == {Scope.DEVICES}


async def test_a_request_in_flight_when_a_pause_starts_keeps_its_outcome() -> None:
    sender = ScriptedSender()
    state = project(sender)
    in_flight = asyncio.create_task(made(attempt(sender, state=state)))
    await auntil("the request is in flight", lambda: sender.busy == 1, within=5)

    state.sync(state.project, ["project"])
    sender.go.set()

    assert (await in_flight).outcome is SENT
    assert state.blocked == {Scope.PROJECT}


async def test_no_quick_retry_is_made_during_a_pause_nor_after_the_delivery_expires() -> None:
    """Side by side, since the waits of quick retries are real."""
    sender, lapsing, slots = ready(a=[RETRYABLE]), ready(a=[RETRYABLE]), Slots(1)
    state = project(sender)
    running = asyncio.create_task(made(attempt(sender, state=state, slots=slots)))
    expiring = asyncio.create_task(made(attempt(lapsing, expires_by=monotonic() + SHORT_WAIT / 2)))
    await auntil("it waits between two requests", lambda: len(sender.asked) == 1 and not slots.taken, within=SHORT_WAIT)

    state.sync(state.project, ["project"])
    paused, expired = await asyncio.gather(running, expiring)

    assert (paused.outcome, paused.requests, paused.counts) == (RETRYABLE, 1, False)
    assert paused.retry_in is not None
    assert paused.finished - paused.started < 2  # and waits for no third request
    assert (expired.outcome, expired.requests, expired.counts) == (RETRYABLE, 1, True)


async def test_in_an_outage_the_last_attempt_of_a_delivery_is_not_its_end() -> None:
    sender = ready(a=[replace(RETRYABLE, quickly_retryable=False)] * 4)
    state = project(sender)

    results = [await made(attempt(sender, state=state)) for _ in range(3)]
    last = await made(attempt(sender, state=state, attempts=9, probe=True))

    assert [result.counts for result in [*results, last]] == [True, True, False, False]
    assert last.retry_in is not None


async def test_a_claimed_delivery_that_expired_makes_no_request() -> None:
    sender = ready()

    assert await attempt(sender, expires_by=monotonic() - 0.001).run() is None
    assert await attempt(sender, expires_by=monotonic() - 0.001, probe=True).run() is None
    assert sender.asked == []


async def test_a_delivery_that_expires_waiting_for_a_slot_makes_no_request() -> None:
    sender, slots, expires_by = ready(), Slots(1), monotonic() + 0.05

    async with slots:
        late = asyncio.create_task(attempt(sender, slots=slots, expires_by=expires_by).run())
        await auntil("it has expired", lambda: monotonic() > expires_by, within=5)

    assert await late is None
    assert sender.asked == []


async def test_a_bug_costs_its_delivery_alone_however_often_it_comes() -> None:
    sender = ready(a=[RuntimeError("a bug")] * 3)
    state = project(sender)

    results = [await made(attempt(sender, state=state)) for _ in range(3)]

    assert [result.counts for result in results] == [True, True, True]
    assert state.blocked == frozenset()


async def test_a_successful_ios_probe_ends_its_own_pause_and_none_that_began_meanwhile() -> None:
    probing, other = ScriptedSender(), ready(a=[QUOTA])
    state = project(probing, blocked=(Scope.APNS_WEB,))
    probe = asyncio.create_task(made(attempt(probing, state=state, platform="ios", probe=True)))
    await auntil("the probe is in flight", lambda: probing.busy == 1, within=5)
    state.sender = other
    await made(attempt(other, state=state))

    probing.go.set()
    await probe

    assert state.blocked == {Scope.PROJECT}


# ── the mark ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Book(StartMarks):
    """Records which deliveries are marked, how many requests had been made by then, and how many slots were taken."""

    sender: ScriptedSender
    slots: Slots
    allows: bool = True
    written: list[tuple[int, int, int]] = field(default_factory=list)

    async def mark(self, delivery: Delivery) -> bool:
        self.written.append((delivery.id, len(self.sender.asked), self.slots.taken))
        return self.allows


async def test_a_delivery_with_hold_is_marked_just_before_its_request() -> None:
    sender, slots = ready(), Slots(1)
    book = Book(sender, slots)

    async with slots:
        waiting = asyncio.create_task(made(attempt(sender, slots=slots, marks=book, on_unknown=OnUnknown.HOLD)))
        await auntil("it waits for the slot", lambda: slots.waiting == 1, within=5)
        too_early = list(book.written)
    result = await waiting

    assert too_early == []
    assert (result.outcome, result.requests) == (SENT, 1)
    assert book.written == [(DELIVERY.id, 0, 1)]


async def test_a_delivery_that_cannot_be_marked_is_not_sent() -> None:
    sender, slots = ready(), Slots(1)
    book = Book(sender, slots, allows=False)

    assert await attempt(sender, slots=slots, marks=book, on_unknown=OnUnknown.HOLD).run() is None
    assert (sender.asked, slots.taken) == ([], 0)
    assert len(book.written) == 1


async def test_a_delivery_that_makes_no_request_is_not_marked() -> None:
    sender, slots, stopping = ready(), Slots(1), asyncio.Event()
    book, state = Book(sender, slots), project(sender, blocked=(Scope.PROJECT,))
    stopping.set()

    hold: dict[str, Any] = {"slots": slots, "marks": book, "on_unknown": OnUnknown.HOLD}
    await attempt(sender, state=state, **hold).run()
    await attempt(sender, stopping=stopping, **hold).run()
    await attempt(sender, expires_by=monotonic() - 1, **hold).run()
    await attempt(sender, start_by=monotonic() - 1, **hold).run()
    await attempt(sender, inline=Content(body="x" * 5000), **hold).run()

    assert (book.written, sender.asked) == ([], [])


async def test_a_delivery_waiting_for_a_slot_at_a_pause_is_not_marked() -> None:
    sender, slots = ready(), Slots(1)
    book, state = Book(sender, slots), project(sender)

    async with slots:
        hold = attempt(sender, state=state, slots=slots, marks=book, on_unknown=OnUnknown.HOLD)
        waiting = asyncio.create_task(hold.run())
        await auntil("it waits for the slot", lambda: slots.waiting == 1, within=5)
        state.sync(state.project, ["project"])

    assert await waiting is None
    assert (book.written, sender.asked) == ([], [])


async def test_a_delivery_without_hold_is_not_marked() -> None:
    sender, slots = ready(), Slots(1)
    book = Book(sender, slots, allows=False)

    result = await made(attempt(sender, slots=slots, marks=book, on_unknown=OnUnknown.RESEND))

    assert result.outcome is SENT
    assert book.written == []


@pytest.mark.parametrize("what", ["the worker stops", "a pause begins", "it expires", "its lease ends"])
async def test_no_request_starts_if_it_is_no_longer_allowed_once_marked(what: str) -> None:
    sender, stopping, soon = ready(), asyncio.Event(), monotonic() + 0.05
    state = project(sender)

    class Slow(StartMarks):
        def __init__(self) -> None: ...

        async def mark(self, delivery: Delivery) -> bool:
            if what == "the worker stops":
                stopping.set()
            if what == "a pause begins":
                state.sync(state.project, ["project"])
            await auntil("it is over", lambda: monotonic() > soon, within=5)
            return True

    result = await attempt(
        sender,
        state=state,
        stopping=stopping,
        marks=Slow(),
        on_unknown=OnUnknown.HOLD,
        expires_by=soon if what == "it expires" else float("inf"),
        start_by=soon if what == "its lease ends" else float("inf"),
    ).run()

    assert result is None
    assert sender.asked == []


# ── what is retried quickly ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_refused_tokens_and_unsent_requests_are_retried_quickly_and_5xx_only_while_few() -> None:
    """Side by side, since the waits of quick retries are real."""
    slots = Slots(100)
    hold, probing, busy, never_left, calm = (
        ready(a=[outcome]) for outcome in (REFUSED_TOKEN, REFUSED_TOKEN, RETRYABLE, NEVER_LEFT, RETRYABLE)
    )
    book = Book(hold, slots)
    many_are_5xx = [SENT] * 17 + [RETRYABLE] * 3

    of_hold, of_probe, of_busy, of_never_left, of_calm = await asyncio.gather(
        made(attempt(hold, slots=slots, marks=book, on_unknown=OnUnknown.HOLD)),
        made(attempt(probing, probe=True)),
        made(attempt(busy, state=project(busy, *many_are_5xx))),
        made(attempt(never_left, state=project(never_left, *many_are_5xx))),
        made(attempt(calm, state=project(calm, *[SENT] * 20))),
    )

    assert (of_hold.outcome, of_hold.requests, len(book.written)) == (SENT, 2, 1)
    assert (of_probe.outcome, of_probe.requests) == (SENT, 2)
    assert (of_busy.outcome, of_busy.requests) == (RETRYABLE, 1)
    assert (of_never_left.outcome, of_never_left.requests) == (SENT, 2)
    assert (of_calm.outcome, of_calm.requests) == (SENT, 2)


@pytest.mark.parametrize("outcome", [RETRYABLE, NEVER_LEFT])
async def test_a_probe_is_one_request(outcome: Outcome) -> None:
    sender = ready(a=[outcome])

    async with asyncio.timeout(SHORT_WAIT):
        result = await made(attempt(sender, probe=True))

    assert (result.outcome, result.requests) == (outcome, 1)
