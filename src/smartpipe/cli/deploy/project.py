"""The inputs of ``smartpipe deploy export``: the services of the project, its options and its environment."""

from __future__ import annotations

import os
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from smartpipe.cli.targets import load_services, read_configured_targets, read_tool_table
from smartpipe.deploy.ecs_tasks import Home, build_tasks
from smartpipe.deploy.options import RELAY, read_options
from smartpipe.deploy.place import Place, find_partition
from smartpipe.deploy.rights import build_rights
from smartpipe.deploy.workloads import build_workloads, list_producers
from smartpipe.errors import ConfigError
from smartpipe.names import Naming
from smartpipe.settings import AwsSettings, RelaySettings, WorkerSettings, find_region_variable
from smartpipe.topology.export.portable import portable_naming
from smartpipe.topology.table_and_bucket import TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.deploy.ecs_tasks import Task
    from smartpipe.deploy.workloads import Workload
    from smartpipe.service import Service


class Project:
    """The project in the working directory. A property is only read when a format needs it.

    Args:
        targets: The TARGETs of the command line; without any, those of pyproject.toml.
        image: The image of all containers, instead of those in the options.

    Raises:
        ConfigError: There is no TARGET, or one of them cannot be loaded; or *image* cannot be an image.
    """

    def __init__(self, targets: Sequence[str], image: str | None = None) -> None:
        if image is not None and (not image or re.search(r"\s", image)):
            msg = f"--image {image!r} is not an image: name it as in registry.example.com/shop:1.4, or by its digest"
            raise ConfigError(msg)
        self._image = image
        names = list(targets or read_configured_targets())
        self._complete = not targets
        self.services: dict[str, Service] = dict(zip(names, load_services(names), strict=True))
        """By their TARGETs."""

    @property
    def running(self) -> dict[str, Service]:
        """The services that have handlers, by their TARGETs; none if there is only a relay.

        Raises:
            ConfigError: There is none, and no outbox either.
        """
        found = {target: one for target, one in self.services.items() if one.handlers}
        if not found and RelaySettings.load().outbox_url is None:
            names = ", ".join(one.name for one in self.services.values())
            raise ConfigError(
                f"no worker runs {names}: a service without handlers has no container; add a service with one, or set "
                "SMARTPIPE_OUTBOX_URL if they use an outbox, which needs a relay"
            )
        return found

    @property
    def names(self) -> list[str]:
        """The names of all services, sorted."""
        return sorted(one.name for one in self.services.values())

    @property
    def producers(self) -> list[str]:
        """The names of the services without handlers."""
        return list_producers(list(self.services.values()))

    @cached_property
    def place(self) -> Place:
        """The region, the prefix and the account in the environment.

        Raises:
            ConfigError: There is no region, or it cannot be one; or a setting is wrong.
        """
        from smartpipe.transports.aws.variables import check_region

        variable = find_region_variable()
        if variable is None:
            msg = "no AWS region for the queues: set AWS_REGION, such as eu-west-1"
            raise ConfigError(msg)
        settings = AwsSettings.load()
        return Place(check_region(os.environ[variable], variable), settings.prefix, settings.account_id)

    @cached_property
    def workloads(self) -> list[Workload]:
        """The workloads of the services, in the region of this environment.

        Raises:
            ConfigError: Options or settings are wrong, or two services have one name.
        """
        return self.build_workloads({"AWS_REGION": self.place.region})

    def build_workloads(self, environment: dict[str, str]) -> list[Workload]:
        """Return the workloads of the services.

        Args:
            environment: Further variables of each container.

        Raises:
            ConfigError: Options or settings are wrong, or two services have one name.
        """
        TableAndBucket.from_environment()  # a worker with a wrong URL would end at its start
        everyone = [one.name for one in self.services.values()]
        doubled = sorted({name for name in everyone if everyone.count(name) > 1})
        if doubled:
            msg = f"several TARGETs are services called {', '.join(doubled)}: name each service once"
            raise ConfigError(msg)
        running = [one.name for one in self.running.values()]
        table = _drop_producers(read_tool_table().get("deploy", {}), everyone, running)
        named = [*running, RELAY] if not running or (isinstance(table, dict) and RELAY in table) else running
        options = read_options(_replace_image(table, self._image), named, complete=self._complete)
        role = table.get("role") if isinstance(table, dict) else None
        return build_workloads(self.services, options, environment, common_role=role)

    def build_rights(self, account_id: str) -> dict[str, dict[str, Any]]:
        """Return the IAM policies of each workload by its name, and by ``publish`` or ``consume``.

        Args:
            account_id: The account in the ARNs.
        """
        place, application = self.place, AwsSettings.load().application
        naming = Naming(find_partition(place.region), place.region, account_id, place.prefix, application)
        return self._build_rights(self.workloads, naming)

    def describe_tasks(self) -> list[Task]:
        """Return the tasks of Amazon ECS, for any account and region.

        Raises:
            ConfigError: Options or settings are wrong, or Amazon ECS cannot run the workloads.
        """
        settings = AwsSettings.load()
        variable = find_region_variable()
        home = Home(os.environ[variable] if variable else None, settings.account_id)
        workloads = self.build_workloads({})
        rights = self._build_rights(workloads, portable_naming(settings.prefix, settings.application))
        return build_tasks(workloads, rights, settings.prefix, home)

    def _build_rights(self, workloads: Sequence[Workload], naming: Naming) -> dict[str, dict[str, Any]]:
        return build_rights(
            workloads,
            list(self.services.values()),
            naming,
            TableAndBucket.from_environment(),
            reads_ages=WorkerSettings.load().queue_age_seconds > 0,
        )


def _drop_producers(table: Any, everyone: Sequence[str], running: Sequence[str]) -> Any:
    """Return the table without those of services that no worker runs."""
    if not isinstance(table, dict):
        return table
    return {key: value for key, value in table.items() if not (key in everyone and key not in running)}


def _replace_image(table: Any, image: str | None) -> Any:
    """Return the table with this image for all services."""
    if image is None or not isinstance(table, dict):
        return table
    own = {key: value for key, value in table.items() if isinstance(value, dict)}
    return {**table, **{key: {**value, "image": image} for key, value in own.items()}, "image": image}
