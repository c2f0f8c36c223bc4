"""Workers of this release on a later schema, an older one, or none."""

import psycopg

from notify_worker.database import schema
from tests.support.shop import Shop, both_kinds
from tests.support.waiting import until

LATER = """
begin;
alter table notify_worker.notifications add column mood text not null default 'calm';
alter table notify_worker.stored_deliveries add column weight integer not null default 1;
alter table notify_worker.stored_attempts add column weather text not null default 'fair';
alter table notify_worker.projects add column motto text not null default 'soon';
alter table notify_worker.stored_workers add column release text not null default 'this one';
create function notify_worker.mood_of(event_id text) returns text language sql as
    'select mood from notify_worker.notifications where event_id = mood_of.event_id';
create or replace view notify_worker.workers as
    select name, started_at, last_heartbeat_at, host, pid, release
    from notify_worker.stored_workers
    where ended_at is null and last_heartbeat_at > now() - interval '10 seconds';
update notify_worker.schema_version set version_num = '9999';
commit
"""
"""A release that only adds: columns with a default, a function, a view's column at its end."""


def migrate_to_a_later_release(shop: Shop) -> None:
    """In a deadlock with a worker's statement Postgres may choose the migration: then it is run again."""
    shop.connection.execute("set lock_timeout = '5s'")
    for _ in range(5):
        try:
            for statement in LATER.split(";\n"):
                shop.connection.execute(statement.encode())
        except psycopg.errors.DeadlockDetected:
            shop.connection.execute("rollback")
        else:
            return
    raise AssertionError("five deadlocks")


def set_version(shop: Shop, version: str) -> None:
    shop.connection.execute("update notify_worker.schema_version set version_num = %s", [version])


# A later schema


@both_kinds
def test_a_worker_works_on_a_schema_that_a_later_release_has_migrated(shop: Shop, kind: str) -> None:
    migrate_to_a_later_release(shop)
    worker = shop.start_worker(kind)
    shop.connection.execute("update notify_worker.projects set first_retry_after = '100 milliseconds'")

    shop.notify_many(50)
    shaky = shop.notify("twicedrop:shaky")
    gone = shop.notify("dead:gone")

    until("all are settled", lambda: shop.states() == {"sent": 51, "unreachable": 1}, within=20)
    assert [each["verdict"] for each in shop.attempts(shaky)] == ["unknown", "unknown", "sent"]
    assert [each["verdict"] for each in shop.attempts(gone)] == ["unregistered"]
    assert shop.unbalanced() == []
    assert worker.stop() == 0
    assert shop.leased() == 0


@both_kinds
def test_a_worker_goes_on_while_a_later_release_migrates_the_schema(shop: Shop, kind: str) -> None:
    worker = shop.start_worker(kind)
    shop.notify_many(1500)
    until("it is in the middle of it", lambda: shop.box.accepted > 200, within=15)

    migrate_to_a_later_release(shop)

    until("all are sent", lambda: shop.all_sent(1500), within=30)
    assert (shop.box.received, shop.box.doubles) == (1500, 0)
    assert shop.unbalanced() == []
    assert worker.stop() == 0


def test_a_worker_goes_on_while_migrate_installs_every_function_trigger_and_view_again(shop: Shop) -> None:
    worker = shop.start_worker()
    shop.notify_many(1500)
    until("it is in the middle of it", lambda: shop.box.accepted > 200, within=15)

    schema.migrate(shop.conninfo)

    until("all are sent", lambda: shop.all_sent(1500), within=30)
    assert (shop.box.received, shop.box.doubles) == (1500, 0)
    assert shop.unbalanced() == []
    assert worker.stop() == 0


# An older one


def test_a_worker_newer_than_the_schema_waits_and_says_so_once(shop: Shop) -> None:
    set_version(shop, "0001")
    waiting = shop.notify("app:waiting")
    worker = shop.launch()
    until("it says that it waits", lambda: worker.has_left or shop.said("event=worker_waits"), within=15)
    asked = session_count(shop)
    until("it has connected again", lambda: worker.has_left or session_count(shop) > asked + 1, within=15)
    assert not worker.has_left
    assert shop.state(waiting) == "pending"

    set_version(shop, schema.versions()[-1])

    until("it is sent", lambda: worker.has_left or shop.state(waiting) == "sent", within=15)
    assert worker.stop() == 0
    said = shop.log.read_text()
    assert said.count("event=worker_waits") == 1
    assert f"has version 0001, and this release needs {schema.versions()[-1]}. Run: notify-worker migrate" in said


def session_count(shop: Shop) -> int:
    """How many sessions this database has had."""
    return int(shop.value("select sessions from pg_stat_database where datname = current_database()"))


def test_a_worker_that_waits_for_its_schema_can_be_stopped(shop: Shop) -> None:
    set_version(shop, "0001")
    worker = shop.launch()
    until("it says that it waits", lambda: worker.has_left or shop.said("event=worker_waits"), within=15)

    assert worker.stop() == 0


def test_a_plain_worker_does_not_wait_for_a_schema_and_says_what_to_do(shop: Shop) -> None:
    set_version(shop, "0001")

    worker = shop.launch("procrastinate")

    until("it has left", lambda: worker.has_left, within=15)
    assert worker.poll() != 0
    assert shop.said("Run: notify-worker migrate")


# None


@both_kinds
def test_without_a_schema_a_worker_exits_and_says_what_to_do(shop: Shop, kind: str) -> None:
    shop.connection.execute("drop schema notify_worker cascade")

    worker = shop.launch(kind)

    until("it has left", lambda: worker.has_left, within=15)
    assert worker.poll() != 0
    assert shop.said("has no schema notify_worker. Run: notify-worker migrate")
    if kind == "notify-worker":
        assert not shop.said("Traceback")
