"""What OpenTelemetry is told: counts, durations, lag and a span a batch; never an event ID."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from effectonce import hooks
from effectonce.hooks import (
    BatchCommitted,
    BatchStarted,
    PartitionReleased,
    PartitionStalled,
    Retrying,
    StoreOutage,
)
from effectonce.model import Partition
from effectonce.otel import OpenTelemetryHook, instrument

AT = Partition("payments", "billing", "orders", 3)
OTHER = Partition("payments", "billing", "orders", 4)
ATTRIBUTES = {
    "messaging.system": "kafka",
    "messaging.destination.name": "orders",
    "messaging.destination.partition.id": "3",
    "messaging.consumer.group.name": "billing",
}
BATCH = BatchStarted(AT, delivered=10, fresh=7, repeats=2)
SECRET = "invoice-4711"


class Telemetry:
    """An SDK in memory."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def points(self, name: str) -> list[Any]:
        """The data points of one metric, in the order of their partitions."""
        data = self._reader.get_metrics_data()
        found = [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]
        return sorted(found, key=lambda p: str(p.attributes["messaging.destination.partition.id"]))

    def values(self, name: str) -> list[Any]:
        return [point.value for point in self.points(name)]

    def span(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    hooks.set_hooks([OpenTelemetryHook(telemetry.meters, telemetry.tracers)])
    yield telemetry
    hooks.set_hooks([])
    telemetry.meters.shutdown()
    telemetry.tracers.shutdown()


def committed(at: Partition = AT, **changed: Any) -> BatchCommitted:
    fields: dict[str, Any] = {
        "delivered": 10,
        "fresh": 7,
        "repeats": 2,
        "below": 1,
        "unprotected": 0,
        "existing": 0,
        "next": 42,
        "handler_seconds": 0.25,
        "commit_seconds": 0.002,
        "lag": 5,
    }
    return BatchCommitted(at, **(fields | changed))


def failed(message: str) -> ValueError:
    """An exception that was raised, so that it has a traceback."""
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_each_commit_adds_its_counts_to_its_partition(telemetry: Telemetry) -> None:
    hooks.emit(committed())
    hooks.emit(committed())
    hooks.emit(committed(OTHER, delivered=1, fresh=1, repeats=0, below=0))
    assert telemetry.values("effectonce.delivered") == [20, 1]
    assert telemetry.values("effectonce.fresh") == [14, 1]
    assert telemetry.values("effectonce.repeats") == [4, 0]
    assert telemetry.values("effectonce.below") == [2, 0]
    assert telemetry.points("effectonce.delivered")[0].attributes == ATTRIBUTES


def test_effects_that_happened_again_and_unprotected_records_are_counted_once_there_are_any(
    telemetry: Telemetry,
) -> None:
    hooks.emit(committed())
    assert telemetry.values("effectonce.existing") == []
    hooks.emit(committed(existing=1, unprotected=3))
    assert telemetry.values("effectonce.existing") == [1]
    assert telemetry.values("effectonce.unprotected") == [3]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("effectonce.commit.duration", 0.002), ("effectonce.handler.duration", 0.25)],
)
def test_a_duration_is_in_seconds_with_buckets_that_tell_a_fast_one_from_a_slow_one(
    telemetry: Telemetry, name: str, seconds: float
) -> None:
    hooks.emit(committed())
    (point,) = telemetry.points(name)
    assert isinstance(point, HistogramDataPoint)
    assert point.count == 1
    assert point.sum == pytest.approx(seconds)
    bounds = [0.0, *point.explicit_bounds, float("inf")]
    bucket = list(point.bucket_counts).index(1)
    assert bounds[bucket] < seconds <= bounds[bucket + 1] <= 4 * seconds
    assert dict(point.attributes or {}) == ATTRIBUTES


def test_retries_and_outages_are_counted_and_the_end_of_an_outage_is_not_another(
    telemetry: Telemetry,
) -> None:
    hooks.emit(Retrying(AT, offset=9, attempt=1, wait_seconds=0.2, error=failed("no")))
    hooks.emit(Retrying(AT, offset=9, attempt=2, wait_seconds=0.4, error=failed("no")))
    hooks.emit(StoreOutage(AT, over=False, error=failed("disk full"), lasted_seconds=0.0))
    hooks.emit(StoreOutage(AT, over=True, error=None, lasted_seconds=3.5))
    assert telemetry.values("effectonce.retries") == [2]
    assert telemetry.values("effectonce.store.outages") == [1]


def test_lag_is_the_latest_of_each_partition_that_is_still_held(telemetry: Telemetry) -> None:
    hooks.emit(committed(lag=5))
    hooks.emit(committed(lag=3))
    hooks.emit(committed(OTHER, lag=8))
    assert telemetry.values("effectonce.lag") == [3, 8]
    hooks.emit(PartitionReleased(AT, "revoked"))
    assert telemetry.values("effectonce.lag") == [8]


def test_a_lag_that_is_not_known_is_not_told_as_a_number(telemetry: Telemetry) -> None:
    hooks.emit(committed(lag=-1))
    assert telemetry.values("effectonce.lag") == []


def test_a_batch_is_one_consumer_span_with_its_counts(telemetry: Telemetry) -> None:
    with hooks.around_batch(BATCH):
        pass
    span = telemetry.span()
    assert (span.name, span.kind) == ("process orders", SpanKind.CONSUMER)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == ATTRIBUTES | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.batch.message_count": 10,
        "effectonce.batch.fresh": 7,
        "effectonce.batch.repeats": 2,
    }


def test_spans_of_the_handlers_are_children_of_the_batch(telemetry: Telemetry) -> None:
    tracer = telemetry.tracers.get_tracer("app")
    with hooks.around_batch(BATCH), tracer.start_as_current_span("charge"):
        pass
    charge, batch = telemetry.exporter.get_finished_spans()
    assert charge.parent is not None
    assert batch.context is not None
    assert charge.parent.span_id == batch.context.span_id


def test_an_exception_of_the_handlers_marks_the_span_and_goes_on(telemetry: Telemetry) -> None:
    error = ValueError(f"cannot charge {SECRET}")
    with pytest.raises(ValueError, match="cannot charge") as caught, hooks.around_batch(BATCH):
        raise error
    assert caught.value is error
    span = telemetry.span()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ValueError"
    (event,) = span.events
    assert event.name == "exception"
    assert "test_otel.py" in str((event.attributes or {})["exception.stacktrace"])


def test_a_retry_and_a_stop_inside_a_batch_are_told_by_its_span_and_no_others(
    telemetry: Telemetry,
) -> None:
    with hooks.around_batch(BATCH):
        hooks.emit(Retrying(AT, offset=9, attempt=1, wait_seconds=0.2, error=failed("no")))
        hooks.emit(Retrying(OTHER, offset=1, attempt=1, wait_seconds=0.2, error=failed("no")))
        hooks.emit(PartitionStalled(AT, offset=9, error=failed("no")))
    hooks.emit(PartitionStalled(AT, offset=9, error=failed("no")))
    span = telemetry.span()
    assert [event.name for event in span.events] == ["retry", "partition stopped"]
    assert all((e.attributes or {})["messaging.kafka.offset"] == 9 for e in span.events)
    assert span.status.status_code is StatusCode.ERROR


def test_a_message_of_the_handler_never_leaves_since_it_may_quote_an_event_id(
    telemetry: Telemetry,
) -> None:
    retrying = Retrying(AT, offset=9, attempt=1, wait_seconds=0.2, error=failed(SECRET))

    def run() -> None:
        with hooks.around_batch(BATCH):
            hooks.emit(retrying)
            hooks.emit(PartitionStalled(AT, offset=9, error=failed(SECRET)))
            raise failed(SECRET)

    with pytest.raises(ValueError, match=SECRET):
        run()
    exported = telemetry.span().to_json()
    assert "exception.stacktrace" in exported
    assert SECRET not in exported


def test_instrument_adds_to_the_hooks_that_are_there_and_counts_once_when_called_twice() -> None:
    telemetry = Telemetry()
    before = print
    hooks.set_hooks([before])
    try:
        first = instrument(telemetry.meters, telemetry.tracers)
        second = instrument(telemetry.meters, telemetry.tracers)
        assert first is second
        assert hooks.get_hooks() == (before, first)
        hooks.emit(committed())
        assert telemetry.values("effectonce.delivered") == [10]
    finally:
        hooks.set_hooks([])
        telemetry.meters.shutdown()


WITHOUT_SDK = """
import logging, sys
sys.modules["opentelemetry.sdk"] = None          # as if it were not installed
logging.basicConfig(level=logging.WARNING)
from effectonce import hooks, otel
from effectonce.model import Partition
at = Partition("payments", "billing", "orders", 3)
otel.instrument()
with hooks.around_batch(hooks.BatchStarted(at, 10, 7, 2)):
    hooks.emit(hooks.Retrying(at, 9, 1, 0.2, ValueError()))
hooks.emit(hooks.BatchCommitted(at, 10, 7, 2, 1, 1, 1, 42, 0.25, 0.002, 5))
hooks.emit(hooks.PartitionReleased(at, "revoked"))
print("done")
"""


def test_without_an_sdk_all_of_it_is_a_silent_no_op() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_SDK], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
