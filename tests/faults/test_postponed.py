"""A notification that an open incident postpones at its first claim is sent later, and once."""

import pytest

from tests.support.store_calls import Connection, Worker
from tests.support.waiting import until

SOON = 0.2
"""Seconds that the incident lasts."""


@pytest.mark.parametrize("kind", ["topic", "condition"])
def test_a_topic_postponed_at_its_first_claim_is_claimed_later_and_has_one_delivery(
    connection: Connection, kind: str, worker: Worker
) -> None:
    connection.value("select notify_worker.open_incident('default', 'topics', 'Topic quota exceeded.', %s)", SOON)
    waiting = connection.insert(kind=kind, address="'news' in topics" if kind == "condition" else "news")
    assert connection.claim(worker) == []

    until("the quota is there again", lambda: not blocked(connection), within=5)

    assert [each["notification_id"] for each in connection.claim(worker)] == [waiting]
    assert len(connection.deliveries(waiting)) == 1


def blocked(connection: Connection) -> list[str]:
    """Return the scopes of the project that are blocked now."""
    scopes: list[str] = connection.value("select notify_worker.blocked_scopes(name) from notify_worker.projects")
    return scopes
