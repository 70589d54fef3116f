"""What the packets of a stream say (protocol §8.1)."""

from msgspec import UNSET

from broker.protocol.packets import Request, Response
from broker.streams.packets import OBJECT_MODE, control, is_part_of_stream, without_control


def test_the_end_of_a_stream_is_part_of_it_and_a_plain_packet_is_not() -> None:
    plain = Request(sender="a", id="1", action="x", stream=False)
    assert not is_part_of_stream(plain)
    assert not is_part_of_stream(Request(sender="a", id="1", action="x", stream=None, sequence=UNSET))
    assert is_part_of_stream(Request(sender="a", id="1", action="x", stream=False, sequence=4))
    assert is_part_of_stream(Response(sender="a", id="1", stream=True, sequence=0))


def test_c69_flags_are_found_in_headers_or_meta_and_hidden_from_the_user() -> None:
    in_headers = Request(sender="a", id="1", action="x", headers={OBJECT_MODE: True, "h": 1}, meta={"m": 1})
    in_meta = Request(sender="a", id="1", action="x", meta={OBJECT_MODE: True, "m": 1})
    assert control(in_headers, OBJECT_MODE) is control(in_meta, OBJECT_MODE) is True
    assert control(Request(sender="a", id="1", action="x"), OBJECT_MODE) is None
    assert without_control(in_meta.meta) == {"m": 1}
    assert without_control(None) is None
