"""``smartpipe dlq list`` and ``peek``, and which queues the commands are about."""

from __future__ import annotations

import asyncio
import json
import shutil
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from smartpipe.cli.changes import Line, heading, tell
from smartpipe.cli.show import contents, known_ages
from smartpipe.cli.targets import load_services
from smartpipe.cli.topology import with_transport
from smartpipe.dlq.messages import preview
from smartpipe.dlq.scan import Scan
from smartpipe.errors import ConfigError
from smartpipe.escaping import escape_json
from smartpipe.names import name_in, physical_name
from smartpipe.settings import AwsSettings
from smartpipe.topology.aws.read import TopologyReader
from smartpipe.topology.resources import Topology
from smartpipe.topology.status import state_of
from smartpipe.worker.signals import on_stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.dlq.messages import DeadLetterMessage, Selection
    from smartpipe.names import Naming
    from smartpipe.service import Service
    from smartpipe.topics import Queue
    from smartpipe.topology.status import QueueState
    from smartpipe.transports.aws.transport import AwsTransport

PEEK_LEASE_SECONDS = 30.0


class DeadLetterQueue(NamedTuple):
    """One of a service's queues, as far as its dead letters are concerned; names as AWS has them."""

    service: Service
    queue: Queue
    name: str
    source: str


def dead_letter_queues(targets: Sequence[str], wanted: str | None = None) -> list[DeadLetterQueue]:
    """Return those of the targets' services, or the one that is *wanted*, by its name or its source's.

    Raises:
        ConfigError: A faulty target, or none of the queues is called so.
    """
    prefix = AwsSettings.load().prefix
    found = {
        binding.queue.dead_letter_name: DeadLetterQueue(
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
    names = {
        name: one
        for one in found.values()
        for name in (one.queue.name, one.queue.dead_letter_name, one.source, one.name)
    }
    if wanted not in names:
        raise ConfigError(f"--queue {wanted!r} is no queue of these services{_suggestion(wanted, names, found)}")
    return [names[wanted]]


def run_list(targets: Sequence[str], *, as_json: bool) -> None:
    """Print what is in each dead-letter queue."""
    queues = dead_letter_queues(targets)

    async def look(transport: AwsTransport) -> tuple[Naming, list[QueueState], list[str]]:
        naming = await transport.addresses.naming()
        arns = [naming.queue_arn(one.queue.dead_letter_name) for one in queues]
        actual = await TopologyReader(transport).read(Topology({}, {arn: {} for arn in arns}, {}), tags=False)
        ages, notes = await known_ages(transport, [name_in(arn) for arn in actual.queues])
        return naming, [state_of(arn, actual.queues.get(arn), ages) for arn in arns], notes

    naming, states, notes = with_transport(look)
    if as_json:
        plain = [
            {"service": one.service.name, "source": one.source, **_fields(state)}
            for one, state in zip(queues, states, strict=True)
        ]
        typer.echo(json.dumps({**naming._asdict(), "dead_letter_queues": plain, "notes": notes}, indent=2))
        return
    tell(heading(naming))
    width = max((len(state.name) for state in states), default=0)
    for one, state in zip(queues, states, strict=True):
        said = contents(state) if state.exists else "not there: run smartpipe topology apply"
        alarming = not state.exists or state.visible + state.in_flight
        tell(Line(f"  {state.name:<{width}}  {said}  (of {one.source})", "red" if alarming else None))
    if not states:
        typer.echo("no queues: these services only publish")
    for note in notes:
        tell(f"note: {note}")


def run_peek(targets: Sequence[str], wanted: str | None, selection: Selection, *, as_json: bool) -> None:
    """Print dead letters, and give them back."""
    queues = dead_letter_queues(targets, wanted)

    async def look(transport: AwsTransport) -> tuple[Naming, list[list[DeadLetterMessage]]]:
        naming, stop = await transport.addresses.naming(), asyncio.Event()
        with on_stop(lambda _: stop.set()):
            return naming, [await _peeked(transport, one, selection, stop) for one in queues]

    naming, letters = with_transport(look)
    shown = list(zip(queues, letters, strict=True))
    if as_json:
        plain = [_plain(one, letter) for one, found in shown for letter in found]
        typer.echo(escape_json(json.dumps({**naming._asdict(), "messages": plain}, indent=2, ensure_ascii=False)))
        return
    tell(heading(naming))
    for one, found in shown:
        most = " or more" if len(found) == selection.limit else ""
        what = messages(len(found)) if found else "nothing" + (" that fits" if selection.filters else "")
        tell(f"{one.name} (of {one.source}): {what}{most}")
        for letter in found:
            for line in describe(letter):
                tell(line)


def messages(count: int) -> str:
    """Return so many messages, in words."""
    return f"{count:,} message{'' if count == 1 else 's'}"


async def _peeked(
    transport: AwsTransport, one: DeadLetterQueue, selection: Selection, stop: asyncio.Event
) -> list[DeadLetterMessage]:
    limit = selection.limit or 0
    found: list[DeadLetterMessage] = []
    async with Scan(transport, one.queue.dead_letter_name, lease_seconds=PEEK_LEASE_SECONDS) as walk:
        while len(found) < limit and not stop.is_set() and (letters := await walk.next()):
            found += [letter for letter in letters if selection.takes(letter)]
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


def describe(letter: DeadLetterMessage) -> list[str]:
    """Return what ``dlq peek`` prints of a message: lines without control characters, none wider than the terminal."""
    message, reason = letter.message, letter.reason
    source = f" from {printable(letter.source)}" if letter.source else ""
    lines = [f"  {printable(letter.event_id or 'no event')}  {printable(letter.event_type or '')}{source}"]
    if reason:
        where = f" in {reason.get('handler')}" if reason.get("handler") else ""
        lines.append(f"{letter.kind} after {_times(reason.get('receive_count'))}{where}: {letter.error}")
        when = f"dead-lettered {_moment(reason.get('dead_lettered_at'))}"
    else:
        lines.append("no reason: SQS moved it after too many receives, or SNS could not deliver it")
        when = "sent " + ("?" if message.sent_at is None else _utc(datetime.fromtimestamp(message.sent_at, UTC)))
    width = shutil.get_terminal_size((120, 24)).columns
    lines += [f"{when}; {_times(message.receive_count)} in all; message {message.message_id}", preview(message, width)]
    return [_cut(line, width) for line in [lines[0], *(f"      {printable(line)}" for line in lines[1:])]]


def _times(count: object) -> str:
    return f"{count} receive{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Return *text* on one line, without what would command a terminal; ``--json`` has it in full.

    A body is data that people read, so a character that cannot be shown takes no more place than one that can.
    """
    return "".join(one if one.isprintable() else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}" for one in text)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _moment(text: object) -> str:
    try:
        return _utc(datetime.fromisoformat(str(text)).astimezone(UTC))
    except (ValueError, OverflowError):
        return "?"


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _plain(one: DeadLetterQueue, letter: DeadLetterMessage) -> dict[str, Any]:
    message = letter.message
    sent = None if message.sent_at is None else datetime.fromtimestamp(message.sent_at, UTC).isoformat()
    return {
        "queue": one.name,
        "source_queue": one.source,
        "event_id": letter.event_id,
        "type": letter.event_type,
        "source": letter.source,
        "reason": letter.kind,
        "dead_letter": dict(letter.reason),
        "message_id": message.message_id,
        "group_id": message.group_id,
        "sent_at": sent,
        "receive_count": message.receive_count,
        "attributes": {name: _text(value) for name, (_, value) in message.attributes.items()},
        "body": message.body,
    }


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()
