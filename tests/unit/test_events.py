from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from enum import Enum
from typing import Any

import pytest
from pydantic import ValidationError

from smartpipe import CircuitBreaker, ConfigError, Event, FilterPolicy, Idempotency, Queue, RetryPolicy, Topic
from smartpipe.events import contract_of, event_class, text_of
from tests.support.events import ADA, UserLeft, UserSignedUp, users


def test_an_event_declares_its_type_version_topic_and_key() -> None:
    class Shipped(Event, topic=users, type="shipped", version="3.4", key="parcel"):
        parcel: str

    contract = contract_of(Shipped)

    assert (contract.type, contract.version, contract.major) == ("shipped", "3.4", 3)
    assert (contract.topic, contract.key) == (users, "parcel")
    assert event_class("shipped", 3) is Shipped


def test_an_event_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ADA.name = "Eve"  # type: ignore[misc]


def test_two_classes_that_claim_one_type_and_major_version_are_refused_and_both_named() -> None:
    with pytest.raises(ConfigError) as caught:

        class Impostor(Event, topic=users, type="member.signed_up", version="1.9"):
            pass

    assert "Impostor" in str(caught.value)
    assert "tests.support.events.UserSignedUp" in str(caught.value)
    assert event_class("member.signed_up", 1) is UserSignedUp


def test_another_major_version_of_a_type_is_another_event() -> None:
    class UserSignedUpAgain(Event, topic=users, type="member.signed_up", version="7.0"):
        pass

    assert event_class("member.signed_up", 7) is UserSignedUpAgain
    assert event_class("member.signed_up", 1) is UserSignedUp


def test_the_same_definition_run_again_takes_its_own_place() -> None:
    def define() -> type[Event]:
        class Cell(Event, topic=users, type="cell", version="1.0"):
            pass

        return Cell

    define()

    assert define() is event_class("cell", 1)


def test_every_fault_of_a_declaration_is_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:

        class Faulty(Event, topic=users, type="not a type", version="1", key="nothing"):
            field: int

    assert len(caught.value.problems) == 3
    assert all("Faulty" in problem for problem in caught.value.problems)


def test_an_incomplete_declaration_names_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"lacks topic=, version="):

        class Half(Event, type="half"):
            pass


def test_a_base_class_without_declaration_cannot_be_published() -> None:
    class Mixin:
        pass

    class Base(Event, Mixin):
        at: int

    class Real(Base, topic=users, type="real", version="1.0"):
        pass

    class Heir(Real):
        pass

    assert contract_of(Real).type == "real"
    for undeclared, sentence in ((Base, r"class Base\(Event, topic="), (Heir, r"class Heir\(Real, topic=")):
        with pytest.raises(ConfigError, match=f"does not declare a type; write {sentence}"):
            contract_of(undeclared)


@pytest.mark.parametrize("name", ["", "with space", "ümlaut", "x" * 257])
def test_a_topic_name_that_aws_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="topic name"):
        Topic(name)


def test_a_fifo_topic_is_called_by_its_aws_name_however_it_is_written() -> None:
    assert Topic("orders", fifo=True) == Topic("orders.fifo", fifo=True)
    assert Topic("orders", fifo=True).name == "orders.fifo"


def test_a_topic_of_another_team_is_fifo_if_its_arn_says_so() -> None:
    arn = "arn:aws:sns:eu-west-1:123456789012:orders"

    assert Topic(arn=f"{arn}.fifo").fifo
    assert not Topic(arn=arn).fifo


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Topic, ["orders"]),
        (Queue, ["orders"]),
        (RetryPolicy, []),
        (CircuitBreaker, []),
        (Idempotency, []),
        (FilterPolicy, [{"a": ["b"]}]),
    ],
)
def test_a_declaration_does_not_change_after_it_was_checked(kind: type[Any], arguments: list[Any]) -> None:
    declared = kind(*arguments)
    name = fields(declared)[0].name

    with pytest.raises(FrozenInstanceError):
        setattr(declared, name, None)


def test_a_fifo_name_without_the_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="add fifo=True"):
        Topic("orders.fifo")


def test_an_event_on_a_fifo_topic_has_to_name_its_key() -> None:
    with pytest.raises(ConfigError, match='keeps events in order by their key: add key="a_field"'):

        class Keyless(Event, topic=Topic("orders", fifo=True), type="keyless", version="1.0"):
            order_id: str


def test_a_tenant_is_a_field_and_for_standard_topics_only() -> None:
    with pytest.raises(ConfigError) as caught:

        class Wrong(Event, topic=Topic("orders", fifo=True), type="wrong", version="1.0", key="order_id", tenant="x"):
            order_id: str

    assert len(caught.value.problems) == 2


def test_a_number_that_json_does_not_have_is_refused() -> None:
    class Measured(Event, topic=users, type="measured", version="1.0"):
        value: float

    with pytest.raises(ValidationError, match="finite"):
        Measured(value=float("nan"))


def test_a_declaration_of_the_wrong_types_names_each() -> None:
    with pytest.raises(ConfigError) as caught:

        class Typed(Event, topic="users", type="typed", version=1.0):
            pass

    assert len(caught.value.problems) == 2
    assert "topic='users' is a str, not a Topic" in str(caught.value)


def test_a_copy_shares_the_values_within_unless_it_is_deep() -> None:
    class Listed(Event, topic=users, type="listed", version="1.0"):
        names: tuple[list[str], ...] = ()

    event = Listed(names=(["Ada"],))

    assert event.model_copy().names[0] is event.names[0]
    assert event.model_copy(update={}).names[0] is event.names[0]
    assert event.model_copy(deep=True).names[0] is not event.names[0]


def declare(**arguments: Any) -> type[Event]:
    """Declare an event with a field ``order_id``."""
    namespace = {"__module__": __name__, "__qualname__": "Given", "__annotations__": {"order_id": str}}
    meta: Any = type(Event)
    declared: type[Event] = meta(
        "Given", (Event,), namespace, **{"topic": users, "type": "given", "version": "1.0", **arguments}
    )
    return declared


@pytest.mark.parametrize("type_", ["a", "A1", "a.b", "a.b-c_d.9", "9", "a/b", "urn:a", "x" * 255])
def test_a_type_of_letters_digits_and_single_dots_is_accepted(type_: str) -> None:
    assert contract_of(declare(type=type_)).type == type_


@pytest.mark.parametrize("type_", ["", ".a", "a.", "a..b", "-a", "_a", "a b", "ä", "/a", "x" * 256, "a\n"])
def test_any_other_type_is_refused(type_: str) -> None:
    with pytest.raises(ConfigError, match="is not valid: use at most 255 letters"):
        declare(type=type_)


@pytest.mark.parametrize(("version", "major"), [("0.0", 0), ("0.1", 0), ("1.0", 1), ("2.10", 2), ("10.20", 10)])
def test_a_version_is_major_and_minor(version: str, major: int) -> None:
    assert contract_of(declare(type="versioned", version=version)).major == major


@pytest.mark.parametrize("version", ["", "1", "1.", ".1", "1.0.0", "01.0", "1.00", "v1.0", "1.a", "1.0\n"])
def test_any_other_version_is_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=r"is not major\.minor, as in '1\.0'"):
        declare(version=version)


@pytest.mark.parametrize("missing", ["topic", "type", "version"])
def test_each_part_of_a_declaration_is_required(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"lacks {missing}=$"):
        declare(**{missing: None})


@pytest.mark.parametrize("only", [{"key": "order_id"}, {"tenant": "order_id"}, {"version": "1.0"}])
def test_a_part_alone_is_an_incomplete_declaration(only: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="lacks topic="):
        declare(**{"topic": None, "type": None, "version": None, **only})


@pytest.mark.parametrize(("topic", "key", "tenant", "errors"), [
    (users, None, None, []),
    (users, "order_id", "order_id", []),
    (users, "other", None, ["key 'other' is not one of its fields (order_id)"]),
    (users, None, "other", ["tenant 'other' is not one of its fields (order_id)"]),
    (Topic("orders", fifo=True), "order_id", None, []),
    (Topic("orders", fifo=True), "order_id", "order_id", ["tenant is for standard topics"]),
    (Topic("orders", fifo=True), None, None, ["topic 'orders.fifo' is FIFO"]),
])  # fmt: skip
def test_key_and_tenant_are_fields_that_suit_the_topic(
    topic: Topic, key: str | None, tenant: str | None, errors: list[str]
) -> None:
    arguments = {"topic": topic, "key": key, "tenant": tenant, "type": "events.keyed"}
    if not errors:
        contract = contract_of(declare(**arguments))
        assert (contract.key, contract.tenant) == (key, tenant)
        return
    with pytest.raises(ConfigError) as caught:
        declare(**arguments)

    assert len(caught.value.problems) == len(errors)
    assert all(error in problem for error, problem in zip(errors, caught.value.problems, strict=True))


def test_a_key_of_an_event_without_fields_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"key 'id' is not one of its fields \(it has none\)"):

        class Empty(Event, topic=users, type="empty", version="1.0", key="id"):
            pass


def test_a_key_or_tenant_counts_as_text() -> None:
    class Size(Enum):
        LARGE = 4

    class Sized(Event, topic=users, type="sized", version="1.0"):
        size: Size | None = None
        number: int = 0

    assert text_of(Sized(size=Size.LARGE), "size") == "4"
    assert text_of(Sized(), "size") is None
    assert text_of(Sized(), "number") == "0"
    assert text_of(Sized(number=7), None) is None


@pytest.mark.parametrize(("module", "qualname", "sentence"), [
    ("__main__", "Given", "Given exists twice, because its module runs as a script and is also imported"),
    ("__main__", "Other", "both declare event type 'twice', major version 1;"),
    ("elsewhere", "Given", "both declare event type 'twice', major version 1;"),
])  # fmt: skip
def test_a_class_of_a_script_that_is_also_imported_is_reported_as_such(
    module: str, qualname: str, sentence: str
) -> None:
    declare(type="twice")
    namespace = {"__module__": module, "__qualname__": qualname}
    meta: Any = type(Event)

    with pytest.raises(ConfigError, match=sentence):
        meta(qualname, (Event,), namespace, topic=users, type="twice", version="1.5")


def test_a_field_that_is_not_declared_is_ignored() -> None:
    assert UserLeft.model_validate({"name": "Ada", "age": 36}) == UserLeft(name="Ada")
