"""Estimates the requests that declared services make in a month of 30 days, and their cost. Pure.

The formulas are in docs/costs.md. Sources: Amazon SQS, "Pricing" and "Estimating AWS KMS costs"; Amazon SNS, "Pricing"
and "Message filtering"; AWS KMS, Amazon S3, Amazon DynamoDB and Amazon CloudWatch, "Pricing".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.doctor.costs.options import Rate
from smartpipe.doctor.costs.prices import CHUNK_BYTES, GIB, MONTH_SECONDS
from smartpipe.events import contract_of
from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smartpipe.doctor.costs.options import CostOptions
    from smartpipe.events import Contract
    from smartpipe.service import Service
    from smartpipe.settings import PayloadSettings, WorkerSettings
    from smartpipe.topics import Queue, Topic
    from smartpipe.topology.derive import Binding

DAY_SECONDS = 86_400
MONTH_DAYS = MONTH_SECONDS / DAY_SECONDS
MILLION = 1_000_000
DELETE_LINGER_SECONDS = 0.05
"""A worker collects deletes for this time: ``consumer.settle``."""
ROUND_TRIP_SECONDS = 0.02
"""The time of a receive request for which messages wait already."""
MANY = 100
"""If this number of messages is expected during the wait of a request, no request ends empty."""
KMS_REUSE_SECONDS = 300
"""SQS uses a data key for this time by default."""
QUEUE_PRINCIPALS = 3
"""The calls of KMS in this time: two for SNS, which sends, and one for the role of the workers, which receives."""
TOPIC_PRINCIPALS = 2
"""The calls of KMS in this time for a topic with one role that publishes."""
MANAGED_KEYS = "alias/aws/"
"""These keys of AWS cost nothing, but their requests do."""
POINTER_BYTES = 1_024
"""The size of a message whose body is in S3, with its attributes."""
WRITES_PER_CLAIM = 2
"""An idempotent handler claims an event, and completes the claim: two writes of less than 1 KB in DynamoDB."""
CLAIM_BYTES = 400
"""The size of a claim in DynamoDB, with the 100 bytes that DynamoDB adds for each item."""


class Item(NamedTuple):
    """One line of the estimate.

    Args:
        resource: Such as ``queue billing``.
        name: The requests or the storage.
        quantity: Requests, or GB, or resources, in a month.
        unit_dollars: The price of one of them.
        least: The quantity if all requests with messages are full batches; None if that changes nothing.
        optional: Whether it is only needed for something that you may not use.
    """

    resource: str
    name: str
    quantity: float
    unit_dollars: float
    least: float | None = None
    optional: bool = False

    @property
    def dollars(self) -> float:
        """The cost in a month."""
        return self.quantity * self.unit_dollars

    @property
    def least_dollars(self) -> float:
        """The cost in a month with full batches."""
        return (self.quantity if self.least is None else self.least) * self.unit_dollars


class Known(NamedTuple):
    """The settings that an estimate depends on.

    Args:
        uses_dynamodb: Whether idempotent handlers claim events in DynamoDB.
    """

    worker: WorkerSettings
    payloads: PayloadSettings
    uses_dynamodb: bool


class Estimate(NamedTuple):
    """The lines of an estimate, ordered by resource, and the options that they follow from.

    Args:
        idle_dollars: The cost in a month without any message.
        raw_queues: The queues with raw handlers. Their messages have no event type, and so no rate.
        fair_queues: The queues with messages that have a tenant.
    """

    items: Sequence[Item]
    options: CostOptions
    known: Known
    idle_dollars: float = 0.0
    raw_queues: Sequence[str] = ()
    fair_queues: Sequence[str] = ()

    @property
    def dollars(self) -> float:
        """The cost in a month, without optional lines."""
        return sum(item.dollars for item in self.items if not item.optional)

    @property
    def least_dollars(self) -> float:
        """The cost in a month with full batches."""
        return sum(item.least_dollars for item in self.items if not item.optional)


def estimate(services: Sequence[Service], options: CostOptions, known: Known) -> Estimate:
    """Return the estimate for *services*."""
    idle = replace(options, rate=Rate(0), events={})
    at_rest = Estimate(_list_items(services, idle, known), idle, known)
    bindings = [binding for service in services for binding in service.bindings]
    raw_queues = [one.queue.name for one in bindings if one.external]
    fair_queues = [one.queue.name for one in bindings if not one.queue.fifo and any(c.tenant for c in one.contracts)]
    items = _list_items(services, options, known)
    return Estimate(items, options, known, at_rest.dollars, raw_queues, fair_queues)


def _list_items(services: Sequence[Service], options: CostOptions, known: Known) -> list[Item]:
    items = [*_price_publishing(services, options, known)]
    for service in services:
        for binding in service.bindings:
            items += _price_queue(service, binding, options, known)
    items += _price_keys(services, options)
    items += _price_alarms(services, options)
    return [item for item in items if item.quantity]


def _price_publishing(services: Sequence[Service], options: CostOptions, known: Known) -> Iterator[Item]:
    """Yield the lines of topics, and of the bodies of their messages in S3."""
    prices = options.prices
    for topic, contracts in _group_by_topic(services).items():
        if topic.external:
            continue  # its owner pays for it
        resource = f"topic {topic.name}"
        requests, least = (
            sum(_count_publishes(options.rate_of(one.type), topic, batch, known) for one in contracts)
            for batch in (options.messages_per_publish, MAX_BATCH_ENTRIES)
        )
        price = prices.sns_fifo if topic.fifo else prices.sns_standard
        yield Item(resource, "publish requests", requests, price / MILLION, min(requests, least))
        size = sum(
            _monthly(options.rate_of(one.type)) * _size_on_wire(options.rate_of(one.type), topic, known)
            for one in contracts
        )
        if topic.fifo:
            yield Item(resource, "published GB", size / GIB, prices.sns_fifo_gb)
        yield from _price_bodies(resource, topic, contracts, options, known)


def _price_bodies(
    resource: str, destination: Topic | Queue, contracts: Iterable[Contract], options: CostOptions, known: Known
) -> Iterator[Item]:
    """Yield the lines of the bodies that publishers store in S3."""
    rates = [options.rate_of(one.type) for one in contracts]
    stored = [rate for rate in rates if _is_stored(rate, destination, known)]
    if stored:
        yield Item(resource, "bodies written to S3", sum(map(_monthly, stored)), options.prices.s3_put / MILLION)
        days = known.payloads.claim_check_days
        size = sum(rate.messages_per_day * rate.message_bytes for rate in stored) * days
        yield Item(resource, f"GB in S3, kept for {days} days", size / GIB, options.prices.s3_gb)


def _price_queue(service: Service, binding: Binding, options: CostOptions, known: Known) -> Iterator[Item]:
    """Yield the lines of a queue and its dead-letter queue."""
    queue, prices = binding.queue, options.prices
    resource = f"queue {queue.name}"
    price = (prices.sqs_fifo if queue.fifo else prices.sqs_standard) / MILLION
    rates = [(contract, options.rate_of(contract.type)) for contract in _first_of_each_type(binding.contracts)]
    a_day = sum(rate.messages_per_day for _, rate in rates)
    pollers = options.tasks * known.worker.processes
    receives = count_receives(a_day, pollers, known.worker.poll_seconds)
    per_receive = a_day * MONTH_DAYS / receives.full if receives.full else 1
    size = _mean_bytes(queue, rates, known)
    per_delete = min(MAX_BATCH_ENTRIES, 1 + a_day / DAY_SECONDS / max(1, pollers) * DELETE_LINGER_SECONDS)
    messages = a_day * MONTH_DAYS
    yield from _price_deliveries(resource, queue, rates, options, known)
    full = receives.full * _chunks(size * per_receive)
    least = messages / MAX_BATCH_ENTRIES * _chunks(size * MAX_BATCH_ENTRIES) if pollers else 0
    yield Item(resource, "receive requests with messages", full, price, min(full, least))
    yield Item(resource, "empty receive requests", receives.empty, price, receives.empty)
    deletes = messages / per_delete if pollers else 0
    yield Item(resource, "delete requests", deletes, price, min(deletes, messages / MAX_BATCH_ENTRIES))
    seconds = known.worker.queue_metrics_seconds if known.worker.metrics else 0
    if seconds:
        calls = 2 * MONTH_SECONDS / seconds * options.tasks
        yield Item(resource, "depth of queue and dead-letter queue", calls, price)
    if queue.filter_policy is not None and queue.filter_policy.scope == "MessageBody":
        yield Item(resource, "GB read by its filter policy", messages * size / GIB, prices.sns_body_filter_gb)
    if known.uses_dynamodb:
        yield from _price_claims(service, binding, options)


def _price_deliveries(
    resource: str, queue: Queue, rates: list[tuple[Contract, Rate]], options: CostOptions, known: Known
) -> Iterator[Item]:
    """Yield the lines for messages that come into a queue. SNS delivers to standard queues free of charge."""
    prices = options.prices
    if queue.direct:
        price = (prices.sqs_fifo if queue.fifo else prices.sqs_standard) / MILLION
        sends, least = (
            sum(_monthly(rate) / batch * _chunks(_size_on_wire(rate, queue, known) * batch) for _, rate in rates)
            for batch in (options.messages_per_publish, MAX_BATCH_ENTRIES)
        )
        yield Item(resource, "send requests", sends, price, min(sends, least))
        yield from _price_bodies(resource, queue, [one for one, _ in rates], options, known)
    fifo = [(contract, rate) for contract, rate in rates if contract.topic.fifo and not queue.direct]
    if fifo:
        size = sum(_monthly(rate) * _size_on_wire(rate, contract.topic, known) for contract, rate in fifo)
        count = sum(_monthly(rate) for _, rate in fifo)
        yield Item(resource, "messages delivered by FIFO topics", count, prices.sns_fifo_delivery / MILLION)
        yield Item(resource, "GB delivered by FIFO topics", size / GIB, prices.sns_fifo_delivery_gb)
    stored = sum(_monthly(rate) for contract, rate in rates if _is_stored(rate, _destination(queue, contract), known))
    if stored:
        yield Item(resource, "bodies read from S3", stored, prices.s3_get / MILLION)


def _price_claims(service: Service, binding: Binding, options: CostOptions) -> Iterator[Item]:
    """Yield the lines of the claims of idempotent handlers: each makes one for each message that it takes."""
    claims = size = 0.0
    for handler in service.handlers_on(binding.queue.name):
        if (idempotency := handler.options.idempotency) is not None:
            types = {contract_of(event).type for event in handler.known_events}
            a_day = sum(options.rate_of(type_).messages_per_day for type_ in types)
            claims += a_day * MONTH_DAYS
            size += a_day / DAY_SECONDS * idempotency.ttl_seconds * CLAIM_BYTES
    resource, prices = f"queue {binding.queue.name}", options.prices
    yield Item(resource, "writes of claims in DynamoDB", claims * WRITES_PER_CLAIM, prices.dynamodb_write / MILLION)
    yield Item(resource, "GB of claims in DynamoDB", size / GIB, prices.dynamodb_gb)


def _price_keys(services: Sequence[Service], options: CostOptions) -> Iterator[Item]:
    """Yield the lines of KMS keys. Topics and queues of other teams have none."""
    calls: dict[str, float] = {}
    most = MONTH_SECONDS / KMS_REUSE_SECONDS
    for topic, contracts in _group_by_topic(services).items():
        if topic.kms_key:
            messages = sum(_monthly(options.rate_of(one.type)) for one in contracts)
            calls[topic.kms_key] = calls.get(topic.kms_key, 0) + TOPIC_PRINCIPALS * min(most, messages)
    for service in services:
        for binding in service.bindings:
            if key := binding.queue.kms_key:
                messages = sum(_monthly(options.rate_of(one.type)) for one in _first_of_each_type(binding.contracts))
                calls[key] = calls.get(key, 0) + QUEUE_PRINCIPALS * min(most, messages)
    for key, count in sorted(calls.items()):
        yield Item(f"key {key}", "requests of KMS", count, options.prices.kms_requests / MILLION)
        if not key.startswith(MANAGED_KEYS):
            yield Item(f"key {key}", "key", 1, options.prices.kms_key)


def _price_alarms(services: Sequence[Service], options: CostOptions) -> Iterator[Item]:
    """Yield the line of the alarms that the export makes: one for each topic, queue and dead-letter queue."""
    topics = sum(not topic.external for topic in _group_by_topic(services))
    queues = {binding.queue for service in services for binding in service.bindings if not binding.queue.existing}
    count = topics + 2 * len(queues)
    yield Item("alarms", "CloudWatch alarms of the export", count, options.prices.alarm, optional=True)


class Receives(NamedTuple):
    """The receive requests of a month: those that bring messages, and those that do not."""

    full: float
    empty: float


def count_receives(messages_per_day: float, pollers: int, poll_seconds: float) -> Receives:
    """Return the receive requests of a queue for messages that arrive at random times.

    A request ends with the first message, or empty after *poll_seconds*. At a rate of λ a second for each of the
    pollers, it ends empty with the probability e^(-λ·wait), so for each full request there are 1/(e^(λ·wait) - 1) empty
    ones. A request brings one message, or those that arrive during a round trip. Without messages, each poller makes a
    request every *poll_seconds*.
    """
    if not pollers:
        return Receives(0, 0)
    idle = pollers * MONTH_SECONDS / poll_seconds
    rate = messages_per_day / DAY_SECONDS / pollers
    if not rate:
        return Receives(0, idle)
    full = messages_per_day * MONTH_DAYS / min(MAX_BATCH_ENTRIES, max(1, rate * ROUND_TRIP_SECONDS))
    expected = rate * poll_seconds
    return Receives(full, 0 if expected > MANY else full / math.expm1(expected))


def _group_by_topic(services: Iterable[Service]) -> dict[Topic, list[Contract]]:
    """Return the events of each topic, published or handled. Those that only direct queues handle have no topic.

    A type whose versions have several topics is counted on one of them, if possible on that of its publisher.
    """
    known = list(services)
    bindings = [binding for service in known for binding in service.bindings]
    handled = [contract for one in bindings if not one.queue.direct for contract in one.contracts]
    direct = {contract.type for one in bindings if one.queue.direct for contract in one.contracts}
    direct -= {contract.type for contract in handled}
    contracts = [*(contract for service in known for contract in service.published), *handled]
    found: dict[Topic, list[Contract]] = {one.topic: [] for one in contracts if one.type not in direct}
    for contract in _first_of_each_type(contracts):
        if contract.type not in direct:
            found[contract.topic].append(contract)
    return found


def _first_of_each_type(contracts: Iterable[Contract]) -> list[Contract]:
    """Return one contract for each type, because a rate is that of all versions together."""
    found: dict[str, Contract] = {}
    for contract in contracts:
        found.setdefault(contract.type, contract)
    return list(found.values())


def _destination(queue: Queue, contract: Contract) -> Topic | Queue:
    """Return the queue or topic to which events for a queue are sent, which has the limit of their size."""
    return queue if queue.direct else contract.topic


def _monthly(rate: Rate) -> float:
    return rate.messages_per_day * MONTH_DAYS


def _chunks(size_bytes: float) -> int:
    return max(1, math.ceil(size_bytes / CHUNK_BYTES))


def _is_stored(rate: Rate, destination: Topic | Queue, known: Known) -> bool:
    """Return whether publishers store the body in S3."""
    payloads = known.payloads
    if not payloads.claim_check_url:
        return False
    limit = destination.limit_bytes
    return rate.message_bytes > min(limit, payloads.claim_check_bytes or limit)


def _size_on_wire(rate: Rate, destination: Topic | Queue, known: Known) -> int:
    return POINTER_BYTES if _is_stored(rate, destination, known) else rate.message_bytes


def _count_publishes(rate: Rate, topic: Topic, batch: float, known: Known) -> float:
    """Return the billed publish requests: 64 KiB of a batch count as one."""
    size = _size_on_wire(rate, topic, known)
    fitting = max(1.0, min(batch, topic.limit_bytes / size))
    return _monthly(rate) / fitting * _chunks(fitting * size)


def _mean_bytes(queue: Queue, rates: list[tuple[Contract, Rate]], known: Known) -> float:
    total = sum(rate.messages_per_day for _, rate in rates)
    if not total:
        return 0.0
    sizes = (rate.messages_per_day * _size_on_wire(rate, _destination(queue, one), known) for one, rate in rates)
    return sum(sizes) / total
