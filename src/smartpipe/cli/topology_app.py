"""``smartpipe topology``: its commands and their options; what they do is in cli.topology, cli.show and cli.export."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer

topology = typer.Typer(
    help="Topics, queues and subscriptions that services declare: an admin process, apart from workers.",
    no_args_is_help=True,
)

Targets = Annotated[
    list[str] | None, typer.Argument(help="module:attribute of each Service; default: services in [tool.smartpipe]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@topology.command()
def plan(
    targets: Targets = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="List what is unchanged too.")] = False,
    json: AsJson = False,
) -> None:
    """Show what apply would change. Exit 0: nothing; 1: something; 2: it cannot be said or done."""
    from smartpipe.cli.topology import run_plan

    run_plan(targets or [], every=every, as_json=json)


@topology.command()
def apply(targets: Targets = None, *, yes: Yes = False, json: AsJson = False) -> None:
    """Create what the services declare and bring into line what differs. Twice is once."""
    from smartpipe.cli.topology import run_apply

    run_apply(targets or [], yes=yes, as_json=json)


@topology.command()
def destroy(
    targets: Targets = None,
    *,
    orphaned: Annotated[
        bool, typer.Option("--orphaned", help="Also what carries the application's tags and no TARGET declares.")
    ] = False,
    even_if_not_empty: Annotated[
        bool, typer.Option("--even-if-not-empty", help="Also queues that hold messages, which are lost.")
    ] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Delete what the services declare and carries this application's tags; keep what others may still use."""
    from smartpipe.cli.topology import run_destroy

    run_destroy(targets or [], orphaned=orphaned, even_if_not_empty=even_if_not_empty, yes=yes, as_json=json)


@topology.command()
def show(targets: Targets = None, *, json: AsJson = False) -> None:
    """Print topics, subscriptions, queues and dead-letter queues as a tree, with what is in them now."""
    from smartpipe.cli.show import run_show

    run_show(targets or [], as_json=json)


@topology.command()
def export(
    targets: Targets = None,
    *,
    form: Annotated[str, typer.Option("--format", help="cloudformation, terraform, asyncapi, mermaid, dot or iam.")],
    output: Annotated[Path | None, typer.Option(help="Write it there instead of to standard output.")] = None,
) -> None:
    """Print the topology for other tools: templates that create the very same, documents, pictures, policies."""
    from smartpipe.cli.export import run_export

    run_export(targets or [], form, output)
