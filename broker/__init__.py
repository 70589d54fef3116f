"""A Moleculer node in Python: it joins clusters of Moleculer JS 0.14 and 0.15 nodes over NATS.

The names here are the public ones; everything else may change.
"""

from broker.broker import ServiceBroker
from broker.context import Context
from broker.errors import (
    BrokerDisconnectedError,
    BrokerOptionsError,
    GracefulStopTimeoutError,
    InvalidPacketDataError,
    MaxCallLevelError,
    MoleculerClientError,
    MoleculerError,
    MoleculerRetryableError,
    MoleculerServerError,
    PayloadTooLargeError,
    ProtocolVersionMismatchError,
    QueueIsFullError,
    RemoteError,
    RequestRejectedError,
    RequestSkippedError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ServiceNotFoundError,
    ServiceSchemaError,
    ValidationError,
)
from broker.middlewares.base import Middleware
from broker.middlewares.cacher import MemoryCacher
from broker.options import BrokerOptions
from broker.protocol.transforms import Compression, Encryption
from broker.services.decorators import action, event
from broker.services.service import Service

__all__ = [
    "BrokerDisconnectedError",
    "BrokerOptions",
    "BrokerOptionsError",
    "Compression",
    "Context",
    "Encryption",
    "GracefulStopTimeoutError",
    "InvalidPacketDataError",
    "MaxCallLevelError",
    "MemoryCacher",
    "Middleware",
    "MoleculerClientError",
    "MoleculerError",
    "MoleculerRetryableError",
    "MoleculerServerError",
    "PayloadTooLargeError",
    "ProtocolVersionMismatchError",
    "QueueIsFullError",
    "RemoteError",
    "RequestRejectedError",
    "RequestSkippedError",
    "RequestTimeoutError",
    "Service",
    "ServiceBroker",
    "ServiceNotAvailableError",
    "ServiceNotFoundError",
    "ServiceSchemaError",
    "ValidationError",
    "action",
    "event",
]
