"""Plans for deployed resources that lack an attribute, or have one of another shape: never a crash, always a change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Event, Queue, Service, Topic
from smartpipe.names import Naming
from smartpipe.topology.checks import find_warnings
from smartpipe.topology.derive import derive
from smartpipe.topology.kinds import KINDS
from smartpipe.topology.plan import plan
from smartpipe.topology.policy import source_topics
from smartpipe.topology.resources import IGNORED_IF_ABSENT, Topology

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.topology.changes import Change

NAMING = Naming("aws", "eu-west-1", "123456789012", "staging-")


class Moved(
    Event, topic=Topic("absent", fifo=True, kms_key="alias/shop"), type="absent.moved", version="1.0", key="to"
):
    to: str


class Seen(Event, topic=Topic("absent"), type="absent.seen", version="1.0"): ...


async def handle(_: Event) -> None: ...


def declared() -> Topology:
    services = []
    for event, queue in ((Moved, Queue("moves", fifo=True, kms_key="alias/shop")), (Seen, Queue("sights"))):
        service = Service(queue.name, queue=queue)
        service.subscribe(event)(handle)
        services.append(service)
    return derive(services, NAMING)


def deployed() -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the deployed resources by kind and key, where policies are text."""
    found = {name: {key: dict(one) for key, one in declared().of(name).items()} for name in KINDS}
    for attributes in found["queue"].values():
        attributes["Policy"] = json.dumps(attributes["Policy"])
    return found


def list_attributes() -> Iterator[Any]:
    for kind, resources in deployed().items():
        for key, attributes in resources.items():
            for attribute in attributes:
                name = key if isinstance(key, str) else key[1]
                yield pytest.param(kind, key, attribute, id=f"{kind} {name.rpartition(':')[2]} {attribute}")


ATTRIBUTES = list(list_attributes())


def plan_against(actual: dict[str, dict[Any, dict[str, Any]]]) -> list[Change]:
    return [change for change in plan(declared(), Topology(actual)) if change.pending]


def test_what_was_declared_needs_no_change() -> None:
    assert plan_against(deployed()) == []


@pytest.mark.parametrize(("kind", "key", "attribute"), ATTRIBUTES)
def test_an_absent_attribute_is_set_unless_aws_has_the_same_default(kind: str, key: Any, attribute: str) -> None:
    actual = deployed()
    del actual[kind][key][attribute]
    wanted = declared().of(kind)[key][attribute]

    find_warnings(declared(), Topology(actual))
    changes = plan_against(actual)

    has_default = KINDS[kind].defaults.get(attribute) == wanted or attribute in IGNORED_IF_ABSENT
    assert [(change.action, change.kind, set(change.attributes)) for change in changes] == (
        [] if has_default else [("update", kind, {attribute})]
    )
    assert all(map(str, changes))


@pytest.mark.parametrize(("kind", "key", "attribute"), ATTRIBUTES)
def test_an_attribute_of_another_shape_is_replaced(kind: str, key: Any, attribute: str) -> None:
    if attribute in {"Policy", "Tags"}:
        pytest.skip("statements and tags of others are kept, and have tests of their own")
    wanted = declared().of(kind)[key][attribute]
    shapes: list[Any] = ["7"] if isinstance(wanted, str) else [{}, [], "text", {"unknown": ["x"]}, [{"unknown": 1}]]
    for value in shapes:
        actual = deployed()
        actual[kind][key][attribute] = value

        changes = plan_against(actual)

        assert [(change.action, change.kind, set(change.attributes)) for change in changes] == [
            ("update", kind, {attribute})
        ]
        assert str(changes[0])


def test_a_new_queue_gets_its_policy_and_redrive_policy_with_its_creation() -> None:
    changes = plan_against({name: {} for name in KINDS})

    created = {change.name: change.attributes for change in changes if change.kind == "queue"}
    assert sorted(created) == ["staging-moves-dlq.fifo", "staging-moves.fifo", "staging-sights", "staging-sights-dlq"]
    for name, topic in (("staging-moves.fifo", "absent.fifo"), ("staging-sights", "absent")):
        assert source_topics(json.loads(created[name]["Policy"])["Statement"][0]) == [NAMING.topic_arn(topic)]
        assert created[name]["RedrivePolicy"]
