"""How long from COMMIT to FCM: single commits about a second apart, to a worker that sleeps.

    python -m benchmarks.latency [--commits 50] [--without-notify]

Starts an embedded PostgreSQL (fsync on), a local FCM and one `notify-worker worker`; prints median, p90 and the longest,
from the moment COMMIT is sent to the moment the request has been read. `--without-notify` disables procrastinate's
NOTIFY trigger: then the second's look has to find it, and the figures say so.
"""

import argparse
import random
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import psycopg

from notify_worker.database import schema
from notify_worker.dev import postgres
from notify_worker.dev.demo import register
from notify_worker.dev.shop import Shop
from notify_worker.producer import defer
from notify_worker.sandbox import start as start_sandbox

NOTIFY_TRIGGER = "procrastinate_jobs_notify_queue_job_inserted_v1"
QUIET = 2.0
"""Seconds before the first commit: the worker is up, has its token, and sleeps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--without-notify", action="store_true")
    options = parser.parse_args()
    with ExitStack() as ends:
        home = Path(ends.enter_context(TemporaryDirectory(prefix="notify-worker-latency-")))
        home.chmod(0o711)
        server = ends.enter_context(postgres.start(home))
        box = ends.enter_context(start_sandbox(home / "sandbox.json"))
        schema.migrate(server.conninfo)
        shop = Shop(server.conninfo, box, home / "worker.log")
        ends.callback(shop.close)
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
    sleep(0.5 + random.random())  # out of step with the look
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
