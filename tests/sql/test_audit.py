"""Each query of sql/audit, run through psql against a shop where everything has happened."""

import csv
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from notify_worker.dev import postgres
from tests.support.server import created
from tests.support.store_calls import Connection, Row, connected, outcome

AUDIT = Path(__file__).parents[2] / "sql" / "audit"

SENT = {"verdict": "sent", "provider_message_id": "projects/p/messages/1"}
BUSY = {"verdict": "unknown", "error_code": "UNAVAILABLE", "error": "FCM is busy", "retry_in": 0}
FAILED = {"verdict": "failed", "error_code": "INVALID_ARGUMENT", "error": "it is wrong"}
UNREGISTERED = {"verdict": "unregistered", "error_code": "UNREGISTERED", "error": "it is gone"}
SOON = {"verdict": "retry", "error_code": "UNAVAILABLE", "error": "FCM is busy", "retry_in": 0}
HELD = {"verdict": "unknown", "error_code": "ReadTimeout", "error": "no answer came"}


@pytest.fixture(scope="module")
def lived(server: str, template: str) -> Iterator[str]:
    """The conninfo of a shop where everything has happened."""
    with created(server, template) as name:
        conninfo = make_conninfo(server, dbname=name)
        with Connection.connect(conninfo, autocommit=True) as connection:
            live(conninfo, connection)
        yield conninfo


def live(database: str, connection: Connection) -> None:
    connection.execute(
        "insert into notify_worker.campaigns (name, title) values ('sale', 'Now'), ('order_paid', 'Paid')"
    )
    connection.execute("insert into notify_worker.projects (name) values ('orders'), ('quiet')")
    worker = connection.register_worker()
    for address in ("fcm:phone", "fcm:tablet"):
        connection.register_device("u_42", address)
    connection.register_device("o'brien", "fcm:gone")
    connection.register_device("u_44", "fcm:lost")
    connection.register_device("u_45", "fcm:yesterday")
    connection.execute("select notify_worker.retire_device('token', address) from notify_worker.devices where id > 3")
    connection.execute(
        "update notify_worker.devices set retired_at = now() - interval '25 h' where receiver_id = 'u_45'"
    )

    connection.insert(receiver_id="u_42", campaign="order_paid", event_id="order:42:paid")
    connection.insert(receiver_id="o'brien", campaign="order_paid", event_id="order:43:paid")
    connection.insert(address="fails 1", campaign="sale", event_id="sale:1")
    connection.insert(address="fails 2", campaign="sale", event_id="sale:2")
    connection.insert(address="busy", campaign="sale", event_id="sale:3")
    connection.insert(address="held", campaign="sale", event_id="sale:4", on_unknown="hold")
    connection.insert(address="cancelled", campaign="sale", event_id="sale:5")
    connection.insert(address="expired", campaign="sale", event_id="sale:6")
    connection.insert(receiver_id="u_42", campaign="no_such", event_id="order:44:paid")
    came_to: dict[str, Row] = {
        "fcm:gone": UNREGISTERED,
        "fails 1": FAILED,
        "fails 2": FAILED,
        "busy": BUSY,
        "held": HELD,
    }
    claimed = connection.claim(worker)
    for each in claimed:
        connection.record(worker, outcome(each, **came_to.get(each["address"], SOON)))
    connection.execute("select notify_worker.cancel('sale:5')")
    connection.execute("update notify_worker.notifications set expires_at = now() where event_id = 'sale:6'")
    connection.record(worker, *[outcome(each, **SENT) for each in connection.claim(worker)])

    for event, late in (("crash:1", False), ("crash:2", True)):
        connection.insert(address=event, event_id=event)
        with connected(database) as session:
            dead = session.register_worker()
            held = session.claim(dead)
        connection.rescue_worker(dead)
        if late:
            connection.record(dead, *[outcome(each, **SENT) for each in held])
        else:
            connection.record(worker, *[outcome(each, **SENT) for each in connection.claim(worker)])

    connection.pause("quiet", "their certificate")
    connection.pause("orders", "a test")
    connection.resume("orders")
    connection.insert(event_id="due:paused", project="quiet")
    connection.insert(event_id="due:no project", project="no_such")
    connection.insert(event_id="due:waits")
    connection.execute(
        """
        update notify_worker.notifications
        set due_at = now() - case event_id when 'due:paused' then interval '3 h' when 'due:waits' then '1 h' else '2 h' end
        where event_id like 'due:%'
        """
    )


def psql(database: str, name: str, *options: str) -> list[dict[str, str]]:
    """Run a query of the folder as its first line says to, and return its rows."""
    script = AUDIT / f"{name}.sql"
    program = [str(postgres.binaries() / "psql"), "-X", "--csv", "-v", "ON_ERROR_STOP=1", "-d", database]
    printed = subprocess.run([*program, *options, "-f", str(script)], check=True, capture_output=True, text=True)
    assert printed.stderr == ""
    return list(csv.DictReader(printed.stdout.splitlines()))


def number_of(database: str, event_id: str) -> str:
    with Connection.connect(database) as connection:
        return str(connection.value("select id from notify_worker.notifications where event_id = %s", event_id))


def test_each_audit_query_states_its_purpose_and_usage_and_has_a_test() -> None:
    names = {path.stem for path in AUDIT.iterdir()}

    assert names == {
        "by_campaign",
        "by_receiver",
        "dead_letters_by_error",
        "devices_retired_today",
        "doubles",
        "incidents",
        "oldest_due",
    }
    for name in names:
        says = (AUDIT / f"{name}.sql").read_text().splitlines()[0]
        assert says.startswith("-- ")
        assert says.endswith(f"-f sql/audit/{name}.sql")


def test_by_receiver_shows_each_state_and_reason(lived: str) -> None:
    newest, oldest = psql(lived, "by_receiver", "-v", "receiver=u_42")

    assert (newest["event_id"], newest["state"]) == ("order:44:paid", "failed")
    assert newest["reason"] == 'there is no campaign "no_such"'
    assert (oldest["event_id"], oldest["state"], oldest["reason"]) == ("order:42:paid", "sent", "FCM has accepted it")


def test_by_receiver_takes_any_name(lived: str) -> None:
    (only,) = psql(lived, "by_receiver", "-v", "receiver=o'brien")

    assert (only["event_id"], only["state"]) == ("order:43:paid", "unreachable")
    assert psql(lived, "by_receiver", "-v", "receiver=' or true --") == []


def test_by_campaign_counts_each_state(lived: str) -> None:
    campaigns = {each["campaign"]: each for each in psql(lived, "by_campaign")}

    sale, order_paid = campaigns["sale"], campaigns["order_paid"]
    states = ("notifications", "sent", "pending", "unreachable", "failed", "expired", "cancelled", "held")
    assert {state: sale[state] for state in states} == {
        "notifications": "6",
        "sent": "1",
        "pending": "0",
        "unreachable": "0",
        "failed": "2",
        "expired": "1",
        "cancelled": "1",
        "held": "1",
    }
    assert (order_paid["notifications"], order_paid["sent"], order_paid["unreachable"]) == ("2", "1", "1")
    assert (campaigns["no_such"]["failed"], campaigns[""]["pending"]) == ("1", "3")
    assert sale["median_wait"].startswith("00:00:")
    assert campaigns["no_such"]["median_wait"] == ""


def test_dead_letters_are_counted_by_error_the_most_frequent_first(lived: str) -> None:
    first, second = psql(lived, "dead_letters_by_error")

    assert (first["project"], first["error_code"], first["dead_letters"]) == ("default", "INVALID_ARGUMENT", "2")
    assert (first["latest_error"], first["latest_notification"]) == ("it is wrong", number_of(lived, "sale:2"))
    assert first["first_at"] < first["last_at"]
    assert (second["error_code"], second["dead_letters"]) == ("", "1")
    assert second["latest_error"] == 'there is no campaign "no_such"'


def test_doubles_lists_deliveries_that_fcm_may_have_got_twice(lived: str) -> None:
    doubles = {each["notification_id"]: each for each in psql(lived, "doubles")}

    busy, crashed = doubles[number_of(lived, "sale:3")], doubles[number_of(lived, "crash:1")]
    assert (busy["accepted"], busy["unknown"], busy["outcomes"]) == ("1", "1", "UNAVAILABLE, sent")
    assert (crashed["accepted"], crashed["unknown"], crashed["outcomes"]) == ("1", "1", "WORKER_GONE, sent")
    assert len(doubles) == 2


def test_oldest_due_lists_the_oldest_first_with_what_blocks_them(lived: str) -> None:
    due = psql(lived, "oldest_due")

    assert [(each["event_id"], each["in_its_way"]) for each in due] == [
        ("due:paused", "its project is paused: their certificate"),
        ("due:no project", "its project does not exist"),
        ("due:waits", "it waits for a worker"),
    ]
    assert due[0]["due_for"].startswith("03:00:")


def test_oldest_due_says_if_no_worker_runs(database: str, connection: Connection) -> None:
    connection.insert()

    (due,) = psql(database, "oldest_due")

    assert due["in_its_way"] == "no worker is alive"


def test_oldest_due_says_whose_lease_lapsed(database: str, connection: Connection) -> None:
    connection.insert()
    connection.claim(connection.register_worker())
    connection.execute("update notify_worker.notifications set due_at = now()")

    (due,) = psql(database, "oldest_due")

    assert due["in_its_way"] == "its lease has run out; the next claim ends it"


def test_devices_retired_today_are_counted_by_reason(lived: str) -> None:
    reasons = {each["retired_reason"]: each for each in psql(lived, "devices_retired_today")}

    assert set(reasons) == {"FCM calls it unregistered", "retired by the application"}
    unregistered = reasons["FCM calls it unregistered"]
    assert (unregistered["project"], unregistered["kind"]) == ("default", "token")
    assert (unregistered["devices"], unregistered["receivers"]) == ("1", "1")


def test_open_incidents_come_first(lived: str) -> None:
    goes_on, over = psql(lived, "incidents")

    assert (goes_on["project"], goes_on["by"], goes_on["goes_on"]) == ("quiet", "operator", "t")
    assert goes_on["reason"] == "their certificate"
    assert (over["project"], over["goes_on"], over["reason"]) == ("orders", "f", "a test")


def test_an_audit_changes_nothing(lived: str) -> None:
    def written() -> object:
        with Connection.connect(lived) as connection:
            return connection.row("select max(xmin::text::bigint), count(*) from notify_worker.notifications")

    before = written()

    for path in AUDIT.iterdir():
        psql(make_conninfo(lived, options="-c default_transaction_read_only=on"), path.stem, "-v", "receiver=u_42")

    assert written() == before
