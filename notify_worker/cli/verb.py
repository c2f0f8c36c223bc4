"""The base of all verbs: exit codes, the check of the environment, and the handling of errors."""

import logging
from typing import Any

import click

from notify_worker.errors import NotifyWorkerError
from notify_worker.settings import Settings

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

log = logging.getLogger(__name__)


class VerbError(click.ClickException):
    """A verb can't run: wrong arguments or settings, or an error of the database."""

    exit_code = EXIT_USAGE


class Verb(click.Command):
    """One verb. Its function returns an exit code, or None for EXIT_OK.

    Args:
        example: The command that its `--help` shows at the end.
    """

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.short_help = (self.help or "").partition("\n")[0]
        self.epilog = f"\b\nExample:\n  {example}"

    def invoke(self, ctx: click.Context) -> int:
        """Check the environment, run the verb, and return its exit code.

        Raises:
            VerbError: Carries the message of an error of ours or of the database.
        """
        import psycopg  # noqa: PLC0415  --help does not need it

        try:
            Settings.from_env()  # every verb refuses an unknown setting
            code = super().invoke(ctx)
        except (NotifyWorkerError, psycopg.Error) as error:
            if is_verbose(ctx):
                log.exception("%s failed", self.name, extra={"event": "verb_failed", "verb": self.name})
            raise VerbError(message_of(error)) from None
        except UnicodeEncodeError:
            raise VerbError("an argument is not UTF-8") from None
        except KeyboardInterrupt:
            return EXIT_FAILED
        return EXIT_OK if code is None else code


def is_verbose(ctx: click.Context) -> bool:
    """Return True if `-v` was given before the verb."""
    return bool(ctx.find_root().params["verbose"])


def message_of(error: Exception) -> str:
    """Return the message to print. Of a database error: message and hint, not DETAIL, which may contain an address."""
    diagnostics = getattr(error, "diag", None)
    if diagnostics is None:
        return str(error)
    primary = diagnostics.message_primary or str(error).partition("\n")[0]
    return f"{primary}. {diagnostics.message_hint}" if diagnostics.message_hint else primary


class Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split at the first equals sign."""
        if isinstance(value, tuple):
            return value
        name, equals, rest = value.partition("=")
        if not equals:
            self.fail(f'"{value}" is not NAME=VALUE', param, ctx)
        return name, rest


class FaultRate(click.ParamType[tuple[str, float]]):
    """FAULT=RATE, such as 503=0.1."""

    name = "fault=rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Split at the first equals sign, and read what follows as a number."""
        name, rate = Pair().convert(value, param, ctx)
        try:
            return name, float(rate)
        except ValueError:
            self.fail(f'"{rate}" is not a rate from 0 to 1', param, ctx)
