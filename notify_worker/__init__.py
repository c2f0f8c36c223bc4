"""Push notifications out of your Postgres transaction."""

from notify_worker.errors import NotifyWorkerError
from notify_worker.producer import defer, defer_async, defer_many, defer_many_async

__all__ = ["NotifyWorkerError", "defer", "defer_async", "defer_many", "defer_many_async"]
