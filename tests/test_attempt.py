"""One attempt of a delivery, with a provider that plays a script: places, blips, stopping, and bugs."""

import asyncio
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import pytest

from notify_worker.attempt import Mark, Places, Try
from notify_worker.model import Attempt, Delivery, Message, OnUnknown, Outcome, Project, Verdict, Words
from notify_worker.standing import Standing
from tests.test_render import DELIVERY
from tests.waiting import auntil

SENT = Outcome(Verdict.SENT, http_status=200)
FAILED = Outcome(Verdict.FAILED, http_status=400)
MENDABLE = Outcome(Verdict.UNKNOWN, http_status=503, mendable=True)
A_BLIP = 0.9
"""Seconds in which no blip's wait can have passed."""


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
    places: Places | None = None,
    stopping: asyncio.Event | None = None,
    mend_for: float = 60,
    standing: Standing | None = None,
    mark: Mark | None = None,
    **delivery: Any,
) -> Try:
    return Try(
        replace(DELIVERY, address=address, **delivery),
        standing or Standing(Project("default"), sender),
        places=places or Places(100),
        stopping=stopping or asyncio.Event(),
        mend_for=mend_for,
        mark=mark or allowed,
    )


async def allowed(delivery: Delivery) -> bool:
    return True


async def made(attempt: Try) -> Attempt:
    result = await attempt.run()
    assert result is not None
    return result


async def test_a_message_that_is_sent_is_one_request_and_never_due_again() -> None:
    sender, before = ready(), monotonic()

    result = await made(attempt(sender))

    assert result.outcome is SENT
    assert (result.requests, result.retry_in) == (1, None)
    assert before <= result.started <= result.finished <= monotonic()


async def test_no_more_are_in_flight_than_there_are_places() -> None:
    sender, places = ScriptedSender(), Places(3)
    tries = [asyncio.create_task(made(attempt(sender, places=places))) for _ in range(20)]
    await auntil("every place is taken and the others wait", lambda: places.waiting == 17, within=5)
    assert (places.taken, sender.busy) == (3, 3)

    sender.go.set()
    results = await asyncio.gather(*tries)

    assert [result.outcome for result in results] == [SENT] * 20
    assert sender.most_busy == 3
    assert (places.taken, places.waiting) == (0, 0)


async def test_an_attempt_begins_with_its_first_request_and_not_with_its_wait_for_a_place() -> None:
    sender, places = ready(), Places(1)
    async with places:
        waiting = asyncio.create_task(made(attempt(sender, places=places)))
        await auntil("it waits for the place", lambda: places.waiting == 1, within=5)
        freed = monotonic()

    assert (await waiting).started >= freed


async def test_blips_are_mended_in_seconds_and_hold_no_place_meanwhile() -> None:
    """Side by side, since a blip's waits are real: 1 s and 2 s."""
    begun = monotonic()
    one_place = Places(1)
    in_turn = ready(first=[MENDABLE])
    again_and_again = ready(a=[MENDABLE] * 3)
    lease_over = ready(a=[MENDABLE])

    first, second, given_up, cut_short, mended_late = await asyncio.gather(
        made(attempt(in_turn, "first", places=one_place)),
        made(attempt(in_turn, "second", places=one_place)),
        made(attempt(again_and_again)),
        made(attempt(lease_over, start_by=begun + 0.5, mend_for=0)),
        made(attempt(ready(a=[MENDABLE]), start_by=begun + 0.5, mend_for=60)),
    )

    assert in_turn.asked == ["first", "second", "first"]  # with one place, the second one left while the first waited
    assert (first.outcome, first.requests) == (SENT, 2)
    assert second.finished < begun + A_BLIP
    assert (given_up.outcome, given_up.requests) == (MENDABLE, 3)
    assert given_up.retry_in is not None
    assert 3 <= given_up.finished - given_up.started < 3.6 + A_BLIP
    assert (cut_short.outcome, cut_short.requests, len(lease_over.asked)) == (MENDABLE, 1, 1)
    assert (mended_late.outcome, mended_late.requests) == (SENT, 2)


@pytest.mark.parametrize(
    ("outcome", "on_unknown"),
    [
        (MENDABLE, OnUnknown.HOLD),
        (Outcome(Verdict.RETRY, mendable=True), OnUnknown.HOLD),
        (replace(MENDABLE, mendable=False), OnUnknown.RESEND),
        (FAILED, OnUnknown.RESEND),
    ],
)
async def test_what_may_not_be_asked_again_is_asked_once(outcome: Outcome, on_unknown: OnUnknown) -> None:
    sender = ready(a=[outcome])

    async with asyncio.timeout(A_BLIP):
        result = await made(attempt(sender, on_unknown=on_unknown))

    assert (result.outcome, result.requests) == (outcome, 1)


async def test_nothing_is_mended_once_the_worker_stops() -> None:
    sender, stopping = ScriptedSender({"a": [MENDABLE]}), asyncio.Event()
    running = asyncio.create_task(made(attempt(sender, stopping=stopping)))
    await auntil("the request is in flight", lambda: sender.busy == 1, within=5)

    stopping.set()
    sender.go.set()
    async with asyncio.timeout(A_BLIP):
        result = await running

    assert (result.outcome, result.requests) == (MENDABLE, 1)


async def test_a_stop_ends_a_blips_wait_and_the_outcome_stands() -> None:
    sender, stopping, places = ready(a=[MENDABLE]), asyncio.Event(), Places(1)
    running = asyncio.create_task(made(attempt(sender, stopping=stopping, places=places)))
    await auntil("it waits between two requests", lambda: len(sender.asked) == 1 and not places.taken, within=A_BLIP)

    stopping.set()
    async with asyncio.timeout(A_BLIP):
        result = await running

    assert (result.outcome, result.requests, len(sender.asked)) == (MENDABLE, 1, 1)


async def test_who_waits_for_a_place_when_the_worker_stops_leaves_without_a_request() -> None:
    sender, stopping, places = ScriptedSender(), asyncio.Event(), Places(1)
    in_flight = asyncio.create_task(made(attempt(sender, "in flight", places=places, stopping=stopping)))
    await auntil("the place is taken", lambda: sender.busy == 1, within=5)
    waiting = [asyncio.create_task(attempt(sender, places=places, stopping=stopping).run()) for _ in range(3)]
    await auntil("the others wait", lambda: places.waiting == 3, within=5)

    stopping.set()
    places.let_in_who_waits()

    assert await asyncio.gather(*waiting) == [None] * 3
    assert sender.asked == ["in flight"]
    sender.go.set()
    assert (await in_flight).outcome is SENT


async def test_a_place_that_comes_too_late_is_not_used() -> None:
    sender, places, start_by = ready(), Places(1), monotonic() + 0.05

    async with places:
        late = asyncio.create_task(attempt(sender, places=places, start_by=start_by).run())
        await auntil("its time is over", lambda: monotonic() > start_by, within=5)

    assert await late is None
    assert sender.asked == []


async def test_an_exception_is_an_unknown_outcome_of_this_delivery_alone(caplog: pytest.LogCaptureFixture) -> None:
    sender, places = ready(broken=[RuntimeError("a bug")]), Places(1)

    broken, *others = await asyncio.gather(
        *(made(attempt(sender, address, places=places)) for address in ("broken", "a", "b"))
    )

    assert broken.outcome.verdict is Verdict.UNKNOWN
    assert (broken.outcome.error_code, broken.requests) == ("BUG", 1)
    assert broken.retry_in is not None
    assert "a bug" not in (broken.outcome.error or "")
    assert [other.outcome for other in others] == [SENT, SENT]
    assert places.taken == 0
    assert "delivery 7 broke" in caplog.text
    assert "RuntimeError: a bug" in caplog.text


async def test_an_exception_on_a_delivery_whose_sender_said_hold_is_never_tried_again() -> None:
    sender = ready(a=[RuntimeError("a bug")])

    result = await made(attempt(sender, on_unknown=OnUnknown.HOLD))

    assert (result.outcome.verdict, result.retry_in) == (Verdict.UNKNOWN, None)


async def test_what_can_not_be_rendered_fails_without_a_request() -> None:
    sender = ready()

    result = await made(attempt(sender, inline=Words(body="x" * 5000)))

    assert (result.outcome.verdict, result.outcome.error_code) == (Verdict.FAILED, "MESSAGE_TOO_BIG")
    assert (result.requests, result.retry_in, sender.asked) == (0, None, [])
