"""The lines with metrics that a Lambda function writes, for CloudWatch's embedded metric format."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from tenacity import wait_fixed

from smartpipe import ConfigError, Reject, RetryPolicy, Service
from smartpipe.counters import Counters
from smartpipe.settings import LambdaSettings
from smartpipe.telemetry.histograms import FOLD_AT
from smartpipe.telemetry.queue_histograms import QueueHistograms
from smartpipe.transports.open import use_transport
from smartpipe.worker.emf import EmfDocuments
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.unit.test_lambda import failed, record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME = {"type": "string", "pattern": "^(.*)$", "minLength": 1, "maxLength": 255}
RATES = [f"{unit}/Second" for unit in ("Count", "Bytes", "Kilobytes", "Megabytes", "Gigabytes", "Terabytes")]
UNITS = [
    "Seconds",
    "Microseconds",
    "Milliseconds",
    "Bytes",
    "Kilobytes",
    "Megabytes",
    "Percent",
    "Count",
    "None",
    *RATES,
]
SCHEMA = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "additionalProperties": False,
            "properties": {
                "Timestamp": {"type": "integer"},
                "CloudWatchMetrics": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "additionalProperties": False,
                        "properties": {
                            "Namespace": NAME,
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {"type": "array", "maxItems": 30, "items": NAME},
                            },
                            "Metrics": {
                                "type": "array",
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "required": ["Name"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "Name": NAME,
                                        "Unit": {"enum": UNITS},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}
"""The schema of the specification, with the limits that its text adds. Source: Amazon CloudWatch user guide."""
NUMBERS: dict[str, Any] = {
    "oneOf": [{"type": "number"}, {"type": "array", "maxItems": 100, "items": {"type": "number"}}]
}


def check(line: str) -> dict[str, Any]:
    """Return the fields of a document that is valid, also in the references of the specification's text."""
    document: dict[str, Any] = json.loads(line)
    Draft202012Validator(SCHEMA).validate(document)
    assert len(line.encode()) < 256_000
    for directive in document["_aws"]["CloudWatchMetrics"]:
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert len(names) == len(set(names))
        for name in names:
            Draft202012Validator(NUMBERS).validate(document[name])
        for dimension in (name for names in directive["Dimensions"] for name in names):
            assert isinstance(document[dimension], str)
    return document


def values_of(document: Mapping[str, Any]) -> dict[str, Any]:
    names = [metric["Name"] for metric in document["_aws"]["CloudWatchMetrics"][0]["Metrics"]]
    return {name: document[name] for name in names}


def make() -> tuple[Counters, QueueHistograms, EmfDocuments]:
    histograms = QueueHistograms(["user.signed_up"])
    histograms.add_handler("welcome")
    counters = Counters(histograms=histograms)
    return counters, histograms, EmfDocuments("mailer", "staging-mailer", "smartpipe", counters)


def test_a_document_has_the_counts_and_the_times_of_one_invocation() -> None:
    counters, histograms, documents = make()
    counters.handled, counters.retried, counters.deduplicated, counters.not_ended = 3, 1, 2, 1
    histograms.types["user.signed_up"].critical_time.record(1.5)
    histograms.other.critical_time.record(2.0)
    histograms.types["user.signed_up"].queue_time.record(0.25)
    histograms.handlers["welcome"]["handled"].record(0.1234567)
    histograms.handlers["welcome"]["timed_out"].record(30)
    histograms.handlers["welcome"]["deferred"].record(9)

    [line] = documents.render(1_700_000_000.1234, "request-1")

    document = check(line)
    assert document["_aws"]["Timestamp"] == 1_700_000_000_123
    [directive] = document["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("smartpipe", [["service", "queue"]])
    assert (document["service"], document["queue"]) == ("mailer", "staging-mailer")
    assert document["aws_request_id"] == "request-1"
    assert values_of(document) == {
        "messages_handled": 3,
        "messages_retried": 1,
        "messages_dead_lettered": 0,
        "deduplicated": 2,
        "handlers_not_ended": 1,
        "critical_time_seconds": [1.5, 2.0],
        "queue_time_seconds": [0.25],
        "handler_seconds": [0.123457, 30],
    }
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert {name for name, unit in units.items() if unit == "Seconds"} == {
        *("critical_time_seconds", "queue_time_seconds", "handler_seconds")
    }
    assert set(units.values()) == {"Seconds", "Count"}


def test_the_next_document_has_only_the_difference() -> None:
    counters, histograms, documents = make()
    counters.handled = 3
    histograms.other.critical_time.record(2.0)
    list(documents.render(0))

    counters.handled += 2
    histograms.other.critical_time.record(4.0)
    [line] = documents.render(0)
    assert values_of(check(line)) == {
        "messages_handled": 2,
        "messages_retried": 0,
        "messages_dead_lettered": 0,
        "critical_time_seconds": [4.0],
    }
    [empty] = documents.render(0)
    assert values_of(check(empty)) == dict.fromkeys(
        ("messages_handled", "messages_retried", "messages_dead_lettered"), 0
    )


def test_more_values_than_an_array_may_have_are_in_more_lines_and_counted_once() -> None:
    counters, histograms, documents = make()
    counters.handled = 250
    values = [float(number) for number in range(250)]
    for value in values:
        histograms.handlers["welcome"]["handled"].record(value)
    histograms.other.queue_time.record(1)
    assert 2 * FOLD_AT < 250  # also values that have been folded before

    lines = [check(line) for line in documents.render(0)]

    assert [len(line["handler_seconds"]) for line in lines] == [100, 100, 50]
    assert sorted(value for line in lines for value in line["handler_seconds"]) == values
    assert [line.get("messages_handled") for line in lines] == [250, None, None]
    assert [line.get("queue_time_seconds") for line in lines] == [[1], None, None]


def test_counts_before_the_first_invocation_do_not_count() -> None:
    counters = Counters(handled=9)
    [line] = EmfDocuments("mailer", "mailer", "x", counters).render(0)
    assert values_of(check(line))["messages_handled"] == 0


@pytest.mark.parametrize("namespace", ["My/App", "staging.x-1_#:y", " a"])
def test_a_namespace_may_have_the_characters_of_cloudwatch(namespace: str) -> None:
    assert LambdaSettings.load(emf_namespace=namespace).emf_namespace == namespace


@pytest.mark.parametrize("namespace", [":a", "ä", "a" * 256, "a,b"])
def test_another_namespace_is_a_wrong_setting(namespace: str) -> None:
    with pytest.raises(ConfigError, match="emf-namespace"):
        LambdaSettings.load(emf_namespace=namespace)


@pytest.fixture
def transport() -> Iterator[FakeTransport]:
    transport = FakeTransport()
    with use_transport(transport):
        yield transport


@pytest.fixture
def _on_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "mailer")


def make_service() -> Service:
    service = Service("mailer", retry=RetryPolicy(wait=wait_fixed(7)))

    @service.subscribe(UserSignedUp)
    async def welcome(_: UserSignedUp) -> None: ...

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        raise Reject("never") if event.name == "bad" else OSError("down")

    return service


class Context:
    aws_request_id = "request-1"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def documents_in(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [check(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("_on_lambda")
async def test_each_invocation_writes_a_line(
    transport: FakeTransport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFIX", "staging-")
    handler = make_service().lambda_handler()
    left, bad = UserLeft(name="x"), UserLeft(name="bad")
    records = [record(event, number, queue="staging-mailer") for number, event in enumerate((ADA, left, bad), 1)]

    assert failed(await handler.handle({"Records": records}, Context())) == ["id-2"]

    [first] = documents_in(capsys)
    assert (first["service"], first["queue"], first["aws_request_id"]) == ("mailer", "staging-mailer", "request-1")
    counts = {name: value for name, value in values_of(first).items() if name.startswith("messages_")}
    assert counts == {"messages_handled": 1, "messages_retried": 1, "messages_dead_lettered": 1}
    assert [len(first[name]) for name in ("critical_time_seconds", "queue_time_seconds", "handler_seconds")] == [
        2,
        3,
        3,
    ]

    await handler.handle({"Records": [record(ADA, 4, queue="staging-mailer")]}, Context())

    [second] = documents_in(capsys)
    assert values_of(second)["messages_handled"] == 1
    assert len(second["critical_time_seconds"]) == 1
    await handler.aclose()


async def test_each_queue_of_an_invocation_has_a_line(
    transport: FakeTransport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "mailer")
    monkeypatch.setenv("SMARTPIPE_EMF_NAMESPACE", "Shop")
    service = make_service()
    service.subscribe(UserSignedUp, queue="audit")(_audit)
    handler = service.lambda_handler()

    await handler.handle({"Records": [record(ADA, 1), record(ADA, 2, queue="audit")]})

    documents = documents_in(capsys)
    assert {document["queue"] for document in documents} == {"mailer", "audit"}
    assert {document["_aws"]["CloudWatchMetrics"][0]["Namespace"] for document in documents} == {"Shop"}
    assert all(document["messages_handled"] == 1 for document in documents)
    await handler.aclose()


async def _audit(_: UserSignedUp) -> None: ...


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AWS_LAMBDA_FUNCTION_NAME": "mailer", "SMARTPIPE_METRICS": "false"},
        {"AWS_LAMBDA_FUNCTION_NAME": "mailer", "SMARTPIPE_EMF": "false"},
    ],
)
async def test_outside_of_lambda_and_if_turned_off_nothing_is_written(
    variables: dict[str, str],
    transport: FakeTransport,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    handler = make_service().lambda_handler()
    assert failed(await handler.handle({"Records": [record(ADA)]})) == []
    await handler.aclose()
    assert capsys.readouterr().out == ""


class _Broken:
    def write(self, _: str) -> None:
        raise OSError("the pipe is broken")


@pytest.mark.usefixtures("_on_lambda")
async def test_metrics_that_cannot_be_written_change_no_response(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handler = make_service().lambda_handler()
    monkeypatch.setattr(sys, "stdout", _Broken())
    response = await handler.handle({"Records": [record(ADA), record(UserLeft(name="x"), 2)]})
    monkeypatch.undo()
    assert failed(response) == ["id-2"]
    assert "Cannot write the metrics of this invocation: the pipe is broken" in caplog.messages
    await handler.aclose()
