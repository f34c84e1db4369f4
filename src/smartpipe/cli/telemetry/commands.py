"""The commands of ``smartpipe telemetry`` and their options; they call cli.telemetry.files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smartpipe.cli.topology_app import Output, Targets  # noqa: TC001 - typer reads the annotations

ALERT_FORMATS = ("prometheus", "cloudwatch")
DASHBOARD_FORMATS = ("grafana",)

telemetry = typer.Typer(
    help="Dashboards and alerts for the metrics of services, as files for Grafana, Prometheus and CloudWatch.",
    no_args_is_help=True,
)

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="NAME=VALUE",
        help="A label that Prometheus adds to all samples of these services, such as env=prod. Can be repeated.",
    ),
]


@telemetry.command()
def dashboards(
    targets: Targets = None,
    *,
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="grafana.", autocompletion=lambda: list(DASHBOARD_FORMATS)),
    ] = "grafana",
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory for smartpipe-fleet.json and smartpipe-service.json.")
    ] = Path("dashboards"),
    labels: Labels = None,
) -> None:
    """Write two dashboards: one with all services, and one that shows a service and its queues in detail."""
    from smartpipe.cli.telemetry.files import run_dashboards

    run_dashboards(targets or [], form, directory, labels or [])


@telemetry.command()
def alerts(
    targets: Targets = None,
    *,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"{' or '.join(ALERT_FORMATS)}.",
            autocompletion=lambda: list(ALERT_FORMATS),
        ),
    ],
    output: Output = None,
    promise: Annotated[
        float, typer.Option(metavar="SECONDS", help="The time in which your events are to be handled.")
    ] = 300,
    slow_handler: Annotated[
        float, typer.Option(metavar="SECONDS", help="The time that at most 5 % of a handler's calls may exceed.")
    ] = 30,
    runbooks: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The address of your copy of the runbooks. Default: docs/runbooks, their folder in smartpipe's "
            "repository.",
        ),
    ] = None,
    labels: Labels = None,
) -> None:
    """Print alert rules for Prometheus, or a CloudFormation template with alarms for CloudWatch."""
    from smartpipe.cli.telemetry.files import run_alerts
    from smartpipe.monitoring.rules import RUNBOOKS, AlertOptions

    options = AlertOptions(promise, slow_handler, runbooks or RUNBOOKS)
    run_alerts(targets or [], form, output, options, labels or [])
