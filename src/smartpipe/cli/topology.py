"""``smartpipe topology plan``, ``apply`` and ``destroy``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from smartpipe.cli.changes import as_json_text, heading, in_words, tell
from smartpipe.cli.confirm import confirm
from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.settings import AwsSettings, unknown_settings
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.changes import Change, pending_changes
from smartpipe.topology.destroy import holding
from smartpipe.transports.open import create_aws_transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.topology.aws.provision import PlanContext
    from smartpipe.transports.aws.transport import AwsTransport

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
        confirm("Make these changes?", yes=yes, as_json=as_json)
    _carry_out(survey, survey.pending, as_json=as_json)


def run_destroy(targets: Sequence[str], *, orphaned: bool, even_if_not_empty: bool, yes: bool, as_json: bool) -> None:
    """Show what goes, refuse while queues hold messages, ask unless told not to, and delete."""
    if orphaned and "application" not in AwsSettings.load().model_fields_set:
        msg = "--orphaned goes by the application's name: set SMARTPIPE_APPLICATION to one that others do not share"
        raise ConfigError(msg)
    survey = surveyed(targets, even_if_faulty=True, destroying=True)
    changes = survey.destruction(orphaned=orphaned, even_if_not_empty=even_if_not_empty)
    if not as_json:
        _show(survey, changes, deleting=True)
    if orphaned and not survey.knows_orphans:
        raise SmartpipeError("nothing is deleted: what no TARGET declares is not known, as the note says")
    full = [] if even_if_not_empty else holding(changes, survey.actual)
    if full:
        msg = "nothing is deleted: handle or move what they hold, or lose it with --even-if-not-empty"
        raise SmartpipeError("\n".join([*full, msg]))
    going = pending_changes(changes)
    if going:
        confirm("Delete these?", yes=yes, as_json=as_json)
    _carry_out(survey, going, as_json=as_json, kept=[change for change in changes if not change.pending])


def surveyed(targets: Sequence[str], *, even_if_faulty: bool = False, destroying: bool = False) -> PlanContext:
    """Compare what the targets declare with what is there; errors as those of ``Provisioner.survey``."""
    for sentence in unknown_settings():
        tell(f"smartpipe: {sentence}", err=True)
    services = load_services(targets)

    def work(transport: AwsTransport) -> Awaitable[PlanContext]:
        return Provisioner(transport).survey(services, even_if_faulty=even_if_faulty, destroying=destroying)

    return with_transport(work)


def with_transport(work: Callable[[AwsTransport], Awaitable[T]]) -> T:
    """Run *work* on a transport of the environment's, and close that."""

    async def run() -> T:
        transport = create_aws_transport(AwsSettings.load())
        try:
            return await work(transport)
        finally:
            await transport.aclose()

    return asyncio.run(run())


def _show(survey: PlanContext, changes: Sequence[Change], *, every: bool = False, deleting: bool = False) -> None:
    tell(heading(survey.naming))
    for line in in_words(changes, every=every, deleting=deleting):
        tell(line)
    for note in survey.not_seen if deleting else survey.notes:
        tell(f"note: {note}")


def _carry_out(
    survey: PlanContext, changes: Sequence[Change], *, as_json: bool, kept: Sequence[Change] | None = None
) -> None:
    """Make *changes* and print each; as JSON, print all at the end, with the *kept* resources, also on failure."""
    made: list[Change] = []

    def on_change(change: Change) -> None:
        made.append(change)
        if not as_json:
            width = len(str(len(changes)))
            tell(f"  [{len(made):{width}}/{len(changes)}] {change.action} {change.kind} {change.name}")

    def work(transport: AwsTransport) -> Awaitable[Any]:
        return Provisioner(transport).apply(changes, on_change)

    try:
        if changes:
            with_transport(work)
    except KeyboardInterrupt:
        msg = f"interrupted after {len(made)} of {len(changes)} changes: the same command again makes the rest"
        raise SmartpipeError(msg) from None
    finally:
        if as_json:
            typer.echo(as_json_text(survey, made, kept))
    if changes and not as_json:
        typer.echo(f"{len(made)} change{'' if len(made) == 1 else 's'} made")
