from __future__ import annotations

from collections.abc import Iterable, Sequence  # noqa: TC003 - handlers' annotations are resolved
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
from pydantic import BaseModel

from smartpipe import Batch, BatchDelivery, ConfigError, Delivery, Event, Idempotency, Queue, RetryPolicy, Service
from tests.support.events import OrderPlaced, Paid, UserLeft, UserSignedUp, users

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    service = Service("s")
    service.subscribe(UserSignedUp)(function)
    return tuple(parameter.kind for parameter in service.handlers[0].parameters)


async def event_only(event: UserSignedUp) -> None: ...
async def both(event: UserSignedUp, delivery: Delivery) -> None: ...
async def turned(delivery: Delivery, event: UserSignedUp) -> None: ...
async def base_class(event: Event) -> None: ...
async def with_default(event: UserSignedUp, clock: int = 0, *rest: object, **more: object) -> None: ...
def unannotated(event, delivery): ...  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
def known_to_type_checkers_only(event: OnlyThere, delivery: AlsoThere) -> None: ...  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (event_only, ("event",)),
        (both, ("event", "delivery")),
        (turned, ("delivery", "event")),
        (base_class, ("event",)),
        (with_default, ("event",)),
        (unannotated, ("event", "delivery")),
        (known_to_type_checkers_only, ("event", "delivery")),
    ],
)
def test_parameters_are_bound_by_annotation_or_else_by_position(
    function: Callable[..., Any], parameters: tuple[str, ...]
) -> None:
    assert parameters_of(function) == parameters


async def wrong_event(event: UserLeft) -> None: ...
async def nothing() -> None: ...
async def delivery_only(delivery: Delivery) -> None: ...
async def stranger(event: UserSignedUp, connection: int) -> None: ...
async def twice(event: UserSignedUp, again: UserSignedUp) -> None: ...
async def keyword(event: UserSignedUp, *, delivery: Delivery) -> None: ...


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (wrong_event, "parameter 'event' takes UserLeft, but the handler is subscribed to UserSignedUp"),
        (nothing, "takes no event"),
        (delivery_only, "takes no event"),
        (stranger, "int is neither the event nor a Delivery"),
        (twice, "a second time"),
        (keyword, "keyword-only"),
    ],
)
def test_registering_a_signature_that_does_not_fit_fails_and_names_the_handler(
    function: Callable[..., Any], error: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parameters_of(function)

    assert error in str(caught.value)
    assert f"tests.unit.test_handlers.{function.__name__}" in str(caught.value)


class Greeted:
    """A mixin of the event of these tests."""


class GreetedUser(UserSignedUp, Greeted, topic=users, type="greeted.user", version="1.0"):
    pass


AnyUser = TypeVar("AnyUser", bound=Event)
OneOfTwo = TypeVar("OneOfTwo", UserLeft, GreetedUser)


async def takes_union(event: UserLeft | GreetedUser) -> None: ...
async def takes_optional_union(event: UserLeft | GreetedUser | None) -> None: ...
async def takes_mixin(event: Greeted, delivery: Delivery) -> None: ...
async def takes_model(event: BaseModel) -> None: ...
async def takes_type_variable(event: AnyUser) -> None: ...
async def takes_constrained_variable(event: OneOfTwo) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        takes_union,
        takes_optional_union,
        takes_mixin,
        takes_model,
        takes_type_variable,
        takes_constrained_variable,
    ],
)
def test_a_parameter_takes_every_event_that_fits_its_annotation(function: Callable[..., Any]) -> None:
    service = Service("s")
    service.subscribe(GreetedUser)(function)

    assert service.handlers[0].parameters[0].kind == "event"


async def takes_union_list(events: list[UserLeft | GreetedUser], batch: BatchDelivery) -> None: ...
async def takes_mixin_sequence(events: Sequence[Greeted]) -> None: ...
async def takes_variable_list(events: list[AnyUser]) -> None: ...
async def takes_iterable(events: Iterable[BaseModel]) -> None: ...


@pytest.mark.parametrize("function", [takes_union_list, takes_mixin_sequence, takes_variable_list, takes_iterable])
def test_a_batch_handler_takes_lists_of_every_event_that_fits_their_items(function: Callable[..., Any]) -> None:
    service = Service("s")
    service.subscribe(GreetedUser, batch=Batch())(function)

    assert service.handlers[0].parameters[0].kind == "event"


def test_a_union_without_the_subscribed_event_is_rejected_and_shown_as_it_was_written() -> None:
    with pytest.raises(
        ConfigError, match=r"takes UserLeft \| OrderPlaced, but the handler is subscribed to UserSignedUp"
    ):

        @Service("s").subscribe(UserSignedUp)  # type: ignore[arg-type]
        async def handle(event: UserLeft | OrderPlaced) -> None: ...


def test_a_base_class_is_a_value_of_the_lifespan_if_another_parameter_names_the_event() -> None:
    class Settings(BaseModel):
        pass

    async def lifespan() -> AsyncIterator[BaseModel]:
        yield Settings()

    service = Service("s", lifespan=lifespan)

    @service.subscribe(UserSignedUp)
    async def first(settings: BaseModel, event: UserSignedUp) -> None: ...

    @service.subscribe(UserSignedUp)
    async def second(event: UserSignedUp, settings: BaseModel) -> None: ...

    kinds = [[parameter.kind for parameter in handler.parameters] for handler in service.handlers]
    assert kinds == [["state", "event"], ["event", "state"]]


def decorate_elsewhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate *function* as a decorator does that another module defines, where other names mean other classes."""
    names: dict[str, Any] = {"UserSignedUp": UserLeft, "wraps": wraps}
    source = """
def decorate(function):
    @wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)
    return wrapper
"""
    exec(source, names)
    decorated: Callable[..., Any] = names["decorate"](function)
    return decorated


def test_annotations_of_a_decorated_function_mean_the_names_of_its_own_module() -> None:
    assert parameters_of(decorate_elsewhere(both)) == ("event", "delivery")
    assert parameters_of(decorate_elsewhere(partial(decorate_elsewhere(both), delivery=None))) == ("event",)
    assert parameters_of(decorate_elsewhere(Mailer().send)) == ("event",)

    with pytest.raises(ConfigError, match="takes UserLeft, but the handler is subscribed to UserSignedUp"):
        parameters_of(decorate_elsewhere(wrong_event))


class Mailer:
    async def send(self, event: UserSignedUp) -> None: ...

    async def __call__(self, event: UserSignedUp, delivery: Delivery) -> None: ...


def test_methods_and_callable_objects_can_be_handlers() -> None:
    service = Service("s")
    service.subscribe(UserSignedUp)(Mailer().send)
    service.subscribe(UserSignedUp)(Mailer())

    kinds = [[parameter.kind for parameter in handler.parameters] for handler in service.handlers]
    assert kinds == [["event"], ["event", "delivery"]]
    assert all(handler.is_async for handler in service.handlers)
    assert service.handlers[0].name == "tests.unit.test_handlers.Mailer.send"


def test_subscribe_returns_the_function_unchanged() -> None:
    assert Service("s").subscribe(UserSignedUp)(event_only) is event_only


def test_by_default_a_service_has_one_queue_of_its_name() -> None:
    service = Service("mailer")
    service.subscribe(UserSignedUp)(event_only)
    service.subscribe(OrderPlaced, queue="mailer-orders", retry=RetryPolicy(attempts=9))(unannotated)
    service.subscribe(OrderPlaced, queue=Queue("mailer-audit", visibility_timeout_seconds=90))(unannotated)

    queues = {binding.queue.name: binding for binding in service.bindings}

    assert list(queues) == ["mailer", "mailer-orders", "mailer-audit"]
    assert queues["mailer-orders"].attempts == 9
    assert queues["mailer-audit"].queue.visibility_timeout_seconds == 90


def test_a_handlers_settings_override_those_of_the_service() -> None:
    service = Service("s", retry=RetryPolicy(attempts=2), timeout_seconds=10)
    service.subscribe(UserSignedUp)(event_only)
    service.subscribe(UserSignedUp, retry=RetryPolicy(attempts=8), timeout_seconds=None)(both)

    assert [(h.retry.attempts, h.options.timeout_seconds) for h in service.handlers] == [(2, 10), (8, None)]


def test_a_queue_declared_twice_with_different_settings_is_rejected() -> None:
    service = Service("s")

    with pytest.raises(ConfigError, match="declared twice with different settings"):
        service.subscribe(UserSignedUp, queue=Queue("s", visibility_timeout_seconds=99))(event_only)


def test_two_classes_for_one_type_on_one_queue_are_rejected_and_both_handlers_named() -> None:
    def redefined() -> type[Event]:
        class Twin(Event, topic=users, type="twin", version="1.0"):
            pass

        return Twin

    service = Service("s")
    service.subscribe(redefined())(unannotated)

    with pytest.raises(ConfigError, match="already decodes 'twin'"):
        service.subscribe(redefined())(unannotated)


@pytest.mark.parametrize("seconds", [0, -1, 43_201])
def test_a_timeout_out_of_range_is_rejected(seconds: float) -> None:
    with pytest.raises(ConfigError, match="timeout_seconds"):
        Service("s").subscribe(UserSignedUp, timeout_seconds=seconds)(event_only)


def test_an_option_with_an_unknown_choice_is_rejected() -> None:
    with pytest.raises(ConfigError, match="unknown_events='drop' must be one of dead-letter, ignore, retry"):
        Service("s", unknown_events="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a b", "x" * 77, "https://sqs.eu-west-1.amazonaws.com/1/q"])
def test_fault_58_a_queue_is_a_name_short_enough_for_its_dead_letter_queue_and_never_a_url(name: str) -> None:
    with pytest.raises(ConfigError, match="queue name"):
        Service(name)


def test_fault_22_a_max_receive_count_of_one_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="first delivery is lost"):
        Queue("q", max_receive_count=1)


def test_every_queue_setting_out_of_range_is_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Queue("q", visibility_timeout_seconds=0, retention_seconds=1, max_receive_count=1_001)

    assert len(caught.value.problems) == 3


async def async_generator(event: UserSignedUp) -> AsyncIterator[int]:
    yield 1


def generator(event: UserSignedUp) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("function", [async_generator, generator, partial(generator)])
def test_a_generator_is_rejected_because_it_would_never_run(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="is a generator"):
        parameters_of(function)


def test_a_partial_of_an_async_function_is_async_and_named_for_it() -> None:
    service = Service("s")
    service.subscribe(UserSignedUp)(partial(both, delivery=None))  # type: ignore[arg-type]
    [handler] = service.handlers

    assert handler.is_async
    assert handler.name == "tests.unit.test_handlers.both"


@pytest.mark.parametrize("event", [event_only, "member.signed_up", int])
def test_subscribing_to_something_that_is_not_an_event_shows_how_to_write_it(event: Any) -> None:
    with pytest.raises(ConfigError, match="write @service.subscribe"):
        Service("s").subscribe(event)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch": 10}, r"batch=10 is not of type Batch: write batch=Batch\(\.\.\.\)"),
        ({"breaker": True}, "breaker=True is not of type CircuitBreaker"),
        ({"retry": 3}, "retry=3 is not of type RetryPolicy"),
        ({"queue": 5}, "queue=5 must be the name of a queue or a Queue"),
        ({"rate_per_second": "5"}, "rate_per_second='5' is not a number"),
    ],
)
def test_an_option_of_the_wrong_type_is_rejected_and_the_error_says_how_to_fix_it(
    options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        Service("s").subscribe(UserSignedUp, **options)(event_only)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"middleware": print}, "must be a list of functions"),
        ({"middleware": [5]}, "must be a list of functions"),
        ({"lifespan": 5}, "lifespan=5 is not a function"),
    ],
)
def test_a_services_option_of_the_wrong_type_is_rejected(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Service("s", **options)


def errors_of(function: Any, **options: Any) -> list[str]:
    """Return the errors of registering *function*, without the name of the handler."""
    with pytest.raises(ConfigError) as caught:
        Service("s").subscribe(UserSignedUp, **options)(function)
    return [problem.partition(": ")[2] for problem in caught.value.problems]


async def one_as_list(events: list[UserSignedUp]) -> None: ...
async def one_as_bare_list(events: list) -> None: ...  # type: ignore[type-arg]
async def many_as_bare_list(events: list) -> None: ...  # type: ignore[type-arg]
async def many_as_one(events: UserSignedUp) -> None: ...
async def late_keyword(event: UserSignedUp, clock: int = 0, *, delivery: Delivery) -> None: ...
async def many_numbers(events: list[int]) -> None: ...
async def batch_delivery_only(batch: BatchDelivery) -> None: ...


@pytest.mark.parametrize(
    ("function", "batch", "error"),
    [
        (nothing, False, "takes no event; write (event: UserSignedUp) or (event: UserSignedUp, delivery: Delivery)"),
        (
            batch_delivery_only,
            True,
            "takes no event; write (events: list[UserSignedUp]) or (events: list[UserSignedUp], batch: BatchDelivery)",
        ),
        (
            one_as_list,
            False,
            "parameter 'events': lists of events are for batch handlers; subscribe it with batch=Batch(...)",
        ),
        (
            one_as_bare_list,
            False,
            "parameter 'events': lists of events are for batch handlers; subscribe it with batch=Batch(...)",
        ),
        (
            many_as_bare_list,
            True,
            "parameter 'events': lists of events are for batch handlers; write list[UserSignedUp]",
        ),
        (many_numbers, True, "parameter 'events': lists of events are for batch handlers; write list[UserSignedUp]"),
        (many_as_one, True, "parameter 'events': a batch handler takes a list of events; write list[UserSignedUp]"),
        (twice, False, "parameter 'again' asks for the event a second time"),
        (
            stranger,
            False,
            (
                "parameter 'connection': int is neither the event nor a Delivery; only a service with a lifespan can "
                "provide other values"
            ),
        ),
        (
            late_keyword,
            False,
            "parameter 'delivery' is keyword-only; handlers are called by position",
        ),
        (5, False, "is not callable"),
    ],
)
def test_the_error_of_a_signature_says_how_to_write_it(function: Any, batch: bool, error: str) -> None:
    assert errors_of(function, batch=Batch() if batch else None) == [error]


def test_every_error_of_a_signature_is_reported_and_options_without_a_default_count() -> None:
    async def handle(event: UserSignedUp, number: int, *, also: Delivery, fine: int = 0) -> None: ...

    errors = errors_of(handle)

    assert len(errors) == 2
    assert errors[0].startswith("parameter 'number': int is neither")
    assert errors[1] == "parameter 'also' is keyword-only; handlers are called by position"


def test_unannotated_parameters_of_a_batch_handler_are_bound_by_position() -> None:
    service = Service("s")
    service.subscribe(UserSignedUp, batch=Batch())(unannotated)

    assert [parameter.kind for parameter in service.handlers[0].parameters] == ["event", "delivery"]


Anything = TypeVar("Anything")
NotTheEvent = TypeVar("NotTheEvent", bound=UserLeft)


class HasName(Protocol):
    name: str


async def takes_anything(event: Anything) -> None: ...
async def takes_protocol(event: HasName) -> None: ...
async def takes_other_variable(event: NotTheEvent) -> None: ...


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (takes_anything, "Anything is neither the event nor a Delivery"),
        (takes_protocol, "HasName is neither the event nor a Delivery"),
        (takes_other_variable, "takes NotTheEvent, but the handler is subscribed to UserSignedUp"),
    ],
)
def test_an_annotation_that_does_not_say_event_is_not_taken_for_one(function: Callable[..., Any], error: str) -> None:
    [found] = errors_of(function)

    assert error in found


class Ping(Event, topic=users, type="ping", version="1.0"):
    pass


async def ping(event: Ping) -> None: ...


@pytest.mark.parametrize(
    ("event", "function", "fields"),
    [
        (UserSignedUp, event_only, r"its idempotency key 'number' is not a field of UserSignedUp \(user_id, name\)"),
        (Ping, ping, r"its idempotency key 'number' is not a field of Ping \(it has none\)"),
    ],
)
def test_an_idempotency_key_that_is_no_field_is_refused_with_the_fields(
    event: type[Event], function: Callable[..., Any], fields: str
) -> None:
    with pytest.raises(ConfigError, match=fields):
        Service("s").subscribe(event, idempotent=Idempotency(key="number"))(function)


def test_a_fifo_queue_takes_events_of_fifo_topics_only() -> None:
    async def pay(event: Paid) -> None: ...

    service = Service("s", queue=Queue("s", fifo=True))
    service.subscribe(Paid)(pay)
    with pytest.raises(ConfigError, match=r"queue 's.fifo' is FIFO and topic 'users' is not"):
        service.subscribe(UserSignedUp)(event_only)
    Service("t").subscribe(Paid)(pay)  # a FIFO topic may have standard queues


def test_every_error_of_a_handler_is_reported_with_its_name() -> None:
    options: dict[str, Any] = {"retry": 3, "breaker": True, "concurrency": "1"}
    with pytest.raises(ConfigError) as caught:
        Service("s").subscribe(UserSignedUp, **options)(stranger)

    name = "handler tests.unit.test_handlers.stranger: "
    assert all(problem.startswith(name) for problem in caught.value.problems)
    assert [problem.removeprefix(name).split("=")[0].split(":")[0] for problem in caught.value.problems] == [
        "retry",
        "breaker",
        "concurrency",
        "parameter 'connection'",
    ]
