"""``smartpipe dlq``: its commands and their options. cli.dlq and cli.redrive implement them."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from smartpipe.cli.topology_app import AsJson, Targets, Yes, complete_types

dlq = typer.Typer(
    help="Work on dead-letter queues of services: list and show messages, send them back, or delete them.",
    no_args_is_help=True,
)

QueueName = Annotated[
    str | None,
    typer.Option(
        "--queue",
        metavar="NAME",
        help="Only this dead-letter queue, by its name or the name of the queue it belongs to.",
    ),
]
Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type", metavar="TYPE", help="Only events of this type. Can be repeated.", autocompletion=complete_types
    ),
]
Reasons = Annotated[
    list[str] | None,
    typer.Option(
        "--reason",
        metavar="REASON",
        help="Only messages with this reason, as shown by peek ('none': moved by SQS itself), or with this text in the "
        "error. Can be repeated.",
    ),
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--id", metavar="ID", help="Only the event or message with this id. Can be repeated."),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="The maximum number of messages from each queue.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")]

SECONDS_A_DAY = 86_400


@dlq.command(name="list")
def list_(targets: Targets = None, *, json: AsJson = False) -> None:
    """List dead-letter queues with their number of messages and, if CloudWatch knows it, the age of the oldest."""
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
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="The maximum number of messages from each queue.")
    ] = 10,
    json: AsJson = False,
) -> None:
    """Show dead-letter messages, and return them to the queue. SQS counts a receive, and hides them meanwhile."""
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
    rate: Annotated[
        float | None, typer.Option(min=0.1, max=10_000, metavar="N", help="The maximum number of messages per second.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also move messages that idempotent handlers have handled. They will handle them again."
        ),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Send dead-letter messages back to the queue that they came from. Shows the messages first, and asks."""
    from smartpipe.cli.redrive import RedriveOptions, run_redrive
    from smartpipe.dlq.messages import Selection

    selection = Selection(types=tuple(types or ()), reasons=tuple(reasons or ()), ids=tuple(ids or ()), limit=limit)
    run_redrive(
        targets or [],
        queue,
        selection,
        RedriveOptions(rate_per_second=rate, force=force, dry_run=dry_run, yes=yes, as_json=json),
    )


@dlq.command()
def purge(  # noqa: PLR0913 - typer makes an option of each
    targets: Targets = None,
    *,
    queue: Annotated[
        str,
        typer.Option(
            "--queue", metavar="NAME", help="The dead-letter queue, by its name or the name of the queue it belongs to."
        ),
    ],
    types: Types = None,
    reasons: Reasons = None,
    ids: Ids = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Only messages sent more than this number of days ago.")
    ] = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Delete dead-letter messages permanently. Shows the messages first, and asks."""
    from smartpipe.cli.redrive import RedriveOptions, run_purge
    from smartpipe.dlq.messages import Selection

    selection = Selection(
        types=tuple(types or ()),
        reasons=tuple(reasons or ()),
        ids=tuple(ids or ()),
        sent_before=None if older_than_days is None else time.time() - older_than_days * SECONDS_A_DAY,
        limit=limit,
    )
    run_purge(targets or [], queue, selection, RedriveOptions(dry_run=dry_run, yes=yes, as_json=json))
