"""The result of a chaos run: a line for each kind of fault, and the promises that were broken."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields

from chaos.book import NO_ANSWER, NO_FAULT, Book, Double, Event, Fault, Push
from chaos.systems import PENDING, SENT

Ends = Mapping[str, Mapping[str, str]]
"""The state of each push as the system recorded it, by event and address."""


@dataclass
class Line:
    """The counts for one kind of fault. A notification counts for the last fault that had begun when it was committed."""

    times: int = 0
    notifications: int = 0
    lost: int = 0
    phantom: int = 0
    stuck: int = 0
    doubles: int = 0
    at_most: int = 0
    """Deliveries of the affected workers that FCM accepted and nobody recorded."""


@dataclass(frozen=True)
class Left:
    """A worker that left: by itself, or because it was stopped."""

    slot: str
    kind: str
    code: int


@dataclass
class Result:
    """What a run came to."""

    system: str
    seed: int
    lines: dict[str, Line] = field(default_factory=dict)
    harmless: set[str] = field(default_factory=lambda: {NO_FAULT})
    amiss: dict[str, str] = field(default_factory=dict)
    """The events with a push that is lost, phantom, stuck or shown twice without a reason, and which of these."""
    stories: list[str] = field(default_factory=list)
    """What happened to some of them."""
    ends: Counter[str] = field(default_factory=Counter)
    left: list[Left] = field(default_factory=list)
    """The workers that exited by themselves and should not have."""
    stopped: list[Left] = field(default_factory=list)
    unbalanced: list[str] = field(default_factory=list)
    settled_after: float = 0.0

    def line(self, kind: str) -> Line:
        return self.lines.setdefault(kind, Line())

    def times(self, *kinds: str) -> int:
        return sum(self.lines[kind].times for kind in kinds if kind in self.lines)

    @property
    def notifications(self) -> int:
        return sum(line.notifications for line in self.lines.values())

    def table(self) -> str:
        """Write it for people."""
        names = [each.name.replace("_", " ") for each in fields(Line)]
        cells = {kind: astuple(line) for kind, line in self.lines.items()}
        cells["in all"] = tuple(map(sum, zip(*cells.values(), strict=True)))
        width = max(map(len, cells))
        return "\n".join(
            [
                f"{self.system}, seed {self.seed}",
                " " * width + "".join(f"{name:>15}" for name in names),
                *(f"{kind:{width}}" + "".join(f"{cell:>15}" for cell in row) for kind, row in cells.items()),
                f"settled {self.settled_after:.1f} s after the last fault; pushes: {dict(self.ends)}",
                *self.stories,
            ]
        )

    def broken_promises(self) -> list[str]:
        """Return each broken promise as a sentence."""
        return [*self._of_lines(), *self._of_workers(), *self.unbalanced]

    def _of_lines(self) -> Iterator[str]:
        for kind, line in self.lines.items():
            for what in ("lost", "phantom", "stuck"):
                if count := getattr(line, what):
                    yield f"{count} {what}: {kind}"
            if kind in self.harmless and line.doubles:
                yield f"{line.doubles} doubles, where none can be: {kind}"
        # In sum: of two kills within seconds it can't always be told which one made a message come twice.
        doubles = sum(line.doubles for kind, line in self.lines.items() if kind not in self.harmless)
        at_most = sum(line.at_most for kind, line in self.lines.items() if kind not in self.harmless)
        if doubles > at_most:
            yield f"{doubles} doubles, with {at_most} at risk"

    def _of_workers(self) -> Iterator[str]:
        for each in self.left:
            yield f"{each.slot} left by itself, with exit code {each.code}"
        for each in self.stopped:
            if each.code:
                yield f"{each.slot} stopped with exit code {each.code}"


def count_faults(result: Result, faults: list[Fault]) -> None:
    for fault in faults:
        line = result.line(fault.kind)
        line.times += 1
        line.at_most += fault.at_risk
        if not fault.loses_answers:
            result.harmless.add(fault.kind)


def count_notifications(result: Result, book: Book, ends: Ends) -> None:
    """Count the committed notifications, those lost or stuck, and pushes that were shown and never committed."""
    shown = book.shown()
    for event in book.committed.values():
        line = result.line(book.fault_at(event.born))
        line.notifications += 1
        its = ends.get(event.id, {})
        if PENDING in its.values():
            line.stuck += 1
            result.amiss[event.id] = f"stuck: {its}"
        elif is_lost(event, its, shown):
            line.lost += 1
            missing = [address for address in event.addresses if (event.id, address) not in shown]
            result.amiss[event.id] = f"lost: {its}, not shown {missing}"
    for name, address in shown:
        if name not in book.committed:
            event_there = book.rolled_back.get(name)
            result.line(book.fault_at(event_there.born) if event_there else NO_FAULT).phantom += 1
            result.amiss[name] = f"phantom: shown at {address}"


def is_lost(event: Event, its: Mapping[str, str], shown: set[Push]) -> bool:
    """Return whether an address has no state at all, or is recorded as sent and FCM never took it."""
    return any(
        address not in its or (its[address] == SENT and (event.id, address) not in shown) for address in event.addresses
    )


def count_doubles(
    result: Result, book: Book, doubles: list[Double], unanswered: set[Push], who_lost: Mapping[Push, set[int]]
) -> None:
    for double in doubles:
        kind = book.fault_behind(double, unanswered, who_lost.get(double.push, set()))
        result.line(kind).doubles += 1
        if kind in result.harmless:
            result.amiss[double.push[0]] = f"twice at {double.push[1]}, {double.again - double.first:.2f} s apart"
        if kind == NO_ANSWER:  # each is one that FCM took without an answer
            result.line(kind).at_most += 1
