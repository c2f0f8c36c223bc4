"""Who an address belongs to, what follows it, and how a device, or a person, is never sent to again."""

from typing import LiteralString

import psycopg
import pytest
from psycopg import IntegrityError
from psycopg.errors import CheckViolation, NotNullViolation

from tests.support.store_calls import (
    LATER,
    RETRY,
    SENT,
    UNREGISTERED,
    Row,
    Worker,
    claim,
    claim_one,
    connected,
    deliveries,
    insert,
    notification,
    only_delivery,
    outcome,
    record,
    register,
    register_worker,
    rescue_worker,
    row,
    rows,
    send,
    state,
    unbalanced,
    value,
)


def device(connection: psycopg.Connection, address: str) -> Row:
    return row(connection, "select * from notify_worker.devices where address = %s", address)


def replace(connection: psycopg.Connection, old: str, new: str, *, receiver_id: str = "u_42") -> int:
    statement: LiteralString = "select notify_worker.register_device(%s, 'token', %s, replaces => %s)"
    return int(value(connection, statement, receiver_id, new, old))


def retire(connection: psycopg.Connection, address: str, project: str = "default") -> bool:
    return bool(value(connection, "select notify_worker.retire_device('token', %s, %s)", address, project))


def forget(connection: psycopg.Connection, receiver_id: str) -> int:
    return int(value(connection, "select notify_worker.forget_receiver(%s)", receiver_id))


def addresses(claimed: list[Row]) -> list[str]:
    return [each["address"] for each in claimed]


def waiting_on(connection: psycopg.Connection, worker: Worker, *phones: str) -> int:
    """A notification that waits for its next try on these devices of one receiver."""
    for phone in phones:
        register(connection, "u_42", phone)
    number = insert(connection, receiver_id="u_42")
    record(connection, worker, *[outcome(each, **RETRY) for each in claim(connection, worker)])
    return number


def test_a_new_address_is_a_new_device(connection: psycopg.Connection) -> None:
    number = value(connection, "select notify_worker.register_device('u_42', 'fid', 'its address', 'ios')")

    registered = device(connection, "its address")
    assert (registered["id"], registered["receiver_id"], registered["kind"]) == (number, "u_42", "fid")
    assert (registered["platform"], registered["project"]) == ("ios", "default")
    assert registered["retired_at"] is registered["retired_reason"] is registered["replaced_by"] is None


def test_an_address_belongs_to_whoever_registered_it_last(connection: psycopg.Connection) -> None:
    first = register(connection, "u_42", "fcm:phone")
    insert(connection, receiver_id="u_42")

    second = register(connection, "u_43", "fcm:phone")

    hers = insert(connection, receiver_id="u_43")
    assert first == second
    assert [each["notification_id"] for each in claim(connection, register_worker(connection))] == [hers]


def test_registering_again_is_a_sign_of_life_and_keeps_the_platform_that_is_known(
    connection: psycopg.Connection,
) -> None:
    register(connection, "u_42", "fcm:phone", platform="ios")
    connection.execute(
        "update notify_worker.devices set registered_at = now() - interval '300 days', seen_at = '2020-1-1'"
    )

    connection.execute("select notify_worker.register_device('u_42', 'token', 'fcm:phone')")

    again = device(connection, "fcm:phone")
    assert again["platform"] == "ios"
    assert value(connection, "select now() - least(%s, %s) < '1 minute'", again["seen_at"], again["registered_at"])


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
def test_what_is_no_device_is_refused(
    connection: psycopg.Connection, arguments: LiteralString, error: type[IntegrityError], rule: str | None
) -> None:
    with pytest.raises(error) as refused:
        connection.execute(f"select notify_worker.register_device({arguments})")

    assert refused.value.diag.constraint_name == rule
    assert refused.value.diag.message_detail is None
    assert rows(connection, "select from notify_worker.devices") == []


def test_a_retired_device_is_told_nothing_until_it_registers_again(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone")
    insert(connection, receiver_id="u_42")
    assert retire(connection, "fcm:phone") is True
    assert claim(connection, worker) == []
    assert device(connection, "fcm:phone")["retired_reason"] == "retired by the application"

    register(connection, "u_42", "fcm:phone")

    insert(connection, receiver_id="u_42")
    assert addresses(claim(connection, worker)) == ["fcm:phone"]
    assert device(connection, "fcm:phone")["retired_reason"] is None


def test_to_retire_says_whether_it_was_in_use(connection: psycopg.Connection) -> None:
    register(connection, "u_42", "fcm:phone")

    told = [
        retire(connection, "fcm:phone", "another"),
        retire(connection, "fcm:phone"),
        retire(connection, "fcm:phone"),
        retire(connection, "fcm:unknown"),
    ]

    assert told == [False, True, False, False]


def test_the_address_that_is_followed_is_retired_as_replaced(connection: psycopg.Connection) -> None:
    register(connection, "u_42", "fcm:old")

    new = replace(connection, "fcm:old", "fcm:new")

    old = device(connection, "fcm:old")
    assert (old["retired_reason"], old["replaced_by"]) == ("replaced", new)
    insert(connection, receiver_id="u_42")
    assert addresses(claim(connection, register_worker(connection))) == ["fcm:new"]


@pytest.mark.parametrize("old", ["fcm:unknown", "fcm:new"])
def test_to_follow_an_unknown_address_or_oneself_is_just_to_register(connection: psycopg.Connection, old: str) -> None:
    replace(connection, old, "fcm:new")

    assert device(connection, "fcm:new")["retired_at"] is None


def test_what_waits_for_a_replaced_device_goes_to_the_one_that_followed_it(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = waiting_on(connection, worker, "fcm:old")
    before = only_delivery(connection, number)
    new = replace(connection, "fcm:old", "fcm:new")

    claimed = claim_one(connection, worker)
    record(connection, worker, outcome(claimed, **SENT))

    assert (claimed["delivery_id"], claimed["address"], claimed["attempts"]) == (before["id"], "fcm:new", 1)
    assert only_delivery(connection, number)["device_id"] == new
    assert state(connection, number) == "sent"
    assert unbalanced(connection) == []


def test_a_token_may_be_followed_by_a_fid(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    waiting_on(connection, worker, "fcm:old")
    connection.execute("select notify_worker.register_device('u_42', 'fid', 'a-fid', 'ios', replaces => 'fcm:old')")

    claimed = claim_one(connection, worker)

    assert (claimed["kind"], claimed["address"], claimed["platform"]) == ("fid", "a-fid", "ios")


def test_a_chain_of_replacements_is_followed_to_its_end(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    waiting_on(connection, worker, "fcm:1")
    for number in (1, 2, 3):
        replace(connection, f"fcm:{number}", f"fcm:{number + 1}")

    assert addresses(claim(connection, worker)) == ["fcm:4"]
    assert [device(connection, f"fcm:{number}")["retired_reason"] for number in (1, 2, 3)] == ["replaced"] * 3


def test_a_device_that_fcm_called_unregistered_may_be_followed_too(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    waiting_on(connection, worker, "fcm:old")
    connection.execute(
        "update notify_worker.devices set retired_at = now(), retired_reason = 'FCM calls it unregistered'"
    )
    replace(connection, "fcm:old", "fcm:new")

    assert addresses(claim(connection, worker)) == ["fcm:new"]
    assert device(connection, "fcm:old")["retired_reason"] == "FCM calls it unregistered"


def test_an_old_device_that_registers_again_is_in_use_and_no_longer_replaced(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    waiting_on(connection, worker, "fcm:old")
    replace(connection, "fcm:old", "fcm:new")

    register(connection, "u_42", "fcm:old")

    assert addresses(claim(connection, worker)) == ["fcm:old"]
    insert(connection, receiver_id="u_42")
    assert sorted(addresses(claim(connection, worker))) == ["fcm:new", "fcm:old"]


def test_an_address_may_come_back_in_the_place_of_the_one_that_followed_it(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    waiting_on(connection, worker, "fcm:old")
    replace(connection, "fcm:old", "fcm:new")

    replace(connection, "fcm:new", "fcm:old")

    assert addresses(claim(connection, worker)) == ["fcm:old"]
    assert device(connection, "fcm:old")["replaced_by"] is None
    assert device(connection, "fcm:new")["retired_reason"] == "replaced"


def test_what_waits_does_not_follow_to_another_receiver(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = waiting_on(connection, worker, "fcm:old")
    replace(connection, "fcm:old", "fcm:hers", receiver_id="u_43")

    assert claim(connection, worker) == []
    assert state(connection, number) == "unreachable"
    assert only_delivery(connection, number)["last_error"] == "the device was retired: replaced"


def test_a_device_that_is_told_anyway_is_told_once(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = waiting_on(connection, worker, "fcm:phone", "fcm:tablet")
    replace(connection, "fcm:phone", "fcm:tablet")

    assert addresses(claim(connection, worker)) == ["fcm:tablet"]
    assert [each["state"] for each in deliveries(connection, number)] == ["failed", "pending"]


def test_two_devices_that_one_has_followed_are_told_once(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = waiting_on(connection, worker, "fcm:phone", "fcm:tablet")
    replace(connection, "fcm:phone", "fcm:new")
    replace(connection, "fcm:tablet", "fcm:new")

    assert addresses(claim(connection, worker)) == ["fcm:new"]
    assert sorted(each["state"] for each in deliveries(connection, number)) == ["failed", "pending"]


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
def test_a_device_that_is_gone_between_two_tries_gets_nothing_and_the_others_are_told(
    connection: psycopg.Connection, between: LiteralString, because: str
) -> None:
    worker = register_worker(connection)
    number = waiting_on(connection, worker, "fcm:phone", "fcm:tablet")
    connection.execute(between)

    claimed = claim_one(connection, worker)
    record(connection, worker, outcome(claimed, **SENT))

    gone, told = deliveries(connection, number)
    assert claimed["address"] == "fcm:tablet"
    assert (gone["state"], gone["last_verdict"], gone["last_error"]) == ("failed", "unregistered", because)
    assert (told["state"], state(connection, number)) == ("sent", "sent")
    assert unbalanced(connection) == []


def test_a_device_that_was_deleted_and_registered_by_another_gets_nothing(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    number = waiting_on(connection, worker, "fcm:phone")
    connection.execute("delete from notify_worker.devices")
    register(connection, "u_43", "fcm:phone")

    assert claim(connection, worker) == []
    assert state(connection, number) == "unreachable"


def test_a_token_that_rotated_while_its_old_one_was_tried_is_looked_at_once_more(
    connection: psycopg.Connection,
) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:old")
    number = insert(connection, receiver_id="u_42")
    claimed = claim_one(connection, worker)
    register(connection, "u_42", "fcm:new")

    record(connection, worker, outcome(claimed, **UNREGISTERED))

    assert state(connection, number) == "pending"
    again = claim_one(connection, worker)
    record(connection, worker, outcome(again, **SENT))
    assert again["address"] == "fcm:new"
    assert [each["state"] for each in deliveries(connection, number)] == ["failed", "sent"]
    assert state(connection, number) == "sent"
    assert unbalanced(connection) == []


def test_who_has_no_other_device_is_unreachable_after_that_look(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:old")
    number = insert(connection, receiver_id="u_42")
    send(connection, worker, UNREGISTERED)

    ended = notification(connection, number)
    assert (ended["state"], ended["lease"]) == ("unreachable", None)
    assert ended["settled_at"] is not None
    assert claim(connection, worker) == []


def test_a_new_device_is_left_out_where_another_was_told(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone")
    register(connection, "u_42", "fcm:tablet")
    number = insert(connection, receiver_id="u_42")
    gone, told = claim(connection, worker)
    register(connection, "u_42", "fcm:new")

    record(connection, worker, outcome(gone, **UNREGISTERED), outcome(told, **SENT))

    assert state(connection, number) == "sent"
    assert claim(connection, worker) == []


WORDS = {
    "title": "secret title",
    "body": "secret body",
    "image": "https://example.org/secret.png",
    "params": {"order": "secret param"},
    "data": {"order": "secret data"},
    "message": {"apns": {"payload": {"aps": {"alert": "secret message"}}}},
}


def everything_about(connection: psycopg.Connection, receiver_id: str) -> str:
    found = rows(
        connection,
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


def live_with(connection: psycopg.Connection, worker: Worker, receiver_id: str) -> list[int]:
    """A receiver who was told one thing; another waits for a retry, a third is held, a fourth is scheduled."""
    register(connection, receiver_id, f"secret phone of {receiver_id}")
    register(connection, receiver_id, f"secret old phone of {receiver_id}")
    retire(connection, f"secret old phone of {receiver_id}")
    numbers = []
    came_to: list[Row] = [SENT, LATER, {"verdict": "unknown"}]
    for became in came_to:
        numbers.append(insert(connection, receiver_id=receiver_id, on_unknown="hold", **WORDS))
        record(connection, worker, *[outcome(each, **became) for each in claim(connection, worker)])
    tomorrow = value(connection, "select now() + interval '1 day'")
    return [*numbers, insert(connection, receiver_id=receiver_id, send_at=tomorrow, **WORDS)]


def test_a_person_who_is_forgotten_leaves_counts_and_no_words(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    numbers, hers = live_with(connection, worker, "u_42"), live_with(connection, worker, "u_43")
    others = everything_about(connection, "u_43")
    assert "secret" in everything_about(connection, "u_42")

    blanked = forget(connection, "u_42")

    assert blanked == len(numbers)
    assert "secret" not in everything_about(connection, "u_42")
    assert [state(connection, number) for number in numbers] == ["sent", "cancelled", "cancelled", "cancelled"]
    assert [len(deliveries(connection, number)) for number in numbers] == [1, 1, 1, 0]
    assert everything_about(connection, "u_43") == others
    assert len(hers) == len(numbers)
    assert unbalanced(connection) == []


def test_a_person_who_is_forgotten_is_never_sent_to_again(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    live_with(connection, worker, "u_42")
    forget(connection, "u_42")
    connection.execute("update notify_worker.notifications set due_at = now()")

    new = insert(connection, receiver_id="u_42")

    assert claim(connection, worker) == []
    assert state(connection, new) == "unreachable"
    devices = rows(connection, "select retired_at, retired_reason from notify_worker.devices")
    assert {each["retired_reason"] for each in devices} == {"the receiver was forgotten"}
    assert all(each["retired_at"] for each in devices)


def test_what_is_leased_while_its_receiver_is_forgotten_ends_as_it_ends(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "secret phone")
    sent, retried = (insert(connection, receiver_id="u_42", **WORDS) for _ in range(2))
    claimed = claim(connection, worker)

    blanked = forget(connection, "u_42")
    between = state(connection, sent)
    record(connection, worker, outcome(claimed[0], **SENT), outcome(claimed[1], **RETRY))

    assert (blanked, between) == (2, "pending")
    assert [state(connection, number) for number in (sent, retried)] == ["sent", "cancelled"]
    assert "secret" not in everything_about(connection, "u_42")
    assert claim(connection, worker) == []
    assert unbalanced(connection) == []


def test_what_a_dead_worker_held_of_a_forgotten_person_is_not_sent(
    database: str, connection: psycopg.Connection
) -> None:
    register(connection, "u_42", "secret phone")
    number = insert(connection, receiver_id="u_42", **WORDS)
    with connected(database) as session:
        dead = register_worker(session)
        claim_one(session, dead)
    forget(connection, "u_42")
    rescue_worker(connection, dead)

    assert claim(connection, register_worker(connection)) == []
    assert state(connection, number) == "cancelled"


def test_the_phone_of_a_forgotten_person_may_be_registered_by_another(connection: psycopg.Connection) -> None:
    worker = register_worker(connection)
    register(connection, "u_42", "fcm:phone")
    forget(connection, "u_42")

    register(connection, "u_43", "fcm:phone")

    insert(connection, receiver_id="u_43")
    assert addresses(claim(connection, worker)) == ["fcm:phone"]


def test_nobody_is_forgotten_where_there_is_nobody(connection: psycopg.Connection) -> None:
    insert(connection, address="fcm:phone")

    assert forget(connection, "u_42") == 0
