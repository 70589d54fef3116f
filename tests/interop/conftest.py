"""One JS node and one Python node in one cluster, for each version of Moleculer."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import pytest

from broker import ServiceBroker
from tests.interop.services import python_services
from tests.support.js_node import PROTOCOLS, VERSIONS, JsNode, js_node
from tests.support.tap import Tap, open_tap

JS_FIXTURES = ("math", "echo", "slow", "errors", "chain", "blob")
JS_SERVICES = ("math", "echo", "slow", "errors", "chain", "blob")
PYTHON_SERVICES = ("pymath", "pyecho", "pyslow", "pyerrors", "pychain")


@dataclass(frozen=True)
class Cluster:
    """Both nodes know all services of each other."""

    version: str
    js: JsNode
    broker: ServiceBroker
    tap: Tap

    @property
    def ver(self) -> str:
        """The protocol version of the JS node."""
        return PROTOCOLS[self.version]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version of Moleculer in turn."""
    return cast(str, request.param)


@pytest.fixture(scope="module", params=VERSIONS)
async def lasting_js(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[JsNode]:
    """The process of `resident`."""
    async with js_node(request.param, nats_url, f"resident-{uuid.uuid4().hex[:12]}", "js") as js:
        yield js


@pytest.fixture
async def resident(lasting_js: JsNode) -> AsyncIterator[JsNode]:
    """A JS node for the tests of a module that leave it running, each in turn alone with it in its namespace."""
    yield lasting_js
    await lasting_js.run(
        "while (broker.registry.getNodeList({ onlyAvailable: true }).length > 1)"
        " await new Promise(resolve => setTimeout(resolve, 5));"
    )


@pytest.fixture(scope="module", params=VERSIONS)
async def cluster(request: pytest.FixtureRequest, nats_url: str, js_modules: object) -> AsyncIterator[Cluster]:
    """Shared by the tests of a module, so a test must leave both nodes as they were."""
    namespace = f"cluster-{uuid.uuid4().hex[:12]}"
    services = python_services()
    async with (
        open_tap(nats_url, namespace) as tap,
        js_node(request.param, nats_url, namespace, "js") as js,
        ServiceBroker("py", namespace=namespace, transporter=nats_url, services=services) as broker,
    ):
        for fixture in JS_FIXTURES:
            await js.create_service(fixture)
        await js.wait_for_services(*PYTHON_SERVICES)
        await broker.wait_for_services(*JS_SERVICES, timeout=30)
        yield Cluster(request.param, js, broker, tap)
