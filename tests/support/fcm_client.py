"""An FCM client without our code: Google's own credentials, over httpx."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from google.auth.crypt import RSASigner
from google.oauth2.service_account import Credentials

from notify_worker.sandbox import Sandbox

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
SEND = "/v1/projects/sandbox/messages:send"


class GoogleAuthTransport:
    """What google-auth asks of a transport, over httpx."""

    class Answer:
        def __init__(self, answer: httpx.Response) -> None:
            self.status, self.headers, self.data = answer.status_code, answer.headers, answer.content

    def __call__(self, url: str, method: str = "GET", body: Any = None, headers: Any = None, **_: Any) -> Answer:
        return self.Answer(httpx.request(method, url, content=body, headers=headers, verify=False))


@cache
def signer(private_key: str) -> RSASigner:
    """Read a key: it takes longer than most tests here."""
    return RSASigner.from_string(private_key)  # type: ignore[no-any-return,no-untyped-call]


def account(credentials: Path, scope: str = SCOPE) -> Any:
    info = json.loads(credentials.read_text())
    return Credentials(signer(info["private_key"]), info["client_email"], info["token_uri"], scopes=[scope])  # type: ignore[no-untyped-call]


def client_of(box: Sandbox) -> httpx.Client:
    ours = account(box.credentials)
    ours.refresh(GoogleAuthTransport())
    return httpx.Client(base_url=box.url, headers={"Authorization": f"Bearer {ours.token}"}, timeout=5, verify=False)


def message_to(address: str, **fields: Any) -> dict[str, Any]:
    return {"message": {"token": address, "notification": {"title": "Thank you"}, **fields}}


def send(client: httpx.Client, address: str, **fields: Any) -> httpx.Response:
    return client.post(SEND, json=message_to(address, **fields))
