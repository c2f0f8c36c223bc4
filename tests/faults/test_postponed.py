"""What an open incident puts off when it is claimed for the first time: later it is sent, and once."""

import psycopg
import pytest

from tests.support.store_calls import claim, deliveries, insert, register_worker, value
from tests.support.waiting import until

SOON = 0.2
"""Seconds that the incident lasts."""


@pytest.mark.parametrize("kind", ["topic", "condition"])
def test_what_waits_for_the_quota_of_topics_from_its_first_claim_on_has_one_delivery(
    connection: psycopg.Connection, kind: str
) -> None:
    worker = register_worker(connection)
    value(connection, "select notify_worker.open_incident('default', 'topics', 'Topic quota exceeded.', %s)", SOON)
    waiting = insert(connection, kind=kind, address="'news' in topics" if kind == "condition" else "news")
    assert claim(connection, worker) == []

    until("the quota is there again", lambda: not blocked(connection), within=5)

    assert [each["notification_id"] for each in claim(connection, worker)] == [waiting]
    assert len(deliveries(connection, waiting)) == 1


def blocked(connection: psycopg.Connection) -> list[str]:
    """What of the project is not to be sent just now."""
    scopes: list[str] = value(connection, "select notify_worker.blocked_scopes(name) from notify_worker.projects")
    return scopes
