"""Subject names (moleculer protocol §1). They are made once a node, not once a message."""

import re
from typing import cast

from broker.errors import BrokerOptionsError
from broker.protocol.packets import Command

# §1.2: the base subscriptions in the order in which JS nodes make them; the star is the node's own id.
BASE_SUBSCRIPTIONS = "EVENT.* REQ.* RES.* DISCOVER DISCOVER.* INFO INFO.* DISCONNECT HEARTBEAT PING PING.* PONG.*"

# §1.4: no blanks, wildcards, empty tokens or characters without bytes; and far below the server's longest line, 4 kB.
_TOKEN = re.compile(r"(?!\.)(?!.*\.\.)[^\s*>\0\ud800-\udfff]{1,1024}(?<!\.)")


class Topics:
    """The subjects of one namespace."""

    def __init__(self, namespace: str = "") -> None:
        if namespace:
            check_token("namespace", namespace)
        self.prefix = f"MOL-{namespace}" if namespace else "MOL"

    @property
    def inboxes(self) -> str:
        """Below this subject and its own id a node gets answers that are not packets. JS nodes do not know it."""
        return f"{self.prefix}.REPLY"

    def broadcast(self, command: Command) -> str:
        """The subject that all nodes subscribe to."""
        return f"{self.prefix}.{command}"

    def to_node(self, command: Command, node_id: str) -> str:
        """The subject that one node subscribes to."""
        return f"{self.prefix}.{command}.{node_id}"

    def balanced_request(self, action: str) -> str:
        """The subject that the nodes with an action share (§1.3)."""
        return f"{self.prefix}.REQB.{action}"

    def balanced_event(self, group: str, event: str) -> str:
        """The subject that the nodes of a group share for an event or a pattern (§1.3)."""
        return f"{self.prefix}.EVENTB.{group}.{event}"

    def base_subscriptions(self, node_id: str) -> list[tuple[Command, str]]:
        """The command and the subject of each of the twelve subscriptions that a node starts with (§1.2)."""
        return [
            (cast(Command, pattern.partition(".")[0]), f"{self.prefix}.{pattern.replace('*', node_id)}")
            for pattern in BASE_SUBSCRIPTIONS.split()
        ]


def check_token(what: str, value: str) -> None:
    """Refuse a name that NATS cannot carry in a subject (§1.4). Raises BrokerOptionsError."""
    if not is_token(value):
        raise BrokerOptionsError(
            f"The {what} {value!r} cannot be part of a NATS subject: use letters, digits, '-', '_' and single dots."
        )


def is_token(value: str) -> bool:
    """Whether NATS can carry a name in a subject (§1.4)."""
    return _TOKEN.fullmatch(value) is not None
