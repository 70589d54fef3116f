"""Nodes like this tell each other whom they know, and greet in its own version whom they know by name alone."""

from typing import Any

import msgspec
import pytest

from broker.conversation.effects import Effect, Log, Notify
from broker.conversation.transit import Transit
from broker.defaults import NODES_KNOWN, PEERS_PACKET_BYTES
from broker.protocol.packets import Disconnect, Discover, Heartbeat, Info, Peers
from tests.support.transits import Math, info, make_transit, meet, offer, publishes, subjects

BILINGUAL = {"type": "python", "protocols": ["5", "4"]}


def ask(transit: Transit, ver: str = "5") -> list[Effect]:
    return transit.receive("PEERS", Peers(ver=ver, sender="asker~1"), 0.0)


def tell(transit: Transit, *nodes: Any, more: bool = False) -> list[Effect]:
    transit.peers.ask()
    return transit.receive("PEERS", Peers(ver="5", sender="py-2", nodes=list(nodes), more=more), 0.0)


def node(node_id: str, ver: str = "5", **more: Any) -> dict[str, Any]:
    return {"id": node_id, "ver": ver, **more}


def said(effects: list[Effect]) -> list[tuple[str, Any]]:
    return subjects([effect for effect in effects if not isinstance(effect, Notify)])


def meet_client(transit: Transit, client: dict[str, Any], ver: str = "5") -> list[Effect]:
    return transit.receive("INFO", msgspec.structs.replace(info("new", ver=ver), client=client), 0.0)


def test_who_asks_is_told_the_nodes_that_are_there_with_their_versions() -> None:
    transit = make_transit(namespace="ns")
    for node_id, ver in (("js-4", "4"), ("js-5", "5"), ("gone", "4")):
        meet(transit, node_id, ver=ver)
    transit.receive("DISCONNECT", Disconnect(ver="4", sender="gone"), 1.0)
    (answer,) = publishes(ask(transit, "4"))
    assert answer.subject == "MOL-ns.PEERS.asker~1"
    wanted = [node("py-1", "4"), node("js-4", "4"), node("js-5", "5")]
    assert answer.packet == Peers(ver="4", sender="py-1", nodes=wanted)


def test_many_nodes_are_told_in_parts_that_fit_and_greeted_when_all_are_there() -> None:
    one, other = make_transit(), make_transit("py-2")
    names = [f"node-{number}" for number in range(300)]
    for name in names:
        meet(one, name, ver="4")
    parts = publishes(ask(one))
    assert max(len(msgspec.json.encode(part.packet)) for part in parts) < PEERS_PACKET_BYTES + 1000
    effects: list[Effect] = []
    other.peers.ask()
    for part in parts:
        assert effects == []
        effects = other.receive("PEERS", part.packet, 0.0)
    assert subjects(effects) == [("MOL.DISCOVER.py-1", "5"), *((f"MOL.DISCOVER.{name}", "4") for name in names)]
    assert other.peers.complete


def test_nodes_that_are_known_and_what_cannot_be_a_node_are_not_greeted() -> None:
    transit = make_transit()
    meet(transit, "js-1")
    junk: list[Any] = [
        None,
        5,
        "js-2",
        [],
        {},
        {"id": "js-2"},
        node("js-2", "6"),
        node("a b"),
        node("*"),
        {"id": 5, "ver": "5"},
    ]
    assert tell(transit, node("js-1"), node("py-1"), *junk, {"id": "js-2", "ver": 5}) == []
    assert said(tell(transit, node("js-3", "4", instanceID="later versions may say more"))) == [
        ("MOL.DISCOVER.js-3", "4")
    ]
    pinned = make_transit(protocol="4")
    pinned.peers.ask()
    answer = Peers(ver="4", sender="py-2", nodes=[node("js-4", "4"), node("js-5", "5")])
    assert said(pinned.receive("PEERS", answer, 0.0)) == [("MOL.DISCOVER.js-4", "4")]
    assert pinned.receive("PEERS", Peers(ver="4", sender="py-3", nodes=[node("js-6", "4")]), 0.0) == [], "was told"


def test_more_nodes_than_any_cluster_has_are_one_line() -> None:
    transit = make_transit()
    dropped, *greetings = tell(transit, *(node(f"n-{number}") for number in range(NODES_KNOWN + 5)))
    assert isinstance(dropped, Log)
    assert len(greetings) == NODES_KNOWN


def test_a_node_that_was_told_speaks_to_each_alone() -> None:
    transit = make_transit()
    transit.ready = False
    tell(transit, node("js-4", "4"), node("js-5", "5"))
    for name, ver in (("js-4", "4"), ("js-5", "5")):
        assert said(transit.receive("INFO", info(name, ver=ver), 0.0)) == []
    assert transit.peers.named == {}
    assert transit.presence.discover_others() == []


def test_the_first_node_of_a_version_is_told_of_this_one_alone_when_all_others_are_known() -> None:
    transit = make_transit()
    tell(transit, node("js-5", "5"))
    assert said(transit.receive("INFO", info("js-5", ver="5"), 0.0)) == []
    assert said(transit.receive("INFO", info("js-4", ver="4"), 0.0)) == [("MOL.INFO.js-4", "4")]


@pytest.mark.parametrize(
    ("client", "asked"),
    [({"type": "nodejs"}, False), (BILINGUAL, True), (None, True)],
    ids=["js", "python", "never answers"],
)
def test_the_other_version_is_not_asked_while_a_node_that_starts_may_log_it(
    client: dict[str, Any] | None, asked: bool
) -> None:
    transit = make_transit()
    transit.peers.search(0.0, 11.0)
    transit.receive("DISCOVER", Discover(ver="5", sender="new"), 0.1)
    assert subjects(transit.presence.discover()) == [("MOL.DISCOVER", "5")]
    assert transit.presence.discover_others() == []
    assert subjects(transit.tick(1.0)) == [("MOL.DISCOVER.new", "5")]
    if client:
        meet_client(transit, client)
    assert (("MOL.DISCOVER", "4") in subjects(transit.tick(3.5))) == asked
    assert transit.peers.complete == asked
    assert ("MOL.DISCOVER", "4") not in subjects(transit.tick(11.5))
    assert transit.peers.complete, "each node had the time for a heartbeat"


def test_the_version_of_a_node_that_starts_is_asked_first() -> None:
    transit = make_transit()
    transit.peers.search(0.0, 11.0)
    transit.receive("DISCOVER", Discover(ver="4", sender="new"), 0.1)
    assert subjects(transit.presence.discover()) == [("MOL.DISCOVER", "4")]


def test_a_node_like_this_is_spoken_to_in_version_5_and_makes_no_version_used() -> None:
    transit = make_transit()
    meet(transit, "js-4", ver="4")
    for ver in ("5", "4"):
        assert said(meet_client(transit, BILINGUAL, ver=ver)) == []
        transit.receive("HEARTBEAT", Heartbeat(ver="4", sender="new"), 1.0)
        assert transit.presence.version_for("new") == "5"
    assert subjects(transit.presence.heartbeat(1)) == [("MOL.HEARTBEAT", "4")], "5 is an error in the log of js-4"
    meet_client(transit, {"type": "python", "protocols": ["4"]}, ver="4")
    assert transit.presence.version_for("new") == "4"


def test_a_visitor_without_services_says_nothing_of_itself() -> None:
    transit = make_transit(visitor=True)
    tell(transit, node("js-4", "4"))
    assert said(transit.receive("INFO", info("js-4", ver="4"), 0.0)) == []
    announcing = transit.presence
    asked = transit.receive("DISCOVER", Discover(ver="4", sender="js-5"), 0.0)
    told = (announcing.announce(), announcing.heartbeat(1), announcing.leave(), announcing.disconnect(), asked)
    assert told == ([], [], [], [], [])
    assert subjects(announcing.discover()) == [("MOL.DISCOVER.js-4", "4")], "when it has reconnected"


def test_a_visitor_with_services_makes_itself_known_to_each_node_alone() -> None:
    transit = make_transit(visitor=True)
    offer(transit, Math())
    tell(transit, node("js-4", "4"), node("js-5", "5"))
    for name, ver in (("js-4", "4"), ("js-5", "5")):
        assert said(transit.receive("INFO", info(name, ver=ver), 0.0)) == [(f"MOL.INFO.{name}", ver)]
    assert said(transit.receive("INFO", info("js-5", ver="5"), 0.0)) == [], "it knows it already"
    each = [("MOL.INFO.js-4", "4"), ("MOL.INFO.js-5", "5")]
    assert subjects(transit.presence.announce()) == subjects(transit.presence.leave()) == each
    assert subjects(transit.presence.disconnect()) == [("MOL.DISCONNECT", "5"), ("MOL.DISCONNECT", "4")]
    (answer,) = publishes(transit.receive("DISCOVER", Discover(ver="4", sender="js-6"), 0.0))
    assert isinstance(answer.packet, Info)
