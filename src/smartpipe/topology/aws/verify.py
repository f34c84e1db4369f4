"""What a worker checks at its start: it creates nothing, and says what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.errors import TopologyError
from smartpipe.topology.aws.read import Denied, TopologyReader
from smartpipe.topology.changes import pending_changes
from smartpipe.topology.checks import find_errors
from smartpipe.topology.derive import Declares, derive
from smartpipe.topology.plan import plan
from smartpipe.topology.resources import SAID_ONCE, TAGS, Attributes, Topology

if TYPE_CHECKING:
    from smartpipe.transports.aws.transport import AwsTransport


async def verify(service: Declares, transport: AwsTransport) -> list[str]:
    """Check that everything *service* consumes from exists; return what differs from its declaration.

    Tags are not looked at, nor topics that it only publishes to: a worker needs no right to.

    Raises:
        TopologyError: What is missing, each with its name.
        TransportError: AWS could not be asked, or the rights to ask are missing.
    """
    desired = _consumed(derive([service], await transport.addresses.naming()))
    inspector = TopologyReader(transport)
    actual = await inspector.look(desired, tags=False)
    hidden = {denial.resource for denial in inspector.denials}
    changes = [change for change in pending_changes(plan(desired, actual)) if not hidden.intersection(change.arns)]
    missing = [f"missing: {change.kind} {change.name}" for change in changes if change.action == "create"]
    problems = [] if inspector.denials else find_errors(desired, actual)
    if missing:
        problems += [*missing, "create what is missing with `smartpipe topology apply`"]
    if problems:
        raise TopologyError(problems)
    if inspector.denials:
        raise Denied(inspector.denials)
    return [str(change) for change in changes]


def _consumed(desired: Topology) -> Topology:
    subscribed = {topic for topic, _ in desired.subscriptions}
    return desired._replace(
        topics={arn: _untagged(attributes) for arn, attributes in desired.topics.items() if arn in subscribed},
        queues={arn: _untagged(attributes) for arn, attributes in desired.queues.items()},
    )


def _untagged(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if name not in {TAGS, *SAID_ONCE}}
