"""``smartpipe dlq``: its commands and their options; what they do is in cli.dlq and cli.redrive."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from smartpipe.cli.topology_app import AsJson, Targets, Yes  # noqa: TC001 - typer reads the annotations

dlq = typer.Typer(
    help="Dead-letter queues of services: look into them, send back what is in them, or delete it.",
    no_args_is_help=True,
)

QueueName = Annotated[
    str | None, typer.Option("--queue", help="Only this one, by its name or that of the queue it is for.")
]
Types = Annotated[list[str] | None, typer.Option("--type", help="Only events of this type; may be repeated.")]
Reasons = Annotated[
    list[str] | None,
    typer.Option(
        "--reason",
        help="Only with this reason, as peek shows it (none: moved by SQS itself), or with this text in the error; "
        "may be repeated.",
    ),
]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Only this event, or message, by its id; may be repeated.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Not more than so many of each queue.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]

SECONDS_A_DAY = 86_400


@dlq.command(name="list")
def list_(targets: Targets = None, *, json: AsJson = False) -> None:
    """List dead-letter queues with how much is in them, and how old the oldest is where CloudWatch knows."""
    from smartpipe.cli.dlq import run_list

    run_list(targets or [], as_json=json)


@dlq.command()
def peek(
    targets: Targets = None,
    *,
    queue: QueueName = None,
    types: Types = None,
    reasons: Reasons = None,
    ids: Ids = None,
    limit: Annotated[int, typer.Option(min=1, help="Not more than so many of each queue.")] = 10,
    json: AsJson = False,
) -> None:
    """Show dead letters and leave them where they are. SQS counts it as a receive, and hides them meanwhile."""
    from smartpipe.cli.dlq import run_peek
    from smartpipe.dlq.messages import Selection

    selection = Selection(types=tuple(types or ()), reasons=tuple(reasons or ()), ids=tuple(ids or ()), limit=limit)
    run_peek(targets or [], queue, selection, as_json=json)


@dlq.command()
def redrive(  # noqa: PLR0913 - typer makes an option of each
    targets: Targets = None,
    *,
    queue: QueueName = None,
    types: Types = None,
    reasons: Reasons = None,
    ids: Ids = None,
    limit: Limit = None,
    rate: Annotated[float | None, typer.Option(min=0.1, max=10_000, help="Not more than so many a second.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what idempotent handlers have done already: they do it again.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Send dead letters back to the queue that they came from: shows what would go, and asks."""
    from smartpipe.cli.redrive import Manner, run_redrive
    from smartpipe.dlq.messages import Selection

    selection = Selection(types=tuple(types or ()), reasons=tuple(reasons or ()), ids=tuple(ids or ()), limit=limit)
    run_redrive(
        targets or [],
        queue,
        selection,
        Manner(rate_per_second=rate, force=force, dry_run=dry_run, yes=yes, as_json=json),
    )


@dlq.command()
def purge(  # noqa: PLR0913 - typer makes an option of each
    targets: Targets = None,
    *,
    queue: Annotated[str, typer.Option("--queue", help="Which, by its name or that of the queue it is for.")],
    types: Types = None,
    reasons: Reasons = None,
    ids: Ids = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="Only what was sent before so many days.")
    ] = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Delete dead letters for good: shows what would go, and asks."""
    from smartpipe.cli.redrive import Manner, run_purge
    from smartpipe.dlq.messages import Selection

    selection = Selection(
        types=tuple(types or ()),
        reasons=tuple(reasons or ()),
        ids=tuple(ids or ()),
        sent_before=None if older_than_days is None else time.time() - older_than_days * SECONDS_A_DAY,
        limit=limit,
    )
    run_purge(targets or [], queue, selection, Manner(dry_run=dry_run, yes=yes, as_json=json))
