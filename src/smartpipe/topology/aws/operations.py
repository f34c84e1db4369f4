"""The calls of AWS for each kind of resource: read, create, update and delete.

``OPERATIONS`` has a row for each record in ``topology.kinds.KINDS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from smartpipe.errors import TransportError
from smartpipe.topology.aws import delivery, storage
from smartpipe.transports.aws.errors import MISSING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe.topology.aws.calls import Reading
    from smartpipe.topology.changes import Change
    from smartpipe.topology.resources import Attributes, Topology
    from smartpipe.transports.aws.session import AwsSession

    Read: TypeAlias = Callable[[Reading, str, Topology], Awaitable[Attributes | None]]
    Find: TypeAlias = Callable[[Reading, Topology, Topology], Awaitable[dict[tuple[str, str], Attributes]]]
    Write: TypeAlias = Callable[[AwsSession, Change], Awaitable[None]]


class Operations(NamedTuple):
    """The calls of AWS for one kind of resource.

    Each write can be repeated: an existing resource is updated by ``create``, and a missing one is deleted already.

    Args:
        read: Returns the attributes of the resource with this ARN; None if it does not exist. The declared topology
            has the attributes that are needed.
        find: Instead of ``read``, for resources that are identified by others: returns those that belong to the
            deployed topology, by key. It is called with the declared topology and the deployed one.
        delete: None if ``destroy`` always keeps this kind.
    """

    create: Write
    update: Write
    delete: Write | None = None
    read: Read | None = None
    find: Find | None = None


OPERATIONS: dict[str, Operations] = {
    "topic": Operations(
        read=delivery.read_topic,
        create=delivery.create_topic,
        update=delivery.update_topic,
        delete=delivery.delete_topic,
    ),
    "queue": Operations(
        read=delivery.read_queue,
        create=delivery.create_queue,
        update=delivery.update_queue,
        delete=delivery.delete_queue,
    ),
    "table": Operations(
        read=storage.read_table,
        create=storage.create_table,
        update=storage.update_table,
    ),
    "bucket": Operations(
        read=storage.read_bucket,
        create=storage.create_bucket,
        update=storage.update_bucket,
    ),
    "subscription": Operations(
        find=delivery.find_subscriptions,
        create=delivery.create_subscription,
        update=delivery.update_subscription,
        delete=delivery.delete_subscription,
    ),
}
"""By the names of the kinds."""


async def carry_out(session: AwsSession, change: Change) -> None:
    """Make one pending change.

    Raises:
        TransportError: AWS refused the change, or could not make it.
    """
    operations = OPERATIONS[change.kind]
    write = {"create": operations.create, "update": operations.update, "delete": operations.delete}[change.action]
    if write is None:
        raise NotImplementedError(f"{change.kind} resources are never deleted")
    try:
        await write(session, change)
    except TransportError as error:
        if change.action != "delete" or error.code not in MISSING:
            raise
