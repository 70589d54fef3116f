"""Packets of a stream put in order, and what they say (protocol §8.1, §8.4)."""

import random

from msgspec import UNSET

from broker.protocol.packets import Request, Response
from broker.streams.ordering import OBJECT_MODE, Ordered, control, is_part_of_stream, without_control


def arrive(*sequences: int) -> list[int]:
    ordered: Ordered[int] = Ordered()
    return [due for sequence in sequences for due in ordered.take(sequence, sequence, 1)]


def test_packets_in_order_pass_at_once() -> None:
    assert arrive(0, 1, 2) == [0, 1, 2]


def test_c70_packets_in_any_order_come_out_in_theirs() -> None:
    seed = random.SystemRandom().randrange(2**32)
    sequences = list(range(200))
    random.Random(seed).shuffle(sequences)
    assert arrive(*sequences) == list(range(200)), f"seed {seed}"


def test_c70_duplicates_are_dropped_whether_read_or_waiting() -> None:
    assert arrive(0, 0, 2, 2, 1, 1, 2, 3) == [0, 1, 2, 3]


def test_what_waits_for_a_missing_packet_is_counted() -> None:
    ordered: Ordered[str] = Ordered()
    assert list(ordered.take(2, "b", 10)) == []
    assert list(ordered.take(1, "a", 5)) == []
    assert ordered.size == 15
    assert list(ordered.take(0, "", 1)) == ["", "a", "b"]
    assert ordered.size == 0


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
