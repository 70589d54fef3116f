"""Transit middlewares: compression and encryption of every packet (moleculer protocol §13)."""

from broker.transforms.base import Transform
from broker.transforms.compression import Compression
from broker.transforms.encryption import Encryption

__all__ = ["Compression", "Encryption", "Transform"]
