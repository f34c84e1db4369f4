"""``smartpipe dlq list`` and ``peek``, and the dead-letter queues for all ``dlq`` commands."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import typer

from smartpipe.cli.changes import Line, heading, print_line
from smartpipe.cli.show import describe_contents, find_ages
from smartpipe.cli.targets import load_services
from smartpipe.cli.topology import with_session
from smartpipe.dlq.messages import preview
from smartpipe.dlq.scan import Scan
from smartpipe.errors import ConfigError
from smartpipe.escaping import escape_json
from smartpipe.names import name_in, physical_name
from smartpipe.settings import AwsSettings, TransportSettings
from smartpipe.topology.aws.read import TopologyReader
from smartpipe.topology.resources import Topology
from smartpipe.topology.status import state_of
from smartpipe.transports.open import create_aws_transport
from smartpipe.worker.signals import on_stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.dlq.messages import DeadLetterMessage, Selection
    from smartpipe.names import Naming
    from smartpipe.service import Service
    from smartpipe.topics import Queue
    from smartpipe.topology.status import QueueState
    from smartpipe.transports.aws.session import AwsSession
    from smartpipe.transports.aws.transport import AwsTransport

T = TypeVar("T")

PEEK_LEASE_SECONDS = 30.0


class DeadLetterQueue(NamedTuple):
    """A queue of a service, with the physical names of its dead-letter queue (``name``) and of itself (``source``)."""

    service: Service
    queue: Queue
    name: str
    source: str

    def limit_to_own(self, selection: Selection) -> Selection:
        """Return *selection* without messages of other queues, with which an external queue may share this one."""
        return replace(selection, queues=(name_in(self.queue.name), self.source)) if self.queue.existing else selection

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which the user may select it."""
        return self.queue.name, self.queue.dead_letter_name, self.source, self.name


def dead_letter_queues(targets: Sequence[str], wanted: str | None = None) -> list[DeadLetterQueue]:
    """Return the dead-letter queues of the targets' services, or only the *wanted* one: of each queue that shares it.

    Args:
        wanted: The name of a dead-letter queue, or of the queue that it belongs to.

    Raises:
        ConfigError: A target is wrong, or no queue has this name.
    """
    prefix = AwsSettings.load().prefix
    found = {
        binding.queue.name: DeadLetterQueue(
            service,
            binding.queue,
            physical_name(prefix, binding.queue.dead_letter_name),
            physical_name(prefix, binding.queue.name),
        )
        for service in load_services(targets)
        for binding in service.bindings
    }
    if wanted is None:
        return list(found.values())
    chosen = [one for one in found.values() if wanted in one.names]
    if not chosen:
        names = {name: one for one in found.values() for name in one.names}
        raise ConfigError(f"--queue {wanted!r} is not a queue of these services{_suggestion(wanted, names, found)}")
    return chosen


def with_transport(work: Callable[[AwsTransport], Awaitable[T]]) -> T:
    """Open a transport with the environment's settings, run *work* with it, and close it."""

    async def run() -> T:
        transport = create_aws_transport(TransportSettings.load())
        try:
            return await work(transport)
        finally:
            await transport.aclose()

    return asyncio.run(run())


def run_list(targets: Sequence[str], *, as_json: bool) -> None:
    """Print the number of messages in each dead-letter queue."""
    queues = dead_letter_queues(targets)

    async def read(session: AwsSession) -> tuple[Naming, list[QueueState], list[str]]:
        naming = await session.addresses.naming()
        arns = [naming.queue_arn(one.queue.dead_letter_name) for one in queues]
        actual = await TopologyReader(session).read(Topology({"queue": {arn: {} for arn in arns}}), tags=False)
        ages, notes = await find_ages(session, [name_in(arn) for arn in actual.queues])
        return naming, [state_of(arn, actual.queues.get(arn), ages) for arn in arns], notes

    naming, states, notes = with_session(read)
    if as_json:
        plain = [
            {"service": one.service.name, "source": one.source, **_fields(state)}
            for one, state in zip(queues, states, strict=True)
        ]
        typer.echo(json.dumps({**naming._asdict(), "dead_letter_queues": plain, "notes": notes}, indent=2))
        return
    print_line(heading(naming))
    width = max((len(state.name) for state in states), default=0)
    for one, state in zip(queues, states, strict=True):
        text = describe_contents(state) if state.exists else "does not exist: run smartpipe topology apply"
        alarming = not state.exists or state.visible + state.in_flight
        print_line(Line(f"  {state.name:<{width}}  {text}  (of {one.source})", "red" if alarming else None))
    if not states:
        typer.echo("no queues: these services only publish")
    for note in notes:
        print_line(f"note: {note}")


def run_peek(targets: Sequence[str], wanted: str | None, selection: Selection, *, as_json: bool) -> None:
    """Print dead-letter messages, and return them to the queue."""
    queues = dead_letter_queues(targets, wanted)

    async def receive(transport: AwsTransport) -> tuple[Naming, list[list[DeadLetterMessage]]]:
        naming, stop = await transport.session.addresses.naming(), asyncio.Event()
        with on_stop(lambda _: stop.set()):
            return naming, [await _receive(transport, one, selection, stop) for one in queues]

    naming, received = with_transport(receive)
    by_queue = list(zip(queues, received, strict=True))
    if as_json:
        plain = [_to_json(one, dead_letter) for one, found in by_queue for dead_letter in found]
        typer.echo(escape_json(json.dumps({**naming._asdict(), "messages": plain}, indent=2, ensure_ascii=False)))
        return
    print_line(heading(naming))
    for one, found in by_queue:
        more = len(found) == selection.limit
        none = "no messages" + (" match" if selection.has_filters else "")
        count = messages(len(found), or_more=more) if found else none
        print_line(f"{one.name} (of {one.source}): {count}")
        for dead_letter in found:
            for line in describe(dead_letter):
                print_line(line)


def messages(count: int, *, or_more: bool = False) -> str:
    """Return *count* in words, as in ``1 message``, ``1,000 messages`` or ``1 or more messages``."""
    if or_more:
        return f"{count:,} or more messages"
    return f"{count:,} message{'' if count == 1 else 's'}"


async def _receive(
    transport: AwsTransport, one: DeadLetterQueue, selection: Selection, stop: asyncio.Event
) -> list[DeadLetterMessage]:
    limit, selection = selection.limit or 0, one.limit_to_own(selection)
    found: list[DeadLetterMessage] = []
    async with Scan(transport, one.queue.dead_letter_name, lease_seconds=PEEK_LEASE_SECONDS) as scan:
        while len(found) < limit and not stop.is_set() and (dead_letters := await scan.next()):
            found += [dead_letter for dead_letter in dead_letters if selection.matches(dead_letter)]
    return found[:limit]


def _fields(state: QueueState) -> dict[str, Any]:
    fields = state._asdict()
    del fields["dead_letters"]
    return fields


def _suggestion(wanted: str, names: dict[str, DeadLetterQueue], found: dict[str, DeadLetterQueue]) -> str:
    close = get_close_matches(wanted, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; they have {', '.join(one.name for one in found.values())}" if found else ", which have none"


def describe(dead_letter: DeadLetterMessage) -> list[str]:
    """Return the lines that ``dlq peek`` prints: without control characters, and not wider than the terminal."""
    message, reason = dead_letter.message, dead_letter.reason
    source = f" from {printable(dead_letter.source)}" if dead_letter.source else ""
    type_ = " ".join(filter(None, (dead_letter.event_type, dead_letter.version)))
    lines = [f"  {printable(dead_letter.event_id or 'no event')}  {printable(type_)}{source}"]
    if reason:
        where = f" in {reason.get('handler')}" if reason.get("handler") else ""
        lines.append(f"{dead_letter.kind} after {_receives(reason.get('receive_count'))}{where}: {dead_letter.error}")
        when = f"dead-lettered {_format_time(reason.get('dead_lettered_at'))}"
    else:
        lines.append("no reason: SQS moved it after too many receives, or SNS could not deliver it")
        when = "sent " + ("?" if message.sent_at is None else _format_utc(datetime.fromtimestamp(message.sent_at, UTC)))
    width = shutil.get_terminal_size((120, 24)).columns
    lines += [
        f"{when}; {_receives(message.receive_count)} in all; message {message.message_id}",
        preview(message, width),
    ]
    return [_truncate(line, width) for line in [lines[0], *(f"      {printable(line)}" for line in lines[1:])]]


def _receives(count: object) -> str:
    return f"{count} receive{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Return *text* on one line, without characters that control a terminal. ``--json`` has the full text.

    Other than in an escaped text, a character that cannot be shown takes one column, so that data stays readable.
    """
    return "".join(one if one.isprintable() else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}" for one in text)


def _truncate(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _format_time(text: object) -> str:
    try:
        return _format_utc(datetime.fromisoformat(str(text)).astimezone(UTC))
    except (ValueError, OverflowError):
        return "?"


def _format_utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _to_json(one: DeadLetterQueue, dead_letter: DeadLetterMessage) -> dict[str, Any]:
    message = dead_letter.message
    sent = None if message.sent_at is None else datetime.fromtimestamp(message.sent_at, UTC).isoformat()
    return {
        "queue": one.name,
        "source_queue": one.source,
        "event_id": dead_letter.event_id,
        "type": dead_letter.event_type,
        "version": dead_letter.version,
        "source": dead_letter.source,
        "reason": dead_letter.kind,
        "dead_letter": dict(dead_letter.reason),
        "message_id": message.message_id,
        "group_id": message.group_id,
        "sent_at": sent,
        "receive_count": message.receive_count,
        "attributes": {name: _text(value) for name, (_, value) in message.attributes.items()},
        "body": message.body,
    }


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()
