"""Examine services, settings and manifests, and make one report of all findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.doctor.declared import Declarations, examine_declarations
from smartpipe.doctor.events import examine_events
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.ignores import apply_ignores
from smartpipe.doctor.report import Report, sort_findings
from smartpipe.errors import ConfigError
from smartpipe.settings import WorkerSettings, unknown_settings
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET, TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from smartpipe.doctor.ignores import Ignore
    from smartpipe.service import Service


def examine(services: Sequence[Service], ignores: Sequence[Ignore], today: date) -> Report:
    """Apply the rules of all layers, and ignore the findings that pyproject.toml ignores."""
    settings, table_and_bucket, layer = read_environment()
    layers = [layer]
    if services:
        declared = Declarations(services, settings, table_and_bucket)
        layers += [examine_declarations(declared), examine_events(services)]
    findings = [finding for one in layers for finding in one.findings]
    not_seen = [sentence for one in layers for sentence in one.not_seen]
    kept = sort_findings(apply_ignores(sort_findings(findings), ignores, today))
    return Report(kept, not_seen, len(services), 0)


def read_environment() -> tuple[WorkerSettings, TableAndBucket, Examined]:
    """Return the settings of this environment, or the defaults if one of them is wrong, with findings about them."""
    findings = [
        Finding(code="SP114", resource="environment", message=sentence, remedy="correct or remove the variable")
        for sentence in unknown_settings()
    ]
    problems: list[str] = []
    try:
        settings = WorkerSettings.load()
    except ConfigError as error:
        problems += error.problems
        settings = WorkerSettings.model_construct()
    try:
        table_and_bucket = TableAndBucket.from_environment()
    except ConfigError as error:
        problems += error.problems
        table_and_bucket = NO_TABLE_AND_BUCKET
    findings += [
        Finding(code="SP113", resource="environment", message=problem, remedy="set a valid value, or unset it")
        for problem in problems
    ]
    not_seen = (
        "settings of other environments: this report uses the SMARTPIPE_* variables of this one: drain "
        f"{settings.drain_seconds:g} s, concurrency {settings.concurrency}, processes {settings.processes}"
    )
    return settings, table_and_bucket, Examined(findings, [not_seen])
