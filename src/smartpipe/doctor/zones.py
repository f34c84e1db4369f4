"""Rules over replicas that fail together: in one zone, or in one step of an update. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.doctor.findings import Finding
from smartpipe.doctor.lookup import to_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.ci_formats import Place


def find_single_subnet(resource: str, subnets: Any, replicas: Any, place: Place) -> Iterator[Finding]:
    """SP207: a service of ECS has all its tasks in one subnet, which is in one zone."""
    if isinstance(subnets, list) and len(subnets) == 1:
        count = to_number(replicas)
        tasks = "all its tasks" if count is None or count > 1 else "its task"
        yield Finding(
            code="SP207",
            resource=resource,
            message=f"{tasks} can run only in one subnet, so in one zone: no worker runs while this zone fails",
            remedy="name subnets of at least two zones",
            place=place,
        )
