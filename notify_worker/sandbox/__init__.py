"""A local FCM for demos, development and tests, over HTTP/1.1: OAuth 2.0, `messages:send`, and every known fault.

It knows nothing of the worker: any HTTP client can use it, such as Google's firebase-admin.

    POST /v1/projects/PROJECT/messages:send     as FCM's HTTP v1
    POST /token                                 the OAuth 2.0 grant for the key in the sandbox's service-account file
    GET  /  and  GET /shown                     the messages that phones would show, as a page and as JSON
    GET and POST /switch                        read and change the switches

A request passes through the modules in this order:

    server      the thread, the port, and `Sandbox`, the object that tests hold
    routes      the addresses above, as an aiohttp application
    account     the bearer token
    projects    quota and counts of each Firebase project
    fields      the message: types of its fields, as proto3 JSON
    checks      the message: FCM's further rules
    faults      what goes wrong, by address (`once503:phone`) or by rate
    fcm         the send request as a whole
    answers     each answer in FCM's own words
    phones      what was accepted and is shown; `page` renders it
    switches    what can be changed while the sandbox runs

Example:
    with sandbox.start(Path("sandbox.json"), latency=0.1) as box:
        ...  # NOTIFY_WORKER_FCM_URL=box.url GOOGLE_APPLICATION_CREDENTIALS=sandbox.json
        assert box.accepted == 1
"""

from notify_worker.sandbox.phones import Shown
from notify_worker.sandbox.server import Sandbox, start

__all__ = ["Sandbox", "Shown", "start"]
