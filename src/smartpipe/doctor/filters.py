"""Rules over the filter policies of subscriptions. Pure.

Source: Amazon SNS, "Message filtering": 200 filter policies for each topic, 10,000 for each account.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from smartpipe.doctor.findings import Finding
from smartpipe.names import name_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.service import Service
    from smartpipe.topology.resources import Topology
    from smartpipe.topology.table_and_bucket import TableAndBucket

MAX_POLICIES = 200
"""The filter policies of a topic. AWS raises this quota on request."""
MATCHED = "filter policy"


def choose_code(problem: str) -> str:
    """Return the code for an error of the topology: SP108 if it is about a filter policy, otherwise SP100."""
    return "SP108" if MATCHED in problem else "SP100"


def find_crowded_topics(desired: Topology) -> Iterator[Finding]:
    """SP108: more filter policies than SNS accepts for a topic."""
    counts = Counter(topic for (topic, _), wanted in desired.subscriptions.items() if wanted.get("FilterPolicy"))
    for topic, count in counts.items():
        if count > MAX_POLICIES:
            yield Finding(
                code="SP108",
                resource=f"topic {name_in(topic)}",
                message=f"{count} subscriptions of the topic have a filter policy, and SNS accepts {MAX_POLICIES}: "
                "apply fails with FilterPolicyLimitExceeded",
                remedy="ask AWS for a higher quota, or divide the events among several topics",
                figures={"policies": count, "limit": MAX_POLICIES},
            )


def find_fragile_filters(services: Sequence[Service], table_and_bucket: TableAndBucket) -> Iterator[Finding]:
    """SP108: filters on bodies match only while publishers neither compress bodies nor store them in S3."""
    queues = {binding.queue for service in services for binding in service.bindings}
    for queue in sorted(queues, key=lambda one: one.name):
        policy = queue.filter_policy
        if policy is None or policy.scope != "MessageBody" or table_and_bucket.encodes_bodies:
            continue  # with encoded bodies, no topology can be derived: that is an error already
        yield Finding(
            code="SP108",
            resource=f"queue {name_in(queue.name)}",
            message="its filter policy matches bodies: SNS drops events that a publisher compresses or stores in S3, "
            "without an error. SMARTPIPE_COMPRESSION and SMARTPIPE_CLAIM_CHECK_URL are not set here, but all "
            "publishers have to leave them unset. SNS also charges for each GB that it filters",
            remedy="filter by attributes: publish(..., attributes={...}) and FilterPolicy({...})",
            milder="note",
        )
