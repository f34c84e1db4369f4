"""Our metrics as data of OpenTelemetry, and the variables that ask for them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import AggregationTemporality
from opentelemetry.sdk.resources import Resource

from smartpipe.telemetry.conventions import OPERATIONS, add_histograms, derive_conventions
from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.histograms import CALL_BOUNDS, HANDLER_BOUNDS, Histogram
from smartpipe.telemetry.otlp import UNITS, convert, name_and_unit
from smartpipe.telemetry.otlp_variables import find_request, has_exporter_timeout, read_options

START, NOW = 1_000, 2_000


def histogram_of(*values: float, bounds: tuple[float, ...] = CALL_BOUNDS) -> Histogram:
    histogram = Histogram(bounds)
    for value in values:
        histogram.record(value)
    return histogram


def family_of(name: str, kind: str, *samples: tuple[dict[str, str], Any]) -> Family:
    return Family(f"smartpipe_{name}", kind, "Some text.", [Sample(*sample) for sample in samples])


def metrics_of(*families: Family) -> dict[str, Any]:
    """Return the converted metrics by name; the exporter can encode all of them."""
    data = convert(families, Resource({"service.name": "mailer"}), start=START, now=NOW)
    encode_metrics(data)
    [resource] = data.resource_metrics
    [scope] = resource.scope_metrics
    assert (resource.resource.attributes, scope.scope.name) == ({"service.name": "mailer"}, "smartpipe")
    return {metric.name: metric for metric in scope.metrics}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smartpipe_critical_time_seconds", ("smartpipe.critical_time", "s")),
        ("smartpipe_messages_total", ("smartpipe.messages", "")),
        ("smartpipe_queue_messages", ("smartpipe.queue_messages", "")),
        ("smartpipe_outbox_lag_seconds", ("smartpipe.outbox_lag", "s")),
        ("messaging.process.duration", ("messaging.process.duration", "s")),
        ("messaging.client.sent.messages", ("messaging.client.sent.messages", "{message}")),
    ],
)
def test_names_have_dots_and_no_suffixes_that_prometheus_would_add_again(name: str, expected: tuple[str, str]) -> None:
    assert name_and_unit(Family(name, "gauge", "", [])) == expected


def test_counters_gauges_and_histograms_keep_their_labels_and_the_start_of_counting() -> None:
    found = metrics_of(
        family_of("things_total", "counter", ({"queue": "a"}, 3), ({"queue": "b"}, 0)),
        family_of("backlog_seconds", "gauge", ({"queue": "a"}, math.inf)),
        family_of("wait_seconds", "histogram", ({"queue": "a"}, histogram_of(0.003, 0.005, 7, 99))),
        family_of("unknown", "gauge"),
    )

    assert list(found) == ["smartpipe.things", "smartpipe.backlog", "smartpipe.wait"]
    things, backlog, wait = (metric.data for metric in found.values())
    assert (things.is_monotonic, things.aggregation_temporality) == (True, AggregationTemporality.CUMULATIVE)
    assert [(point.attributes, point.value) for point in things.data_points] == [
        ({"queue": "a"}, 3),
        ({"queue": "b"}, 0),
    ]
    [gauge], [histogram] = backlog.data_points, wait.data_points
    assert (gauge.value, gauge.time_unix_nano, gauge.start_time_unix_nano) == (math.inf, NOW, None)
    assert wait.aggregation_temporality == AggregationTemporality.CUMULATIVE
    assert (histogram.count, histogram.explicit_bounds) == (4, list(CALL_BOUNDS))
    assert histogram.sum == pytest.approx(106.008)
    assert [n for n in histogram.bucket_counts if n] == [2, 1, 1]
    assert {(p.start_time_unix_nano, p.time_unix_nano) for p in (*things.data_points, histogram)} == {(START, NOW)}


def test_exemplars_arrive_with_their_trace() -> None:
    histogram = histogram_of(0.3)
    histogram.add_exemplar(0.3, "0af7651916cd43dd8448eb211c80319c")
    data = convert([family_of("wait_seconds", "histogram", ({}, histogram))], Resource({}), start=START, now=NOW)

    [metric] = encode_metrics(data).resource_metrics[0].scope_metrics[0].metrics
    [exemplar] = metric.histogram.data_points[0].exemplars
    assert (exemplar.trace_id.hex(), exemplar.as_double) == ("0af7651916cd43dd8448eb211c80319c", 0.3)


def call(operation: str, error: str = "", service: str = "mailer") -> dict[str, str]:
    return {"service": service, "operation": operation, "destination": "users", "error": error}


def test_calls_are_the_operations_of_the_conventions() -> None:
    samples = [(call(name), histogram_of(0.1)) for name in (*OPERATIONS, "count_messages") if name != "process"]
    failed = (call("publish", "Throttling"), histogram_of(0.1, 0.2))
    found = metrics_of(family_of("call_seconds", "histogram", *samples, failed))["messaging.client.operation.duration"]

    attributes = [
        {
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.system": system,
            "messaging.destination.name": "users",
        }
        for name, kind, system in (
            ("publish", "send", "aws.sns"),
            ("send", "send", "aws_sqs"),
            ("receive", "receive", "aws_sqs"),
            ("delete", "settle", "aws_sqs"),
            ("change_visibility", "settle", "aws_sqs"),
        )
    ]
    expected = [*attributes, {**attributes[0], "error.type": "Throttling"}]
    assert [point.attributes for point in found.data.data_points] == expected
    assert [point.count for point in found.data.data_points] == [1, 1, 1, 1, 1, 2]
    assert found.unit == "s"


def test_samples_that_differ_only_in_our_labels_are_added() -> None:
    calls = family_of("call_seconds", "histogram", *((call("publish", service=one), histogram_of(0.1)) for one in "ab"))
    [point] = metrics_of(calls)["messaging.client.operation.duration"].data.data_points
    assert (point.count, point.sum) == (2, pytest.approx(0.2))


def test_published_events_are_sent_messages_of_sns_or_of_sqs() -> None:
    calls = family_of("call_seconds", "histogram", ({**call("send"), "destination": "mail"}, histogram_of(0.1)))
    results = family_of(
        "published_total",
        "counter",
        ({"service": "web", "destination": "users", "result": "published"}, 5),
        ({"service": "web", "destination": "users", "result": "InternalError"}, 2),
        ({"service": "web", "destination": "mail", "result": "published"}, 3),
    )
    found = metrics_of(calls, results)["messaging.client.sent.messages"]

    points = [
        (p.attributes["messaging.operation.name"], p.attributes["messaging.system"], p.attributes.get("error.type"))
        for p in found.data.data_points
    ]
    assert points == [("publish", "aws.sns", None), ("publish", "aws.sns", "InternalError"), ("send", "aws_sqs", None)]
    assert [point.value for point in found.data.data_points] == [5, 2, 3]


def test_received_messages_are_consumed_messages() -> None:
    received = family_of("messages_received_total", "counter", ({"service": "mailer", "queue": "mail"}, 7))
    [point] = metrics_of(received)["messaging.client.consumed.messages"].data.data_points
    assert (point.value, point.attributes["messaging.operation.name"]) == (7, "receive")
    assert point.attributes["messaging.destination.name"] == "mail"


def test_handler_calls_are_process_durations_in_the_buckets_of_the_conventions() -> None:
    def handler(name: str, outcome: str) -> dict[str, str]:
        return {"service": "mailer", "queue": "mail", "handler": name, "outcome": outcome}

    values = [0.0005, 0.005, 0.006, 10, 25, 400]
    family = family_of(
        "handler_seconds",
        "histogram",
        (handler("a", "handled"), histogram_of(*values, bounds=HANDLER_BOUNDS)),
        (handler("b", "handled"), histogram_of(0.5, bounds=HANDLER_BOUNDS)),
        (handler("a", "failed"), histogram_of(1, bounds=HANDLER_BOUNDS)),
        (handler("a", "timed_out"), histogram_of(bounds=HANDLER_BOUNDS)),
        (handler("a", "deferred"), histogram_of(2, bounds=HANDLER_BOUNDS)),
    )
    handled, failed = metrics_of(family)["messaging.process.duration"].data.data_points

    assert handled.explicit_bounds == list(CALL_BOUNDS)
    assert handled.bucket_counts == histogram_of(*values, 0.5).snapshot()[0]
    assert handled.attributes["messaging.operation.name"] == "process"
    assert "error.type" not in handled.attributes
    assert (failed.count, failed.attributes["error.type"]) == (1, "failed")


def test_without_a_sample_no_metric_of_the_conventions_is_derived() -> None:
    assert list(derive_conventions([])) == []
    assert set(UNITS) == {
        *("messaging.client.operation.duration", "messaging.client.sent.messages"),
        *("messaging.client.consumed.messages", "messaging.process.duration"),
    }


def test_the_sum_of_histograms_keeps_their_exemplars() -> None:
    part = histogram_of(42, bounds=HANDLER_BOUNDS)
    part.add_exemplar(42, "ab")
    [(bucket, exemplar)] = add_histograms(CALL_BOUNDS, [part]).exemplars.items()
    assert (bucket, exemplar.trace_id) == (len(CALL_BOUNDS), "ab")


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector"}, None),
        (ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector"}, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"),
        ({"OTEL_METRICS_EXPORTER": "OTLP"}, "OTEL_METRICS_EXPORTER=otlp"),
        ({"OTEL_METRICS_EXPORTER": "console, otlp"}, "OTEL_METRICS_EXPORTER=console, otlp"),
        (ENDPOINT | {"OTEL_METRICS_EXPORTER": "none"}, None),
        (ENDPOINT | {"OTEL_METRICS_EXPORTER": "prometheus"}, None),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, None),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_the_variables_decide_about_the_export(environ: dict[str, str], expected: str | None) -> None:
    assert find_request(environ) == expected


def test_options_have_the_defaults_of_the_specification() -> None:
    assert read_options({}) == ("http/protobuf", "http://localhost:4318", 60.0, 30.0, ())
    assert read_options({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})[:2] == ("grpc", "http://localhost:4317")


def test_options_are_read_and_those_for_metrics_come_first() -> None:
    options = read_options(
        ENDPOINT
        | {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://user:secret@metrics.example:1/v1/metrics?key=x",
            "OTEL_METRIC_EXPORT_INTERVAL": "5000",
            "OTEL_METRIC_EXPORT_TIMEOUT": "250",
        }
    )
    assert options == ("http/protobuf", "https://metrics.example:1", 5.0, 0.25, ())


def test_wrong_values_are_replaced_by_the_defaults_with_a_warning() -> None:
    options = read_options(
        {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            "OTEL_METRIC_EXPORT_INTERVAL": "0",
            "OTEL_METRIC_EXPORT_TIMEOUT": "soon",
        }
    )
    assert options[:4] == ("http/protobuf", "http://localhost:4318", 60.0, 30.0)
    assert options.warnings == (
        "OTEL_EXPORTER_OTLP_PROTOCOL=http/json is ignored: smartpipe exports metrics with http/protobuf or grpc",
        "OTEL_METRIC_EXPORT_INTERVAL=0 is ignored: it must be a number of milliseconds above 0. Using 60 s",
        "OTEL_METRIC_EXPORT_TIMEOUT=soon is ignored: it must be a number of milliseconds above 0. Using 30 s",
    )


def test_an_endpoint_that_is_not_a_url_is_named_once() -> None:
    options = read_options({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:secret@[::1"})

    assert options.endpoint == "that address"
    assert options.warnings == ("OTEL_EXPORTER_OTLP_ENDPOINT is not a URL: Invalid IPv6 URL",)


def test_a_timeout_of_the_exporter_is_left_to_it() -> None:
    assert not has_exporter_timeout({})
    assert has_exporter_timeout({"OTEL_EXPORTER_OTLP_TIMEOUT": "3"})
    assert has_exporter_timeout({"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "3"})
