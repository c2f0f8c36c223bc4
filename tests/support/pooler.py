"""PgBouncer in transaction mode, where this machine has it: on the PATH, or where the variable PGBOUNCER says."""

import os
import shutil
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from notify_worker import embedded
from tests.support.waiting import until

HOW_TO_HAVE_IT = "there is no PgBouncer here: install it, or say in PGBOUNCER where it is"


def program() -> str | None:
    return os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")


class Pooler:
    """A PgBouncer that hands a session to whoever begins a transaction."""

    def __init__(self, folder: Path, server: str) -> None:
        """`server` is the conninfo of whoever takes writes."""
        its = conninfo_to_dict(server)
        self._port = embedded.free_port()
        self.conninfo = make_conninfo(
            server, host="127.0.0.1", port=self._port, password="", sslmode="disable", target_session_attrs="any"
        )
        self._settings = folder / "pgbouncer.ini"
        self._log = folder / "pgbouncer.log"
        self._settings.write_text(
            f"""\
[databases]
* = host=127.0.0.1 port={its["port"]} user={its["user"]} password={its["password"]}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self._port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 20
max_client_conn = 200
server_login_retry = 0.2
server_connect_timeout = 3
ignore_startup_parameters = extra_float_digits,options
"""
        )
        embedded.give(self._settings)
        self._process: Popen[Any] | None = None

    def start(self) -> None:
        name = program()
        assert name is not None, HOW_TO_HAVE_IT
        with self._log.open("ab") as log:
            self._process = Popen(
                [name, self._settings], stdin=DEVNULL, stdout=log, stderr=log, cwd="/", **embedded.unprivileged()
            )
        until("PgBouncer answers", self.answers, within=20)

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
