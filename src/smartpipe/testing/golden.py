"""Check that a service handles the golden messages, which ``smartpipe schema fixtures`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.consumer.decide import describe_error
from smartpipe.contracts.fixtures import find_retired, read_fixtures
from smartpipe.errors import ConfigError
from smartpipe.events import event_class
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.keys import escape
from smartpipe.message import OutgoingMessage, utf8_length
from smartpipe.testing.broker import MemoryBroker, entered
from smartpipe.testing.records import DeadLettered, Handled, Ignored, Retried

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smartpipe.contracts.fixtures import Fixture
    from smartpipe.idempotency.claims import OpenTransaction
    from smartpipe.service import Service
    from smartpipe.topics import Queue

DEFAULT_DIRECTORY = "schemas"


class _Case(NamedTuple):
    """A message for one queue, and the file that has it."""

    fixture: Fixture
    path: Path
    queue: Queue

    @property
    def body(self) -> str:
        return json.dumps(self.fixture.message, ensure_ascii=False)


class _ClearedStore(MemoryStore):
    """Claims in memory that are forgotten after each message: several messages may have the same key."""

    def clear(self) -> None:
        """Forget all claims."""
        self._entries.clear()


async def assert_handles(
    service: Service, *directories: str | Path, transaction: OpenTransaction | None = None, virtual: bool = True
) -> int:
    """Assert that *service* handles every golden message of the events that it subscribes to, of each version.

    Each message is sent to the queues whose handlers subscribe to its type and major version, and waits until the
    handlers have returned, with all retries, in virtual time. Claims of idempotent handlers are forgotten in between.
    Versions that are marked as retired are left out.

    Args:
        service: Runs with all of its handlers, as on a MemoryBroker.
        directories: The schema directories, of this repository or of other teams; by default ``schemas``.
        transaction: As for MemoryBroker: provides the transactions of ``delivery.transaction()``.
        virtual: As for MemoryBroker: whether the event loop's clock skips waiting time.

    Returns:
        The number of messages that were handled.

    Raises:
        AssertionError: Messages were not handled, or an event that the service subscribes to has no golden message.
            The error lists each of them with its file and its reason.
        ConfigError: A directory does not exist, a file is wrong, or the service has no handlers of events.
    """
    __tracebackhide__ = True
    if not any(binding.contracts for binding in service.bindings):
        raise ConfigError(f"service {service.name!r} has no handlers of events, so there is nothing to check")
    files = {
        path: fixtures
        for directory in directories or (DEFAULT_DIRECTORY,)
        for path, fixtures in read_fixtures(Path(directory)).items()
    }
    cases = list(_find_cases(service, files))
    failures = await _run(service, cases, transaction, virtual=virtual)
    problems = []
    if failures:
        problems.append(f"service {service.name!r} does not handle {len(failures)} of {len(cases)} golden messages:")
        problems += failures
    retired = {key for directory in directories or (DEFAULT_DIRECTORY,) for key in find_retired(Path(directory))}
    if missing := sorted(_find_missing(service, cases, retired)):
        places = " or ".join(map(str, directories or (DEFAULT_DIRECTORY,)))
        problems.append(
            f"service {service.name!r} subscribes to events without golden messages in {places}: "
            f"{', '.join(f'{type_} {major}.x' for type_, major in missing)}. "
            "Run `smartpipe schema fixtures` where the events are declared, and pass the directory of their files"
        )
        problems += [
            f"No class declares {type_} {major}.x any more: write messages of this version, which an upcaster takes, "
            f"to {escape(type_)}/{major}.0.fixtures.json, in the form of the other files"
            for type_, major in missing
            if event_class(type_, major) is None
        ]
    if problems:
        raise AssertionError("\n".join(problems))
    return len(cases)


def _find_cases(service: Service, files: Mapping[Path, Sequence[Fixture]]) -> Iterator[_Case]:
    for binding in service.bindings:
        subscribed = {(contract.type, contract.major) for contract in binding.contracts}
        for path, fixtures in files.items():
            for one in fixtures:
                if (one.type, one.major) in subscribed:
                    yield _Case(one, path, binding.queue)


def _find_missing(service: Service, cases: Sequence[_Case], retired: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return the subscribed types, with their major versions, that no message has, except retired ones."""
    subscribed = {(one.type, one.major) for binding in service.bindings for one in binding.contracts}
    found = {(case.fixture.type, case.fixture.major) for case in cases}
    return subscribed - found - retired


async def _run(
    service: Service, cases: Sequence[_Case], transaction: OpenTransaction | None, *, virtual: bool
) -> list[str]:
    """Send the messages one after the other, and return two lines for each that was not handled."""
    failures: list[str] = []
    waiting = list(cases)
    store = None if transaction else _ClearedStore()
    while waiting:
        async with MemoryBroker(service, store=store, transaction=transaction, virtual=virtual) as broker:
            entered.remove(broker)  # the failure names the reasons, so no timeline is needed
            while waiting:
                case = waiting.pop(0)
                reason, settled = await _handle(broker, case)
                if reason:
                    one = case.fixture
                    failures.append(
                        f"  {one.type} {one.version} {one.name} ({case.path.as_posix()})\n"
                        f"    queue {case.queue.name}: {reason}"
                    )
                # A message that is never settled would block its queue, and with a transaction the claims are kept in
                # a store of the broker. The next message then gets another broker.
                if store is None or not settled:
                    break
                store.clear()
    return failures


async def _handle(broker: MemoryBroker, case: _Case) -> tuple[str | None, bool]:
    """Return the reason for which the message was not handled, if so, and whether it was settled."""
    transport, body, fifo = broker.transport, case.body, case.queue.fifo
    first = len(transport.records)
    message = OutgoingMessage(
        body,
        utf8_length(body),
        group_id=case.fixture.message.get("partitionkey", "golden") if fifo else None,
        deduplication_id=f"{case.fixture.name} {first}" if fifo else None,
    )
    for failure in await transport.send(case.queue.name, [message]):
        return f"the queue refuses the message: {failure.detail}", True
    try:
        await broker.drain()
        settled = True
    except AssertionError:
        settled = False
    outcomes = [one for one in transport.records[first:] if one.body == body]
    for outcome in outcomes:
        if isinstance(outcome, DeadLettered):
            return f"{outcome.kind}: {describe_error(outcome.error)}", settled
        if isinstance(outcome, Ignored):
            return "ignored: no handler takes it", settled
        if isinstance(outcome, Handled):
            return None, settled
    retried = [one for one in outcomes if isinstance(one, Retried)]
    last = f", last: {describe_error(retried[-1].error)}" if retried else ""
    return f"not settled after a day of retries{last}", settled
