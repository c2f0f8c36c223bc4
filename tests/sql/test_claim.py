"""What a claim takes and leaves, which notifications it settles as unsendable, and what it costs."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import uuid4

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState

from notify_worker.database.store import read_delivery
from notify_worker.producer import Columns
from tests.support.store_calls import CLAIM, CONTENT, Connection, Row, Worker, at_once, await_lock, connected, outcome

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)

PARTITIONS: LiteralString = """
    select inhrelid::regclass::text from pg_inherits
    where inhparent = 'notify_worker.stored_attempts'::regclass
    order by 1
"""


def addresses(claimed: list[Row]) -> list[str]:
    return [each["address"] for each in claimed]


def test_a_device_registered_after_the_insert_gets_the_message(connection: Connection, worker: Worker) -> None:
    connection.insert(receiver_id="u_42")
    connection.register_device("u_42", "fcm:new")

    assert addresses(connection.claim(worker)) == ["fcm:new"]


def test_each_live_device_of_the_receiver_gets_one_delivery(connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('another')")
    for number in range(3):
        connection.register_device("u_42", f"fcm:live-{number}")
    connection.register_device("u_42", "fcm:retired")
    connection.register_device("u_42", "fcm:stale")
    connection.register_device("u_42", "fcm:elsewhere", project="another")
    connection.register_device("u_43", "fcm:hers")
    connection.execute("update notify_worker.devices set retired_at = now() where address = 'fcm:retired'")
    connection.execute(
        "update notify_worker.devices set seen_at = now() - interval '271 days' where address = 'fcm:stale'"
    )
    reachable = connection.insert(receiver_id="u_42")

    claimed = connection.claim(connection.register_worker())

    assert sorted(addresses(claimed)) == ["fcm:live-0", "fcm:live-1", "fcm:live-2"]
    assert {each["notification_id"] for each in claimed} == {reachable}
    assert len({each["delivery_id"] for each in claimed}) == 3


@pytest.mark.parametrize("kind", ["token", "fid", "topic", "condition"])
def test_an_address_of_any_kind_needs_no_device(connection: Connection, kind: str) -> None:
    connection.insert(kind=kind, address="its address")

    claimed = connection.claim_one(connection.register_worker())

    assert (claimed["kind"], claimed["address"], claimed["platform"]) == (kind, "its address", None)


def test_a_claim_returns_everything_its_message_is_built_from(connection: Connection) -> None:
    connection.execute(
        """
        insert into notify_worker.campaigns (name, title, body, image, data, message)
        values ('order_paid', 'Thank you', 'Order {order_id}', 'https://example.org/a.png', '{"a": "b"}', '{"apns": {}}')
        """
    )
    connection.register_device("u_42", "fcm:phone", platform="ios")
    content = {"title": "Thanks", "data": {"order_id": "42"}, "message": {"android": {}}, "params": {"order_id": 42}}
    number = connection.insert(receiver_id="u_42", campaign="order_paid", priority="high", on_unknown="hold", **content)
    prefix = connection.value("select prefix from notify_worker.installation")

    claimed = connection.claim_one(connection.register_worker())

    assert claimed.items() >= content.items()
    assert (claimed["campaign"], claimed["body"], claimed["image"]) == ("order_paid", None, None)
    assert claimed["campaign_content"] == {
        "title": "Thank you",
        "body": "Order {order_id}",
        "image": "https://example.org/a.png",
        "data": {"a": "b"},
        "message": {"apns": {}},
    }
    assert (claimed["project"], claimed["platform"], claimed["on_unknown"]) == ("default", "ios", "hold")
    assert (claimed["priority"], claimed["attempts"], claimed["last_attempt_number"]) == ("high", 0, 0)
    assert claimed["tag"] == f"{prefix}-{number}"


def test_a_worker_gets_each_column_of_the_caller_that_it_needs(connection: Connection) -> None:
    connection.insert()
    row = ReadRow(connection.claim_one(connection.register_worker()))

    read_delivery(row, uuid4(), worker_id=1, claimed_at=0, start_within=timedelta())

    assert set(Columns.__annotations__) - set(row) == {"event_id", "receiver_id", "send_at", "traceparent"}
    assert set(row) - row.read == {"state", "lease"}  # the tests' own `claim` adds the lease


class ReadRow(dict[str, Any]):
    """A row that knows which of its columns were read."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def test_the_size_includes_each_column_with_content(connection: Connection) -> None:
    body = connection.value("select prosrc from pg_proc where oid = 'notify_worker.content_too_big'::regproc")

    assert set(re.findall(r"notification\.(\w+)", body)) == CONTENT


def test_a_notification_without_a_campaign_has_no_campaign_content(connection: Connection) -> None:
    connection.insert()

    claimed = connection.claim_one(connection.register_worker())

    assert claimed["campaign"] is claimed["campaign_content"] is None


def test_a_campaign_is_read_when_its_notification_is_claimed(connection: Connection) -> None:
    connection.insert(title=None, campaign="sale")
    connection.execute("insert into notify_worker.campaigns (name, title) values ('sale', 'Now')")

    assert connection.claim_one(connection.register_worker())["campaign_content"]["title"] == "Now"


def test_a_receiver_without_a_live_device_is_unreachable(connection: Connection) -> None:
    nobody = connection.insert(receiver_id="u_42")

    claimed = connection.claim(connection.register_worker())

    ended = connection.notification(nobody)
    assert claimed == []
    assert (ended["state"], ended["settled_reason"]) == ("unreachable", "the receiver has no live device")
    assert ended["settled_at"] is not None
    assert ended["lease"] is None


@pytest.mark.parametrize(
    ("columns", "ends", "because"),
    [
        ({"campaign": "order_payed"}, "failed", 'there is no campaign "order_payed"; did you mean "order_paid"?'),
        ({"campaign": "xyz"}, "failed", 'there is no campaign "xyz"'),
        ({"campaign": ""}, "failed", 'there is no campaign ""'),
        ({"campaign": "summer"}, "cancelled", 'the campaign "summer" is retired'),
        ({"project": "defualt"}, "failed", 'there is no project "defualt"; did you mean "default"?'),
        ({"project": "xyz", "campaign": "summer"}, "failed", 'there is no project "xyz"'),
        ({"expires_at": PAST}, "expired", "it expired before it could be sent"),
        ({"expires_at": PAST, "campaign": "order_payed"}, "expired", "it expired before it could be sent"),
        ({"project": "hasty"}, "expired", "it expired before it could be sent"),
        ({"body": "x" * 65_537}, "failed", "its content and params take more than 64 KB"),
        (
            {"body": "b" * 40_000, "title": "t" * 30_000},
            "failed",
            "its content and params take more than 64 KB",
        ),
        ({"campaign": "long", "body": "b" * 30_000}, "failed", "its content and params take more than 64 KB"),
        ({"data": {"a": "a" * 70_000}}, "failed", "its content and params take more than 64 KB"),
        ({"params": {"a": ["b"] * 20_000}}, "failed", "its content and params take more than 64 KB"),
        ({"message": {"a": "ä" * 33_000}}, "failed", "its content and params take more than 64 KB"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_an_unsendable_notification_ends_with_its_reason_and_delays_no_other(
    connection: Connection, columns: dict[str, object], ends: str, because: str
) -> None:
    connection.execute("insert into notify_worker.campaigns (name, title) values ('order_paid', 'Thank you')")
    connection.execute("insert into notify_worker.campaigns (name, body) values ('long', repeat('c', 40000))")
    connection.execute("insert into notify_worker.campaigns (name, retired_at) values ('summer', now())")
    connection.execute("insert into notify_worker.projects (name, expires_after) values ('hasty', '0')")
    before, unsendable, after = connection.insert(), connection.insert(**columns), connection.insert()

    claimed = connection.claim(connection.register_worker())

    ended = connection.notification(unsendable)
    assert (ended["state"], ended["settled_reason"]) == (ends, because)
    assert ended["settled_at"] is not None
    assert connection.deliveries(unsendable) == []
    assert [each["notification_id"] for each in claimed] == [before, after]


def test_content_of_64_kilobytes_is_claimed(connection: Connection) -> None:
    connection.insert(title="t", body="b" * 65_535)

    assert len(connection.claim(connection.register_worker())) == 1


def test_a_notification_settled_by_a_claim_is_a_row_without_content(connection: Connection, worker: Worker) -> None:
    ended = connection.insert(campaign="no_such", title="Hello")
    nowhere = connection.insert(project="no_such")

    reachable = connection.rows(CLAIM, worker.id, uuid4(), 10)
    nothing = connection.rows(CLAIM, worker.id, uuid4(), 10)

    assert [{name: each for name, each in line.items() if each is not None} for line in reachable] == [
        {"notification_id": ended, "project": "default", "probe": False, "state": "failed"},
        {"notification_id": nowhere, "project": "no_such", "probe": False, "state": "failed"},
    ]
    assert nothing == []


def test_a_claimed_notification_is_pending(connection: Connection) -> None:
    connection.insert()

    assert connection.claim_one(connection.register_worker())["state"] == "pending"


def test_a_scheduled_notification_is_not_claimed_early(connection: Connection) -> None:
    scheduled = connection.insert(send_at=FUTURE)

    assert connection.claim(connection.register_worker()) == []
    assert connection.state(scheduled) == "pending"


def test_time_to_live_counts_from_when_it_was_to_be_sent(connection: Connection, worker: Worker) -> None:
    connection.execute("update notify_worker.projects set expires_after = '1 hour'")
    connection.insert()
    long_ago = connection.insert()
    to_be_sent = connection.insert(send_at=datetime.now(UTC) - timedelta(minutes=30))
    connection.execute(
        "update notify_worker.notifications set created_at = now() - interval '2 hours' where id >= %s", [long_ago]
    )

    new, scheduled = connection.claim(worker)

    assert new["expires_in"] == pytest.approx(3600, abs=30)
    assert (scheduled["notification_id"], connection.state(long_ago)) == (to_be_sent, "expired")
    assert scheduled["expires_in"] == pytest.approx(1800, abs=30)


def test_a_notifications_own_expiry_wins_over_its_projects(connection: Connection) -> None:
    connection.insert(expires_at=datetime.now(UTC) + timedelta(days=3))

    assert connection.claim_one(connection.register_worker())["expires_in"] == pytest.approx(3 * 86_400, abs=30)


def test_a_notification_that_never_expires_has_infinite_time_left(connection: Connection) -> None:
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, expires_at)
        values ('token', 'fcm:phone', 'Hello', 'infinity')
        """
    )

    assert connection.claim_one(connection.register_worker())["expires_in"] == float("inf")


def test_the_high_lane_goes_before_older_normal_ones(connection: Connection, worker: Worker) -> None:
    normal = [connection.insert(), connection.insert(priority="normal")]
    high = connection.insert(priority="high")
    connection.execute("select setseed(0)")  # now and then a claim of one leaves it to the others

    (first,) = connection.claim(worker, most=1)
    rest = connection.claim(worker)

    assert first["notification_id"] == high
    assert [each["notification_id"] for each in rest] == normal


def test_a_claim_takes_the_oldest_due_up_to_its_limit(connection: Connection, worker: Worker) -> None:
    ids = [connection.insert() for _ in range(5)]
    connection.insert(priority="high")

    claimed = connection.claim(worker, most=3)

    assert {each["notification_id"] for each in claimed} == {ids[0], ids[1], ids[-1] + 1}


def test_a_lease_lasts_as_long_as_its_worker_said(connection: Connection) -> None:
    worker = connection.register_worker(timedelta(seconds=77))
    number = connection.insert()

    claimed = connection.claim_one(worker)

    leased = connection.notification(number)
    assert (str(leased["lease"]), leased["leased_by"]) == (claimed["lease"], worker.id)
    assert leased["due_at"] - leased["leased_at"] == timedelta(seconds=77)
    assert leased["fanned_out_at"] == leased["leased_at"]
    assert leased["state"] == "pending"
    assert connection.only_delivery(number)["due_at"] <= leased["leased_at"]


def test_a_leased_notification_is_not_claimed(connection: Connection, worker: Worker) -> None:
    connection.insert()
    connection.claim_one(worker)

    assert connection.claim(worker) == []


def test_two_claims_at_once_never_share_a_notification(database: str, connection: Connection) -> None:
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title)
        select 'topic', 'news', 'Hello' from generate_series(1, 400)
        """
    )

    def claim_all() -> list[int]:
        with connected(database) as session:
            worker = session.register_worker()
            taken: list[int] = []
            while batch := session.claim(worker, most=7):
                taken += [each["notification_id"] for each in batch]
            return taken

    first, second, third = at_once(claim_all, claim_all, claim_all)

    assert len(first + second + third) == len({*first, *second, *third}) == 400


def test_a_claim_skips_a_row_locked_by_a_business_transaction(
    database: str, connection: Connection, worker: Worker
) -> None:
    locked, free = connection.insert(), connection.insert()
    connection.execute("set lock_timeout = '5s'")
    with connected(database) as business:
        business.execute("begin")
        business.execute("select from notify_worker.notifications where id = %s for update", [locked])

        assert connection.claim_one(worker)["notification_id"] == free
    assert connection.claim_one(worker)["notification_id"] == locked


@pytest.mark.parametrize("worker_id", ["unregistered", "never registered"])
def test_only_a_registered_worker_may_claim(connection: Connection, worker_id: str, worker: Worker) -> None:
    connection.unregister_worker(worker)
    number = connection.insert()

    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        connection.execute(CLAIM, [worker.id if worker_id == "unregistered" else 4711, uuid4(), 1])

    assert refused.value.diag.message_hint
    assert connection.notification(number)["lease"] is None


@pytest.mark.parametrize(
    ("between", "because"),
    [
        (
            "update notify_worker.devices set retired_at = now(), retired_reason = 'lost'",
            "the device was retired: lost",
        ),
        ("update notify_worker.devices set retired_at = now()", "the device was retired: no reason given"),
        (
            "select notify_worker.register_device('u_43', 'token', 'fcm:phone')",
            "the device belongs to another receiver now",
        ),
    ],
)
def test_a_device_retired_or_reassigned_between_attempts_gets_nothing(
    connection: Connection, between: LiteralString, because: str, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:phone")
    number = connection.insert(receiver_id="u_42")
    connection.record(worker, outcome(connection.claim_one(worker), verdict="retry", retry_in=0))
    connection.execute(between)

    assert connection.claim(worker) == []
    assert connection.state(number) == "unreachable"
    assert connection.only_delivery(number)["last_error"] == because


def test_a_reassigned_device_does_not_stop_the_retry_of_the_others(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.register_device("u_42", "fcm:tablet")
    number = connection.insert(receiver_id="u_42")
    connection.record(worker, *[outcome(each, verdict="retry", retry_in=0) for each in connection.claim(worker)])
    connection.register_device("u_43", "fcm:phone")

    again = connection.claim_one(worker)
    connection.record(worker, outcome(again, verdict="sent"))

    assert again["address"] == "fcm:tablet"
    assert connection.state(number) == "sent"


def test_the_history_has_partitions_three_months_ahead(connection: Connection) -> None:
    months: LiteralString = """
        select 'notify_worker.stored_attempts_' || to_char(month, 'YYYY_MM')
        from (select date_trunc('month', now() at time zone 'utc') + make_interval(months => ahead) as month
            from generate_series(0, 3) as ahead) as months
    """
    wanted = [next(iter(each.values())) for each in connection.rows(months)]

    assert [next(iter(each.values())) for each in connection.rows(PARTITIONS)] == wanted


def drop_newest_partition(connection: Connection) -> None:
    newest = connection.rows(PARTITIONS)[-1]["inhrelid"]
    connection.execute(f"drop table {newest}")


def test_a_missing_partition_is_created_while_a_record_is_uncommitted(
    database: str, connection: Connection, worker: Worker
) -> None:
    connection.insert()
    claimed = connection.claim_one(worker)
    drop_newest_partition(connection)
    with connected(database) as recording:
        recording.execute("begin")
        recording.record(worker, outcome(claimed, verdict="sent"))

        assert connection.value("select notify_worker.create_partitions()") == 1
    assert connection.value("select notify_worker.create_partitions()") == 0


def test_two_calls_at_once_create_each_partition_once(database: str, connection: Connection) -> None:
    drop_newest_partition(connection)
    with connected(database) as first, connected(database) as second, ThreadPoolExecutor(1) as thread:
        first.execute("begin")
        made = first.value("select notify_worker.create_partitions()")

        waiting = thread.submit(second.value, "select notify_worker.create_partitions()")
        await_lock(connection, second.info.backend_pid)
        first.execute("commit")

        assert [made, waiting.result(10)] == [1, 0]


def buffers(connection: Connection, worker: Worker, most: int = 100) -> int:
    """How many pages a claim touches, in a transaction that is rolled back, in a session that has settled on its plans."""
    explain: LiteralString = """
        explain (analyze, buffers, format json)
        select * from notify_worker.claim(%s, gen_random_uuid(), %s, '{"default": 100000}')
    """
    for _ in range(6):  # five times a statement is planned for its values, then often for any
        with connection.transaction(force_rollback=True):
            (plan,) = connection.value(explain, worker.id, most)
    touched = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    return int(touched)


def fill(connection: Connection, count: int, state: str = "pending", ahead: str = "0") -> None:
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, send_at, state)
        select 'topic', 'news', 'Hello', now() + %s::interval, %s from generate_series(1, %s)
        """,
        [ahead, state, count],
    )


def test_scheduled_and_settled_rows_do_not_slow_a_claim(connection: Connection, worker: Worker) -> None:
    fill(connection, 200)

    def beside(scheduled: int, settled: int) -> int:
        fill(connection, scheduled, ahead="1 day")
        fill(connection, settled, "sent")
        connection.execute(
            """
            insert into notify_worker.stored_deliveries (notification_id, kind, address, state, due_at, settled_at)
            select id, kind, address, state, due_at, now() from notify_worker.notifications where state = 'sent'
            on conflict do nothing
            """
        )
        connection.execute("vacuum analyze notify_worker.notifications, notify_worker.stored_deliveries")
        return buffers(connection, worker)

    few = beside(10_000, 2_000)  # the indexes have their depth
    many = beside(100_000, 20_000)
    assert many <= 1.2 * few, (few, many)


def test_a_large_claim_costs_at_most_twice_as_much_per_row_as_a_small_one(
    connection: Connection, worker: Worker
) -> None:
    fill(connection, 10_000)
    connection.execute("vacuum analyze notify_worker.notifications")

    small, large = buffers(connection, worker, most=100), buffers(connection, worker, most=1_000)

    assert large <= 2 * 10 * small
