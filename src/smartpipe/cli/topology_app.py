"""The commands of ``smartpipe topology`` and their options; they call cli.topology, cli.show and cli.export.

The other commands use the options at the top of this module, too.
"""

from __future__ import annotations

import inspect
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

EXPORT_FORMATS = ("cloudformation", "terraform", "asyncapi", "mermaid", "dot", "iam")


def complete_targets() -> list[str]:
    """Return the services in pyproject.toml, for the completion of a shell."""
    from smartpipe.cli.targets import read_configured_targets
    from smartpipe.errors import ConfigError

    try:
        return read_configured_targets()
    except ConfigError:
        return []


def complete_types(ctx: typer.Context) -> list[str]:
    """Return the event types of the TARGETs, or of the services in pyproject.toml, for the completion of a shell."""
    from smartpipe.cli.targets import load_events
    from smartpipe.errors import ConfigError

    try:
        with redirect_stdout(io.StringIO()):  # a module that prints would add to the suggestions
            events = load_events(ctx.params.get("targets") or [])
    except ConfigError:
        return []
    return sorted({event.__contract__.type for event in events if event.__contract__})


topology = typer.Typer(
    help="Create, compare and delete the topics, queues and subscriptions that services declare. Run it apart from "
    "workers.",
    no_args_is_help=True,
)

TARGET = "TARGET"
TARGET_HELP = {
    "": "TARGET is module:attribute of a Service, as in shop:service. Default: services in [tool.smartpipe] of "
    "pyproject.toml.",
    "worker": "TARGET is module:attribute of a Service, as in shop:service. Default: the one in [tool.smartpipe] of "
    "pyproject.toml. If you name several, they run together in one process.",
    "publish": "TARGET is module:attribute of a Service or of an event class, as in shop:service, or a module that "
    "declares events. Default: services in [tool.smartpipe] of pyproject.toml. TYPE is the type of one of their "
    "events, as in order.placed.",
}
"""By the function of the command."""
Targets = Annotated[list[str] | None, typer.Argument(metavar=TARGET, hidden=True, autocompletion=complete_targets)]
"""Hidden, because typer would show the type of a list in the help. ``show_whole_help`` describes it instead."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also the error if the command fails.")]
Output = Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file instead of standard output.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


@topology.command()
def plan(
    targets: Targets = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="List unchanged resources too.")] = False,
    json: AsJson = False,
) -> None:
    """Show the changes that apply would make. Exit with 0: no changes, 1: changes, 2: no plan is possible."""
    from smartpipe.cli.topology import run_plan

    run_plan(targets or [], every=every, as_json=json)


@topology.command()
def apply(targets: Targets = None, *, yes: Yes = False, json: AsJson = False) -> None:
    """Create the resources that the services declare, and update those that differ. You can always run it again."""
    from smartpipe.cli.topology import run_apply

    run_apply(targets or [], yes=yes, as_json=json)


@topology.command()
def destroy(
    targets: Targets = None,
    *,
    orphaned: Annotated[
        bool,
        typer.Option(
            "--orphaned", help="Also delete resources that carry the application's tags and that no TARGET declares."
        ),
    ] = False,
    even_if_not_empty: Annotated[
        bool, typer.Option("--even-if-not-empty", help="Also delete queues that hold messages, and lose these.")
    ] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Delete the resources that the services declare, except those that others own or may still use."""
    from smartpipe.cli.topology import run_destroy

    run_destroy(targets or [], orphaned=orphaned, even_if_not_empty=even_if_not_empty, yes=yes, as_json=json)


@topology.command()
def show(targets: Targets = None, *, json: AsJson = False) -> None:
    """Print topics, subscriptions, queues and dead-letter queues as a tree, with the number of messages in them."""
    from smartpipe.cli.show import run_show

    run_show(targets or [], as_json=json)


@topology.command()
def export(
    targets: Targets = None,
    *,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"{', '.join(EXPORT_FORMATS[:-1])} or {EXPORT_FORMATS[-1]}.",
            autocompletion=lambda: list(EXPORT_FORMATS),
        ),
    ],
    output: Output = None,
    alarms: Annotated[
        bool, typer.Option("--alarms", help="Add CloudWatch alarms to a CloudFormation template.")
    ] = False,
) -> None:
    """Print the topology in the format of another tool: a template, a document, a picture or IAM policies."""
    from smartpipe.cli.export import run_export

    run_export(targets or [], form, output, alarms=alarms)


def show_whole_help(group: typer.Typer) -> None:
    """Show the whole description of each command in the list of commands, which typer cuts, and describe TARGET."""
    for command in group.registered_commands:
        function = command.callback
        command.short_help = inspect.getdoc(function)
        if function is not None and "targets" in inspect.signature(function).parameters:
            command.epilog = TARGET_HELP.get(function.__name__, TARGET_HELP[""])
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            inner.short_help = inner.typer_instance.info.help
            show_whole_help(inner.typer_instance)
