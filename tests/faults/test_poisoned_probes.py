"""Deliveries that fail each time, in a project that waits for a probe: others must not wait for all of them."""

import psycopg

from tests.support.store_calls import Worker, claim_one, insert, outcome, record, register_worker, value

POISONED = 20
SOON_ENOUGH = 3
"""Probes; they end up five minutes apart."""


def test_what_is_new_is_probed_before_all_that_failed_before(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    for _ in range(POISONED):
        insert(connection)
    value(connection, "select notify_worker.open_incident('default', 'project', 'an outage')")
    new = insert(connection)

    probed = [probe(connection, worker, well=new) for _ in range(SOON_ENOUGH)]

    assert new in probed


def probe(connection: psycopg.Connection, worker: Worker, *, well: int) -> int:
    """Let one probe be made, of which all but one come to nothing; return its notification."""
    connection.execute("update notify_worker.stored_incidents set next_probe_at = clock_timestamp()")
    claimed = claim_one(connection, worker)
    verdict = "sent" if claimed["notification_id"] == well else "unknown"
    retry = {"retry_in": 60} if verdict == "unknown" else {}
    record(connection, worker, outcome(claimed, verdict=verdict, counts=False, **retry))
    return int(claimed["notification_id"])
