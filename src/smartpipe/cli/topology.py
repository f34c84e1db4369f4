"""``smartpipe topology plan``, ``apply`` and ``destroy``."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from smartpipe.aws.provision import Provisioner
from smartpipe.aws.transport import AwsTransport
from smartpipe.cli.changes import as_json_text, heading, in_words, tell
from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.settings import AwsSettings, unknown_settings
from smartpipe.topology.changes import Change, pending
from smartpipe.topology.destruction import holding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.aws.provision import Survey

T = TypeVar("T")


def run_plan(targets: Sequence[str], *, every: bool, as_json: bool) -> NoReturn:
    """Show the plan and exit: 0 in sync, 1 with changes, 2 if there cannot be one."""
    try:
        survey = surveyed(targets)
    except SmartpipeError as error:
        raise ConfigError(str(error).splitlines()) from error  # a plan that cannot be made is no plan with changes
    if as_json:
        typer.echo(as_json_text(survey, survey.changes))
    else:
        _show(survey, survey.changes, every=every)
    raise typer.Exit(1 if survey.pending else 0)


def run_apply(targets: Sequence[str], *, yes: bool, as_json: bool) -> None:
    """Show the plan, ask unless told not to, and carry it out, saying each change as it is made."""
    survey = surveyed(targets)
    if not as_json:
        _show(survey, survey.changes)
    if survey.pending:
        _ask("Make these changes?", yes=yes, as_json=as_json)
        _carry_out(survey.pending, quiet=as_json)
    if as_json:
        typer.echo(as_json_text(survey, survey.pending))


def run_destroy(targets: Sequence[str], *, orphaned: bool, even_if_not_empty: bool, yes: bool, as_json: bool) -> None:
    """Show what goes, refuse while queues hold messages, ask unless told not to, and delete."""
    survey = surveyed(targets, even_if_faulty=True)
    changes = survey.destruction(orphaned=orphaned)
    if not as_json:
        _show(survey, changes, notes=False)
    full = [] if even_if_not_empty else holding(changes, survey.actual)
    if full:
        msg = "nothing is deleted: handle or move what they hold, or lose it with --even-if-not-empty"
        raise SmartpipeError("\n".join([*full, msg]))
    going = pending(changes)
    if going:
        _ask("Delete these?", yes=yes, as_json=as_json)
        _carry_out(going, quiet=as_json)
    if as_json:
        typer.echo(as_json_text(survey, going))


def surveyed(targets: Sequence[str], *, even_if_faulty: bool = False) -> Survey:
    """Compare what the targets declare with what is there; errors as those of ``Provisioner.survey``."""
    for sentence in unknown_settings():
        typer.echo(f"smartpipe: {sentence}", err=True)
    services = load_services(targets)
    return with_transport(lambda transport: Provisioner(transport).survey(services, even_if_faulty=even_if_faulty))


def with_transport(work: Callable[[AwsTransport], Awaitable[T]]) -> T:
    """Run *work* on a transport of the environment's, and close that."""

    async def run() -> T:
        transport = AwsTransport(AwsSettings.load())
        try:
            return await work(transport)
        finally:
            await transport.aclose()

    return asyncio.run(run())


def _show(survey: Survey, changes: Sequence[Change], *, every: bool = False, notes: bool = True) -> None:
    typer.echo(heading(survey.naming))
    for line in in_words(changes, every=every):
        tell(line)
    for note in survey.notes if notes else ():
        typer.echo(f"note: {note}")


def _ask(question: str, *, yes: bool, as_json: bool) -> None:
    """Go on only if somebody wants it.

    Raises:
        ConfigError: Nobody can answer.
        Exit: The answer is no; with code 1.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        msg = "it asks before it changes anything, and nobody can answer here: look at the plan, then add --yes"
        raise ConfigError(msg)
    if not typer.confirm(question):
        typer.echo("nothing was changed")
        raise typer.Exit(1)


def _carry_out(changes: Sequence[Change], *, quiet: bool) -> None:
    made: list[Change] = []

    def on_change(change: Change) -> None:
        made.append(change)
        if not quiet:
            width = len(str(len(changes)))
            typer.echo(f"  [{len(made):{width}}/{len(changes)}] {change.action} {change.kind} {change.name}")

    def work(transport: AwsTransport) -> Awaitable[Any]:
        return Provisioner(transport).apply(changes, on_change)

    with_transport(work)
    if not quiet:
        typer.echo(f"{len(made)} change{'' if len(made) == 1 else 's'} made")
