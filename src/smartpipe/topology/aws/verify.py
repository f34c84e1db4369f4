"""The check of the topology when a worker starts. It creates nothing, and reports missing resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.errors import TopologyError
from smartpipe.topology.aws.calls import Denied
from smartpipe.topology.aws.read import TopologyReader
from smartpipe.topology.changes import pending_changes
from smartpipe.topology.checks import find_errors
from smartpipe.topology.derive import Declares, derive
from smartpipe.topology.plan import plan
from smartpipe.topology.resources import IGNORED_IF_ABSENT, TAGS, Attributes, Topology

if TYPE_CHECKING:
    from smartpipe.transports.aws.session import AwsSession


async def verify(service: Declares, session: AwsSession) -> list[str]:
    """Check that everything *service* consumes from exists; return the differences from its declaration.

    Tags are not compared, and topics to which the service only publishes are not checked: a worker needs no permission
    to read them.

    Raises:
        TopologyError: Resources are missing; each is named.
        TransportError: AWS could not be asked, or IAM refused to read a resource.
    """
    desired = _select_consumed(derive([service], await session.addresses.naming()))
    reader = TopologyReader(session)
    actual = await reader.read_permitted(desired, tags=False)
    hidden = {denial.resource for denial in reader.denials}
    changes = [change for change in pending_changes(plan(desired, actual)) if not hidden.intersection(change.arns)]
    missing = [f"missing: {change.kind} {change.name}" for change in changes if change.action == "create"]
    errors = [] if reader.denials else find_errors(desired, actual)
    if missing:
        errors += [*missing, "run `smartpipe topology apply` to create the missing resources"]
    if errors:
        raise TopologyError(errors)
    if reader.denials:
        raise Denied(reader.denials)
    return [str(change) for change in changes]


def _select_consumed(desired: Topology) -> Topology:
    """Return the queues, and the topics that they are subscribed to, without attributes that a worker may not read."""
    subscribed = {topic for topic, _ in desired.subscriptions}
    topics = {arn: _without_tags(attributes) for arn, attributes in desired.topics.items() if arn in subscribed}
    queues = {arn: _without_tags(attributes) for arn, attributes in desired.queues.items()}
    return Topology({"topic": topics, "queue": queues, "subscription": desired.subscriptions}, desired.external)


def _without_tags(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if name not in {TAGS, *IGNORED_IF_ABSENT}}
