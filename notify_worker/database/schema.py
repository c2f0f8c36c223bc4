"""The schema notify_worker: migrate it to this release's version, print the migration as SQL, check the version.

Tables come from the revisions in alembic/, which never change once released. Functions, triggers, views and grants are whole
files in sql/: every upgrade installs all of them in its own transaction, and drops those that no file defines any more.
"""

import logging
import re
from functools import partial
from pathlib import Path
from typing import LiteralString, TextIO

import psycopg
from psycopg import errors as postgres
from psycopg.errors import Diagnostic

from notify_worker.database.connections import first_line, with_limits
from notify_worker.errors import (
    BrokenInstallation,
    DatabaseUnavailable,
    NotifyWorkerError,
    SchemaIsOlder,
    SchemaMismatch,
)

PACKAGE = Path(__file__).parents[1]

log = logging.getLogger(__name__)


def folder(packaged: str, checkout: str, probe: str) -> Path:
    """Return a folder of the wheel, or else of the checkout. `probe` is a file that it must contain."""
    for place in (PACKAGE / packaged, PACKAGE.parent / checkout):
        if (place / probe).is_file():
            return place
    raise BrokenInstallation(f"{PACKAGE / packaged} is missing from this installation. Install notify-worker again.")


alembic_folder = partial(folder, "_alembic", "alembic", "versions/0001_procrastinate.py")
sql_folder = partial(folder, "_sql", "sql", "triggers/wake_on_insert.sql")

REWRITTEN_COLUMN = ("stored_incidents", "ends_at")
"""A table and its column that revision 0002 creates, and did not create before it was rewritten."""
HAS_COLUMN: LiteralString = """
    select attnum from pg_attribute
    join pg_class on pg_class.oid = attrelid
    where relnamespace = 'notify_worker'::regnamespace and relname = %s and attname = %s
"""


def versions() -> list[str]:
    """Return the versions that this release knows, oldest first."""
    return sorted(path.name.partition("_")[0] for path in (alembic_folder() / "versions").glob("*.py"))


def migrate(conninfo: str) -> str:
    """Migrate the schema to this release's version, in one transaction.

    Any number of processes may call it at once: one migrates, the others wait. It blocks, so call it in a thread from async
    code.

    Args:
        conninfo: The database, as a libpq connection string, with a role that owns it.

    Returns:
        The version of the schema.

    Raises:
        DatabaseUnavailable: No connection can be made.
        SchemaMismatch: The schema is newer than this release, or was made by an unreleased one.
        NotifyWorkerError: A lock or a privilege is missing, or the database is read-only. Nothing was changed.
    """
    with connect(conninfo) as connection:
        found = read_version(connection)
    if found is not None and found not in versions():
        raise SchemaMismatch(
            f"The schema notify_worker has version {found}, and the newest that this release knows is {versions()[-1]}. "
            "Install the release of notify-worker that migrated it, or a later one."
        )
    upgrade(conninfo=conninfo)
    return versions()[-1]


def print_sql(to: TextIO, *, since: str | None = None) -> None:
    """Write the transaction that `migrate` would run, for psql: for a new schema, or one of version `since`."""
    upgrade(print_to=to, since=since)


def upgrade(*, conninfo: str = "", print_to: TextIO | None = None, since: str | None = None) -> None:
    """Upgrade to head with Alembic, in the database or as a script to `print_to`."""
    from alembic import command  # noqa: PLC0415  the import takes half a second, and a worker does not need it
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    logging.getLogger("alembic").setLevel(logging.WARNING)  # at INFO it logs each step
    config = Config(output_buffer=print_to, attributes={"conninfo": conninfo})
    config.set_main_option("script_location", str(alembic_folder()).replace("%", "%%"))
    try:
        command.upgrade(config, f"{since}:head" if since else "head", sql=print_to is not None)
    except DBAPIError as error:
        if explanation := explained(error.orig):
            raise explanation from None
        raise


def explained(error: BaseException | None) -> NotifyWorkerError | None:
    """Return an error that tells the operator what to do; None if it is a bug."""
    if isinstance(error, postgres.LockNotAvailable):
        reason = "another transaction locked it for too long"
        remedy = "Run it again when that has ended; pg_stat_activity shows it."
    elif isinstance(error, postgres.InsufficientPrivilege):
        reason = str(error.diag.message_primary)
        remedy = "Run it as the role that owns the database."
    elif isinstance(error, postgres.ReadOnlySqlTransaction):
        reason = "the database is read-only, or a standby"
        remedy = "Run it on the primary, with default_transaction_read_only off."
    elif isinstance(error, postgres.DependentObjectsStillExist):
        reason = f"{error.diag.message_primary} ({error.diag.message_detail})"
        remedy = "Drop the dependent objects, run it again, and create them again."
    else:
        return None
    return NotifyWorkerError(f"The schema was not migrated: {reason}. Nothing was changed. {remedy}")


def run(sql: str) -> None:
    """Run SQL without parameters inside the upgrade, or print it with --sql."""
    from alembic import context  # noqa: PLC0415

    migration = context.get_context()
    if migration.as_sql:
        migration.impl.static_output(sql)
    elif migration.connection is not None:
        migration.connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def apply_sql() -> None:
    """Install every file of sql/, and drop routines and views that no file defines any more.

    Bodies are not checked meanwhile, since a function may use another one, or a view, that is installed later.
    """
    run("set local check_function_bodies = off;")
    apply_files("install.sql")
    apply_files("functions/*/*.sql", "triggers/*.sql", replaces=True)
    apply_files("triggers.sql")
    run("call pg_temp.drop_outdated('routine');")
    apply_files("views/internal/*.sql", "views/*.sql", replaces=True)
    run("call pg_temp.drop_outdated('view');")
    apply_files("grants.sql")
    run("select notify_worker.create_partitions();")


def apply_files(*patterns: str, replaces: bool = False) -> None:
    """Run files of sql/. An error gets a note with its file.

    With `replaces`, a file defines the function or the view that it is named after, and may replace an older one.
    """
    for path in [path for pattern in patterns for path in sorted(sql_folder().glob(pattern))]:
        source = path.read_text(encoding="utf-8")
        try:
            run(f"call pg_temp.install('{path.stem}', $file$\n{source}$file$);" if replaces else source)
        except Exception as error:
            error.add_note(f"in {path}")
            raise


def installed_version(conninfo: str) -> str | None:
    """Return the version of the schema in the database; None without a schema."""
    with connect(conninfo) as connection:
        return read_version(connection)


def verify(conninfo: str) -> None:
    """Raise SchemaMismatch unless this release can use the schema: its own, or a later one, which only adds to it."""
    with connect(conninfo) as connection:
        found, database = read_version(connection), connection.info.dbname
    if found is None:
        raise SchemaMismatch(f'The database "{database}" has no schema notify_worker. Run: notify-worker migrate')
    if found in versions() and found != versions()[-1]:
        raise SchemaIsOlder(
            f"The schema notify_worker has version {found}, and this release needs {versions()[-1]}. "
            "Run: notify-worker migrate"
        )


def read_version(connection: psycopg.Connection) -> str | None:
    """Return the schema's version, or None without a schema. Raises SchemaMismatch if an unreleased version made it."""
    try:
        row = connection.execute("select notify_worker.installed_version()").fetchone()
    except (postgres.UndefinedFunction, postgres.InvalidSchemaName):
        return None
    except postgres.InsufficientPrivilege:
        role = connection.info.user
        raise SchemaMismatch(
            f'The role "{role}" may not use the schema notify_worker. Let its owner run: grant notify_worker_worker '
            f'to "{role}" (or notify_worker_producer, or notify_worker_auditor)'
        ) from None
    found: str | None = row[0] if row else None
    if found == "0002" and not connection.execute(HAS_COLUMN, REWRITTEN_COLUMN).fetchone():
        raise SchemaMismatch(
            "The schema notify_worker was made by an unreleased version of notify-worker, and can't be migrated. "
            "Run: drop schema notify_worker cascade (which deletes its data), and then: notify-worker migrate"
        )
    return found


def connect(conninfo: str) -> psycopg.Connection:
    """Connect. Raises DatabaseUnavailable, without the conninfo, which may hold a password."""
    try:
        connection = psycopg.connect(with_limits(conninfo))
    except psycopg.OperationalError as error:
        reason = re.sub(r"'[^']*@", "'…@", first_line(error))  # after an unescaped @, a password is part of the host
        raise DatabaseUnavailable(
            f"No connection to the database: {reason}. "
            "Is it up, and is NOTIFY_WORKER_DATABASE_URL right (or libpq's own PG*)?"
        ) from None
    except psycopg.ProgrammingError:
        raise DatabaseUnavailable(
            "NOTIFY_WORKER_DATABASE_URL is not a connection string that libpq understands. "
            "Write it as postgresql://user:password@host/database, and special characters in the password as %XX."
        ) from None
    connection.add_notice_handler(log_warning)
    return connection


def log_warning(notice: Diagnostic) -> None:
    """Log a warning of the server, such as for roles that the migration may not create."""
    if notice.severity_nonlocalized == "WARNING":
        message, hint = notice.message_primary, notice.message_hint or ""
        log.warning("%s. %s", message, hint, extra={"event": "database_warning", "warning": message, "hint": hint})
