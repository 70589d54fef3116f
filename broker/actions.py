"""An action bound to a running broker: its decoder and its middlewares, prepared once when it is registered."""

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from broker.codec import Codec, ValueDecoder, json_text
from broker.context import Context
from broker.middleware import Middleware, Next, compose
from broker.schema import ActionDefinition


def bind(definition: ActionDefinition, service: Any, codec: Codec, middlewares: Sequence[Middleware]) -> Next:
    """A function from context to result: middlewares, then typed parameters, then the handler."""
    parameters, handler = definition.parameters, definition.handler
    streams = inspect.isasyncgenfunction(handler)  # its call gives the stream; there is nothing to wait for
    if parameters is None:

        async def invoke(ctx: Context) -> Any:
            ctx.service = service
            return handler(ctx) if streams else await handler(ctx)

    else:
        decoder = codec.value_decoder(parameters.kind)

        async def invoke(ctx: Context) -> Any:
            ctx.service = service
            values = _typed(definition, ctx, decoder)
            return handler(ctx, **values) if streams else await handler(ctx, **values)

    return compose(middlewares, invoke)


def _typed(definition: ActionDefinition, ctx: Context, decoder: ValueDecoder) -> dict[str, Any]:
    """The arguments of the handler. Raises ValidationError with every violation, the caller and the action in each."""
    parameters = definition.parameters
    assert parameters is not None
    raw = ctx.raw_params
    try:
        values = parameters.convert(ctx.params, json_text) if raw is None else decoder(raw)
    except msgspec.ValidationError as error:
        failure = parameters.violations(ctx.params, error)
        for item in failure.data:
            item |= {"nodeID": ctx.node_id, "action": definition.name}
        raise failure from None
    return parameters.arguments(values)
