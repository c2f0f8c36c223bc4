"""Wait for a condition, with a deadline. The only sleeps in tests/."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic, sleep


def until(what: str, holds: Callable[[], bool], *, within: float) -> None:
    """Return as soon as it holds; after `within` seconds fail and say what did not come."""
    deadline = monotonic() + within
    while not holds():
        assert monotonic() < deadline, f"not within {within} s: {what}"
        sleep(0.01)


async def auntil(what: str, holds: Callable[[], bool | Awaitable[bool]], *, within: float) -> None:
    """Wait as `until` does and let the event loop run; the condition may be a coroutine function."""
    deadline = monotonic() + within
    while not await asked(holds):
        assert monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.01)


async def asked(holds: Callable[[], bool | Awaitable[bool]]) -> bool:
    answer = holds()
    return answer if isinstance(answer, bool) else await answer
