"""The public path of the procrastinate app: `procrastinate --app=notify_worker.worker.app worker`."""

from notify_worker.process.tasks import app

__all__ = ["app"]
