"""The schema notify_worker in the database: migrate it to this release's version, print how, check its version.

Tables come from the revisions in alembic/, which never change once released. Functions, triggers, views and grants are
whole files in sql/; every upgrade to head installs them again in its own transaction, and drops those of earlier releases.
"""

import logging
import re
from functools import partial
from pathlib import Path
from typing import LiteralString, TextIO

import psycopg
from psycopg import errors as postgres
from psycopg.errors import Diagnostic

from notify_worker.database.connections import with_limits
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
    """Return the folder as it lies in a wheel, else as it lies in a checkout. The probe is a file that only we have."""
    for place in (PACKAGE / packaged, PACKAGE.parent / checkout):
        if (place / probe).is_file():
            return place
    raise BrokenInstallation(f"{PACKAGE / packaged} is missing from this installation. Install notify-worker again.")


alembic_folder = partial(folder, "_alembic", "alembic", "versions/0001_procrastinate.py")
sql_folder = partial(folder, "_sql", "sql", "triggers/wake_on_insert.sql")

TELLTALE = ("stored_incidents", "ends_at")
"""A table and a column of it that revision 0002 makes, and that it did not make before it was rewritten."""
HAS_COLUMN: LiteralString = """
    select attnum from pg_attribute
    join pg_class on pg_class.oid = attrelid
    where relnamespace = 'notify_worker'::regnamespace and relname = %s and attname = %s
"""


def versions() -> list[str]:
    """Return the versions that this release knows, oldest first: a revision's file begins with its id."""
    return sorted(path.name.partition("_")[0] for path in (alembic_folder() / "versions").glob("*.py"))


def migrate(conninfo: str) -> str:
    """Bring the schema to this release's version in one transaction, and return the version.

    Any number may run at once: one works, the others wait and find nothing to do. Blocks; call it in a thread from
    async code. Raises DatabaseUnavailable; SchemaMismatch where the schema is newer than this release, or was made by
    an unreleased one; and NotifyWorkerError where a lock or a right is missing, or the database is read-only.
    """
    with connect(conninfo) as connection:
        found = read_version(connection)
    if found is not None and found not in versions():
        raise SchemaMismatch(newer(found))
    upgrade(conninfo=conninfo)
    return versions()[-1]


def print_sql(to: TextIO, *, since: str | None = None) -> None:
    """Write the transaction that `migrate` would run, for psql: on a database without our schema, or of version `since`."""
    upgrade(print_to=to, since=since)


def upgrade(*, conninfo: str = "", print_to: TextIO | None = None, since: str | None = None) -> None:
    """Let Alembic upgrade to head: on a connection, or as a script to `print_to`."""
    from alembic import command  # noqa: PLC0415  half a second that a worker need not spend
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
    """Return an error with a sentence for what an operator can fix; None for the rest, which are bugs."""
    if isinstance(error, postgres.LockNotAvailable):
        reason = "another transaction kept a lock on it for too long"
        remedy = "Run it again when that has ended; pg_stat_activity shows it."
    elif isinstance(error, postgres.InsufficientPrivilege):
        reason = str(error.diag.message_primary)
        remedy = "Run it as the role that owns the database."
    elif isinstance(error, postgres.ReadOnlySqlTransaction):
        reason = "the database is read-only, or a standby"
        remedy = "Run it on the primary, with default_transaction_read_only off."
    elif isinstance(error, postgres.DependentObjectsStillExist):
        reason = f"{error.diag.message_primary} ({error.diag.message_detail})"
        remedy = "Drop what depends on it, run it again, and then make it anew."
    else:
        return None
    return NotifyWorkerError(f"The schema was not migrated: {reason}. Nothing was changed. {remedy}")


def run(sql: str) -> None:
    """Run SQL as it stands, without parameters, inside the upgrade; with --sql, print it."""
    from alembic import context  # noqa: PLC0415

    migration = context.get_context()
    if migration.as_sql:
        migration.impl.static_output(sql)
    elif migration.connection is not None:
        migration.connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def apply_sql() -> None:
    """Install every file of sql/, whole, and drop what an earlier release installed and no file defines any more.

    Bodies are not checked while they are installed: a function may name another one, or a view, that comes later.
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
    """Run files of sql/; an error names its file, since Postgres can't.

    With `replaces`, a file makes the function or the view that it is named after, and may replace an older one.
    """
    for path in [path for pattern in patterns for path in sorted(sql_folder().glob(pattern))]:
        source = path.read_text(encoding="utf-8")
        try:
            run(f"call pg_temp.install('{path.stem}', $file$\n{source}$file$);" if replaces else source)
        except Exception as error:
            error.add_note(f"in {path}")
            raise


def installed_version(conninfo: str) -> str | None:
    """Return the version of the schema in the database; None: there is none."""
    with connect(conninfo) as connection:
        return read_version(connection)


def verify(conninfo: str) -> None:
    """Return if this release can work with the schema in the database: its own, or a later one, which only adds to it.

    Else raise SchemaMismatch, which says what to do.
    """
    with connect(conninfo) as connection:
        found, database = read_version(connection), connection.info.dbname
    if found is None:
        raise SchemaMismatch(f'The database "{database}" has no schema notify_worker. Run: notify-worker migrate')
    if found in versions() and found != versions()[-1]:
        raise SchemaIsOlder(
            f"The schema notify_worker has version {found}, and this release needs {versions()[-1]}. "
            "Run: notify-worker migrate"
        )


def newer(found: str) -> str:
    """Say that the database is ahead. There is no way back but a backup: revisions go forward only."""
    return (
        f"The schema notify_worker has version {found}, and this release knows none after {versions()[-1]}. "
        "Install the release of notify-worker that migrated it, or a later one."
    )


def read_version(connection: psycopg.Connection) -> str | None:
    """Ask for the version, as every role may; None: there is no schema. Refuse one that an unreleased version made."""
    try:
        row = connection.execute("select notify_worker.installed_version()").fetchone()
    except (postgres.UndefinedFunction, postgres.InvalidSchemaName):
        return None
    except postgres.InsufficientPrivilege:
        role = connection.info.user
        raise SchemaMismatch(
            f'The role "{role}" may not use the schema notify_worker. Let its owner run: grant notify_worker_worker '
            f'to "{role}" (or notify_worker_producer, or notify_worker_auditor: by what it is to do)'
        ) from None
    found: str | None = row[0] if row else None
    if found == "0002" and not connection.execute(HAS_COLUMN, TELLTALE).fetchone():
        raise SchemaMismatch(
            "The schema notify_worker was made by an unreleased version of notify-worker, and can't be migrated. "
            "Run: drop schema notify_worker cascade (which deletes its data), and then: notify-worker migrate"
        )
    return found


def connect(conninfo: str) -> psycopg.Connection:
    """Connect, or say in one line why not; never with the conninfo, which may hold a password."""
    try:
        connection = psycopg.connect(with_limits(conninfo))
    except psycopg.OperationalError as error:
        first_line = str(error).partition("\n")[0]
        reason = re.sub(r"'[^']*@", "'…@", first_line)  # an unescaped @ makes half a password part of the host
        raise DatabaseUnavailable(
            f"No connection to the database: {reason}. "
            "Is it up, and is NOTIFY_WORKER_DATABASE_URL right (or libpq's own PG*)?"
        ) from None
    except psycopg.ProgrammingError:
        raise DatabaseUnavailable(
            "NOTIFY_WORKER_DATABASE_URL is not a connection string that libpq understands. "
            "Write it as postgresql://user:password@host/database; in the password, what is no letter or digit as %XX."
        ) from None
    connection.add_notice_handler(pass_on)
    return connection


def pass_on(notice: Diagnostic) -> None:
    """Log what the server warns of: the roles that it may not make."""
    if notice.severity_nonlocalized == "WARNING":
        log.warning("%s. %s", notice.message_primary, notice.message_hint or "")
