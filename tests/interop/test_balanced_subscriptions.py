"""With `disable_balancer`, nodes subscribe in queue groups: the same as JS for the same services (protocol §1.3)."""

from functools import partial

import pytest

from broker import ServiceBroker
from tests.interop.twins import TWINS, twins
from tests.support.js_node import PROTOCOLS, VERSIONS, js_node
from tests.support.nats_recorder import NatsRecorder, nats_recorder
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


def shared_out(recorder: NatsRecorder, node_id: str) -> list[set[tuple[str, str]]]:
    """The queue groups of the node at each of its broadcast INFO packets; only those of twin services."""
    shared: set[tuple[str, str]] = set()
    at_infos = []
    for one in recorder.of("SUB", "UNSUB", "PUB"):
        kind, _, name = one.subject.partition(".")[2].partition(".")
        if one.verb == "PUB":
            if kind == "INFO" and not name and one.packet["sender"] == node_id:
                at_infos.append(set(shared))
        elif kind in ("REQB", "EVENTB") and not name.startswith(("$", "watcher")):
            (shared.add if one.verb == "SUB" else shared.discard)((f"{kind}.{name}", one.queue))
    return at_infos


def shares(recorder: NatsRecorder, node_id: str, wanted: set[tuple[str, str]], *, expected: bool = True) -> bool:
    shared = shared_out(recorder, node_id)
    return bool(shared) and (wanted <= shared[-1]) is expected


@pytest.mark.parametrize("version", VERSIONS)
async def test_c80_queue_groups_equal_those_of_js_before_each_announcement_and_end_before_the_last(
    version: str, nats_url: str, namespace: str, js_modules: object
) -> None:
    async with nats_recorder(nats_url) as theirs, nats_recorder(nats_url) as ours:
        async with (
            js_node(version, theirs.url, namespace, "js", disableBalancer=True) as js,
            ServiceBroker(
                "py",
                namespace=namespace,
                transporter=ours.url,
                disable_balancer=True,
                protocol=PROTOCOLS[version],
                services=twins(),
            ) as broker,
        ):
            await js.run(TWINS)
            await js.wait_for_services("v2.posts", "v1.listener")
            wanted = {("REQB.v2.posts.find", "v2.posts.find"), ("EVENTB.mail.order.>", "mail")}
            for recorder, node in ((theirs, "js"), (ours, "py")):
                await eventually(partial(shares, recorder, node, wanted))
            complete = shared_out(ours, "py")[-1]
            assert complete == shared_out(theirs, "js")[-1]
            assert "REQB.seen.here" in dict(complete), "protected"
            assert "REQB.seen.inside" not in dict(complete), "private"
            await broker.remove_service("v2.posts")
            await js.command("destroyService", name={"name": "posts", "version": 2})
            for recorder, node in ((theirs, "js"), (ours, "py")):
                await eventually(partial(shares, recorder, node, wanted, expected=False))
            assert shared_out(ours, "py")[-1] == shared_out(theirs, "js")[-1]
        assert shared_out(ours, "py")[-1] == shared_out(theirs, "js")[-1] == set()
