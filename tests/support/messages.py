"""A claimed delivery, and the message rendered from it."""

from collections.abc import Mapping
from uuid import UUID

from notify_worker.model import Content, Delivery, Json, Message, OnUnknown
from notify_worker.pipeline.render import render

DELIVERY = Delivery(
    id=7,
    notification_id=42,
    lease=UUID(int=1),
    worker_id=1,
    start_by=float("inf"),
    project="default",
    kind="token",
    address="fcm:abc",
    platform="android",
    on_unknown=OnUnknown.RESEND,
    priority=None,
    attempts=0,
    last_attempt_number=0,
    probe=False,
    expires_in=86400,
    expires_at=1_800_000_000,
    expires_by=float("inf"),
    tag="0badcafe-42",
    inline=Content(title="Thank you"),
    campaign_name=None,
    campaign=None,
    params={},
)
ID = {"notification_id": "42"}
TAG = DELIVERY.tag
ADDRESSES = {
    "token": "fcm:abc",
    "fid": "cQ4nAbcdRE2mxyz0123456",
    "topic": "tents-and.more_~%",
    "condition": "'tents' in topics && ('red' in topics || !('big' in topics))",
}
"""An address of each kind."""


def body(delivery: Delivery) -> Mapping[str, Json]:
    message = render(delivery)
    assert isinstance(message, Message), message
    return message.body


def nested(depth: int) -> Json:
    value: Json = "deep"
    for _ in range(depth):
        value = {"a": value}
    return value
