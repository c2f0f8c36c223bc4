"""The exceptions that notify_worker raises. FCM's answers are never exceptions, but an `Outcome`."""


class NotifyWorkerError(Exception):
    """The base of all exceptions of notify_worker. Its text tells the user what is wrong and what to do."""


class SettingsError(NotifyWorkerError):
    """Environment variables are invalid; the text lists all of them."""


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
    """Files of the installed package are missing."""
