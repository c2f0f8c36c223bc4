"""Nothing is lost and nothing is phantom, with every kind of fault at random moments.

The short runs do each kind once. `pytest -m chaos` is the long one, with a hundred kills; CHAOS_SHARE (1) is the share of
it to do, CHAOS_SEED a run's seed. Each run prints what was done and what came of it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import randbits
from tempfile import TemporaryDirectory

import pytest

from chaos.faults import FAILED_OVER, KILLS, KINDS, POOLER_RESTARTED, RESTARTS, long_plan, short_plan
from chaos.harness import Chaos
from chaos.result import Result
from chaos.systems import NotifyWorker, OneJobPerPush, System
from tests.support.cluster import a_cluster
from tests.support.pooler import HOW_TO_HAVE_IT
from tests.support.server import memory

SEED = int(os.environ.get("CHAOS_SEED") or randbits(32))
SHARE = float(os.environ.get("CHAOS_SHARE") or 1)
NOTIFICATIONS, KILLED, RESTARTED, PROMOTED = (
    round(100_000 * SHARE),
    round(100 * SHARE),
    round(20 * SHARE),
    round(5 * SHARE),
)

Start = Callable[..., Chaos]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a run of chaos on its own servers; the workers' logs are shown if a test fails."""
    with ExitStack() as ends:

        def started(system: System, rate: float = 60) -> Chaos:
            folder = Path(ends.enter_context(TemporaryDirectory(prefix="notify-worker-chaos-", dir=memory())))
            folder.chmod(0o711)
            cluster = ends.enter_context(a_cluster())
            chaos = ends.enter_context(Chaos(cluster, system, folder, seed=SEED, rate=rate))
            chaos.say = print
            print(f"seed {SEED}")
            return chaos

        yield started


def shown(result: Result) -> Result:
    print(result.table())
    return result


@pytest.mark.parametrize("losing", [False, True], ids=["where no answer can be lost", "where answers are lost"])
def test_nothing_is_lost_and_only_a_lost_answer_makes_a_push_come_twice(
    start: Start, subtests: pytest.Subtests, losing: bool
) -> None:
    chaos = start(NotifyWorker())
    plan = short_plan(SEED, losing=losing)

    result = shown(chaos.run(plan, pause=0.2))

    broken = result.broken_promises()
    if losing:  # what is at risk at one moment is seen too late to compare one fault with; the long form compares sums
        broken = [promise for promise in broken if not promise.endswith("at risk")]
    assert broken == []
    assert result.times(*(kind.name for kind in plan)) == len(plan)
    with subtests.test("PgBouncer"):
        if POOLER_RESTARTED not in KINDS:
            pytest.skip(HOW_TO_HAVE_IT)


@pytest.mark.chaos
def test_a_hundred_kills_twenty_restarts_and_five_failovers_break_no_promise(start: Start) -> None:
    chaos = start(NotifyWorker(), rate=150)
    plan = long_plan(SEED, kills=KILLED, restarts=RESTARTED, failovers=PROMOTED)

    result = shown(chaos.run(plan, notifications=NOTIFICATIONS))

    assert result.broken_promises() == []
    assert result.notifications >= NOTIFICATIONS
    assert result.times(*(kind.name for kind in KILLS)) >= 0.95 * KILLED
    assert result.times(*(kind.name for kind in RESTARTS)) == RESTARTED
    assert result.times(FAILED_OVER.name) == PROMOTED


@pytest.mark.chaos
def test_one_procrastinate_job_per_push_is_measured_with_the_same_plan(start: Start) -> None:
    """It is slower, so it gets a tenth of the notifications. Nothing is promised: this run is for its table."""
    chaos = start(OneJobPerPush(), rate=40)
    plan = long_plan(SEED, kills=KILLED, restarts=RESTARTED, failovers=PROMOTED)

    result = shown(chaos.run(plan, notifications=NOTIFICATIONS // 10))

    assert result.notifications >= NOTIFICATIONS // 10
