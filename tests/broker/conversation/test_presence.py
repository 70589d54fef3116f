"""What a node says of itself to everybody, and in which protocol version."""

from typing import Any

from broker.conversation.effects import Notify
from broker.protocol.packets import Disconnect, Discover, Heartbeat, Info
from tests.support.transits import Math, info, make_transit, meet, offer, publishes, subjects


def test_c3_a_node_asks_who_is_there_in_its_default_version_first() -> None:
    (publish,) = publishes(make_transit(namespace="ns").presence.discover())
    assert publish.subject == "MOL-ns.DISCOVER"
    assert publish.packet == Discover(ver="5", sender="py-1")


def test_the_other_version_is_asked_only_when_nobody_answered() -> None:
    transit = make_transit()
    transit.presence.discover()
    assert subjects(transit.presence.discover_others()) == [("MOL.DISCOVER", "4")]
    transit = make_transit()
    meet(transit, "js-1")
    assert transit.presence.discover_others() == []
    assert make_transit(protocol="4").presence.discover_others() == []


def test_c15_info_tells_everything_the_reference_names() -> None:
    transit = make_transit(metadata={"zone": "z1"})
    (publish,) = publishes(transit.presence.announce())
    assert publish.packet == Info(
        ver="5",
        sender="py-1",
        services=[],
        ip_list=["10.0.0.1"],
        hostname="host",
        client={"type": "python"},
        config={},
        instance_id="instance of py-1",
        metadata={"zone": "z1"},
        sequence=1,
    )


def test_c20_the_sequence_grows_with_each_announced_change_and_at_the_stop() -> None:
    transit = make_transit()

    def announced() -> Any:
        (publish,) = publishes(transit.presence.announce())
        assert isinstance(publish.packet, Info)
        return publish.packet.sequence

    offer(transit, Math())
    transit.presence.service_changed()
    assert (announced(), announced()) == (2, 2)  # several changes are one step
    transit.presence.service_changed()
    assert announced() == 3
    (publish,) = publishes(transit.presence.leave())
    assert isinstance(publish.packet, Info)
    assert (publish.packet.sequence, publish.packet.services) == (4, [])


def test_c14_broadcasts_go_out_once_for_each_version_in_use() -> None:
    transit = make_transit()
    assert subjects(transit.presence.heartbeat(5)) == [("MOL.HEARTBEAT", "5")]
    meet(transit, "js-5", ver="5")
    meet(transit, "js-4", ver="4")
    for effects in (
        transit.presence.heartbeat(5),
        transit.presence.announce(),
        transit.presence.discover(),
        transit.presence.disconnect(),
    ):
        assert [ver for _, ver in subjects(effects)] == ["5", "4"]


def test_c14_a_version_that_nobody_speaks_any_more_is_not_used() -> None:
    transit = make_transit()
    meet(transit, "js-5", ver="5")
    meet(transit, "js-4", ver="4")
    transit.receive("DISCONNECT", Disconnect(ver="5", sender="js-5"), 1.0)
    assert subjects(transit.presence.heartbeat(5)) == [("MOL.HEARTBEAT", "4")]
    transit.receive("DISCONNECT", Disconnect(ver="4", sender="js-4"), 1.0)
    assert subjects(transit.presence.heartbeat(5)) == [("MOL.HEARTBEAT", "5")]
    transit.receive("DISCOVER", Discover(ver="4", sender="js-4"), 2.0)
    assert subjects(transit.presence.heartbeat(5)) == [("MOL.HEARTBEAT", "4")], "it starts again"
    meet(transit, "js-4b", ver="4")
    transit.receive("DISCOVER", Discover(ver="4", sender="js-4b"), 2.5)
    transit.receive("DISCONNECT", Disconnect(ver="4", sender="js-4b"), 3.0)
    assert subjects(transit.presence.heartbeat(5)) == [("MOL.HEARTBEAT", "5")]
    for ver in ("5", "4"):
        transit.receive("DISCOVER", Discover(ver=ver, sender="visitor"), 4.0)
    assert subjects(transit.presence.heartbeat(5)) == [("MOL.HEARTBEAT", "5")], "it takes either"


def test_the_first_peer_of_a_version_makes_the_node_known_in_it() -> None:
    transit = make_transit()
    meet(transit, "js-5", ver="5")
    effects = [e for e in transit.receive("INFO", info("js-4", ver="4"), 0.0) if not isinstance(e, Notify)]
    assert subjects(effects) == [("MOL.DISCOVER", "4"), ("MOL.INFO", "4")]
    more = [e for e in transit.receive("INFO", info("js-4b", ver="4"), 0.0) if not isinstance(e, Notify)]
    assert more == []


def test_c14_a_peer_is_spoken_to_in_its_own_version() -> None:
    transit = make_transit()
    meet(transit, "js-5", ver="5")
    meet(transit, "js-4", ver="4")
    assert (
        transit.presence.version_for("js-5"),
        transit.presence.version_for("js-4"),
        transit.presence.version_for("nobody"),
    ) == ("5", "4", "5")
    transit.receive("HEARTBEAT", Heartbeat(ver="5", sender="js-4"), 1.0)  # it was updated in the meantime
    assert transit.presence.version_for("js-4") == "5"
    assert [publish.packet.ver for publish in publishes(transit.presence.ping("js-4", "p", 1))] == ["5"]


def test_c26_a_heartbeat_carries_the_load() -> None:
    (publish,) = publishes(make_transit().presence.heartbeat(17))
    assert publish.packet == Heartbeat(ver="5", sender="py-1", cpu=17)


def test_c34_a_stopping_node_says_that_it_offers_nothing() -> None:
    transit = make_transit()
    offer(transit, Math())
    transit.presence.leave()
    transit.stopping = True
    (publish,) = publishes(transit.receive("DISCOVER", Discover(ver="5", sender="js-1"), 0.0))
    assert isinstance(publish.packet, Info)
    assert publish.packet.services == []
