"""Options that several commands share."""

from typing import Annotated

import typer

from broker.logs import LogFormat

DEFAULT_NATS = "nats://127.0.0.1:4222"

# Every option of the broker can also be set by the name that it has in other programs, `BROKER_…`.
NatsUrl = Annotated[
    str,
    typer.Option("--nats-url", envvar=["NATS_URL", "BROKER_TRANSPORTER"], help="NATS servers, separated by commas."),
]
Namespace = Annotated[str, typer.Option(envvar=["NAMESPACE", "BROKER_NAMESPACE"], help="The cluster's namespace.")]
NodeId = Annotated[
    str | None,
    typer.Option("--node-id", envvar=["NODE_ID", "BROKER_NODE_ID"], help="This node's id; made when not given."),
]
ProtocolVersion = Annotated[
    str | None,
    typer.Option("--protocol", envvar="BROKER_PROTOCOL", help="4 or 5: speak with Moleculer 0.14 or 0.15 alone."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
Everything = Annotated[bool, typer.Option("--all", help="Internal ones too, such as $node.")]
LogLevel = Annotated[str, typer.Option("--log-level", envvar="LOG_LEVEL", help="debug, info, warning or error.")]
Format = Annotated[LogFormat, typer.Option("--log-format", envvar="LOG_FORMAT", help="text or json.")]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="key=value or key=@FILE, the value JSON or else text; repeatable."),
]
Meta = Annotated[str | None, typer.Option(help="Meta as a JSON object, or @FILE.")]
