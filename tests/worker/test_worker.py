"""The running worker: what a shop sees of it, over a real PostgreSQL and a local FCM."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import psutil
import pytest

from notify_worker import sandbox
from tests.support.shop import Shop, a_shop, both_kinds
from tests.support.waiting import until


@pytest.fixture(scope="module")
def shop_of_all(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with a worker, shared by the tests that follow one notification."""
    with a_shop(server, template, tmp_path_factory.mktemp("shop")) as shop:
        shop.start_worker()
        yield shop


@pytest.fixture
def open_shop(shop_of_all: Shop) -> Shop:
    """That shop, after one more accepted message: three attempts in a row without an answer would be an outage."""
    well = shop_of_all.notify("app:well")
    until("it is sent", lambda: shop_of_all.state(well) == "sent", within=10)
    return shop_of_all


# From the commit to the phone


def test_each_of_five_commits_a_second_apart_wakes_the_worker_at_once(shop: Shop) -> None:
    shop.start_worker()

    for number in range(1, 6):
        until("the worker sleeps", shop.sleeps, within=5)
        committed_at = shop.notify_at(f"app:phone-{number}")
        until("it is shown", lambda count=number: shop.box.accepted == count, within=5)  # type: ignore[misc]
        assert shop.box.shown[-1].at - committed_at < timedelta(seconds=0.5)
    assert not shop.said("WARNING"), "nothing is wrong, and nothing is logged as wrong"


def test_without_notify_the_next_poll_finds_a_commit(shop: Shop) -> None:
    trigger = shop.value(
        """
        select tgname
        from pg_trigger
        where tgrelid = 'notify_worker.procrastinate_jobs'::regclass and tgname like '%%notify%%inserted%%'
        """
    )
    shop.connection.execute(f'alter table notify_worker.procrastinate_jobs disable trigger "{trigger}"'.encode())
    shop.start_worker()

    for number in range(1, 4):
        until("the worker sleeps", shop.sleeps, within=5)
        committed_at = shop.notify_at(f"app:phone-{number}")
        until("it is shown", lambda count=number: shop.box.accepted == count, within=5)  # type: ignore[misc]
        assert shop.box.shown[-1].at - committed_at < timedelta(seconds=1.5)


def test_a_notification_scheduled_in_three_seconds_is_sent_in_three_to_four(open_shop: Shop) -> None:
    send_at = datetime.now(UTC) + timedelta(seconds=3)
    later = open_shop.notify("app:later", send_at=send_at)

    until("it is sent", lambda: open_shop.state(later) == "sent", within=6)

    (shown,) = (each for each in open_shop.box.shown if each.address == "app:later")
    assert timedelta(0) <= shown.at - send_at < timedelta(seconds=1)


@both_kinds
def test_five_thousand_in_one_statement_are_all_sent_once(shop: Shop, kind: str) -> None:
    shop.start_worker(kind)

    shop.notify_many(5_000)

    until("all are sent", lambda: shop.all_sent(5_000), within=40)
    assert (shop.box.received, shop.box.doubles) == (5_000, 0)
    assert shop.unbalanced() == []


# While FCM takes its time


def test_while_fcm_hangs_no_transaction_stays_open_and_two_connections_suffice(shop: Shop) -> None:
    shop.start_worker(
        NOTIFY_WORKER_CONCURRENCY=200, NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS=8, NOTIFY_WORKER_LEASE_SECONDS=60
    )
    shop.notify_many(200, fault="hang5")
    until("200 requests are in flight", lambda: shop.box.in_flight == 200, within=10)

    connections: set[int] = set()
    names: set[tuple[str, str]] = set()
    longest: timedelta = timedelta(0)
    began = monotonic()
    while monotonic() - began < 2:
        for backend in shop.backends():
            names.add((backend["part"], backend["application_name"]))
            if backend["part"] == "store":
                connections.add(backend["pid"])
            if backend["part"] != "listener":  # after a NOTIFY its LISTEN seems to begin anew
                longest = max(longest, backend["in_transaction_for"])

    assert shop.box.in_flight == 200, "FCM did not hang all the while"
    assert longest < timedelta(seconds=0.5)
    assert 1 <= len(connections) <= 2
    assert names >= {
        ("store", "notify-worker"),
        ("heartbeat", "notify-worker heartbeat"),
        ("listener", "notify-worker listen"),
        ("procrastinate", "notify-worker procrastinate"),
    }
    assert {name for _, name in names} == {
        "notify-worker",
        "notify-worker heartbeat",
        "notify-worker listen",
        "notify-worker procrastinate",
    }


def test_memory_does_not_grow_with_the_backlog(shop: Shop) -> None:
    shop.notify_many(50_000)
    worker = psutil.Process(shop.start_worker().pid)

    until("2,000 are sent", lambda: shop.box.accepted >= 2_000, within=60)
    early = worker.memory_info().rss
    until("10,000 are sent", lambda: shop.box.accepted >= 10_000, within=120)
    late = worker.memory_info().rss

    assert late - early < 10 << 20


# What can't be sent


def test_a_missing_campaign_or_param_fails_its_notification_alone(open_shop: Shop) -> None:
    open_shop.connection.execute(
        "insert into notify_worker.campaigns (name, title, body) values ('order_paid', 'Paid', 'Order {order_id} is paid')"
    )
    with open_shop.connection.transaction():
        before = open_shop.notify("app:before")
        missing = open_shop.notify("app:missing", title=None, campaign="order_payd")
        bare = open_shop.notify("app:bare", title=None, campaign="order_paid", params={"order": 42})
        after = open_shop.notify("app:after")

    until(
        "all end", lambda: all(open_shop.state(each) != "pending" for each in (before, missing, bare, after)), within=5
    )

    assert [open_shop.state(each) for each in (before, missing, bare, after)] == ["sent", "failed", "failed", "sent"]
    reason = open_shop.value("select settled_reason from notify_worker.notifications where id = %s", missing)
    assert '"order_payd"' in reason
    assert '"order_paid"' in reason
    assert '"order_paid"' in open_shop.delivery(bare)["last_error"]
    assert '"order_id"' in open_shop.delivery(bare)["last_error"]
    assert open_shop.box.requests_for("app:bare") == 0


# What FCM says


@pytest.mark.parametrize("fault", ["drop", "hang"], ids=["the connection is closed", "the request times out"])
def test_a_request_without_an_answer_is_held_under_hold(open_shop: Shop, fault: str) -> None:
    address = f"{fault}:hold"
    held = open_shop.notify(address, on_unknown="hold")

    until("it is held", lambda: open_shop.state(held) == "held", within=5)

    assert open_shop.box.requests_for(address) == 1
    assert [attempt["verdict"] for attempt in open_shop.attempts(held)] == ["unknown"]
    assert open_shop.delivery(held)["state"] == "held"


def test_a_503_gets_three_requests_and_is_then_retried_later(open_shop: Shop) -> None:
    retried = open_shop.notify("503:resend")

    until("its attempt has ended", lambda: open_shop.attempts(retried) != [], within=8)

    (attempt,) = open_shop.attempts(retried)
    assert (attempt["verdict"], attempt["http_status"], attempt["requests"]) == ("unknown", 503, 3)
    assert open_shop.box.requests_for("503:resend") == 3
    delivery = open_shop.delivery(retried)
    assert (delivery["state"], delivery["attempts"]) == ("pending", 1)
    assert 9 < delivery["due_in"] <= 12


def test_a_503_with_hold_gets_one_request(open_shop: Shop) -> None:
    held = open_shop.notify("503:hold", on_unknown="hold")

    until("it is held", lambda: open_shop.state(held) == "held", within=5)

    assert [attempt["requests"] for attempt in open_shop.attempts(held)] == [1]
    assert open_shop.box.requests_for("503:hold") == 1


def test_a_single_503_is_retried_within_the_attempt(open_shop: Shop) -> None:
    retried = open_shop.notify("once503:phone")

    until("it is sent", lambda: open_shop.state(retried) == "sent", within=5)

    (attempt,) = open_shop.attempts(retried)
    assert (attempt["verdict"], attempt["requests"]) == ("sent", 2)


def test_an_unregistered_device_is_retired_and_leaves_the_receiver_unreachable(open_shop: Shop) -> None:
    open_shop.connection.execute("select notify_worker.register_device('u_7', 'token', 'dead:phone', 'android')")

    unreachable = open_shop.notify("", kind=None, address=None, receiver_id="u_7")

    until("it ends", lambda: open_shop.state(unreachable) == "unreachable", within=5)
    (device,) = open_shop.rows("select * from notify_worker.devices where receiver_id = 'u_7'")
    assert device["retired_at"] is not None
    assert device["retired_reason"]
    assert [attempt["verdict"] for attempt in open_shop.attempts(unreachable)] == ["unregistered"]


def test_a_device_over_its_quota_is_due_again_after_a_minute(open_shop: Shop) -> None:
    waiting = open_shop.notify("429:phone")

    until("its attempt has ended", lambda: open_shop.attempts(waiting) != [], within=5)

    assert [attempt["verdict"] for attempt in open_shop.attempts(waiting)] == ["retry"]
    delivery = open_shop.delivery(waiting)
    assert (delivery["state"], delivery["attempts"]) == ("pending", 1)
    assert 58 < delivery["due_in"] <= 72


def test_after_all_these_answers_the_ledger_balances(open_shop: Shop) -> None:
    until("nothing is leased", lambda: open_shop.leased() == 0, within=10)

    assert open_shop.unbalanced() == []


def test_a_refused_connection_to_fcm_is_retried_even_under_hold(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    shop.start_worker(NOTIFY_WORKER_FCM_URL=f"http://127.0.0.1:{port}")

    refused = shop.notify("app:phone", on_unknown="hold")
    until("its attempt has ended", lambda: shop.attempts(refused) != [], within=10)

    (attempt,) = shop.attempts(refused)
    assert (attempt["verdict"], attempt["error_code"]) == ("retry", "ConnectError")
    delivery = shop.delivery(refused)
    assert (delivery["state"], delivery["attempts"]) == ("pending", 1)
    assert shop.unbalanced() == []


def test_a_wrong_key_costs_no_attempt(shop: Shop, tmp_path: Path) -> None:
    with sandbox.start(tmp_path / "another.json") as another:
        shop.start_worker(GOOGLE_APPLICATION_CREDENTIALS=another.credentials)

        paused = shop.notify("app:phone")
        until("its attempt has ended", lambda: shop.attempts(paused) != [], within=10)

    assert [attempt["verdict"] for attempt in shop.attempts(paused)] == ["paused"]
    delivery = shop.delivery(paused)
    assert (delivery["state"], delivery["attempts"]) == ("pending", 0)
    assert shop.box.by_status == {401: 2}  # with another token too


# A stop


@both_kinds
def test_a_stop_finishes_requests_in_flight_and_releases_the_rest(shop: Shop, kind: str) -> None:
    worker = shop.start_worker(
        kind, NOTIFY_WORKER_CONCURRENCY=20, NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS=5, NOTIFY_WORKER_LEASE_SECONDS=60
    )
    shop.notify_many(200, fault="hang2")
    until("all slots are taken", lambda: shop.box.in_flight == 20, within=10)

    code = worker.stop()

    assert code == 0
    assert shop.box.received == 20
    assert shop.states() == {"sent": 20, "pending": 180}
    assert (shop.leased(), shop.unbalanced()) == (0, [])
    released = shop.value(
        """
        select count(*)
        from notify_worker.notifications as notification
        where state = 'pending'
            and due_at <= clock_timestamp()
            and not exists (select from notify_worker.attempts where notification_id = notification.id)
        """
    )
    assert released == 180


@both_kinds
def test_a_stop_does_not_wait_for_a_quick_retry(shop: Shop, kind: str) -> None:
    worker = shop.start_worker(kind)
    retried = shop.notify("503:phone")
    until("FCM has answered once", lambda: shop.box.by_status.get(503) == 1, within=10)
    began = monotonic()

    code = worker.stop()

    assert code == 0
    assert shop.box.received == 1, "a request was made after the stop"
    assert monotonic() - began < 3
    assert [attempt["verdict"] for attempt in shop.attempts(retried)] == ["unknown"]
    assert (shop.leased(), shop.unbalanced()) == (0, [])


@both_kinds
def test_a_stop_in_mid_claim_leaves_nothing_leased(shop: Shop, kind: str) -> None:
    shop.connection.execute(
        """
        create function public.take_your_time() returns trigger language plpgsql as $$
        begin
            perform pg_sleep(0.5);
            return null;
        exception when query_canceled then  -- whoever cancels comes too late: it commits
            return null;
        end
        $$;
        create trigger take_your_time
            after update on notify_worker.notifications
            for each statement execute function public.take_your_time()
        """
    )
    worker = shop.start_worker(kind)
    with shop.connection.transaction():
        shop.connection.execute("set local notify_worker.wakeup = 'off'")  # so that a poll finds them
        shop.notify_many(10)
    until("a claim is under way", lambda: any(each["wait_event"] == "PgSleep" for each in shop.backends()), within=5)

    code = worker.stop()

    assert code == 0
    assert (shop.leased(), shop.unbalanced()) == (0, [])
    assert shop.box.doubles == 0


# The database stumbles


@both_kinds
def test_a_worker_that_loses_its_store_and_heartbeat_sessions_goes_on(shop: Shop, kind: str) -> None:
    worker = shop.start_worker(kind)
    first = shop.notify("app:first")
    until("the first is sent", lambda: shop.state(first) == "sent", within=5)
    lost = {backend["pid"] for backend in shop.backends() if backend["part"] in ("store", "heartbeat")}

    shop.connection.execute("select pg_terminate_backend(pid) from unnest(%s::integer[]) as pid", [list(lost)])
    second = shop.notify("app:second")

    until("the second is sent", lambda: shop.state(second) == "sent", within=5)
    assert lost
    assert worker.poll() is None
    assert shop.box.doubles == 0


# Several devices


def test_each_live_device_gets_one_message_whatever_the_others_answer(shop: Shop) -> None:
    shop.connection.execute("update notify_worker.projects set first_retry_after = '100 milliseconds'")
    for address in ("dead:gone", "twicedrop:shaky", "app:well"):
        shop.value("select notify_worker.register_device('u_42', 'token', %s)", address)
    shop.start_worker()

    scheduled = shop.value(
        "insert into notify_worker.notifications (receiver_id, title) values ('u_42', 'Hello') returning id"
    )

    until("it is settled", lambda: shop.state(scheduled) == "sent", within=15)
    assert sorted(each.address for each in shop.box.shown) == ["app:well", "twicedrop:shaky"]
    assert [shop.box.requests_for(address) for address in ("dead:gone", "twicedrop:shaky", "app:well")] == [1, 3, 1]
    deliveries = shop.rows("select state, attempts from notify_worker.deliveries order by id")
    assert [(row["state"], row["attempts"]) for row in deliveries] == [("failed", 1), ("sent", 3), ("sent", 1)]
    assert shop.unbalanced() == []
    story = " | ".join(
        str(what)
        for (what,) in shop.connection.execute("select what from notify_worker.explain(%s::bigint)", [scheduled])
    )
    assert story.count("came to unknown") == 2
    assert story.count("came to sent") == 2
    assert story.count("came to unregistered") == 1
    assert story.endswith("it ended sent")


# What must not stop it


def test_a_cancelled_drain_job_stops_no_worker(shop: Shop) -> None:
    shop.start_worker()
    shop.notify("hang1.5:slow")
    until("a request hangs", lambda: shop.box.in_flight == 1, within=5)

    with shop.among_procrastinates_tables():
        shop.connection.execute(
            """
            select procrastinate_cancel_job_v1(id, true, false)
            from procrastinate_jobs
            where status = 'doing' and task_name = 'notify_worker.drain'
            """
        )
    after = shop.notify("app:after")

    until("what came after it is sent", lambda: shop.state(after) == "sent", within=5)
    until("and what hung too", lambda: shop.all_sent(2), within=10)


def test_a_project_created_a_moment_ago_uses_its_own_sender(shop: Shop) -> None:
    shop.start_worker()
    shop.notify("app:first")
    until("the worker knows the projects of before", lambda: shop.all_sent(1), within=5)

    with shop.connection.transaction():
        shop.connection.execute("insert into notify_worker.projects (name, sender) values ('new', 'console')")
        second = shop.notify("app:second", project="new")

    until("it is sent", lambda: shop.state(second) == "sent", within=5)
    assert [each.address for each in shop.box.shown] == ["app:first"]


def test_outcomes_are_kept_while_the_database_refuses_to_write_them(shop: Shop) -> None:
    shop.connection.execute(
        """
        create function refuse() returns trigger language plpgsql as
            'begin raise exception using errcode = ''read_only_sql_transaction''; end';
        create trigger refuse before insert on notify_worker.stored_attempts for each row execute function refuse();
        """
    )
    shop.start_worker()
    shop.notify_many(50)
    until("FCM has all", lambda: shop.box.accepted == 50, within=10)
    until("a record was refused", lambda: shop.said("event=record_failed"), within=5)

    shop.connection.execute("drop trigger refuse on notify_worker.stored_attempts")

    until("all is recorded", lambda: shop.all_sent(50), within=5)
    assert shop.box.doubles == 0
    assert shop.unbalanced() == []
