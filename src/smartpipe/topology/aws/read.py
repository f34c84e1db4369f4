"""Reads the deployed topology, with as few calls as possible."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smartpipe.errors import TransportError
from smartpipe.names import account_in, region_in
from smartpipe.tags import APPLICATION, PREFIX
from smartpipe.topology.aws.calls import Reading
from smartpipe.topology.aws.delivery import list_dead_letter_sources
from smartpipe.topology.aws.operations import OPERATIONS
from smartpipe.topology.kinds import KINDS, SOURCES
from smartpipe.topology.resources import Topology
from smartpipe.transports.aws.errors import classify

if TYPE_CHECKING:
    from smartpipe.topology.aws.operations import Read
    from smartpipe.topology.resources import Attributes, Denial
    from smartpipe.transports.aws.session import AwsSession

log = logging.getLogger("smartpipe.topology")


class TopologyReader:
    """Reads the deployed resources of one topology. Use it once.

    Attributes:
        orphans: ARNs of resources that carry the application's tags and that no TARGET declares.
        knows_orphans: False if AWS could not be asked for orphans.
    """

    def __init__(self, session: AwsSession) -> None:
        self._session = session
        self._reading = Reading(session)
        self.knows_orphans = True
        self.orphans: list[str] = []

    @property
    def denials(self) -> list[Denial]:
        """The calls that IAM refused."""
        return self._reading.denials

    @property
    def notes(self) -> list[str]:
        """Sentences about resources that could not be read, which are not errors."""
        return self._reading.notes

    async def read(self, desired: Topology, *, tags: bool = True) -> Topology:
        """Return the deployed resources of *desired*, and all subscriptions of its topics.

        With *tags*, the resources have their tags. The result then also has resources that carry the application's
        tags and that *desired* does not name, and the subscriptions of our queues to topics that it does not name.

        Raises:
            TransportError: AWS could not be asked; ``AccessDenied`` names every missing permission.
        """
        found = await self.read_permitted(desired, tags=tags)
        self._reading.raise_if_denied()
        return found

    async def read_permitted(self, desired: Topology, *, tags: bool = True) -> Topology:
        """Return the same without the resources that IAM does not allow to read; ``denials`` has the refused calls."""
        reading = self._reading
        reading.with_tags = tags
        orphans = self.orphans = await self._find_orphans(desired) if tags else []

        async def read_kind(name: str, read: Read) -> tuple[str, dict[str, Attributes]]:
            arns = [*desired.of(name), *(arn for arn in orphans if KINDS[name].matches(arn))]
            return name, await reading.each(arns, lambda arn: read(reading, arn, desired))

        reads = [read_kind(name, operations.read) for name, operations in OPERATIONS.items() if operations.read]
        found = Topology(dict(await asyncio.gather(*reads)))
        for arn in orphans:
            reading.turn_denials_into_note(
                arn, "carries the application's tags, is not declared by any TARGET, and cannot be read"
            )
        for name, operations in OPERATIONS.items():
            if operations.find is not None:
                found = found.replace(**{name: await operations.find(reading, desired, found)})
        return found

    async def with_sources(self, actual: Topology, external: frozenset[str]) -> Topology:
        """Return *actual* in which each queue, except external ones, has the queues that redrive to it.

        The list is None if IAM refuses the call. A broker that does not know the call is assumed to have no others.
        """
        own = [arn for arn in actual.queues if arn not in external]
        found = await self._reading.each(own, self._list_sources)
        queues = {**actual.queues, **{arn: {**actual.queues[arn], SOURCES: found.get(arn)} for arn in own}}
        for arn in own:
            self._reading.turn_denials_into_note(arn, "may be the dead-letter queue of other queues, so it is kept")
        return actual.replace(queue=queues)

    async def _list_sources(self, arn: str) -> list[str] | None:
        try:
            return await list_dead_letter_sources(self._reading, arn)
        except TransportError as error:
            if error.retryable:
                raise
            log.debug("No ListDeadLetterSourceQueues for %s: %s", arn, error)
            return []

    async def _find_orphans(self, desired: Topology) -> list[str]:
        """Return the ARNs of resources that carry the application's tags and that *desired* does not name.

        The Resource Groups Tagging API returns them in one or two calls. SQS and SNS would need one call for each
        queue and topic of the account. If the API cannot be asked, that is a note and not an error.
        """
        naming = await self._session.addresses.naming()
        client = await self._session.client("resourcegroupstaggingapi")
        wanted = {APPLICATION: naming.application, PREFIX: naming.prefix}
        filters = [{"Key": key, "Values": [value]} for key, value in wanted.items()]
        types = [kind.resource_type for kind in KINDS.values() if kind.finds_orphans]
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            call = client.get_resources(TagFilters=filters, ResourceTypeFilters=types, **token)
            try:
                page = await call
            except Exception as error:  # noqa: BLE001 - no other result depends on this call
                classified = classify(error, action="tag:GetResources", target="*")
                self.notes.append(f"AWS did not list the resources that no TARGET declares: {classified.detail}")
                self.knows_orphans = False
                return []
            found += [one["ResourceARN"] for one in page.get("ResourceTagMappingList", [])]
            if not page.get("PaginationToken"):
                home = naming.region, naming.account_id
                declared = {arn for kind in KINDS for arn in desired.of(kind)}
                return [arn for arn in found if (region_in(arn), account_in(arn)) == home and arn not in declared]
            token = {"PaginationToken": page["PaginationToken"]}
