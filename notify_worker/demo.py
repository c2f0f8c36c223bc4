"""The story of a time-deal shop, told on real parts: an embedded PostgreSQL, a local FCM, workers as processes.

Each scene does what a shop does, waits for what phones show, and says how long that took. A scene that does not end as it
should raises `Untrue`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from threading import Barrier, Thread
from time import monotonic, sleep

import psycopg

from notify_worker import embedded, schema
from notify_worker.errors import NotifyWorkerError
from notify_worker.producer import defer
from notify_worker.sandbox import Sandbox, Shown
from notify_worker.sandbox import start as start_sandbox

Tell = Callable[[str], None]
PATIENCE = 15.0
LOOK_EVERY = 0.002


class Untrue(NotifyWorkerError):
    """The story did not go as it should."""


class Shop:
    """A shop with its database, its workers, and the phones of its customers."""

    def __init__(self, conninfo: str, box: Sandbox, tell: Tell, log: Path) -> None:
        self.conninfo = conninfo
        self.box = box
        self.log = log
        self._tell = tell
        self._began = monotonic()
        self._workers: list[subprocess.Popen[bytes]] = []
        self.connection = psycopg.connect(conninfo, autocommit=True)
        self.connection.execute("create table if not exists orders (id bigint primary key, receiver_id text)")
        self.connection.execute("create table if not exists restock_requests (item_id bigint, receiver_id text)")

    def tell(self, line: str) -> None:
        """Say what happens, with the seconds since the story began."""
        self._tell(f"{monotonic() - self._began:6.2f} s  {line}")

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start one more `notify-worker worker`, and wait until it is there."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NOTIFY_WORKER_")},
            "NOTIFY_WORKER_DATABASE_URL": self.conninfo,
            "NOTIFY_WORKER_FCM_URL": self.box.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.box.credentials),
        }
        with self.log.open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "notify_worker", "worker"], env=environment, stderr=log, stdout=log, cwd="/"
            )
        self._workers.append(worker)
        self.until("a worker is there", lambda: worker.poll() is not None or self.is_there(worker))
        return worker

    def victim(self) -> subprocess.Popen[bytes]:
        """Choose the worker that has been there longest."""
        return next(worker for worker in self._workers if worker.poll() is None)

    def is_there(self, worker: subprocess.Popen[bytes]) -> bool:
        """Tell whether a worker is there. To count them all would not do: of one that was killed nobody knows yet."""
        return self.number("select count(*) from notify_worker.workers where pid = %s", worker.pid) > 0

    def number(self, query: str, *values: object) -> int:
        """Ask the database for a number."""
        row = self.connection.execute(query.encode(), values).fetchone()
        return int(row[0]) if row else 0

    def state(self, event_id: str) -> str | None:
        """Say how the notification of an event stands."""
        row = self.connection.execute(
            "select state from notify_worker.notifications where event_id = %s", [event_id]
        ).fetchone()
        return row[0] if row else None

    def shown_to(self, address: str) -> list[Shown]:
        """List what a phone shows."""
        return [shown for shown in self.box.shown if shown.address == address]

    def until(self, what: str, holds: Callable[[], bool]) -> float:
        """Wait until it holds; return the seconds that it took."""
        began = monotonic()
        while not holds():
            if monotonic() - began > PATIENCE:
                raise Untrue(f"not within {PATIENCE:g} s: {what}. The workers' log ends:\n{self.last_lines()}")
            sleep(LOOK_EVERY)
        return monotonic() - began

    def last_lines(self) -> str:
        """Show the end of the workers' log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def close(self) -> None:
        """Stop the workers as a platform does, and go home."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait()
        self.connection.close()


def run(home: Path, tell: Tell) -> bool:
    """Tell the story in a folder of its own; say whether it was true."""
    tell("An embedded PostgreSQL, a local FCM, and a worker; nothing else.")
    with ExitStack() as ends:
        home.chmod(0o711)  # under root the server runs as nobody, who has to pass through
        server = ends.enter_context(embedded.start(home, {"fsync": "on"}))
        box = ends.enter_context(
            start_sandbox(home / "sandbox.json", on_show=lambda shown: tell(f"          phone  {shown}"))
        )
        schema.migrate(server.conninfo)
        shop = Shop(server.conninfo, box, tell, home / "worker.log")
        ends.callback(shop.close)
        try:
            for scene in SCENES:
                scene(shop)
        except Untrue as error:
            shop.tell(f"THIS WAS NOT TO HAPPEN: {error}")
            return False
        shop.tell(
            f"The end: FCM was asked {box.received} times, phones show {box.accepted} messages, {box.doubles} twice."
        )
        return True


def stay_up(home: Path, tell: Tell, until: Callable[[], object]) -> None:
    """Keep a database, a local FCM and a worker up in `home`, and say what to type, until `until` returns."""
    with ExitStack() as ends:
        home.mkdir(parents=True, exist_ok=True)
        server = ends.enter_context(embedded.start(home))
        box = ends.enter_context(start_sandbox(home / "sandbox.json", on_show=lambda shown: tell(f"phone  {shown}")))
        schema.migrate(server.conninfo)
        shop = Shop(server.conninfo, box, tell, home / "worker.log")
        ends.callback(shop.close)
        shop.start_worker()
        tell(
            "A PostgreSQL, a local FCM and a worker are up. In another terminal:\n\n"
            f"export NOTIFY_WORKER_DATABASE_URL='{server.conninfo}'\n"
            f"export NOTIFY_WORKER_FCM_URL={box.url} GOOGLE_APPLICATION_CREDENTIALS={quote(str(box.credentials))}\n"
            "notify-worker send --token app:phone --title Hello --wait\n"
            "notify-worker status\n\n"
            f"Addresses with faults: dead:x, once503:x, hang5:x, 429:x. What phones would show: {box.url}\n"
            "Ctrl-C ends it."
        )
        until()


def opening(shop: Shop) -> None:
    """A device and a campaign are registered, and a worker starts."""
    shop.connection.execute(
        """
        insert into notify_worker.campaigns (name, title, body)
        values
            ('order_paid', 'Thank you', 'Order {order_id} is paid'),
            ('restock', 'Back in stock', 'The {item} is here again')
        on conflict do nothing
        """
    )
    register(shop, "u_42", "app:u_42-phone", "android")
    shop.tell('The app registers a device of receiver u_42; marketing writes the campaigns "order_paid" and "restock".')
    shop.start_worker()
    shop.tell("A worker is up, asleep, and listens.")


def register(shop: Shop, receiver_id: str, address: str, platform: str) -> None:
    """Register a device."""
    shop.connection.execute(
        "select notify_worker.register_device(%s, 'token', %s, %s)", [receiver_id, address, platform]
    )


def place_order(connection: psycopg.Connection, order_id: int, receiver_id: str) -> None:
    """Write an order and its notification; whoever calls this commits or rolls back."""
    connection.execute("insert into orders (id, receiver_id) values (%s, %s)", [order_id, receiver_id])
    defer(
        connection,
        event_id=f"order:{order_id}:paid",
        receiver_id=receiver_id,
        campaign="order_paid",
        params={"order_id": order_id},
    )


def order_commits(shop: Shop) -> float:
    """An order commits, and a push appears. Returns the seconds from COMMIT to the phone."""
    with psycopg.connect(shop.conninfo) as connection:
        place_order(connection, 1, "u_42")
        shop.tell("begin; insert into orders …; insert into notify_worker.notifications …; commit;")
    seconds = shop.until("the push of order 1", lambda: len(shop.shown_to("app:u_42-phone")) == 1)
    shop.until("order 1 is recorded as sent", lambda: shop.state("order:1:paid") == "sent")
    shop.tell(f"From COMMIT to FCM's acceptance: {1000 * seconds:.0f} ms.")
    return seconds


def order_rolls_back(shop: Shop) -> None:
    """An order rolls back, and nothing appears: another order that commits after it is shown, and this one is not."""
    with psycopg.connect(shop.conninfo) as connection:
        place_order(connection, 2, "u_42")
        connection.rollback()
        shop.tell("The same for order 2, and rollback.")
        place_order(connection, 3, "u_42")
    shop.until("the push of order 3", lambda: shop.state("order:3:paid") == "sent")
    if shop.state("order:2:paid") is not None or any("Order 2 " in (shown.body or "") for shown in shop.box.shown):
        raise Untrue("what was rolled back was sent")
    shop.tell("Order 3 was sent. Of order 2 there is no row, no job and no push.")


def event_published_by_eight(shop: Shop) -> None:
    """One event is published by eight connections at the same moment, and sent once."""
    barrier = Barrier(8)

    def publish() -> None:
        with psycopg.connect(shop.conninfo) as connection:
            barrier.wait()
            defer(
                connection, event_id="order:4:paid", receiver_id="u_42", campaign="order_paid", params={"order_id": 4}
            )

    publishers = [Thread(target=publish) for _ in range(8)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    shop.until("the push of order 4", lambda: shop.state("order:4:paid") == "sent")
    times = len([shown for shown in shop.box.shown if shown.body == "Order 4 is paid"])
    if times != 1:
        raise Untrue(f"an event that was published by eight connections was sent {times} times")
    shop.tell("Event order:4:paid, published by eight connections at once, was sent once.")


def restock(shop: Shop) -> float:
    """Everyone who asked for an item is told at a set time, by one statement. Returns the seconds it was late."""
    receivers = [f"r_{number}" for number in range(25)]
    for receiver_id in receivers:
        shop.connection.execute("insert into restock_requests (item_id, receiver_id) values (7, %s)", [receiver_id])
        register(shop, receiver_id, f"app:{receiver_id}", "android")
    shop.connection.execute(
        """
        insert into notify_worker.notifications (event_id, receiver_id, campaign, params, send_at)
        select 'restock:7:' || receiver_id, receiver_id, 'restock', '{"item": "tent"}', now() + interval '1.5 seconds'
        from restock_requests
        where item_id = 7
        """
    )
    due = monotonic() + 1.5
    shop.tell("25 receivers asked for item 7: one INSERT … SELECT, to be sent in 1.5 s.")
    sent = "select count(*) from notify_worker.notifications where event_id like 'restock:7:%%' and state = 'sent'"
    shop.until("the first restock push", lambda: bool(shop.shown_to("app:r_0")))
    late = monotonic() - due
    shop.until("25 restock pushes", lambda: shop.number(sent) == len(receivers))
    if late < 0:
        raise Untrue(f"what was to be sent later came {-late:.2f} s too early")
    shop.tell(f"All 25 sent, the first {late:.2f} s after its time.")
    return late


def three_devices(shop: Shop) -> None:
    """A receiver with three devices is told on each; one is dead, and is retired."""
    for name, platform in (("app:u_7-phone", "android"), ("app:u_7-tablet", "ios"), ("dead:u_7-old", "web")):
        register(shop, "u_7", name, platform)
    place_order(shop.connection, 5, "u_7")
    shop.until("the push of order 5", lambda: shop.state("order:5:paid") == "sent")
    retired = shop.number(
        "select count(*) from notify_worker.devices where receiver_id = 'u_7' and retired_at is not null"
    )
    told = len(shop.shown_to("app:u_7-phone")) + len(shop.shown_to("app:u_7-tablet"))
    if (told, retired) != (2, 1):
        raise Untrue(f"{told} devices were told and {retired} retired, not 2 and 1")
    shop.tell("u_7 has three devices: two were told once each; FCM called the third unregistered, and it is retired.")


def blip_is_mended(shop: Shop) -> float:
    """FCM answers 503 once; the attempt mends it. Returns the seconds that it took."""
    register(shop, "u_8", "once503:u_8-phone", "android")
    place_order(shop.connection, 6, "u_8")
    seconds = shop.until("the push of order 6", lambda: shop.state("order:6:paid") == "sent")
    shop.tell(f"FCM answered order 6 with 503 first: mended within the attempt, in {seconds:.1f} s.")
    return seconds


def worker_is_killed(shop: Shop) -> float:
    """A worker is killed in mid-request, and another finishes its notification. Returns the seconds from kill to phone."""
    register(shop, "u_9", "oncehang:u_9-phone", "android")
    place_order(shop.connection, 7, "u_9")
    shop.until("the request of order 7 hangs at FCM", lambda: shop.box.in_flight == 1)
    victim = shop.victim()
    shop.tell("The request of order 7 hangs at FCM. A second worker starts; the first is killed with -9.")
    shop.start_worker()
    victim.kill()
    seconds = shop.until("the push of order 7", lambda: shop.state("order:7:paid") == "sent")
    shop.tell(f"{seconds:.1f} s later the second worker has found it dead and sent order 7. Its story:")
    for at, what in shop.connection.execute("select at, what from notify_worker.explain('order:7:paid')"):
        shop.tell(f"          {at:%H:%M:%S.%f}  {what}")
    return seconds


def ledger_balances(shop: Shop) -> None:
    """At the end the ledger balances."""
    for what, expected, found, balanced in shop.connection.execute("select * from notify_worker.ledger"):
        if not balanced:
            raise Untrue(f"the ledger: {what}: expected {expected}, found {found}")
    shop.tell("The ledger balances, line by line.")


SCENES: tuple[Callable[[Shop], object], ...] = (
    opening,
    order_commits,
    order_rolls_back,
    event_published_by_eight,
    restock,
    three_devices,
    blip_is_mended,
    worker_is_killed,
    ledger_balances,
)
