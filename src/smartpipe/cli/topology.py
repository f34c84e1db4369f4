"""``smartpipe topology``."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import typer

from smartpipe.aws.provision import Provisioner
from smartpipe.aws.transport import AwsTransport
from smartpipe.cli.targets import load_services
from smartpipe.settings import AwsSettings, unknown_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.service import Service
    from smartpipe.topology.plan import Change


def run_apply(targets: Sequence[str], *, as_json: bool) -> None:
    """Apply, saying each change as it is made."""
    for sentence in unknown_settings():
        typer.echo(f"smartpipe: {sentence}", err=True)
    changes = asyncio.run(_apply(load_services(targets), AwsSettings.load(), quiet=as_json))
    if as_json:
        typer.echo(json.dumps([change._asdict() for change in changes], indent=2))
    elif changes:
        typer.echo(f"{len(changes)} change{'s' if len(changes) > 1 else ''} made")
    else:
        typer.echo("nothing to change")


async def _apply(services: Sequence[Service], settings: AwsSettings, *, quiet: bool) -> list[Change]:
    transport = AwsTransport(settings)
    try:
        provisioner = Provisioner(transport)
        changes = await provisioner.plan(services)
        await provisioner.apply(changes, lambda change: None if quiet else typer.echo(f"  {change}"))
    finally:
        await transport.aclose()
    return changes
