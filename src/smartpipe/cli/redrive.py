"""``smartpipe dlq redrive`` and ``purge``: scan the queues, show the messages, ask, and move or delete them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from smartpipe.cli.changes import heading, print_line
from smartpipe.cli.confirm import confirm
from smartpipe.cli.dlq import dead_letter_queues, messages, printable, with_transport
from smartpipe.dlq.messages import NO_REASON
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.dlq.redrive import Purge, Redrive, RemovalResult, Remover, ScanResult, scan
from smartpipe.errors import SmartpipeError, StoreError
from smartpipe.idempotency.claims import open_claims
from smartpipe.settings import ClaimSettings
from smartpipe.worker.signals import on_stop

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Iterator, Sequence

    from smartpipe.cli.dlq import DeadLetterQueue
    from smartpipe.dlq.messages import DeadLetterMessage, Selection
    from smartpipe.message import Failure
    from smartpipe.names import Naming
    from smartpipe.transports.aws.transport import AwsTransport

FAILURES_SHOWN = 10
PROGRESS_SECONDS = 10.0
TERMINAL_PROGRESS_SECONDS = 0.2
CLEAR = "\x1b[K"
"""ECMA-48, "erase in line": from the cursor to its end."""


class RedriveOptions(NamedTuple):
    """The options of a redrive or a purge.

    Args:
        force: Also move messages that all their handlers have handled.
    """

    rate_per_second: float | None = None
    force: bool = False
    dry_run: bool = False
    yes: bool = False
    as_json: bool = False


class Operation(NamedTuple):
    """A redrive or a purge of selected messages, and the words for it."""

    queues: list[DeadLetterQueue]
    selection: Selection
    options: RedriveOptions
    verb: str
    past_tense: str
    is_redrive: bool


def run_redrive(targets: Sequence[str], wanted: str | None, selection: Selection, options: RedriveOptions) -> None:
    """Move dead-letter messages back to the queues that they came from."""
    _run(Operation(dead_letter_queues(targets, wanted), selection, options, "move", "moved", is_redrive=True))


def run_purge(targets: Sequence[str], wanted: str, selection: Selection, options: RedriveOptions) -> None:
    """Delete dead-letter messages."""
    _run(Operation(dead_letter_queues(targets, wanted), selection, options, "delete", "deleted", is_redrive=False))


def _run(operation: Operation) -> None:
    """Exit with 1 if a message failed, the operation was interrupted, or no message matches the filters."""
    as_json = operation.options.as_json
    naming, scans = with_transport(lambda transport: _scan(operation, transport))
    if not as_json:
        print_line(heading(naming))
        for one, scanned in zip(operation.queues, scans, strict=True):
            for line in _describe_scan(operation, one, scanned):
                print_line(line)
    results = [RemovalResult() for _ in operation.queues]
    count = sum(scanned.selected.total() for scanned in scans)
    proceed = count > 0 and not operation.options.dry_run
    if proceed:
        complete = all(scanned.complete for scanned in scans)
        question = f"{operation.verb.capitalize()} {messages(count, or_more=not complete)}?"
        confirm(question, yes=operation.options.yes, as_json=as_json, alternative="add --dry-run to see the messages")
    try:
        if proceed:
            with_transport(lambda transport: _remove(operation, transport, scans, results))
    finally:  # report the results even if it failed
        if as_json:
            typer.echo(json.dumps(_to_json(operation, naming, scans, results), indent=2))
        elif proceed:
            for one, scanned, result in zip(operation.queues, scans, results, strict=True):
                if scanned.selected:
                    _print_result(operation, one, scanned, result)
    incomplete = proceed and any(map(_not_reached, scans, results))
    failed = any(result.failed or result.not_deleted for result in results)
    if incomplete or failed or (operation.selection.has_filters and not count):
        raise typer.Exit(1)


async def _scan(operation: Operation, transport: AwsTransport) -> tuple[Naming, list[ScanResult]]:
    naming, stop, scans = await transport.session.addresses.naming(), asyncio.Event(), []
    with on_stop(lambda _: stop.set()):
        for one in operation.queues:
            async with _open_processed_events(operation, one) as processed_events:
                selection = one.limit_to_own(operation.selection)
                scans.append(await scan(transport, one.queue, selection, processed_events, stop))
    if stop.is_set():
        raise SmartpipeError("interrupted: nothing was changed")
    return naming, scans


async def _remove(
    operation: Operation, transport: AwsTransport, scans: list[ScanResult], results: list[RemovalResult]
) -> None:
    stop = asyncio.Event()
    with on_stop(lambda _: stop.set()):
        for one, scanned, result in zip(operation.queues, scans, results, strict=True):
            if not scanned.selected:
                continue
            async with _open_processed_events(operation, one) as processed_events:
                progress = Progress(operation, one, scanned)
                rate = operation.options.rate_per_second
                remover = Remover(transport, one.queue, rate_per_second=rate, stop=stop, on_progress=progress)
                action = (
                    Redrive(transport, one.queue, processed_events, force=operation.options.force)
                    if operation.is_redrive
                    else Purge()
                )
                try:
                    await remover.remove(scanned, one.limit_to_own(operation.selection), action, result)
                finally:
                    progress.end()


@asynccontextmanager
async def _open_processed_events(operation: Operation, one: DeadLetterQueue) -> AsyncIterator[ProcessedEvents]:
    """Open the idempotency store, if the operation is a redrive and the queue has idempotent handlers."""
    handlers = one.service.handlers_on(one.queue.name)
    if not (operation.is_redrive and any(handler.options.idempotency for handler in handlers)):
        yield ProcessedEvents(handlers, None)
        return
    try:
        claims = await open_claims(one.service, ClaimSettings.load().idempotency_url)
        assert claims is not None  # noqa: S101 - the service has idempotent handlers
        processed_events = ProcessedEvents(handlers, claims)
        try:
            yield processed_events
        finally:
            await processed_events.aclose()
            await claims.aclose()
    except StoreError as error:
        msg = f"{one.name}: cannot look up which events were handled, so no further message is moved: {error}"
        raise SmartpipeError(msg) from error


class Progress:
    """Prints the progress: on a terminal in one line, elsewhere every ten seconds."""

    def __init__(self, operation: Operation, one: DeadLetterQueue, scanned: ScanResult) -> None:
        self._quiet = operation.options.as_json
        self._terminal = sys.stderr.isatty()
        total = f"{scanned.selected.total():,}{'' if scanned.complete else '+'}"
        self._text = f"{one.name}: {operation.past_tense} {{:,}} of {total}"
        self._printed_at = time.monotonic()
        self._printed = False

    def __call__(self, result: RemovalResult) -> None:
        """Print it, if it is time."""
        now = time.monotonic()
        interval = TERMINAL_PROGRESS_SECONDS if self._terminal else PROGRESS_SECONDS
        if self._quiet or now - self._printed_at < interval:
            return
        self._printed_at, self._printed = now, True
        text = self._text.format(result.done)
        typer.echo(f"\r{text}{CLEAR}" if self._terminal else text, nl=not self._terminal, err=True)

    def end(self) -> None:
        """Clear the line on the terminal."""
        if self._terminal and self._printed:
            typer.echo(f"\r{CLEAR}", nl=False, err=True)


def _describe_scan(operation: Operation, one: DeadLetterQueue, scanned: ScanResult) -> Iterator[str]:
    """Yield lines about the messages in one queue, and the plan for them."""
    total, others = scanned.selected.total(), scanned.others.total()
    to = f" → {one.source}" if operation.is_redrive else ""
    if not total:
        yield f"{one.name}{to}: {f'none of {messages(others)} matches' if others else 'no messages'}"
    else:
        yield f"{one.name}{to}: {messages(total, or_more=not scanned.complete)} to {operation.verb}"
    yield from _describe_kinds(scanned.selected, "    ")
    if scanned.processed:
        handled = f"{scanned.processed:,} of them {'was' if scanned.processed == 1 else 'were'} handled before"
        pronoun = "it" if scanned.processed == 1 else "them"
        if operation.options.force:
            yield f"  {handled}: with --force, handlers will handle {pronoun} again"
        else:
            yield f"  {handled} and will be skipped: use --force to have {pronoun} handled again"
    if scanned.partly_processed:
        verb, their = ("was", "its") if scanned.partly_processed == 1 else ("were", "their")
        will_run = f"all {their} handlers will run again" if operation.options.force else "only the others will run"
        yield f"  {scanned.partly_processed:,} of them {verb} handled by some of {their} handlers: {will_run}"
    if scanned.in_progress:
        yield f"  {scanned.in_progress:,} of them may be in progress in a worker: the moved messages will wait for it"
    if operation.selection.limit is not None and total >= operation.selection.limit:
        return  # the scan stopped at the limit, so the number of other messages is not known
    if total and others:
        yield f"  {messages(others)} {'stays' if others == 1 else 'stay'}"
    yield from _describe_kinds(scanned.others, "    ")


def _describe_kinds(counts: Counter[tuple[str, str]], indent: str) -> Iterator[str]:
    width = max((len(f"{count:,}") for count in counts.values()), default=0)
    for (type_, kind), count in counts.most_common():
        reason = "no reason" if kind == NO_REASON else kind
        yield f"{indent}{count:>{width},} {printable(type_) or 'no event'}, {printable(reason)}"


def _print_result(operation: Operation, one: DeadLetterQueue, scanned: ScanResult, result: RemovalResult) -> None:
    parts = [f"{operation.past_tense} {_removed(operation, result):,}"]
    parts += [f"skipped {result.skipped:,}"] if result.skipped else []
    parts += [f"failed {len(result.failed):,}"] if result.failed else []
    not_reached = _not_reached(scanned, result)
    parts += [f"not reached {not_reached:,}"] if not_reached else []
    ending = "; interrupted: the other messages are still in the queue" if result.interrupted else ""
    print_line(f"{one.name}: {', '.join(parts)}{ending}")
    not_deleted = "was moved but not deleted, so it will appear again" if operation.is_redrive else "was not deleted"
    for dead_letters, text in ((result.failed, "stays"), (result.not_deleted, not_deleted)):
        for dead_letter, failure in dead_letters[:FAILURES_SHOWN]:
            print_line(f"  {dead_letter.name} {text}: {failure.code}: {failure.detail}", err=True)
        if len(dead_letters) > FAILURES_SHOWN:
            typer.echo(f"  and {len(dead_letters) - FAILURES_SHOWN:,} more", err=True)


def _not_reached(scanned: ScanResult, result: RemovalResult) -> int:
    """Return the number of messages left: the operation was interrupted or gave up, or another reader has them."""
    return max(0, scanned.selected.total() - result.total)


def _removed(operation: Operation, result: RemovalResult) -> int:
    """Return the number of messages moved or deleted. A message that was sent but not deleted counts as moved."""
    return result.done if operation.is_redrive else result.done - len(result.not_deleted)


def _to_json(
    operation: Operation, naming: Naming, scans: list[ScanResult], results: list[RemovalResult]
) -> dict[str, Any]:
    queues = [
        {
            "queue": one.name,
            "source": one.source,
            "wanted": _counts_to_json(scanned.selected),
            "others": _counts_to_json(scanned.others),
            "complete": scanned.complete,
            **(
                {"handled_before": scanned.processed, "partly_handled_before": scanned.partly_processed}
                if operation.is_redrive
                else {}
            ),
            **({"in_progress": scanned.in_progress} if operation.is_redrive else {}),
            operation.past_tense: _removed(operation, result),
            "skipped": result.skipped,
            "failed": _failures_to_json(result.failed),
            "not_deleted": _failures_to_json(result.not_deleted),
            "not_reached": 0 if operation.options.dry_run else _not_reached(scanned, result),
            "interrupted": result.interrupted,
        }
        for one, scanned, result in zip(operation.queues, scans, results, strict=True)
    ]
    return {**naming._asdict(), "dry_run": operation.options.dry_run, "queues": queues}


def _counts_to_json(counts: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"type": type_ or None, "reason": kind, "count": count} for (type_, kind), count in counts.most_common()]


def _failures_to_json(failures: list[tuple[DeadLetterMessage, Failure]]) -> list[dict[str, str]]:
    return [{"id": one.name, "code": failure.code, "detail": failure.detail} for one, failure in failures]
