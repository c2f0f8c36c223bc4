"""A local FCM for demos, development and tests, over HTTP/1.1: OAuth 2.0, `messages:send`, and every known fault.

Any HTTP client can use it, such as Google's firebase-admin.

    POST /v1/projects/PROJECT/messages:send     send a message, as with FCM's HTTP v1
    POST /token                                 the OAuth 2.0 grant for the sandbox's service account
    GET  /  and  GET /shown                     the messages that phones would show, as a page and as JSON
    GET and POST /switch                        read and change the switches

A request passes through these modules, in this order:

    server      the thread, the port, and `Sandbox`, the object that tests hold
    routes      the addresses above, as an aiohttp application
    fcm         the send request as a whole, with the quota and the counts of each Firebase project
    account     the service account and its bearer tokens
    fields      the message: the types of its fields, as proto3 JSON
    checks      the message: FCM's further rules
    faults      simulated faults, by address (`once503:phone`) or by rate
    answers     each answer, in FCM's own words
    phones      the messages that phones would show, as objects, as JSON and as a page
    switches    the settings that can be changed while the sandbox runs

Example:
    with sandbox.start(Path("sandbox.json"), latency=0.1) as box:
        ...  # NOTIFY_WORKER_FCM_URL=box.url GOOGLE_APPLICATION_CREDENTIALS=sandbox.json
        assert box.accepted == 1
"""

from notify_worker.sandbox.phones import Shown
from notify_worker.sandbox.server import Sandbox, start

__all__ = ["Sandbox", "Shown", "start"]
