"""Faults by rate: which request meets one whose address asks for none."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from random import Random
from secrets import randbits

from notify_worker.sandbox.checks import Request
from notify_worker.sandbox.faults import DEVICE_FAULTS

DEVICE_KINDS = frozenset({"token", "fid"})


class Dice:
    """Draws faults: those of a request by chance, those of a device by its address, so that a dead one stays dead."""

    def __init__(self, seed: int | None) -> None:
        self._seed = randbits(32) if seed is None else seed
        self._chance = Random(self._seed)  # noqa: S311  no secret hangs on it

    def fault(self, request: Request, fail: Mapping[str, float]) -> str | None:
        """Name the fault that this request meets; a service that is down says nothing of a device that is dead."""
        of_requests = {name: rate for name, rate in fail.items() if name not in DEVICE_FAULTS}
        if met := drawn(of_requests.items(), self._chance.random()):
            return met
        if request.kind not in DEVICE_KINDS:
            return None
        return drawn(((name, rate) for name, rate in fail.items() if name in DEVICE_FAULTS), self._of(request.address))

    def _of(self, address: str) -> float:
        """Turn an address into a number in [0, 1), always the same."""
        digest = blake2b(f"{self._seed}:{address}".encode(errors="replace"), digest_size=6).digest()
        return int.from_bytes(digest) / (1 << 48)


def drawn(rates: Iterable[tuple[str, float]], at: float) -> str | None:
    """Name the one whose part of [0, 1) holds this number."""
    for name, rate in rates:
        if at < rate:
            return name
        at -= rate
    return None
