"""Rights: the three roles, strangers, callers with their own search_path, and creating the roles."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import LiteralString
from uuid import uuid4

import pytest
from psycopg.conninfo import make_conninfo
from psycopg.errors import CheckViolation, InsufficientPrivilege

from notify_worker.database import schema
from notify_worker.dev import postgres
from tests.support.server import FAST, administer, created, memory
from tests.support.store_calls import Connection, Worker, connected, outcome

PRODUCER, WORKER, AUDITOR = ROLES = ("notify_worker_producer", "notify_worker_worker", "notify_worker_auditor")

COLUMNS_OF_THE_CALLER = {
    *("event_id", "receiver_id", "kind", "address", "campaign", "title", "body", "image", "params", "data", "message"),
    *("priority", "send_at", "expires_at", "on_unknown", "project", "traceparent"),
}

PRIVILEGES: LiteralString = """
    select kind, name, privilege
    from (
        select 'column' as kind, relname || '.' || attname as name, privilege,
            has_column_privilege(%(role)s, pg_class.oid, attnum, privilege) as may
        from pg_class
        join pg_attribute on attrelid = pg_class.oid and attnum > 0 and not attisdropped
        cross join unnest(array['select', 'insert', 'update', 'references']) as privilege
        where relnamespace = 'notify_worker'::regnamespace and relkind in ('r', 'p', 'v')
        union all
        select 'table', relname, privilege, has_table_privilege(%(role)s, oid, privilege)
        from pg_class
        cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) as privilege
        where relnamespace = 'notify_worker'::regnamespace and relkind in ('r', 'p', 'v')
        union all
        select 'sequence', relname, privilege, has_sequence_privilege(%(role)s, oid, privilege)
        from pg_class
        cross join unnest(array['usage', 'select', 'update']) as privilege
        where relnamespace = 'notify_worker'::regnamespace and relkind = 'S'
        union all
        select 'function', oid::regprocedure::text, 'execute', has_function_privilege(%(role)s, oid, 'execute')
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace
        union all
        select 'schema', nspname, privilege, has_schema_privilege(%(role)s, oid, privilege)
        from pg_namespace
        cross join unnest(array['usage', 'create']) as privilege
        where nspname = 'notify_worker'
    ) as each
    where may
"""


@pytest.fixture(scope="module")
def stage(server: str, template: str) -> Iterator[str]:
    """The conninfo of a database in which nobody changes anything."""
    with created(server, template) as name:
        yield make_conninfo(server, dbname=name)


@contextmanager
def acting_as(role: str, database: str) -> Iterator[Connection]:
    with connected(make_conninfo(database, options=f"-c role={role}")) as session:
        yield session


def refuse(role: str, database: str, statement: str) -> None:
    as_role = make_conninfo(database, options=f"-c role={role}")
    with Connection.connect(as_role, autocommit=True) as session, pytest.raises(InsufficientPrivilege):
        session.execute(statement.encode())


def privileges(database: str, role: str) -> set[tuple[str, str, str]]:
    """Everything that a role may do in our schema, as Postgres sees it."""
    with Connection.connect(database) as connection:
        found = connection.execute(PRIVILEGES, {"role": role}).fetchall()
    return {(kind, name.replace("notify_worker.", ""), privilege) for kind, name, privilege in found}


# The producer


def test_a_producer_sets_every_column_of_the_caller_and_reads_the_id(database: str, connection: Connection) -> None:
    columns = {
        "event_id": "order:42:paid",
        "receiver_id": "u_42",
        "campaign": "order_paid",
        "title": "Thank you",
        "body": "It is paid",
        "image": "https://example.org/a.png",
        "params": {"order_id": 42},
        "data": {"order_id": "42"},
        "message": {"android": {}},
        "priority": "high",
        "send_at": "2100-01-01",
        "expires_at": "2100-01-02",
        "on_unknown": "hold",
        "project": "default",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    with acting_as(PRODUCER, database) as shop:
        number = shop.insert(**columns)
        other = shop.insert(kind="topic", address="news")
        again = shop.execute(
            """
            insert into notify_worker.notifications (event_id, receiver_id, title) values ('order:42:paid', 'u_42', 'x')
            on conflict (event_id) do nothing
            """
        )
        known = shop.rows("select id, event_id from notify_worker.notifications order by id")

    assert set(columns) | {"kind", "address"} == COLUMNS_OF_THE_CALLER
    assert again.rowcount == 0
    assert known == [{"id": number, "event_id": "order:42:paid"}, {"id": other, "event_id": None}]
    assert connection.value("select count(*) from notify_worker.procrastinate_jobs") == 1


def test_a_producer_registers_and_retires_devices_and_cancels(database: str, connection: Connection) -> None:
    with acting_as(PRODUCER, database) as shop:
        shop.register_device("u_42", "fcm:phone")
        shop.execute("select notify_worker.register_device('u_42', 'token', 'fcm:new', replaces => 'fcm:phone')")
        retired = shop.value("select notify_worker.retire_device('token', 'fcm:new')")
        number, _ = shop.insert(receiver_id="u_42"), shop.insert(receiver_id="u_42", event_id="order:42:paid")
        cancelled = [
            shop.value("select notify_worker.cancel(%s::bigint)", number),
            shop.value("select notify_worker.cancel('order:42:paid')"),
        ]

    assert (retired, cancelled) == (True, [True, True])
    assert {each["state"] for each in connection.rows("select state from notify_worker.notifications")} == {"cancelled"}


def test_a_producer_cancels_after_an_attempt(database: str, connection: Connection, worker: Worker) -> None:
    number = connection.insert()
    connection.record(worker, outcome(connection.claim_one(worker), verdict="unregistered", retry_in=None))
    waits = connection.insert()
    connection.record(worker, outcome(connection.claim_one(worker), verdict="retry", retry_in=0))

    with acting_as(PRODUCER, database) as shop:
        cancelled = [shop.value("select notify_worker.cancel(%s::bigint)", each) for each in (number, waits)]

    assert cancelled == [False, True]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into notify_worker.notifications (receiver_id, title, state) values ('u_42', 'Hello', 'sent')",
        "insert into notify_worker.notifications (receiver_id, title, state) values ('u_42', 'Hello', default)",
        "insert into notify_worker.notifications (receiver_id, title, due_at) values ('u_42', 'Hello', now())",
        "insert into notify_worker.notifications (receiver_id, title, lane) values ('u_42', 'Hello', 0)",
        "insert into notify_worker.notifications (receiver_id, title, lease) values ('u_42', 'Hello', gen_random_uuid())",
        "insert into notify_worker.notifications (receiver_id, title, created_at) values ('u_42', 'Hello', now())",
        "insert into notify_worker.notifications (id, receiver_id, title) overriding system value values (5, 'u_42', 'x')",
        "insert into notify_worker.notifications (receiver_id, title) values ('u_42', 'Hello') returning state",
        "insert into notify_worker.notifications (event_id) values ('e') on conflict (event_id) do update set lane = 0",
        "copy notify_worker.notifications (receiver_id, title, state) from stdin",
        "update notify_worker.notifications set title = 'Bye'",
        "delete from notify_worker.notifications",
        "truncate notify_worker.notifications",
        "select title from notify_worker.notifications",
        "select receiver_id from notify_worker.notifications",
        "select * from notify_worker.notifications",
        "select id from notify_worker.notifications for update",
        "select * from notify_worker.campaigns",
        "insert into notify_worker.campaigns (name) values ('sale')",
        "select * from notify_worker.projects",
        "update notify_worker.projects set max_per_second = null",
        "select * from notify_worker.devices",
        "update notify_worker.devices set receiver_id = 'u_43'",
        "select * from notify_worker.installation",
        "select * from notify_worker.deliveries",
        "select * from notify_worker.attempts",
        "select * from notify_worker.status",
        "select from notify_worker.stored_project_locks for update",
        "insert into notify_worker.procrastinate_jobs (queue_name, task_name) values ('notify_worker', 'x')",
        "select setval('notify_worker.awake_until', 9e18::bigint)",
        "select nextval('notify_worker.awake_until')",
        "select last_value from notify_worker.awake_until",
        "select notify_worker.wake_worker()",
        "select notify_worker.mark_awake()",
        "select * from notify_worker.claim(1, gen_random_uuid(), 1, '{}')",
        "select notify_worker.record(1, '[]')",
        "select notify_worker.settle('{1}')",
        "select notify_worker.retry('order:42:paid')",
        "select notify_worker.retry_delivery(1)",
        "select notify_worker.forget_receiver('u_42')",
        "select notify_worker.pause('default', 'x')",
        "select notify_worker.resume('default')",
        "select * from notify_worker.explain('order:42:paid')",
        "select * from notify_worker.history('u_42')",
        "select notify_worker.prune('0')",
        "select notify_worker.drop_old_partitions('0')",
        "select notify_worker.pending_projects()",
        "select notify_worker.procrastinate_defer_jobs_v1('{}')",
        "create table notify_worker.mine ()",
        "create trigger mine after insert on notify_worker.notifications execute function notify_worker.wake_on_insert()",
        "alter table notify_worker.notifications disable trigger user",
        "begin; lock table notify_worker.notifications in share mode",
    ],
)
def test_a_producer_is_refused_other_statements(stage: str, statement: str) -> None:
    refuse(PRODUCER, stage, statement)


def test_a_producer_has_exactly_these_privileges(stage: str) -> None:
    assert privileges(stage, PRODUCER) == {
        ("schema", "notify_worker", "usage"),
        *(("column", f"notifications.{each}", "insert") for each in COLUMNS_OF_THE_CALLER),
        ("column", "notifications.id", "select"),
        ("column", "notifications.event_id", "select"),
        ("function", "cancel(text)", "execute"),
        ("function", "cancel(bigint)", "execute"),
        ("function", "installed_version()", "execute"),
        ("function", "register_device(text,text,text,text,text,text)", "execute"),
        ("function", "retire_device(text,text,text)", "execute"),
    }


# The auditor

VIEWS = ("deliveries", "attempts", "dead_letters", "status", "ledger", "workers", "incidents")


def test_an_auditor_reads_every_view_explain_and_history(database: str, connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone")
    number = connection.insert(receiver_id="u_42", event_id="order:42:paid")
    connection.record(worker, outcome(connection.claim_one(worker), verdict="failed"))
    connection.pause("default", "x")
    stories = [
        "select * from notify_worker.explain('order:42:paid')",
        f"select * from notify_worker.explain({number}::bigint)",
        "select * from notify_worker.history('u_42')",
        "select * from notify_worker.history('u_42', now() - interval '1 day')",
        "select notify_worker.installed_version()",
    ]

    with acting_as(AUDITOR, database) as auditor:
        seen = [auditor.rows(f"select * from notify_worker.{view}") for view in VIEWS]
        printed = [auditor.execute(story.encode()).fetchall() for story in stories]

    assert all(seen)
    assert all(printed)


@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"select * from notify_worker.{table}"
            for table in ("notifications", "devices", "campaigns", "projects", "installation", "stored_deliveries")
        ),
        "select id from notify_worker.notifications",
        "select * from notify_worker.stored_attempts",
        "select * from notify_worker.stored_workers",
        "select * from notify_worker.stored_worker_locks",
        "select * from notify_worker.stored_incidents",
        "select * from notify_worker.open_incidents",
        "select from notify_worker.stored_project_locks for update",
        "select * from notify_worker.procrastinate_jobs",
        "select last_value from notify_worker.awake_until",
        "insert into notify_worker.notifications (receiver_id, title) values ('u_42', 'Hello')",
        "update notify_worker.workers set last_heartbeat_at = now()",
        "delete from notify_worker.workers",
        "insert into notify_worker.incidents (project) values ('default')",
        "select * from notify_worker.claim(1, gen_random_uuid(), 1, '{}')",
        "select notify_worker.cancel('order:42:paid')",
        "select notify_worker.cancel(1::bigint)",
        "select notify_worker.retry('order:42:paid')",
        "select notify_worker.register_device('u_42', 'token', 'fcm:phone')",
        "select notify_worker.retire_device('token', 'fcm:phone')",
        "select notify_worker.forget_receiver('u_42')",
        "select notify_worker.pause('default', 'x')",
        "select notify_worker.wake_worker()",
        "select notify_worker.rescue_dead_workers()",
        "select notify_worker.prune('0')",
    ],
)
def test_an_auditor_is_refused_other_statements(stage: str, statement: str) -> None:
    refuse(AUDITOR, stage, statement)


def test_an_auditor_has_exactly_these_privileges(stage: str) -> None:
    may = privileges(stage, AUDITOR)

    assert {each for each in may if each[0] != "column"} == {
        ("schema", "notify_worker", "usage"),
        *(("table", view, "select") for view in VIEWS),
        ("function", "explain(text)", "execute"),
        ("function", "explain(bigint)", "execute"),
        ("function", "history(text,timestamp with time zone)", "execute"),
        ("function", "pending_projects()", "execute"),
        ("function", "installed_version()", "execute"),
    }
    assert {(name.partition(".")[0], what) for kind, name, what in may if kind == "column"} == {
        (view, "select") for view in VIEWS
    }


# The worker


def test_a_worker_does_all_of_its_work_with_its_role_alone(database: str, connection: Connection) -> None:
    with acting_as(PRODUCER, database) as shop:
        shop.register_device("u_42", "fcm:phone")
        sent, kept = shop.insert(receiver_id="u_42"), shop.insert(address="fails")
        nobody, cut_off = shop.insert(receiver_id="nobody"), shop.insert(address="is cut off")
    connection.execute("update notify_worker.devices set seen_at = now() - interval '2 days'")

    with acting_as(WORKER, database) as session, acting_as(WORKER, database) as other:
        dead = other.register_worker()
        worker = session.register_worker()
        first, second, third = session.claim(worker)
        session.record(worker, outcome(first, verdict="sent"), outcome(second, verdict="failed"))
        session.execute("select notify_worker.release(%s, %s)", [third["lease"], [third["delivery_id"]]])
        other.claim_one(dead)
        other.close()
        session.execute("set search_path = notify_worker")
        for statement in (
            "select heartbeat(array[%(worker)s]::integer[])",
            "select * from rescue_dead_workers()",
            "select mark_awake()",
            "select has_open_writers()",
            "select has_due()",
            "select clear_stalled_jobs()",
            "select create_partitions()",
            "select drop_old_partitions('1 year')",
            "select delete_wakeups()",
            "select wake_worker()",
            "select retry(%(kept)s::bigint)",
            "select retry_dead_letters('default', '-infinity')",
            "select forget_receiver('u_43')",
            "select pause('default', 'x')",
            "select resume('default')",
            "select prune('0')",
            "select * from projects",
            "select * from status",
            "select * from explain(%(kept)s::bigint)",
        ):
            session.execute(statement.encode(), {"worker": worker.id, "kept": kept})
        assert session.rescue_worker(dead) == 1
        session.unregister_worker(worker)

    remaining = connection.rows("select id, state from notify_worker.notifications order by id")
    assert remaining == [{"id": kept, "state": "pending"}, {"id": cut_off, "state": "pending"}]
    assert {sent, nobody}.isdisjoint(each["id"] for each in remaining)
    assert connection.unbalanced() == []


def test_a_worker_may_read_and_change_notifications_and_jobs(stage: str) -> None:
    may = privileges(stage, WORKER)

    for privilege in ("select", "insert", "update", "delete"):
        assert ("table", "notifications", privilege) in may
        assert ("table", "procrastinate_jobs", privilege) in may


@pytest.mark.parametrize(
    "statement",
    [
        "truncate notify_worker.notifications",
        "drop table notify_worker.notifications",
        "alter table notify_worker.notifications disable trigger user",
        "create table notify_worker.mine ()",
        "create or replace function notify_worker.wake_worker() returns void language sql as 'select'",
        "drop function notify_worker.mark_awake()",
        "grant notify_worker_producer to notify_worker_auditor",
    ],
)
def test_a_worker_is_refused_changes_to_the_schema_and_the_roles(stage: str, statement: str) -> None:
    refuse(WORKER, stage, statement)


# Everybody else


@pytest.fixture(scope="module")
def stranger(stage: str) -> Iterator[str]:
    """A role that may connect, and nothing more."""
    name = f"stranger_{uuid4().hex[:8]}"
    administer(stage, "create role {}", name)
    yield name
    administer(stage, "drop owned by {}", name)
    administer(stage, "drop role {}", name)


@pytest.mark.parametrize(
    "statement",
    [
        "select * from notify_worker.status",
        "select notify_worker.installed_version()",
        "select notify_worker.presence_lock_class()",
        "insert into notify_worker.notifications (receiver_id, title) values ('u_42', 'Hello')",
        "select notify_worker.cancel('order:42:paid')",
    ],
)
def test_a_stranger_is_refused_everything(stage: str, stranger: str, statement: str) -> None:
    refuse(stranger, stage, statement)


def test_a_stranger_has_no_rights_even_with_usage_on_the_schema(stage: str, stranger: str) -> None:
    assert privileges(stage, stranger) == set()

    administer(stage, "grant usage on schema notify_worker to {}", stranger)

    assert privileges(stage, stranger) == {("schema", "notify_worker", "usage")}


def test_a_stranger_may_not_read_later_partitions_of_the_history(
    database: str, connection: Connection, stranger: str
) -> None:
    newest = connection.value(
        """
        select max(inhrelid::regclass::text)
        from pg_inherits
        where inhparent = 'notify_worker.stored_attempts'::regclass
        """
    )
    connection.execute(f"drop table {newest}")
    assert connection.value("select notify_worker.create_partitions()") == 1

    assert privileges(database, stranger) == set()


# Who may call what

PUBLIC = {
    "register_device": {PRODUCER},
    "retire_device": {PRODUCER},
    "cancel": {PRODUCER, WORKER},
    "explain": {AUDITOR, WORKER},
    "history": {AUDITOR, WORKER},
    "installed_version": set(ROLES),
    **{each: {WORKER} for each in ("forget_receiver", "pause", "resume", "retry", "retry_delivery")},
}
BY_A_VIEW = {"pending_projects": {AUDITOR, WORKER}}
FUNCTIONS = {path.stem: path.parent.name for path in (schema.sql_folder() / "functions").rglob("*.sql")}


def folder_says(function: str, returns: str) -> set[str]:
    """Who may call a function by where its file lies. A file of public/ that PUBLIC does not name is an error."""
    if returns == "trigger":
        return set()
    if function.startswith("procrastinate_"):
        return {WORKER}
    if FUNCTIONS[function] == "public":
        return PUBLIC[function]
    assert FUNCTIONS[function] in ("worker", "internal"), function
    return BY_A_VIEW.get(function, {WORKER})


def test_each_function_is_granted_as_its_folder_says(connection: Connection) -> None:
    functions = connection.rows(
        """
        select
            proname as name,
            prorettype::regtype::text as returns,
            array(
                select coalesce(rolname, 'public')
                from aclexplode(coalesce(proacl, acldefault('f', proowner)))
                left join pg_roles on pg_roles.oid = grantee
                where grantee <> proowner
            ) as granted
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace
        """
    )

    assert set(FUNCTIONS) <= {each["name"] for each in functions}
    for each in functions:
        assert set(each["granted"]) == folder_says(each["name"], each["returns"]), each["name"]


def test_a_file_defines_the_functions_that_bear_its_name() -> None:
    for path in (schema.sql_folder() / "functions").rglob("*.sql"):
        defined = re.findall(
            r"^create .*?function notify_worker\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert set(defined) == {path.stem}, path


def test_python_calls_only_functions_of_the_workers_folder() -> None:
    sources = (path.read_text(encoding="utf-8") for path in schema.PACKAGE.rglob("*.py"))
    called = {each for source in sources for each in re.findall(r"notify_worker\.(\w+)\(", source)}

    assert {each for each, folder in FUNCTIONS.items() if folder == "worker"} <= called
    assert not called & {each for each, folder in FUNCTIONS.items() if folder == "internal"}


# A search_path of the caller's own


def test_every_security_definer_function_sets_its_own_search_path(connection: Connection) -> None:
    definers = connection.rows(
        """
        select oid::regprocedure::text as name, proconfig
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace and prosecdef
        """
    )

    assert {each["name"].partition(".")[2].partition("(")[0] for each in definers} == {
        "cancel",
        "drop_old_partitions",
        "explain",
        "forget_receiver",
        "history",
        "installed_version",
        "create_partitions",
        "pending_projects",
        "register_device",
        "retire_device",
        "wake_on_insert",
    }
    for each in definers:
        assert "search_path=pg_catalog, notify_worker, pg_temp" in each["proconfig"], each["name"]


TRAP: LiteralString = """
    create schema trap;
    create table trap.caught (who text not null, by_what text not null);
    create function trap.catch(by_what text) returns boolean language plpgsql as
        $$ begin insert into trap.caught values (current_user, by_what); return true; end $$;

    create table trap.notifications (like notify_worker.notifications);
    create table trap.devices (like notify_worker.devices);
    create table trap.stored_deliveries (like notify_worker.stored_deliveries);
    create table trap.projects (like notify_worker.projects);
    create table trap.procrastinate_jobs (like notify_worker.procrastinate_jobs);

    create function trap.settle(bigint[]) returns void language sql as $$ select trap.catch('settle') $$;
    create function trap.wake_worker(boolean default false) returns boolean language sql as
        $$ select trap.catch('wake_worker') $$;
    create function trap.cancel(bigint) returns boolean language sql as $$ select trap.catch('cancel') $$;
    create function trap.explain(bigint) returns table (at timestamptz, what text) language sql as
        $$ select now(), trap.catch('explain')::text $$;
    create function trap.pending_projects() returns setof text language sql as
        $$ select trap.catch('pending_projects')::text $$;
    create function trap.clock_timestamp() returns timestamptz language sql as
        $$ select pg_catalog.now() from trap.catch('clock_timestamp') $$;
    create function trap.now() returns timestamptz language sql as
        $$ select pg_catalog.now() from trap.catch('now') $$;
    create function trap.current_setting(text, boolean) returns text language sql as
        $$ select 'off' from trap.catch('current_setting') $$;

    create function trap.same(bigint, bigint) returns boolean language sql as $$ select trap.catch('bigint =') $$;
    create function trap.same(text, text) returns boolean language sql as $$ select trap.catch('text =') $$;
    create operator trap.= (leftarg = bigint, rightarg = bigint, function = trap.same);
    create operator trap.= (leftarg = text, rightarg = text, function = trap.same);

    grant usage on schema trap to public;
    grant all on all tables in schema trap to public;
"""


def test_a_callers_search_path_shadows_nothing(database: str, connection: Connection) -> None:
    connection.execute(TRAP)
    worker = connection.register_worker()
    tried = connection.insert(event_id="order:41:paid")
    connection.record(worker, outcome(connection.claim_one(worker), verdict="retry", retry_in=0))
    connection.execute("select notify_worker.delete_wakeups()")

    with acting_as(PRODUCER, database) as shop:
        shop.execute("set search_path = trap, notify_worker, pg_catalog, pg_temp")
        number = shop.insert(receiver_id="u_42", event_id="order:42:paid")
        other = shop.insert(receiver_id="u_43", event_id="order:43:paid")
        shop.register_device("u_42", "fcm:phone")
        shop.register_device("u_43", "fcm:tablet")
        shop.execute("select notify_worker.register_device('u_42', 'token', 'fcm:new', replaces => 'fcm:phone')")
        shop.execute("select notify_worker.retire_device('token', 'fcm:new')")
        shop.execute("select notify_worker.cancel('order:41:paid')")
        shop.execute("select notify_worker.cancel(%s::bigint)", [number])
    with acting_as(AUDITOR, database) as auditor:
        auditor.execute("set search_path = trap, notify_worker, pg_catalog, pg_temp")
        printed = auditor.execute("select * from notify_worker.explain('order:42:paid')").fetchall()
        became = auditor.execute("select * from notify_worker.history('u_42')").fetchall()
        for view in VIEWS:
            auditor.execute(f"select * from notify_worker.{view}")

    assert {each["who"] for each in connection.rows("select who from trap.caught")} <= {PRODUCER, AUDITOR}
    assert [connection.state(each) for each in (tried, number, other)] == ["cancelled", "cancelled", "pending"]
    assert [each["state"] for each in connection.deliveries(tried)] == ["cancelled"]
    assert [each["address"] for each in connection.claim(worker)] == ["fcm:tablet"]
    assert (len(printed), len(became)) == (3, 1)
    for table in ("notifications", "devices", "stored_deliveries", "projects", "procrastinate_jobs"):
        assert connection.value(f"select count(*) from trap.{table}") == 0


def test_a_callers_search_path_gets_no_row_past_the_constraints(database: str, connection: Connection) -> None:
    connection.execute(
        """
        create schema trap;
        create function trap.num_nonnulls(variadic "any") returns integer language internal as 'pg_num_nonnulls';
        create function trap.num_nonnulls(text, text) returns integer language sql as 'select 1';
        grant usage on schema trap to public;
        """
    )

    with acting_as(PRODUCER, database) as shop:
        shop.execute("set search_path = trap, pg_catalog")
        with pytest.raises(CheckViolation):
            shop.insert(receiver_id="u_42", kind="token", address="fcm:phone")


# Who makes the roles


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The conninfo of a server of its own: roles belong to all databases of a server."""
    with TemporaryDirectory(prefix="notify-worker-", dir=memory()) as home:
        Path(home).chmod(0o711)
        with postgres.start(Path(home), FAST) as started:
            yield started.conninfo


@pytest.fixture
def bare(cluster: str) -> Iterator[str]:
    """The server without our roles, and with a role `shopkeeper` who is no superuser and may not make roles."""
    administer(cluster, "create role {} nosuperuser nocreaterole", "shopkeeper")
    yield cluster
    for role in (*ROLES, "shopkeeper"):
        administer(cluster, "drop role if exists {}", role)


@contextmanager
def owned_by_the_shopkeeper(server: str) -> Iterator[str]:
    """Create a database that the shopkeeper owns; yield the conninfo to connect to it as the shopkeeper."""
    with created(server) as name:
        administer(server, "alter database {} owner to {}", name, "shopkeeper")
        yield make_conninfo(server, dbname=name, options="-c role=shopkeeper")


def our_roles(server: str) -> set[str]:
    with Connection.connect(server) as connection:
        found = connection.execute("select rolname from pg_roles where rolname like 'notify_worker_%'").fetchall()
    return {name for (name,) in found}


def test_a_database_owner_without_createrole_migrates_and_works(bare: str) -> None:
    with owned_by_the_shopkeeper(bare) as database:
        assert schema.migrate(database) == schema.versions()[-1]

        assert our_roles(bare) == set()
        with connected(database) as shop:
            worker = shop.register_worker()
            shop.register_device("u_42", "fcm:phone")
            number = shop.insert(receiver_id="u_42")
            shop.record(worker, outcome(shop.claim_one(worker), verdict="sent"))
            assert shop.state(number) == "sent"
            assert shop.unbalanced() == []


def test_a_stranger_has_no_rights_without_the_roles(bare: str) -> None:
    with owned_by_the_shopkeeper(bare) as database:
        schema.migrate(database)
        administer(bare, "create role {}", "passer_by")
        try:
            assert privileges(make_conninfo(database, options=""), "passer_by") == set()
        finally:
            administer(bare, "drop role {}", "passer_by")


def test_the_printed_script_warns_which_roles_to_create(bare: str, tmp_path: Path) -> None:
    script = tmp_path / "migrate.sql"
    with script.open("w") as file:
        schema.print_sql(file)

    with owned_by_the_shopkeeper(bare) as database:
        program = [
            str(postgres.binaries() / "psql"),
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            str(script),
            "-d",
            database,
        ]
        printed = subprocess.run(program, check=True, capture_output=True, text=True).stderr

    assert "shopkeeper may not create them" in printed
    for role in ROLES:
        assert f"create role {role} nologin" in printed
    assert "run migrate again, for the grants" in printed


def test_migrate_warns_which_roles_to_create(bare: str) -> None:
    with owned_by_the_shopkeeper(bare) as database:
        program = [sys.executable, "-m", "notify_worker", "migrate"]
        done = subprocess.run(
            program, env={"NOTIFY_WORKER_DATABASE_URL": database}, check=True, capture_output=True, text=True
        )

    for role in ROLES:
        assert f"create role {role} nologin" in done.stderr


def test_migrating_again_grants_rights_to_roles_created_later(bare: str) -> None:
    with owned_by_the_shopkeeper(bare) as database:
        schema.migrate(database)
        for role in ROLES:
            administer(bare, "create role {} nologin", role)
        assert [privileges(database, role) for role in ROLES] == [set(), set(), set()]

        schema.migrate(database)

        with acting_as(PRODUCER, make_conninfo(database, options="")) as shop:
            number = shop.insert(receiver_id="u_42")
        with acting_as(AUDITOR, make_conninfo(database, options="")) as auditor:
            assert auditor.value("select pending from notify_worker.status") == 1
        with acting_as(WORKER, make_conninfo(database, options="")) as session:
            session.claim(session.register_worker())
            assert session.state(number) == "unreachable"


def test_a_missing_role_does_not_keep_the_others_from_their_rights(bare: str) -> None:
    administer(bare, "create role {} nologin", PRODUCER)
    with owned_by_the_shopkeeper(bare) as database:
        schema.migrate(database)

        with acting_as(PRODUCER, make_conninfo(database, options="")) as shop:
            assert shop.insert(receiver_id="u_42")


def test_roles_created_for_another_database_get_the_same_rights(bare: str, server: str, stage: str) -> None:
    with created(bare) as first, owned_by_the_shopkeeper(bare) as second:
        schema.migrate(make_conninfo(bare, dbname=first))
        assert our_roles(bare) == set(ROLES)

        schema.migrate(second)

        for role in ROLES:
            assert privileges(second, role) == privileges(stage, role)


def test_six_processes_may_migrate_two_databases_of_one_server_at_once(bare: str) -> None:
    migrate = "import sys; from notify_worker.database.schema import migrate; print(migrate(sys.argv[1]))"

    with created(bare) as first, created(bare) as second:
        databases = [make_conninfo(bare, dbname=name) for name in (first, second)]
        crowd = [
            subprocess.Popen([sys.executable, "-c", migrate, database], stdout=subprocess.PIPE, text=True)
            for database in databases * 3
        ]
        answers = [each.communicate(timeout=60)[0].strip() for each in crowd]

        assert answers == [schema.versions()[-1]] * 6
        for role in ROLES:
            assert privileges(databases[0], role) == privileges(databases[1], role) != set()
