"""A local FCM for demos, development and tests: OAuth2, `messages:send`, a page of what phones show, and every fault.

It knows nothing of the worker: whoever speaks HTTP can use it. How an address asks for a fault stands in `faults.py`, what
can be switched while it runs in `switches.py`.
"""

from notify_worker.sandbox.phones import Shown
from notify_worker.sandbox.thread import Sandbox, start

__all__ = ["Sandbox", "Shown", "start"]
