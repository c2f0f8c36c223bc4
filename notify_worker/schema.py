"""The schema notify_worker in the database: bring it to this release's version, print how, say whether it fits.

Tables come from the revisions in alembic/, which never change once released. Functions, triggers, views and grants are
whole files in sql/; every upgrade to head installs them again, in its own transaction.
"""

import logging
import re
from functools import partial
from pathlib import Path
from typing import TextIO

import psycopg
from psycopg import errors as postgres
from psycopg.errors import Diagnostic

from notify_worker.errors import (
    BrokenInstallation,
    DatabaseUnavailable,
    NotifyWorkerError,
    SchemaIsOlder,
    SchemaMismatch,
)
from notify_worker.session import with_limits

PACKAGE = Path(__file__).parent

log = logging.getLogger(__name__)


def folder(packaged: str, checkout: str, probe: str) -> Path:
    """Return the folder as it lies in a wheel, else as it lies in a checkout. The probe is a file that only we have."""
    for place in (PACKAGE / packaged, PACKAGE.parent / checkout):
        if (place / probe).is_file():
            return place
    raise BrokenInstallation(f"{PACKAGE / packaged} is missing from this installation. Install notify-worker again.")


alembic_folder = partial(folder, "_alembic", "alembic", "versions/0001_procrastinate.py")
sql_folder = partial(folder, "_sql", "sql", "triggers/wake.sql")


def versions() -> list[str]:
    """Return the versions that this release knows, oldest first: a revision's file begins with its id."""
    return sorted(path.name.partition("_")[0] for path in (alembic_folder() / "versions").glob("*.py"))


def migrate(conninfo: str) -> str:
    """Bring the schema to this release's version in one transaction, and return the version.

    Any number may run at once: one works, the others wait and find nothing to do. Blocks; call it in a thread from
    async code. Raises DatabaseUnavailable, SchemaMismatch where the schema is newer than this release, and
    NotifyWorkerError where a lock or a right is missing.
    """
    found = installed_version(conninfo)
    if found is not None and found not in versions():
        raise SchemaMismatch(newer(found))
    upgrade(conninfo=conninfo)
    return versions()[-1]


def print_sql(to: TextIO, *, since: str | None = None) -> None:
    """Write what `migrate` would run as one transaction for psql: on a database without our schema, or with `since`."""
    upgrade(print_to=to, since=since)


def upgrade(*, conninfo: str = "", print_to: TextIO | None = None, since: str | None = None) -> None:
    """Let Alembic upgrade to head: on a connection, or on paper."""
    from alembic import command  # noqa: PLC0415  half a second that a worker need not spend
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells each step of its own
    config = Config(output_buffer=print_to, attributes={"conninfo": conninfo})
    config.set_main_option("script_location", str(alembic_folder()).replace("%", "%%"))
    try:
        command.upgrade(config, f"{since}:head" if since else "head", sql=print_to is not None)
    except DBAPIError as error:
        if mendable := explained(error.orig):
            raise mendable from None
        raise


def explained(error: BaseException | None) -> NotifyWorkerError | None:
    """Say what an operator can mend; the rest are bugs, and stay what they are."""
    if isinstance(error, postgres.LockNotAvailable):
        return NotifyWorkerError(
            "The schema was not migrated: another transaction kept a lock on it for too long. Nothing was changed. "
            "Run it again when that has ended; pg_stat_activity shows it."
        )
    if isinstance(error, postgres.InsufficientPrivilege):
        return NotifyWorkerError(
            f"The schema was not migrated: {error.diag.message_primary}. Nothing was changed. "
            "Run it as the role that owns the database."
        )
    return None


def run(sql: str) -> None:
    """Run SQL inside the upgrade as it stands, colons, percent signs and all; with --sql, print it."""
    from alembic import context  # noqa: PLC0415

    migration = context.get_context()
    if migration.as_sql:
        migration.impl.static_output(sql)
    elif migration.connection is not None:
        migration.connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def apply_sql() -> None:
    """Install every file of sql/, whole: functions, then triggers, then views, then grants.

    Bodies are not checked while they are installed: a function may name another one, or a view, that comes later.
    """
    root = sql_folder()
    run("set local check_function_bodies = off;")
    for pattern in ("functions/*/*.sql", "triggers/*.sql", "views/*.sql", "grants.sql"):
        for path in sorted(root.glob(pattern)):
            apply_file(path)
    run("select notify_worker.keep_partitions();")


def apply_file(path: Path) -> None:
    """Run one file; an error names it, since Postgres can't."""
    try:
        run(path.read_text(encoding="utf-8"))
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
    """Ask for the version, as every role may."""
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
    return row[0] if row else None


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
