"""A plain Moleculer JS node, driven from a test.

    async with js_node("0.15", nats_url, namespace, "js-1") as js:
        await js.create_service("math")
        await js.wait_for_services("greeter")
        assert await js.call("greeter.hello", {"name": "Ada"}, timeout=5000) == "Hello Ada!"

Call options are those of Moleculer JS, with its names and units (`nodeID`, milliseconds).
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.node import INTEROP, node_environment, node_program
from tests.support.processes import DEADLINE_S, Process, ProcessFailedError, start

__all__ = ["PROTOCOLS", "VERSIONS", "JsError", "JsNode", "JsReply", "js_node"]

VERSIONS = ("0.14", "0.15")
PROTOCOLS: dict[str, Literal["4", "5"]] = {"0.14": "4", "0.15": "5"}
_NOTHING: Any = object()


class JsError(Exception):
    """The error of a rejected call of the JS node, as JavaScript saw it. A missing field is None."""

    def __init__(self, fields: dict[str, Any], meta: dict[str, Any] | None) -> None:
        super().__init__(f"{fields.get('name')}: {fields.get('message')}")
        self.name: str = fields.get("name", "")
        self.message: Any = fields.get("message")
        self.code: Any = fields.get("code")
        self.type: Any = fields.get("type")
        self.data: Any = fields.get("data")
        self.retryable: bool | None = fields.get("retryable")
        self.node_id: str | None = fields.get("nodeID")
        self.js_class: str | None = fields.get("class")
        self.meta = meta


@dataclass(frozen=True)
class JsReply:
    """A call's result with its meta; times are milliseconds of the node's own clock."""

    result: Any
    meta: dict[str, Any]
    undefined: bool
    started: float
    ended: float


class JsNode:
    """A running node. Made by `js_node`."""

    def __init__(self, process: Process, version: str, namespace: str, node_id: str) -> None:
        self.process = process
        self.version = version
        self.namespace = namespace
        self.node_id = node_id
        self._last_id = 0

    async def call(self, action: str, params: Any = _NOTHING, **options: Any) -> Any:
        """The result; a rejection raises JsError. Without `params` the call has none (JS `undefined`)."""
        return (await self.call_for_reply(action, params, **options)).result

    async def call_for_reply(self, action: str, params: Any = _NOTHING, **options: Any) -> JsReply:
        given = {} if params is _NOTHING else {"params": params}
        reply = await self.command("call", action=action, options=options, **given)
        reply.setdefault("result")
        return JsReply(**reply)

    async def mcall(self, calls: Any, **options: Any) -> Any:
        return await self.command("mcall", calls=calls, options=options)

    async def emit(self, name: str, data: Any = None, **options: Any) -> None:
        await self.command("emit", name=name, data=data, options=options)

    async def broadcast(self, name: str, data: Any = None, **options: Any) -> None:
        await self.command("broadcast", name=name, data=data, options=options)

    async def create_service(self, fixture: str, **options: Any) -> str:
        """Adds a service of tests/interop/js/fixtures.cjs; returns its full name."""
        name: str = await self.command("createService", fixture=fixture, options=options)
        return name

    async def wait_for_services(self, *names: str, deadline_s: float = DEADLINE_S) -> None:
        await self.command("waitForServices", services=list(names), timeout=deadline_s * 1000)

    async def ping(self, target: str | None = None, timeout_ms: float = DEADLINE_S * 1000) -> Any:
        return await self.command("ping", target=target, timeout=timeout_ms)

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """The nodes that it considers available, including itself, by id."""
        return {node["id"]: node for node in await self.command("nodes")}

    async def services(self) -> dict[str, dict[str, Any]]:
        """Services by full name."""
        return {service["fullName"]: service for service in await self.command("services")}

    async def actions(self) -> dict[str, dict[str, Any]]:
        """Actions by name, with their endpoints."""
        return {action["name"]: action for action in await self.command("actions")}

    async def run(self, code: str) -> Any:
        """Runs asynchronous JavaScript with `broker` in scope; returns its result."""
        return await self.command("run", code=code)

    async def stop(self) -> None:
        """Calls `broker.stop()`, and waits for the end of the process."""
        await self.command("stop")
        await self.process.wait()

    async def command(self, command: str, *, deadline_s: float = DEADLINE_S * 2, **fields: Any) -> Any:
        """Any command of tests/interop/js/node.cjs."""
        self._last_id += 1
        number, before = self._last_id, len(self.process.lines)
        await self.process.write_line(json.dumps({"id": number, "command": command, **fields}))
        start_of_answer = f'{{"id":{number},'
        line = await self.process.line(
            lambda text: text.startswith(start_of_answer), after=before, deadline_s=deadline_s
        )
        answer = json.loads(line)
        if "error" in answer:
            raise JsError(answer["error"], answer.get("meta"))
        return answer["result"]

    async def local_event(
        self,
        name: str,
        matches: Callable[[dict[str, Any]], bool] = lambda payload: True,
        *,
        kind: str = "local",
        after: int = 0,
        deadline_s: float = DEADLINE_S,
    ) -> dict[str, Any]:
        """Waits for a local event, such as `$node.connected`; an event since `after` counts (see `mark`)."""

        def fits(text: str) -> bool:
            if not text.startswith(f'{{"event":"{kind}"'):
                return False
            line = json.loads(text)
            return bool(line["name"] == name and matches(line["payload"]))

        try:
            payload: dict[str, Any] = json.loads(await self.process.line(fits, after=after, deadline_s=deadline_s))[
                "payload"
            ]
        except ProcessFailedError as error:
            raise ProcessFailedError(f"No {kind} event '{name}'. {error}") from error
        return payload

    async def recorded(
        self,
        name: str,
        matches: Callable[[dict[str, Any]], bool] = lambda payload: True,
        *,
        after: int = 0,
        deadline_s: float = DEADLINE_S,
    ) -> dict[str, Any]:
        """Waits for an event that its service `recorder` received."""
        return await self.local_event(name, matches, kind="recorded", after=after, deadline_s=deadline_s)

    def recorded_lines(self, service: str, *, after: int = 0) -> list[dict[str, Any]]:
        """What a `recorder` of this name has received: `name`, `pattern` and `payload` of each event."""
        lines = [line.text for line in self.process.lines[after:]]
        recorded = [json.loads(text) for text in lines if text.startswith('{"event":"recorded"')]
        return [line for line in recorded if line["service"] == service]

    def mark(self) -> int:
        """The present position, for `after`: only later lines count."""
        return len(self.process.lines)

    def logged(self, *levels: str) -> list[str]:
        """The lines it logged at these levels (`warn`, `error`, `fatal`; by default `error` and `fatal`)."""
        wanted = levels or ("error", "fatal")
        lines = [json.loads(text) for text in self.process.stdout if text.startswith('{"event":"log"')]
        return [f"{line['module']}: {line['text']}" for line in lines if line["level"] in wanted]


@contextlib.asynccontextmanager
async def js_node(
    version: str, nats_url: str, namespace: str, node_id: str, **broker_options: Any
) -> AsyncIterator[JsNode]:
    """Starts a node (`version`: "0.14" or "0.15") and waits until it is ready; stops it at the end of the block.

    The fixture `js_modules` must have run. `broker_options` are Moleculer's own: `heartbeatInterval=1`.
    """
    script = INTEROP / "js" / "node.cjs"
    arguments = [version, nats_url, namespace, node_id, json.dumps(broker_options)]
    name = f"JS node {node_id} ({version})"
    async with start(node_program(), script, *arguments, environment=node_environment(), name=name) as process:
        await process.line('{"event":"ready"')
        yield JsNode(process, version, namespace, node_id)
