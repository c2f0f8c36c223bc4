"""Devices: ownership of addresses, replacements, retirement, and forgetting a receiver."""

from typing import LiteralString

import pytest
from psycopg import IntegrityError
from psycopg.errors import CheckViolation, NotNullViolation

from tests.support.store_calls import (
    CONTENT,
    LATER,
    RETRY,
    SENT,
    UNREGISTERED,
    Connection,
    Row,
    Worker,
    connected,
    outcome,
)


def device(connection: Connection, address: str) -> Row:
    return connection.row("select * from notify_worker.devices where address = %s", address)


def replace(connection: Connection, old: str, new: str, *, receiver_id: str = "u_42") -> int:
    statement: LiteralString = "select notify_worker.register_device(%s, 'token', %s, replaces => %s)"
    return int(connection.value(statement, receiver_id, new, old))


def retire(connection: Connection, address: str, project: str = "default") -> bool:
    return bool(connection.value("select notify_worker.retire_device('token', %s, %s)", address, project))


def forget(connection: Connection, receiver_id: str) -> int:
    return int(connection.value("select notify_worker.forget_receiver(%s)", receiver_id))


def addresses(claimed: list[Row]) -> list[str]:
    return [each["address"] for each in claimed]


def waiting_on(connection: Connection, worker: Worker, *phones: str) -> int:
    """A notification that waits for its next attempt on these devices of one receiver."""
    for phone in phones:
        connection.register_device("u_42", phone)
    number = connection.insert(receiver_id="u_42")
    connection.record(worker, *[outcome(each, **RETRY) for each in connection.claim(worker)])
    return number


def test_a_new_address_is_a_new_device(connection: Connection) -> None:
    number = connection.value("select notify_worker.register_device('u_42', 'fid', 'its address', 'ios')")

    registered = device(connection, "its address")
    assert (registered["id"], registered["receiver_id"], registered["kind"]) == (number, "u_42", "fid")
    assert (registered["platform"], registered["project"]) == ("ios", "default")
    assert registered["retired_at"] is registered["retired_reason"] is registered["replaced_by"] is None


def test_an_address_belongs_to_its_latest_registration(connection: Connection) -> None:
    first = connection.register_device("u_42", "fcm:phone")
    connection.insert(receiver_id="u_42")

    second = connection.register_device("u_43", "fcm:phone")

    hers = connection.insert(receiver_id="u_43")
    assert first == second
    assert [each["notification_id"] for each in connection.claim(connection.register_worker())] == [hers]


def test_registering_again_updates_seen_at_and_keeps_the_platform(connection: Connection) -> None:
    connection.register_device("u_42", "fcm:phone", platform="ios")
    connection.execute(
        "update notify_worker.devices set registered_at = now() - interval '300 days', seen_at = '2020-1-1'"
    )

    connection.execute("select notify_worker.register_device('u_42', 'token', 'fcm:phone')")

    again = device(connection, "fcm:phone")
    assert again["platform"] == "ios"
    assert connection.value("select now() - least(%s, %s) < '1 minute'", again["seen_at"], again["registered_at"])


@pytest.mark.parametrize(
    ("arguments", "error", "rule"),
    [
        ("'u_42', 'topic', 'news'", CheckViolation, "devices_kind"),
        ("'u_42', 'token', 'fcm:phone', 'windows'", CheckViolation, "devices_platform"),
        ("null, 'token', 'fcm:phone'", NotNullViolation, None),
        ("'u_42', null, 'fcm:phone'", NotNullViolation, None),
        ("'u_42', 'token', null", NotNullViolation, None),
        ("'u_42', 'token', 'fcm:phone', null, null", NotNullViolation, None),
    ],
)
def test_an_invalid_device_is_refused(
    connection: Connection, arguments: LiteralString, error: type[IntegrityError], rule: str | None
) -> None:
    with pytest.raises(error) as refused:
        connection.execute(f"select notify_worker.register_device({arguments})")

    assert refused.value.diag.constraint_name == rule
    assert refused.value.diag.message_detail is None
    assert connection.rows("select from notify_worker.devices") == []


def test_a_retired_device_gets_nothing_until_it_registers_again(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.insert(receiver_id="u_42")
    assert retire(connection, "fcm:phone") is True
    assert connection.claim(worker) == []
    assert device(connection, "fcm:phone")["retired_reason"] == "retired by the application"

    connection.register_device("u_42", "fcm:phone")

    connection.insert(receiver_id="u_42")
    assert addresses(connection.claim(worker)) == ["fcm:phone"]
    assert device(connection, "fcm:phone")["retired_reason"] is None


def test_retire_device_returns_whether_the_device_was_in_use(connection: Connection) -> None:
    connection.register_device("u_42", "fcm:phone")

    reached = [
        retire(connection, "fcm:phone", "another"),
        retire(connection, "fcm:phone"),
        retire(connection, "fcm:phone"),
        retire(connection, "fcm:unknown"),
    ]

    assert reached == [False, True, False, False]


def test_a_replaced_address_is_retired_as_replaced_and_gets_nothing(connection: Connection) -> None:
    connection.register_device("u_42", "fcm:old")

    new = replace(connection, "fcm:old", "fcm:new")

    old = device(connection, "fcm:old")
    assert (old["retired_reason"], old["replaced_by"]) == ("replaced", new)
    connection.insert(receiver_id="u_42")
    assert addresses(connection.claim(connection.register_worker())) == ["fcm:new"]


@pytest.mark.parametrize("old", ["fcm:unknown", "fcm:new"])
def test_replacing_an_unknown_or_the_same_address_just_registers(connection: Connection, old: str) -> None:
    replace(connection, old, "fcm:new")

    assert device(connection, "fcm:new")["retired_at"] is None


def test_pending_deliveries_move_to_the_device_that_replaced_theirs(connection: Connection, worker: Worker) -> None:
    number = waiting_on(connection, worker, "fcm:old")
    before = connection.only_delivery(number)
    new = replace(connection, "fcm:old", "fcm:new")

    claimed = connection.claim_one(worker)
    connection.record(worker, outcome(claimed, **SENT))

    assert (claimed["delivery_id"], claimed["address"], claimed["attempts"]) == (before["id"], "fcm:new", 1)
    assert connection.only_delivery(number)["device_id"] == new
    assert connection.state(number) == "sent"
    assert connection.unbalanced() == []


def test_a_fid_may_replace_a_token(connection: Connection, worker: Worker) -> None:
    waiting_on(connection, worker, "fcm:old")
    connection.execute("select notify_worker.register_device('u_42', 'fid', 'a-fid', 'ios', replaces => 'fcm:old')")

    claimed = connection.claim_one(worker)

    assert (claimed["kind"], claimed["address"], claimed["platform"]) == ("fid", "a-fid", "ios")


def test_a_chain_of_replacements_is_followed_to_its_end(connection: Connection, worker: Worker) -> None:
    waiting_on(connection, worker, "fcm:1")
    for number in (1, 2, 3):
        replace(connection, f"fcm:{number}", f"fcm:{number + 1}")

    assert addresses(connection.claim(worker)) == ["fcm:4"]
    assert [device(connection, f"fcm:{number}")["retired_reason"] for number in (1, 2, 3)] == ["replaced"] * 3


def test_a_device_that_fcm_called_unregistered_may_be_replaced(connection: Connection, worker: Worker) -> None:
    waiting_on(connection, worker, "fcm:old")
    connection.execute(
        "update notify_worker.devices set retired_at = now(), retired_reason = 'FCM calls it unregistered'"
    )
    replace(connection, "fcm:old", "fcm:new")

    assert addresses(connection.claim(worker)) == ["fcm:new"]
    assert device(connection, "fcm:old")["retired_reason"] == "FCM calls it unregistered"


def test_an_old_device_that_registers_again_is_in_use_and_no_longer_replaced(
    connection: Connection, worker: Worker
) -> None:
    waiting_on(connection, worker, "fcm:old")
    replace(connection, "fcm:old", "fcm:new")

    connection.register_device("u_42", "fcm:old")

    assert addresses(connection.claim(worker)) == ["fcm:old"]
    connection.insert(receiver_id="u_42")
    assert sorted(addresses(connection.claim(worker))) == ["fcm:new", "fcm:old"]


def test_an_address_may_replace_the_one_that_replaced_it(connection: Connection, worker: Worker) -> None:
    waiting_on(connection, worker, "fcm:old")
    replace(connection, "fcm:old", "fcm:new")

    replace(connection, "fcm:new", "fcm:old")

    assert addresses(connection.claim(worker)) == ["fcm:old"]
    assert device(connection, "fcm:old")["replaced_by"] is None
    assert device(connection, "fcm:new")["retired_reason"] == "replaced"


def test_pending_deliveries_do_not_move_to_another_receiver(connection: Connection, worker: Worker) -> None:
    number = waiting_on(connection, worker, "fcm:old")
    replace(connection, "fcm:old", "fcm:hers", receiver_id="u_43")

    assert connection.claim(worker) == []
    assert connection.state(number) == "unreachable"
    assert connection.only_delivery(number)["last_error"] == "the device was retired: replaced"


def test_a_replacement_with_its_own_delivery_gets_one_message(connection: Connection, worker: Worker) -> None:
    number = waiting_on(connection, worker, "fcm:phone", "fcm:tablet")
    replace(connection, "fcm:phone", "fcm:tablet")

    assert addresses(connection.claim(worker)) == ["fcm:tablet"]
    assert [each["state"] for each in connection.deliveries(number)] == ["failed", "pending"]


def test_a_device_that_replaced_two_gets_one_message(connection: Connection, worker: Worker) -> None:
    number = waiting_on(connection, worker, "fcm:phone", "fcm:tablet")
    replace(connection, "fcm:phone", "fcm:new")
    replace(connection, "fcm:tablet", "fcm:new")

    assert addresses(connection.claim(worker)) == ["fcm:new"]
    assert sorted(each["state"] for each in connection.deliveries(number)) == ["failed", "pending"]


@pytest.mark.parametrize(
    ("between", "because"),
    [
        ("delete from notify_worker.devices where address = 'fcm:phone'", "the device was deleted"),
        (
            "select notify_worker.register_device('u_43', 'token', 'fcm:phone')",
            "the device belongs to another receiver now",
        ),
        (
            "select notify_worker.retire_device('token', 'fcm:phone')",
            "the device was retired: retired by the application",
        ),
    ],
    ids=["deleted", "changed hands", "retired"],
)
def test_a_device_lost_between_attempts_gets_nothing_and_the_others_do(
    connection: Connection, between: LiteralString, because: str, worker: Worker
) -> None:
    number = waiting_on(connection, worker, "fcm:phone", "fcm:tablet")
    connection.execute(between)

    claimed = connection.claim_one(worker)
    connection.record(worker, outcome(claimed, **SENT))

    gone, reached = connection.deliveries(number)
    assert claimed["address"] == "fcm:tablet"
    assert (gone["state"], gone["last_verdict"], gone["last_error"]) == ("failed", "unregistered", because)
    assert (reached["state"], connection.state(number)) == ("sent", "sent")
    assert connection.unbalanced() == []


def test_a_device_that_was_deleted_and_registered_by_another_gets_nothing(
    connection: Connection, worker: Worker
) -> None:
    number = waiting_on(connection, worker, "fcm:phone")
    connection.execute("delete from notify_worker.devices")
    connection.register_device("u_43", "fcm:phone")

    assert connection.claim(worker) == []
    assert connection.state(number) == "unreachable"


def test_a_token_rotated_during_its_request_leads_to_the_new_one(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:old")
    number = connection.insert(receiver_id="u_42")
    claimed = connection.claim_one(worker)
    connection.register_device("u_42", "fcm:new")

    connection.record(worker, outcome(claimed, **UNREGISTERED))

    assert connection.state(number) == "pending"
    again = connection.claim_one(worker)
    connection.record(worker, outcome(again, **SENT))
    assert again["address"] == "fcm:new"
    assert [each["state"] for each in connection.deliveries(number)] == ["failed", "sent"]
    assert connection.state(number) == "sent"
    assert connection.unbalanced() == []


def test_a_receiver_without_another_device_is_unreachable_after_the_recheck(
    connection: Connection, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:old")
    number = connection.insert(receiver_id="u_42")
    connection.send(worker, UNREGISTERED)

    ended = connection.notification(number)
    assert (ended["state"], ended["lease"]) == ("unreachable", None)
    assert ended["settled_at"] is not None
    assert connection.claim(worker) == []


def test_a_new_device_is_left_out_if_another_got_the_message(connection: Connection, worker: Worker) -> None:
    connection.register_device("u_42", "fcm:phone")
    connection.register_device("u_42", "fcm:tablet")
    number = connection.insert(receiver_id="u_42")
    gone, reached = connection.claim(worker)
    connection.register_device("u_42", "fcm:new")

    connection.record(worker, outcome(gone, **UNREGISTERED), outcome(reached, **SENT))

    assert connection.state(number) == "sent"
    assert connection.claim(worker) == []


SECRETS = {
    "title": "secret title",
    "body": "secret body",
    "image": "https://example.org/secret.png",
    "params": {"order": "secret param"},
    "data": {"order": "secret data"},
    "message": {"apns": {"payload": {"aps": {"alert": "secret message"}}}},
}


def everything_about(connection: Connection, receiver_id: str) -> str:
    found = connection.rows(
        """
        select
            to_jsonb(notification) as notification,
            (select jsonb_agg(to_jsonb(delivery)) from notify_worker.stored_deliveries as delivery
                where delivery.notification_id = notification.id) as deliveries,
            (select jsonb_agg(to_jsonb(attempt)) from notify_worker.stored_attempts as attempt
                where attempt.notification_id = notification.id) as attempts,
            (select jsonb_agg(to_jsonb(device)) from notify_worker.devices as device
                where device.receiver_id = notification.receiver_id) as devices
        from notify_worker.notifications as notification
        where notification.receiver_id = %s
        """,
        receiver_id,
    )
    return str(found)


def live_with(connection: Connection, worker: Worker, receiver_id: str) -> list[int]:
    """Give a receiver four notifications: one sent, one waiting for a retry, one held, one scheduled."""
    connection.register_device(receiver_id, f"secret phone of {receiver_id}")
    connection.register_device(receiver_id, f"secret old phone of {receiver_id}")
    retire(connection, f"secret old phone of {receiver_id}")
    numbers = []
    came_to: list[Row] = [SENT, LATER, {"verdict": "unknown"}]
    for became in came_to:
        numbers.append(connection.insert(receiver_id=receiver_id, on_unknown="hold", **SECRETS))
        connection.record(worker, *[outcome(each, **became) for each in connection.claim(worker)])
    tomorrow = connection.value("select now() + interval '1 day'")
    return [*numbers, connection.insert(receiver_id=receiver_id, send_at=tomorrow, **SECRETS)]


def test_a_forgotten_receiver_leaves_counts_and_no_content(connection: Connection, worker: Worker) -> None:
    assert set(SECRETS) == CONTENT
    numbers, hers = live_with(connection, worker, "u_42"), live_with(connection, worker, "u_43")
    others = everything_about(connection, "u_43")
    assert "secret" in everything_about(connection, "u_42")

    blanked = forget(connection, "u_42")

    assert blanked == len(numbers)
    assert "secret" not in everything_about(connection, "u_42")
    assert [connection.state(number) for number in numbers] == ["sent", "cancelled", "cancelled", "cancelled"]
    assert [len(connection.deliveries(number)) for number in numbers] == [1, 1, 1, 0]
    assert everything_about(connection, "u_43") == others
    assert len(hers) == len(numbers)
    assert connection.unbalanced() == []


def test_a_forgotten_receiver_gets_nothing_more(connection: Connection, worker: Worker) -> None:
    live_with(connection, worker, "u_42")
    forget(connection, "u_42")
    connection.execute("update notify_worker.notifications set due_at = now()")

    new = connection.insert(receiver_id="u_42")

    assert connection.claim(worker) == []
    assert connection.state(new) == "unreachable"
    devices = connection.rows("select retired_at, retired_reason from notify_worker.devices")
    assert {each["retired_reason"] for each in devices} == {"the receiver was forgotten"}
    assert all(each["retired_at"] for each in devices)


def test_a_leased_notification_of_a_forgotten_receiver_keeps_its_outcome(
    connection: Connection, worker: Worker
) -> None:
    connection.register_device("u_42", "secret phone")
    sent, retried = (connection.insert(receiver_id="u_42", **SECRETS) for _ in range(2))
    claimed = connection.claim(worker)

    blanked = forget(connection, "u_42")
    between = connection.state(sent)
    connection.record(worker, outcome(claimed[0], **SENT), outcome(claimed[1], **RETRY))

    assert (blanked, between) == (2, "pending")
    assert [connection.state(number) for number in (sent, retried)] == ["sent", "cancelled"]
    assert "secret" not in everything_about(connection, "u_42")
    assert connection.claim(worker) == []
    assert connection.unbalanced() == []


def test_a_forgotten_receivers_notification_is_not_sent_after_a_crash(database: str, connection: Connection) -> None:
    connection.register_device("u_42", "secret phone")
    number = connection.insert(receiver_id="u_42", **SECRETS)
    with connected(database) as session:
        dead = session.register_worker()
        session.claim_one(dead)
    forget(connection, "u_42")
    connection.rescue_worker(dead)

    assert connection.claim(connection.register_worker()) == []
    assert connection.state(number) == "cancelled"


def test_the_device_of_a_forgotten_receiver_may_be_registered_by_another(
    connection: Connection, worker: Worker
) -> None:
    connection.register_device("u_42", "fcm:phone")
    forget(connection, "u_42")

    connection.register_device("u_43", "fcm:phone")

    connection.insert(receiver_id="u_43")
    assert addresses(connection.claim(worker)) == ["fcm:phone"]


def test_forgetting_an_unknown_receiver_returns_zero(connection: Connection) -> None:
    connection.insert(address="fcm:phone")

    assert forget(connection, "u_42") == 0
