"""The kinds of fault in a chaos run, and the plans that mix them."""

import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle, islice
from random import Random
from time import monotonic, sleep

import psycopg

from chaos.book import Fault
from chaos.harness import AFTER_A_KILL, Chaos, Kind, NotMet
from chaos.systems import LEASE
from chaos.workers import Catch, Slot
from notify_worker.sandbox.switches import Changes
from tests.support.cluster import FAST, IMMEDIATE
from tests.support.pooler import program
from tests.support.relay import Moment
from tests.support.waiting import until

MET_WITHIN = 20.0
"""Seconds in which a worker has to come to the step where it is to be killed."""
A_FIFTH: Changes = {"fail": {"503": 0.08, "500": 0.04, "drop": 0.03, "accepteddrop": 0.03, "hang": 0.02}}


def killed_at_random(chaos: Chaos, fault: Fault) -> None:
    chaos.load()
    sleep(chaos.random.uniform(0, 0.5))
    slot = chaos.choose()
    caught = Catch()
    caught.shoot(slot)
    chaos.is_dead(caught, fault)


def killed_at(chaos: Chaos, fault: Fault) -> None:
    """Kill the first worker that comes to this step, in the middle of it."""
    if fault.kind not in chaos.system.steps:
        raise NotMet(f"{chaos.system.name} has no such step")
    statement, moment = chaos.system.steps[fault.kind]
    if moment is Moment.PASSED:
        caught = _killed_in_a_commit(chaos, statement)
    else:
        chaos.producers[0].burst()
        caught = _killed_by_a_trap(chaos, statement, moment, within=MET_WITHIN)
    if caught is None:
        raise NotMet(f"no worker asked for {statement} in time")
    chaos.is_dead(caught, fault)


def _killed_in_a_commit(chaos: Chaos, statement: str) -> Catch | None:
    """Hold all commits for up to a second, until this statement comes; let it commit once its worker is dead."""
    for _ in range(5):
        chaos.load()
        with chaos.cluster.commits_held():
            if caught := _killed_by_a_trap(chaos, statement, Moment.PASSED, within=1):
                sleep(0.2)
                return caught
    return None


def _killed_by_a_trap(chaos: Chaos, statement: str, moment: Moment, *, within: float) -> Catch | None:
    """Set a trap for each worker, and wait for the first that gets caught."""
    slots = [slot for slot in chaos.slots if slot.is_at_work and slot.relays]
    caught = Catch()
    for slot in slots:
        slot.set_traps(statement, moment, caught)
    met = caught.made.wait(within)
    for slot in slots:
        slot.clear_traps()
    return caught if met or caught.made.is_set() else None


def killed_after_acceptance(chaos: Chaos, fault: Fault) -> None:
    """Kill the worker that sent a message, after FCM took it and before it answers."""
    caught = Catch()

    def shoot(event: str) -> None:
        with chaos.connection() as connection:
            pid = chaos.system.lease_holder(connection, event)
        holders = [slot for slot in chaos.slots if slot.pid == pid]
        caught.shoot(holders[0] if holders else chaos.random.choice(chaos.slots))

    chaos.catch_who_sends_next(shoot)
    chaos.producers[0].burst()
    if not caught.made.wait(MET_WITHIN):
        chaos.catch_who_sends_next(None)
        raise NotMet("FCM took nothing in time")
    chaos.is_dead(caught, fault)


def frozen_for_a_moment(chaos: Chaos, fault: Fault) -> None:
    slot = _freeze(chaos, fault, live=True)
    sleep(chaos.random.uniform(1, 4))
    _thaw(slot)


def frozen_for_longer_than_a_lease(chaos: Chaos, fault: Fault) -> None:
    slot = _freeze(chaos, fault)
    sleep(AFTER_A_KILL)
    fault.at_risk = chaos.at_risk(fault.pid or 0)

    def stay_frozen() -> None:
        sleep(LEASE + 3)
        _thaw(slot)

    chaos.lasts(fault, stay_frozen)


def _freeze(chaos: Chaos, fault: Fault, *, live: bool = False) -> Slot:
    chaos.load()
    slot = chaos.choose(live=live)
    slot.frozen = True
    fault.began, fault.pid = monotonic(), slot.pid
    slot.signal(signal.SIGSTOP)
    return slot


def _thaw(slot: Slot) -> None:
    slot.signal(signal.SIGCONT)
    slot.frozen = False


def silent_for_a_moment(chaos: Chaos, fault: Fault) -> None:
    slot = _silence(chaos, fault, live=True)
    sleep(chaos.random.uniform(2, 6))
    _speak(slot)


def silent_for_longer_than_a_lease(chaos: Chaos, fault: Fault) -> None:
    """It keeps sending what it has claimed and can't record it: what is at risk grows until its leases end."""
    slot = _silence(chaos, fault)

    def count_until_its_leases_end() -> None:
        while monotonic() < fault.began + 0.8 * LEASE:
            with suppress(psycopg.Error):
                fault.at_risk = max(fault.at_risk, chaos.at_risk(fault.pid or 0))
            sleep(1)
        sleep(0.5 * LEASE)
        _speak(slot)

    chaos.lasts(fault, count_until_its_leases_end)


def _silence(chaos: Chaos, fault: Fault, *, live: bool = False) -> Slot:
    chaos.load()
    slot = chaos.choose(relayed=True, live=live)
    slot.silent = True
    fault.began, fault.pid = monotonic(), slot.pid
    for relay in slot.relays:
        relay.hold()
    return slot


def _speak(slot: Slot) -> None:
    for relay in slot.relays:
        relay.let_go()
    slot.silent = False


def restarted(how: signal.Signals) -> Callable[[Chaos, Fault], None]:
    """Stop the primary in this way, for up to two seconds."""

    def restart(chaos: Chaos, fault: Fault) -> None:
        chaos.load()
        fault.began = monotonic()
        chaos.cluster.primary.stop(how)
        sleep(chaos.random.uniform(0, 2))
        chaos.cluster.primary.start()

    return restart


def failed_over(chaos: Chaos, fault: Fault) -> None:
    """Lose the primary for good; the standby, which has every commit, takes over."""
    until("the standby is in sync", chaos.cluster.is_in_sync, within=60)
    chaos.load()
    fault.began = monotonic()
    chaos.cluster.fail_over()
    chaos.cluster.rebuild_standby()


def sessions_killed(chaos: Chaos, fault: Fault) -> None:
    """Terminate about half of the workers' sessions, whatever they do."""
    chaos.load()
    with chaos.connection() as connection:
        fault.began = monotonic()
        connection.execute(
            """
            select pg_terminate_backend(pid, 1000)
            from pg_stat_activity
            where datname = current_database()
                and backend_type = 'client backend'
                and application_name not in ('chaos', 'producer')
                and random() < 0.5
            """
        )


def wakeups_lost(chaos: Chaos, fault: Fault) -> None:
    """For two seconds no producer sends a wake-up, and every waiting one is deleted."""
    for producer in chaos.producers:
        producer.wakeups_off.set()
    with chaos.connection() as connection:
        over = monotonic() + 2
        while monotonic() < over:
            chaos.system.delete_wakeups(connection)
            sleep(0.02)
    for producer in chaos.producers:
        producer.wakeups_off.clear()


def xmin_held(chaos: Chaos, fault: Fault) -> None:
    """Hold a snapshot for fifteen seconds, as a long report does."""
    holder = psycopg.connect(chaos.direct)
    holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute("select count(*) from pg_class")

    def hold() -> None:
        sleep(15)
        holder.close()

    chaos.lasts(fault, hold)


def pooler_restarted(chaos: Chaos, fault: Fault) -> None:
    if chaos.pooler is None:
        raise NotMet("there is no PgBouncer")
    chaos.load()
    fault.began = monotonic()
    chaos.pooler.stop()
    sleep(chaos.random.uniform(0, 1))
    chaos.pooler.start()


def faulty_fcm(chaos: Chaos, fault: Fault) -> None:
    """For four seconds a fifth of FCM's answers are faults; some of them come to messages that it took."""
    before = chaos.box.by_fault.get("accepteddrop", 0)
    chaos.box.switch(**A_FIFTH)
    chaos.load()
    sleep(4)
    chaos.box.switch(fail=None)
    fault.at_risk = chaos.box.by_fault.get("accepteddrop", 0) - before


KILLED_AT_RANDOM = Kind("killed at random", killed_at_random, loses_answers=True)
KILLED_AT_A_STEP = (
    Kind("killed after the claim", killed_at, loses_answers=True),
    Kind("killed before the request", killed_at, loses_answers=True),
    Kind("killed after FCM took it", killed_after_acceptance, loses_answers=True),
    Kind("killed before the record", killed_at, loses_answers=True),
    Kind("killed in the record's commit", killed_at, loses_answers=True),
)
LONG = (
    Kind("frozen for longer than a lease", frozen_for_longer_than_a_lease, loses_answers=True),
    Kind("network silent for longer than a lease", silent_for_longer_than_a_lease, loses_answers=True),
    Kind("xmin held", xmin_held),
)
"""These go on while the next ones strike."""
RESTARTS = (
    Kind("database restarted, fast", restarted(FAST)),
    Kind("database restarted, immediate", restarted(IMMEDIATE)),
)
FAILED_OVER = Kind("standby promoted", failed_over)
POOLER_RESTARTED = Kind("PgBouncer restarted", pooler_restarted)
OTHERS = (
    Kind("a fifth of FCM's answers are faults", faulty_fcm, loses_answers=True),
    Kind("frozen for a moment", frozen_for_a_moment),
    Kind("network silent for a moment", silent_for_a_moment),
    Kind("sessions killed", sessions_killed),
    Kind("NOTIFY lost", wakeups_lost),
    *((POOLER_RESTARTED,) if program() else ()),
)
KILLS = (KILLED_AT_RANDOM, *KILLED_AT_A_STEP)
KINDS = (*LONG, *KILLS, *RESTARTS, FAILED_OVER, *OTHERS)


def short_plan(seed: int, *, losing: bool) -> list[Kind]:
    """Shuffle one of each kind that loses answers, or of each that does not; the long ones begin first."""
    kinds = [kind for kind in KINDS if kind.loses_answers is losing]
    Random(seed).shuffle(kinds)
    return sorted(kinds, key=lambda kind: kind not in LONG)


def long_plan(seed: int, *, kills: int = 100, restarts: int = 20, failovers: int = 5) -> list[Kind]:
    """Shuffle this many of each, half of the kills at random moments, and a few of every other kind."""
    plan = [
        *(KILLED_AT_RANDOM for _ in range(kills // 2)),
        *islice(cycle(KILLED_AT_A_STEP), kills - kills // 2),
        *islice(cycle(RESTARTS), restarts),
        *(FAILED_OVER for _ in range(failovers)),
        *(kind for kind in (*LONG, *OTHERS) for _ in range(max(1, kills // 25))),
    ]
    Random(seed).shuffle(plan)
    return plan
