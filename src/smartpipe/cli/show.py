"""``smartpipe topology show``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from smartpipe.cli.changes import heading
from smartpipe.cli.targets import load_services
from smartpipe.cli.topology import with_transport
from smartpipe.errors import TransportError
from smartpipe.escaping import escape_json, escape_text
from smartpipe.names import name_in
from smartpipe.topology.aws.cloudwatch import oldest_ages
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.status import tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.names import Naming
    from smartpipe.topology.status import Branch, QueueState, TopicState
    from smartpipe.transports.aws.transport import AwsTransport

MINUTE, HOUR, DAY = 60, 3_600, 86_400


def run_show(targets: Sequence[str], *, as_json: bool) -> None:
    """Print the tree of what there is."""
    services = load_services(targets)

    async def look(transport: AwsTransport) -> tuple[Naming, list[TopicState], list[str]]:
        survey = await Provisioner(transport).survey(services, even_if_faulty=True)
        ages, notes = await known_ages(transport, [name_in(arn) for arn in survey.actual.queues])
        return survey.naming, tree(survey.desired, survey.actual, ages), notes

    naming, topics, notes = with_transport(look)
    if as_json:
        typer.echo(
            escape_json(
                json.dumps({**naming._asdict(), "topics": [_plain(one) for one in topics], "notes": notes}, indent=2)
            )
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape_text(heading(naming)), markup=False)
    for topic in topics:
        console.print(_drawn(topic))
    for note in notes:
        console.print(escape_text(f"note: {note}"), markup=False)


async def known_ages(transport: AwsTransport, names: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Return the ages of the queues' oldest messages, as far as they can be had, and a note if they cannot."""
    try:
        return await oldest_ages(transport, names), []
    except TransportError as error:
        return {}, [f"how old the oldest messages are is not known: {error.detail}"]


def contents(queue: QueueState) -> str:
    """Say what is in a queue that exists."""
    delayed = f", {queue.delayed:,} delayed" if queue.delayed else ""
    age = "" if queue.oldest_age_seconds is None else f", oldest {_age(queue.oldest_age_seconds)}"
    return f"{queue.visible:,} waiting, {queue.in_flight:,} in flight{delayed}{age}"


def _drawn(topic: TopicState) -> Tree:
    if not topic.name:
        root = Tree(Text("sent to directly", style="bold"))
    else:
        root = Tree(Text.assemble(("topic ", "dim"), (topic.name, "bold"), _missing(topic.exists)))
    for branch in topic.branches:
        above = root.add(_subscription(branch)) if topic.name else root
        queue = above.add(_queue("queue", branch.queue))
        if branch.queue.dead_letters is not None:
            queue.add(_queue("dead letters", branch.queue.dead_letters))
    if topic.elsewhere:
        root.add(Text(f"and {topic.elsewhere} more of others", style="dim"))
    if not topic.branches and not topic.elsewhere:
        root.add(Text("nobody subscribes", style="dim"))
    return root


def _subscription(branch: Branch) -> Text:
    if not branch.exists:
        return Text.assemble(("subscription", "dim"), _missing(exists=False))
    wanted = "everything" if branch.filter is None else _filter(branch.filter)
    return Text.assemble(("subscription ", "dim"), escape_text(wanted), "" if branch.raw else ("  not raw", "yellow"))


def _filter(policy: Any) -> str:
    return ", ".join(
        f"{name} in {' | '.join(map(_value, rules))}" if isinstance(rules, list) else f"{name} {json.dumps(rules)}"
        for name, rules in policy.items()
    )


def _value(rule: object) -> str:
    return rule if isinstance(rule, str) else json.dumps(rule)


def _queue(label: str, queue: QueueState) -> Text:
    if not queue.exists:
        return Text.assemble((f"{label} ", "dim"), (escape_text(queue.name), "bold"), _missing(exists=False))
    alarming = label == "dead letters" and queue.visible + queue.in_flight
    style = "red" if alarming else ""
    return Text.assemble((f"{label} ", "dim"), (escape_text(queue.name), "bold"), (f"  {contents(queue)}", style))


def _missing(exists: bool) -> Text:  # noqa: FBT001 - it says which
    return Text("" if exists else "  not there", style="red")


def _age(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _plain(value: Any) -> Any:
    """Return nested tuples with names as JSON's objects."""
    if hasattr(value, "_asdict"):
        return {name: _plain(one) for name, one in value._asdict().items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
