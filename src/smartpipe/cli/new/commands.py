"""Defines ``smartpipe new`` and its options."""

from __future__ import annotations

from typing import Annotated

import typer

NEW_TEMPLATES = ("service", "api+worker")
EXAMPLE = "Example: smartpipe new shop && cd shop && make demo"


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The directory, the package and the service, as in order-mail.")
    ],
    *,
    template: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="service (a worker), or api+worker (with a FastAPI app that publishes).",
            autocompletion=lambda: list(NEW_TEMPLATES),
        ),
    ] = "service",
) -> None:
    """Create a project that runs, with tests, a Dockerfile, a compose file and CI."""
    from smartpipe.cli.new.run import run_new

    run_new(name, template)
