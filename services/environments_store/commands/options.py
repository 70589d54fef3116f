"""What the commands share: options, settings, error messages and confirmations."""

import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from broker import BrokerOptionsError
from broker.cli.output import is_person, print_error
from broker.cli.running import run
from broker.logs import configure_logs
from services.environments_store.config import Config, load_config
from services.environments_store.errors import ConfigError, OperationError

__all__ = [
    "AsJson",
    "CreateTable",
    "DatabaseUrl",
    "Level",
    "Yes",
    "confirm",
    "read_config",
    "run_command",
    "typer_group",
]

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url", help="postgresql://… or sqlite:///path. Default: $DATABASE_URL.", show_default=False
    ),
]
Level = Annotated[
    str | None, typer.Option(help="debug, info, warning or error. Default: $LOG_LEVEL.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
CreateTable = Annotated[
    bool,
    typer.Option("--create-table", help="Create the tables even if another schema has them."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def typer_group(help: str) -> typer.Typer:
    """A program or a group of commands."""
    return typer.Typer(help=help, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def read_config(**flags: Any) -> Config:
    """Read the settings and configure the logs. An invalid setting ends the command with exit code 2."""
    try:
        config = load_config(os.environ, **flags)
    except ConfigError as error:
        print_error(str(error))
        raise typer.Exit(2) from None
    configure_logs(config.log_level, config.log_format)
    return config


def run_command(main: Callable[[], Awaitable[int]]) -> None:
    """Run a command; its result is the exit code, and an error is one line on standard error."""

    async def guarded() -> int:
        try:
            return await main()
        except (ConfigError, BrokerOptionsError) as error:
            print_error(str(error))
            return 2

    raise typer.Exit(run(guarded))


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation unless `yes`. Raises OperationError when it is refused or cannot be asked for."""
    if yes:
        return
    if not is_person() or not os.isatty(0):
        raise OperationError(f"{question} There is no terminal to ask on: pass --yes to confirm. Nothing was done.")
    if not typer.confirm(question, err=True):
        raise OperationError("Nothing was done.")
