"""Upcasters as they are declared, and as a service checks them before it starts."""

from __future__ import annotations

import functools
from itertools import count
from typing import TYPE_CHECKING, Any, TypedDict

import pytest

from smartpipe import ConfigError, Event, Queue, Service, Topic
from smartpipe.events import contract_of, upcast_contracts
from smartpipe.testing import MemoryBroker
from smartpipe.topology.derive import derive
from smartpipe.topology.export.iam import build_policies
from smartpipe.transports.memory.transport import NAMING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

parcels = Topic("parcels")
old_parcels = Topic("old-parcels")


def unchanged(data: dict[str, Any]) -> dict[str, Any]:
    return data


_numbers = count()


def declare(version: str = "3.0", *, type_: str | None = None) -> type[Event]:
    """Declare a class, by default of a type that no other test declares."""

    class ParcelSent(Event, topic=parcels, type=type_ or f"parcel.sent{next(_numbers)}", version=version):
        parcel: str = ""

    return ParcelSent


def subscribe(*events: type[Event], queue: Queue | None = None) -> Service:
    service = Service("mail", queue=queue)

    for event in events:

        @service.subscribe(event)
        async def handle(event: Any) -> None: ...

    return service


def errors_of(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("version", ["1.0", "v1", "", "01", " 1", "-1", 1, None, "1" * 10])
def test_a_version_that_is_not_a_major_version_is_refused(version: Any) -> None:
    event = declare()

    assert f"from_version={version!r} is not a major version as text, as in from_version='1'" in errors_of(
        lambda: event.upcast(from_version=version)
    )
    if version is not None:
        assert f"to_version={version!r} is not" in errors_of(lambda: event.upcast(from_version="1", to_version=version))


@pytest.mark.parametrize("version", ["3", "4"])
def test_a_version_that_is_not_older_than_the_class_is_refused(version: str) -> None:
    assert errors_of(lambda: declare().upcast(from_version=version)).endswith(
        f"an upcaster from version {version} would never run, because the class has version 3.0: lower from_version"
    )


@pytest.mark.parametrize("target", ["2", "1"])
def test_a_cycle_is_refused(target: str) -> None:
    assert errors_of(lambda: declare().upcast(from_version="2", to_version=target)).endswith(
        f"an upcaster from version 2 to {target} leads back: raise to_version above from_version"
    )


def test_an_upcaster_beyond_the_class_is_refused() -> None:
    assert "an upcaster leads to version 4, but the class has version 3.0: lower to_version" in errors_of(
        lambda: declare().upcast(from_version="1", to_version="4")
    )


def test_a_topic_that_is_only_a_name_is_refused() -> None:
    wrong: Any = "parcels"

    assert "topic='parcels' is a str, not a Topic" in errors_of(lambda: declare().upcast(from_version="1", topic=wrong))


def test_two_upcasters_from_one_version_are_refused_with_their_lines() -> None:
    event = declare()

    @event.upcast(from_version="1")
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return data

    def second(data: dict[str, Any]) -> dict[str, Any]:
        return data

    error = errors_of(lambda: event.upcast(from_version="1", to_version="3")(second))

    assert f"from version 1 to 2 ({__name__}.test_two_upcasters" in error
    assert f"from version 1 to 3 ({__name__}.test_two_upcasters" in error
    assert error.count(", line ") == 2
    assert error.endswith("take the same version; remove one")


def test_a_definition_that_runs_again_replaces_itself() -> None:
    event = declare()
    for _ in range(2):

        @event.upcast(from_version="2")
        def upcast(data: dict[str, Any]) -> dict[str, Any]:
            return data

    assert event.__upcasters__[2].function is upcast


def test_the_function_itself_is_returned_so_that_a_test_can_call_it() -> None:
    assert declare().upcast(from_version="1")(unchanged) is unchanged


class _Async:
    async def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


class _Old(TypedDict):
    parcel: str


def _refused() -> Iterator[tuple[Any, str]]:
    async def coroutine(data: dict[str, Any]) -> dict[str, Any]:
        return data

    async def async_generator(data: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield data

    def generator(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield data

    def nothing() -> dict[str, Any]:
        return {}

    def two(data: dict[str, Any], version: str) -> dict[str, Any]:
        return data

    def keyword(*, data: dict[str, Any]) -> dict[str, Any]:
        return data

    def takes_event(event: Event) -> dict[str, Any]:
        return {}

    def returns_event(data: dict[str, Any]) -> Event:
        raise NotImplementedError

    def returns_nothing(data: dict[str, Any]) -> None: ...

    yield coroutine, "is async, and it runs while a message is decoded, without I/O"
    yield functools.partial(coroutine), "is async"
    yield _Async(), "is async"
    yield async_generator, "is async"
    yield generator, "is a generator, so none of it would run"
    yield nothing, "too many positional arguments"
    yield two, "missing a required argument: 'version'"
    yield keyword, "too many positional arguments"
    yield takes_event, "takes Event, but upcasters work with the data as a dict"
    yield returns_event, "returns Event, but upcasters work with the data as a dict"
    yield returns_nothing, "returns NoneType, but upcasters"
    yield dict, "is not a function"
    yield "1", "upcaster '1' is not a function"


@pytest.mark.parametrize(("function", "error"), list(_refused()))
def test_a_function_with_another_signature_is_refused_with_the_right_one(function: Any, error: str) -> None:
    event = declare()
    found = errors_of(lambda: event.upcast(from_version="1")(function))

    assert found.startswith(f"event {__name__}.declare.<locals>.ParcelSent: upcaster ")
    assert error in found
    assert found.endswith("write def _(data: dict[str, Any]) -> dict[str, Any]")
    assert event.__upcasters__ == {}


def _accepted() -> Iterator[Any]:
    def typed(data: _Old) -> _Old:
        return data

    def undeclared(data: Any, more: Any = None) -> Any:
        return data

    undeclared.__annotations__.clear()

    def anything(data: Any) -> Any:
        return data

    def union(data: dict[str, Any]) -> dict[str, Any] | dict[str, str]:
        return data

    def unknown(data: Missing) -> dict[str, Any]:  # type: ignore[name-defined]  # noqa: F821
        return {}

    yield from (
        unchanged,
        typed,
        undeclared,
        anything,
        union,
        unknown,
        dict.copy,
        functools.partial(unchanged),
        lambda data: data,
    )


@pytest.mark.parametrize("function", list(_accepted()))
def test_a_function_that_can_be_called_with_a_dict_is_accepted(function: Any) -> None:
    event = declare()
    event.upcast(from_version="2")(function)

    assert event.__upcasters__[2].function is function


def test_a_base_class_has_no_versions_to_upcast() -> None:
    class Base(Event):
        parcel: str

    assert "does not declare a type" in errors_of(lambda: Base.upcast(from_version="1"))


def test_upcasters_are_not_inherited() -> None:
    event: Any = declare()
    event.upcast(from_version="2")(unchanged)

    class ParcelReturned(event, topic=parcels, type="parcel.returned", version="3.0"):  # type: ignore[misc,call-arg]
        pass

    assert ParcelReturned.__upcasters__ == {}


def test_a_gap_is_found_when_a_service_uses_the_class() -> None:
    event = declare("4.0")
    event.upcast(from_version="1")(unchanged)
    event.upcast(from_version="3")(unchanged)
    service = subscribe(event)

    for use in (lambda: service.bindings, lambda: derive([service], NAMING), lambda: service.slots(10)):
        error = errors_of(use)
        assert f"the upcaster from version 1 to 2 ({__name__}.unchanged, line " in error
        assert error.endswith(
            "leads nowhere, because no upcaster takes version 2: add upcast(from_version='2'), or to_version='4' to "
            "this one if it returns data of version 4"
        )

    event.upcast(from_version="2")(unchanged)
    assert [contract.version for contract in service.bindings[0].contracts] == ["4.0", "1.0", "2.0", "3.0"]


async def test_neither_a_lambda_function_nor_a_test_broker_starts_with_a_gap() -> None:
    event = declare()
    event.upcast(from_version="1")(unchanged)
    service = subscribe(event)

    with pytest.raises(ConfigError, match="leads nowhere"):
        service.lambda_handler()
    with pytest.raises(ConfigError, match="leads nowhere"):
        async with MemoryBroker(service):
            pass


def test_a_version_that_was_never_published_can_be_skipped() -> None:
    event = declare("3.0")
    event.upcast(from_version="1", to_version="3")(unchanged)

    assert [contract.version for contract in upcast_contracts(event)] == ["1.0"]


def test_a_class_on_the_queue_takes_its_own_version_and_no_upcaster_does() -> None:
    older, newer = declare("1.4", type_="parcel.both"), declare("2.0", type_="parcel.both")
    newer.upcast(from_version="1")(unchanged)

    assert [contract.version for contract in subscribe(newer, older).bindings[0].contracts] == ["2.0", "1.4"]
    assert [contract.version for contract in subscribe(newer).bindings[0].contracts] == ["2.0", "1.4"]


def test_two_classes_that_upcast_one_version_cannot_share_a_queue() -> None:
    older, newer = declare("2.0", type_="parcel.rivals"), declare("3.0", type_="parcel.rivals")
    for event in (older, newer):
        event.upcast(from_version="1")(unchanged)
    newer.upcast(from_version="2")(unchanged)
    both = subscribe(older, newer)

    assert errors_of(lambda: both.bindings) == (
        "queue 'mail': declare.<locals>.ParcelSent and declare.<locals>.ParcelSent both have an upcaster for version 1 "
        "of 'parcel.rivals': subscribe one of them on another queue, or subscribe a class of that version as well"
    )
    assert subscribe(newer).bindings
    assert subscribe(older).bindings
    assert subscribe(older, newer, declare("1.0", type_="parcel.rivals")).bindings


def test_the_topology_covers_the_topic_of_an_older_version() -> None:
    moved = declare("2.0")
    moved.upcast(from_version="1", topic=old_parcels)(unchanged)
    topology = derive([subscribe(moved)], NAMING)

    assert sorted(arn.rpartition(":")[2] for arn in topology.topics) == ["old-parcels", "parcels"]
    assert {topic.rpartition(":")[2] for topic, _ in topology.subscriptions} == {"old-parcels", "parcels"}
    assert [one["FilterPolicy"] for one in topology.subscriptions.values()] == [{"type": [contract_of(moved).type]}] * 2
    [policy] = [one["Policy"] for arn, one in topology.queues.items() if arn.endswith(":mail")]
    assert "old-parcels" in str(policy)
    policies = build_policies(subscribe(moved), NAMING)
    for name in ("consume", "provision"):
        assert NAMING.topic_arn("old-parcels") in str(policies[name])


def test_without_another_topic_the_topology_is_the_same_as_without_upcasters() -> None:
    moved = declare("2.0")
    before = derive([subscribe(moved)], NAMING)
    moved.upcast(from_version="1")(unchanged)

    assert derive([subscribe(moved)], NAMING) == before


def test_a_class_of_the_older_version_on_another_topic_is_found() -> None:
    class LetterSentV1(Event, topic=old_parcels, type="letter.sent", version="1.2"):
        letter: str

    class LetterSent(Event, topic=parcels, type="letter.sent", version="2.0"):
        letter: str

    LetterSent.upcast(from_version="1")(unchanged)
    error = errors_of(lambda: subscribe(LetterSent).bindings)

    assert "is for events on topic 'parcels', but " in error
    assert "LetterSentV1 declares version 1.2 on topic 'old-parcels': pass that topic as upcast(topic=...)" in error

    LetterSent.__upcasters__.clear()
    LetterSent.upcast(from_version="1", topic=old_parcels)(unchanged)
    assert subscribe(LetterSent).bindings


def test_an_older_version_from_a_standard_topic_cannot_reach_a_fifo_queue() -> None:
    class ParcelLost(Event, topic=Topic("ordered", fifo=True), type="parcel.lost", version="2.0", key="parcel"):
        parcel: str

    ParcelLost.upcast(from_version="1", topic=parcels)(unchanged)

    assert errors_of(lambda: subscribe(ParcelLost, queue=Queue("mail", fifo=True)).bindings).startswith(
        "queue 'mail.fifo' is FIFO, and topic 'parcels', from which "
    )
    assert subscribe(ParcelLost).bindings
