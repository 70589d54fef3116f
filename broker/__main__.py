"""The command `broker`: run services, and talk to a cluster from the shell."""

import typer

from broker.cli.commands import actions, broadcast, call, emit, listen, nodes, ping, run, services
from broker.cli.output import use_utf8

app = typer.Typer(
    help="Run Moleculer services, and talk to a cluster from the shell.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (run, call, emit, broadcast, listen, nodes, services, actions, ping):
    app.command()(command)


def main() -> None:
    """The entry point of the script `broker`."""
    use_utf8()
    app()


if __name__ == "__main__":
    main()
