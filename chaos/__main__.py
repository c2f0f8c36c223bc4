"""Count what is lost, phantom, stuck or sent twice while workers are killed and databases restarted: the README's table.

    python -m chaos [--kills 100] [--restarts 20] [--failovers 5] [--notifications 100000] [--rate 150]
                               [--seed N] [--system notify_worker|one_job_per_push]

Starts a PostgreSQL with a synchronous standby, a local FCM, producers and workers, and PgBouncer where there is one; says
what it does, and ends with a line for each kind of fault. Exit code 1: a promise of `notify_worker` was broken.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from secrets import randbits
from tempfile import TemporaryDirectory

from chaos.faults import long_plan
from chaos.harness import Chaos
from chaos.systems import NotifyWorker, OneJobPerPush, System
from tests.support.cluster import a_cluster

SYSTEMS: dict[str, type[System]] = {"notify_worker": NotifyWorker, "one_job_per_push": OneJobPerPush}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--failovers", type=int, default=5)
    parser.add_argument("--notifications", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=150, help="notifications a second that producers commit, about")
    parser.add_argument("--seed", type=int, default=randbits(32))
    parser.add_argument("--system", choices=SYSTEMS, default="notify_worker")
    options = parser.parse_args()
    plan = long_plan(options.seed, kills=options.kills, restarts=options.restarts, failovers=options.failovers)
    with ExitStack() as ends:
        folder = Path(ends.enter_context(TemporaryDirectory(prefix="notify-worker-chaos-")))
        folder.chmod(0o711)
        cluster = ends.enter_context(a_cluster())
        system = SYSTEMS[options.system]()
        chaos = ends.enter_context(Chaos(cluster, system, folder, seed=options.seed, rate=options.rate))
        chaos.say = say
        result = chaos.run(plan, notifications=options.notifications)
    broken = result.broken_promises()
    print(result.table(), *broken, sep="\n")
    return 1 if broken and options.system == "notify_worker" else 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
