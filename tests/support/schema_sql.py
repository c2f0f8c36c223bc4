"""Write sql/schema.sql, the schema as people may read it: `python -m tests.support.schema_sql`.

It is what pg_dump says of a migrated database, without procrastinate's objects, the partitions by month, and what pg_dump
says of itself. Nothing is installed from it: `migrate` does that.
"""

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from notify_worker import schema
from notify_worker.dev import postgres

FILE = Path(__file__).parents[2] / "sql" / "schema.sql"
HEAD = """\
-- The schema notify_worker, as `notify-worker migrate` makes it; nothing is installed from here.
-- Generated for people to read, by `python -m tests.support.schema_sql`: tables first, then views, functions, triggers.
-- procrastinate's objects are left out.
"""
NOT_OURS = re.compile(r"procrastinate_|stored_attempts_\d{4}_\d{2}|schema_version")
OBJECT = re.compile(r"^--\n-- Name: (?P<name>.*?); Type: (?P<kind>.*?); Schema: .*\n--\n", re.MULTILINE)
ORDER = ("SCHEMA", "TABLE", "SEQUENCE", "CONSTRAINT", "INDEX", "VIEW", "FUNCTION", "TRIGGER")


def pg_dump(*arguments: str) -> str:
    return subprocess.run(
        [postgres.binaries() / "pg_dump", *arguments], check=True, stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout


def generate(conninfo: str) -> str:
    """Write down the schema of a migrated database."""
    dump = pg_dump("--schema-only", "--no-owner", "--no-privileges", "--schema=notify_worker", "-d", conninfo)
    by_kind: dict[str, list[str]] = {kind: [] for kind in ORDER}
    last: list[str] = []
    _, *parts = OBJECT.split(dump)
    for name, kind, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if NOT_OURS.search(name):
            continue
        if kind == "COMMENT":  # it follows its object
            last[-1] += "\n" + statements(text)
        else:
            last = by_kind[kind]
            last.append(statements(text))
    return HEAD + "\n" + "\n\n\n".join("\n\n".join(by_kind[kind]) for kind in ORDER) + "\n"


def statements(text: str) -> str:
    """Leave out settings of pg_dump's session, and what it says of itself after the last object."""
    text = text.partition("\n--\n-- PostgreSQL database dump complete")[0]
    return re.sub(r"^SET default_.*\n+", "", text, flags=re.MULTILINE).strip()


def main() -> None:
    with TemporaryDirectory(prefix="notify-worker-") as home:
        Path(home).chmod(0o711)  # under root the server runs as nobody, who has to pass through
        with postgres.start(Path(home)) as server:
            schema.migrate(server.conninfo)
            FILE.write_text(generate(server.conninfo), encoding="utf-8")


if __name__ == "__main__":
    main()
