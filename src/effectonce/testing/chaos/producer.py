"""The producer: a paced stream whose events repeat, as the plan says."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence

from confluent_kafka import KafkaError, Message
from confluent_kafka import Producer as Client

_TICK_SECONDS = 0.005
_FLUSH_SECONDS = 30.0


class Producer(threading.Thread):
    """Produces `order` at `rate` records a second, keyed by event ID, and never past `gate`.

    Idempotent, so that every repeat in the topic is one of the plan's.
    """

    def __init__(
        self, bootstrap: str, topic: str, events: Sequence[bytes], order: Sequence[int], rate: float
    ) -> None:
        super().__init__(name="chaos-producer", daemon=True)
        self.gate = 0
        self.produced = 0
        """Records handed to the client so far."""
        self.ends: dict[int, int] = {}
        """By partition, the offset after the last record that the broker has acknowledged."""
        self.delivered = 0
        self.error: str | None = None
        self._topic = topic
        self._events = events
        self._order = order
        self._rate = rate
        self._stopped = threading.Event()
        self._client = Client(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 3,  # that a fresh broker's coordinator still loads is no news
            }
        )

    @property
    def done(self) -> bool:
        """Everything is in the topic."""
        return self.delivered == len(self._order)

    def run(self) -> None:
        allowed, before = 0.0, time.monotonic()
        while self.produced < len(self._order) and not self._stopped.wait(_TICK_SECONDS):
            now = time.monotonic()
            # what the gate held back is not caught up on later: the pace stays what it is
            allowed = min(allowed + (now - before) * self._rate, self.gate, len(self._order))
            before = now
            while self.produced < int(allowed):
                self._produce(self._order[self.produced])
            self._client.poll(0)
        if self._client.flush(0 if self._stopped.is_set() else _FLUSH_SECONDS):
            self.error = self.error or "the broker did not acknowledge every record"

    def stop(self) -> None:
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def _produce(self, number: int) -> None:
        event_id = str(uuid.UUID(bytes=self._events[number]))
        value = f'{{"account": {number % 1000}, "cents": {number % 9973 + 1}}}'
        self._client.produce(
            self._topic,
            key=event_id,
            value=value,
            headers=[("event-id", event_id.encode())],
            on_delivery=self._acknowledged,
        )
        self.produced += 1

    def _acknowledged(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.error = str(error)
            return
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        self.ends[partition] = max(self.ends.get(partition, 0), offset + 1)
        self.delivered += 1
