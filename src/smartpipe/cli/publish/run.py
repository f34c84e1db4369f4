"""``smartpipe publish``: validates events and publishes them, once or at a rate."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import typer

from smartpipe.cli.changes import print_line
from smartpipe.cli.publish.choose import choose_event
from smartpipe.cli.publish.data import read_attributes, read_documents, validate_documents
from smartpipe.cli.targets import load_events
from smartpipe.errors import ConfigError, PublishError, SmartpipeError
from smartpipe.events import contract_of
from smartpipe.publisher.prepare import Publication, prepare, read_options
from smartpipe.publisher.publisher import Publisher
from smartpipe.worker.signals import on_stop

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

    from smartpipe.errors import PublishFailure
    from smartpipe.events import Event

SOURCE = "smartpipe-publish"
MAX_CONCURRENT = 100
"""Ten requests of ten events, as many as a publisher sends concurrently."""
STOP_SECONDS = 3.0
"""How long events whose requests are open may take after a signal."""
MAX_LATE_SECONDS = 1.0
"""After a longer delay, the rate continues from now, and does not catch up."""
MAX_REASONS = 3
PROGRESS_SECONDS = 10.0
TERMINAL_PROGRESS_SECONDS = 0.2
CLEAR = "\x1b[K"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishArguments:
    """The arguments of the command."""

    type: str
    version: str | None = None
    data: str = "{}"
    attributes: Sequence[str] = ()
    queue: str | None = None
    event_id: str | None = None
    count: int | None = None
    rate_per_second: float | None = None
    as_json: bool = False


def run_publish(targets: Sequence[str], arguments: PublishArguments) -> None:
    """Publish the events, and print their ids.

    Raises:
        ConfigError: The arguments, the data or the settings have errors. Nothing was published.
        SmartpipeError: Some events were not published.
        Exit: A signal has stopped the command; exit code 128 plus its number.
    """
    event = choose_event(load_events(targets), arguments.type, arguments.version)
    events = validate_documents(event, read_documents(arguments.data))
    total = len(events) if arguments.count is None else arguments.count
    if arguments.count is not None and len(events) > 1:
        raise ConfigError(f"--count repeats one event, but --data has {len(events):,}: remove --count")
    if arguments.event_id is not None and total > 1:
        raise ConfigError(
            f"--event-id is the id of one event, and consumers would take the others of the {total:,} for copies of "
            "it: remove --event-id"
        )
    options = {"queue": arguments.queue, "attributes": read_attributes(arguments.attributes) or None}
    stopped = asyncio.run(_publish(events, total, {**options, "event_id": arguments.event_id}, arguments))
    if stopped is not None:
        raise typer.Exit(128 + signal.Signals[stopped])


async def _publish(
    events: Sequence[Event], total: int, options: dict[str, Any], arguments: PublishArguments
) -> str | None:
    """Return the name of the signal that has stopped it, or None."""
    publishing = Publishing(options)
    with on_stop(publishing.stop):  # first, because it takes a while to open the publisher
        publisher = Publisher(SOURCE, metrics=False)
        try:
            destination = _check(events, options, publisher)
            report = Report(contract_of(type(events[0])), destination, total, as_json=arguments.as_json)
            await publishing.run(publisher, islice(cycle(events), total), arguments.rate_per_second, report)
        finally:
            with suppress(PublishError):  # of events that a signal has abandoned
                await publisher.aclose(timeout_seconds=0)
    report.end()
    if publishing.abandoned and not arguments.as_json:
        noun = "1 event" if publishing.abandoned == 1 else f"{publishing.abandoned:,} events"
        print_line(f"interrupted: {noun} may or may not have been published", err=True)
    if publishing.failures:
        raise SmartpipeError(_describe_failures(publishing.failures))
    return publishing.stopped_by if report.published < total else None


def _check(events: Sequence[Event], options: dict[str, Any], publisher: Publisher) -> str:
    """Return the name of the destination.

    Raises:
        ConfigError: An option is wrong, an event is too large, or it lacks a key.
    """
    destination = ""
    for event in events:
        publication = Publication(event, *read_options(**options))
        try:
            prepared = prepare(publication, source=publisher.source, encoding=publisher.payloads.encoding)
        except PublishError as error:
            raise ConfigError([failure.detail for failure in error.failures]) from None
        destination = prepared.destination.name
    return destination


def _describe_failures(failures: Sequence[PublishFailure]) -> str:
    """Return one sentence. Many events fail for one reason, so it names reasons, and not events."""
    reasons = list(dict.fromkeys(f"{one.code}: {one.detail}" for one in failures))
    more = f"; and {len(reasons) - MAX_REASONS} more reasons" if len(reasons) > MAX_REASONS else ""
    noun = "1 event was" if len(failures) == 1 else f"{len(failures):,} events were"
    return f"{noun} not published: {'; '.join(reasons[:MAX_REASONS])}{more}"


class Publishing:
    """Publishes events concurrently, each at its time, until the first failure or a signal."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._free = asyncio.Semaphore(MAX_CONCURRENT)
        self._stopping = asyncio.Event()
        self._signalled = asyncio.Event()
        self._error: BaseException | None = None
        self.abandoned = 0
        self.failures: list[PublishFailure] = []
        self.stopped_by: str | None = None

    def stop(self, signal_name: str) -> None:
        """Begin no further event."""
        self.stopped_by = signal_name
        self._signalled.set()
        self._stopping.set()
        self._free.release()  # `run` may wait for it

    async def run(
        self, publisher: Publisher, events: Iterable[Event], rate_per_second: float | None, report: Report
    ) -> None:
        """Publish *events*, at most *rate_per_second*, and call *report* with the id of each.

        Raises:
            ConfigError: The settings of AWS have an error.
        """
        loop = asyncio.get_running_loop()
        interval = 0.0 if rate_per_second is None else 1 / rate_per_second
        due = loop.time()
        open_tasks: set[asyncio.Task[None]] = set()
        last_of_group: dict[Hashable, asyncio.Task[None]] = {}
        for event in events:
            if due > loop.time():
                await self._wait(due - loop.time())
            group = Publication(event, *read_options(**self._options)).ordered_group
            if group in last_of_group:
                await self._wait_for(last_of_group[group])
            await self._free.acquire()
            if self._stopping.is_set():
                break
            task = asyncio.create_task(self._publish_one(publisher, event, report))
            open_tasks.add(task)
            task.add_done_callback(open_tasks.discard)
            if group is not None:
                last_of_group[group] = task
            due = max(due + interval, loop.time() - MAX_LATE_SECONDS)
        await self._finish(open_tasks)
        if self._error is not None:
            raise self._error

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _wait_for(self, task: asyncio.Task[None]) -> None:
        """Wait for the previous event of a FIFO group, because the next one must not overtake it; or for a stop."""
        if not task.done():
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()

    async def _finish(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """Wait for the events that have begun, and after a signal not for long."""
        if not tasks:
            return
        signalled = asyncio.create_task(self._signalled.wait())
        ended = asyncio.gather(*tasks)
        either: set[asyncio.Future[Any]] = {signalled, ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        await asyncio.wait({ended}, timeout=STOP_SECONDS)
        ended.cancel()
        with suppress(asyncio.CancelledError):
            await ended

    async def _publish_one(self, publisher: Publisher, event: Event, report: Report) -> None:
        try:
            report(await publisher.publish(event, **self._options))
        except PublishError as error:
            self.failures += error.failures
            self._stopping.set()
        except Exception as error:  # noqa: BLE001 - raised by `run`; the reader of the ids may be gone, for example
            self._error = self._error or error
            self._stopping.set()
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        finally:
            self._free.release()


class Report:
    """Prints the id of each published event to standard output, and for several events the progress to standard error.

    The progress is one line on a terminal, unless the ids go there too, and otherwise a line every ten seconds.
    """

    def __init__(self, contract: Any, destination: str, total: int, *, as_json: bool) -> None:
        self.published = 0
        self._contract = contract
        self._destination = destination
        self._total = total
        self._as_json = as_json
        self._quiet = as_json or total == 1
        self._terminal = sys.stderr.isatty()
        self._started = self._printed_at = time.monotonic()
        self._clear: Callable[[], None] | None = None

    def __call__(self, event_id: str) -> None:
        """Print the id of a published event."""
        self.published += 1
        if self._as_json:
            fields = {
                "event_id": event_id,
                "type": self._contract.type,
                "version": self._contract.version,
                "destination": self._destination,
            }
            typer.echo(json.dumps(fields))
        else:
            print_line(event_id)
        self._print_progress()

    def end(self) -> None:
        """Print the summary."""
        if self._clear is not None:
            self._clear()
        if self._quiet:
            return
        seconds = time.monotonic() - self._started
        rate = f", {self.published / seconds:,.0f} a second" if self.published and seconds >= 1 else ""
        print_line(f"{self._describe()} in {seconds:,.1f} s{rate}", err=True)

    def _describe(self) -> str:
        contract = self._contract
        return (
            f"published {self.published:,} of {self._total:,} events of {contract.type} {contract.version} to "
            f"{self._destination}"
        )

    def _print_progress(self) -> None:
        now = time.monotonic()
        interval = TERMINAL_PROGRESS_SECONDS if self._terminal else PROGRESS_SECONDS
        if self._quiet or now - self._printed_at < interval or (self._terminal and sys.stdout.isatty()):
            return
        self._printed_at = now
        if not self._terminal:
            print_line(self._describe(), err=True)
            return
        typer.echo(f"\r{self._describe()}{CLEAR}", nl=False, err=True)
        self._clear = lambda: typer.echo(f"\r{CLEAR}", nl=False, err=True)
