"""``smartpipe topology plan``, ``apply`` and ``destroy``."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from smartpipe.cli.changes import (
    ProgressLine,
    describe_changes,
    describe_differences,
    format_json,
    heading,
    print_line,
)
from smartpipe.cli.confirm import confirm
from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.settings import AwsSettings, unknown_settings
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.changes import Change, pending_changes
from smartpipe.topology.destroy import describe_full_queues
from smartpipe.transports.aws.session import AwsSession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.topology.aws.provision import PlanContext

T = TypeVar("T")


def run_plan(targets: Sequence[str], *, every: bool, as_json: bool) -> NoReturn:
    """Print the plan and exit: 0 without changes, 1 with changes, 2 if no plan is possible."""
    try:
        context = compare(targets)
    except SmartpipeError as error:
        raise ConfigError(str(error).splitlines()) from error  # exit with 2, because 1 means that there are changes
    except Exception as error:  # likewise
        traceback.print_exc()
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(format_json(context, context.changes))
    else:
        _print_plan(context, context.changes, every=every)
    raise typer.Exit(1 if context.pending else 0)


def run_apply(targets: Sequence[str], *, yes: bool, as_json: bool) -> None:
    """Print the plan, ask for confirmation, and carry it out. With *yes*, print each change when it is made instead."""
    context = compare(targets)
    asks = bool(context.pending) and not yes
    if not as_json:
        _print_plan(context, context.changes, without_pending=yes)
    if asks:
        confirm("Make these changes?", yes=yes, as_json=as_json)
    _carry_out(context, context.pending, as_json=as_json, is_listed=asks)


def run_destroy(targets: Sequence[str], *, orphaned: bool, even_if_not_empty: bool, yes: bool, as_json: bool) -> None:
    """Print the deletions, ask for confirmation unless *yes*, and delete.

    Raises:
        ConfigError: *orphaned* needs ``SMARTPIPE_APPLICATION``.
        SmartpipeError: Queues hold messages, or AWS could not be asked for orphaned resources.
    """
    if orphaned and "application" not in AwsSettings.load().model_fields_set:
        msg = (
            "--orphaned searches by the application's name: set SMARTPIPE_APPLICATION to a name that no other "
            "application has"
        )
        raise ConfigError(msg)
    context = compare(targets, ignore_errors=True, destroying=True)
    changes = context.plan_destroy(orphaned=orphaned, even_if_not_empty=even_if_not_empty)
    full = [] if even_if_not_empty else describe_full_queues(changes, context.actual)
    if not as_json:
        _print_plan(context, changes, deleting=True, without_pending=yes and not full)
    if orphaned and not context.knows_orphans:
        raise SmartpipeError("nothing is deleted: AWS did not list the resources that no TARGET declares; see the note")
    if full:
        msg = "nothing is deleted: handle or move the messages, or add --even-if-not-empty to lose them"
        raise SmartpipeError("\n".join([*full, msg]))
    deletions = pending_changes(changes)
    if deletions:
        confirm("Delete these?", yes=yes, as_json=as_json)
    kept = [change for change in changes if not change.pending]
    _carry_out(context, deletions, as_json=as_json, is_listed=not yes, kept=kept)


def compare(targets: Sequence[str], *, ignore_errors: bool = False, destroying: bool = False) -> PlanContext:
    """Compare the declarations of the targets with the deployed resources; errors as those of ``Provisioner.compare``.

    Print unknown settings to standard error.
    """
    for sentence in unknown_settings():
        print_line(f"smartpipe: {sentence}", err=True)
    services = load_services(targets)

    def work(session: AwsSession) -> Awaitable[PlanContext]:
        return Provisioner(session).compare(services, ignore_errors=ignore_errors, destroying=destroying)

    return with_session(work)


def with_session(work: Callable[[AwsSession], Awaitable[T]]) -> T:
    """Open an AWS session with the environment's settings, run *work* with it, and close it."""

    async def run() -> T:
        session = AwsSession(AwsSettings.load())
        try:
            return await work(session)
        finally:
            await session.aclose()

    return asyncio.run(run())


def _print_plan(
    context: PlanContext,
    changes: Sequence[Change],
    *,
    every: bool = False,
    deleting: bool = False,
    without_pending: bool = False,
) -> None:
    """Print the plan; with *without_pending*, leave out the changes that will be printed when they are made."""
    print_line(heading(context.naming))
    for line in describe_changes(changes, every=every, deleting=deleting, without_pending=without_pending):
        print_line(line)
    for note in context.not_read if deleting else context.notes:
        print_line(f"note: {note}")


def _carry_out(
    context: PlanContext,
    changes: Sequence[Change],
    *,
    as_json: bool,
    is_listed: bool,
    kept: Sequence[Change] | None = None,
) -> None:
    """Make *changes*; as JSON, print all at the end, with the *kept* resources, also on failure.

    Args:
        is_listed: The changes have been printed before the confirmation. A terminal then shows the progress in one
            line. Otherwise, each change is printed with its differences.
    """
    done: list[Change] = []
    progress = ProgressLine() if is_listed else None

    def on_change(change: Change) -> None:
        done.append(change)
        width = len(str(len(changes)))
        text = f"  [{len(done):{width}}/{len(changes)}] {change.action} {change.kind} {change.name}"
        if as_json:
            return
        if progress is not None:
            progress.show(text)
            return
        print_line(f"{text}  ({change.reason})" if change.reason else text)
        for line in describe_differences(change):
            print_line(line)

    def work(session: AwsSession) -> Awaitable[Any]:
        return Provisioner(session).apply(changes, on_change)

    try:
        if changes:
            with_session(work)
    except KeyboardInterrupt:
        msg = f"interrupted after {len(done)} of {len(changes)} changes: run the same command again to make the others"
        raise SmartpipeError(msg) from None
    finally:
        if progress is not None:
            progress.end()
        if as_json:
            typer.echo(format_json(context, done, kept))
    if changes and not as_json:
        typer.echo(f"{len(done)} change{'' if len(done) == 1 else 's'} made")
