"""How much of a project's quota is used: a backlog, a few workers, and an FCM that answers 429 beyond the quota.

    python -m benchmarks.quota [--quota 50] [--max-per-second 50|none] [--backlog 8000] [--workers 2] [--ramp 60]
                               [--seconds 90] [--retry-after 5]

Starts an embedded PostgreSQL, a local FCM and the workers. Every ten seconds, prints the rates of requests and of accepted
messages. Then, without the ramp-up at the start, prints the share of requests answered 429 and the share of the quota used.
With `--max-per-second none`, the workers don't know the quota and have to learn it from the 429s.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from notify_worker.dev.shop import open_shop
from notify_worker.sandbox import Sandbox

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
    """The counts of FCM up to a time."""

    at: float
    requests: int
    accepted: int
    refused: int

    def __sub__(self, before: "Count") -> "Count":
        return Count(
            self.at - before.at,
            self.requests - before.requests,
            self.accepted - before.accepted,
            self.refused - before.refused,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quota", type=float, default=50, help="messages a second that FCM accepts")
    parser.add_argument(
        "--max-per-second", type=number_or_none, default="50", help="max_per_second in the project's row"
    )
    parser.add_argument("--backlog", type=int, default=8_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ramp", type=float, default=60, help="seconds before the measurement")
    parser.add_argument("--seconds", type=float, default=90, help="seconds to measure")
    parser.add_argument("--retry-after", type=int, help="Retry-After of a 429, in seconds; FCM's rarely have one")
    options = parser.parse_args()
    with (
        TemporaryDirectory(prefix="notify-worker-quota-") as home,
        open_shop(Path(home), quota=options.quota, retry_after=options.retry_after) as shop,
    ):
        shop.connection.execute("update notify_worker.projects set max_per_second = %s", [options.max_per_second])
        for _ in range(options.workers):
            shop.start_worker()
        shop.connection.execute(BACKLOG, [options.backlog])
        report(measured(shop.box, options.ramp, options.seconds), options.quota)
        for began_at, ended_at, rate, reason in shop.connection.execute(INCIDENTS):
            print(f"{began_at} to {ended_at}, then {rate} a second: {reason}")


def number_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def measured(box: Sandbox, ramp: float, seconds: float) -> Count:
    """Print a line every ten seconds; return the counts after the ramp-up."""
    began = monotonic()
    watch(box, began, until=began + ramp)
    after_ramp = counted(box)
    print(f"{'':7} the ramp-up is over")
    watch(box, began, until=began + ramp + seconds)
    return counted(box) - after_ramp


def watch(box: Sandbox, began: float, *, until: float) -> None:
    """Print a line every ten seconds."""
    while (left := until - monotonic()) > 0:
        before = counted(box)
        sleep(min(LINE_EVERY, left))
        passed = counted(box) - before
        print(
            f"{monotonic() - began:5.0f} s  {passed.requests / passed.at:7.1f} requests a second, "
            f"{passed.accepted / passed.at:7.1f} accepted, {passed.refused:4d} answered 429",
            flush=True,
        )


def counted(box: Sandbox) -> Count:
    return Count(monotonic(), box.received, box.accepted, box.by_status.get(429, 0))


def report(passed: Count, quota: float) -> None:
    share = passed.refused / max(1, passed.requests)
    print(
        f"after the ramp-up, over {passed.at:.0f} s: {passed.requests} requests, {share:.2%} answered 429, "
        f"{passed.accepted / passed.at / quota:.1%} of the quota used"
    )


if __name__ == "__main__":
    main()
