"""A chaos run: producers commit, workers send, faults strike at random, and at the end everything must add up.

A run has a seed, which is printed: the same seed draws the same faults in the same order. What happened stands in a book
(`book.py`); what the system says stands in its tables; what phones show, in the local FCM.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from threading import Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from chaos.book import Book, Fault
from chaos.producers import Producer
from chaos.result import Left, Result, count_doubles, count_faults, count_notifications
from chaos.systems import System
from chaos.workers import Catch, Slot, Supervisor
from notify_worker import sandbox
from notify_worker.sandbox import Shown
from tests.support.cluster import Cluster
from tests.support.pooler import IMPATIENT, Pooler, program
from tests.support.relay import Relay
from tests.support.waiting import until

LATENCY = 0.15
"""Seconds that FCM takes for an answer: so that something is in flight whenever a fault comes."""
SETTLED_WITHIN = 60.0
PROBE_WITHIN = 320.0
"""Seconds between two probes of a paused project, at most, and a little more."""
AFTER_A_KILL = 2.0
"""Seconds after which what a dead worker had sent is read, recorded or lost; before that nobody sends it again."""
DATABASE = "shop"
LOG_LINES = 30
STORIES = 5
"""How many events with something amiss are printed."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    do: "Callable[[Chaos, Fault], None]"
    loses_answers: bool = False
    """Whether it may take FCM's answers with it, and so may make doubles: no more than were at risk."""


class NotMet(Exception):
    """The moment for a fault did not come."""


class Chaos:
    """One run. `with Chaos(…) as chaos: result = chaos.run(plan)`."""

    def __init__(
        self, cluster: Cluster, system: System, folder: Path, *, seed: int, rate: float = 60, producers: int = 3
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.system = system
        self.cluster = cluster
        self.book = Book()
        self._ends = ExitStack()
        self._folder = folder
        self._rate = rate
        self._producers_wanted = producers
        self._lasting: list[Thread] = []
        self._show_trap: Callable[[str], None] | None = None
        self._began = monotonic()
        self.pooler: Pooler | None = None
        self.say: Callable[[str], None] = lambda _: None

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            self._open(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    def _open(self, ends: ExitStack) -> None:
        self.cluster.primary.ask(f"drop database if exists {DATABASE} with (force)")
        self.cluster.primary.ask(f"create database {DATABASE}")
        self.direct = self.cluster.conninfo(dbname=DATABASE, application_name="chaos", connect_timeout="5")
        self.system.install(self.direct)
        self.box = ends.enter_context(
            sandbox.start(self._folder / "sandbox.json", on_show=self._on_show, seed=self.seed, latency=LATENCY)
        )
        self._open_pooler(ends)
        self.slots = [self._slot(ends, number, kind) for number, kind in enumerate(self.system.slots)]
        if self.pooler and self.system.pooled:
            self.slots.append(self._slot(ends, len(self.slots), self.system.pooled, through=self.pooler))
        ends.callback(self._say_what_workers_logged)
        for slot in self.slots:
            slot.start()
            ends.callback(slot.shoot)
        self.supervisor = Supervisor(self.slots)
        self.supervisor.start()
        ends.callback(self.supervisor.stop)
        self.producers = [self._producer(number) for number in range(self._producers_wanted)]

    def _say_what_workers_logged(self) -> None:
        for slot in self.slots:
            self.say(f"the log of {slot.name} ends:\n{slot.logged(LOG_LINES)}")

    def _open_pooler(self, ends: ExitStack) -> None:
        if program() is None:
            return
        way = ends.enter_context(Relay(lambda: self.cluster.primary.conninfo))
        self.pooler = Pooler(
            make_conninfo(self.direct, host="127.0.0.1", port=way.port, target_session_attrs="any"),
            self._folder,
            more=IMPATIENT,
        )
        self.pooler.start()
        ends.callback(self.pooler.stop)

    def _slot(self, ends: ExitStack, number: int, kind: str, through: Pooler | None = None) -> Slot:
        """Make a place for a worker: it reaches both servers by relays of its own, or the primary by PgBouncer."""
        ways: list[Relay] = []
        if through is None:
            ways = [ends.enter_context(Relay(node.conninfo)) for node in self.cluster.nodes]
            conninfo = make_conninfo(self.direct, port=",".join(str(way.port) for way in ways))
        else:
            conninfo = through.conninfo
        conninfo = make_conninfo(conninfo, application_name="worker")
        name = f"worker {number}, {kind}" + (", by PgBouncer" if through else "")
        environment = self.system.environment(conninfo, self.box)
        log = self._folder / f"worker-{number}.log"
        return Slot(name, kind, self.system.commands[kind], environment=environment, relays=ways, log=log)

    def _producer(self, number: int) -> Producer:
        """Every third producer commits by PgBouncer, where there is one."""
        conninfo = self.pooler.conninfo if self.pooler and number % 3 == 2 else self.direct
        return Producer(
            f"{self.seed}-{number}",
            make_conninfo(conninfo, application_name="producer"),
            self.system.publish,
            self.book,
            rate=self._rate / self._producers_wanted,
            seed=self.random.getrandbits(32),
        )

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, plan: Sequence[Kind], *, notifications: int = 0, pause: float = 1.0) -> Result:
        """Do the faults of the plan, spread over this many notifications, and return what came of them."""
        self._wait_until_it_works()
        for producer in self.producers:
            producer.start()
        for number, kind in enumerate(plan):
            self._wait_for_commits(number * notifications // len(plan))
            sleep(self.random.uniform(0, 2 * pause))
            self._do(kind)
        self._wait_for_commits(notifications)
        for lasting in self._lasting:
            lasting.join()
        last_fault = monotonic()
        for producer in self.producers:
            producer.stop()
        self._wait_until_settled(last_fault)
        return self._result(monotonic() - last_fault)

    def _wait_until_it_works(self) -> None:
        """Each worker is up when the first faults come, and sends."""
        before = self.box.accepted
        self.producers[0].burst(20)
        until("the first pushes are sent", lambda: self.box.accepted >= before + 20, within=60)

    def _wait_for_commits(self, count: int) -> None:
        until("there are enough commits", lambda: len(self.book.committed) >= count, within=3600)

    def _do(self, kind: Kind) -> None:
        fault = Fault(kind.name, kind.loses_answers, monotonic())
        try:
            kind.do(self, fault)
        except NotMet as error:
            self.say(f"{kind.name}: {error}")
            return
        if fault not in self.book.faults:  # else it goes on
            fault.ended = monotonic()
            self.book.faults.append(fault)
        since = monotonic() - self._began
        self.say(f"{since:7.1f} s {len(self.book.committed):7} committed  {kind.name}, {fault.at_risk} at risk")

    def _wait_until_settled(self, last_fault: float) -> None:
        """Wait until nothing is pending: for a minute, until the next probe of a paused project, or for a backlog.

        A backlog is waited for as long as it gets less from minute to minute, where a system says that it may have one.
        """
        limit = last_fault + SETTLED_WITHIN
        with self.connection() as connection:
            backlog = pending = self.system.pending(connection)
            while pending and monotonic() < limit:
                sleep(0.2)
                pending = self.system.pending(connection)
                if self.system.waits_for_a_probe(connection):
                    limit = last_fault + PROBE_WITHIN
                if self.system.may_have_a_backlog and monotonic() > limit - 1 and pending < backlog:
                    backlog, limit = pending, limit + SETTLED_WITHIN

    def _result(self, settled_after: float) -> Result:
        result = Result(self.system.name, self.seed, settled_after=settled_after)
        doubles = self.book.doubles()
        with self.connection() as connection:
            ends = self.system.ends(connection)
            unanswered, who_lost = self.system.unanswered(connection), self.system.who_lost(connection)
            result.unbalanced = self.system.unbalanced(connection)
        if self.book.times_shown() != self.box.accepted:
            result.unbalanced.append(f"FCM took {self.box.accepted}, and {self.book.times_shown()} were shown")
        self.book.resolve_uncertain(set(ends))
        result.ends = Counter(end for by_address in ends.values() for end in by_address.values())
        count_faults(result, self.book.faults)
        count_notifications(result, self.book, ends)
        count_doubles(result, self.book, doubles, unanswered, who_lost)
        with self.connection() as connection:
            for event, what in islice(result.amiss.items(), STORIES):
                result.stories += [f"{event} {what}", *self.system.story(connection, event)]
        self.supervisor.stop()
        result.left = [each for each in self.supervisor.left if each.kind in self.system.stays]
        result.stopped = [each for each in self._stopped() if each.kind in self.system.stays]
        return result

    def _stopped(self) -> list[Left]:
        """Stop all workers at once."""
        with ThreadPoolExecutor(len(self.slots)) as threads:
            codes = list(threads.map(Slot.stop, self.slots))
        return [Left(slot.name, slot.kind, code) for slot, code in zip(self.slots, codes, strict=True)]

    # ── what faults need ─────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.direct, autocommit=True) as connection:
            yield connection

    def catch_who_sends_next(self, caught: Callable[[str], None] | None) -> None:
        """Call this with the event of the next message that FCM takes, before it answers."""
        self._show_trap = caught

    def _on_show(self, shown: Shown) -> None:
        self.book.show(shown)
        if trap := self._show_trap:
            self._show_trap = None
            trap(shown.data["event"])

    def load(self) -> None:
        """Commit a burst, and wait until a request is in flight."""
        self.producers[0].burst()
        with suppress(AssertionError):
            until("something is in flight", lambda: self.box.in_flight > 0, within=5)

    def choose(self, *, relayed: bool = False, live: bool = False) -> Slot:
        """Choose a worker that is up.

        `live`: one that is not stale. A worker that has lost its session and sends no heartbeat for three seconds counts as
        dead, so what it has not recorded comes twice: neither fault does that alone.
        """
        candidates: list[Slot] = []

        def found() -> bool:
            candidates[:] = [slot for slot in self.slots if slot.is_at_work and (slot.relays or not relayed)]
            if live:
                with self.connection() as connection:
                    pids = self.system.live_pids(connection)
                candidates[:] = [slot for slot in candidates if pids is None or slot.pid in pids]
            return bool(candidates)

        until("a worker is up", found, within=60)
        return self.random.choice(candidates)

    def at_risk(self, pid: int) -> int:
        """Count the messages of this worker that phones were shown and it has not recorded."""
        lately = self.book.lately_shown()
        events = sorted({event for event, _ in lately})
        with self.connection() as connection:
            recorded = self.system.recorded(connection, events)
            leased = self.system.events_leased_by(connection, pid, events)
        return sum(push not in recorded and push[0] in leased for push in lately)

    def is_dead(self, caught: Catch, fault: Fault) -> None:
        """Note the unrecorded deliveries of the killed workers, once the requests in flight have arrived."""
        fault.began, fault.pid = caught.at, caught.pid
        sleep(AFTER_A_KILL)
        fault.at_risk = self.at_risk(caught.pid)

    def lasts(self, fault: Fault, goes_on: Callable[[], None]) -> None:
        """Let a fault go on while the next ones strike."""

        def go_on() -> None:
            goes_on()
            fault.ended = monotonic()

        thread = Thread(target=go_on, name=fault.kind, daemon=True)
        self._lasting.append(thread)
        self.book.faults.append(fault)
        thread.start()
