"""``smartpipe topology export``. Only ``iam`` calls AWS, to find out the account."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from smartpipe.service import Service

FORMATS = ("cloudformation", "terraform", "asyncapi", "mermaid", "dot", "iam")


def run_export(targets: Sequence[str], form: str, output: Path | None, *, alarms: bool = False) -> None:
    """Print the topology of *targets* in the format *form*, or write it to the file *output*.

    Args:
        alarms: Add CloudWatch alarms to a CloudFormation template.

    Raises:
        ConfigError: The format is unknown, or it cannot represent these services; or the file cannot be written.
    """
    check_choice("--format", form, FORMATS)
    if alarms and form != "cloudformation":
        msg = (
            f"--alarms is for --format cloudformation, not {form}; `smartpipe telemetry alerts --format cloudwatch` "
            "prints a template with only the alarms"
        )
        raise ConfigError(msg)
    write_or_print(_render(load_services(targets), form, alarms=alarms), form, output)


def write_or_print(text: str, form: str, output: Path | None) -> None:
    """Write *text* to the file *output*, or print it.

    Raises:
        ConfigError: The file cannot be written.
    """
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        msg = f"--output {output} cannot be written: {error.strerror}"
        raise ConfigError(msg) from None
    typer.echo(f"{form} written to {output}")


def _render(services: Sequence[Service], form: str, *, alarms: bool) -> str:
    """Return the topology in the format *form*. Other commands import this module, so the formats are imported here."""
    if form in {"mermaid", "dot"}:
        from smartpipe.topology.export.pictures import draw_dot, draw_mermaid

        return draw_dot(services) if form == "dot" else draw_mermaid(services)
    if form == "iam":
        return format_json(_build_policies(services))
    return format_json(_build_document(services, form, alarms=alarms))


def _build_document(services: Sequence[Service], form: str, *, alarms: bool) -> dict[str, Any]:
    from smartpipe.monitoring.rules import AlertOptions
    from smartpipe.settings import AwsSettings
    from smartpipe.topology.export.asyncapi import build_document
    from smartpipe.topology.export.cloudformation import build_template
    from smartpipe.topology.export.terraform import build_configuration

    settings = AwsSettings.load()
    prefix, application = settings.prefix, settings.application
    if alarms:
        return build_template(services, prefix=prefix, application=application, alarms=AlertOptions())
    build = {"cloudformation": build_template, "terraform": build_configuration, "asyncapi": build_document}[form]
    return build(services, prefix=prefix, application=application)


def _build_policies(services: Sequence[Service]) -> dict[str, Any]:
    """Return the policies of each service by its name."""
    from smartpipe.cli.topology import with_session
    from smartpipe.settings import WorkerSettings
    from smartpipe.topology.export.iam import build_policies, describe_split_policies
    from smartpipe.topology.table_and_bucket import TableAndBucket

    naming = with_session(lambda session: session.addresses.naming())
    table_and_bucket = TableAndBucket.from_environment()
    reads_ages = WorkerSettings.load().queue_age_seconds > 0
    by_name = sorted(services, key=lambda one: one.name)
    policies = {
        service.name: build_policies(service, naming, table_and_bucket, reads_ages=reads_ages) for service in by_name
    }
    for name, found in policies.items():
        for sentence in describe_split_policies(name, found):
            typer.echo(f"smartpipe: {sentence}", err=True)
    return policies


def format_json(value: Any) -> str:
    """Return *value* as indented JSON, with a line end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_directory(directory: Path, files: Mapping[str, str]) -> None:
    """Write files by name, and print which of them have changed.

    Raises:
        ConfigError: A file cannot be written.
    """
    from smartpipe.contracts.files import write_text

    for name, text in files.items():
        changed = write_text(directory / name, text)
        typer.echo(f"  {'written' if changed else 'unchanged'}  {(directory / name).as_posix()}")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError if the *value* of an option is not one of *choices*."""
    if value not in choices:
        hint = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        raise ConfigError(f"{option} {value!r} is unknown: use {hint}")
