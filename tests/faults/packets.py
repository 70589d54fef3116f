"""Packets that a node should not get: captures of real nodes of both versions, with something wrong in them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Packet", "hostile", "is_object"]

GOLDEN = Path(__file__).parents[1] / "golden"
BROADCAST = ("DISCOVER", "INFO", "DISCONNECT", "HEARTBEAT", "PING", "PEERS")
SUBJECTS = (*(f"{name}.py" for name in ("EVENT", "REQ", "RES", "DISCOVER", "INFO", "PING", "PONG")), *BROADCAST)
CAPTURES: list[tuple[str, Any]] = [
    (line["subject"].split(".")[1], line["payload"])
    for file in sorted(GOLDEN.glob("protocol-*.jsonl"))
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines())
]
CAPTURES += [
    ("PEERS", {"ver": "5", "sender": "far~1"}),
    ("PEERS", {"ver": "5", "sender": "far", "nodes": [{"id": "js"}]}),
]
ANSWERS = [payload for command, payload in CAPTURES if command == "RES"]
# What stands in the text below becomes bytes that `json.dumps` would not write.
RAW = {
    '"deep list"': b"[" * 900 + b"]" * 900,
    '"deeper list"': b"[" * 5000 + b"]" * 5000,
    '"deep object"': b'{"a":' * 900 + b"1" + b"}" * 900,
    '"huge"': b"1e999",
    '"long number"': b"-" + b"9" * 5000,
    '"not a number"': b"NaN",
    '"not UTF-8"': b'"\xff\xfe"',
}
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, -0.0, 2**53 + 1, 2**63, 2**70, 1e308, "", "\ud800", "\u0000", "x" * 2000),
    *("a b", "*", ">", ".", "4", "5", "6", "js", "node-a", "node-b", "far", "$node.list", "math.add", "math.recv"),
    *([], {}, [[]], [None], {"": ""}, {"type": "Buffer", "data": [300]}, {"type": "Buffer"}),
    *(text.strip('"') for text in RAW),
]
FIELDS = ("ver", "sender", "id", "action", "event", "seq", "stream", "meta", "headers", "params", "data", "error")
MORE_FIELDS = ("nodes", "more", "success", "groups", "services", "instanceID", "level", "timeout", "extra")
FLAGS: list[Any] = [{"$streamObjectMode": True}, {"$streamError": {"name": 5}}, {"$streamError": None}]


class Packet(NamedTuple):
    """What arrives, and where an answer about the flow of a stream would go."""

    subject: str
    data: bytes
    reply: str


def hostile(kind: int, seed: int, noise: bytes, pending: Sequence[str]) -> Packet:
    """0: noise. 1: fields gone wrong. 2: an answer to one of `pending` gone wrong. 3: cut off. 4: a byte changed.
    5: a wrong packet under another subject."""
    source = random.Random(seed)
    reply = source.choice(["", "", "", "_INBOX.x"])
    if kind == 0:
        return Packet(source.choice(SUBJECTS), noise, reply)
    command, payload = source.choice(CAPTURES)
    command = command.removesuffix("B")
    if kind == 2 and pending:
        command, payload = "RES", {**source.choice(ANSWERS), "id": pending[-1], "sender": "far"}
    subject = command if command in BROADCAST else f"{command}.py"
    if kind == 5:
        subject = source.choice(SUBJECTS)
    data = _as_bytes(payload if kind in (3, 4) else _of_another_node(subject, _wrong(payload, source)))
    cut = source.randrange(len(data))
    if kind == 3:
        return Packet(subject, data[:cut], reply)
    if kind == 4:
        return Packet(subject, data[:cut] + bytes([source.randrange(256)]) + data[cut + 1 :], reply)
    return Packet(subject, data, reply)


def is_object(data: bytes) -> bool:
    """Whether these bytes may be the JSON text of an object: false only when they are none for any reader."""
    try:
        return isinstance(json.loads(data, parse_int=float), dict)
    except RecursionError:  # nested too deep for this reader
        return True
    except ValueError:
        return False


def _wrong(payload: Any, source: random.Random) -> Any:
    """With some fields replaced, dropped, added or nested."""
    if not isinstance(payload, dict):
        return source.choice(ODD)
    changed = dict(payload)
    for _ in range(source.randint(1, 3)):
        name = source.choice([*changed, *FIELDS, *MORE_FIELDS])
        match source.randrange(6):
            case 0:
                changed.pop(name, None)
            case 1:
                changed[name] = _wrong(changed.get(name), source)
            case 2 if isinstance(changed.get(name), list):
                changed[name] = [*changed[name], source.choice(ODD), _wrong({}, source)]
            case 3:
                changed |= {"stream": source.choice([True, False, 1]), "seq": source.choice([0, 1, 2, 7, 10**12])}
                changed[source.choice(["meta", "headers"])] = source.choice(FLAGS)
            case 4:
                changed["sender"] = source.choice(["py", "far", "js", "nobody"])
            case _:
                changed[name] = source.choice(ODD)
    return changed


def _of_another_node(subject: str, payload: Any) -> Any:
    """INFO under the node's own id is a conflict of ids, which ends a node on purpose (protocol §3.5)."""
    if isinstance(payload, dict) and payload.get("sender") == "py" and subject.startswith("INFO"):
        return {**payload, "sender": "py-2"}
    return payload


def _as_bytes(payload: Any) -> bytes:
    data = json.dumps(payload).encode()
    for text, raw in RAW.items():
        data = data.replace(text.encode(), raw, 1)
    return data
