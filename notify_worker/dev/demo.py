"""The demo: a shop that sells time deals, on real parts: an embedded PostgreSQL, a local FCM and workers as processes.

Each step acts as the shop, waits for the phones and returns how long that took. It raises ShopError if anything goes wrong.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from threading import Barrier
from time import monotonic

import psycopg

from notify_worker.dev.shop import Shop, ShopError, open_shop
from notify_worker.producer import defer

Tell = Callable[[str], None]


def run(home: Path, tell: Tell) -> bool:
    """Run the demo.

    Args:
        home: An empty folder for its files.
        tell: Called with each line of the report.

    Returns:
        True if every step succeeded.
    """
    tell("An embedded PostgreSQL, a local FCM and a worker; nothing else.")
    tell = with_seconds(tell)
    with open_shop(home, on_show=lambda shown: tell(f"          phone  {shown}")) as shop:
        try:
            for step in STEPS:
                step(shop, tell)
        except ShopError as error:
            tell(f"FAILED: {error}")
            return False
        box = shop.box
        tell(
            f"Done: FCM got {box.received} requests, phones show {box.accepted} messages, {box.doubles} of them twice."
        )
        return True


def with_seconds(tell: Tell) -> Tell:
    """Put the seconds since now before each line."""
    began = monotonic()
    return lambda line: tell(f"{monotonic() - began:6.2f} s  {line}")


def stay_up(home: Path, tell: Tell, until: Callable[[], object]) -> None:
    """Run a PostgreSQL, a local FCM and a worker until `until` returns, and print how to use them.

    Args:
        home: The folder of their files. The database in it is kept for the next time.
        tell: Called with each line of the report.
        until: Returns when all should stop.

    Raises:
        EmbeddedServerError: The server does not start, or another process runs it.
    """
    with open_shop(home, on_show=lambda shown: tell(f"phone  {shown}")) as shop:
        shop.start_worker()
        tell(
            "A PostgreSQL, a local FCM and a worker are up. In another terminal:\n\n"
            f"export NOTIFY_WORKER_DATABASE_URL='{shop.conninfo}'\n"
            f"export NOTIFY_WORKER_FCM_URL={shop.box.url} "
            f"GOOGLE_APPLICATION_CREDENTIALS={quote(str(shop.box.credentials))}\n"
            "notify-worker send --token app:phone --title Hello --wait\n"
            "notify-worker status\n\n"
            f"Addresses with faults: dead:x, once503:x, hang5:x, 429:x. What phones would show: {shop.box.url}\n"
            "Ctrl-C ends it."
        )
        until()


def set_up(shop: Shop, tell: Tell) -> None:
    """Register a device and two campaigns, and start a worker."""
    shop.connection.execute("create table if not exists orders (id bigint primary key, receiver_id text)")
    shop.connection.execute("create table if not exists restock_requests (item_id bigint, receiver_id text)")
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
    tell('Receiver u_42 has a device; there are the campaigns "order_paid" and "restock".')
    shop.start_worker()
    tell("A worker is up: idle, and listening.")


def register(shop: Shop, receiver_id: str, address: str, platform: str) -> None:
    """Register a device."""
    shop.connection.execute(
        "select notify_worker.register_device(%s, 'token', %s, %s)", [receiver_id, address, platform]
    )


def place_order(connection: psycopg.Connection, order_id: int, receiver_id: str) -> None:
    """Insert an order and its notification; the caller commits or rolls back."""
    connection.execute("insert into orders (id, receiver_id) values (%s, %s)", [order_id, receiver_id])
    defer(
        connection,
        event_id=f"order:{order_id}:paid",
        receiver_id=receiver_id,
        campaign="order_paid",
        params={"order_id": order_id},
    )


def commit_order(shop: Shop, tell: Tell) -> float:
    """Commit an order: its push is shown. Returns the seconds from COMMIT to the phone."""
    with psycopg.connect(shop.conninfo) as connection:
        place_order(connection, 1, "u_42")
        tell("begin; insert into orders …; insert into notify_worker.notifications …; commit;")
    seconds = shop.until("the push of order 1", lambda: len(shop.shown_to("app:u_42-phone")) == 1)
    shop.until("order 1 is recorded as sent", lambda: shop.state("order:1:paid") == "sent")
    tell(f"From COMMIT to FCM's acceptance: {1000 * seconds:.0f} ms.")
    return seconds


def roll_back_order(shop: Shop, tell: Tell) -> None:
    """Roll an order back, then commit another: only the second one's push is shown."""
    with psycopg.connect(shop.conninfo) as connection:
        place_order(connection, 2, "u_42")
        connection.rollback()
        tell("The same for order 2, with rollback.")
        place_order(connection, 3, "u_42")
    shop.until("the push of order 3", lambda: shop.state("order:3:paid") == "sent")
    if shop.state("order:2:paid") is not None or any("Order 2 " in (shown.body or "") for shown in shop.box.shown):
        raise ShopError("a notification that was rolled back was sent")
    tell("Order 3 was sent. Order 2 has no row, no job and no push.")


def publish_event_eight_times(shop: Shop, tell: Tell) -> None:
    """Publish one event over eight connections at the same time: it is sent once."""
    barrier = Barrier(8)

    def publish() -> None:
        with psycopg.connect(shop.conninfo) as connection:
            barrier.wait()
            defer(
                connection, event_id="order:4:paid", receiver_id="u_42", campaign="order_paid", params={"order_id": 4}
            )

    with ThreadPoolExecutor(8) as publishers:
        for publisher in [publishers.submit(publish) for _ in range(8)]:
            publisher.result()
    shop.until("the push of order 4", lambda: shop.state("order:4:paid") == "sent")
    times = len([shown for shown in shop.box.shown if shown.body == "Order 4 is paid"])
    if times != 1:
        raise ShopError(f"an event that was published by eight connections was sent {times} times")
    tell("Event order:4:paid, published by eight connections at once, was sent once.")


def restock(shop: Shop, tell: Tell) -> float:
    """Notify all receivers who asked for an item, at a set time, by one statement. Returns the delay in seconds."""
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
    tell("25 receivers asked for item 7: one INSERT … SELECT, to be sent in 1.5 s.")
    sent = "select count(*) from notify_worker.notifications where event_id like 'restock:7:%%' and state = 'sent'"
    shop.until("the first restock push", lambda: bool(shop.shown_to("app:r_0")))
    late = monotonic() - due
    shop.until("25 restock pushes", lambda: shop.number(sent) == len(receivers))
    if late < 0:
        raise ShopError(f"a scheduled notification was sent {-late:.2f} s too early")
    tell(f"All 25 sent, the first {late:.2f} s after its time.")
    return late


def notify_three_devices(shop: Shop, tell: Tell) -> None:
    """Notify a receiver with three devices, one of which FCM no longer knows: that one is retired."""
    for name, platform in (("app:u_7-phone", "android"), ("app:u_7-tablet", "ios"), ("dead:u_7-old", "web")):
        register(shop, "u_7", name, platform)
    place_order(shop.connection, 5, "u_7")
    shop.until("the push of order 5", lambda: shop.state("order:5:paid") == "sent")
    retired = shop.number(
        "select count(*) from notify_worker.devices where receiver_id = 'u_7' and retired_at is not null"
    )
    shown = len(shop.shown_to("app:u_7-phone")) + len(shop.shown_to("app:u_7-tablet"))
    if (shown, retired) != (2, 1):
        raise ShopError(f"{shown} devices show the push and {retired} are retired, not 2 and 1")
    tell("u_7 has three devices: two show the push once each; FCM called the third unregistered, and it is retired.")


def retry_quickly(shop: Shop, tell: Tell) -> float:
    """Let FCM answer 503 once: a quick retry within the attempt succeeds. Returns the seconds that it took."""
    register(shop, "u_8", "once503:u_8-phone", "android")
    place_order(shop.connection, 6, "u_8")
    seconds = shop.until("the push of order 6", lambda: shop.state("order:6:paid") == "sent")
    tell(f"FCM answered order 6 with 503 first: a quick retry sent it within the same attempt, in {seconds:.1f} s.")
    return seconds


def kill_worker(shop: Shop, tell: Tell) -> float:
    """Kill a worker during a request: another sends its notification. Returns the seconds from the kill to the phone."""
    register(shop, "u_9", "oncehang:u_9-phone", "android")
    place_order(shop.connection, 7, "u_9")
    shop.until("the request of order 7 hangs at FCM", lambda: shop.box.in_flight == 1)
    worker = shop.oldest_worker()
    tell("The request of order 7 hangs at FCM. A second worker starts; the first is killed with -9.")
    shop.start_worker()
    worker.kill()
    seconds = shop.until("the push of order 7", lambda: shop.state("order:7:paid") == "sent")
    tell(f"{seconds:.1f} s later the second worker had found the first dead and sent order 7. `explain` says:")
    for at, what in shop.connection.execute("select at, what from notify_worker.explain('order:7:paid')"):
        tell(f"          {at:%H:%M:%S.%f}  {what}")
    return seconds


def check_ledger(shop: Shop, tell: Tell) -> None:
    """Check that the ledger balances."""
    for what, expected, found, balanced in shop.connection.execute("select * from notify_worker.ledger"):
        if not balanced:
            raise ShopError(f"the ledger: {what}: expected {expected}, found {found}")
    tell("The ledger balances, line by line.")


STEPS: tuple[Callable[[Shop, Tell], object], ...] = (
    set_up,
    commit_order,
    roll_back_order,
    publish_event_eight_times,
    restock,
    notify_three_devices,
    retry_quickly,
    kill_worker,
    check_ledger,
)
