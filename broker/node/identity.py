"""Who this process is to the other nodes (moleculer protocol §3.1)."""

import platform
import socket
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from broker.conversation.presence_packets import Identity
from broker.errors import BrokerOptionsError, MoleculerError
from broker.node.network import ip_addresses
from broker.protocol.codecs.json import Codec
from broker.protocol.packets import PROTOCOLS, Protocol
from broker.registry.nodes import SPOKEN
from broker.streams.flow import FLOW_CONTROL


def make_identity(node_id: str, metadata: dict[str, Any], codec: Codec, protocol: Protocol | None = None) -> Identity:
    """A new instance of a node on this host. Raises BrokerOptionsError for metadata that cannot be sent, as the whole
    node would stay invisible then."""
    try:
        codec.encode_value(metadata)
    except MoleculerError as error:
        raise BrokerOptionsError(f"The option metadata cannot be sent to other nodes: {error}") from error
    client = {
        "type": "python",
        "version": _own_version(),
        "langVersion": platform.python_version(),
        FLOW_CONTROL: True,
        SPOKEN: [protocol] if protocol else list(PROTOCOLS),
    }
    return Identity(node_id, str(uuid.uuid4()), socket.gethostname(), ip_addresses(), client, metadata)


def _own_version() -> str:
    try:
        return version("environments-store")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "0"
