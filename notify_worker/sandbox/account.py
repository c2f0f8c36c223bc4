"""The sandbox's service account: its key file, the OAuth 2.0 grant, and the bearer tokens that it granted."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex, token_urlsafe
from time import monotonic

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError

from notify_worker.errors import CredentialsError
from notify_worker.model import Json
from notify_worker.sandbox.answers import EXPIRED_BEARER, NO_BEARER, UNKNOWN_BEARER, Answer, RefusedError, ok

EMAIL = "sandbox@sandbox.iam.gserviceaccount.com"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
GOOGLE_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105  an address, not a token
"""google-auth names this as the audience, whatever `token_uri` says."""
SCOPES = {
    "https://www.googleapis.com/auth/firebase.messaging",
    "https://www.googleapis.com/auth/cloud-platform",
}


@dataclass(frozen=True, slots=True)
class Bearer:
    """A granted bearer token: its number, and its end by `time.monotonic()`."""

    number: int
    ends_at: float


class Account:
    """The service account whose tokens the sandbox accepts."""

    def __init__(self, path: Path, url: str, project: str) -> None:
        self._token_uri = f"{url}/token"
        self._bearers: dict[str, Bearer] = {}
        self._revoked = 0
        key_id, private_key = own_key(path) or new_key()
        self._public_key = public_half(private_key)
        write(path, account_info(key_id, private_key, self._token_uri, project))

    def grant(self, form: Mapping[str, str], lifetime: int, *, refuse: bool = False) -> Answer:
        """Grant a bearer token for a signed JWT.

        Args:
            form: The form that was posted.
            lifetime: Seconds for which the token is valid.
            refuse: Refuse the grant, as Google does for a deleted key.

        Raises:
            RefusedError: Carries the error of OAuth 2.0 (RFC 6749, section 5.2).
        """
        if form.get("grant_type") != GRANT:
            raise refusal("unsupported_grant_type", "Invalid grant_type.")
        claims = self._claims(form.get("assertion", ""))
        if refuse:
            raise refusal("invalid_grant", "Invalid JWT Signature.")
        if claims.get("iss") != EMAIL:
            raise refusal("invalid_grant", "Invalid grant: account not found")
        if not SCOPES & set(str(claims.get("scope", "")).split()):
            raise refusal("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        token = f"ya29.{token_urlsafe(48)}"
        self._bearers[f"Bearer {token}"] = Bearer(len(self._bearers) + 1, monotonic() + lifetime)
        return ok({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"})

    def _claims(self, assertion: str) -> Mapping[str, Json]:
        try:
            claims: Mapping[str, Json] = jwt.decode(  # type: ignore[no-untyped-call]
                assertion, certs=self._public_key, audience=[GOOGLE_TOKEN_URI, self._token_uri]
            )
        except (GoogleAuthError, ValueError, TypeError) as wrong:
            signed = "signature" not in str(wrong)
            raise refusal("invalid_grant", "Invalid JWT." if signed else "Invalid JWT Signature.") from wrong
        return claims

    def refuse(self, authorization: str | None) -> Answer | None:
        """Return the answer to a wrong `Authorization` header; None if it is right."""
        bearer = self._bearers.get(authorization or "")
        if bearer and bearer.number > self._revoked:
            return EXPIRED_BEARER if bearer.ends_at <= monotonic() else None
        return UNKNOWN_BEARER if authorization and authorization.startswith("Bearer ") else NO_BEARER

    def revoke(self, *, revoked: bool) -> None:
        """Refuse all bearer tokens that were granted so far, or accept them again."""
        self._revoked = len(self._bearers) if revoked else 0


def refusal(code: str, description: str) -> RefusedError:
    """Build the refusal of a grant."""
    return RefusedError(Answer(400, json.dumps({"error": code, "error_description": description}).encode()))


def own_key(path: Path) -> tuple[str, str] | None:
    """Read the key of an earlier run, so that workers that have loaded it go on after a restart of the sandbox.

    Raises:
        CredentialsError: Another program wrote the file: a real key must not be overwritten.
    """
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text())
        if info["client_email"] == EMAIL:
            return info["private_key_id"], info["private_key"]
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise CredentialsError(f"{path} exists, and the sandbox did not write it. Choose another file for its credentials.")


def new_key() -> tuple[str, str]:
    """Generate a key and its id."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return token_hex(20), pem.decode()


def public_half(private_key: str) -> bytes:
    """Return the public key, which verifies signatures."""
    key = serialization.load_pem_private_key(private_key.encode(), password=None)
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def account_info(key_id: str, private_key: str, token_uri: str, project: str) -> Mapping[str, str]:
    """Return the content of a service-account file."""
    return {
        "type": "service_account",
        "project_id": project,
        "private_key_id": key_id,
        "private_key": private_key,
        "client_email": EMAIL,
        "client_id": "1",
        "token_uri": token_uri,
    }


def write(path: Path, info: Mapping[str, str]) -> None:
    """Write the file atomically, readable by its owner alone.

    Raises:
        CredentialsError: The file can't be written.
    """
    draft = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(info, file, indent=2)
        draft.replace(path)
    except OSError as error:
        raise CredentialsError(f"{path} can't be written: {error.strerror}. Choose another file.") from error
