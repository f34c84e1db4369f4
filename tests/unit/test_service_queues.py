"""What a service derives from its handlers: the queues, their policies, and the names of handlers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from smartpipe import ConfigError, Delivery, Event, Idempotency, Queue, RetryPolicy, Service
from tests.support.events import OrderPlaced, Paid, UserSignedUp, users


class GreetedUser(UserSignedUp, topic=users, type="queues.greeted", version="1.0"):
    """An event of its own type."""


async def event_only(event: UserSignedUp) -> None: ...
async def both(event: UserSignedUp, delivery: Delivery) -> None: ...
async def base_class(event: Event) -> None: ...
def unannotated(event): ...  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201


def test_a_queue_is_the_same_however_a_handler_names_it() -> None:
    declared = Queue("audit", delay_seconds=5)
    service = Service("s", queue=Queue("mails", delay_seconds=7))
    service.subscribe(UserSignedUp, queue=declared)(event_only)
    service.subscribe(UserSignedUp, queue="audit")(both)
    service.subscribe(UserSignedUp, queue="mails")(base_class)
    service.subscribe(UserSignedUp, queue=Queue("audit", delay_seconds=5))(unannotated)

    assert [handler.queue.delay_seconds for handler in service.handlers] == [5, 5, 7, 5]
    assert [len(service.handlers_on(name)) for name in ("audit", "mails", "s")] == [3, 1, 0]
    assert [binding.queue.name for binding in service.bindings] == ["audit", "mails"]


def test_a_services_queue_may_be_given_by_its_name() -> None:
    service = Service("s", queue="mails")
    service.subscribe(UserSignedUp)(event_only)

    assert [binding.queue for binding in service.bindings] == [Queue("mails")]


def test_a_binding_has_each_contract_and_each_policy_once() -> None:
    policy, other = RetryPolicy(attempts=9), RetryPolicy(attempts=4)
    service = Service("s", retry=other)
    service.subscribe(UserSignedUp, retry=policy)(event_only)
    service.subscribe(UserSignedUp, retry=policy)(both)
    service.subscribe(OrderPlaced)(unannotated)

    [binding] = service.bindings
    assert [contract.type for contract in binding.contracts] == ["member.signed_up", "order.placed"]
    assert binding.policies == (policy, other)
    assert binding.attempts == 9


@pytest.mark.parametrize(("service_retry", "handler_retry", "expected"), [
    (RetryPolicy(attempts=9), RetryPolicy(attempts=4), 9),
    (RetryPolicy(attempts=4), RetryPolicy(attempts=9), 9),
    (RetryPolicy(attempts=4), RetryPolicy(attempts=3, on_exhausted="halt"), 1_000),
])  # fmt: skip
def test_a_queue_allows_the_attempts_of_each_policy(
    service_retry: RetryPolicy, handler_retry: RetryPolicy, expected: int
) -> None:
    service = Service("s", queue=Queue("s", fifo=True), retry=service_retry)
    service.subscribe(Paid, retry=handler_retry)(unannotated)

    assert [binding.attempts for binding in service.bindings] == [expected]


def test_a_queue_remembers_events_for_the_shortest_time_of_its_idempotent_handlers() -> None:
    service = Service("s")
    service.subscribe(OrderPlaced, idempotent=Idempotency(ttl_seconds=600))(unannotated)
    service.subscribe(OrderPlaced, idempotent=Idempotency(ttl_seconds=300))(partial(unannotated_too))
    service.subscribe(OrderPlaced, idempotent=Idempotency(key="order_id", ttl_seconds=60))(a_third)
    service.subscribe(OrderPlaced, queue="other", idempotent=Idempotency(key="order_id", ttl_seconds=60))(unannotated)
    service.subscribe(OrderPlaced, queue="plain")(unannotated)

    found = {one.queue.name: (one.remembers_seconds, one.breaks) for one in service.bindings}
    assert found == {"s": (300, True), "other": (None, True), "plain": (None, False)}


def unannotated_too(event): ...  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
def a_third(event): ...  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201


@pytest.mark.parametrize(("idempotent", "expected"), [(False, False), (True, True), (Idempotency(), True)])
def test_a_service_is_idempotent_if_one_of_its_handlers_is(idempotent: Any, expected: bool) -> None:
    service = Service("s")
    assert not service.idempotent
    service.subscribe(UserSignedUp)(event_only)
    service.subscribe(UserSignedUp, idempotent=idempotent)(both)

    assert service.idempotent is expected
    assert [bool(one.options.idempotency) for one in service.handlers] == [False, expected]


def test_a_services_own_timeout_counts_for_handlers_without_one() -> None:
    service = Service("s")
    service.subscribe(UserSignedUp)(event_only)
    service.subscribe(UserSignedUp, timeout_seconds=7)(both)

    assert [one.options.timeout_seconds for one in service.handlers] == [300, 7]


def test_handlers_of_one_name_are_numbered_unless_they_are_idempotent() -> None:
    service = Service("s")
    for _ in range(3):
        service.subscribe(UserSignedUp)(event_only)
    service.subscribe(GreetedUser)(base_class)
    service.subscribe(UserSignedUp)(base_class)
    service.subscribe(UserSignedUp, queue="other")(event_only)

    names = [handler.name.rpartition(".")[2] for handler in service.handlers]
    assert names == ["event_only", "event_only#2", "event_only#3", "base_class", "base_class", "event_only"]
    with pytest.raises(ConfigError, match="already has a handler of this name for UserSignedUp"):
        service.subscribe(UserSignedUp, idempotent=True)(event_only)
    service.subscribe(UserSignedUp, queue="third", idempotent=True)(event_only)
    with pytest.raises(ConfigError, match="already has a handler of this name for UserSignedUp"):
        service.subscribe(UserSignedUp, queue="third")(event_only)


def test_another_major_version_is_another_event_on_a_queue() -> None:
    class Newer(Event, topic=users, type="greeted.user", version="2.0"):
        pass

    service = Service("s")
    service.subscribe(GreetedUser)(unannotated)
    service.subscribe(Newer)(unannotated_too)

    assert len(service.handlers) == 2


def test_a_service_publishes_events_and_sends_to_queues() -> None:
    service = Service("s", publishes=[UserSignedUp, Queue("mails"), OrderPlaced])

    assert [contract.type for contract in service.published] == ["member.signed_up", "order.placed"]
    assert service.sends_to == (Queue("mails"),)
    assert service.bindings == ()


@pytest.mark.parametrize(("publishes", "error"), [
    (UserSignedUp, "is not a list: write publishes="),
    ("mails", "is not a list: write publishes="),
    (["mails"], "must be an event class that declares a type, or a Queue"),
    ([Event], "must be an event class that declares a type, or a Queue"),
    ([int], "must be an event class that declares a type, or a Queue"),
])  # fmt: skip
def test_anything_else_that_a_service_publishes_is_refused(publishes: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Service("s", publishes=publishes)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_published_events_may_be_in_any_collection(kind: Any) -> None:
    assert len(Service("s", publishes=kind([UserSignedUp])).published) == 1


def test_a_service_whose_name_is_no_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="service 'a b'"):
        Service("a b", queue="mails")
