"""Bytes in JSON, as JS nodes write them: `{"type":"Buffer","data":[1,2,…]}` (moleculer protocol §8.3, §11).

A chunk of a stream is nearly a megabyte of such numbers. Skipping them to find the rest of a packet takes as long as
half of reading them, so they are cut out by searching for their brackets, which numbers do not contain.
"""

import msgspec
from msgspec import Raw

HEAD = b'{"type":"Buffer","data":['
TAIL = b"]}"

PLACEHOLDER = Raw(b"-0.000004711e-217")
"""No JS number looks like this one, so a packet that holds it in another place was not cut where it seems."""

_numbers = msgspec.json.Decoder(list[int])


def cut(data: bytes) -> tuple[bytes, Raw] | None:
    """A packet without its one large Buffer, and that Buffer; None when there is not exactly one."""
    start = data.find(HEAD)
    if start < 0:
        return None
    first = start + len(HEAD)
    last = data.find(b"]", first)  # single bytes are found many times sooner than longer words
    end = last + len(TAIL)
    if last < 0 or data[last:end] != TAIL or data.find(b"{", first, last) >= 0 or data.find(HEAD, end) >= 0:
        return None
    return b"".join((data[:start], PLACEHOLDER, data[end:])), Raw(data[start:end])


def is_buffer(raw: Raw) -> bool:
    """Whether a value is a Buffer as JS writes it."""
    return memoryview(raw)[: len(HEAD)] == HEAD


def buffer_bytes(raw: Raw) -> bytes:
    """The bytes of such a value. Raises msgspec.MsgspecError or ValueError when they are not bytes."""
    return bytes(bytearray(_numbers.decode(memoryview(raw)[len(HEAD) - 1 : -1])))  # sooner than by bytes alone
