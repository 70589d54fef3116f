"""Several calls at once (moleculer protocol §5.6). Nothing of it is on the wire."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from broker.context import ABSENT, Calls
from broker.errors import MoleculerServerError, first_error


async def call_all(
    call: Callable[..., Awaitable[Any]], calls: Calls, *, settled: bool, options: Mapping[str, Any]
) -> Any:
    """Make the calls, each with `options` and its own over them. See `ServiceBroker.mcall`."""
    named = dict(calls) if isinstance(calls, Mapping) else dict(enumerate(calls))
    for key, item in named.items():
        if not isinstance(item, Mapping) or not isinstance(item.get("action"), str):
            raise MoleculerServerError(
                f"Call {key!r} of mcall needs to be a dict with the name of an action in 'action'.",
                type="INVALID_PARAMETERS",
            )
    results: dict[Any, Any] = dict.fromkeys(named)

    async def one(key: Any, item: Mapping[str, Any]) -> None:
        wanted = {**options, **item.get("options", {})}
        try:
            value = await call(item["action"], item.get("params", ABSENT), **wanted)
            results[key] = {"status": "fulfilled", "value": value} if settled else value
        except Exception as error:
            if not settled:
                raise
            results[key] = {"status": "rejected", "reason": error}

    try:
        async with anyio.create_task_group() as tasks:
            for key, item in named.items():
                tasks.start_soon(one, key, item)
    except* Exception as group:
        raise first_error(group) from None
    return results if isinstance(calls, Mapping) else list(results.values())
