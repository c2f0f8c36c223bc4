"""How well a project's quota is used: a backlog, a few workers, and an FCM that answers 429 beyond the quota.

    python -m benchmarks.quota [--quota 50] [--max-per-second 50|none] [--backlog 8000] [--workers 2] [--climb 60]
                               [--seconds 90] [--retry-after 5]

Starts an embedded PostgreSQL, a local FCM and the workers; prints what was asked of FCM and what it took, every ten
seconds, and after the climb which share of the requests was answered 429 and which share of the quota was used.
`--max-per-second none` says nothing of the quota to the workers: they have to learn it from the 429s.
"""

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from notify_worker.database import schema
from notify_worker.dev import postgres
from notify_worker.dev.shop import Shop
from notify_worker.sandbox import Sandbox
from notify_worker.sandbox import start as start_sandbox

LINE_EVERY = 10.0
BACKLOG = """
    insert into notify_worker.notifications (kind, address, title)
    select 'token', 'app:phone-' || number, 'Back in stock'
    from generate_series(1, %s) as number
"""
INCIDENTS = """
    select
        to_char(began_at, 'HH24:MI:SS'),
        to_char(least(ends_at, ended_at), 'HH24:MI:SS'),
        round(project_rate::numeric, 1),
        reason
    from notify_worker.stored_incidents
    order by began_at
"""


@dataclass(frozen=True)
class Count:
    """What FCM has seen until a moment."""

    at: float
    requests: int
    taken: int
    refused: int

    def __sub__(self, before: "Count") -> "Count":
        return Count(
            self.at - before.at,
            self.requests - before.requests,
            self.taken - before.taken,
            self.refused - before.refused,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quota", type=float, default=50, help="messages a second that FCM takes")
    parser.add_argument("--max-per-second", type=number_or_none, default="50", help="what the project's row says")
    parser.add_argument("--backlog", type=int, default=8_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--climb", type=float, default=60, help="seconds before the measurement")
    parser.add_argument("--seconds", type=float, default=90, help="seconds of the measurement")
    parser.add_argument("--retry-after", type=int, help="seconds that a 429 asks for; FCM's rarely say")
    options = parser.parse_args()
    with ExitStack() as ends:
        home = Path(ends.enter_context(TemporaryDirectory(prefix="notify-worker-quota-")))
        home.chmod(0o711)
        server = ends.enter_context(postgres.start(home))
        credentials = home / "sandbox.json"
        box = ends.enter_context(start_sandbox(credentials, quota=options.quota, retry_after=options.retry_after))
        schema.migrate(server.conninfo)
        shop = Shop(server.conninfo, box, home / "worker.log")
        ends.callback(shop.close)
        shop.connection.execute("update notify_worker.projects set max_per_second = %s", [options.max_per_second])
        for _ in range(options.workers):
            shop.start_worker()
        shop.connection.execute(BACKLOG, [options.backlog])
        report(measured(box, options.climb, options.seconds), options.quota)
        for began_at, ended_at, rate, reason in shop.connection.execute(INCIDENTS):
            print(f"{began_at} to {ended_at}, then {rate} a second: {reason}")


def number_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def measured(box: Sandbox, climb: float, seconds: float) -> Count:
    """Print a line every ten seconds, of the climb and of what follows; return what was counted after the climb."""
    began = monotonic()
    watch(box, began, until=began + climb)
    after_the_climb = counted(box)
    print(f"{'':7} the climb is over")
    watch(box, began, until=began + climb + seconds)
    return counted(box) - after_the_climb


def watch(box: Sandbox, began: float, *, until: float) -> None:
    """Print a line every ten seconds."""
    while (left := until - monotonic()) > 0:
        before = counted(box)
        sleep(min(LINE_EVERY, left))
        passed = counted(box) - before
        print(
            f"{monotonic() - began:5.0f} s  {passed.requests / passed.at:7.1f} requests a second, "
            f"{passed.taken / passed.at:7.1f} taken, {passed.refused:4d} answered 429",
            flush=True,
        )


def counted(box: Sandbox) -> Count:
    return Count(monotonic(), box.received, box.accepted, box.by_status.get(429, 0))


def report(passed: Count, quota: float) -> None:
    share = passed.refused / max(1, passed.requests)
    print(
        f"after the climb, over {passed.at:.0f} s: {passed.requests} requests, {share:.2%} answered 429, "
        f"{passed.taken / passed.at / quota:.1%} of the quota used"
    )


if __name__ == "__main__":
    main()
