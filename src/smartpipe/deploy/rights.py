"""The IAM policies of the role of each workload, from those of its service. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.deploy.options import RELAY
from smartpipe.topology.export.iam import build_policies

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.deploy.workloads import Workload
    from smartpipe.events import Contract
    from smartpipe.names import Naming
    from smartpipe.service import Service
    from smartpipe.topics import Queue
    from smartpipe.topology.derive import Binding
    from smartpipe.topology.table_and_bucket import TableAndBucket

_PURPOSES = ("publish", "consume")


class _Publishing(NamedTuple):
    """A service that only publishes: the events and queues of several services."""

    name: str
    published: tuple[Contract, ...]
    sends_to: tuple[Queue, ...]
    bindings: tuple[Binding, ...] = ()
    idempotent: bool = False


def build_rights(
    workloads: Sequence[Workload],
    services: Iterable[Service],
    naming: Naming,
    table_and_bucket: TableAndBucket,
    *,
    reads_ages: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the policies of each workload by its name, and by ``publish`` or ``consume``.

    The relay publishes the events of all *services*. A policy that is too long for IAM is split.

    Args:
        reads_ages: Whether workers ask CloudWatch for the age of the oldest messages.
    """
    known = {one.name: one for one in services}
    found = {}
    for workload in workloads:
        relays = workload.command[1] == "relay"
        policies = build_policies(
            _combine(known.values()) if relays else known[workload.name],
            naming,
            table_and_bucket,
            reads_ages=reads_ages,
        )
        found[workload.name] = {
            name: document for name, document in policies.items() if name.partition("-")[0] in _PURPOSES
        }
    return found


def _combine(services: Iterable[Service]) -> _Publishing:
    publishing = list(services)
    return _Publishing(
        RELAY,
        tuple(dict.fromkeys(event for one in publishing for event in one.published)),
        tuple(dict.fromkeys(queue for one in publishing for queue in one.sends_to)),
    )
