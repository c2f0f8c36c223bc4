"""PgBouncer, where this machine has it: on the PATH, or where the variable PGBOUNCER says."""

import os
import shutil
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from notify_worker.dev import postgres
from tests.support.waiting import until

HOW_TO_HAVE_IT = "there is no PgBouncer here: install it, or say in PGBOUNCER where it is"
IMPATIENT = (
    "server_login_retry = 0.2\nserver_connect_timeout = 3\nignore_startup_parameters = extra_float_digits,options\n"
)
"""For a server that comes and goes, and clients that others wrote."""


def program() -> str | None:
    return os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")


class Pooler:
    """A PgBouncer before one server, the one that takes writes; in transaction mode each transaction gets any session.

    Args:
        server: The conninfo of that server; clients find the same database at `conninfo`.
        folder: Where its settings and its log lie.
        mode: `transaction` or `session`.
        size: The sessions that it has at most.
        more: Further lines of its settings.
    """

    def __init__(self, server: str, folder: Path, mode: str = "transaction", size: int = 20, more: str = "") -> None:
        its = conninfo_to_dict(server)
        port = postgres.free_port()
        folder.chmod(0o711)  # under root PgBouncer runs as nobody, who has to pass through
        self.conninfo = make_conninfo(
            server, host="127.0.0.1", port=port, password="", sslmode="disable", target_session_attrs="any"
        )
        self._settings = folder / "pgbouncer.ini"
        self._log = folder / "pgbouncer.log"
        password = f"password={its['password']}" if "password" in its else ""
        self._settings.write_text(
            f"""\
[databases]
* = host=127.0.0.1 port={its["port"]} user={its["user"]} {password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
{more}"""
        )
        postgres.give(self._settings)
        self._process: Popen[Any] | None = None

    def start(self) -> None:
        name = program()
        assert name is not None, HOW_TO_HAVE_IT
        with self._log.open("ab") as log:
            process = self._process = Popen(
                [name, self._settings], stdin=DEVNULL, stdout=log, stderr=log, cwd="/", **postgres.unprivileged()
            )
        until("PgBouncer answers", lambda: process.poll() is not None or self.answers(), within=20)
        assert process.poll() is None, self._log.read_text()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        try:
            psycopg.connect(self.conninfo, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True
