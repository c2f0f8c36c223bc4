"""${message}."""

from notify_worker.schema import run

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    run(UPGRADE)


UPGRADE = """
"""
