"""The commands of ``smartpipe deploy`` and their options; they call cli.deploy.export."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer

from smartpipe.cli.topology_app import Output, Targets  # noqa: TC001 - typer reads the annotations

DEPLOY_FORMATS = (
    "kubernetes", "compose", "dockerfile", "ecs", "terraform", "ansible", "github", "codebuild", "jenkins",
)  # fmt: skip

deploy = typer.Typer(help="Files that run services in containers.", no_args_is_help=True)


@deploy.callback()
def group() -> None:
    """Files that run services in containers."""


@deploy.command()
def export(
    targets: Targets = None,
    *,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"{', '.join(DEPLOY_FORMATS[:-1])} or {DEPLOY_FORMATS[-1]}.",
            autocompletion=lambda: list(DEPLOY_FORMATS),
        ),
    ],
    output: Output = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write to this directory instead: for kubernetes, a manifest and the IAM policies of each service; "
            "for compose, a file for this machine and one for AWS; for codebuild, a template and the buildspecs; for "
            "github, the workflow and a template with its roles.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Image of all containers, instead of that in pyproject.toml."),
    ] = None,
) -> None:
    """Print the files that run services, from their declarations and [tool.smartpipe.deploy] in pyproject.toml."""
    from smartpipe.cli.deploy.export import run_export

    run_export(targets or [], form, output, directory, image=image)
