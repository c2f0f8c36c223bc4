"""The hot statements before any ANALYZE: the first minute of an installation, or after a crash."""

from typing import LiteralString
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.support.store_calls import CLAIM, Connection, Row, Worker, outcome

RECEIVERS, AT_ONCE = 2000, 100

PAGES_EACH = 250
"""Pages that one of a batch may touch: far above what it does touch (about 40 and 110), and far below all that is there."""


@pytest.fixture
def connection(connection: Connection) -> Connection:
    """Two thousand receivers with a device and a notification each, and tables without any statistics."""
    for table in ("notifications", "devices", "stored_deliveries"):
        connection.execute(f"alter table notify_worker.{table} set (autovacuum_enabled = off)")
    connection.execute(
        """
        insert into notify_worker.devices (receiver_id, kind, address, platform, seen_at)
        select 'u_' || number, 'token', 'fcm:' || number, 'android', now() - interval '2 days'
        from generate_series(1, %s) as number
        """,
        [RECEIVERS],
    )
    connection.execute(
        """
        insert into notify_worker.notifications (receiver_id, title)
        select 'u_' || number, 'Hello' from generate_series(1, %s) as number
        """,
        [RECEIVERS],
    )
    return connection


def pages(connection: Connection, statement: LiteralString, *values: object) -> int:
    """Run a statement, and say how many pages it touched."""
    (plan,) = connection.value("explain (analyze, buffers, format json) " + statement, *values)
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def leased(connection: Connection) -> list[Row]:
    """The leased deliveries, as their claim returned them."""
    return connection.rows(
        """
        select delivery.id as delivery_id, notification.id as notification_id, notification.lease::text
        from notify_worker.notifications as notification
        join notify_worker.stored_deliveries as delivery
            on delivery.notification_id = notification.id
        where notification.lease is not null
        """
    )


def test_a_claim_does_not_read_the_pending_deliveries_of_others(connection: Connection, worker: Worker) -> None:
    def claim_of_a_backlog(size: int) -> int:
        connection.execute(
            """
            with added as (
                insert into notify_worker.notifications (kind, address, title, fanned_out_at)
                select 'token', 'phone-' || number, 'Hello', now()
                from generate_series(1, %s) as number
                returning id, due_at
            )
            insert into notify_worker.stored_deliveries (notification_id, kind, address, due_at)
            select id, 'token', 'phone', due_at
            from added
            """,
            [size],
        )
        return pages(connection, CLAIM, worker.id, uuid4(), 200)

    few = claim_of_a_backlog(1_000)

    assert claim_of_a_backlog(12_000) < 3 * few


@pytest.mark.parametrize("verdict", ["sent", "unregistered", "unknown"])
def test_a_claim_and_a_record_read_only_their_own_rows(connection: Connection, verdict: str, worker: Worker) -> None:
    for _ in range(3):  # some history, and plans that have settled
        connection.execute(CLAIM, [worker.id, uuid4(), AT_ONCE])
        outcomes = [
            outcome(each, verdict=verdict, retry_in=60, provider_message_id="name") for each in leased(connection)
        ]
        connection.execute("select notify_worker.record(%s, %s)", [worker.id, Jsonb(outcomes)])

    claiming = pages(connection, CLAIM, worker.id, uuid4(), AT_ONCE)
    outcomes = [outcome(each, verdict=verdict, retry_in=60, provider_message_id="name") for each in leased(connection)]
    recording = pages(connection, "select notify_worker.record(%s, %s)", worker.id, Jsonb(outcomes))

    assert len(outcomes) == AT_ONCE
    assert claiming <= PAGES_EACH * AT_ONCE
    assert recording <= PAGES_EACH * AT_ONCE
