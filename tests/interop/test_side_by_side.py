"""A JS node and a Python node of its version exchange traffic of every kind; the JS node logs no error."""

from typing import Any

import pytest

from broker import ServiceBroker
from tests.interop.traffic import Traffic
from tests.support.js_node import PROTOCOLS, js_node
from tests.support.tap import open_tap

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("js_modules")]


@pytest.mark.parametrize("seconds", [2, pytest.param(200, marks=pytest.mark.long)])
async def test_c66_c90_traffic_of_every_kind_leaves_no_error_in_the_logs_of_js(
    version: str, nats_url: str, namespace: str, seconds: int
) -> None:
    ver, quick = PROTOCOLS[version], seconds < 30  # a long run has the heartbeats of a default node
    beats_js = {"heartbeatInterval": 1} if quick else {}
    options: dict[str, Any] = {"namespace": namespace, "transporter": nats_url}
    options |= {"heartbeat_interval": 1} if quick else {}
    options |= {"protocol": "4"} if ver == "4" else {}  # the option for joining a cluster that has only 0.14
    async with (
        open_tap(nats_url, namespace) as tap,
        js_node(version, nats_url, namespace, "js", **beats_js) as js,
        ServiceBroker("py", **options) as broker,
    ):
        traffic = Traffic(js, broker, options)
        await traffic.prepare()
        await traffic.flow(seconds)
        await tap.catch_up()
        for node in ("js", "py"):
            traffic.counts[f"heartbeats of {node}"] = len(tap.find("HEARTBEAT", sender=node))
        traffic.counts["packets"] = len(tap.seen)
        print(f"Moleculer {version}, {seconds} s: {dict(traffic.counts)}")  # noqa: T201 # what the clean log covers
        assert (js.logged(), traffic.logged) == ([], [])
        assert all(traffic.counts.values()), traffic.counts
        # A node probes under another name whether its id is free, in both versions, on a subject of its own.
        packets = [seen.packet for seen in tap.seen if "~" not in seen.packet["sender"]]
        assert {packet["ver"] for packet in packets} == {ver}
        events = {packet["event"] for packet in packets if "event" in packet}
        assert [name for name in events if name.startswith("$")] == []
