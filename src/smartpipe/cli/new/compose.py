"""Prints the compose file of a new project: ``python -m smartpipe.cli.new.compose JSON``, in the project's directory.

A process of its own runs it, because it imports the worker. It does not import the API, because the packages of the API
need not be installed yet.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.cli.deploy.project import Project
from smartpipe.deploy.compose import BROKER_URL, Contents, write_local
from smartpipe.local.broker import list_variables

if TYPE_CHECKING:
    from collections.abc import Sequence


class NewServices(NamedTuple):
    """The services of a new project.

    Args:
        worker: The TARGET of the one that has handlers.
        targets: All TARGETs.
        producers: The names of services without handlers.
    """

    worker: str
    targets: Sequence[str]
    producers: Sequence[str]


def main() -> None:
    """Print the file."""
    services = NewServices(*json.loads(sys.argv[1]))
    variables = list_variables(BROKER_URL)
    workloads = Project([services.worker]).build_workloads(variables)
    sys.stdout.write(write_local(Contents(workloads, services.targets, services.producers), variables))


if __name__ == "__main__":
    main()
