"""The time from COMMIT to FCM: single commits about a second apart, with an idle worker.

    python -m benchmarks.latency [--commits 50] [--without-notify]

Starts an embedded PostgreSQL (fsync on), a local FCM and one `notify-worker worker`. Prints the median, p90 and longest time
from sending COMMIT until FCM has read the request. `--without-notify` disables procrastinate's NOTIFY trigger, so that the
worker only polls.
"""

import argparse
import random
import sys
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import psycopg

from notify_worker.dev.demo import register
from notify_worker.dev.shop import Shop, open_shop
from notify_worker.producer import defer

NOTIFY_TRIGGER = "procrastinate_jobs_notify_queue_job_inserted_v1"
QUIET = 2.0
"""Seconds before the first commit: by then the worker is up, has its token, and is idle."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--without-notify", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="notify-worker-latency-") as home, open_shop(Path(home)) as shop:
        if options.without_notify:
            shop.connection.execute(
                f"alter table notify_worker.procrastinate_jobs disable trigger {NOTIFY_TRIGGER}".encode()
            )
        register(shop, "u_42", "app:u_42", "android")
        shop.start_worker()
        shop.connection.execute("create table plain (id bigint)")
        sleep(QUIET)
        report([1000 * commit(shop, number) for number in range(options.commits)])


def commit(shop: Shop, number: int) -> float:
    """Commit one order with its notification; return the seconds from COMMIT until FCM has read the request."""
    sleep(0.5 + random.random())  # out of step with the worker's polls
    before = shop.box.received
    with psycopg.connect(shop.conninfo) as connection:
        connection.execute("insert into plain values (%s)", [number])
        defer(connection, receiver_id="u_42", title=f"Order {number}")
        began = monotonic()
        connection.commit()
    while shop.box.received == before:
        sleep(0.0002)
    return monotonic() - began


def report(milliseconds: list[float]) -> None:
    p90 = quantiles(milliseconds, n=10)[-1]
    print(
        f"{len(milliseconds)} commits: median {median(milliseconds):.1f} ms, p90 {p90:.1f} ms, "
        f"longest {max(milliseconds):.1f} ms, shortest {min(milliseconds):.1f} ms",
        file=sys.stdout,
    )


if __name__ == "__main__":
    main()
