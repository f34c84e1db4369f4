"""Whatever fits SQS costs a worker a bounded time on its event loop, and bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextvars import ContextVar
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import TypeAliasType, TypedDict

from smartpipe import DecodeError, Event, PublishError, Topic
from smartpipe.envelope import encode, validators, wrap
from smartpipe.envelope.body_encoding import BodyEncoding
from smartpipe.envelope.compression import compress
from smartpipe.envelope.decode import INLINE_CHARACTERS, Decoder, MessageReader, UndecidedUnions
from smartpipe.envelope.encode import MAX_ID_CHARACTERS
from smartpipe.envelope.fields import envelope_fields
from smartpipe.envelope.structure import has_too_many_values
from smartpipe.errors import ConfigError
from smartpipe.message import Attribute, Message
from smartpipe.payload_offload import PayloadOffload
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.publisher.publisher import Publisher
from tests.support.bodies import VALID, WRONG, Demanding, Measured, Point, body_of, full
from tests.support.fakes import FakeTransport

decoder = Decoder([Measured, Demanding])
LIMIT_OBJECTS = 65_536
TENANT = ContextVar("tenant", default="nobody")
GZIP = {"content-encoding": Attribute("String", "gzip")}


def reader(*, decompressed_limit_bytes: int = 4_194_304, limit_objects: int = LIMIT_OBJECTS) -> MessageReader:
    encoding = BodyEncoding(decompressed_limit_bytes=decompressed_limit_bytes, limit_objects=limit_objects)
    return MessageReader([Measured, Demanding], PayloadOffload(encoding))


def plain(body: str) -> Message:
    return Message("m", "r", body)


def zipped(body: str) -> Message:
    return Message("m", "r", compress(body, "gzip"), attributes=GZIP)


def wrapped(body: str) -> Message:
    notification = {"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:::t", "Message": body}
    return Message("m", "r", json.dumps(notification))


@pytest.mark.parametrize("carried", [plain, zipped, wrapped])
@pytest.mark.parametrize("wrong", WRONG)
async def test_a_body_that_is_wrong_many_times_is_refused_with_few_errors(wrong: str, carried: Any) -> None:
    message = carried(WRONG[wrong]())

    with pytest.raises(DecodeError) as caught:
        await reader().read(message)

    assert caught.value.kind in {"invalid-data", "too-many-values", "not-json", "not-cloudevent"}
    assert len(str(caught.value)) < 2_000
    assert len(caught.value.errors) <= 20


@pytest.mark.parametrize("decode", [decoder.decode, partial(decoder.decode_large, limit_objects=LIMIT_OBJECTS)])
@pytest.mark.parametrize(
    "data",
    [
        {"numbers": ["a", "b"]},
        {"pairs": [["a", "b"], [1]]},
        {"distinct": ["a", "b"]},
        {"lists": [["a", "b"], ["c"]]},
        {"by_name": {"a": "", "b": ""}},
        {"points": [{"x": ""}, {"x": ""}]},
    ],
    ids=str,
)
def test_only_the_first_error_in_a_collection_is_reported(decode: Any, data: dict[str, object]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(body_of(json.dumps(data)))

    assert len(caught.value.errors) == 1


@pytest.mark.parametrize("carried", [plain, zipped])
@pytest.mark.parametrize("valid", VALID)
async def test_a_large_body_that_is_right_decodes(valid: str, carried: Any) -> None:
    body = VALID[valid]()

    envelope = await reader().read(carried(body))

    assert envelope.data == Measured.model_validate(json.loads(body)["data"])


def test_no_body_that_fits_sqs_takes_64_mib_of_memory() -> None:
    """In a process of its own: what Pydantic holds in Rust is seen by the operating system only."""
    program = """
import asyncio, resource
from tests.unit.test_bounded_decoding import WRONG, VALID, plain, reader, zipped

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

async def main():
    messages = [(name, carried(make())) for name, make in {**WRONG, **VALID}.items() for carried in (plain, zipped)]
    await reader().read(plain(VALID["text"]()))
    before = peak()
    for name, message in messages:
        try:
            await reader().read(message)
        except Exception as error:
            assert "DecodeError" in type(error).__name__, repr(error)
        print(f"{peak() - before:.1f} {name}")

asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=50)

    growth = [line.partition(" ") for line in ran.stdout.splitlines()]

    assert len(growth) == 2 * len({**WRONG, **VALID})
    assert [name for megabytes, _, name in growth if float(megabytes) >= 64] == []


async def test_large_and_compressed_bodies_are_decoded_in_a_thread_and_others_are_not() -> None:
    seen: list[str] = []

    class Watched(Event, topic=Topic("watched"), type="watched", version="1.0"):
        text: str

        def model_post_init(self, _: Any) -> None:
            seen.append(threading.current_thread().name.partition("_")[0])

    def body(characters: int) -> str:
        return body_of(json.dumps({"text": "x" * characters}), "watched")

    watching = MessageReader([Watched], PayloadOffload(BodyEncoding()))
    for message in (plain(body(10)), plain(body(INLINE_CHARACTERS)), zipped(body(10))):
        await watching.read(message)

    assert seen == [threading.current_thread().name, "smartpipe-decoder", "smartpipe-decoder"]


def test_a_large_body_lets_other_threads_run_after_each_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython switches threads between bytecodes, and Pydantic runs none of its own."""
    calls = 0

    def count(value: Any) -> Any:
        nonlocal calls
        calls += 1
        return value

    monkeypatch.setattr(validators, "_return_unchanged", count)
    watched = Decoder([Measured])

    points = watched.decode_large(VALID["60,000 models"](), LIMIT_OBJECTS).data.points  # type: ignore[attr-defined]

    assert calls >= len(points) > 60_000


@pytest.mark.parametrize(
    ("body", "too_many"),
    [
        ("[" + "{}," * (LIMIT_OBJECTS - 2) + "{}]", False),
        ("[" + "{}," * (LIMIT_OBJECTS - 1) + "{}]", True),
        ("[" + "1," * (8 * LIMIT_OBJECTS - 1) + "1]", False),
        ("[" + "1," * (8 * LIMIT_OBJECTS) + "1]", True),
        ('["' + "{[," * 1_000_000 + '"]', False),
        ('["\\"' + "{[," * 1_000_000 + '"]', False),
        ('["\\\\"' + ",{}" * LIMIT_OBJECTS + "]", True),
        ('{"a":"' + "[" * 100_000, False),
        ('"' * 999_999 + "[" * 100_000, False),
        ("{" + '"":0,' * 174_762 + '"":0}', False),
        ("{" + '"":0,' * 174_763 + '"":0}', True),
        ('{"' + ":" * 200_000 + '":0}', False),
    ],
)
def test_objects_and_values_are_counted_where_they_are_not_in_a_string(body: str, too_many: bool) -> None:
    assert has_too_many_values(body, LIMIT_OBJECTS) is too_many


async def test_the_limit_of_objects_can_be_raised() -> None:
    body = full("points", '{"x":1}', wanted=600_000)

    with pytest.raises(DecodeError, match="SMARTPIPE_PAYLOAD_LIMIT_OBJECTS") as caught:
        await reader().read(plain(body))

    assert caught.value.kind == "too-many-values"
    assert len((await reader(limit_objects=100_000).read(plain(body))).data.points) > 65_536  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_message_expands_to_four_mebibytes_at_most_unless_told_otherwise(encoding: str) -> None:
    body = body_of(json.dumps({"anything": "0" * 5_000_000}))
    attributes = {"content-encoding": Attribute("String", encoding)}
    message = Message("m", "r", compress(body, encoding), attributes=attributes)

    with pytest.raises(DecodeError, match=r"4,194,304 bytes.*SMARTPIPE_DECOMPRESSED_LIMIT_BYTES"):
        await reader().read(message)
    assert (await reader(decompressed_limit_bytes=6_000_000).read(message)).data.anything == "0" * 5_000_000  # type: ignore[attr-defined]


def test_a_publisher_refuses_what_consumers_would() -> None:
    event = Measured(points=[Point(x=1)] * 70_000)

    with pytest.raises(PublishError, match="SMARTPIPE_PAYLOAD_LIMIT_OBJECTS"):
        prepare(Publication(event), source="s")
    assert prepare(Publication(event), source="s", encoding=BodyEncoding(limit_objects=100_000)).event is event


def test_an_error_behind_the_first_items_of_a_large_body_is_found() -> None:
    body = body_of(json.dumps({"numbers": [*range(50_000), "x", "y"], "points": [{}] * 200}))

    with pytest.raises(DecodeError, match=r"data.numbers.50000: input should be a valid integer"):
        decoder.decode_large(body, LIMIT_OBJECTS)


def test_a_large_batch_of_events_is_named_as_one() -> None:
    with pytest.raises(DecodeError, match="an array, as in the batch mode of CloudEvents"):
        decoder.decode_large(f" [{body_of('{}')}, {' ' * 100_000}]", LIMIT_OBJECTS)
    with pytest.raises(DecodeError, match=r"it is not a JSON object$"):
        decoder.decode_large('"' + " " * 100_000 + '"', LIMIT_OBJECTS)


def test_what_is_missing_or_wrong_in_a_large_body_is_named() -> None:
    junk = {"junk": "x" * 100_000}

    with pytest.raises(DecodeError, match=r"data: Field required: a, b, c, d, e, f, g, h, i, j and 5 more$"):
        decoder.decode_large(body_of(json.dumps(junk), "demanding"), LIMIT_OBJECTS)
    with pytest.raises(DecodeError, match=r"not a CloudEvent 1.0: body: Field required: source$"):
        decoder.decode_large(
            json.dumps({"specversion": "1.0", "id": "1", "type": "survey", "data": junk}), LIMIT_OBJECTS
        )


def forbid_unknown_fields(cls: type[Event]) -> type[Event]:
    """Make an event such as declarations refused only later: consumers decode them as any other model."""
    cls.model_config["extra"] = "forbid"
    cls.model_rebuild(force=True)
    return cls


@forbid_unknown_fields
class Guarded(Event, topic=Topic("guarded"), type="guarded", version="1.0"):
    """A model whose validator runs before, so that its fields are not the first thing in its core schema."""

    name: str = "x"

    @model_validator(mode="before")
    @classmethod
    def check(cls, value: Any) -> Any:
        return value


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_forbidden_field_is_refused_in_a_body_of_any_size(size: int) -> None:
    guarded = Decoder([Guarded, Measured])
    decode = guarded.decode if size == 10 else partial(guarded.decode_large, limit_objects=LIMIT_OBJECTS)

    for body in (
        body_of(json.dumps({"name": "x" * size, "admin": True}), "guarded"),
        body_of(json.dumps({"closed": {"x": 1, "admin": True}, "anything": "x" * size})),
    ):
        with pytest.raises(DecodeError, match="admin: Extra inputs are not permitted"):
            decode(body)
    right: Any = decode(body_of(json.dumps({"closed": {"x": 1}, "anything": "x" * size}))).data
    assert right.closed.model_extra is None


def test_of_a_hundred_forbidden_fields_the_first_three_are_named_and_the_others_counted() -> None:
    guarded = Decoder([Guarded])

    for decode in (guarded.decode, partial(guarded.decode_large, limit_objects=LIMIT_OBJECTS)):
        for _ in range(2):  # the count begins again with each body
            with pytest.raises(DecodeError) as caught:
                decode(body_of(json.dumps({f"f{n}": "x" * 1_000 for n in range(100)}), "guarded"))
            assert str(caught.value).endswith(
                "; ".join(f"data.f{n}: Extra inputs are not permitted" for n in range(3)) + "; and 97 more"
            )

    with pytest.raises(DecodeError, match="it has more than 100 fields that the event class forbids"):
        guarded.decode_large(body_of(json.dumps({f"f{n}": "x" * 1_000 for n in range(101)}), "guarded"), LIMIT_OBJECTS)


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        (9, "a, b, c, d, e, f, g, h, i"),
        (10, "a, b, c, d, e, f, g, h, i, j"),
        (11, "a, b, c, d, e, f, g, h, i, j and 1 more"),
    ],
)
def test_of_the_missing_fields_of_a_large_body_ten_are_named_and_the_others_counted(absent: int, sentence: str) -> None:
    names = sorted(Demanding.model_fields)
    data = dict.fromkeys(names[absent:], 1) | {"junk": "x" * 100_000}

    with pytest.raises(DecodeError, match=f"data: Field required: {sentence}$"):
        decoder.decode_large(body_of(json.dumps(data), "demanding"), LIMIT_OBJECTS)


def test_an_explanation_is_true_of_the_whole_body() -> None:
    class Wide(Event, topic=Topic("wide"), type="bounded.wide", version="1.0"):
        __annotations__ = {f"field_{n}": int for n in range(350)}

    class Long(Event, topic=Topic("long"), type="bounded.long", version="1.0"):
        numbers: list[int] = Field(min_length=1_500)
        text: str = Field(min_length=1_500)
        inner: Json[list[int]]

    wide, long = Decoder([Wide]), Decoder([Long])
    data = {f"field_{n}": n for n in range(350)} | {"field_349": "x"}
    right = {"numbers": [1] * 2_000, "text": "x" * 2_000, "inner": json.dumps([1] * 3_000)}

    for decode in (wide.decode, partial(wide.decode_large, limit_objects=LIMIT_OBJECTS)):
        with pytest.raises(
            DecodeError, match=r"bounded.wide 1.0: data.field_349: input should be a valid integer[^;]*$"
        ):
            decode(body_of(json.dumps(data), "bounded.wide"))
    for decode in (long.decode, partial(long.decode_large, limit_objects=LIMIT_OBJECTS)):
        with pytest.raises(
            DecodeError, match=r"bounded.long 1.0: data.numbers.1999: input should be a valid integer[^;]*$"
        ):
            decode(body_of(json.dumps(right | {"numbers": [1] * 1_999 + ["x"]}), "bounded.long"))
        assert len(decode(body_of(json.dumps(right), "bounded.long")).data.numbers) == 2_000  # type: ignore[attr-defined]


def test_many_extension_attributes_before_the_others_hide_nothing() -> None:
    extensions = {f"extension{n}": n for n in range(1_000)}
    body = json.dumps(extensions | json.loads(body_of('{"numbers":1}')))

    with pytest.raises(DecodeError, match="does not fit survey 1.0: data.numbers: input should be a valid array"):
        decoder.decode(body)


async def test_a_small_body_of_many_objects_is_decoded_in_a_thread() -> None:
    seen: list[str] = []

    class Crowded(Event, topic=Topic("crowded"), type="crowded", version="1.0"):
        points: list[Point]

        def model_post_init(self, _: Any) -> None:
            seen.append(threading.current_thread().name.partition("_")[0])

    reading = MessageReader([Crowded], PayloadOffload(BodyEncoding()))
    for count in (900, 2_000):
        await reading.read(plain(body_of(json.dumps({"points": [{}] * count}), "crowded")))

    assert seen == [threading.current_thread().name, "smartpipe-decoder"]


def test_a_validator_whose_exception_cannot_be_shown_makes_a_decode_error() -> None:
    class Unspeakable(RuntimeError):
        def __repr__(self) -> str:
            raise ValueError

    class Broken(Event, topic=Topic("broken"), type="broken.validator", version="1.0"):
        name: str

        @field_validator("name")
        @classmethod
        def check(cls, _: str) -> str:
            raise Unspeakable

    with pytest.raises(DecodeError, match="Unspeakable") as caught:
        Decoder([Broken]).decode(body_of('{"name":"x"}', "broken.validator"))
    assert caught.value.kind == "invalid-data"


@pytest.mark.parametrize("name", ["id", "source", "correlationid", "causationid", "partitionkey"])
def test_context_attributes_have_a_length_that_can_be_handed_on(name: str) -> None:
    context = {"specversion": "1.0", "id": "1", "source": "s", "type": "survey", "data": {}}
    longest, too_long = "é" * MAX_ID_CHARACTERS, "é" * (MAX_ID_CHARACTERS + 1)

    kept = decoder.decode(json.dumps(context | {name: longest}))
    assert longest in kept

    if name in ("id", "source"):
        with pytest.raises(DecodeError, match=f"{name}: .*at most 256 characters") as caught:
            decoder.decode(json.dumps(context | {name: too_long}))
        assert caught.value.kind == "not-cloudevent"
    else:
        assert too_long not in decoder.decode(json.dumps(context | {name: too_long}))


def test_a_source_that_consumers_would_refuse_is_refused_at_construction() -> None:
    with pytest.raises(ConfigError, match="source has 257 characters; consumers accept at most 256"):
        Publisher("s" * 257, transport=FakeTransport())


def test_a_key_that_consumers_would_ignore_does_not_travel() -> None:
    class Keyed(Event, topic=Topic("keyed"), type="keyed", version="1.0", key="name"):
        name: str

    assert json.loads(encode(wrap(Keyed(name="n" * 256), source="s")))["partitionkey"] == "n" * 256
    assert "partitionkey" not in json.loads(encode(wrap(Keyed(name="n" * 257), source="s")))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    size: int = 1


class Loose(TypedDict, total=False):
    name: int
    next: Loose


class Rich(Event, topic=Topic("rich"), type="rich", version="1.0"):
    """Required and optional fields, unions, recursion, and names that core schemas use themselves."""

    fields: list[Strict]
    default: dict[str, Strict | int | None]
    type: Strict | Loose | None = None
    schema_: tuple[int, ...] = ()
    other: Strict | list[Strict] | str = "x"


rich = Decoder([Rich])
own = TypeAdapter[Any](envelope_fields(Rich)).validator.validate_json
names = st.sampled_from(["name", "size", "fields", "default", "type", "schema_", "other", "next"])
scalars = st.one_of(st.none(), st.integers(0, 3), st.sampled_from(["", "x", "1"]), st.booleans())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)
strict = st.fixed_dictionaries({"name": st.just("n")}, optional={"size": st.integers(0, 3), "more": st.none()})
nearly = st.fixed_dictionaries(
    {"fields": st.one_of(st.lists(strict, max_size=3), values)},
    optional={
        "default": st.one_of(st.dictionaries(names, st.one_of(strict, scalars), max_size=3), values),
        "type": st.one_of(strict, values),
        "schema_": st.lists(st.integers(0, 3), max_size=3),
        "other": st.one_of(strict, st.lists(strict, max_size=3), values),
    },
)


@given(data=nearly)
@settings(max_examples=300)
def test_bounded_validators_accept_what_pydantic_accepts_and_return_the_same(data: object) -> None:
    body = body_of(json.dumps(data), "rich")
    try:
        expected = own(body)["data"]
    except ValidationError:
        expected = None

    for decode in (rich.decode, partial(rich.decode_large, limit_objects=LIMIT_OBJECTS)):
        try:
            found: object = decode(body).data
        except DecodeError:
            found = None
        assert found == expected
        assert type(getattr(found, "type", None)) is type(getattr(expected, "type", None))


@pytest.mark.parametrize(
    ("unknown", "known", "passes"), [(5_000, 0, [1]), (101, 5_000, [1]), (100, 5_000, [1, 0]), (50, 50, [0])]
)
def test_pydantic_lists_no_unknown_fields_of_a_body_that_may_have_many(
    unknown: int, known: int, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, called, build = 0, [], validators._build

    def counting(schema: Any, *, in_thread: bool) -> Any:
        nonlocal built
        validate, number = build(schema, in_thread=in_thread), built
        built += 1

        def noting(body: str) -> Any:
            called.append(number)
            return validate(body)

        return noting

    monkeypatch.setattr(validators, "_build", counting)
    data = {f"unknown_{n}": 0 for n in range(unknown)} | {"numbers": {f"n{n}": n for n in range(known)}}

    class Closed(BaseModel, extra="forbid"):
        numbers: dict[str, int]

    validate = validators.build_cooperative_validator(TypeAdapter(Closed))

    for _ in range(2):  # the count begins again with each body
        called.clear()
        assert validate(json.dumps(data)) is None
        assert called == passes


def test_a_large_body_that_is_no_object_is_refused_without_being_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Decoder([Measured])
    monkeypatch.setattr(refusing, "_decode", None)

    with pytest.raises(DecodeError, match="it is not a JSON object") as caught:
        refusing.decode_large(WRONG["no event"](), limit_objects=LIMIT_OBJECTS)

    assert caught.value.kind == "not-cloudevent"


async def test_validators_of_large_bodies_see_the_context_variables_of_the_worker() -> None:
    class Tenanted(Event, topic=Topic("tenanted"), type="bounded.tenanted", version="1.0"):
        text: str

        @field_validator("text")
        @classmethod
        def note(cls, text: str) -> str:
            seen.append((TENANT.get(), threading.current_thread() is threading.main_thread()))
            return text

    seen: list[tuple[str, bool]] = []
    TENANT.set("acme")
    body = body_of(json.dumps({"text": "x" * (INLINE_CHARACTERS + 1)}), "bounded.tenanted")

    await MessageReader([Tenanted], PayloadOffload(BodyEncoding())).read(plain(body))

    assert seen == [("acme", False)]


class Fork(BaseModel):
    left: Fork | Leaf | None = None
    size: int = 0


class Leaf(BaseModel):
    left: Fork | Leaf | None = None
    colour: int = 0


class Even(BaseModel):
    kind: Literal["even"] = "even"
    next: Annotated[Even | Odd, Field(discriminator="kind")] | None = None


class Odd(BaseModel):
    kind: Literal["odd"] = "odd"
    next: Annotated[Even | Odd, Field(discriminator="kind")] | None = None


Nested = TypeAliasType("Nested", "list[Nested] | dict[str, Nested] | int")


class Forest(Event, topic=Topic("forest"), type="bounded.forest", version="1.0"):
    tree: Fork | Leaf | None = None
    told_apart: Even | None = None
    anything: JsonValue = None
    nested: Nested = 0


def nested(name: str, inner: object, depth: int, **fields: object) -> object:
    for _ in range(depth):
        inner = {name: inner, **fields}
    return inner


@pytest.mark.parametrize("depth", [30, 120])
@pytest.mark.parametrize("inner", [{"colour": "x"}, {"size": "x"}, "x"])
def test_a_union_of_recursive_classes_is_not_tried_in_every_combination(depth: int, inner: object) -> None:
    body = body_of(json.dumps({"tree": nested("left", inner, depth)}), "bounded.forest")
    decoder = Decoder([Forest])

    for decode in (decoder.decode, partial(decoder.decode_large, limit_objects=LIMIT_OBJECTS)):
        with pytest.raises(
            DecodeError,
            match=r"the data cannot be validated: its nested unions allow too many combinations; .*discriminator",
        ):
            decode(body)


@forbid_unknown_fields
class Fenced(Event, topic=Topic("forest"), type="bounded.fenced", version="1.0"):
    tree: Fork | Leaf
    sizes: dict[str, int]


@pytest.mark.parametrize("members", [1, 10_000])  # of many members, the forbidden ones are counted first
def test_a_body_that_needs_many_tries_gets_them_in_a_thread_only(members: int) -> None:
    data = {"tree": nested("left", {"colour": 1}, 14), "sizes": {str(number): 1 for number in range(members)}}
    body = body_of(json.dumps(data), "bounded.fenced")

    with pytest.raises(UndecidedUnions):
        Decoder([Fenced]).decode(body)

    read = Decoder([Fenced]).decode_large(body, LIMIT_OBJECTS)
    assert read.data.model_dump(exclude_unset=True) == data


@pytest.mark.parametrize(
    "data",
    [
        {"tree": nested("left", {"colour": 1}, 10)},
        {"tree": nested("left", {"colour": 1}, 14)},
        {"told_apart": nested("next", None, 100, kind="even")},
        {"anything": [[{"x": [1] * 100}] * 100] * 10},
        {"nested": [[{"x": [1] * 100}] * 100] * 10},
    ],
    ids=["a shallow tree", "one for the thread", "told apart", "any JSON", "lists and dicts"],
)
async def test_recursive_classes_whose_choices_are_soon_told_apart_are_validated(data: dict[str, object]) -> None:
    body = body_of(json.dumps(data), "bounded.forest")

    read = await MessageReader([Forest], PayloadOffload(BodyEncoding())).read(plain(body))

    assert read.data.model_dump(exclude_unset=True) == data
