"""Outcomes are recorded, even while some of them cannot be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from io import StringIO
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest

from notify_worker.database.store import Store
from notify_worker.model import Attempt, Message, Outcome, Pause, Project, Scope, Verdict
from notify_worker.pipeline.heartbeat import Heartbeat
from notify_worker.pipeline.pipeline import Pipeline
from notify_worker.senders import Sender
from notify_worker.senders.console import ConsoleSender
from notify_worker.senders.factory import LazySender
from notify_worker.settings import Settings
from tests.support.store_calls import Connection, connected
from tests.support.waiting import auntil

QUOTA = Outcome(
    Verdict.PAUSED,
    http_status=429,
    error_code="RESOURCE_EXHAUSTED",
    error="429",
    pause=Pause(Scope.PROJECT, timedelta(minutes=1)),
    asked_to_wait=timedelta(minutes=1),
)


class Scripted(ConsoleSender):
    """A plugin sender, which answers by address, and accepts every other message."""

    def __init__(self, answers: dict[str, Outcome]) -> None:
        super().__init__(StringIO())
        self._answers = answers
        self.sent: list[str] = []

    async def send(self, message: Message) -> Outcome:
        self.sent.append(str(message.body["token"]))
        return self._answers.get(self.sent[-1]) or Outcome(Verdict.SENT, http_status=200, provider_message_id="1")


@asynccontextmanager
async def working(database: str, sender: Scripted) -> AsyncIterator[Pipeline]:
    """A worker's claim, render, send and record, by this sender for each project."""

    async def opener() -> Sender:
        return sender

    def open_sender(project: Project) -> LazySender:
        return LazySender(opener, project.name)

    settings = Settings()
    async with Store(database) as store:
        pipeline = Pipeline(store, Heartbeat(database, settings.lease), open_sender, settings)
        try:
            yield pipeline
        finally:
            await pipeline.close()


async def test_a_locked_project_row_delays_no_other_project(database: str, connection: Connection) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    stopped = connection.insert(address="stopped")
    others = [connection.insert(project="orders", address=f"phone-{number}") for number in range(20)]
    sender = Scripted({"stopped": QUOTA})

    async with working(database, sender) as pipeline:
        with connected(database) as operator:
            operator.execute("begin")
            operator.execute("select notify_worker.pause('default', 'maintenance')")
            operator.execute("select from notify_worker.projects for update")

            await pipeline.drain(within=2)
            assert {connection.state(number) for number in others} == {"sent"}
            assert await is_paused(connection), "its incident is reported nevertheless"

            connection.insert(project="orders", address="phone-20")
            for _ in range(150):
                connection.insert()
            await pipeline.drain(within=2)
            assert sender.sent.count("phone-20") == 1
            assert connection.value("select count(*) from notify_worker.notifications where lease is not null") == 0
            operator.execute("rollback")

        await auntil("its incident is reported", lambda: is_paused(connection), within=5)

    assert sorted(sender.sent) == sorted({*sender.sent}), "nothing was sent twice"
    assert connection.state(stopped) == "pending"
    assert connection.unbalanced() == []


async def test_an_incident_that_can_not_be_reported_yet_delays_no_other_project(
    database: str, connection: Connection
) -> None:
    connection.execute("insert into notify_worker.projects (name) values ('orders')")
    connection.insert(address="stopped")
    others = [connection.insert(project="orders", address=f"phone-{number}") for number in range(20)]

    async with working(database, Scripted({"stopped": QUOTA})) as pipeline:
        with connected(database) as other_worker, other_worker.transaction():
            other_worker.execute("select notify_worker.lock_project('default')")
            await pipeline.drain(within=2)
            assert {connection.state(number) for number in others} == {"sent"}
            assert not await is_paused(connection)

        await auntil("its incident is reported", lambda: is_paused(connection), within=5)


async def is_paused(connection: Connection) -> bool:
    return bool(connection.value("select count(*) from notify_worker.incidents where ended_at is null"))


@pytest.mark.parametrize(
    "odd",
    [
        {"error": ValueError("no text")},
        {"error": "\ud800"},
        {"error": "a \x00"},
        {"provider_message_id": b"bytes"},
        {"http_status": 10**12},
        {"error_code": ["a list"]},
    ],
    ids=str,
)
async def test_an_odd_outcome_of_a_plugin_is_recorded_and_delays_no_other(
    database: str, connection: Connection, odd: dict[str, Any]
) -> None:
    strange = connection.insert(address="strange")
    others = [connection.insert(address=f"phone-{number}") for number in range(5)]
    sender = Scripted({"strange": Outcome(Verdict.SENT, **odd)})

    async with working(database, sender) as pipeline:
        await pipeline.drain(within=5)

    assert {connection.state(number) for number in (strange, *others)} == {"sent"}
    assert [attempt["verdict"] for attempt in connection.attempts(strange)] == ["sent"]
    assert len(sender.sent) == 6


async def test_an_outcome_that_the_database_refuses_is_named_in_the_log_and_delays_no_other(
    database: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute(
        "alter table notify_worker.stored_attempts add constraint no_teapots check (http_status is distinct from 418)"
    )
    refused = connection.insert(address="teapot")
    others = [connection.insert(address=f"phone-{number}") for number in range(5)]

    async with working(database, Scripted({"teapot": Outcome(Verdict.FAILED, http_status=418)})) as pipeline:
        await pipeline.drain(within=5)

    assert {connection.state(number) for number in others} == {"sent"}
    assert connection.state(refused) == "pending"
    delivery_id = connection.value("select id from notify_worker.stored_deliveries where notification_id = %s", refused)
    logged = [record for record in caplog.records if getattr(record, "event", None) == "outcome_refused"]
    assert [vars(record)["delivery_id"] for record in logged] == [delivery_id]


async def test_a_device_that_registers_while_an_outcome_waits_for_a_connection_is_not_retired(
    database: str, connection: Connection
) -> None:
    """The outcome is recorded with the age of its request, which has to grow while it waits."""
    connection.register_device("ada", "fcm:1")
    connection.insert(receiver_id="ada")
    worker = connection.register_worker()

    async with Store(database) as store:
        (delivery,) = (await store.claim(worker.id, uuid4(), 10, {"default": 1000}, timedelta(minutes=1))).deliveries
        started = monotonic()
        gone = Attempt(delivery, Outcome(Verdict.UNREGISTERED, http_status=404), started, started, 1)
        async with store._pool.connection(), store._pool.connection():
            waits = asyncio.create_task(store.record(worker.id, [gone]))
            await auntil("it waits", lambda: waiting_for_a_connection(store), within=5)
            connection.register_device("ada", "fcm:1")
        await waits

    assert connection.value("select retired_at from notify_worker.devices") is None


async def waiting_for_a_connection(store: Store) -> bool:
    return store._pool.get_stats()["requests_waiting"] > 0
