"""Runs ``smartpipe doctor``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, cast, get_args

import typer

from smartpipe.cli.export import check_choice
from smartpipe.cli.targets import load_services, read_pyproject
from smartpipe.doctor.examine import examine
from smartpipe.doctor.ignores import read_ignores
from smartpipe.doctor.lookup import find_table
from smartpipe.doctor.report import render_github, render_json, render_sarif, render_text
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from smartpipe.doctor.report import Report

FailOn = Literal["error", "warning"]


def run_doctor(targets: Sequence[str], manifests: Sequence[Path], form: str, fail_on: str) -> None:
    """Print the report, and exit with 1 if a finding is as bad as *fail_on*.

    Raises:
        ConfigError: An option, a target or pyproject.toml is wrong.
    """
    check_choice("--format", form, list(_RENDERERS))
    check_choice("--fail-on", fail_on, get_args(FailOn))
    pyproject = read_pyproject()
    ignores = read_ignores(pyproject)
    tool = find_table(pyproject, "tool", "smartpipe")
    services = load_services(targets) if targets or "services" in tool or not manifests else []
    report = examine(services, manifests, ignores, datetime.now(UTC).date())
    typer.echo(_RENDERERS[form](report), nl=False)
    if report.fails(cast("FailOn", fail_on)):
        raise typer.Exit(1)


_RENDERERS: dict[str, Callable[[Report], str]] = {
    "text": render_text,
    "json": render_json,
    "sarif": lambda report: render_sarif(report, __version__),
    "github": render_github,
}
