"""``smartpipe deploy export``. It calls no service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smartpipe.cli.export import check_choice, format_json, write_directory, write_or_print
from smartpipe.cli.targets import load_services, read_configured_targets, read_pyproject, read_tool_table
from smartpipe.deploy.dockerfile import write_dockerfile
from smartpipe.deploy.kubernetes import Place, name_workloads, write_files, write_manifests
from smartpipe.deploy.options import read_options
from smartpipe.deploy.rights import build_rights, find_partition
from smartpipe.deploy.workloads import build_workloads, choose_port, list_producers
from smartpipe.errors import ConfigError
from smartpipe.names import Naming
from smartpipe.settings import AwsSettings, WorkerSettings
from smartpipe.topology.table_and_bucket import TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.deploy.workloads import Workload
    from smartpipe.service import Service

FORMATS = ("kubernetes", "dockerfile")


def run_export(targets: Sequence[str], form: str, output: Path | None = None, directory: Path | None = None) -> None:
    """Print the files of the services of *targets* in the format *form*, or write them to *output* or *directory*.

    Raises:
        ConfigError: The format is unknown; options or settings are wrong; or a file cannot be written.
    """
    check_choice("--format", form, FORMATS)
    if directory is not None and output is not None:
        msg = "--output writes one file, and --directory several: use only one of them"
        raise ConfigError(msg)
    if directory is not None and form != "kubernetes":
        msg = f"--directory is for --format kubernetes, not {form}: use --output"
        raise ConfigError(msg)
    names = list(targets or read_configured_targets())
    services = dict(zip(names, load_services(names), strict=True))
    if form == "dockerfile":
        write_or_print(_write_dockerfile(services), form, output)
        return
    place = _find_place()
    workloads = _build_workloads(services, {"AWS_REGION": place.region}, complete=not targets)
    if directory is None:
        write_or_print(write_manifests(workloads, list_producers(list(services.values())), place), form, output)
        return
    policies = _write_policies(workloads, list(services.values()), place)
    write_directory(directory, {**write_files(workloads, place), **policies})


def _write_policies(workloads: Sequence[Workload], services: Sequence[Service], place: Place) -> dict[str, str]:
    """Return the texts of the IAM policies by the names of their files.

    Raises:
        ConfigError: The account is not known.
    """
    if place.account_id is None:
        msg = "--directory also writes IAM policies, and these contain the account: set SMARTPIPE_ACCOUNT_ID"
        raise ConfigError(msg)
    application = AwsSettings.load().application
    naming = Naming(find_partition(place.region), place.region, place.account_id, place.prefix, application)
    rights = build_rights(workloads, services, naming, TableAndBucket.from_environment())
    names = name_workloads(workloads)
    return {
        f"{names[name]}.{purpose}.json": format_json(document)
        for name, policies in rights.items()
        for purpose, document in policies.items()
    }


def _write_dockerfile(services: dict[str, Service]) -> str:
    """Return the Dockerfile of the project in the working directory, with all services that have handlers."""
    if not Path("uv.lock").is_file():
        msg = f"{Path.cwd()} has no uv.lock, so an image would not always have the same packages: run `uv lock`"
        raise ConfigError(msg)
    _check_handlers(services)
    running = [target for target, service in services.items() if service.handlers]
    return write_dockerfile(
        running, choose_port(WorkerSettings.load().port), packaged="build-system" in read_pyproject()
    )


def _build_workloads(services: dict[str, Service], environment: dict[str, str], *, complete: bool) -> list[Workload]:
    table = read_tool_table().get("deploy", {})
    everyone = [one.name for one in services.values()]
    doubled = sorted({name for name in everyone if everyone.count(name) > 1})
    if doubled:
        msg = f"several TARGETs are services called {', '.join(doubled)}: name each service once"
        raise ConfigError(msg)
    _check_handlers(services)
    running = [one.name for one in services.values() if one.handlers]
    options = read_options(_drop_producers(table, everyone, running), running, complete=complete)
    return build_workloads(services, options, environment)


def _check_handlers(services: dict[str, Service]) -> None:
    """Raise ConfigError if no service has a handler."""
    if not any(one.handlers for one in services.values()):
        names = ", ".join(one.name for one in services.values())
        raise ConfigError(
            f"no worker runs {names}: a service without handlers has no container; add a service with one"
        )


def _drop_producers(table: Any, everyone: Sequence[str], running: Sequence[str]) -> Any:
    """Return the table without those of services that no worker runs."""
    if not isinstance(table, dict):
        return table
    return {key: value for key, value in table.items() if not (key in everyone and key not in running)}


def _find_place() -> Place:
    """Return the region, the prefix and the account in the environment.

    Raises:
        ConfigError: There is no region, or it cannot be one; or a setting is wrong.
    """
    from smartpipe.transports.aws.variables import check_region

    variable = next((name for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if os.environ.get(name)), None)
    if variable is None:
        msg = "no AWS region for the containers: set AWS_REGION, such as eu-west-1"
        raise ConfigError(msg)
    settings = AwsSettings.load()
    return Place(check_region(os.environ[variable], variable), settings.prefix, settings.account_id)
