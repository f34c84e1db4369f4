"""Compares the declared topology with the deployed one, and carries changes out. It runs apart from workers."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from smartpipe.errors import TopologyError, TransportError
from smartpipe.topology.aws.calls import MAX_CALLS, Denied
from smartpipe.topology.aws.operations import carry_out
from smartpipe.topology.aws.read import TopologyReader
from smartpipe.topology.changes import Change, pending_changes
from smartpipe.topology.checks import find_errors, find_short_memories, find_warnings
from smartpipe.topology.derive import Declares, derive
from smartpipe.topology.destroy import plan_destroy
from smartpipe.topology.plan import group_into_stages, plan
from smartpipe.topology.resources import describe_denials
from smartpipe.topology.table_and_bucket import TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smartpipe.names import Naming
    from smartpipe.topology.resources import Topology
    from smartpipe.transports.aws.session import AwsSession

log = logging.getLogger("smartpipe.topology")

REUSE_SECONDS = 90.0
"""SQS: the name of a deleted queue is free again after 60 s."""
SETTLE_SECONDS = 30.0
"""SQS: all servers know a new queue after about a second."""


class PlanContext:
    """The declared and the deployed topology, read once, and the plan that follows from them.

    Attributes:
        changes: A change for every resource, including those that stay as they are.
        notes: Warnings, and sentences about resources that could not be read.
        not_read: Only the sentences about resources that could not be read.
        knows_orphans: False if AWS could not be asked for resources that no TARGET declares.
    """

    def __init__(self, desired: Topology, actual: Topology, naming: Naming, reader: TopologyReader) -> None:
        self.desired = desired
        self.actual = actual
        self.naming = naming
        self.changes = plan(desired, actual)
        self.not_read = reader.notes
        self.knows_orphans = reader.knows_orphans
        self._orphans = reader.orphans if reader.knows_orphans else None
        self.notes = [*find_warnings(desired, actual), *self.not_read]

    @property
    def pending(self) -> list[Change]:
        """The changes that ``apply`` has to make."""
        return pending_changes(self.changes)

    def plan_destroy(self, *, orphaned: bool = False, even_if_not_empty: bool = False) -> list[Change]:
        """Return the deletions of ``destroy``, and the resources that it keeps."""
        return plan_destroy(
            self.desired,
            self.actual,
            self.naming,
            orphaned=orphaned,
            even_if_not_empty=even_if_not_empty,
            orphans=self._orphans,
        )


class Provisioner:
    """Compares and changes the topology of one account, region and prefix.

    Args:
        table_and_bucket: The table of claims and the bucket of payloads; by default those of the environment.

    Raises:
        ConfigError: A setting in the environment is invalid.
    """

    def __init__(self, session: AwsSession, *, table_and_bucket: TableAndBucket | None = None) -> None:
        self._session = session
        self._table_and_bucket = TableAndBucket.from_environment() if table_and_bucket is None else table_and_bucket
        self._limit = asyncio.Semaphore(MAX_CALLS)

    async def compare(
        self, services: Iterable[Declares], *, ignore_errors: bool = False, destroying: bool = False
    ) -> PlanContext:
        """Read the deployed resources that *services* need, and plan a change for each.

        Args:
            ignore_errors: For commands that change nothing, or only delete.
            destroying: Also list the queues that redrive to each queue, with one call for each.

        Raises:
            ConfigError: The services' declarations contradict each other or AWS.
            TopologyError: All errors of the plan; nothing can be applied while there are any.
            TransportError: AWS could not be asked; ``AccessDenied`` names every missing permission.
        """
        services = list(services)
        naming = await self._session.addresses.naming()
        desired = derive(services, naming, self._table_and_bucket)
        reader = TopologyReader(self._session)
        actual = await reader.read(desired)
        errors = [] if ignore_errors else find_errors(desired, actual)
        if errors:
            raise TopologyError(errors)
        if destroying:
            actual = await reader.with_sources(actual, desired.external)
        context = PlanContext(desired, actual, naming, reader)
        context.notes += find_short_memories(services)
        return context

    async def plan(self, services: Iterable[Declares]) -> list[Change]:
        """Return only the changes that ``apply`` has to make for *services*; errors as those of ``compare``."""
        return (await self.compare(services)).pending

    async def apply(self, changes: Iterable[Change], on_change: Callable[[Change], None] = lambda _: None) -> None:
        """Make the pending ones of *changes*, stage by stage, and call *on_change* after each.

        Each change can be made again, and by two processes concurrently: an existing resource is updated. After an
        interruption, a new plan shows the remaining changes.

        Raises:
            TopologyError: All changes of a stage that failed; later stages have not begun.
        """
        for stage in group_into_stages(pending_changes(changes)):
            tasks = [asyncio.create_task(self._make(change, on_change)) for change in stage]
            try:
                outcomes = await asyncio.gather(*tasks)
            finally:  # an interruption leaves no task running
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            denials = [denial for one in outcomes if isinstance(one, Denied) for denial in one.denials]
            errors = [str(one) for one in outcomes if one is not None and not isinstance(one, Denied)]
            if denials or errors:
                raise TopologyError([*errors, *(describe_denials(denials) if denials else [])])

    async def _make(self, change: Change, on_change: Callable[[Change], None]) -> TransportError | None:
        try:
            async with self._limit:
                await self._make_with_retries(change)
        except TransportError as error:
            return error
        on_change(change)
        return None

    async def _make_with_retries(self, change: Change) -> None:
        """Make *change*; retry while AWS throttles, while a name is not free and while a new queue is not known."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_exponential(multiplier=0.25, max=5),
            stop=_is_too_late,
            before_sleep=partial(_log_wait, change),
            reraise=True,
        ):
            with attempt:
                await carry_out(self._session, change)


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, TransportError):
        return False
    is_unknown = (
        error.code in {"QueueDoesNotExist", "NotFound"} or "dead letter target does not exist" in str(error).lower()
    )
    return error.retryable or error.code == "QueueDeletedRecently" or is_unknown


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _is_too_late(state: RetryCallState) -> bool:
    error = _error_of(state)
    reused = isinstance(error, TransportError) and error.code == "QueueDeletedRecently"
    return (state.seconds_since_start or 0.0) >= (REUSE_SECONDS if reused else SETTLE_SECONDS)


def _log_wait(change: Change, state: RetryCallState) -> None:
    if state.attempt_number == 1:
        log.warning("Cannot %s %s %s yet, retrying: %s", change.action, change.kind, change.name, _error_of(state))
