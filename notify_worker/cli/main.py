"""The entry point of `notify-worker`: knows the verbs, runs one, and turns its errors into a message and an exit code.

`--help` and shell completion import every module of this package, but none that only a running verb needs: psycopg,
alembic, aiohttp and rich are imported inside the functions that use them.
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
Completion of verbs and options, here for bash; put the line into ~/.bashrc to keep it:
  eval "$(_NOTIFY_WORKER_COMPLETE=bash_source notify-worker)"
For zsh and fish write zsh_source and fish_source.

Exit codes: 0 success, 1 failure, 2 wrong usage or nothing to work with.
"""

log = logging.getLogger(__name__)


class App(click.Group):
    """The group of all verbs, which `--help` lists in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names of the verbs in the order of their declaration."""
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
    """Run one verb and exit with its code: 0 success, 1 failure, 2 wrong usage or nothing to work with.

    Args:
        arguments: what follows the name of the program; None: `sys.argv[1:]`.

    Raises:
        SystemExit: always.

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
    """Tell whether stderr has one JSON object a line. Read here, since the other settings may be what is wrong."""
    return os.environ.get("NOTIFY_WORKER_LOG_FORMAT") == "json"


def colour() -> bool | None:
    """Return False where NO_COLOR forbids colours (https://no-color.org); None: a terminal gets them, a pipe does not."""
    return False if os.environ.get("NO_COLOR") else None


def report(error: click.ClickException) -> None:
    """Write an error to stderr: one message, after the usage of the verb if the error is about its arguments."""
    message = error.format_message()
    if in_json():
        log.error(message, extra={"event": "command_failed", "exit_code": error.exit_code})
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n", err=True)
    name = click.style(f"{PROGRAM}:", fg="red")
    click.echo(f"{name} {message}", err=True, color=colour())
