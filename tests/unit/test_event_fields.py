"""An event that is published can be read by every consumer of its class, as it was published."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Discriminator,
    Field,
    Json,
    Secret,
    SecretBytes,
    SecretStr,
    SerializeAsAny,
    Tag,
    computed_field,
    field_serializer,
)

from smartpipe import ConfigError, Event, PublishError, Topic
from smartpipe.envelope.decode import Decoder
from smartpipe.envelope.encode import encode, wrap
from smartpipe.events import contract_of

things = Topic("things")
T = TypeVar("T")
meta: Any = type(Event)


class Kind(Enum):
    SMALL = "small"
    LARGE = 2


class Size(StrEnum):
    SMALL = "small"


class Page(BaseModel):
    text: Json[list[int]]
    number: float = Field(alias="other")


class Leaf(BaseModel):
    text: Json[Any]
    inner: list[Leaf] = []


class Aliased(BaseModel):
    value: int = Field(alias="other")


def declare(annotation: Any, default: Any = ..., **config: Any) -> type[Event]:
    """Declare an event with one field, ``field``."""
    namespace = {
        "__annotations__": {"field": annotation},
        "__module__": __name__,
        "__qualname__": "Declared",
        "model_config": config,
    }
    if default is not ...:
        namespace["field"] = default
    declared: type[Event] = meta("Declared", (Event,), namespace, topic=things, type="fields.declared", version="1.0")
    return declared


def read_back(event: Event) -> Event:
    return Decoder([type(event)]).decode(encode(wrap(event, source="test"))).data


UNREADABLE_FIELDS: dict[str, Callable[[], type[Event]]] = {
    "an alias only for reading": lambda: declare(int, Field(validation_alias="other")),
    "an alias only for writing": lambda: declare(int, Field(serialization_alias="other")),
    "choices of aliases without the written name": lambda: declare(int, Field(validation_alias=AliasChoices("a", "b"))),
    "a path as the alias": lambda: declare(int, Field(validation_alias=AliasPath("a", 0))),
    "an alias in a class that is read by name": lambda: declare(
        int, Field(alias="other"), validate_by_name=True, validate_by_alias=False
    ),
    "an excluded required field": lambda: declare(int, Field(exclude=True)),
    "an excluded field with a default": lambda: declare(int, Field(1, exclude=True)),
    "a required field with exclude_if": lambda: declare(int, Field(exclude_if=lambda value: value == 0)),
    "a secret": lambda: declare(SecretStr),
    "secret bytes": lambda: declare(SecretBytes),
    "a secret number": lambda: declare(Secret[int]),
    "secrets in a list": lambda: declare(list[SecretStr]),
    "an optional secret": lambda: declare(SecretStr | None, None),
    "a secret as the second member of a union": lambda: declare(int | SecretStr),
    "a secret as a member with a tag": lambda: declare(Annotated[int, Tag("a")] | Annotated[SecretStr, Tag("b")]),
    "a secret as a member that a function chooses": lambda: declare(
        Annotated[
            Annotated[int, Tag("a")] | Annotated[SecretStr, Tag("b")],
            Discriminator(lambda value: "a" if isinstance(value, int) else "b"),
        ]
    ),
    "tuples as keys": lambda: declare(dict[tuple[int, int], str]),
    "None as a key": lambda: declare(dict[int | None, str]),
    "numbers of a Literal as keys": lambda: declare(dict[Literal[1, 2], str]),
    "members of a plain Enum as keys": lambda: declare(dict[Kind, str]),
    "a Literal of a member of a plain Enum": lambda: declare(Literal[Kind.SMALL]),
    "a Literal of a member of a plain Enum and a text": lambda: declare(Literal[Kind.SMALL, "large"]),
    "a function": lambda: declare(Callable[[], None]),
    "a class": lambda: declare(type[int]),
    "bytes in two encodings": lambda: declare(bytes, ser_json_bytes="base64"),
}


@pytest.mark.parametrize("case", UNREADABLE_FIELDS)
def test_a_field_that_consumers_could_not_read_as_published_is_refused_by_name(case: str) -> None:
    with pytest.raises(ConfigError, match=r"Declared: field 'field'"):
        UNREADABLE_FIELDS[case]()


READABLE_FIELDS: dict[str, tuple[Callable[[], type[Event]], dict[str, Any]]] = {
    "one alias for both": (lambda: declare(int, Field(alias="other")), {"other": 1}),
    "choices of aliases with the written name": (
        lambda: declare(int, Field(validation_alias=AliasChoices("field", "old_name"))),
        {"old_name": 1},
    ),
    "one choice of aliases": (lambda: declare(int, Field(validation_alias=AliasChoices("field"))), {"field": 1}),
    "two equal aliases": (
        lambda: declare(int, Field(validation_alias="x", serialization_alias="x")),
        {"x": 1},
    ),
    "a field that is left out if it has its default": (
        lambda: declare(int, Field(0, exclude_if=lambda value: value == 0)),
        {},
    ),
    "Json": (lambda: declare(Json[list[int]]), {"field": "[1, 2]"}),
    "numbers as keys": (lambda: declare(dict[int, str]), {"field": {1: "a"}}),
    "members of a StrEnum as keys": (lambda: declare(dict[Size, str]), {"field": {"small": "a"}}),
    "text of a Literal as keys": (lambda: declare(dict[Literal["a"], str]), {"field": {"a": "b"}}),
    "bytes in one encoding": (
        lambda: declare(bytes, ser_json_bytes="base64", val_json_bytes="base64"),
        {"field": b"\xff\x00"},
    ),
    "None in a Literal": (lambda: declare(Literal["a", None]), {"field": None}),  # noqa: PYI061
    "a member of a StrEnum in a Literal": (lambda: declare(Literal[Size.SMALL]), {"field": Size.SMALL}),
    "aliases in Json": (lambda: declare(Json[Aliased]), {"field": json.dumps({"other": 1})}),
    "Json in Json": (lambda: declare(Json[list[Json[int]]]), {"field": '["1"]'}),
    "Json in a model in Json": (lambda: declare(Json[Page]), {"field": json.dumps({"text": "[1]", "other": 2})}),
    "a recursive model in Json": (
        lambda: declare(Json[Leaf]),
        {"field": json.dumps({"inner": [{"text": "1"}], "text": "2"})},
    ),
    "Any": (lambda: declare(Any), {"field": {"a": [1, None, "NaN"]}}),
    "an optional value": (lambda: declare(int | None, None), {}),
    "a default of another type that can be converted": (lambda: declare(float, 1), {}),
}


@pytest.mark.parametrize("case", READABLE_FIELDS)
def test_a_field_that_consumers_can_read_arrives_as_it_was_published(case: str) -> None:
    define, values = READABLE_FIELDS[case]
    event = define()(**values)

    assert read_back(event) == event


def test_a_computed_field_is_published_and_refused_only_where_unknown_fields_are_forbidden() -> None:
    class Circle(Event, topic=things, type="fields.circle", version="1.0"):
        radius: int

        @computed_field
        def diameter(self) -> int:
            return self.radius * 2

    class StrictDisc(BaseModel, extra="forbid"):
        radius: int

        @computed_field
        def diameter(self) -> int:
            return self.radius * 2

    with pytest.raises(ConfigError, match=r"field 'disc.diameter' is computed and published"):

        class Strict(Event, topic=things, type="fields.strict_disc", version="1.0"):
            disc: StrictDisc

    assert json.loads(encode(wrap(Circle(radius=1), source="test")))["data"] == {"radius": 1, "diameter": 2}
    assert read_back(Circle(radius=1)) == Circle(radius=1)


def test_an_unreadable_field_of_a_model_within_the_event_is_named_by_its_path() -> None:
    class Card(BaseModel):
        number: SecretStr

    with pytest.raises(ConfigError, match=r"field 'field\.number' is a secret"):
        declare(list[Card])


def test_an_unreadable_field_is_found_where_the_class_of_a_value_decides_how_it_is_written() -> None:
    class Card(BaseModel):
        number: SecretStr

    with pytest.raises(ConfigError, match=r"field 'field\.number' is a secret"):
        declare(SerializeAsAny[Card])


def test_a_field_of_a_dataclass_that_is_not_published_is_refused() -> None:
    @dataclasses.dataclass
    class Part:
        name: Annotated[str, Field(exclude=True)]

    with pytest.raises(ConfigError, match=r"field 'field\.name' is excluded"):
        declare(Part)


def test_two_fields_of_one_published_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"field 'same' is the published name of 2 fields"):

        class Twice(Event, topic=things, type="fields.twice", version="1.0"):
            a: int = Field(alias="same")
            b: int = Field(alias="same")


def test_a_secret_with_a_serializer_that_reveals_it_is_published() -> None:
    class Key(Event, topic=things, type="fields.key", version="1.0"):
        token: SecretStr

        @field_serializer("token")
        def reveal(self, token: SecretStr) -> str:
            return token.get_secret_value()

    event = Key(token=SecretStr("s3cret"))

    assert read_back(event) == event


def test_a_class_that_is_completed_later_is_checked_then() -> None:
    namespace: dict[str, Any] = {"Event": Event, "things": things, "SecretStr": SecretStr, "BaseModel": BaseModel}
    exec(  # a module in which a class refers to a later one
        "class Late(Event, topic=things, type='fields.late', version='1.0'):\n"
        "    inner: 'Inner'\n"
        "class Inner(BaseModel):\n"
        "    secret: SecretStr\n",
        namespace,
    )
    with pytest.raises(ConfigError, match=r"field 'inner\.secret' is a secret"):
        namespace["Late"].model_rebuild(_types_namespace=namespace)


class Line(BaseModel):
    sku: str = "pencil"
    price: float = 1.0


class GiftLine(Line):
    wrapping: str = "red"


class PlainLine(Line):
    """Adds no field."""


class Order(Event, topic=things, type="fields.order", version="1.0"):
    number: Annotated[int, Field(gt=0)] = 1
    lines: list[Line] = Field([])
    by_name: dict[str, Line | None] = Field({})
    pair: tuple[Line, int] | None = None
    anything: Any = None


class Flat(Event, topic=things, type="fields.flat", version="1.0"):
    number: Annotated[int, Field(gt=0)] = 1


def append_a_wrong_value() -> Order:
    order = Order()
    order.lines.append("not a line")  # type: ignore[arg-type]
    return order


def change_a_model_within() -> Order:
    order = Order(lines=[Line()])
    order.lines[0].sku = 5  # type: ignore[assignment]
    return order


UNREADABLE_VALUES: dict[str, Callable[[], Event]] = {
    "a copy with a value of another type": lambda: Flat().model_copy(update={"number": "many"}),
    "a copy with a value out of range": lambda: Flat().model_copy(update={"number": -1}),
    "a copy of such a copy": lambda: Flat().model_copy(update={"number": -1}).model_copy(deep=True),
    "construction without validation": lambda: Flat.model_construct(number=-1),
    "construction with a value of another type": lambda: Order.model_construct(number="one"),  # type: ignore[arg-type]
    "a wrong value that was appended": append_a_wrong_value,
    "a model within that was changed": change_a_model_within,
    "a subclass in a list": lambda: Order(lines=[GiftLine()]),
    "a subclass in a dict": lambda: Order(by_name={"a": None, "b": GiftLine()}),
    "a subclass in a tuple": lambda: Order(pair=(GiftLine(), 1)),
    "infinity in a model within": lambda: Order(lines=[Line(price=float("inf"))]),
    "infinity in Any": lambda: Order(anything=float("-inf")),
    "NaN in a list in Any": lambda: Order(anything={"a": [1.0, float("nan")]}),
    "NaN in a model in Any": lambda: Order(anything=Line(price=float("nan"))),
}


@pytest.mark.parametrize("case", UNREADABLE_VALUES)
def test_a_value_that_consumers_could_not_read_is_refused_by_the_producer(case: str) -> None:
    with pytest.raises(PublishError) as caught:
        encode(wrap(UNREADABLE_VALUES[case](), source="test"))

    assert caught.value.failures[0].code == "InvalidContent"
    assert not caught.value.failures[0].retryable


READABLE_VALUES: dict[str, Callable[[], Event]] = {
    "a copy with a valid value": lambda: Flat().model_copy(update={"number": 5}),
    "a copy with a value that consumers convert": lambda: Flat().model_copy(update={"number": "5"}),
    "a plain copy": lambda: Flat(number=3).model_copy(),
    "a subclass that adds no field": lambda: Order(lines=[PlainLine()]),
    "a subclass in Any": lambda: Order(anything=GiftLine()),
    "the text NaN": lambda: Order(anything=["NaN", "Infinity", None], lines=[Line(sku="NaN")]),
}


@pytest.mark.parametrize("case", READABLE_VALUES)
def test_a_value_that_consumers_can_read_is_published(case: str) -> None:
    event = READABLE_VALUES[case]()

    assert read_back(event).model_dump(mode="json") == json.loads(encode(wrap(event, source="test")))["data"] | (
        {"number": 5} if "5" in str(event) else {}
    )


def test_none_in_a_union_with_json_is_refused_when_it_is_published() -> None:
    event = declare(int | Json).model_validate_json('{"field": "null"}')

    with pytest.raises(PublishError, match=r"its class would refuse it: field\.int"):
        encode(wrap(event, source="shop"))


def test_a_serializer_whose_output_the_class_refuses_is_found_by_the_producer() -> None:
    class Price(Event, topic=things, type="fields.price", version="1.0"):
        cents: int

        @field_serializer("cents")
        def write(self, cents: int) -> str:
            return f"{cents} cents"

    with pytest.raises(PublishError, match=r"its class would refuse it: cents: Input should be a valid integer"):
        encode(wrap(Price(cents=5), source="test"))


class Open(Event, topic=things, type="fields.open_line", version="1.0"):
    line: SerializeAsAny[Line]
    lines: list[Line] = Field([])


def test_a_field_that_serializes_by_the_class_of_its_value_publishes_the_fields_of_a_subclass() -> None:
    body = encode(wrap(Open(line=GiftLine()), source="test"))

    assert json.loads(body)["data"]["line"]["wrapping"] == "red"


def test_recursive_classes_are_checked_at_every_level() -> None:
    Tree.model_rebuild()
    with pytest.raises(PublishError, match=r"a NamedNode, which adds name to Node"):
        encode(wrap(Tree(root=Node(children=[Node(children=[NamedNode()])])), source="test"))
    event = Tree(root=Node(children=[Node()]))
    assert read_back(event) == event


class Node(BaseModel):
    children: list[Node] = []


class NamedNode(Node):
    name: str = "leaf"


class Tree(Event, topic=things, type="fields.tree", version="1.0"):
    root: Node


def test_a_generic_event_is_a_base_of_events_as_a_generic_model_is() -> None:
    class Changed(Event, Generic[T]):
        before: T
        after: T

    class CountChanged(Changed[int], topic=things, type="fields.count_changed", version="1.0"):
        pass

    event = CountChanged(before=1, after=2)

    assert read_back(event) == event
    with pytest.raises(ConfigError, match=r"write class MyChanged\(Changed\[int\], topic="):
        contract_of(Changed[int])


def test_a_mixin_after_event_gets_its_class_arguments() -> None:
    class Audited:
        audited = False

        def __init_subclass__(cls, *, audited: bool = False, **others: Any) -> None:
            super().__init_subclass__(**others)
            cls.audited = audited

    class Moved(Event, Audited, topic=things, type="fields.moved", version="1.0", audited=True):
        pass

    assert Moved.audited
    assert contract_of(Moved).type == "fields.moved"


@pytest.mark.parametrize(
    ("name", "suggestion"), [("typ", "type="), ("topics", "topic="), ("colour", "its arguments are")]
)
def test_an_unknown_class_argument_is_refused_with_the_one_that_was_probably_meant(name: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown argument {name}=; .*{suggestion}"):
        meta("Typo", (Event,), {"__module__": __name__, "__qualname__": "Typo"}, **{name: "x"})


def test_a_deque_and_a_set_within_an_event_are_published() -> None:
    event = declare(deque[int])(field=deque([1, 2]))

    assert read_back(event) == event


def test_each_unreadable_field_of_a_class_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:

        class Faulty(Event, topic=things, type="fields.faulty", version="1.0"):
            left_out: int = Field(exclude=True)
            renamed: int = Field(validation_alias="other")
            computed: int = Field(serialization_alias="shown")

    assert [problem.split("'")[1] for problem in caught.value.problems] == ["left_out", "renamed", "computed"]


def test_a_dataclass_that_adds_fields_is_found() -> None:
    @dataclasses.dataclass
    class Part:
        name: str

    @dataclasses.dataclass
    class BigPart(Part):
        height: int = 1

    with pytest.raises(PublishError, match=r"a BigPart, which adds height to Part"):
        encode(wrap(declare(Part)(field=BigPart("wheel")), source="test"))


def test_a_field_is_read_by_its_name_and_by_its_alias_where_the_class_allows_both() -> None:
    event = declare(int, Field(validation_alias="other"), validate_by_name=True)

    assert read_back(event(field=1)) == event(other=1)


def test_the_part_of_a_path_is_named_as_the_part_of_another_field() -> None:
    with pytest.raises(ConfigError, match=r"'field' is published as 'field' but read as a part of another field"):
        declare(int, Field(validation_alias=AliasPath("a", 0)))
    with pytest.raises(ConfigError, match=r"is published as 'field' but read as 'a' or 'b':"):
        declare(int, Field(validation_alias=AliasChoices("a", AliasPath("c", 0), "b")))
