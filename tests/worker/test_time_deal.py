"""The story that `notify-worker demo` tells, scene by scene: what each claims stands in the database and at the phones."""

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from notify_worker import demo, sandbox
from tests.support.server import created


@pytest.fixture(scope="module")
def shop(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[demo.Shop]:
    """The demo's shop after its first scene: a worker is up."""
    folder = tmp_path_factory.mktemp("demo")
    with created(server, template) as name, sandbox.start(folder / "sandbox.json") as box:
        shop = demo.Shop(make_conninfo(server, dbname=name), box, print, folder / "worker.log")
        try:
            demo.opening(shop)
            yield shop
        finally:
            shop.close()
            print(shop.last_lines())


def bodies(shop: demo.Shop, body: str) -> int:
    """How often phones were shown these words."""
    return sum(shown.body == body for shown in shop.box.shown)


def test_the_worker_of_the_opening_is_there(shop: demo.Shop) -> None:
    assert shop.number("select count(*) from notify_worker.workers") == 1
    assert shop.number("select count(*) from notify_worker.campaigns where name in ('order_paid', 'restock')") == 2
    assert shop.number("select count(*) from notify_worker.devices where receiver_id = 'u_42'") == 1


def test_an_order_that_commits_is_on_the_phone_at_once(shop: demo.Shop) -> None:
    seconds = demo.order_commits(shop)

    assert seconds < 1
    assert bodies(shop, "Order 1 is paid") == 1
    assert shop.state("order:1:paid") == "sent"
    assert shop.number("select count(*) from orders where id = 1") == 1


def test_an_order_that_rolls_back_was_never_there(shop: demo.Shop) -> None:
    demo.order_rolls_back(shop)

    assert bodies(shop, "Order 2 is paid") == 0
    assert bodies(shop, "Order 3 is paid") == 1
    assert shop.number("select count(*) from notify_worker.notifications where event_id = 'order:2:paid'") == 0
    assert shop.number("select count(*) from orders where id = 2") == 0


def test_an_event_published_by_eight_is_sent_once(shop: demo.Shop) -> None:
    demo.event_published_by_eight(shop)

    assert bodies(shop, "Order 4 is paid") == 1
    assert shop.number("select count(*) from notify_worker.notifications where event_id = 'order:4:paid'") == 1


def test_everyone_who_asked_is_told_at_the_set_time_and_not_before(shop: demo.Shop) -> None:
    late = demo.restock(shop)

    assert 0 <= late < 1
    told = [shown.address for shown in shop.box.shown if shown.body == "The tent is here again"]
    assert sorted(told) == sorted(f"app:r_{number}" for number in range(25))
    too_early = """
        select count(*)
        from notify_worker.notifications as notification
        join notify_worker.attempts as attempt on attempt.notification_id = notification.id
        where attempt.started_at < notification.send_at
    """
    assert shop.number(too_early) == 0


def test_three_devices_are_told_but_for_the_dead_one_which_is_retired(shop: demo.Shop) -> None:
    demo.three_devices(shop)

    told = sorted(shown.address for shown in shop.box.shown if shown.body == "Order 5 is paid")
    assert told == ["app:u_7-phone", "app:u_7-tablet"]
    retired = "select count(*) from notify_worker.devices where address = 'dead:u_7-old' and retired_at is not null"
    assert shop.number(retired) == 1
    assert shop.box.requests_for("dead:u_7-old") == 1


def test_a_blip_is_mended_within_the_attempt(shop: demo.Shop) -> None:
    seconds = demo.blip_is_mended(shop)

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


def test_what_a_killed_worker_held_is_sent_by_another(shop: demo.Shop) -> None:
    victim = shop.victim()

    seconds = demo.worker_is_killed(shop)

    assert seconds < 6
    assert victim.poll() is not None
    assert shop.victim() is not victim
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
    assert f"-{victim.pid}-" in dead


def test_at_the_end_the_ledger_balances_and_every_phone_was_told_once(shop: demo.Shop) -> None:
    demo.ledger_balances(shop)

    assert shop.box.doubles == 0
    assert shop.number("select count(*) from notify_worker.notifications where state <> 'sent'") == 0
    assert shop.number("select count(*) from notify_worker.notifications where settled_at is null") == 0
