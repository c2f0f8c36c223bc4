"""The entry point of `notify-worker`: runs a verb and turns its errors into a message and an exit code.

`--help` and shell completion import all modules of this package. To keep them fast, packages that only a running verb needs
(psycopg, alembic, aiohttp, rich) are imported inside the functions that use them.
"""

import logging
import os
import sys
from collections.abc import Sequence

import click

from notify_worker.cli import commands, database_commands, logs
from notify_worker.cli.verb import EXIT_FAILED

PROGRAM = "notify-worker"
COMPLETION = """\b
To complete verbs and options in bash, add this line to ~/.bashrc:
  eval "$(_NOTIFY_WORKER_COMPLETE=bash_source notify-worker)"
For zsh and fish, use zsh_source and fish_source.

Exit codes: 0 success, 1 failure, 2 could not run (wrong arguments or settings, or a database error).
"""

log = logging.getLogger(__name__)


class App(click.Group):
    """All verbs; `--help` lists them in the order in which a new user needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names of the verbs in the order of their declaration, not of the alphabet."""
        return list(self.commands)


@click.group(
    cls=App,
    commands=[*commands.VERBS, *database_commands.VERBS],
    no_args_is_help=False,
    subcommand_metavar="VERB [ARGS]...",
    epilog=COMPLETION,
    context_settings={"max_content_width": 100},
)
@click.option("-v", "--verbose", is_flag=True, help="Log more, and show the traceback of an error.")
@click.version_option(package_name=PROGRAM, message="%(prog)s %(version)s")
def app(*, verbose: bool) -> None:
    """Push notifications out of your Postgres transaction."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its code: 0 success, 1 failure, 2 if it could not run.

    Args:
        arguments: The arguments after the program's name; `sys.argv[1:]` if None.

    Raises:
        SystemExit: Always.

    Example:
        main(["explain", "order:42:paid"])
    """
    if in_json():
        logs.configure("json", logging.WARNING)
    try:
        code = app.main(arguments, prog_name=PROGRAM, standalone_mode=False, color=colour())
    except click.Abort:
        code = EXIT_FAILED
    except click.ClickException as error:
        report(error)
        code = error.exit_code
    sys.exit(code)


def in_json() -> bool:
    """Return True if the log is JSON. Not read from Settings, which may be what is wrong."""
    return os.environ.get("NOTIFY_WORKER_LOG_FORMAT") == "json"


def colour() -> bool | None:
    """Return False if NO_COLOR is set (https://no-color.org), else None: colours on a terminal, none in a pipe."""
    return False if os.environ.get("NO_COLOR") else None


def report(error: click.ClickException) -> None:
    """Write an error to stderr: one message, preceded by the verb's usage if the error is about its arguments."""
    message = error.format_message()
    if in_json():
        log.error(message, extra={"event": "command_failed", "exit_code": error.exit_code})
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n", err=True)
    name = click.style(f"{PROGRAM}:", fg="red")
    click.echo(f"{name} {message}", err=True, color=colour())
