"""``smartpipe dlq redrive`` and ``purge``: look, say what would go, ask, and carry it out."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from smartpipe.cli.changes import heading, tell
from smartpipe.cli.confirm import confirm
from smartpipe.cli.dlq import dead_letter_queues, messages, printable
from smartpipe.cli.topology import with_transport
from smartpipe.dlq.messages import NO_REASON
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.dlq.redrive import Clearing, Purge, Redrive, ScanResult, Tally, scan
from smartpipe.errors import SmartpipeError, StoreError
from smartpipe.idempotency.claims import claims_of
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


class Manner(NamedTuple):
    """How it is to be done.

    Args:
        force: Also what idempotent handlers have done already.
    """

    rate_per_second: float | None = None
    force: bool = False
    dry_run: bool = False
    yes: bool = False
    as_json: bool = False


class Work(NamedTuple):
    """What is wanted of which queues, and in which words."""

    queues: list[DeadLetterQueue]
    selection: Selection
    manner: Manner
    verb: str
    done: str
    remembers: bool


def run_redrive(targets: Sequence[str], wanted: str | None, selection: Selection, manner: Manner) -> None:
    """Move dead letters back to where they came from."""
    _run(Work(dead_letter_queues(targets, wanted), selection, manner, "move", "moved", remembers=True))


def run_purge(targets: Sequence[str], wanted: str, selection: Selection, manner: Manner) -> None:
    """Delete dead letters."""
    _run(Work(dead_letter_queues(targets, wanted), selection, manner, "delete", "deleted", remembers=False))


def _run(work: Work) -> None:
    """Exit 1 where something failed, was interrupted, or nothing fits."""
    as_json = work.manner.as_json
    naming, looks = with_transport(lambda transport: _look(work, transport))
    if not as_json:
        tell(heading(naming))
        for one, looked in zip(work.queues, looks, strict=True):
            for line in _in_words(work, one, looked):
                tell(line)
    tallies = [Tally() for _ in work.queues]
    count = sum(looked.wanted.total() for looked in looks)
    going = count > 0 and not work.manner.dry_run
    if going:
        more = "" if all(looked.complete for looked in looks) else " or more"
        question = f"{work.verb.capitalize()} {count:,}{more} message{'' if count == 1 else 's'}?"
        confirm(question, yes=work.manner.yes, as_json=as_json, alternative="add --dry-run for a preview")
    try:
        if going:
            with_transport(lambda transport: _carry_out(work, transport, looks, tallies))
    finally:  # how far it came is told also when it failed
        if as_json:
            typer.echo(json.dumps(_plain(work, naming, looks, tallies), indent=2))
        elif going:
            for one, looked, tally in zip(work.queues, looks, tallies, strict=True):
                if looked.wanted:
                    _tell(work, one, looked, tally)
    left = going and any(map(_not_reached, looks, tallies))
    if left or any(tally.failed or tally.not_deleted for tally in tallies) or (work.selection.filters and not count):
        raise typer.Exit(1)


async def _look(work: Work, transport: AwsTransport) -> tuple[Naming, list[ScanResult]]:
    naming, stop, looks = await transport.addresses.naming(), asyncio.Event(), []
    with on_stop(lambda _: stop.set()):
        for one in work.queues:
            async with _memories(work, one) as memories:
                looks.append(await scan(transport, one.queue, work.selection, memories, stop))
    if stop.is_set():
        raise SmartpipeError("interrupted: nothing was changed")
    return naming, looks


async def _carry_out(work: Work, transport: AwsTransport, looks: list[ScanResult], tallies: list[Tally]) -> None:
    stop = asyncio.Event()
    with on_stop(lambda _: stop.set()):
        for one, looked, tally in zip(work.queues, looks, tallies, strict=True):
            if not looked.wanted:
                continue
            async with _memories(work, one) as memories:
                progress = Progress(work, one, looked)
                rate = work.manner.rate_per_second
                clearing = Clearing(transport, one.queue, rate_per_second=rate, stop=stop, on_progress=progress)
                treatment = (
                    Redrive(transport, one.queue, memories, force=work.manner.force) if work.remembers else Purge()
                )
                try:
                    await clearing.clear(looked, work.selection, treatment, tally)
                finally:
                    progress.end()


@asynccontextmanager
async def _memories(work: Work, one: DeadLetterQueue) -> AsyncIterator[ProcessedEvents]:
    """Open the store, where the queue's handlers have one."""
    handlers = one.service.handlers_on(one.queue.name)
    if not (work.remembers and any(handler.options.idempotency for handler in handlers)):
        yield ProcessedEvents(handlers, None)
        return
    try:
        claims = await claims_of(one.service, ClaimSettings.load().idempotency_url)
        assert claims is not None  # noqa: S101 - it has idempotent handlers
        memories = ProcessedEvents(handlers, claims)
        try:
            yield memories
        finally:
            await memories.aclose()
            await claims.aclose()
    except StoreError as error:
        msg = f"{one.name}: what idempotent handlers have done cannot be looked up, and nothing goes unlooked: {error}"
        raise SmartpipeError(msg) from error


class Progress:
    """Says how far it is: on a terminal in one line, elsewhere every ten seconds."""

    def __init__(self, work: Work, one: DeadLetterQueue, looked: ScanResult) -> None:
        self._quiet = work.manner.as_json
        self._terminal = sys.stderr.isatty()
        self._text = f"{one.name}: {work.done} {{:,}} of {looked.wanted.total():,}{'' if looked.complete else '+'}"
        self._told_at = time.monotonic()
        self._told = False

    def __call__(self, tally: Tally) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if self._quiet or now - self._told_at < (TERMINAL_PROGRESS_SECONDS if self._terminal else PROGRESS_SECONDS):
            return
        self._told_at, self._told = now, True
        text = self._text.format(tally.done)
        typer.echo(f"\r{text}{CLEAR}" if self._terminal else text, nl=not self._terminal, err=True)

    def end(self) -> None:
        """Leave the terminal's line to what comes next."""
        if self._terminal and self._told:
            typer.echo(f"\r{CLEAR}", nl=False, err=True)


def _in_words(work: Work, one: DeadLetterQueue, looked: ScanResult) -> Iterator[str]:
    """Yield what would become of the letters of one queue."""
    total, others = looked.wanted.total(), looked.others.total()
    to = f" → {one.source}" if work.remembers else ""
    more = "" if looked.complete else " or more"
    if not total:
        what = f"none of {messages(others)} fits" if others else "nothing there"
        yield f"{one.name}{to}: {what}"
    else:
        yield f"{one.name}{to}: {messages(total)}{more} to {work.verb}"
    yield from _kinds(looked.wanted, "    ")
    if looked.all_done:
        done = f"{looked.all_done:,} of them {'was' if looked.all_done == 1 else 'were'} handled before"
        if work.manner.force:
            yield f"  {done}: --force lets that happen again"
        else:
            verb, pronoun = ("is", "it") if looked.all_done == 1 else ("are", "them")
            yield f"  {done}, and {verb} skipped: --force would handle {pronoun} again"
    if looked.partly_done:
        instead = "all their handlers run again" if work.manner.force else "only the other handlers run"
        yield f"  of {looked.partly_done:,} some handlers were done before: {instead}"
    if looked.in_progress:
        yield f"  {looked.in_progress:,} may be in some worker's hands right now: theirs come first"
    if work.selection.limit is not None and total >= work.selection.limit:
        return  # nobody has looked at what else there is
    if total and others:
        yield f"  {messages(others)} that {'stays' if others == 1 else 'stay'}"
    yield from _kinds(looked.others, "    ")


def _kinds(counts: Counter[tuple[str, str]], indent: str) -> Iterator[str]:
    width = max((len(f"{count:,}") for count in counts.values()), default=0)
    for (type_, kind), count in counts.most_common():
        why = "no reason" if kind == NO_REASON else kind
        yield f"{indent}{count:>{width},} {printable(type_) or 'no event'}, {printable(why)}"


def _tell(work: Work, one: DeadLetterQueue, looked: ScanResult, tally: Tally) -> None:
    """Say what has become of the letters of one queue."""
    parts = [f"{work.done} {_done(work, tally):,}"]
    parts += [f"skipped {tally.skipped:,}"] if tally.skipped else []
    parts += [f"failed {len(tally.failed):,}"] if tally.failed else []
    left = _not_reached(looked, tally)
    parts += [f"not reached {left:,}"] if left else []
    ending = "; interrupted: the rest is where it was" if tally.interrupted else ""
    tell(f"{one.name}: {', '.join(parts)}{ending}")
    for letters, what in (
        (tally.failed, "stays"),
        (tally.not_deleted, "was not deleted and will be seen again" if work.remembers else "was not deleted"),
    ):
        for letter, failure in letters[:FAILURES_SHOWN]:
            tell(f"  {letter.name} {what}: {failure.code}: {failure.detail}", err=True)
        if len(letters) > FAILURES_SHOWN:
            typer.echo(f"  and {len(letters) - FAILURES_SHOWN:,} more", err=True)


def _not_reached(looked: ScanResult, tally: Tally) -> int:
    """Return how many were left alone: it was interrupted, gave up, or somebody else has taken them."""
    return max(0, looked.wanted.total() - tally.dealt_with)


def _done(work: Work, tally: Tally) -> int:
    """Return how many were moved, or are deleted: what was sent is moved, be it still in the old place too."""
    return tally.done if work.remembers else tally.done - len(tally.not_deleted)


def _plain(work: Work, naming: Naming, looks: list[ScanResult], tallies: list[Tally]) -> dict[str, Any]:
    queues = [
        {
            "queue": one.name,
            "source": one.source,
            "wanted": _counted(looked.wanted),
            "others": _counted(looked.others),
            "complete": looked.complete,
            **(
                {"handled_before": looked.all_done, "partly_handled_before": looked.partly_done}
                if work.remembers
                else {}
            ),
            **({"in_progress": looked.in_progress} if work.remembers else {}),
            work.done: _done(work, tally),
            "skipped": tally.skipped,
            "failed": _told(tally.failed),
            "not_deleted": _told(tally.not_deleted),
            "not_reached": 0 if work.manner.dry_run else _not_reached(looked, tally),
            "interrupted": tally.interrupted,
        }
        for one, looked, tally in zip(work.queues, looks, tallies, strict=True)
    ]
    return {**naming._asdict(), "dry_run": work.manner.dry_run, "queues": queues}


def _counted(counts: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"type": type_ or None, "reason": kind, "count": count} for (type_, kind), count in counts.most_common()]


def _told(letters: list[tuple[DeadLetterMessage, Failure]]) -> list[dict[str, str]]:
    return [{"id": letter.name, "code": failure.code, "detail": failure.detail} for letter, failure in letters]
