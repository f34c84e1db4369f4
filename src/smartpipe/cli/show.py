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
from smartpipe.cli.topology import with_session
from smartpipe.errors import TransportError
from smartpipe.escaping import escape_json, escape_text
from smartpipe.names import name_in
from smartpipe.topology.aws.cloudwatch import oldest_ages
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.status import build_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.names import Naming
    from smartpipe.topology.status import Branch, QueueState, TopicState
    from smartpipe.transports.aws.session import AwsSession

MINUTE, HOUR, DAY = 60, 3_600, 86_400
LINE_CHARACTERS = 100_000
"""More than any line has. rich would cut the lines of a tree at the width of the terminal, or at 80 without one."""


def run_show(targets: Sequence[str], *, as_json: bool) -> None:
    """Print the deployed topology as a tree."""
    services = load_services(targets)

    async def read(session: AwsSession) -> tuple[Naming, list[TopicState], list[str]]:
        context = await Provisioner(session).compare(services, ignore_errors=True)
        ages, notes = await find_ages(session, [name_in(arn) for arn in context.actual.queues])
        return context.naming, build_tree(context.desired, context.actual, ages), notes

    naming, topics, notes = with_session(read)
    if as_json:
        typer.echo(
            escape_json(
                json.dumps({**naming._asdict(), "topics": [_to_json(one) for one in topics], "notes": notes}, indent=2)
            )
        )
        return
    console = Console(highlight=False, soft_wrap=True, width=LINE_CHARACTERS)
    console.print(escape_text(heading(naming)), markup=False)
    for topic in topics:
        console.print(_draw(topic))
    for note in notes:
        console.print(escape_text(f"note: {note}"), markup=False)


async def find_ages(session: AwsSession, names: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Return the ages of the queues' oldest messages, and a note if CloudWatch could not be asked."""
    try:
        return await oldest_ages(session, names), []
    except TransportError as error:
        return {}, [f"the age of the oldest messages is not known: {error.detail}"]


def describe_contents(queue: QueueState) -> str:
    """Describe the number of messages in an existing queue, and the age of the oldest."""
    delayed = f", {queue.delayed:,} delayed" if queue.delayed else ""
    age = "" if queue.oldest_age_seconds is None else f", oldest {_format_age(queue.oldest_age_seconds)}"
    return f"{queue.visible:,} waiting, {queue.in_flight:,} in flight{delayed}{age}"


def _draw(topic: TopicState) -> Tree:
    if not topic.name:
        root = Tree(Text("direct queues", style="bold"))
    else:
        root = Tree(Text.assemble(("topic ", "dim"), (topic.name, "bold"), _mark_missing(topic.exists)))
    for branch in topic.branches:
        above = root.add(_describe_subscription(branch)) if topic.name else root
        queue = above.add(_describe_queue("queue", branch.queue))
        if branch.queue.dead_letters is not None:
            queue.add(_describe_queue("dead-letter queue", branch.queue.dead_letters))
    if topic.elsewhere:
        plural = "" if topic.elsewhere == 1 else "s"
        root.add(Text(f"and {topic.elsewhere} subscription{plural} of others", style="dim"))
    if not topic.branches and not topic.elsewhere:
        root.add(Text("no subscriptions", style="dim"))
    return root


def _describe_subscription(branch: Branch) -> Text:
    if not branch.exists:
        return Text.assemble(("subscription", "dim"), _mark_missing(exists=False))
    wanted = "everything" if branch.filter is None else _describe_filter(branch.filter)
    return Text.assemble(("subscription ", "dim"), escape_text(wanted), "" if branch.raw else ("  not raw", "yellow"))


def _describe_filter(policy: Any) -> str:
    return ", ".join(
        f"{name} in {' | '.join(map(_format_value, rules))}"
        if isinstance(rules, list)
        else f"{name} {json.dumps(rules)}"
        for name, rules in policy.items()
    )


def _format_value(rule: object) -> str:
    return rule if isinstance(rule, str) else json.dumps(rule)


def _describe_queue(label: str, queue: QueueState) -> Text:
    if not queue.exists:
        return Text.assemble((f"{label} ", "dim"), (escape_text(queue.name), "bold"), _mark_missing(exists=False))
    alarming = label == "dead-letter queue" and queue.visible + queue.in_flight
    style = "red" if alarming else ""
    return Text.assemble(
        (f"{label} ", "dim"), (escape_text(queue.name), "bold"), (f"  {describe_contents(queue)}", style)
    )


def _mark_missing(exists: bool) -> Text:  # noqa: FBT001 - the only argument
    return Text("" if exists else "  not deployed", style="red")


def _format_age(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _to_json(value: Any) -> Any:
    """Convert nested named tuples to JSON objects."""
    if hasattr(value, "_asdict"):
        return {name: _to_json(one) for name, one in value._asdict().items()}
    return [_to_json(one) for one in value] if isinstance(value, (list, tuple)) else value
