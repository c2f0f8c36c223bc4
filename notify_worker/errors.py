"""Every exception that notify_worker raises, drawn as a tree.

    NotifyWorkerError
    ├── SettingsError           the environment is not what it has to be; says all that is wrong at once
    ├── DatabaseUnavailable     no connection can be made: away, wrong password, wrong name
    ├── SchemaMismatch          the schema in the database is missing, older or newer than this release
    │   └── SchemaIsOlder       it was not migrated yet
    ├── CredentialsError        the credentials of a project can't be used
    ├── EmbeddedServerError     the embedded PostgreSQL does not start, or another process runs it
    └── BrokenInstallation      files of this package are missing

What FCM answers is never an exception: it is an `Outcome`.
"""


class NotifyWorkerError(Exception):
    """Whatever notify_worker raises on purpose: one sentence for people, without a traceback."""


class SettingsError(NotifyWorkerError):
    """The environment is not what it has to be."""


class DatabaseUnavailable(NotifyWorkerError):
    """No connection to the database can be made."""


class SchemaMismatch(NotifyWorkerError):
    """The schema in the database is missing, older or newer than this release."""


class SchemaIsOlder(SchemaMismatch):
    """The schema in the database was not migrated to this release yet."""


class CredentialsError(NotifyWorkerError):
    """The credentials of a project can't be used."""


class EmbeddedServerError(NotifyWorkerError):
    """The embedded PostgreSQL does not start, or another process runs it."""


class BrokenInstallation(NotifyWorkerError):
    """Files of this package are missing."""
