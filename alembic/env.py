"""How Alembic upgrades our schema: in one transaction it takes a lock, runs the revisions, and installs the files of sql/."""

from typing import Any

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from notify_worker.database.schema import apply_sql, connect, run
from notify_worker.settings import Settings

OPENING = (
    # How long to wait for another migrate.
    "set local lock_timeout = '60s'",
    # Before anything else: two `create … if not exists` at once can collide. The key is "notifywk" in ASCII.
    f"select pg_advisory_xact_lock({int.from_bytes(b'notifywk', 'big')})",
    # How long business transactions may queue behind our DDL.
    "set local lock_timeout = '5s'",
    # Before the version table, which lives in it.
    "create schema if not exists notify_worker",
    "set local search_path = notify_worker, pg_catalog",
)


OPTIONS: dict[str, Any] = {
    "version_table": "schema_version",
    "version_table_schema": "notify_worker",
    "transaction_per_migration": False,
}


def conninfo() -> str:
    """Return the conninfo of `notify-worker migrate`; for the plain alembic command, that of the environment."""
    given: str | None = context.config.attributes.get("conninfo")
    return Settings.from_env().database_url if given is None else given


def upgrade() -> None:
    """Upgrade to the command's destination. A command that only reads (`alembic current`) has none, and takes no lock."""
    destination = context.get_context().opts.get("destination_rev")
    with context.begin_transaction():
        if destination is not None:
            for statement in OPENING:
                run(f"{statement};")
        context.run_migrations()
        if destination in ("head", "heads", context.get_head_revision()):
            apply_sql()


def online() -> None:
    """Upgrade on a connection, made by a creator since SQLAlchemy's URL is not a conninfo."""
    engine = create_engine("postgresql+psycopg://", creator=lambda: connect(conninfo()), poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, **OPTIONS)
        upgrade()


def offline() -> None:
    """Print the upgrade for psql."""
    context.configure(dialect_name="postgresql", **OPTIONS)
    upgrade()


if context.is_offline_mode():
    offline()
else:
    online()
