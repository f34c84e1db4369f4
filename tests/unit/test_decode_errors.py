"""How much of an error is kept, where a body is decoded, and which numbers cannot be published."""

from __future__ import annotations

import json
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, Field, Json, field_validator

from smartpipe import DecodeError, Event, PublishError, Topic
from smartpipe.envelope import decode, encode, wrap
from smartpipe.envelope.decode import (
    INLINE_CHARACTERS,
    INLINE_OBJECTS,
    SMALL_CHARACTERS,
    UNPARSED_CHARACTERS,
    Decoder,
    MessageReader,
    get_decoder,
)
from smartpipe.envelope.other_data import find_other_data, is_binary_mode, make_empty
from smartpipe.message import Attribute, Message
from smartpipe.payload_offload import PayloadOffload

if TYPE_CHECKING:
    from collections.abc import Callable

numbers = Topic("numbers")


FIELDS: dict[str, Any] = {f"n{number}": (int, 0) for number in range(30)}


def wide() -> type[Event]:
    namespace = {
        "__module__": __name__, "__qualname__": "Numbers", "__annotations__": dict.fromkeys(FIELDS, int),
        **dict.fromkeys(FIELDS, 0),
    }  # fmt: skip
    meta: Any = type(Event)
    made: type[Event] = meta("Numbers", (Event,), namespace, topic=numbers, type="errors.numbers", version="1.0")
    return made


def body(data: Any, type_: str = "errors.numbers") -> str:
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": type_, "data": data}
    return json.dumps(event, separators=(",", ":"))


@pytest.mark.parametrize("version", ["1", "v1.0", "", 1, 1.0, {}])
@pytest.mark.parametrize("large", [False, True])
def test_a_wrong_version_is_one_error_that_says_how_to_write_it(version: Any, large: bool) -> None:
    decoder = Decoder([wide()])
    text = json.dumps({**json.loads(body({})), "dataversion": version})

    with pytest.raises(DecodeError) as caught:
        decoder.decode_large(text, 1_000) if large else decoder.decode(text)

    sentence = "dataversion: input should be a version as text, major.minor, such as 1.0"
    assert str(caught.value) == f"the body is not a CloudEvent 1.0: {sentence}"
    assert [error["loc"] for error in caught.value.errors] == [("dataversion",)]


@pytest.mark.parametrize(("wrong", "kept", "more"), [
    (1, 1, ""), (3, 3, ""), (4, 4, "; and 1 more"), (20, 20, "; and 17 more"), (25, 20, "; and 22 more"),
])  # fmt: skip
def test_three_errors_are_named_and_twenty_kept(wrong: int, kept: int, more: str) -> None:
    data = dict.fromkeys(list(FIELDS)[:wrong], "x")

    with pytest.raises(DecodeError) as caught:
        Decoder([wide()]).decode(body(data))

    assert len(caught.value.errors) == kept
    assert str(caught.value).count("input should be a valid integer") == min(3, wrong)
    assert str(caught.value).endswith(more or "as an integer")
    assert all(set(error) == {"type", "loc", "msg"} for error in caught.value.errors)


def test_a_long_name_and_a_long_message_are_cut() -> None:
    class Long(Event, topic=numbers, type="errors.long", version="1.0"):
        names: dict[str, int] = Field({})
        text: str = ""

        @field_validator("text")
        @classmethod
        def check(cls, _: str) -> str:
            raise ValueError("y" * 600)

    with pytest.raises(DecodeError) as caught:
        Decoder([Long]).decode(body({"names": {"n" * 200: "x"}, "text": "x"}, "errors.long"))

    name, text = caught.value.errors
    assert name["loc"] == ("data", "names", "n" * 100)
    assert len(text["msg"]) == 500


@pytest.mark.parametrize(("length", "cut"), [(400, False), (600, True)])
def test_the_text_of_a_broken_validator_is_cut(length: int, cut: bool) -> None:
    class Broken(Event, topic=numbers, type="errors.broken", version="1.0"):
        text: str

        @field_validator("text")
        @classmethod
        def check(cls, _: str) -> str:
            raise LookupError("z" * length)

    with pytest.raises(DecodeError, match="a validator of the event class failed: LookupError: LookupError") as caught:
        Decoder([Broken]).decode(body({"text": "x"}, "errors.broken"))
    found = str(caught.value).count("z")
    assert (found < length) is cut
    assert not cut or found == 500 - len("LookupError('")


class Text(Event, topic=numbers, type="errors.text", version="1.0"):
    text: str = ""
    parts: list[dict[str, int]] = Field([])


def of_length(length: int, objects: int = 0) -> str:
    start = body({"text": "", "parts": [{}] * objects}, "errors.text")
    return start.replace('"text":""', f'"text":"{"x" * (length - len(start))}"')


@pytest.mark.parametrize(("length", "objects", "in_thread"), [
    (SMALL_CHARACTERS, 1_200, False), (SMALL_CHARACTERS + 1, 0, False), (INLINE_CHARACTERS, 0, False),
    (INLINE_CHARACTERS + 1, 0, True), (20_000, INLINE_OBJECTS - 3, False), (20_000, INLINE_OBJECTS - 2, True),
])  # fmt: skip
async def test_only_large_bodies_are_decoded_in_a_thread(
    length: int, objects: int, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[bool] = []

    async def run(function: Callable[[], Any]) -> Any:
        used.append(True)
        return function()

    monkeypatch.setattr(decode, "_run_in_thread", run)
    text = of_length(length, objects)
    assert len(text) == length

    await MessageReader([Text], PayloadOffload()).read(Message("m", "r", text))
    assert bool(used) is in_thread


@pytest.mark.parametrize(("length", "parsed"), [(UNPARSED_CHARACTERS, True), (UNPARSED_CHARACTERS + 1, False)])
def test_a_long_body_that_is_no_object_is_not_parsed(length: int, parsed: bool) -> None:
    text = '"' + "x" * (length - 2) + '"'

    with pytest.raises(DecodeError, match="not a CloudEvent 1.0") as caught:
        Decoder([Text]).decode_large(text, 1_000)
    assert str(caught.value).endswith("it is not a JSON object") is not parsed
    assert Decoder([Text]).decode_large("\n " + of_length(length), 1_000).data.text.startswith("x")  # type: ignore[attr-defined]


def test_queues_with_the_same_events_share_a_decoder() -> None:
    assert get_decoder(frozenset([Text])) is get_decoder(frozenset([Text]))
    assert get_decoder(frozenset([Text])) is not get_decoder(frozenset([Text, Floats]))


@pytest.mark.parametrize(("fields", "expected"), [
    ({"data": {}}, None), ({"data": 0}, None), ({"data": None}, ""), ({}, ""), ({"data_base64": "e30="}, "e30="),
    ({"data": None, "data_base64": "e30="}, "e30="), ({"data": 1, "data_base64": "e30="}, None),
    ({"data_base64": 5}, ""), ({"data_base64": "?"}, "?"), ({"data_base64": None}, ""),
])  # fmt: skip
def test_data_is_found_in_one_of_two_fields(fields: dict[str, Any], expected: str | None) -> None:
    assert find_other_data(json.dumps(fields), 10) == expected


def test_an_event_without_required_fields_may_be_empty() -> None:
    class Needs(Event, topic=numbers, type="errors.needs", version="1.0"):
        a: int = 0
        b: int

    assert make_empty(Text) == Text()
    assert make_empty(Needs) is None


@pytest.mark.parametrize(("attributes", "expected"), [
    ({"ce_id": "1"}, True), ({"CE-Type": "1"}, True), ({"cloudEvents:id": "1"}, True), ({"cloudEvents_id": "1"}, True),
    ({"ceid": "1"}, False), ({"x-ce_id": "1"}, False), ({}, False),
    ({"ce_id": "1", "content-type": "application/json"}, True),
    ({"ce_id": "1", "content-type": "Application/CloudEvents+json; charset=utf-8"}, False),
    ({"ce_id": "1", "Content-Type": "application/cloudevents"}, False),
    ({"ce_id": "1", "content-type": "text/application/cloudevents"}, True),
])  # fmt: skip
def test_binary_mode_is_recognized_by_prefixes_of_attributes(attributes: dict[str, str], expected: bool) -> None:
    assert is_binary_mode({name: Attribute("String", value) for name, value in attributes.items()}) is expected


class Inner(BaseModel):
    value: float = 1.0
    name: str = ""


class Floats(Event, topic=numbers, type="errors.floats", version="1.0"):
    """Fields that may hold infinity, because their class or their type allows it."""

    inner: Inner = Inner()
    many: list[Inner] = Field([])
    by_name: dict[str, Any] = Field({})
    anything: Any = None


@pytest.mark.parametrize(("values", "path"), [
    ({"inner": Inner(value=math.inf)}, "inner.value"),
    ({"many": [Inner(), Inner(value=math.nan)]}, "many.1.value"),
    ({"by_name": {"a": {"b": [1.0, -math.inf]}}}, "by_name.a.b.1"),
    ({"anything": (1, math.nan)}, "anything.1"),
    ({"anything": deque([math.inf])}, "anything.0"),
    ({"anything": math.inf}, "anything"),
])  # fmt: skip
def test_infinity_is_refused_by_the_path_of_its_field(values: dict[str, Any], path: str) -> None:
    with pytest.raises(PublishError, match=f"{path}: infinity and NaN do not exist in JSON"):
        encode(wrap(Floats.model_construct(**{**Floats().__dict__, **values}), source="s"))


def test_infinity_in_a_text_of_json_is_named_as_it_is_written() -> None:
    class Renamed(BaseModel):
        value: float = Field(1.0, alias="v")

    class WithText(Event, topic=numbers, type="errors.with_text", version="1.0"):
        text: Json[list[Renamed]]

    event = WithText(text='[{"v": 1.0}]')
    assert Decoder([WithText]).decode(encode(wrap(event, source="s"))).data == event
    event.text[0].value = math.inf
    with pytest.raises(PublishError, match=r" 0\.v: infinity and NaN do not exist in JSON"):
        encode(wrap(event, source="s"))


@pytest.mark.parametrize("values", [
    {"inner": Inner(name="NaN")}, {"by_name": {"Infinity": None, "a": 1e308}}, {"anything": [None, "NaN", 1.5]},
    {"anything": {"a": None}},
])  # fmt: skip
def test_words_and_null_are_not_infinity(values: dict[str, Any]) -> None:
    class Plain(Event, topic=numbers, type="errors.plain", version="1.0"):
        inner: Inner = Inner()
        by_name: dict[str, Any] = Field({})
        anything: Any = None

    event = Plain(**values)

    assert Decoder([Plain]).decode(encode(wrap(event, source="s"))).data == event


@pytest.mark.parametrize(("wrong", "more"), [(3, ""), (4, "; and 1 more"), (10, "; and 7 more")])
def test_three_errors_of_a_published_event_are_named(wrong: int, more: str) -> None:
    cls = wide()
    event = cls().model_copy(update=dict.fromkeys(list(FIELDS)[:wrong], "x"))

    with pytest.raises(PublishError) as caught:
        encode(wrap(event, source="s"))

    text = caught.value.failures[0].detail
    assert text.count("Input should be a valid integer") == 3
    assert (more in text) if more else ("more" not in text)
