"""A user's view: a JS node that drives three workers sees no difference between three JS workers and two Python ones
with a JS one."""

import uuid
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from broker import ServiceBroker
from tests.interop.workers import Mail, Work
from tests.support.js_node import PROTOCOLS, js_node

pytestmark = pytest.mark.anyio

WORKERS = ("worker-1", "worker-2", "worker-3")
IN_JS = ("worker-2",)
SERIALIZERS = {"0.14": ("JSON", "MsgPack", "CBOR"), "0.15": ("JSON", "JSONExt", "MsgPack", "CBOR")}
SETUPS = [
    (version, serializer, disable_balancer)
    for version, serializers in SERIALIZERS.items()
    for serializer in serializers
    for disable_balancer in (False, True)
]
TELLING = [("0.14", "JSON", False), ("0.14", "MsgPack", True), ("0.15", "JSONExt", False), ("0.15", "CBOR", True)]
"""Each version with and without its balancer, over text and over bytes; all serializers are in test_serializers.py."""


@pytest.mark.parametrize(
    ("version", "serializer", "disable_balancer"),
    [pytest.param(*setup, marks=[] if setup in TELLING else pytest.mark.long) for setup in SETUPS],
    ids=[f"{version} {serializer}{' disable_balancer' * disabled}" for version, serializer, disabled in SETUPS],
)
async def test_c66_c81_c82_c84_a_supervisor_counts_the_same_for_python_workers_and_for_js_workers(
    version: str, serializer: str, disable_balancer: bool, nats_url: str, js_modules: object
) -> None:
    namespace = f"supervised-{uuid.uuid4().hex[:12]}"
    reports: dict[str, dict[str, Any]] = {}
    brokers = [
        ServiceBroker(
            node_id,
            namespace=namespace,
            transporter=nats_url,
            serializer=serializer,
            disable_balancer=disable_balancer,
            protocol=PROTOCOLS[version],  # the other version would leave a line in the log of JS
            services=[Work(), Mail()],
        )
        for node_id in WORKERS
        if node_id not in IN_JS
    ]
    options = {"serializer": serializer, "disableBalancer": disable_balancer}
    async with AsyncExitStack() as stack:
        js = await stack.enter_async_context(js_node(version, nats_url, namespace, "supervisor", **options))
        async with anyio.create_task_group() as tasks:

            async def supervise(command: str) -> None:
                reports[command] = await js.command(command, workers=WORKERS, own=IN_JS)

            tasks.start_soon(supervise, "superviseOwn")
            tasks.start_soon(supervise, "supervise")
            for broker in brokers:
                tasks.start_soon(stack.enter_async_context, broker)
        assert js.logged() == []
    assert reports["supervise"] == reports["superviseOwn"]
