"""Metrics and spans by OpenTelemetry, on the hooks: the only module that imports it, its API alone.

    effectonce.otel.instrument()          # the process's own providers, or pass others

Without an SDK installed every call is a no-op. What is told is counts, offsets and durations; an
event ID is a credential and never leaves by this way. That is why an exception is told by its type
and where it was raised, not by its message: that is the handler's, and may quote an ID.

| metric | kind, unit | told of |
| --- | --- | --- |
| effectonce.delivered, .fresh, .repeats, .below | counter, records | each commit |
| effectonce.unprotected, .existing | counter, records | each commit, once there are any |
| effectonce.commit.duration, .handler.duration | histogram, seconds | each commit |
| effectonce.retries | counter | each wait before another attempt |
| effectonce.store.outages | counter | the first failure of an outage |
| effectonce.lag | gauge, records | each partition held now |

Attributes follow the messaging conventions; a batch's span is `process <topic>`, kind CONSUMER.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Counter, MeterProvider, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from effectonce.hooks import (
    BatchCommitted,
    BatchStarted,
    HookEvent,
    PartitionReleased,
    PartitionStalled,
    Retrying,
    StoreOutage,
    get_hooks,
    set_hooks,
)
from effectonce.model import Partition

__all__ = ["OpenTelemetryHook", "instrument"]

Attributes: TypeAlias = dict[str, str | int]

_NAME: Final = "effectonce"

_BUCKETS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    5,
    30,
)
"""In seconds. The API's own default counts milliseconds; a synced commit takes about one, and a
handler may take as long as it is given."""


def instrument(
    meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
) -> OpenTelemetryHook:
    """Add metrics and spans to this process's hooks, once: a second call returns the first's hook.

    Without providers the globally set ones are used, also if they are set only later.
    """
    for hook in get_hooks():
        if isinstance(hook, OpenTelemetryHook):
            return hook
    added = OpenTelemetryHook(meter_provider, tracer_provider)
    set_hooks([*get_hooks(), added])
    return added


class OpenTelemetryHook:
    """A hook that turns events into measurements, and a batch into a span."""

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)

        def counter(name: str, unit: str, description: str) -> Counter:
            return meter.create_counter(f"effectonce.{name}", unit, description)

        self._delivered = counter("delivered", "{record}", "Records that a commit settled.")
        self._fresh = counter("fresh", "{record}", "Events that took effect now.")
        self._repeats = counter("repeats", "{record}", "Records answered without running again.")
        self._below = counter("below", "{record}", "Records skipped below the stored position.")
        self._unprotected = counter("unprotected", "{record}", "Records run without an event ID.")
        self._existing = counter("existing", "{record}", "Effects that did happen again.")
        self._retries = counter("retries", "{retry}", "Attempts after a failed one.")
        self._outages = counter("store.outages", "{outage}", "Times that the store went away.")
        self._commit_seconds, self._handler_seconds = (
            meter.create_histogram(
                f"effectonce.{name}.duration",
                "s",
                description,
                explicit_bucket_boundaries_advisory=_BUCKETS,
            )
            for name, description in (
                ("commit", "Making a batch durable in the store."),
                ("handler", "Running the handlers of a batch."),
            )
        )
        meter.create_observable_gauge(
            "effectonce.lag", [self._observe_lag], "{record}", "Records behind the log's end."
        )
        self._lag: dict[Partition, int] = {}
        self._spans: dict[Partition, Span] = {}

    def __call__(self, event: HookEvent) -> None:
        match event:
            case BatchCommitted():
                self._committed(event)
            case Retrying(at=at):
                self._retries.add(1, _attributes(at))
                self._tell_span(at, "retry", event.error, event.offset)
            case StoreOutage(at=at, over=False):
                self._outages.add(1, _attributes(at))
            case PartitionStalled(at=at):
                self._tell_span(at, "partition stopped", event.error, event.offset)
            case PartitionReleased(at=at):
                self._lag.pop(at, None)  # its next owner tells it from now on
            case _:
                pass

    @contextmanager
    def around_batch(self, batch: BatchStarted) -> Iterator[None]:
        """A span while the handlers of `batch` run; theirs become its children."""
        with self._tracer.start_as_current_span(
            f"process {batch.at.topic}",
            kind=SpanKind.CONSUMER,
            attributes=_attributes(batch.at)
            | {
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.batch.message_count": batch.delivered,
                "effectonce.batch.fresh": batch.fresh,
                "effectonce.batch.repeats": batch.repeats,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._spans[batch.at] = span
            try:
                yield
            except BaseException as error:
                _record_error(span, "exception", error, {})
                raise
            finally:
                del self._spans[batch.at]

    def _committed(self, event: BatchCommitted) -> None:
        attributes = _attributes(event.at)
        for counter, count in (
            (self._delivered, event.delivered),
            (self._fresh, event.fresh),
            (self._repeats, event.repeats),
            (self._below, event.below),
        ):
            counter.add(count, attributes)
        # most never have these: no series for them until there is something to see
        for counter, count in (
            (self._unprotected, event.unprotected),
            (self._existing, event.existing),
        ):
            if count:
                counter.add(count, attributes)
        self._commit_seconds.record(event.commit_seconds, attributes)
        self._handler_seconds.record(event.handler_seconds, attributes)
        if event.lag >= 0:
            self._lag[event.at] = event.lag

    def _observe_lag(self, _: CallbackOptions) -> Iterable[Observation]:
        # called on the exporter's thread; copying a dict is atomic
        for at, lag in self._lag.copy().items():
            yield Observation(lag, _attributes(at))

    def _tell_span(self, at: Partition, name: str, error: BaseException, offset: int) -> None:
        span = self._spans.get(at, trace.INVALID_SPAN)
        _record_error(span, name, error, {"messaging.kafka.offset": offset})


def _attributes(at: Partition) -> Attributes:
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": at.topic,
        "messaging.destination.partition.id": str(at.number),
        "messaging.consumer.group.name": at.group,
    }


def _record_error(span: Span, name: str, error: BaseException, more: Attributes) -> None:
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    frames = "".join(traceback.format_tb(error.__traceback__))
    span.add_event(name, more | {"exception.type": kind, "exception.stacktrace": frames})
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, kind))
