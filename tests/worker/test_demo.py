"""The steps of `notify-worker demo`: each claim is true in the database and at the phones."""

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from notify_worker import sandbox
from notify_worker.dev import demo
from notify_worker.dev.shop import Shop
from tests.support.server import created


@pytest.fixture(scope="module")
def shop(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The demo's shop after its first step: a worker is up."""
    folder = tmp_path_factory.mktemp("demo")
    with created(server, template) as name, sandbox.start(folder / "sandbox.json") as box:
        shop = Shop(make_conninfo(server, dbname=name), box, folder / "worker.log")
        try:
            demo.set_up(shop, print)
            yield shop
        finally:
            shop.close()
            print(shop.last_lines())


def bodies(shop: Shop, body: str) -> int:
    """How often phones were shown this body."""
    return sum(shown.body == body for shown in shop.box.shown)


def test_set_up_starts_one_worker_and_creates_campaigns_and_a_device(shop: Shop) -> None:
    assert shop.number("select count(*) from notify_worker.workers") == 1
    assert shop.number("select count(*) from notify_worker.campaigns where name in ('order_paid', 'restock')") == 2
    assert shop.number("select count(*) from notify_worker.devices where receiver_id = 'u_42'") == 1


def test_an_order_that_commits_is_on_the_phone_at_once(shop: Shop) -> None:
    seconds = demo.commit_order(shop, print)

    assert seconds < 1
    assert bodies(shop, "Order 1 is paid") == 1
    assert shop.state("order:1:paid") == "sent"
    assert shop.number("select count(*) from orders where id = 1") == 1


def test_an_order_that_rolls_back_sends_nothing_and_leaves_no_row(shop: Shop) -> None:
    demo.roll_back_order(shop, print)

    assert bodies(shop, "Order 2 is paid") == 0
    assert bodies(shop, "Order 3 is paid") == 1
    assert shop.number("select count(*) from notify_worker.notifications where event_id = 'order:2:paid'") == 0
    assert shop.number("select count(*) from orders where id = 2") == 0


def test_an_event_published_by_eight_is_sent_once(shop: Shop) -> None:
    demo.publish_event_eight_times(shop, print)

    assert bodies(shop, "Order 4 is paid") == 1
    assert shop.number("select count(*) from notify_worker.notifications where event_id = 'order:4:paid'") == 1


def test_every_subscriber_gets_the_message_at_the_set_time(shop: Shop) -> None:
    late = demo.restock(shop, print)

    assert 0 <= late < 1
    reached = [shown.address for shown in shop.box.shown if shown.body == "The tent is here again"]
    assert sorted(reached) == sorted(f"app:r_{number}" for number in range(25))
    too_early = """
        select count(*)
        from notify_worker.notifications as notification
        join notify_worker.attempts as attempt on attempt.notification_id = notification.id
        where attempt.started_at < notification.send_at
    """
    assert shop.number(too_early) == 0


def test_live_devices_get_the_message_and_the_dead_one_is_retired(shop: Shop) -> None:
    demo.notify_three_devices(shop, print)

    reached = sorted(shown.address for shown in shop.box.shown if shown.body == "Order 5 is paid")
    assert reached == ["app:u_7-phone", "app:u_7-tablet"]
    retired = "select count(*) from notify_worker.devices where address = 'dead:u_7-old' and retired_at is not null"
    assert shop.number(retired) == 1
    assert shop.box.requests_for("dead:u_7-old") == 1


def test_a_503_is_retried_quickly_within_the_attempt(shop: Shop) -> None:
    seconds = demo.retry_quickly(shop, print)

    assert seconds < 4
    assert bodies(shop, "Order 6 is paid") == 1
    assert shop.box.requests_for("once503:u_8-phone") == 2
    attempts = """
        select sum(requests)
        from notify_worker.attempts
        join notify_worker.notifications on notifications.id = notification_id
        where event_id = 'order:6:paid'
    """
    assert shop.number(attempts) == 2


def test_another_worker_sends_the_notifications_of_a_killed_one(shop: Shop) -> None:
    killed = shop.oldest_worker()

    seconds = demo.kill_worker(shop, print)

    assert seconds < 6
    assert killed.poll() is not None
    assert shop.oldest_worker() is not killed
    assert bodies(shop, "Order 7 is paid") == 1
    of_order_7 = """
        select verdict, worker
        from notify_worker.attempts
        join notify_worker.notifications on notifications.id = notification_id
        where event_id = 'order:7:paid'
        order by number
    """
    (first, dead), (second, alive) = shop.connection.execute(of_order_7).fetchall()
    assert (first, second) == ("unknown", "sent")
    assert dead != alive
    assert f"-{killed.pid}-" in dead


def test_the_ledger_balances_and_every_phone_got_one_message(shop: Shop) -> None:
    demo.place_order(shop.connection, 8, "u_42")
    shop.until("order 8 is recorded as sent", lambda: shop.state("order:8:paid") == "sent")

    demo.check_ledger(shop, print)

    assert shop.box.doubles == 0
    assert shop.number("select count(*) from notify_worker.notifications where state <> 'sent'") == 0
    assert shop.number("select count(*) from notify_worker.notifications where settled_at is null") == 0
