"""A database for each test on a running server, and a folder for a test's own server."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import LiteralString

import psycopg
from psycopg.sql import SQL, Identifier

MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 1 << 30
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}


def forget_the_shell() -> None:
    """Forget what the developer's shell says: no test may reach a database or an account that is not the test's own."""
    for name in list(os.environ):
        if name.startswith(("NOTIFY_WORKER_", "PG")) or name == "GOOGLE_APPLICATION_CREDENTIALS":
            del os.environ[name]


def memory() -> Path | None:
    """A folder in memory, where there is one with room; a container's is often too small."""
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH_MEMORY
    return MEMORY if roomy else None


@contextmanager
def created(server: str, template: str = "template1") -> Iterator[str]:
    """Create a database and give its name; drop it at the end, whoever is still connected."""
    name = f"test_{token_hex(4)}"
    administer(server, "create database {} template {} strategy file_copy", name, template)
    try:
        yield name
    finally:
        administer(server, "drop database {} with (force)", name)


def administer(server: str, statement: LiteralString, *names: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(SQL(statement).format(*map(Identifier, names)))
