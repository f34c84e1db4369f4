"""Write files for Grafana, Prometheus and CloudWatch. It calls no service."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from smartpipe.cli.export import check_choice, format_json, write_directory, write_or_print
from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError
from smartpipe.monitoring.prometheus_rules import write_rule_file
from smartpipe.settings import AwsSettings
from smartpipe.telemetry.histograms import HANDLER_BOUNDS
from smartpipe.topology.export.cloudformation import build_alarm_template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from smartpipe.monitoring.rules import AlertOptions

ALERT_FORMATS = ("prometheus", "cloudwatch")
DASHBOARD_FORMATS = ("grafana",)
_LABEL = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)=(.+)")
_OWN_LABELS = frozenset({"service", "queue", "severity", "alertname"})


def run_alerts(
    targets: Sequence[str], form: str, output: Path | None, options: AlertOptions, labels: Sequence[str]
) -> None:
    """Print the alerts for the services of *targets* in the format *form*, or write them to the file *output*.

    Raises:
        ConfigError: An option is wrong, no service has handlers, or the file cannot be written.
    """
    check_choice("--format", form, ALERT_FORMATS)
    for name, seconds in (("promise", options.promise_seconds), ("slow-handler", options.slow_handler_seconds)):
        if not (math.isfinite(seconds) and seconds > 0):
            msg = f"--{name} {seconds:g} must be a number of seconds above 0"
            raise ConfigError(msg)
    options = options._replace(labels=_parse_labels(labels))
    if form == "cloudwatch" and options.labels:
        msg = "--label is for --format prometheus: CloudWatch's metrics of queues and topics have no such labels"
        raise ConfigError(msg)
    services = load_services(targets)
    settings = AwsSettings.load()
    if form == "prometheus":
        if options.slow_handler_seconds >= HANDLER_BOUNDS[-1]:
            msg = (
                f"--slow-handler {options.slow_handler_seconds:g} must be below {HANDLER_BOUNDS[-1]:g}: "
                "smartpipe_handler_seconds does not distinguish longer calls, so the alert would never fire"
            )
            raise ConfigError(msg)
        text = write_rule_file(services, application=settings.application, options=options)
    else:
        template = build_alarm_template(
            services, prefix=settings.prefix, application=settings.application, options=options
        )
        text = format_json(template)
    write_or_print(text, form, output)


def run_dashboards(targets: Sequence[str], form: str, directory: Path, labels: Sequence[str]) -> None:
    """Write the dashboards for the services of *targets* into *directory*, and print which of them have changed.

    Raises:
        ConfigError: An option is wrong, no service has handlers, or a file cannot be written.
    """
    from smartpipe.monitoring.dashboards import build_dashboards

    check_choice("--format", form, DASHBOARD_FORMATS)
    services = load_services(targets)
    application = AwsSettings.load().application
    dashboards = build_dashboards(services, application=application, labels=_parse_labels(labels))
    write_directory(directory, {f"{name}.json": format_json(dashboard) for name, dashboard in dashboards.items()})


def _parse_labels(labels: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for label in labels:
        parsed = _LABEL.fullmatch(label)
        if parsed is None:
            msg = f"--label {label!r} is not NAME=VALUE, such as env=prod"
            raise ConfigError(msg)
        if parsed[1] in _OWN_LABELS:
            msg = f"--label {label!r}: {parsed[1]!r} is a label that smartpipe sets; name one that Prometheus adds"
            raise ConfigError(msg)
        found[parsed[1]] = parsed[2]
    return found
