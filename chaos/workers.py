"""The workers of a chaos run: each in a slot where a supervisor restarts it, behind relays of its own."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic

from chaos.result import Left
from tests.support.relay import Moment, Relay, Trap

RESTARTED_AFTER = 0.5
SHUTDOWN = 28.0


class Slot:
    """A place for one worker at a time."""

    def __init__(
        self, name: str, kind: str, command: list[str], *, environment: dict[str, str], relays: list[Relay], log: Path
    ) -> None:
        self.name = name
        self.kind = kind
        self.relays = relays
        self.frozen = False
        self.silent = False
        self._command = command
        self._environment = {**os.environ, **environment}
        self._log = log
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_at_work(self) -> bool:
        """Whether it is up and no fault is striking it."""
        process = self._process
        return process is not None and process.poll() is None and not (self.frozen or self.silent or self._killed)

    def start(self) -> None:
        with self._lock, self._log.open("ab") as log:
            self._killed = False
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, cwd=self._log.parent
            )

    def shoot(self) -> bool:
        """Kill -9 without waiting; return whether there was a process to kill."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return False
            self._killed = True
            self._process.kill()
            return True

    def signal(self, which: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(which)

    def left(self) -> int | None:
        """Return the exit code of a worker that is gone."""
        return self._process.poll() if self._process else None

    @property
    def was_killed(self) -> bool:
        return self._killed

    def set_traps(self, statement: str, moment: Moment, caught: "Catch") -> None:
        """Kill this worker at that moment, unless another one is caught first."""
        for relay in self.relays:
            relay.set_trap(Trap(statement, moment, lambda: caught.shoot(self)))

    def logged(self, lines: int) -> str:
        """Return the last lines that its workers have logged."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def clear_traps(self) -> None:
        for relay in self.relays:
            relay.clear_traps()

    def stop(self) -> int:
        """Stop it as a platform does, and kill it in the end; return its exit code."""
        assert self._process is not None
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(SHUTDOWN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Catch:
    """Kills the first worker that comes, and no other; notes which one and when."""

    def __init__(self) -> None:
        self.made = Event()
        self.pid = 0
        self.at = 0.0
        self._lock = Lock()

    def shoot(self, slot: Slot) -> None:
        with self._lock:
            pid = slot.pid
            if self.made.is_set() or pid is None:
                return
            self.at = monotonic()
            slot.shoot()
            self.pid = pid
            self.made.set()


class Supervisor(Thread):
    """Restarts each worker that is gone, and notes the ones that exited without being killed."""

    def __init__(self, slots: list[Slot]) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._slots = slots
        self._over = Event()
        self._gone_since: dict[str, float] = {}
        self.left: list[Left] = []
        """The workers that exited by themselves."""

    def run(self) -> None:
        while not self._over.wait(0.1):
            for slot in self._slots:
                self._see_to(slot)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _see_to(self, slot: Slot) -> None:
        code = slot.left()
        if code is None:
            return
        if slot.name not in self._gone_since:
            self._gone_since[slot.name] = monotonic()
            if not slot.was_killed:
                self.left.append(Left(slot.name, slot.kind, code))
        elif monotonic() - self._gone_since[slot.name] > RESTARTED_AFTER:
            del self._gone_since[slot.name]
            slot.start()
