"""Deliveries that always fail, in a project that waits for a probe: a new one must not wait for all of them."""

from tests.support.store_calls import Connection, Worker, outcome

POISONED = 20
SOON_ENOUGH = 3
"""Probes; they end up five minutes apart."""


def test_a_new_delivery_is_among_the_first_three_probes(connection: Connection, worker: Worker) -> None:
    for _ in range(POISONED):
        connection.insert()
    connection.value("select notify_worker.open_incident('default', 'project', 'an outage')")
    new = connection.insert()

    probed = [probe(connection, worker, well=new) for _ in range(SOON_ENOUGH)]

    assert new in probed


def probe(connection: Connection, worker: Worker, *, well: int) -> int:
    """Make one probe, which fails for all notifications but `well`; return its notification."""
    connection.execute("update notify_worker.stored_incidents set next_probe_at = clock_timestamp()")
    claimed = connection.claim_one(worker)
    verdict = "sent" if claimed["notification_id"] == well else "unknown"
    retry = {"retry_in": 60} if verdict == "unknown" else {}
    connection.record(worker, outcome(claimed, verdict=verdict, counts=False, **retry))
    return int(claimed["notification_id"])
