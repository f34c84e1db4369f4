"""Compares and changes what there is on AWS. Runs apart from workers, with other rights."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from smartpipe.errors import TopologyError, TransportError
from smartpipe.topology.aws.read import MAX_CALLS, Denied, TopologyReader
from smartpipe.topology.aws.write import TopologyWriter
from smartpipe.topology.changes import Change, pending_changes
from smartpipe.topology.checks import find_errors, find_warnings
from smartpipe.topology.derive import Declares, derive
from smartpipe.topology.destroy import destruction
from smartpipe.topology.plan import plan, stages
from smartpipe.topology.resources import request
from smartpipe.topology.table_and_bucket import TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smartpipe.names import Naming
    from smartpipe.topology.resources import Topology
    from smartpipe.transports.aws.transport import AwsTransport

log = logging.getLogger("smartpipe.topology")

REUSE_SECONDS = 90.0
"""SQS: the name of a deleted queue is free again after 60 s."""
SETTLE_SECONDS = 30.0
"""SQS: a new queue is there for everybody after a second or so."""


class PlanContext:
    """The declared and the deployed topology, read once: ``changes`` has every resource, ``notes`` the warnings."""

    def __init__(self, desired: Topology, actual: Topology, naming: Naming, inspector: TopologyReader) -> None:
        self.desired = desired
        self.actual = actual
        self.naming = naming
        self.changes = plan(desired, actual)
        self.not_seen = inspector.notes
        self.knows_orphans = inspector.knows_orphans
        self._orphans = inspector.orphans if inspector.knows_orphans else None
        self.notes = [*find_warnings(desired, actual), *self.not_seen]

    @property
    def pending(self) -> list[Change]:
        """What ``apply`` has to do."""
        return pending_changes(self.changes)

    def destruction(self, *, orphaned: bool = False, even_if_not_empty: bool = False) -> list[Change]:
        """Return what ``destroy`` deletes, and what it keeps."""
        return destruction(
            self.desired,
            self.actual,
            self.naming,
            orphaned=orphaned,
            even_if_not_empty=even_if_not_empty,
            orphans=self._orphans,
        )


class Provisioner:
    """Works on the topics, queues and subscriptions of one account, region and prefix.

    Args:
        companions: A table of claims and a bucket of payloads; by default the environment's.

    Raises:
        ConfigError: Faulty settings in the environment.
    """

    def __init__(self, transport: AwsTransport, *, companions: TableAndBucket | None = None) -> None:
        self._transport = transport
        self._companions = TableAndBucket.from_environment() if companions is None else companions
        self._mutations = TopologyWriter(transport)
        self._room = asyncio.Semaphore(MAX_CALLS)

    async def survey(
        self, services: Iterable[Declares], *, even_if_faulty: bool = False, destroying: bool = False
    ) -> PlanContext:
        """Read what is there of what *services* need, with what becomes of each resource.

        Args:
            even_if_faulty: For what changes nothing, or only deletes.
            destroying: Also ask which queues use these as their dead-letter queues, at one call for each.

        Raises:
            ConfigError: The services' declarations contradict each other or AWS.
            TopologyError: All that stands in the way; nothing can be applied while it does.
            TransportError: AWS could not be asked, or ``AccessDenied``, with every right that is missing.
        """
        naming = await self._transport.addresses.naming()
        desired = derive(services, naming, self._companions)
        inspector = TopologyReader(self._transport)
        actual = await inspector.read(desired)
        found = [] if even_if_faulty else find_errors(desired, actual)
        if found:
            raise TopologyError(found)
        if destroying:
            actual = await inspector.with_sources(actual, desired.external)
        return PlanContext(desired, actual, naming, inspector)

    async def plan(self, services: Iterable[Declares]) -> list[Change]:
        """Return what ``apply`` has to do for *services*, and nothing else; it fails as ``survey`` does."""
        return (await self.survey(services)).pending

    async def apply(self, changes: Iterable[Change], on_change: Callable[[Change], None] = lambda _: None) -> None:
        """Carry out what is pending among *changes*, one stage after the other, and tell each when it is done.

        Each can be carried out again, and by two at once: what is there already is brought into line. A new
        plan shows what is left after an interruption.

        Raises:
            TopologyError: What AWS refused, all of a stage; the stages after it have not begun.
        """
        for stage in stages(pending_changes(changes)):
            tasks = [asyncio.create_task(self._carry_out(change, on_change)) for change in stage]
            try:
                outcomes = await asyncio.gather(*tasks)
            finally:  # whoever is interrupted leaves nobody at work behind
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            denials = [denial for one in outcomes if isinstance(one, Denied) for denial in one.denials]
            problems = [str(one) for one in outcomes if one is not None and not isinstance(one, Denied)]
            if denials or problems:
                raise TopologyError([*problems, *(request(denials) if denials else [])])

    async def _carry_out(self, change: Change, on_change: Callable[[Change], None]) -> TransportError | None:
        try:
            async with self._room:
                await self._settling(change)
        except TransportError as error:
            return error
        on_change(change)
        return None

    async def _settling(self, change: Change) -> None:
        """Make *change*, again while AWS is not there yet: throttled, a name not free, a queue not seen everywhere."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_passes),
            wait=wait_exponential(multiplier=0.25, max=5),
            stop=_is_too_late,
            before_sleep=partial(_tell, change),
            reraise=True,
        ):
            with attempt:
                await self._mutations.make(change)


def _passes(error: BaseException) -> bool:
    if not isinstance(error, TransportError):
        return False
    unseen = (
        error.code in {"QueueDoesNotExist", "NotFound"} or "dead letter target does not exist" in str(error).lower()
    )
    return error.retryable or error.code == "QueueDeletedRecently" or unseen


def _fault(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _is_too_late(state: RetryCallState) -> bool:
    error = _fault(state)
    reused = isinstance(error, TransportError) and error.code == "QueueDeletedRecently"
    return (state.seconds_since_start or 0.0) >= (REUSE_SECONDS if reused else SETTLE_SECONDS)


def _tell(change: Change, state: RetryCallState) -> None:
    if state.attempt_number == 1:
        log.warning("%s %s %s has to wait: %s", change.action, change.kind, change.name, _fault(state))
