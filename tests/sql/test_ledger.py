"""The ledger balances after any history, and does not when a row is wrong."""

from typing import LiteralString

import pytest

from tests.support.store_calls import FAILED, LATER, UNKNOWN, Connection, connected, outcome


def live_through_everything(database: str, connection: Connection) -> None:
    """Two devices sent to, one failed, one to be retried, one held, a crash, a late answer, what never came to a delivery,
    what is leased and what is scheduled.
    """
    worker = connection.register_worker()
    connection.register_device("u_42", "fcm:phone")
    connection.register_device("u_42", "fcm:tablet")
    connection.insert(receiver_id="u_42")
    connection.insert(address="fails")
    connection.insert(address="is retried")
    connection.insert(address="is held", on_unknown="hold")
    connection.insert(receiver_id="nobody")
    connection.insert(campaign="no_such")
    connection.send_all(worker, **{"fails": FAILED, "is retried": LATER, "is held": UNKNOWN})

    connection.insert(address="is crashed")
    with connected(database) as session:
        dead = session.register_worker()
        held = session.claim(dead)
    connection.rescue_worker(dead)
    connection.record(dead, *[outcome(each, verdict="sent") for each in held])

    connection.insert(address="is leased")
    assert len(connection.claim(worker)) == 1
    connection.execute(
        """
        insert into notify_worker.notifications (kind, address, title, send_at)
        values ('topic', 'tomorrow', 'Hello', now() + interval '1 day')
        """
    )


def test_the_ledger_balances_after_every_kind_of_outcome(database: str, connection: Connection) -> None:
    live_through_everything(database, connection)

    lines = connection.rows("select * from notify_worker.ledger")
    assert len(lines) == 7
    assert [line["what"] for line in lines if not line["balanced"]] == []


def test_an_empty_ledger_balances(connection: Connection) -> None:
    assert connection.unbalanced() == []


@pytest.mark.parametrize(
    ("changed_by_hand", "lines"),
    [
        (
            "update stored_deliveries set settled_at = null where state = 'failed'",
            ["deliveries of settled notifications are settled"],
        ),
        (
            "delete from stored_attempts where verdict = 'sent' and late",
            ["each sent delivery has one sent attempt that settled it"],
        ),
        (
            "insert into stored_attempts select * from stored_attempts where verdict = 'sent' and not late limit 1",
            [
                "each sent delivery has one sent attempt that settled it",
                "attempts of deliveries are rows of the history that count",
            ],
        ),
        (
            "update stored_deliveries set state = 'failed' where state = 'sent'",
            ["each sent attempt settled its delivery"],
        ),
        (
            "update stored_deliveries set attempts = attempts + 1 where address = 'is retried'",
            ["attempts of deliveries are rows of the history that count"],
        ),
        (
            "delete from stored_attempts where verdict = 'failed'",
            ["attempts of deliveries are rows of the history that count"],
        ),
        (
            """
            update notifications
            set due_at = case when address = 'is retried' then now() - interval '3 minutes' else due_at end,
                leased_at = leased_at - interval '1 minute'
            """,
            ["nothing is due for longer than a lease and 5 s while nobody claims"],
        ),
        ("update stored_workers set ended_at = now()", ["no lease is of a worker that is gone"]),
        (
            "update notifications set settled_reason = null where campaign = 'no_such'",
            ["each settled notification has deliveries or a reason"],
        ),
    ],
)
def test_the_ledger_reports_a_row_changed_by_hand(
    database: str, connection: Connection, changed_by_hand: LiteralString, lines: list[str]
) -> None:
    live_through_everything(database, connection)
    connection.execute("set search_path = notify_worker")

    connection.execute(changed_by_hand)

    assert connection.unbalanced() == lines
