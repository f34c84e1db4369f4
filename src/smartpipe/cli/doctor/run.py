"""Runs ``smartpipe doctor``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import typer

from smartpipe.cli.export import check_choice
from smartpipe.cli.targets import load_services, read_pyproject
from smartpipe.doctor.examine import examine, read_environment
from smartpipe.doctor.ignores import read_ignores
from smartpipe.doctor.lookup import find_table
from smartpipe.doctor.report import render_github, render_json, render_sarif, render_text
from smartpipe.errors import ConfigError
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from smartpipe.doctor.findings import Examined
    from smartpipe.doctor.report import Report
    from smartpipe.service import Service
    from smartpipe.transports.aws.session import AwsSession

FailOn = Literal["error", "warning"]


def check_options(*, costs: bool, live: bool, manifests: Sequence[Path] | None, messages_per_day: float | None) -> None:
    """Raise ConfigError if options contradict each other."""
    if costs and (live or manifests):
        msg = f"--costs prints only an estimate: run doctor again for {'--live' if live else '--manifest'}"
        raise ConfigError(msg)
    if messages_per_day is not None and not costs:
        raise ConfigError("--messages-per-day is the rate for an estimate: add --costs")


def run_doctor(
    targets: Sequence[str], manifests: Sequence[Path], form: str, fail_on: str, *, live: bool = False
) -> None:
    """Print the report, and exit with 1 if a finding is as bad as *fail_on*.

    Args:
        live: Also examine the account of this environment.

    Raises:
        ConfigError: An option, a target, pyproject.toml or, with *live*, the AWS configuration is wrong.
    """
    check_choice("--format", form, list(_RENDERERS))
    check_choice("--fail-on", fail_on, get_args(FailOn))
    pyproject = read_pyproject()
    ignores = read_ignores(pyproject)
    tool = find_table(pyproject, "tool", "smartpipe")
    services = load_services(targets) if targets or live or "services" in tool or not manifests else []
    found, account = _examine_live(services, pyproject) if live else (None, None)
    report = examine(services, manifests, ignores, datetime.now(UTC).date(), found, account, pyproject)
    typer.echo(_RENDERERS[form](report), nl=False)
    if report.fails(cast("FailOn", fail_on)):
        raise typer.Exit(1)


def _examine_live(services: Sequence[Service], pyproject: dict[str, Any]) -> tuple[Examined, str]:
    """Return the result of the live layer, and the account for the report."""
    from smartpipe.cli.topology import with_session
    from smartpipe.doctor.costs.options import read_own_prices
    from smartpipe.doctor.live.examine import examine_account

    prices = read_own_prices(pyproject)

    async def work(session: AwsSession) -> tuple[Examined, str]:
        return await examine_account(session, services, read_environment(), prices)

    return with_session(work)


_RENDERERS: dict[str, Callable[[Report], str]] = {
    "text": render_text,
    "json": render_json,
    "sarif": lambda report: render_sarif(report, __version__),
    "github": render_github,
}


def run_costs(targets: Sequence[str], form: str, messages_per_day: float | None) -> None:
    """Print the estimate of the monthly bill.

    Raises:
        ConfigError: An option, a target, a setting or pyproject.toml is wrong.
    """
    from smartpipe.doctor.costs.estimate import Known, estimate
    from smartpipe.doctor.costs.options import read_cost_options
    from smartpipe.doctor.costs.report import render_costs_json, render_costs_text
    from smartpipe.settings import PayloadSettings, WorkerSettings
    from smartpipe.topology.table_and_bucket import TableAndBucket

    check_choice("--format", form, ["text", "json"])
    services = load_services(targets)
    types = {
        contract.type
        for service in services
        for contract in [*service.published, *(one for binding in service.bindings for one in binding.contracts)]
    }
    options = read_cost_options(read_pyproject(), types, messages_per_day)
    uses_dynamodb = TableAndBucket.from_environment().claims_table is not None
    found = estimate(services, options, Known(WorkerSettings.load(), PayloadSettings.load(), uses_dynamodb))
    typer.echo(render_costs_json(found) if form == "json" else render_costs_text(found), nl=False)
