"""One schema by three routes (migrate, the alembic command, --sql through psql), and the checks of its version."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import LiteralString

import alembic
import psycopg
import pytest
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from notify_worker.database import schema
from notify_worker.dev import postgres
from notify_worker.errors import BrokenInstallation, DatabaseUnavailable, NotifyWorkerError, SchemaMismatch

CHECKOUT = Path(__file__).parents[2]
PROCRASTINATE = schema.alembic_folder() / "versions" / "0001_procrastinate.py"

Dump = Callable[..., list[str]]


@pytest.fixture(scope="session")
def dump(server: str) -> Dump:
    """Return the lines of a dump of a database's schema, grants included."""
    program = postgres.binaries() / "pg_dump"
    with psycopg.connect(server) as connection:
        major = connection.info.server_version // 10_000
    if major > major_of(program):
        pytest.skip(f"the server is PostgreSQL {major}, newer than {program}")

    def lines(conninfo: str, *options: str) -> list[str]:
        script = run(program, "-s", "-O", "--restrict-key=x", *options, "-d", conninfo)
        return [line for line in script.splitlines() if not line.startswith("-- Dumped")]

    return lines


def major_of(program: Path) -> int:
    """`pg_dump (PostgreSQL) 18.6` has the major version 18."""
    return int(run(program, "--version").split()[2].partition(".")[0])


def run(program: str | Path, *arguments: str, **env: str) -> str:
    return subprocess.run(
        [program, *arguments], cwd=CHECKOUT, env=os.environ | env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def run_alembic(*arguments: str, **env: str) -> str:
    return run(sys.executable, "-m", "alembic", *arguments, **env)


def libpq(conninfo: str) -> dict[str, str]:
    """The parts of a conninfo as libpq's environment variables."""
    options = Conninfo.parse(conninfo.encode())
    return {each.envvar.decode(): each.val.decode() for each in options if each.envvar and each.val}


def printed(*, since: str | None = None) -> str:
    script = StringIO()
    schema.print_sql(script, since=since)
    return script.getvalue()


def psql(conninfo: str, script: str) -> None:
    subprocess.run(
        [postgres.binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", conninfo],
        input=script,
        check=True,
        text=True,
    )


def set_version(connection: psycopg.Connection, version: str) -> None:
    connection.execute("update notify_worker.schema_version set version_num = %s", [version])


def test_the_alembic_command_makes_the_schema_that_migrate_makes(
    empty_database: str, database: str, dump: Dump
) -> None:
    run_alembic("upgrade", "head", NOTIFY_WORKER_DATABASE_URL=empty_database)

    assert dump(empty_database) == dump(database)


def test_the_printed_script_makes_the_schema_that_migrate_makes(empty_database: str, database: str, dump: Dump) -> None:
    psql(empty_database, printed())

    assert dump(empty_database) == dump(database)
    schema.verify(empty_database)


def test_a_script_since_a_version_leaves_out_earlier_revisions() -> None:
    script = printed(since=schema.versions()[-1])

    assert "-- Running upgrade" not in script
    assert "create or replace function notify_worker.wake_on_insert" in script


def test_alembic_current_connects_by_libpqs_variables_and_creates_nothing(empty_database: str) -> None:
    run_alembic("current", **libpq(empty_database))

    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select to_regnamespace('notify_worker')").fetchone() == (None,)


def test_six_processes_may_migrate_an_empty_database_at_once(empty_database: str) -> None:
    migrate = "import sys; from notify_worker.database.schema import migrate; print(migrate(sys.argv[1]))"

    crowd = [
        subprocess.Popen([sys.executable, "-c", migrate, empty_database], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = [each.communicate(timeout=60)[0].strip() for each in crowd]

    assert answers == [schema.versions()[-1]] * 6


def test_migrating_again_changes_nothing_and_waits_for_no_open_insert(
    database: str, connection: psycopg.Connection, dump: Dump
) -> None:
    before = dump(database)
    with connection.transaction():
        connection.execute("insert into notify_worker.notifications (receiver_id, title) values ('u_42', 'Hello')")

        schema.migrate(database)  # had it to wait, it would fail by its lock_timeout

    assert dump(database) == before


# What an earlier release installed

EARLIER: LiteralString = """
    -- other columns, and a view on a view that is to be replaced before it
    drop view notify_worker.workers;
    create view notify_worker.workers as select id, name, pid as process from notify_worker.stored_workers;
    create view notify_worker.at_work as select name from notify_worker.workers;
    comment on view notify_worker.ledger is 'What must balance';
    comment on column notify_worker.ledger.what is 'What must balance';

    -- another result, with views on it
    drop function notify_worker.pending_projects() cascade;
    create function notify_worker.pending_projects() returns setof name language sql as 'select current_user';
    create view notify_worker.status as
        select pending_projects, process from notify_worker.workers, notify_worker.pending_projects();

    -- one more parameter, a default that is gone, a parameter of another name, another kind, other attributes
    create function notify_worker.claim(integer) returns void language sql as '';
    create function notify_worker.create_partitions(months integer default 3) returns void language sql as '';
    drop function notify_worker.blocked_scopes(text);
    create function notify_worker.blocked_scopes(project text default null)
        returns text[] language sql as 'select array[]::text[]';
    drop function notify_worker.settle(bigint[]);
    create function notify_worker.settle(ids bigint[]) returns void language sql as '';
    drop function notify_worker.unregister_worker(integer[]);
    create procedure notify_worker.unregister_worker(worker_ids integer[]) language sql as '';
    alter function notify_worker.release(uuid, bigint[]) security definer cost 7 set work_mem = '1MB';

    -- gone, and needed by a view that is gone
    create function notify_worker.knock() returns integer language sql as 'select 1';
    create view notify_worker.knocks as select notify_worker.knock();
    comment on function notify_worker.knock() is 'Knocks';
    comment on function notify_worker.add_deliveries(bigint[]) is 'Adds deliveries';

    -- a trigger that is gone, one with other events, one that is missing
    create function notify_worker.touch() returns trigger language plpgsql as 'begin return new; end';
    create trigger touch before update on notify_worker.devices for each row execute function notify_worker.touch();
    create or replace trigger check_device before insert on notify_worker.devices
        for each row execute function notify_worker.check_device();
    drop trigger wake_on_insert on notify_worker.notifications;

    grant execute on all functions in schema notify_worker to notify_worker_auditor, notify_worker_producer, public;
    grant select on all tables in schema notify_worker to notify_worker_producer;
    revoke execute on function notify_worker.record(integer, jsonb) from notify_worker_worker;
"""


@pytest.mark.parametrize("by", ["migrate", "the script"])
def test_an_upgraded_schema_equals_a_fresh_one(
    by: str, database: str, connection: psycopg.Connection, dump: Dump
) -> None:
    fresh = dump(database)
    connection.execute(EARLIER)
    assert dump(database) != fresh

    if by == "migrate":
        schema.migrate(database)
    else:
        psql(database, printed(since=schema.versions()[-1]))

    assert dump(database) == fresh


def test_a_view_of_the_application_on_ours_stays(database: str, connection: psycopg.Connection) -> None:
    connection.execute(
        """
        create view public.how_it_stands as select due from notify_worker.status;
        drop function notify_worker.settle(bigint[]);
        create function notify_worker.settle(ids bigint[]) returns integer language sql as 'select 1';
        """
    )

    schema.migrate(database)

    assert connection.execute("select due from public.how_it_stands").fetchone() == (0,)


def test_an_application_view_on_a_view_to_be_dropped_is_named_and_kept(
    database: str, connection: psycopg.Connection
) -> None:
    connection.execute(
        """
        create view notify_worker.at_work as select name from notify_worker.workers;
        create view public.crew as select name from notify_worker.at_work;
        """
    )

    with pytest.raises(
        NotifyWorkerError, match=r"not migrated: cannot drop .* \(view public.crew depends on view .*\)\."
    ):
        schema.migrate(database)

    assert connection.execute("select name from public.crew").fetchall() == []


def test_a_trigger_of_the_application_on_our_table_stays(database: str, connection: psycopg.Connection) -> None:
    connection.execute(
        """
        create function public.note() returns trigger language plpgsql as 'begin return new; end';
        create trigger note before insert on notify_worker.notifications for each row execute function public.note();
        """
    )

    schema.migrate(database)

    assert connection.execute("select from pg_trigger where tgname = 'note'").rowcount == 1


def test_a_schema_of_an_unreleased_version_is_refused(database: str, connection: psycopg.Connection) -> None:
    table, column = schema.REWRITTEN_COLUMN
    connection.execute(f"alter table notify_worker.{table} rename column {column} to earlier_name".encode())

    for refuses in (schema.migrate, schema.verify):
        with pytest.raises(SchemaMismatch, match=r"by an unreleased version .* drop schema notify_worker cascade"):
            refuses(database)


def test_a_read_only_database_is_named_as_the_reason(empty_database: str, database: str) -> None:
    for conninfo in (empty_database, database):
        with pytest.raises(NotifyWorkerError, match="not migrated: the database is read-only, or a standby"):
            schema.migrate(make_conninfo(conninfo, options="-c default_transaction_read_only=on"))


def test_a_lock_that_another_transaction_keeps_is_named_as_the_reason() -> None:
    reason = schema.explained(psycopg.errors.LockNotAvailable())

    assert "another transaction locked it" in str(reason)


def test_a_role_that_may_not_migrate_gets_the_missing_right_named(empty_database: str) -> None:
    powerless = make_conninfo(empty_database, options="-c role=pg_monitor")

    with pytest.raises(
        NotifyWorkerError, match=r"not migrated: permission denied for database \w+\. .* owns the database"
    ):
        schema.migrate(powerless)


def test_the_public_schema_stays_empty(connection: psycopg.Connection) -> None:
    found = connection.execute(
        """
        select relname from pg_class where relnamespace = 'public'::regnamespace
        union all
        select proname from pg_proc where pronamespace = 'public'::regnamespace
        union all
        select typname from pg_type where typnamespace = 'public'::regnamespace
        """
    ).fetchall()

    assert found == []


def test_our_list_of_procrastinates_migrations_is_the_installed_one() -> None:
    frozen = runpy.run_path(str(PROCRASTINATE))
    listed = [line.split()[1] for line in frozen["CHECKSUMS"].strip().splitlines()]

    installed = [file.name for file in files("procrastinate").joinpath("sql", "migrations").iterdir()]

    assert listed == sorted(name for name in installed if name.endswith(".sql"))


def test_a_procrastinate_that_we_have_not_tested_with_is_refused() -> None:
    frozen = runpy.run_path(str(PROCRASTINATE))

    with pytest.raises(BrokenInstallation, match=r"procrastinate's 00\.00\.00_01_initial\.sql has the checksum"):
        frozen["read"]("00.00.00_01_initial.sql", "0" * 64)


def test_our_procrastinate_tables_are_those_of_its_own_schema(empty_database: str, dump: Dump) -> None:
    def made() -> list[str]:
        """Sorted and without commas at the ends: a table that has grown has its columns in another order."""
        return sorted(line.rstrip(",") for line in dump(empty_database, "--exclude-table=notify_worker.schema_version"))

    run_alembic("upgrade", "0001", NOTIFY_WORKER_DATABASE_URL=empty_database)
    ours = made()
    with psycopg.connect(empty_database) as connection:
        connection.execute("drop schema notify_worker cascade")
        connection.execute("create schema notify_worker")
        connection.execute("set local search_path = notify_worker")
        connection.execute((files("procrastinate") / "sql" / "schema.sql").read_bytes())

    assert ours == made()


def test_a_database_without_our_schema_gets_the_hint_to_migrate(empty_database: str) -> None:
    assert schema.installed_version(empty_database) is None
    with pytest.raises(
        SchemaMismatch, match=r'database "\w+" has no schema notify_worker\. Run: notify-worker migrate'
    ):
        schema.verify(empty_database)


def test_an_older_schema_gets_the_hint_to_migrate(database: str, connection: psycopg.Connection) -> None:
    set_version(connection, "0001")

    with pytest.raises(
        SchemaMismatch, match=r"has version 0001, and this release needs \d+\. Run: notify-worker migrate"
    ):
        schema.verify(database)


def test_a_newer_schema_works_and_is_not_migrated(database: str, connection: psycopg.Connection) -> None:
    set_version(connection, "9999")

    schema.verify(database)

    with pytest.raises(
        SchemaMismatch, match=r"has version 9999, .* Install the release of notify-worker that migrated it"
    ):
        schema.migrate(database)


def test_a_role_without_rights_is_told_that_it_may_not_use_the_schema(database: str) -> None:
    with pytest.raises(SchemaMismatch, match="may not use the schema notify_worker"):
        schema.verify(make_conninfo(database, options="-c role=pg_monitor"))


@pytest.mark.parametrize(
    ("conninfo", "reason"),
    [
        ("host=127.0.0.1 port=1 password=opensesame", "Connection refused"),
        ("postgresql://me:open@sesame@localhost/shop", "failed to resolve host"),
        ("opensesame", "not a connection string"),
    ],
)
def test_a_database_that_is_away_is_reported_without_its_password(conninfo: str, reason: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=reason) as away:
        schema.verify(conninfo)

    assert "open" not in str(away.value)
    assert "sesame" not in str(away.value)


def test_revision_files_are_named_after_their_ids_and_follow_each_other() -> None:
    revisions = ScriptDirectory(str(schema.alembic_folder())).walk_revisions()

    assert [each.revision for each in revisions] == schema.versions()[::-1]


def test_an_installation_without_its_files_says_so() -> None:
    with pytest.raises(BrokenInstallation, match="_alembic is missing from this installation"):
        schema.folder("_alembic", "alembic", "versions/none.py")


def test_our_alembic_folder_does_not_shadow_the_library() -> None:
    assert not (CHECKOUT / "alembic" / "__init__.py").exists()
    assert Path(alembic.__file__).parent != CHECKOUT / "alembic"
