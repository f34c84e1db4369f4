"""``smartpipe topology export``. Only ``iam`` asks AWS anything: whose account it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from smartpipe.cli.targets import load_services
from smartpipe.errors import ConfigError
from smartpipe.settings import AwsSettings
from smartpipe.topology.export.asyncapi import document
from smartpipe.topology.export.cloudformation import template
from smartpipe.topology.export.iam import policies
from smartpipe.topology.export.pictures import dot, mermaid
from smartpipe.topology.export.terraform import configuration
from smartpipe.topology.table_and_bucket import TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from smartpipe.service import Service

_TEMPLATES = {"cloudformation": template, "terraform": configuration, "asyncapi": document}
_PICTURES = {"mermaid": mermaid, "dot": dot}
FORMATS = (*_TEMPLATES, *_PICTURES, "iam")


def run_export(targets: Sequence[str], form: str, output: Path | None) -> None:
    """Print the topology of *targets* in the format *form*, or write it to *output* and say so.

    Raises:
        ConfigError: An unknown format, or what the format cannot say of these services.
    """
    if form not in FORMATS:
        msg = f"--format {form!r} is none of {', '.join(FORMATS)}"
        raise ConfigError(msg)
    text = _text(load_services(targets), form)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        msg = f"--output {output} cannot be written: {error.strerror}"
        raise ConfigError(msg) from None
    typer.echo(f"{form} written to {output}")


def _text(services: Sequence[Service], form: str) -> str:
    if form in _PICTURES:
        return _PICTURES[form](services)
    if form == "iam":
        return _json(_policies(services))
    settings = AwsSettings.load()
    return _json(_TEMPLATES[form](services, prefix=settings.prefix, application=settings.application))


def _policies(services: Sequence[Service]) -> dict[str, Any]:
    """Return each service's policies by its name."""
    from smartpipe.cli.topology import with_transport

    naming = with_transport(lambda transport: transport.addresses.naming())
    companions = TableAndBucket.from_environment()
    by_name = sorted(services, key=lambda one: one.name)
    return {service.name: policies(service, naming, companions) for service in by_name}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
