"""``smartpipe publish``: which class it chooses, how it reads and validates data, and when it publishes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from pydantic import BaseModel, Field, SecretStr, field_serializer, model_validator

from smartpipe import ConfigError, Event, Publisher, Service, Topic
from smartpipe.cli.publish.choose import choose_event
from smartpipe.cli.publish.data import read_attributes, read_documents, validate_documents
from smartpipe.cli.publish.run import PublishArguments, Publishing, Report, run_publish
from smartpipe.cli.topology_app import complete_types
from smartpipe.errors import SmartpipeError, TransportError
from smartpipe.message import Failure
from smartpipe.transports.open import use_transport
from tests.support.events import Paid
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TARGET = f"{__name__}:service"
orders = Topic("orders")


class Line(BaseModel):
    sku: str
    amount: int = 1


class Address(BaseModel, extra="allow"):
    city: str = ""


class Placed(Event, topic=orders, type="publish.placed", version="1.2", key="order_id"):
    order_id: str
    cents: int = 0
    lines: tuple[Line, ...] = ()
    address: Address = Address()
    country: str = Field("", alias="Country")


class PlacedAgain(Event, topic=orders, type="publish.placed", version="2.0"):
    order_id: str


class Card(BaseModel):
    pin: int = Field(0, repr=False)


class Contact(BaseModel, hide_input_in_errors=True):
    phone: int = 0


class Keyed(Event, topic=orders, type="publish.keyed", version="1.0"):
    token: SecretStr = SecretStr("")
    card: Card = Card()
    contacts: tuple[Contact, ...] = ()

    @field_serializer("token")
    def reveal(self, token: SecretStr) -> str:
        return token.get_secret_value()

    @model_validator(mode="after")
    def check(self) -> Keyed:
        if self.token.get_secret_value() == "wrong":
            raise ValueError("the token is not accepted")
        return self


service = Service("shop", publishes=[Placed, PlacedAgain, Keyed, Paid])
ORDER = '{"order_id": "4711"}'
NO_INTEGER = "input should be a valid integer, unable to parse string as an integer"


@pytest.fixture
def transport() -> Iterator[FakeTransport]:
    found = FakeTransport()
    with use_transport(found):
        yield found


def publish(type_: str = "publish.placed", *, version: str | None = "1", data: str = ORDER, **arguments: Any) -> None:
    run_publish([TARGET], PublishArguments(type=type_, version=version, data=data, **arguments))


def bodies(transport: FakeTransport) -> list[dict[str, Any]]:
    return [json.loads(one.body) for one in transport.entries("publish")]


def problems_of(data: str, event: type[Event] = Placed) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate_documents(event, read_documents(data))
    return list(caught.value.problems)


@pytest.mark.parametrize(("type_", "version", "chosen"), [
    ("publish.keyed", None, Keyed),
    ("publish.keyed", "1", Keyed),
    ("publish.placed", "1", Placed),
    ("publish.placed", "1.2", Placed),
    ("publish.placed", "2", PlacedAgain),
])  # fmt: skip
def test_the_class_is_found_by_type_and_version(type_: str, version: str | None, chosen: type[Event]) -> None:
    assert choose_event([Placed, PlacedAgain, Keyed], type_, version) is chosen


@pytest.mark.parametrize(("type_", "version", "sentence"), [
    ("publish.placd", None, "no event of the TARGETs has the type 'publish.placd': did you mean publish.placed?"),
    ("PlacedAgain", None, "did you mean publish.placed?"),
    ("xyz", None, "their types are publish.keyed and publish.placed"),
    ("publish.placed", None, "publish.placed has the versions 1.2 and 2.0: choose one, as in --version 2.0"),
    ("publish.placed", "3", "publish.placed has no version 3: its versions are 1.2 and 2.0"),
    ("publish.placed", "1.1", "publish.placed has no version 1.1: its versions are"),
    ("publish.keyed", "2", "publish.keyed has no version 2: its version is 1.0"),
])  # fmt: skip
def test_an_unknown_type_or_version_is_reported_with_those_that_exist(
    type_: str, version: str | None, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_event([Placed, PlacedAgain, Keyed], type_, version)

    assert sentence in str(caught.value)


def test_targets_without_events_such_as_raw_handlers_are_named_as_the_reason() -> None:
    with pytest.raises(
        ConfigError, match=r"has the type 'publish\.placed', because they have no events: name the class"
    ):
        choose_event([], "publish.placed", None)


def test_data_is_read_from_the_argument_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "order.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"order_id": "é"}, indent=2).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"order_id": "2"}')))

    found = [validate_documents(Placed, read_documents(data)) for data in (ORDER, f"@{file}", "-")]

    assert [[getattr(event, "order_id", None) for event in events] for events in found] == [["4711"], ["é"], ["2"]]


def test_each_line_may_be_an_event() -> None:
    documents = read_documents('{"order_id": "1"}\n\n  {"order_id": "2"}\n')

    assert [event.model_dump()["order_id"] for event in validate_documents(Placed, documents)] == ["1", "2"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_a_line_of_json_may_have_characters_that_end_lines_elsewhere(character: str) -> None:
    documents = read_documents(f'{{"order_id": "a{character}b"}}\r\n{{"order_id": "2"}}\n')

    found = [event.model_dump()["order_id"] for event in validate_documents(Placed, documents)]

    assert found == [f"a{character}b", "2"]


@pytest.mark.parametrize(("data", "sentence"), [
    ("", "--data is empty: pass the event as a JSON object"),
    (" \n", "--data is empty"),
    ('{"a":', "--data is not JSON: Expecting value (line 1, column 6)"),
    ('{"a": 1} {"b": 2}', "--data is not JSON: Extra data (line 1, column 10)"),
    ('{"a": NaN}', "--data is not JSON: NaN is not a value of JSON"),
    ('{"a": -Infinity}', "-Infinity is not a value of JSON"),
    ("[" * 100_000, "--data is not JSON: maximum recursion depth"),
    ('{}\n{"a"\n{}', "--data, line 2 is not JSON: Expecting ':' delimiter"),
    ("@nowhere.json", "--data @nowhere.json cannot be read: No such file"),
    ("@.", "--data @. cannot be read: Is a directory"),
])  # fmt: skip
def test_data_that_cannot_be_read_is_reported_with_its_place(data: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_documents(data)

    assert sentence in str(caught.value)


def test_a_file_in_another_encoding_is_reported(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"order_id": "\xe9"}')

    with pytest.raises(ConfigError, match="is not UTF-8: .* at byte 14"):
        read_documents(f"@{tmp_path}/latin")


@pytest.mark.parametrize(("data", "problems"), [
    ("{}", ["field 'order_id' is missing: add it"]),
    ("[1]", ["it must be a JSON object with the fields of publish.placed (order_id, cents, lines, address, Country)"]),
    ('{"order_id": 5}', ["field 'order_id': input should be a valid string; the value is 5"]),
    ('{"order_id": "1", "cent": 5}', ["field 'cent' is not declared: did you mean 'cents'?"]),
    ('{"order_id": "1", "country": 5}', ["field 'country' is not declared: did you mean 'Country'?"]),
    ('{"order_id": "1", "x": 5}',
     ["field 'x' is not declared: the fields are order_id, cents, lines, address, Country"]),
    ('{"order_id": "1", "lines": [{"sku": "a"}, {"sku": "b", "amout": 2}]}',
     ["field 'lines.1.amout' is not declared: did you mean 'amount'?"]),
    ('{"order_id": "1", "lines": [{"sku": "a", "amount": "x"}]}',
     [f'field \'lines.0.amount\': {NO_INTEGER}; the value is "x"']),
    ('{"order_id": "1", "lines": {"a": 1}}', ["field 'lines': input should be a valid array"]),
    ('{"order_id": "1", "cents": "' + "x" * 200 + '"}',
     [f'field \'cents\': {NO_INTEGER}; the value is "{"x" * 99}…(202 characters)']),
])  # fmt: skip
def test_each_wrong_field_is_reported_with_its_value(data: str, problems: list[str]) -> None:
    assert problems_of(data) == [f"--data: {problem}" for problem in problems]


def test_a_model_that_allows_unknown_fields_gets_them() -> None:
    data = '{"order_id": "1", "address": {"city": "Bern", "floor": 3}}'

    [event] = validate_documents(Placed, read_documents(data))

    assert event.model_dump()["address"] == {"city": "Bern", "floor": 3}
    assert problems_of(data.replace("}}", '}, "x": 1}'))[0].startswith("--data: field 'x' is not declared")


@pytest.mark.parametrize("data", [
    '{"contacts": [{"phone": "x50505"}]}', '{"token": 50505}', '{"token": ["s50505"]}', '{"card": {"pin": "x50505"}}',
    '{"tokn": "s50505"}',
])  # fmt: skip
def test_the_value_of_a_secret_is_not_shown(data: str) -> None:
    assert "50505" not in str(problems_of(data, Keyed))


def test_an_error_of_the_whole_event_is_the_text_of_its_validator() -> None:
    assert problems_of('{"token": "wrong"}', Keyed) == ["--data: the token is not accepted"]


def test_of_many_errors_ten_are_shown_and_the_line_of_each() -> None:
    problems = problems_of("{}\n" * 25)

    assert problems[1] == "--data, line 2: field 'order_id' is missing: add it"
    assert problems[10:] == ["and 15 more errors"]


def test_attributes_are_texts_or_json() -> None:
    assert read_attributes(["tenant=acme", "filter=a=b", "none="]) == {"tenant": "acme", "filter": "a=b", "none": ""}
    assert read_attributes(["amount:=12.5", 'tags:=["a", 1]']) == {"amount": 12.5, "tags": ["a", 1]}
    for pairs, sentence in (
        (["tenant"], "'tenant' is not NAME=VALUE"),
        (["=a"], "'=a' is not"),
        (["a=1", "a=2"], "twice"),
        (["a=1", "a:=2"], "twice"),
        (["a:=x"], "a:=x is not JSON"),
        (["a:=true"], "neither a number nor a list"),
        (['a:={"b": 1}'], "neither a number nor a list"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            read_attributes(pairs)


def test_an_event_is_published_and_its_id_printed(transport: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    publish(attributes=["tenant=acme", "amount:=12.5"])

    [body] = bodies(transport)
    assert (body["type"], body["source"], body["partitionkey"]) == ("publish.placed", "smartpipe-publish", "4711")
    attributes = transport.entries("publish")[0].attributes
    assert (attributes["tenant"].value, attributes["amount"].data_type) == ("acme", "Number")
    assert capsys.readouterr() == (f"{body['id']}\n", "")
    assert transport.closed == 1


def test_an_event_may_have_a_given_id_and_queue(transport: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    publish(event_id="4711", queue="mailer", as_json=True)

    [(verb, queue, [message], _)] = transport.calls
    assert (verb, queue, json.loads(message.body)["id"]) == ("send", "mailer", "4711")
    output = capsys.readouterr()
    assert json.loads(output.out) == {
        "event_id": "4711", "type": "publish.placed", "version": "1.2", "destination": "mailer"
    }  # fmt: skip
    assert output.err == ""


def test_an_event_is_repeated_with_ids_of_its_own(transport: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    publish(count=250)

    ids = [body["id"] for body in bodies(transport)]
    output = capsys.readouterr()
    assert len(set(ids)) == 250
    assert output.out.split() == ids
    assert output.err.startswith("published 250 of 250 events of publish.placed 1.2 to orders in ")


def test_every_line_is_published(transport: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    publish(data='{"order_id": "1"}\n{"order_id": "2"}')

    assert [body["data"]["order_id"] for body in bodies(transport)] == ["1", "2"]
    assert len(capsys.readouterr().out.split()) == 2


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"attributes": ["type=x"]}, "attribute name 'type' is reserved"),
    ({"attributes": ["tenant="]}, "attribute 'tenant' must be text of at least one character"),
    ({"event_id": "x" * 300}, "event_id='xxx"),
    ({"queue": "a b"}, "queue name 'a b' may have only"),
    ({"queue": "x.fifo", "version": "2"}, "'x.fifo' is FIFO, so the event needs a key"),
    ({"data": f'{{"order_id": "{"x" * 300_000}"}}'}, "its topic or queue accepts 262,144"),
    ({"count": 3, "event_id": "1"}, "--event-id is the id of one event, and consumers would take the others of the 3"),
    ({"count": 2, "data": f"{ORDER}\n{ORDER}"}, "--count repeats one event, but --data has 2: remove --count"),
    ({"data": f"{ORDER}\n{{}}"}, "--data, line 2: field 'order_id' is missing"),
])  # fmt: skip
def test_wrong_arguments_are_configuration_errors_and_nothing_is_published(
    transport: FakeTransport, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        publish(**arguments)

    assert sentence in str(caught.value)
    assert transport.calls == []


def test_a_refused_event_stops_the_others_and_is_reported_once_for_each_reason(
    transport: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    transport.script["publish"].extend(
        [[], *[[Failure(index, "NotFound", "no such topic", retryable=False) for index in range(10)]] * 300]
    )

    with pytest.raises(SmartpipeError) as caught:
        publish(count=3_000)

    assert str(caught.value).endswith(" events were not published: NotFound: no such topic")
    output = capsys.readouterr()
    assert 0 < len(output.out.split()) < len(transport.entries("publish")) < 3_000
    assert "of 3,000 events" in output.err
    transport.script["publish"].clear()
    transport.script["publish"].append([Failure(0, "NotFound", "no such topic", retryable=False)])
    with pytest.raises(SmartpipeError, match="^1 event was not published: NotFound: no such topic$"):
        publish()


def test_an_event_that_is_refused_is_not_overtaken_by_the_next_ones_of_its_fifo_group(
    transport: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    transport.script["send"].extend([[], [Failure(0, "InvalidMessageContents", "bad", retryable=False)]])

    with pytest.raises(SmartpipeError, match="^1 event was not published: InvalidMessageContents: bad$"):
        publish(queue="orders.fifo", data="\n".join(ORDER for _ in range(5)))

    assert transport.batches("send") == [1, 1]
    assert len(capsys.readouterr().out.split()) == 1


def test_events_of_several_fifo_groups_share_requests(transport: FakeTransport) -> None:
    publish(queue="orders.fifo", data="\n".join(f'{{"order_id": "{number}"}}' for number in range(20)))

    assert transport.batches("send") == [10, 10]


def test_a_signal_stops_it_between_two_events(
    transport: FakeTransport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report.__call__

    def signal_after_two(self: Report, event_id: str) -> None:
        report(self, event_id)
        if self.published == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Report, "__call__", signal_after_two)
    with pytest.raises(typer.Exit) as caught:
        publish(count=1_000_000, rate_per_second=100)

    assert caught.value.exit_code == 128 + signal.SIGTERM
    output = capsys.readouterr()
    assert 2 <= len(output.out.split()) == len(transport.entries("publish")) < 100
    assert "of 1,000,000 events" in output.err


def test_events_that_a_signal_abandons_are_counted(
    transport: FakeTransport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.cli.publish.run.STOP_SECONDS", 0.05)
    transport.script["publish"].append(3_600.0)
    started = transport.publish

    async def signal_first(*arguments: Any) -> list[Failure]:
        os.kill(os.getpid(), signal.SIGINT)
        return await started(*arguments)

    monkeypatch.setattr(transport, "publish", signal_first)
    with pytest.raises(typer.Exit) as caught:
        publish()

    assert caught.value.exit_code == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "interrupted: 1 event may or may not have been published\n")


@pytest.mark.timeout(20)  # the deadline of an event is longer
@pytest.mark.parametrize("count", [1, 1_000])
def test_a_signal_ends_it_while_the_broker_cannot_be_reached(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("smartpipe.cli.publish.run.STOP_SECONDS", 0.05)

    async def fail(topic: str, messages: Any) -> list[Failure]:
        if not transport.calls:
            asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
        transport.calls.append(("publish", topic, messages, 0.0))
        raise TransportError("ConnectionError", "no route", retryable=True)

    monkeypatch.setattr(transport, "publish", fail)
    with pytest.raises(typer.Exit) as caught:
        publish(count=count)

    assert caught.value.exit_code == 128 + signal.SIGINT


class Ids:
    """A report that only counts."""

    def __init__(self) -> None:
        self.published = 0

    def __call__(self, event_id: str) -> None:
        self.published += 1


@pytest.mark.parametrize(("rate", "slow_seconds", "moments"), [
    (2.0, 0.0, [0, 0.5, 1, 1.5, 2]),
    (0.1, 0.0, [0, 10, 20, 30, 40]),
    (2.0, 0.3, [0, 0.5, 1, 1.5, 2]),  # the time of a request does not count
])  # fmt: skip
def test_events_are_published_at_the_rate(rate: float, slow_seconds: float, moments: list[float]) -> None:
    async def run() -> list[float]:
        transport, report = FakeTransport(), Ids()
        transport.script["publish"].extend([slow_seconds] * 5 if slow_seconds else [])
        event = Placed(order_id="1")
        async with Publisher("test", transport=transport) as publisher:
            await Publishing({}).run(publisher, [event] * 5, rate, report)  # type: ignore[arg-type]
        assert report.published == 5
        return [moment for *_, moment in transport.calls]

    assert run_virtually(run()) == pytest.approx(moments, abs=0.02)


def test_after_a_delay_the_rate_continues_and_does_not_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.cli.publish.run.MAX_CONCURRENT", 1)

    async def run() -> list[float]:
        transport = FakeTransport()
        transport.script["publish"].append(60.0)
        async with Publisher("test", transport=transport, deadline_seconds=300) as publisher:
            await Publishing({}).run(publisher, [Placed(order_id="1")] * 5, 1.0, Ids())  # type: ignore[arg-type]
        return [moment for *_, moment in transport.calls]

    assert run_virtually(run()) == pytest.approx([0, 60, 60, 60, 61], abs=0.02)  # events of one second at most


def test_a_shell_completes_the_types_of_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context = typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None)))

    assert complete_types(context) == []
    context.params["targets"] = [TARGET]
    assert complete_types(context) == ["invoice.paid", "publish.keyed", "publish.placed"]
