"""effectonce: Kafka consumers in which every event takes effect once, however often delivered.

import effectonce as eo

once = eo.Once("rocksdb:///var/lib/app", identify=eo.header("event-id"), effects=eo.InStore())
with eo.OnceConsumer(config, ["payments"], once) as consumer:
    consumer.run(handler)
"""

from importlib.metadata import version as _version

from effectonce import hooks
from effectonce.aio import AsyncOnceConsumer
from effectonce.consumer import END, OnceConsumer
from effectonce.errors import (
    BrokerError,
    ConfigError,
    EffectOnceError,
    HandlerFailed,
    HandlerTimeout,
    IdReused,
    PartitionStopped,
    Rival,
    StartRefused,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreUnavailable,
    TransactionClosed,
    Unidentified,
    UnknownTopic,
)
from effectonce.event import Batch, Event
from effectonce.identity import (
    cloudevent,
    custom,
    delivery,
    field,
    header,
    joined,
    payload_hash,
    record_key,
)
from effectonce.once import Once
from effectonce.owned import Health, PartitionHealth
from effectonce.policy import IGNORED, InStore, Limits, Outside, Retry
from effectonce.ports import AsyncKeyValueTx, KeyValueTx

__version__ = _version("effectonce")

__all__ = [
    "END",
    "IGNORED",
    "AsyncKeyValueTx",
    "AsyncOnceConsumer",
    "Batch",
    "BrokerError",
    "ConfigError",
    "EffectOnceError",
    "Event",
    "HandlerFailed",
    "HandlerTimeout",
    "Health",
    "IdReused",
    "InStore",
    "KeyValueTx",
    "Limits",
    "Once",
    "OnceConsumer",
    "Outside",
    "PartitionHealth",
    "PartitionStopped",
    "Retry",
    "Rival",
    "StartRefused",
    "StoreCorrupt",
    "StoreError",
    "StoreLocked",
    "StoreUnavailable",
    "TransactionClosed",
    "Unidentified",
    "UnknownTopic",
    "cloudevent",
    "custom",
    "delivery",
    "field",
    "header",
    "hooks",
    "joined",
    "payload_hash",
    "record_key",
]
