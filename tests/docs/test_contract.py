"""CONTRACT.md is true: its tables are compared with a migrated database and with the code, in both directions."""

import inspect
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import LiteralString

import click
import pytest
from psycopg.errors import CheckViolation, UniqueViolation

import notify_worker
from notify_worker import producer, worker
from notify_worker.cli.main import app
from notify_worker.database import schema
from notify_worker.dev import postgres
from notify_worker.model import Verdict
from notify_worker.settings import VARIABLES, Settings
from tests.support import schema_sql
from tests.support.store_calls import Connection

PAGE = (Path(__file__).parents[2] / "CONTRACT.md").read_text(encoding="utf-8")
GLOSSARY = (Path(__file__).parents[2] / "docs/how-it-works/glossary.md").read_text(encoding="utf-8")
WRITTEN_BY_OTHERS = ("notifications", "campaigns", "devices", "projects")
OF_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS"


def tables(heading: str) -> list[list[list[str]]]:
    """The tables below a heading, each as its rows of cells, without its own head."""
    section = re.split(r"\n#", PAGE.partition(f"# {heading}\n")[2])[0]
    found = [block.splitlines()[2:] for block in re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE)]
    assert found, f"no table below {heading}"
    return [[[cell.strip().replace(r"\|", "|") for cell in split(line)] for line in lines] for lines in found]


def split(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def table(heading: str) -> list[list[str]]:
    (only,) = tables(heading)
    return only


def quoted(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def name(cell: str) -> str:
    (only,) = quoted(cell)
    return only


def is_ours(row: list[str]) -> bool:
    return row[-1].startswith("ours")


# Tables


@pytest.mark.parametrize("of", WRITTEN_BY_OTHERS)
def test_columns_have_the_types_and_defaults_of_the_page(connection: Connection, of: str) -> None:
    there = {
        row["attname"]: row
        for row in connection.rows(
            """
            select
                attname,
                format_type(atttypid, null) as type,
                attnotnull,
                case when attidentity = 'a' then 'identity' else pg_get_expr(adbin, adrelid) end as written
            from pg_attribute
            left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where attrelid = %s::regclass and attnum > 0 and not attisdropped
            """,
            f"notify_worker.{of}",
        )
    }

    on_page = table(f"`{of}`")

    assert {name(row[0]) for row in on_page} == set(there)
    for column, type_, default, _ in on_page:
        found = there[name(column)]
        short = found["type"].replace("timestamp with time zone", "timestamptz")
        assert name(type_) == short + (" not null" if found["attnotnull"] else ""), column
        assert same_value(connection, short, default.strip("`"), found["written"]), column


def same_value(connection: Connection, type_: str, on_page: str, there: str | None) -> bool:
    if "identity" in (on_page, there) or not (on_page and there):
        return (on_page or None) == there
    with connection.transaction():  # in which now() stands still
        return bool(connection.value(f"select ({on_page})::{type_} = ({there})::{type_}".encode()))  # type: ignore[arg-type]


def test_the_callers_columns_match_pythons_keywords() -> None:
    callers = {name(row[0]) for row in table("`notifications`") if not is_ours(row)} - {"id"}

    assert callers == set(producer.Columns.__annotations__)


def test_the_docstring_of_defer_explains_each_column() -> None:
    arguments = (inspect.getdoc(producer.defer) or "").partition("Args:")[2].partition("Returns:")[0]

    explained = re.findall(r"^ {4}(\w+): ", arguments, re.MULTILINE)

    assert explained == ["connection", *producer.Columns.__annotations__]


# What is refused

REFUSED, ONCE = tables("What is refused")
CHECKED: LiteralString = "select prosrc from pg_proc where oid = 'notify_worker.check_notification'::regproc"


@pytest.mark.parametrize(("rule", "_what", "refused", "taken"), REFUSED, ids=lambda cell: cell.strip("`")[:30])
def test_a_rule_refuses_the_first_example_and_takes_the_second(
    connection: Connection, rule: str, _what: str, refused: str, taken: str
) -> None:
    with pytest.raises(CheckViolation) as violation:
        connection.execute(f"insert into notify_worker.{name(refused)}".encode())

    assert violation.value.diag.constraint_name == name(rule)
    assert violation.value.diag.message_hint or not name(rule).startswith("notifications_")
    connection.execute(f"insert into notify_worker.{name(taken)}".encode())


@pytest.mark.parametrize(("rule", "_what", "refused"), ONCE, ids=lambda cell: cell.strip("`")[:30])
def test_a_unique_value_is_refused_the_second_time(connection: Connection, rule: str, _what: str, refused: str) -> None:
    with pytest.raises(UniqueViolation) as violation:
        connection.execute(f"insert into notify_worker.{name(refused)}".encode())

    assert violation.value.diag.constraint_name == name(rule)


def test_no_rule_is_missing_from_the_page(connection: Connection) -> None:
    body = connection.value(CHECKED)
    constraints = connection.rows(
        """
        select conname, contype
        from pg_constraint
        where conrelid = any (%s::regclass[]) and contype in ('c', 'u', 'p')
        """,
        [f"notify_worker.{of}" for of in WRITTEN_BY_OTHERS],
    )
    checks = {each["conname"] for each in constraints if each["contype"] == "c"}
    keys = {each["conname"] for each in constraints} - checks
    numbers = {"notifications_pkey", "devices_pkey"}  # always generated: nobody can give one twice

    assert {name(row[0]) for row in REFUSED} == checks | set(re.findall(r"then '(notifications_\w+)'", body))
    assert {name(row[0]) for row in ONCE} == keys - numbers


# States

STATES, DERIVED = tables("States")


def test_the_states_are_those_of_the_page(connection: Connection) -> None:
    body = connection.value(CHECKED)
    rule = "select pg_get_constraintdef(oid) from pg_constraint where conname = 'stored_deliveries_state'"
    of_notifications = re.search(r"new\.state not in \((.*)\)", body)

    assert of_notifications
    assert {name(row[0]) for row in STATES} == set(re.findall(r"\w+", of_notifications.group(1)))
    assert {name(row[0]) for row in STATES if row[2]} == set(re.findall(r"'(\w+)'", connection.value(rule)))


def test_the_verdicts_of_the_code_are_those_of_the_database_and_the_pages(connection: Connection) -> None:
    rule = """
        select pg_get_constraintdef(oid)
        from pg_constraint
        where conrelid = 'notify_worker.stored_attempts'::regclass and conname = 'stored_attempts_verdict'
    """
    comment = """
        select col_description(attrelid, attnum)
        from pg_attribute
        where attrelid = 'notify_worker.attempts'::regclass and attname = 'verdict'
    """
    (in_glossary,) = re.findall(r"^verdict\n: .*: (.*)\.$", GLOSSARY, re.MULTILINE)

    verdicts = set(Verdict)

    assert set(re.findall(r"'(\w+)'", connection.value(rule))) == verdicts
    assert in_a_list(re.sub(r" \([^)]*\)", "", connection.value(comment)).rstrip(".")) == verdicts
    assert in_a_list(in_glossary) == verdicts


def in_a_list(text: str) -> set[str]:
    """The words of `a, b or c`."""
    return set(re.split(r", | or ", text))


@pytest.mark.parametrize(("first_that_fits", "expected", "example"), DERIVED, ids=lambda cell: cell.strip("`")[:30])
def test_a_notification_has_the_state_that_its_deliveries_say(
    connection: Connection, first_that_fits: str, expected: str, example: str
) -> None:
    notification_id = connection.insert()
    connection.execute("update notify_worker.notifications set fanned_out_at = now()")
    for number, each in enumerate(example.split(", ")):
        connection.execute(
            """
            insert into notify_worker.stored_deliveries
                (notification_id, device_id, kind, address, state, last_verdict, due_at)
            values (%s, %s, 'token', 'fcm:abc', %s, %s, now())
            """,
            [notification_id, number, *as_stored(each)],
        )
    if "cancelled by a call" in example:
        connection.execute("update notify_worker.notifications set cancelled_at = now()")

    connection.execute("select notify_worker.settle(array[%s]::bigint[])", [notification_id])

    assert connection.state(notification_id) == name(expected)


def as_stored(delivery: str) -> tuple[str, str | None]:
    """The state and the last verdict of a delivery that the page calls so."""
    return ("failed", "unregistered") if delivery == "unregistered" else (delivery.partition(" ")[0], None)


# Views and functions


def test_views_have_the_columns_of_the_page_in_their_order(connection: Connection) -> None:
    there = {
        row["relname"]: row["columns"]
        for row in connection.rows(
            """
            select relname, array_agg(attname::text order by attnum) as columns
            from pg_class
            join pg_attribute on attrelid = pg_class.oid and attnum > 0
            where relnamespace = 'notify_worker'::regnamespace
                and relkind = 'v'
                and obj_description(pg_class.oid) not like 'Ours. %'
            group by relname
            """
        )
    }

    assert {name(view): quoted(columns) for view, columns, _ in table("Views that others read")} == there


PUBLIC_FUNCTIONS = {name(row[0]).partition("(")[0] for row in table("Functions")}


def test_the_functions_of_the_page_are_those_of_the_public_folder() -> None:
    folder = schema.sql_folder() / "functions" / "public"

    assert {path.stem for path in folder.glob("*.sql")} == PUBLIC_FUNCTIONS


def functions(connection: Connection) -> dict[str, tuple[str, str]]:
    """Each function by its name and arguments: its arguments with their defaults, and what it returns."""
    found = connection.rows(
        """
        select
            proname || '(' || pg_get_function_identity_arguments(oid) || ')' as signature,
            proname || '(' || pg_get_function_arguments(oid) || ')' as arguments,
            pg_get_function_result(oid) as result
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace and proname not like 'procrastinate%'
        """
    )
    return {in_short(each["signature"]): (in_short(each["arguments"]), in_short(each["result"])) for each in found}


def in_short(written: str) -> str:
    """What Postgres says of a function, as people write it."""
    without_casts = re.sub(r"::(text|timestamp with time zone)\b", "", written)
    return (
        without_casts.replace("timestamp with time zone", "timestamptz")
        .replace("DEFAULT", "default")
        .replace("default NULL", "default null")
    )


def test_functions_have_the_signatures_of_the_page(connection: Connection) -> None:
    there = functions(connection)
    on_page = {name(row[0]): name(row[1]) for row in table("Functions")}

    for written, result in on_page.items():
        signature = re.sub(r" default [^,)]+", "", written)
        assert there[signature] == (written, result)
    named = {written.partition("(")[0] for written in on_page}
    assert len([signature for signature in there if signature.partition("(")[0] in named]) == len(on_page)


def public_signatures(connection: Connection) -> set[str]:
    """Name and types of each function of the page."""
    found = connection.rows(
        """
        select proname || '(' || oidvectortypes(proargtypes) || ')' as signature
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace and proname = any (%s)
        """,
        list(PUBLIC_FUNCTIONS),
    )
    return {in_short(each["signature"]) for each in found}


def test_psql_lists_exactly_the_objects_of_the_page(connection: Connection) -> None:
    views = {name(view): quoted(columns) for view, columns, _ in table("Views that others read")}
    required = {*WRITTEN_BY_OTHERS, *views, *public_signatures(connection)}
    for of in WRITTEN_BY_OTHERS:
        required |= {f"{of}.{name(row[0])}" for row in table(f"`{of}`") if row[-1] and not row[-1].startswith("ours:")}
    view_columns = {f"{view}.{column}" for view, columns in views.items() for column in columns}

    described = connection.rows(
        r"""
        select coalesce(
            relname || coalesce('.' || attname, ''),
            proname || '(' || oidvectortypes(proargtypes) || ')'
        ) as object
        from pg_description
        left join pg_class on classoid = 'pg_class'::regclass and pg_class.oid = objoid
        left join pg_attribute on attrelid = pg_class.oid and attnum = objsubid and attnum > 0
        left join pg_proc on classoid = 'pg_proc'::regclass and pg_proc.oid = objoid
        where 'notify_worker'::regnamespace in (relnamespace, pronamespace)
            and coalesce(relname, proname) not like 'procrastinate\_%'
        """
    )

    assert {in_short(each["object"]) for each in described} - view_columns == required


# Roles

Right = tuple[str, str, str]
"""Of a role: a right, and on what."""


def rights_on_page() -> Iterator[Right]:
    role = ""
    for named, rights, on in table("Roles"):
        role = name(named) if named else role
        for right in rights.split(", "):
            if columns := re.findall(r"`(\w+)`", on.partition("(")[2]):
                yield from ((role, right, f"{quoted(on)[0]}.{column}") for column in columns)
            elif quoted(on):
                yield from ((role, right, each) for each in quoted(on))
            else:
                yield role, right, on


def rights_granted(connection: Connection) -> set[Right]:
    """Every grant in the schema to somebody other than its owner."""
    found = connection.rows(
        """
        select granted.grantee, lower(granted.privilege_type) as right, thing.name as on
        from (
            select 'the schema' as name, nspacl as acl, nspowner as owner from pg_namespace where nspname = 'notify_worker'
            union all
            select relname, relacl, relowner
            from pg_class
            where relnamespace = 'notify_worker'::regnamespace and not relispartition
            union all
            select relname || '.' || attname, attacl, relowner
            from pg_attribute
            join pg_class on pg_class.oid = attrelid
            where relnamespace = 'notify_worker'::regnamespace and attacl is not null
            union all
            select
                proname || '(' || oidvectortypes(proargtypes) || ')',
                coalesce(proacl, acldefault('f', proowner)),
                proowner
            from pg_proc
            where pronamespace = 'notify_worker'::regnamespace
        ) as thing,
            aclexplode(thing.acl) as acl,
            lateral (
                select case when acl.grantee = 0 then 'public' else acl.grantee::regrole::text end, acl.privilege_type
            ) as granted (grantee, privilege_type)
        where acl.grantee <> thing.owner
        """
    )
    return {(each["grantee"], each["right"], in_short(each["on"])) for each in found}


@pytest.mark.parametrize("role", ["notify_worker_producer", "notify_worker_auditor"])
def test_each_role_has_exactly_the_rights_of_the_page(connection: Connection, role: str) -> None:
    granted = {right for right in rights_granted(connection) if right[0] == role}

    assert granted == {right for right in rights_on_page() if right[0] == role}


def test_the_workers_role_has_the_rights_of_the_page(connection: Connection) -> None:
    role = "notify_worker_worker"
    kinds = connection.rows(
        """
        select case relkind when 'S' then 'every sequence' else 'every table and view' end as kind, relname as on
        from pg_class
        where relnamespace = 'notify_worker'::regnamespace and relkind in ('r', 'p', 'v', 'S') and not relispartition
        union all
        select 'every function that is not on this page', proname || '(' || oidvectortypes(proargtypes) || ')'
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace and prorettype <> 'trigger'::regtype and proname <> all (%s)
        """,
        list(PUBLIC_FUNCTIONS),
    )
    expected = set[Right]()
    for _, right, on in (each for each in rights_on_page() if each[0] == role):
        expected |= {(role, right, in_short(each["on"])) for each in kinds if each["kind"] == on} or {(role, right, on)}

    assert {right for right in rights_granted(connection) if right[0] == role} == expected


def test_nothing_is_open_to_anybody_else(connection: Connection) -> None:
    roles = {name(row[0]) for row in table("Roles") if row[0]}

    assert {right for right in rights_granted(connection) if right[0] not in roles} == set()


# Code


def test_python_offers_the_names_of_the_page() -> None:
    on_page = {name(row[0]).partition("(")[0]: row for row in table("Python")}

    assert set(on_page) == set(notify_worker.__all__)
    for each, row in on_page.items():
        found = getattr(notify_worker, each)
        if inspect.isfunction(found):
            signature = inspect.signature(found)
            takes = ", ".join(str(one.replace(annotation=one.empty)) for one in signature.parameters.values())
            assert (name(row[0]), name(row[1])) == (f"{each}({takes})", str(signature.return_annotation))


TASKS, WORKER_DEFAULTS = tables("procrastinate")


def test_tasks_take_the_arguments_of_the_page() -> None:
    there = {
        each: list(inspect.signature(task.func).parameters)
        for each, task in worker.app.tasks.items()
        if each.startswith("notify_worker.")
    }

    assert {name(row[0]): quoted(row[1]) for row in TASKS} == there


def test_the_plain_worker_has_the_defaults_of_the_page() -> None:
    on_page = {name(option): name(chosen) for option, chosen in WORKER_DEFAULTS}

    assert on_page == {option: repr(chosen) for option, chosen in worker.app.worker_defaults.items()}


def test_verbs_take_the_options_of_the_page() -> None:
    there = {
        verb: {
            parameter.opts[-1] if isinstance(parameter, click.Option) else str(parameter.name).upper()
            for parameter in described.params
        }
        for verb, described in app.commands.items()
    }

    assert {name(row[0]): set(quoted(row[1])) for row in table("Command line")} == there


def test_variables_have_the_defaults_of_the_page() -> None:
    on_page = {name(row[0]): row for row in table("Environment")}
    settings = Settings()

    assert set(on_page) == {OF_GOOGLE, *VARIABLES}
    for variable, (attribute, _) in VARIABLES.items():
        default = getattr(settings, attribute)
        if default:
            written = f"{default.total_seconds():g}" if isinstance(default, timedelta) else str(default)
            assert written == name(on_page[variable][1]).replace("~", str(Path.home())), variable


# sql/tables.sql


def test_the_tables_for_people_are_those_of_the_database(database: str, connection: Connection) -> None:
    program = schema_sql.pg_dump("--version").split()[2]
    if not program.startswith("18.") or connection.info.server_version // 10_000 != 18:
        pytest.skip(f"sql/tables.sql is written by PostgreSQL 18; here are {postgres.binaries()} and another server")

    generated = schema_sql.generate(database)

    assert schema_sql.FILE.read_text(encoding="utf-8") == generated, "run: python -m tests.support.schema_sql"
