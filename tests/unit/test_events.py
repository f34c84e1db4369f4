from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from pydantic import ValidationError

from smartpipe import CircuitBreaker, ConfigError, Event, FilterPolicy, Idempotency, Queue, RetryPolicy, Topic
from smartpipe.events import contract_of, event_class
from tests.support.events import ADA, UserSignedUp, users


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
