"""Every exception that notify_worker raises, drawn as a tree, and the hint for a mistyped name.

    NotifyWorkerError
    ├── SettingsError           the environment is wrong; lists every problem
    ├── DatabaseUnavailable     no connection can be made: server down, wrong password, wrong name
    ├── SchemaMismatch          the schema in the database is missing, older or newer than this release
    │   └── SchemaIsOlder       it has not been migrated yet
    ├── CredentialsError        the credentials of a project can't be used
    ├── EmbeddedServerError     the embedded PostgreSQL does not start, or another process runs it
    └── BrokenInstallation      files of this package are missing

An answer of FCM is never an exception: it is an `Outcome`.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class NotifyWorkerError(Exception):
    """The base of all our errors. Its text says what is wrong and what to do, so that no traceback is needed."""


class SettingsError(NotifyWorkerError):
    """The environment is wrong. Its text lists every problem, one line each."""


class DatabaseUnavailable(NotifyWorkerError):
    """No connection to the database can be made: it is away, or the URL is wrong."""


class SchemaMismatch(NotifyWorkerError):
    """The schema in the database is missing, older or newer than this release."""


class SchemaIsOlder(SchemaMismatch):
    """The schema in the database has not been migrated to this release yet."""


class CredentialsError(NotifyWorkerError):
    """The credentials of a project can't be used."""


class EmbeddedServerError(NotifyWorkerError):
    """The embedded PostgreSQL does not start, or another process runs it."""


class BrokenInstallation(NotifyWorkerError):
    """Files of this package are missing."""


def did_you_mean(name: str, known: Iterable[str], *, form: str = "{}", otherwise: str) -> str:
    """Return the hint of an error about an unknown name: the closest known name in this form, else another sentence."""
    closest = get_close_matches(name, known, n=1)
    return f"Did you mean {form.format(closest[0])}?" if closest else otherwise
