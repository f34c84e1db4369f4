"""Services, topics and queues as the nodes and arrows of a picture. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from smartpipe.names import account_in, is_arn, name_in, region_in
from smartpipe.topology.derive import redrive_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.topics import Queue, Topic
    from smartpipe.topology.derive import Binding, Declares

Column: TypeAlias = Literal["publisher", "topic", "queue", "handler"]
Place: TypeAlias = tuple[int, str]
COLUMNS: tuple[Column, ...] = ("publisher", "topic", "queue", "handler")
"""From left to right. A service that both publishes and handles is in two columns, so that every arrow points right."""
MOST_LINES = 4
LONGEST_LINE = 40


class Node(NamedTuple):
    """A service, a topic or a queue; each pair of column and key is unique in a picture.

    Args:
        lines: The name, and details below it.
        external: Whether another team owns it.
    """

    column: Column
    key: str
    lines: tuple[str, ...]
    external: bool = False

    @property
    def place(self) -> Place:
        """The key by which nodes are found and sorted."""
        return COLUMNS.index(self.column), self.key


class Arrow(NamedTuple):
    """The way of events from one node to another.

    Args:
        lines: The types of the events, and the conditions of a filter policy.
        topic: The key of the topic that they come through; None after the queue, and for events that are sent directly.
    """

    source: Node
    target: Node
    lines: tuple[str, ...] = ()
    topic: str | None = None

    @property
    def direct(self) -> bool:
        """Whether the events are sent to a queue without a topic."""
        return self.source.column == "publisher" and self.target.column == "queue"


class Graph(NamedTuple):
    """Nodes and arrows, in an order that does not depend on the order of the services."""

    nodes: list[Node]
    arrows: list[Arrow]


def build_graph(services: Iterable[Declares]) -> Graph:
    """Return the graph of *services*, with the declared names, which have no prefix."""
    found = [arrow for service in services for arrow in (*_draw_handling(service), *_draw_publishing(service))]
    nodes = {node.place: node for arrow in found for node in (arrow.source, arrow.target)}
    bound = {node.place: node for arrow in found if arrow.target.column == "handler" for node in (arrow.source,)}
    arrows = {(arrow.source.place, arrow.target.place, arrow.lines): arrow for arrow in found}
    return Graph([one for _, one in sorted({**nodes, **bound}.items())], [one for _, one in sorted(arrows.items())])


def _draw_publishing(service: Declares) -> Iterator[Arrow]:
    details = () if service.bindings else ("producer",)
    publisher = Node("publisher", service.name, (service.name, *details))
    for topic in dict.fromkeys(contract.topic for contract in service.published):
        types = {contract.type for contract in service.published if contract.topic == topic}
        yield Arrow(publisher, _topic(topic), _shorten(sorted(types)), topic.name)
    for queue in service.sends_to:
        yield Arrow(publisher, _queue(queue), ("directly",))


def _draw_handling(service: Declares) -> Iterator[Arrow]:
    for binding in service.bindings:
        queue = _queue(binding.queue, binding)
        external = [f"external: {name}" for name in binding.external]
        yield Arrow(queue, Node("handler", service.name, (service.name,)), _shorten(external))
        topics = () if binding.queue.direct else dict.fromkeys(contract.topic for contract in binding.contracts)
        for topic in topics:
            types = {contract.type for contract in binding.contracts if contract.topic == topic}
            lines = (*_shorten(sorted(types)), *_conditions(binding.queue))
            yield Arrow(_topic(topic), queue, lines, topic.name)


def _topic(topic: Topic) -> Node:
    return Node("topic", topic.name, (name_in(topic.name), *_home(topic.name)), topic.external)


def _queue(queue: Queue, binding: Binding | None = None) -> Node:
    lines = (name_in(queue.name), *_home(queue.name), *_describe_dead_lettering(queue, binding))
    return Node("queue", queue.name, lines, queue.existing)


def _describe_dead_lettering(queue: Queue, binding: Binding | None) -> Iterator[str]:
    """Yield when a worker moves a message to the dead-letter queue, and when SQS does it without a worker."""
    dead_letter_name = name_in(queue.dead_letter_name)
    policies = binding.policies if binding is not None else ()
    attempts = sorted({policy.attempts for policy in policies if policy.on_exhausted != "halt"})
    if attempts:
        number = f"{attempts[0]} to {attempts[-1]}" if len(attempts) > 1 else f"{attempts[0]}"
        yield f"{number} attempt{'' if attempts == [1] else 's'}, then {dead_letter_name}"
    else:
        yield dead_letter_name
    if any(policy.on_exhausted == "halt" for policy in policies):
        yield "halts its group after the last attempt"
    if binding is not None and not queue.existing:
        yield f"by SQS after {redrive_count(binding)} receives"


def _home(name: str) -> tuple[str, ...]:
    return (f"{account_in(name)}, {region_in(name)}",) if is_arn(name) else ()


def _conditions(queue: Queue) -> Iterator[str]:
    conditions = queue.filter_policy.conditions if queue.filter_policy else {}
    for name, rules in conditions.items():
        line = f"{name}: {json.dumps(rules, ensure_ascii=False)}"
        yield line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _shorten(lines: list[str]) -> tuple[str, ...]:
    """Return at most four lines, so that the picture stays readable."""
    if len(lines) <= MOST_LINES:
        return tuple(lines)
    return (*lines[: MOST_LINES - 1], f"and {len(lines) - MOST_LINES + 1} more")
