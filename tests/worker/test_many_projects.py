"""Many Firebase projects under one worker: each has its own key, quota, pauses and sender, and delays no other."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from notify_worker import sandbox
from notify_worker.sandbox.account import new_key
from tests.support.server import created
from tests.support.shop import Shop
from tests.support.waiting import until

DUE = 2_000
"""Of each project that can't send."""
MOST_IN_FLIGHT = 100
PROMPT = timedelta(seconds=3)
"""On a busy machine. What one project has to wait for, a probe or a quota, takes 10 s and more."""


@pytest.fixture
def shop(server: str, template: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop of four projects: FCM takes no token of the first one's key; each other has a key file of its own, or none."""
    credentials = tmp_path / "sandbox.json"
    with created(server, template) as name, sandbox.start(credentials, projects=("refused", "tired", "well")) as box:
        account = json.loads(credentials.read_text())
        keys = {"refused": {"private_key": new_key()[1]}, "tired": {}, "well": {}}
        for project, key in keys.items():
            (tmp_path / f"{project}.json").write_text(json.dumps(account | {"project_id": project} | key))
        shop = Shop(make_conninfo(server, dbname=name), box, tmp_path)
        shop.connection.execute(
            """
            insert into notify_worker.projects (name, credentials, sender)
            values
                ('refused', 'file:refused.json', 'fcm'),
                ('tired', 'file:tired.json', 'fcm'),
                ('well', 'file:well.json', 'fcm'),
                ('shown', null, 'console')
            """
        )
        try:
            yield shop
        finally:
            shop.close()


def notify_many(shop: Shop, project: str, fault: str) -> None:
    shop.connection.execute(
        """
        insert into notify_worker.notifications (project, kind, address, title)
        select %s, 'token', %s || ':phone-' || number, 'Thank you'
        from generate_series(1, %s) as number
        """,
        [project, fault, DUE],
    )


def states(shop: Shop, project: str) -> dict[str, int]:
    found = shop.rows(
        "select state, count(*) from notify_worker.notifications where project = %s group by state", project
    )
    return {row["state"]: row["count"] for row in found}


def paused_projects(shop: Shop) -> set[str]:
    return {
        row["project"] for row in shop.rows("select project from notify_worker.open_incidents where scope = 'project'")
    }


def longest_delivery(shop: Shop, count: int) -> timedelta:
    """Send this many for the healthy project, one after the other; return the longest time from commit to phone."""
    longest = timedelta()
    before = shop.box.project("well").accepted
    for number in range(1, count + 1):
        committed_at = datetime.now(UTC)
        shop.notify(f"app:well-{before + number}", project="well")
        until("it is shown", lambda seen=before + number: shop.box.project("well").accepted == seen, within=20)  # type: ignore[misc]
        longest = max(longest, shop.box.shown[-1].at - committed_at)
    return longest


def test_a_refused_key_and_a_quota_stop_their_own_projects_and_delay_no_other(shop: Shop) -> None:
    notify_many(shop, "refused", fault="app")
    notify_many(shop, "tired", fault="quota")
    shop.start_worker()
    until("two are paused", lambda: paused_projects(shop) == {"refused", "tired"}, within=20)
    until("their claimed notifications are due again", lambda: shop.leased() == 0, within=20)

    assert longest_delivery(shop, 20) < PROMPT
    shown = shop.notify("app:phone", project="shown")

    until("it is shown on the console", lambda: shop.state(shown) == "sent", within=20)
    assert (states(shop, "refused"), states(shop, "tired")) == ({"pending": DUE}, {"pending": DUE})
    assert shop.value("select coalesce(sum(attempts), 0) from notify_worker.deliveries where state = 'pending'") == 0
    assert shop.box.project("refused").received == 0
    assert 1 <= shop.box.project("tired").received <= MOST_IN_FLIGHT
    assert shop.box.project("well").received == shop.box.project("well").accepted == 20
    incidents = shop.rows("select project, scope, by, ended_at from notify_worker.incidents order by project")
    assert [tuple(incident.values()) for incident in incidents] == [
        ("refused", "project", "worker", None),
        ("tired", "project", "worker", None),
    ]
    assert shop.unbalanced() == []


def test_a_repaired_key_unblocks_its_project(shop: Shop) -> None:
    shop.start_worker()
    waiting = [shop.notify("app:phone", project="refused"), shop.notify("quota:phone", project="tired")]
    until("two are paused", lambda: paused_projects(shop) == {"refused", "tired"}, within=20)

    account = json.loads((shop.folder / "well.json").read_text())
    (shop.folder / "refused.json").write_text(json.dumps(account | {"project_id": "refused"}))
    shop.connection.resume("refused")

    until("it is sent", lambda: shop.state(waiting[0]) == "sent", within=8)  # a probe would come after 10
    assert paused_projects(shop) == {"tired"}
    assert shop.state(waiting[1]) == "pending"
    assert shop.box.project("refused").accepted == 1


def test_an_operator_pauses_one_project_and_the_others_go_on(shop: Shop) -> None:
    shop.start_worker()
    shop.connection.pause("tired", "a campaign went wrong")
    waiting = shop.notify("app:phone", project="tired")

    assert longest_delivery(shop, 5) < PROMPT

    assert shop.attempts(waiting) == []
    shop.connection.resume("tired")
    until("it is sent", lambda: shop.state(waiting) == "sent", within=20)
    assert shop.box.project("tired").accepted == 1
