"""The innermost part of a chain: the handler, with typed parameters where it takes them."""

import inspect
from collections.abc import Callable
from typing import Any

import anyio
import msgspec

from broker.cancellation import invoke_user
from broker.context import Context, Next
from broker.errors import first_error
from broker.protocol.codecs.json import Codec, json_text
from broker.services.parameters import Parameters
from broker.services.schema import ActionDefinition, EventDefinition


def make_handler(definition: ActionDefinition, codec: Codec) -> Next:
    """A function from context to result that reads the typed parameters and runs the handler.

    What a task group of the handler raises is the error that ended it, as for callers there is one error.
    """
    parameters, handler = definition.parameters, definition.handler
    streams = inspect.isasyncgenfunction(handler)  # its call gives the stream; there is nothing to wait for
    if parameters is None:

        async def invoke(ctx: Context) -> Any:
            try:
                return handler(ctx) if streams else await handler(ctx)
            except ExceptionGroup as group:
                raise first_error(group) from group

    else:
        decoder, arguments = codec.value_decoder(parameters.kind), parameters.arguments
        read = make_reader(parameters, definition.name, codec)

        async def invoke(ctx: Context) -> Any:
            raw = ctx.raw_params
            try:
                values = arguments(decoder(raw)) if raw is not None else read(ctx)
            except msgspec.ValidationError:
                values = read(ctx)  # converts what it can, or says all that is wrong
            try:
                return handler(ctx, **values) if streams else await handler(ctx, **values)
            except ExceptionGroup as group:
                raise first_error(group) from group

    return invoke


def make_listener(definition: EventDefinition) -> Next:
    """The handler of an event, or one that runs several at once: a failure of one does not end the others, and is
    raised when all are through."""
    if len(definition.handlers) == 1:
        return definition.handlers[0]

    async def handle(ctx: Context) -> None:
        failures: list[Exception] = []

        async def run(handler: Next) -> None:
            try:
                await invoke_user(handler, ctx)
            except Exception as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for handler in definition.handlers:
                tasks.start_soon(run, handler)
        if len(failures) > 1:
            raise ExceptionGroup(f"{len(failures)} handlers failed", failures)
        if failures:
            raise failures[0]

    return handle


def make_reader(parameters: Parameters, action: str, codec: Codec) -> Callable[[Context], Any]:
    """A function that gives the arguments of the handler. It raises ValidationError with every violation, the caller
    and the action in each."""
    decoder, raw_decoder = codec.value_decoder(parameters.kind), codec.value_decoder(parameters.raw_kind)

    def read(ctx: Context) -> dict[str, Any]:
        raw = ctx.raw_params
        try:
            try:
                values = parameters.convert(ctx.params, json_text) if raw is None else decoder(raw)
            except msgspec.ValidationError:
                texts = None if raw is None else raw_decoder(raw)
                values = parameters.convert(parameters.converted(ctx.params, texts), json_text)
        except msgspec.ValidationError as error:
            failure = parameters.violations(ctx.params, error)
            for item in failure.data:
                item |= {"nodeID": ctx.node_id, "action": action}
            raise failure from None
        return parameters.arguments(values)

    return read
