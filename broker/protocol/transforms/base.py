"""What changes the bytes of every packet on their way: one small Protocol (moleculer protocol §13)."""

from typing import Protocol


class Transform(Protocol):
    """A transit middleware. Nothing in a packet tells of it, so all nodes of a cluster must have the same ones."""

    def encode(self, data: bytes) -> bytes:
        """The bytes to send for a packet."""

    def decode(self, data: bytes) -> bytes:
        """The bytes of the packet. Raises ValueError for what was not made by `encode`."""

    def room(self, limit: int) -> int:
        """How many bytes `encode` surely makes no more than `limit` of."""
