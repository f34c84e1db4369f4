"""Settings from the environment (12-factor, III): ``SMARTPIPE_*``. All errors are reported together."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from smartpipe.characters import character_error
from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_MESSAGE_BYTES, MAX_WAIT_SECONDS
from smartpipe.names import DEFAULT_APPLICATION
from smartpipe.urls import describe_url

if TYPE_CHECKING:
    from collections.abc import Iterator

ENV_PREFIX = "SMARTPIPE_"
DEFAULT_CONCURRENCY = 10
MAX_CONCURRENCY = 10_000
MIN_QUEUE_AGE_SECONDS = 60
MIN_DRAIN_SECONDS = 2
MAX_DRAIN_SECONDS = 7_200
MAX_FLUSH_SECONDS = 3.0
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
"""The variables of AWS that name the region, in the precedence of its SDKs."""

# Kubernetes and Docker set these variables for each service that a container can reach:
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_LINKED_PORT = re.compile(r"(?P<service>.+)_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_LINKED_SERVICE = re.compile(r"(?P<service>.+)_SERVICE_(HOST|PORT(_.+)?)")
_LINKED_URL = re.compile(r"(tcp|udp|sctp)://")
_LINKED_URL_NAME = re.compile(r"(?P<service>.+)_PORT")

_AnyCase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment. *overrides* that are not None take precedence.

        Raises:
            ConfigError: It has one sentence for each wrong setting.
        """
        errors = [error for name in sorted(os.environ) for error in _character_errors(name, cls, overrides)]
        if errors:
            raise ConfigError(errors)
        linked = {name.upper() for name in os.environ if _linked_service(name)}
        defaults = {
            name: field.default for name, field in cls.model_fields.items() if f"{ENV_PREFIX}{name.upper()}" in linked
        }
        try:
            return cls(**defaults | {name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            raise ConfigError(list(_validation_errors(error, overrides))) from None


class AwsSettings(_Environment):
    """Names of this environment's AWS resources. Region, credentials and endpoint are set by AWS's own variables.

    Args:
        prefix: Goes before the name of every topic and queue, as in ``staging-``.
        account_id: The AWS account of topics and queues; by default the account of the credentials.
        application: The application that owns the topics and queues. It is written into a tag, and ``topology
            destroy`` deletes only resources with this tag.
    """

    prefix: str = Field("", pattern=r"^[A-Za-z0-9_-]{0,40}$")
    account_id: str | None = Field(None, pattern=r"^[0-9]{12}$")
    application: str = Field(DEFAULT_APPLICATION, pattern=r"^[A-Za-z0-9_ .:/=+@-]+$", max_length=256)


class TransportSettings(AwsSettings):
    """Settings of every process that publishes or receives.

    Args:
        transport: How publishers and workers call SNS and SQS: ``direct`` or ``botocore``. All other calls use
            botocore.
    """

    transport: Annotated[Literal["direct", "botocore"], _AnyCase] = "direct"


class PayloadSettings(_Environment):
    """How publishers compress and store large bodies, and the limits on the bodies that consumers read.

    Consumers read every encoding, with any of these settings.

    Args:
        claim_check_url: ``s3://BUCKET/PREFIX``: the location for bodies that are too large for SNS and SQS. Without
            it such events are refused.
        claim_check_read: Further locations that bodies may be read from: ``s3://BUCKET/PREFIX``, or an access point
            instead of the bucket, separated by commas or spaces. Besides these, only the location of
            ``claim_check_url`` is allowed: a message names the location of its body, and anyone who may publish can
            send such a message.
        claim_check_bytes: Store bodies of messages above this size in S3 as well. By default only those above the
            limit of the topic or queue.
        claim_check_days: How long S3 keeps the bodies; ``topology apply`` sets the bucket's lifecycle rule. Choose a
            longer time than messages stay in queues and dead-letter queues, with time for a redrive.
        compression: ``gzip`` or ``zstd``; by default nothing is compressed.
        compression_bytes: Compress messages of at least this size, if that makes them smaller.
        payload_limit_bytes: The longest body that a consumer reads from S3, 16 MiB by default.
        decompressed_limit_bytes: The longest body that a consumer decompresses a message to, 4 MiB by default. For
            a body that was stored in S3 the limit is ``payload_limit_bytes``.
        payload_limit_objects: The maximum number of JSON objects and arrays in a body, and an eighth of the maximum
            number of values. Each costs some 1 to 2 µs and 200 to 500 bytes. The default is 65,536: one for each 16
            bytes of the largest message. Publishers refuse larger events; consumers dead-letter them as
            ``too-many-values``.
    """

    claim_check_url: str | None = None
    claim_check_read: str | None = None
    claim_check_bytes: int | None = Field(None, ge=1_024)
    claim_check_days: int = Field(30, ge=1, le=3_650)
    compression: Annotated[Literal["gzip", "zstd"], _AnyCase] | None = None
    compression_bytes: int = Field(16_384, ge=256)
    payload_limit_bytes: int = Field(16_777_216, ge=MAX_MESSAGE_BYTES, le=2_147_483_647)
    decompressed_limit_bytes: int = Field(4_194_304, ge=MAX_MESSAGE_BYTES, le=2_147_483_647)
    payload_limit_objects: int = Field(65_536, ge=1_024, le=100_000_000)


class ClaimSettings(_Environment):
    """The store of the claims of idempotent handlers.

    Args:
        idempotency_url: ``postgresql://…``, ``redis://…``, ``dynamodb://TABLE``, or ``memory://`` for one process and
            for tests.
    """

    idempotency_url: SecretStr | None = None


class StoreSettings(ClaimSettings):
    """The databases that can have tables of smartpipe.

    Args:
        outbox_url: The PostgreSQL database whose outbox ``smartpipe relay`` publishes.
    """

    outbox_url: SecretStr | None = None


class ConcurrencySettings(ClaimSettings):
    """The number of messages that a process handles concurrently.

    Args:
        concurrency: The maximum for each queue.
        metrics: Record times and attempts of messages and calls, beside the counters.
        trace_parent: The OpenTelemetry span of a handler call begins a trace of its own with a ``link`` to the span
            that published the event, or is a ``child`` of that span.
        trace_calls: Make spans for calls that receive and settle messages, too.
    """

    concurrency: int = Field(DEFAULT_CONCURRENCY, ge=1, le=MAX_CONCURRENCY)
    metrics: bool = True
    trace_parent: Annotated[Literal["link", "child"], _AnyCase] = "link"
    trace_calls: bool = False


class LambdaSettings(_Environment):
    """Settings of a Lambda function.

    Args:
        emf: Write a line with the metrics of each invocation to the log, from which CloudWatch makes metrics.
        emf_namespace: The namespace of these metrics in CloudWatch.
    """

    emf: bool = True
    emf_namespace: str = Field("smartpipe", pattern=r"^[A-Za-z0-9_.\-/# ][A-Za-z0-9_.\-/#: ]{0,254}$")


class ServerSettings(_Environment):
    """Settings of every process that serves ``/livez``, ``/readyz`` and ``/metrics``.

    Args:
        host, port: The address to listen on. Port 0 selects a free port.
    """

    host: str = "0.0.0.0"  # noqa: S104 - probes come from outside the container
    port: int = Field(8080, ge=0, le=65_535)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _AnyCase] = "info"
    log_format: Annotated[Literal["auto", "json", "text"], _AnyCase] = "auto"


class RelaySettings(ServerSettings):
    """Settings of ``smartpipe relay``.

    Args:
        outbox_url: The PostgreSQL database whose outbox the relay publishes.
    """

    outbox_url: SecretStr | None = None


class WorkerSettings(ConcurrencySettings, ServerSettings):
    """Settings of a worker process.

    Args:
        drain_seconds: The time from SIGTERM to exit. The worker cancels handlers that are still running 3 s before its
            end (a fifth of it, if that is shorter), and returns their messages to the queue. 25 fits into the 30 s that
            Kubernetes and ECS allow by default.
        wait_seconds: How long a receive call waits for messages: 1 to 20. A drain has to wait for the open receive
            calls, so the default is 20 or, if that is less, five seconds under ``drain_seconds``.
        liveness_seconds: ``/livez`` fails when no receive call has succeeded for this long.
        prefetch: Receive messages ahead of free slots if handlers are faster than a round trip to SQS.
        processes: The number of processes that run the service. If it is above one, a supervisor starts them.
        queue_metrics_seconds: How often the worker asks SQS for the number of messages in its queues and dead-letter
            queues, for ``/metrics``. 0 turns this off.
        queue_age_seconds: How often it asks CloudWatch for the age of their oldest messages: 60 or more. CloudWatch
            charges for each answer, so this is off (0) by default.
        protect_task: On Amazon ECS, protect the task from scale-in and deployments while a handler runs that a drain
            might have to cancel. The task role needs ``ecs:UpdateTaskProtection`` and ``ecs:GetTaskProtection``.
        verify: The worker's check of the topology when it starts. ``missing``: missing resources end the worker, and
            differences are logged. ``strict``: differences end it too. ``off``: no check.
    """

    drain_seconds: float = Field(25.0, ge=MIN_DRAIN_SECONDS, le=MAX_DRAIN_SECONDS, allow_inf_nan=False)
    wait_seconds: int | None = Field(None, ge=1, le=MAX_WAIT_SECONDS)
    liveness_seconds: float = Field(300.0, ge=30, allow_inf_nan=False)
    prefetch: bool = True
    processes: int = Field(1, ge=1, le=1_000)
    queue_metrics_seconds: float = Field(30.0, ge=0, le=86_400, allow_inf_nan=False)
    queue_age_seconds: float = Field(0.0, ge=0, le=86_400, allow_inf_nan=False)
    protect_task: bool = False
    verify: Literal["missing", "strict", "off"] = "missing"

    @property
    def poll_seconds(self) -> int:
        """How long a receive call waits for messages, in whole seconds as SQS requires."""
        if self.wait_seconds is not None:
            return self.wait_seconds
        return max(1, min(MAX_WAIT_SECONDS, int(self.drain_seconds - 5)))

    @property
    def flush_seconds(self) -> float:
        """The end of the drain time, reserved for cancelling, deleting and closing: a fifth of it, at most 3 s."""
        return min(MAX_FLUSH_SECONDS, self.drain_seconds / 5)

    @property
    def finish_seconds(self) -> float:
        """How long a handler may still run after SIGTERM, before the drain cancels it."""
        return self.drain_seconds - self.flush_seconds

    @property
    def warnings(self) -> list[str]:
        """A sentence for each setting that is allowed but probably a mistake."""
        url = self.idempotency_url.get_secret_value() if self.idempotency_url else ""
        if self.processes > 1 and url.lower().startswith("memory:"):
            msg = (
                f"idempotency_url=memory:// gives each of the {self.processes} processes a separate store: if another "
                "process receives a duplicate of an event, it handles the event again; use postgresql://, redis:// or "
                "dynamodb://"
            )
            return [msg]
        return []

    @model_validator(mode="after")
    def _check_queue_age_seconds(self) -> Self:
        if 0 < self.queue_age_seconds < MIN_QUEUE_AGE_SECONDS:
            msg = (
                f"queue_age_seconds={self.queue_age_seconds:g} is too short: CloudWatch has a new age only once a "
                f"minute; set {MIN_QUEUE_AGE_SECONDS} or more, or 0 for never"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_drain_seconds(self) -> Self:
        if self.poll_seconds > self.drain_seconds - self.flush_seconds:
            msg = (
                f"wait_seconds={self.poll_seconds} is too long for drain_seconds={self.drain_seconds:g}: a drain waits "
                f"for the open receive call and needs {self.flush_seconds:g} s more to delete and close"
            )
            raise ValueError(msg)
        return self


def find_region_variable() -> str | None:
    """Return the name of the variable that decides the region; None if none is set."""
    return next((name for name in REGION_VARIABLES if os.environ.get(name)), None)


def drain_seconds_for(handler_seconds: float) -> float:
    """Return the shortest drain that lets a handler finish which runs for *handler_seconds*: see ``flush_seconds``."""
    return handler_seconds + min(MAX_FLUSH_SECONDS, handler_seconds / 4)


_ALL = (TransportSettings, PayloadSettings, StoreSettings, LambdaSettings, RelaySettings, WorkerSettings)


def unknown_settings() -> Iterator[str]:
    """Yield a sentence for each ``SMARTPIPE_*`` variable that looks like a misspelt setting.

    Variables that Kubernetes or Docker sets for a service whose name begins with ``smartpipe`` get one sentence
    together.
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for cls in _ALL for name in cls.model_fields}
    links = {name: service for name in sorted(os.environ) if (service := _linked_service(name))}
    if links:
        services = ", ".join(sorted({service.lower().replace("_", "-") for service in links.values()}))
        yield (
            f"{', '.join(links)}: ignored, because Kubernetes or Docker sets them for a service called {services}; to "
            "be rid of them, rename the service or set enableServiceLinks: false in the pod"
        )
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in known and name not in links:
            close = get_close_matches(name, known, n=1, cutoff=0.8)
            if close:
                yield f"{name} is not a setting of smartpipe and is ignored; did you mean {close[0]}?"


def _linked_service(variable: str) -> str | None:
    """Return the service for which Kubernetes or Docker has set *variable*; None if it may be a setting."""
    name = variable.upper()
    if not name.startswith(ENV_PREFIX):
        return None
    if found := _LINKED_PORT.fullmatch(name):
        return found["service"]
    if (found := _LINKED_URL_NAME.fullmatch(name)) and _LINKED_URL.match(os.environ[variable]):
        return found["service"]
    # The number of a port alone could be a misspelt SMARTPIPE_PORT, and these come with the host.
    found = _LINKED_SERVICE.fullmatch(name)
    return found["service"] if found and f"{found['service']}_SERVICE_HOST" in os.environ else None


def _character_errors(variable: str, cls: type[_Environment], overrides: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence if a setting has a character that is not allowed. It omits the value, which may be a secret."""
    name = variable.lower().removeprefix(ENV_PREFIX.lower())
    is_setting = name in cls.model_fields and name != variable.lower()
    error = character_error(os.environ[variable]) if is_setting and overrides.get(name) is None else ""
    if error:
        yield f"{variable} {error}"


def _validation_errors(error: ValidationError, overrides: dict[str, Any]) -> Iterator[str]:
    for details in error.errors(include_url=False):
        message = details["msg"].removeprefix("Value error, ")
        if not details["loc"]:
            yield message
            continue
        name = str(details["loc"][0])
        setting = f"--{name.replace('_', '-')}" if overrides.get(name) is not None else f"{ENV_PREFIX}{name.upper()}"
        value = describe_url(str(details["input"])) if name.endswith("_url") else details["input"]
        yield f"{setting}={value}: {message[0].lower()}{message[1:]}"
