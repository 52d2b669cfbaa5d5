"""librdkafka's mock cluster: Kafka's protocol at once, inside this process, nothing to install.

For quick tests and demos, not for promises. It keeps about 5 MB a partition and then drops the
oldest without a word, has no topic ids, and answers neither the topic part of the admin API nor
transactional offsets. What it cannot show honestly, `KafkaServer` shows.

confluent-kafka can start such a cluster (`test.mock.num.brokers`), but gives no hold on it: topics
come from producing to them, always with 4 partitions, and every group waits 3 s for its first
rebalance. The library inside the wheel exports the whole of `rdkafka_mock.h`, though, so it is
called here directly, in a client instance of its own; no layout of confluent-kafka's objects is
relied on.
"""

import ctypes
from typing import Any, Self

import confluent_kafka.cimpl

from .process import Closing, ServerError, ServerUnavailable

_PRODUCER = 0  # rd_kafka_type_t
_CONF_OK = 0  # rd_kafka_conf_res_t
_POINTER, _INT, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t

# name -> (result, arguments), as rdkafka.h and rdkafka_mock.h declare them
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "rd_kafka_conf_new": (_POINTER, []),
    "rd_kafka_conf_set": (_INT, [_POINTER, _TEXT, _TEXT, _TEXT, _SIZE]),
    "rd_kafka_new": (_POINTER, [_INT, _POINTER, _TEXT, _SIZE]),
    "rd_kafka_destroy": (None, [_POINTER]),
    "rd_kafka_err2str": (_TEXT, [_INT]),
    "rd_kafka_mock_cluster_new": (_POINTER, [_POINTER, _INT]),
    "rd_kafka_mock_cluster_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_bootstraps": (_TEXT, [_POINTER]),
    "rd_kafka_mock_topic_create": (_INT, [_POINTER, _TEXT, _INT, _INT]),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [_POINTER, ctypes.c_int32]),
    "rd_kafka_mock_set_group_consumer_session_timeout_ms": (None, [_POINTER, _INT]),
    "rd_kafka_mock_set_group_consumer_heartbeat_interval_ms": (None, [_POINTER, _INT]),
}


class MockKafka(Closing):
    """A mock cluster on 127.0.0.1; other processes can join while this one lives."""

    def __init__(self, brokers: int = 1) -> None:
        """Use `start`."""
        self._c = _librdkafka()
        self._brokers = brokers
        reason = ctypes.create_string_buffer(512)
        conf = self._c["rd_kafka_conf_new"]()
        # errors only: it would warn that this client has no brokers to talk to
        self._c["rd_kafka_conf_set"](conf, b"log_level", b"3", reason, len(reason))
        self._client = self._c["rd_kafka_new"](_PRODUCER, conf, reason, len(reason))
        if not self._client:
            raise ServerError(f"no client for the mock cluster: {reason.value.decode()}")
        self._cluster = self._c["rd_kafka_mock_cluster_new"](self._client, brokers)
        if not self._cluster:
            self._c["rd_kafka_destroy"](self._client)
            raise ServerError(f"no mock cluster of {brokers} brokers (librdkafka's log says why)")
        # as KafkaServer: no wait for more members, and a killed KIP-848 member is missed after 1 s
        self._c["rd_kafka_mock_group_initial_rebalance_delay_ms"](self._cluster, 0)
        self._c["rd_kafka_mock_set_group_consumer_session_timeout_ms"](self._cluster, 1000)
        self._c["rd_kafka_mock_set_group_consumer_heartbeat_interval_ms"](self._cluster, 200)
        self.bootstrap: str = self._c["rd_kafka_mock_cluster_bootstraps"](self._cluster).decode()

    @classmethod
    def start(cls, brokers: int = 1) -> Self:
        """Starts a cluster of so many brokers; it is ready on return."""
        return cls(brokers)

    def close(self) -> None:
        """Ends the cluster; its clients see their connections close."""
        cluster, self._cluster = self._cluster, None
        if cluster:
            self._c["rd_kafka_mock_cluster_destroy"](cluster)
            self._c["rd_kafka_destroy"](self._client)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Creates a topic, with its leaders, before returning.

        Raises:
            ServerError: it exists already, or the cluster is closed.
        """
        if not self._cluster:
            raise ServerError(f"topic {name} was not created: the mock cluster is closed")
        code = self._c["rd_kafka_mock_topic_create"](
            self._cluster, name.encode(), partitions, self._brokers
        )
        if code:
            reason = self._c["rd_kafka_err2str"](code).decode()
            raise ServerError(f"topic {name} was not created: {reason}")


def _librdkafka() -> dict[str, Any]:
    """The functions above, found through the extension module that has librdkafka loaded."""
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    try:
        functions = {name: getattr(library, name) for name in _FUNCTIONS}
    except AttributeError as error:
        raise ServerUnavailable(
            f"this build of confluent-kafka hides librdkafka's mock cluster ({error}): "
            "install its wheel for Linux or macOS, or use KafkaServer"
        ) from None
    for name, (result, arguments) in _FUNCTIONS.items():
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions
