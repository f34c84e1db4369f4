"""The commands of ``smartpipe schema`` and their options; they call the other modules of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smartpipe.cli.topology_app import AsJson, Targets  # noqa: TC001 - typer reads the annotations

FORMATS = ("text", "json", "github", "sarif")
MODES = ("full", "forward", "backward")

schema = typer.Typer(
    help="JSON Schemas of events: write them, compare events with their earlier versions, and document them.",
    no_args_is_help=True,
)

Directory = Annotated[Path, typer.Option(metavar="DIR", help="Directory of the schema files.")]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="git:REF|DIR",
        help="The versions to compare with: those of a git branch, tag or commit, such as git:origin/main, or those of "
        "another directory. Default: the files in --directory.",
    ),
]
SCHEMAS = Path("schemas")
CATALOGUE = Path("docs/events")


def complete_codes() -> list[str]:
    """Return the codes of findings, for the completion of a shell."""
    from smartpipe.contracts.findings import RULES

    return list(RULES)


@schema.command()
def export(targets: Targets = None, *, directory: Directory = SCHEMAS, json: AsJson = False) -> None:
    """Write the schemas of events: of services, event classes, or all events of a module."""
    from smartpipe.cli.schema.export import run_export

    run_export(targets or [], directory, as_json=json)


@schema.command()
def fixtures(
    targets: Targets = None,
    *,
    directory: Directory = SCHEMAS,
    count: Annotated[
        int, typer.Option(min=0, max=1000, metavar="N", help="Messages with random values for each version.")
    ] = 3,
    json: AsJson = False,
) -> None:
    """Write example messages of each version of events, against which consumers in any language can test."""
    from smartpipe.cli.schema.fixtures import run_fixtures

    run_fixtures(targets or [], directory, count, as_json=json)


@schema.command()
def docs(
    targets: Targets = None,
    *,
    directory: Directory = SCHEMAS,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory of the pages.")] = CATALOGUE,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="markdown or html.", autocompletion=lambda: ["markdown", "html"]
        ),
    ] = "markdown",
) -> None:
    """Write a catalogue: a page for each event, with its fields, versions, producers and consumers, and an index."""
    from smartpipe.cli.schema.catalogue import run_catalogue

    run_catalogue(targets or [], directory, output, form)


@schema.command()
def check(
    targets: Targets = None,
    *,
    against: Against = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="full, forward (older consumers can read new events) or backward (new consumers can read older "
            "events).",
            autocompletion=lambda: list(MODES),
        ),
    ] = "full",
    transitive: Annotated[
        bool,
        typer.Option("--transitive/--latest", help="Compare with all older versions, or only with the latest one."),
    ] = True,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="text, json, github or sarif.", autocompletion=lambda: list(FORMATS)
        ),
    ] = "text",
    directory: Directory = SCHEMAS,
) -> None:
    """Find changes of events that would break consumers. Exit with 0: none, 1: there are some, 2: wrong input."""
    from smartpipe.cli.schema.check import run_check

    run_check(targets or [], directory, against, mode, form, transitive=transitive)


@schema.command()
def diff(targets: Targets = None, *, against: Against = None, directory: Directory = SCHEMAS) -> None:
    """Show how events differ from their last version."""
    from smartpipe.cli.schema.diff import run_diff

    run_diff(targets or [], directory, against)


@schema.command()
def accept(
    code: Annotated[str, typer.Argument(metavar="CODE", help="Such as SC104.", autocompletion=complete_codes)],
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="The type of the event.")],
    targets: Targets = None,
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason for which the change is safe.")],
    path: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Only the finding of this field, as the check shows it.")
    ] = None,
    against: Against = None,
    directory: Directory = SCHEMAS,
) -> None:
    """Accept a finding of the check. The reason and the date are kept in accepted.json, for git."""
    from smartpipe.cli.schema.check import run_accept

    run_accept(targets or [], directory, against, reason, code, type_, path)
