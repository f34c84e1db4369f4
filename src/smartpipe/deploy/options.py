"""The options of ``[tool.smartpipe.deploy]`` in pyproject.toml: those of all services, and those of one service. Pure.

A table below ``[tool.smartpipe.deploy]`` has the name of a service, and its options win over the common ones.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_RETENTION_SECONDS, MAX_VISIBILITY_SECONDS
from smartpipe.settings import MAX_CONCURRENCY, MAX_DRAIN_SECONDS, MIN_DRAIN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

TABLE = "tool.smartpipe.deploy"
REQUIRED = {"image": '"registry.example.com/shop:1.4"', "cpu": "0.5", "memory": '"1Gi"'}
"""The options that have no default, each with an example of its value."""
RELAY = "smartpipe-relay"
"""The name of the relay's containers, and of its table of options."""
SCALING = ("max_wait_seconds", "seconds_per_message", "max")
"""The options by which a service follows its queues. The relay reads no queue."""
_NOT_OF_RELAY = (*SCALING, "concurrency", "drain_seconds", "protect_task")
"""The options that a relay does not have."""
_MEMORY = re.compile(r"([1-9][0-9]*)(Mi|Gi)")
_UNITS = {"Mi": 2**20, "Gi": 2**30}


def _check_memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError('write a whole number of MiB or GiB, such as "512Mi" or "2Gi"')
    return text


class DeployOptions(BaseModel):
    """How to run one service.

    Args:
        image: The container image, with its tag or digest.
        cpu: The number of CPU cores of a container, such as 0.5.
        memory: The memory of a container, such as ``512Mi`` or ``2Gi``.
        max_wait_seconds: The promise: the time in which a message is to be handled, from its arrival in the queue.
        seconds_per_message: The mean time for which a message occupies a slot. Measure it:
            ``smartpipe_handler_seconds``.
        min: The minimum number of containers. 0 needs the promise.
        max: The maximum number of containers; by default ``min``, or 10 with the promise.
        spot: Whether the containers may run on spot capacity, which ends two minutes after its warning.
        platform: The capacity that runs the tasks of Amazon ECS. Other formats ignore it.
        protect_task: Whether Amazon ECS spares a task while its handlers run, by ``smartpipe worker --protect-task``.
            Other formats ignore it.
        concurrency, drain_seconds: The worker's settings of these names, if they differ from the environment's.
        role: The ARN of the IAM role, for IRSA. Without it, associate a role with the service account (Pod Identity).
        secret: The name of the Kubernetes Secret with the URLs that contain passwords. In the formats for Amazon ECS,
            the first word of the parameters with the ARNs of these URLs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image: str = Field(min_length=1, pattern=r"^[^\s]+$")
    cpu: float = Field(gt=0, le=192, allow_inf_nan=False)
    memory: Annotated[str, AfterValidator(_check_memory)]
    # No longer wait can be promised, because SQS deletes messages after it.
    max_wait_seconds: float | None = Field(None, gt=0, le=MAX_RETENTION_SECONDS, allow_inf_nan=False)
    seconds_per_message: float | None = Field(None, ge=0.000_001, le=MAX_VISIBILITY_SECONDS, allow_inf_nan=False)
    min: int = Field(1, ge=0, le=10_000)
    max: int | None = Field(None, ge=1, le=10_000)
    spot: bool = False
    platform: Literal["fargate", "ec2"] = "fargate"
    protect_task: bool = False
    concurrency: int | None = Field(None, ge=1, le=MAX_CONCURRENCY)
    drain_seconds: float | None = Field(None, ge=MIN_DRAIN_SECONDS, le=MAX_DRAIN_SECONDS, allow_inf_nan=False)
    role: str | None = Field(None, pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+$")
    secret: str = Field("smartpipe", pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")

    @property
    def memory_bytes(self) -> int:
        """The memory of a container in bytes."""
        return parse_memory(self.memory)


def parse_memory(text: str) -> int:
    """Return the bytes of a size such as ``512Mi``."""
    number, unit = text[:-2], text[-2:]
    return int(number) * _UNITS[unit]


def read_options(table: Any, names: Iterable[str], *, complete: bool) -> dict[str, DeployOptions]:
    """Return the options of the services called *names*.

    Args:
        table: The contents of ``[tool.smartpipe.deploy]``.
        complete: Whether *names* are all services of the project, so that every other table is a mistake.

    Raises:
        ConfigError: It has one sentence for each wrong option of a service.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"pyproject.toml: {TABLE} is not a table; write [{TABLE}] with image, cpu and memory")
    services = list(names)
    common = {key: value for key, value in table.items() if not isinstance(value, dict)}
    own = {key: value for key, value in table.items() if isinstance(value, dict)}
    errors = [error for name in own if complete and name not in services for error in _check_name(name, services)]
    found = {}
    errors += _check_relay(own.get(RELAY, {}))
    for name in services:
        # The common min is for services, which may scale to zero. Events of the outbox would wait for a relay forever.
        shared = {key: value for key, value in common.items() if name != RELAY or key != "min"}
        values = {**shared, **own.get(name, {})}
        try:
            found[name] = DeployOptions.model_validate(values)
        except ValidationError as error:
            errors += _describe_errors(error, name, own.get(name, {}))
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))  # a wrong common option is wrong for each service
    return found


def _check_relay(own: Mapping[str, Any]) -> Iterator[str]:
    for key in _NOT_OF_RELAY:
        if key in own:
            yield (
                f"pyproject.toml: [{TABLE}.{RELAY}]: {key} is not an option of the relay, which reads no queue and "
                "runs no handler; leave it out, and set min for several containers"
            )
    if own.get("min") == 0:
        yield (
            f"pyproject.toml: [{TABLE}.{RELAY}]: min = 0 would leave all events in the outbox, because nothing starts "
            "a relay for them; set min to 1 or more"
        )


def _check_name(name: str, services: Iterable[str]) -> Iterator[str]:
    known = list(services)
    close = get_close_matches(name, known, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"the services are {', '.join(sorted(known))}"
    yield f"pyproject.toml: [{TABLE}.{name}]: no service has this name; {remedy}"


def _describe_errors(error: ValidationError, name: str, own: Mapping[str, Any]) -> Iterator[str]:
    for details in error.errors(include_url=False):
        key = str(details["loc"][0])
        if details["type"] == "missing":
            yield (
                f"service {name!r} has no {key}: set {key} = {REQUIRED[key]} in [{TABLE}.{name}] of pyproject.toml, or "
                f"in [{TABLE}] for all services"
            )
            continue
        table = f"{TABLE}.{name}" if key in own else TABLE
        if details["type"] == "extra_forbidden":
            close = get_close_matches(key, DeployOptions.model_fields, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"use one of {', '.join(DeployOptions.model_fields)}"
            yield f"pyproject.toml: [{table}]: {key} is not an option; {remedy}"
        else:
            reason = details["msg"].removeprefix("Value error, ")
            if key in REQUIRED and details["type"] != "value_error":
                reason += f", as in {key} = {REQUIRED[key]}"
            yield (f"pyproject.toml: [{table}]: {key} = {details['input']!r} is wrong: {reason[0].lower()}{reason[1:]}")
