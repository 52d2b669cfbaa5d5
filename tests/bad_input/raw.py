"""Records that confluent-kafka's own producer cannot make: librdkafka is called directly."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_int32, c_size_t, c_ssize_t, c_void_p

import confluent_kafka.cimpl

_END, _TOPIC, _PARTITION, _VALUE, _KEY, _HEADERS = 0, 1, 3, 4, 5, 10  # rd_kafka_vtype_t


def produce_header(
    bootstrap: str, topic: str, name: bytes, value: bytes, *, key: bytes | None = None
) -> None:
    """One record into partition 0, with a header whose name may be any bytes."""
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    library.rd_kafka_conf_new.restype = c_void_p
    library.rd_kafka_new.restype = c_void_p
    library.rd_kafka_headers_new.restype = c_void_p
    reason = ctypes.create_string_buffer(512)
    conf = c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(conf, b"bootstrap.servers", bootstrap.encode(), reason, c_size_t(512))
    client = c_void_p(library.rd_kafka_new(c_int(0), conf, reason, c_size_t(512)))
    headers = c_void_p(library.rd_kafka_headers_new(c_size_t(1)))
    library.rd_kafka_header_add(
        headers, c_char_p(name), c_ssize_t(len(name)), c_char_p(value), c_ssize_t(len(value))
    )
    with_key = () if key is None else (c_int(_KEY), c_char_p(key), c_size_t(len(key)))
    failed = library.rd_kafka_producev(
        client,
        *(c_int(_TOPIC), c_char_p(topic.encode())),
        *(c_int(_PARTITION), c_int32(0)),
        *(c_int(_VALUE), c_char_p(b"value"), c_size_t(5)),
        *with_key,
        *(c_int(_HEADERS), headers),
        c_int(_END),
    )
    assert not failed
    assert not library.rd_kafka_flush(client, c_int(10_000))
    library.rd_kafka_destroy(client)
