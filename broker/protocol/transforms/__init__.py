"""Transit middlewares: compression and encryption of every packet (moleculer protocol §13)."""

from broker.protocol.transforms.base import Transform
from broker.protocol.transforms.compression import Compression
from broker.protocol.transforms.encryption import Encryption

__all__ = ["Compression", "Encryption", "Transform"]
