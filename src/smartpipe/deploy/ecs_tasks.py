"""The tasks of Amazon ECS that run the workloads, for CloudFormation and for Terraform. Pure.

Sources: Amazon ECS, "Task definition parameters for Fargate", "Task definition parameters for EC2", "Service definition
parameters" and "Task scale-in protection endpoint".
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.deploy.ecs_scaling import QUEUES_PER_ALARM, TaskScaling, build_scaling, scales
from smartpipe.deploy.kubernetes import USER_ID
from smartpipe.deploy.options import RELAY
from smartpipe.deploy.workloads import GRACE_SECONDS
from smartpipe.errors import ConfigError
from smartpipe.names import account_in, is_arn, region_in
from smartpipe.topology.export.portable import make_unique

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from smartpipe.deploy.workloads import Workload

MAX_FARGATE_SECONDS = 120
"""The longest stopTimeout on Fargate."""
MAX_INLINE_CHARACTERS = 8_000
"""IAM takes 10,240 in the inline policies of a role together. In a region with longer ARNs, they get longer."""
HEALTH_INTERVAL_SECONDS = 30
MIN_HEALTH_RETRIES = 3
MAX_HEALTH_RETRIES = 10
CPU_UNITS = 1_024
GIBIBYTE = 1_024
"""In MiB, the unit of ECS."""
ARN_PATTERN = (
    "^arn:aws[a-z-]*:(secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[^:]+|ssm:[a-z0-9-]+:[0-9]{12}:parameter/[^:]+)$"
)
"""ARNs of secrets and parameters, without a JSON key or a version, because IAM would not match these."""
_NOT_IN_FAMILIES = re.compile(r"[^A-Za-z0-9_-]")
_MAX_FAMILY = 200
"""A family has at most 255 characters, and some names that begin with it get suffixes."""
_NOT_IN_WORDS = re.compile(r"[^a-z0-9]+")
PROTECTION = ("ecs:GetTaskProtection", "ecs:UpdateTaskProtection")


def _range(first: int, last: int, step: int = 1) -> tuple[int, ...]:
    return tuple(one * GIBIBYTE for one in range(first, last + 1, step))


FARGATE_SIZES = {
    256: (512, *_range(1, 2)),
    512: _range(1, 4),
    1_024: _range(2, 8),
    2_048: _range(4, 16),
    4_096: _range(8, 30),
    8_192: _range(16, 60, 4),
    16_384: _range(32, 120, 8),
    32_768: tuple(one * GIBIBYTE for one in (60, 120, 244)),
}
"""The memory in MiB that Fargate accepts with each number of CPU units."""


class Input(NamedTuple):
    """A value that the person who deploys sets, or that only the tool knows. *words* make its name."""

    words: tuple[str, ...]


REGION = Input(("this", "region"))
LOG_GROUP = Input(("this", "log", "group"))
"""The two values that the tool knows; each task has a log group."""
CLUSTER = Input(("cluster",))


class Home(NamedTuple):
    """The region and the account of the stack, as far as the environment of the export knows them."""

    region: str | None
    account_id: str | None


class Task(NamedTuple):
    """A service of Amazon ECS and its task definition.

    Args:
        family: The name of the task definition.
        memory: In MiB.
        container: The container definition with the keys of the API of ECS. Values can be inputs.
        image: The input with its image. Services with the most frequent image share one.
        secrets: The inputs with the ARNs of its secrets.
        policies: The policy documents of its role by name, with placeholders for account and region.
        on_demand: The number of tasks on FARGATE before FARGATE_SPOT is used; None without spot capacity.
    """

    name: str
    family: str
    image: Input
    default_image: str
    cpu_units: int
    memory: int
    is_fargate: bool
    container: dict[str, Any]
    secrets: tuple[Input, ...]
    policies: dict[str, dict[str, Any]]
    protected: bool
    on_demand: int | None
    scaling: TaskScaling

    @property
    def fits_inline(self) -> bool:
        """Whether IAM accepts its policies as inline policies of the role."""
        sizes = (len(json.dumps(one, separators=(",", ":"))) for one in self.policies.values())
        return sum(sizes) <= MAX_INLINE_CHARACTERS


def build_tasks(
    workloads: Sequence[Workload], rights: Mapping[str, dict[str, Any]], prefix: str, home: Home
) -> list[Task]:
    """Return the task of each workload.

    Args:
        rights: The IAM policies of each workload, by its name.
        prefix: The prefix of the names of queues, which the names of task definitions and alarms get too.

    Raises:
        ConfigError: It has one sentence for each workload that Amazon ECS cannot run as its options demand.
    """
    sizes = {_sizes_of(one) for one in workloads if one.name != RELAY}  # a relay without a table has those of a service
    if errors := [
        error
        for one in workloads
        for error in _check(one, home, with_size=one.name != RELAY or _sizes_of(one) not in sizes)
    ]:
        raise ConfigError(errors)
    images = [one.options.image for one in workloads]
    common = max(images, key=lambda image: (images.count(image), -images.index(image)))
    words = _name_uniquely(one.name for one in workloads)
    secrets = _name_uniquely(one.options.secret for one in workloads)
    families = {one.name: _NOT_IN_FAMILIES.sub("-", prefix + one.name) for one in workloads}
    families = make_unique(families, longest=_MAX_FAMILY)
    return [
        _build_task(
            one,
            rights[one.name],
            prefix,
            families[one.name],
            Input(("image",) if one.options.image == common else (words[one.name], "image")),
            {variable: _secret(secrets[one.options.secret], variable) for variable in one.secrets},
        )
        for one in workloads
    ]


def _name_uniquely(names: Iterable[str]) -> dict[str, str]:
    return make_unique({name: _NOT_IN_WORDS.sub("-", name.lower()) for name in dict.fromkeys(names)})


def _build_task(
    one: Workload, policies: dict[str, Any], prefix: str, family: str, image: Input, secrets: Mapping[str, Input]
) -> Task:
    return Task(
        name=one.name,
        family=family,
        image=image,
        default_image=one.options.image,
        cpu_units=round(one.options.cpu * CPU_UNITS),
        memory=one.options.memory_bytes // 2**20,
        is_fargate=one.options.platform == "fargate",
        container=_container(one, image, secrets),
        secrets=tuple(secrets.values()),
        policies=policies,
        protected=one.options.protect_task,
        on_demand=_count_on_demand(one) if one.options.spot else None,
        scaling=build_scaling(one, prefix, family),
    )


def _secret(name: str, variable: str) -> Input:
    return Input((name, *variable.removeprefix("SMARTPIPE_").lower().split("_"), "arn"))


def _count_on_demand(one: Workload) -> int:
    """Return 1 if a service always has a task and may have more, so that the end of spot capacity never stops all."""
    return 1 if one.options.min and one.maximum > 1 else 0


def _container(one: Workload, image: Input, secrets: Mapping[str, Input]) -> dict[str, Any]:
    protection = ["--protect-task"] if one.options.protect_task else []
    return {
        "name": one.command[1],
        "image": image,
        "essential": True,
        "entryPoint": list(one.command[:1]),
        "command": [*one.command[1:], *protection],
        "environment": [
            {"name": "AWS_REGION", "value": REGION},
            *({"name": name, "value": value} for name, value in sorted(one.environment.items())),
        ],
        **({"secrets": [{"name": name, "valueFrom": arn} for name, arn in sorted(secrets.items())]} if secrets else {}),
        "portMappings": [{"containerPort": one.port, "protocol": "tcp"}],
        "stopTimeout": one.grace_seconds,
        "healthCheck": _health_check(one),
        "user": f"{USER_ID}:{USER_ID}",
        "readonlyRootFilesystem": True,
        "mountPoints": [{"sourceVolume": "tmp", "containerPath": "/tmp", "readOnly": False}],  # noqa: S108 - in the container
        "linuxParameters": {"initProcessEnabled": True, "capabilities": {"drop": ["ALL"]}},
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {
                "awslogs-group": LOG_GROUP,
                "awslogs-region": REGION,
                "awslogs-stream-prefix": one.command[1],
                # An outage of CloudWatch Logs must not stop a worker: it loses log lines, and no messages.
                "mode": "non-blocking",
                "max-buffer-size": "25m",
            },
        },
    }


def _health_check(one: Workload) -> dict[str, Any]:
    """Return the check of ``/livez``. A handler may block the event loop for as long as a drain, if ECS allows it."""
    failures = one.count_health_failures(HEALTH_INTERVAL_SECONDS, MIN_HEALTH_RETRIES)
    return {
        "command": ["CMD", "smartpipe", "health"],
        "interval": HEALTH_INTERVAL_SECONDS,
        "timeout": 10,
        "retries": min(MAX_HEALTH_RETRIES, failures),
        "startPeriod": 60,
    }


def _sizes_of(one: Workload) -> tuple[float, str, str]:
    return one.options.cpu, one.options.memory, one.options.platform


def _check(one: Workload, home: Home, *, with_size: bool) -> Iterator[str]:
    """Yield the errors of a workload; those of its size only if no other workload has them too."""
    is_fargate = one.options.platform == "fargate"
    if is_fargate:
        if with_size:
            yield from _check_size(one)
        if one.grace_seconds > MAX_FARGATE_SECONDS:
            yield (
                f"service {one.name!r}: drain_seconds = {one.grace_seconds - GRACE_SECONDS} is too long for Fargate, "
                f"which kills a task {MAX_FARGATE_SECONDS} s after SIGTERM: set drain_seconds to at most "
                f"{MAX_FARGATE_SECONDS - GRACE_SECONDS}, with protect_task = true (task protection) for handlers that "
                'run longer, or set platform = "ec2"'
            )
    elif one.options.spot:
        yield (
            f'service {one.name!r}: spot = true and platform = "ec2" contradict each other: on EC2, the capacity '
            "provider of the cluster decides whether instances are spot; leave out spot"
        )
    if scales(one):
        yield from _check_queues(one, home)


def _check_size(one: Workload) -> Iterator[str]:
    units, memory = one.options.cpu * CPU_UNITS, one.options.memory_bytes // 2**20
    cpu = next((known for known in FARGATE_SIZES if known >= units), None)
    if cpu is None:
        largest = max(FARGATE_SIZES) // CPU_UNITS
        yield (
            f"service {one.name!r}: cpu = {one.options.cpu:g} is more than the {largest} of Fargate; set platform = "
            '"ec2"'
        )
        return
    if cpu != units:
        sizes = ", ".join(f"{known / CPU_UNITS:g}" for known in FARGATE_SIZES)
        yield (
            f"service {one.name!r}: cpu = {one.options.cpu:g} is not a size of Fargate ({sizes}): set cpu = "
            f"{cpu / CPU_UNITS:g}"
        )
    sizes_of_cpu = FARGATE_SIZES[cpu]
    if memory in sizes_of_cpu:
        return
    larger = [(units, size) for units, sizes in FARGATE_SIZES.items() if units >= cpu for size in sizes]
    cpu_needed, following = next((pair for pair in larger if pair[1] >= memory), (0, 0))
    if not following:
        remedy = 'set platform = "ec2"'
    elif cpu_needed == cpu:
        remedy = f"set memory = {_format(following)}"
    else:
        remedy = f"set memory = {_format(following)} and cpu = {cpu_needed / CPU_UNITS:g}"
    yield (
        f"service {one.name!r}: memory = {one.options.memory!r} is not a size of Fargate with cpu = "
        f"{cpu / CPU_UNITS:g}, which has {_format(sizes_of_cpu[0])} to {_format(sizes_of_cpu[-1])}: {remedy}"
    )


def _format(mebibytes: int) -> str:
    return f'"{mebibytes}Mi"' if mebibytes % GIBIBYTE else f'"{mebibytes // GIBIBYTE}Gi"'


def _check_queues(one: Workload, home: Home) -> Iterator[str]:
    for queue in one.queues:
        if is_arn(queue.queue) and (region_in(queue.queue), account_in(queue.queue)) != home:
            yield (
                f"service {one.name!r}: the tasks cannot follow queue {queue.queue!r}, because Application Auto "
                "Scaling reads metrics only in its own account and region: set AWS_REGION and SMARTPIPE_ACCOUNT_ID if "
                "the tasks run there too, or leave out max_wait_seconds and seconds_per_message"
            )
    if one.options.min == 0 and len(one.queues) > QUEUES_PER_ALARM:
        yield (
            f"service {one.name!r}: min = 0 with {len(one.queues)} queues: the alarm that ends the last task can watch "
            f"{QUEUES_PER_ALARM} queues; set min = 1, or divide the service"
        )
