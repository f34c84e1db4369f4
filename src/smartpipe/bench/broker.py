"""Choose the broker of a run, and create its topic and queues under a prefix that no other program uses."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from smartpipe.bench.fanout import build_services
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.local import EmbeddedBroker
from smartpipe.local.broker import REGION, environment_of
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET
from smartpipe.transports.aws.configuration import check_urls, endpoint_error
from smartpipe.transports.open import open_aws_transport
from smartpipe.urls import describe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from smartpipe.bench.load import Load

AWS = "aws"
SERVICES = ("SNS", "SQS")
BROKERS = {"local": "ministack", "moto": "moto"}
# Settings of other services: they would require a bucket, a store or a table, or name external resources.
IGNORED_SETTINGS = ("SMARTPIPE_CLAIM_CHECK", "SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_OUTBOX_URL")


class BenchBroker(NamedTuple):
    """The broker that events go through.

    Args:
        name: The name in the report.
        environment: The environment variables that lead a process to this broker.
        outlives_run: The topic and queues stay after the run, unless they are deleted.
    """

    name: str
    environment: dict[str, str]
    outlives_run: bool


def endpoints_of(environment: Mapping[str, str]) -> list[str]:
    """Return the endpoint URLs of SNS and SQS in *environment*. An empty string stands for AWS."""
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return [""]
    default = environment.get("AWS_ENDPOINT_URL", "")
    return list(dict.fromkeys(environment.get(f"AWS_ENDPOINT_URL_{service}") or default for service in SERVICES))


def is_aws(environment: Mapping[str, str]) -> bool:
    """Return whether requests made in *environment* cost money. It does not see endpoints that a profile defines."""
    hosts = [urlsplit(url).hostname or "" for url in endpoints_of(environment)]
    return any(not host or host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws")) for host in hosts)


def environment_for(endpoint: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return *inherited* with the endpoint's URL, or without a change of the endpoint for ``aws``.

    For an endpoint outside AWS, it adds a region and placeholder keys if they are missing.

    Raises:
        ConfigError: It is neither ``aws`` nor a URL.
    """
    environment = {name: value for name, value in inherited.items() if not name.startswith(IGNORED_SETTINGS)}
    if endpoint != AWS:
        error = endpoint_error(endpoint)
        if error or not urlsplit(endpoint).hostname:
            found = f"{describe_url(endpoint)} {error}" if error else describe_url(endpoint)
            msg = f"--endpoint {found}: expected a URL, such as http://localhost:4566, or aws"
            raise ConfigError(msg)
        environment = {name: value for name, value in environment.items() if not name.startswith("AWS_ENDPOINT_URL_")}
        environment["AWS_ENDPOINT_URL"] = endpoint
        if not is_aws(environment):
            if "AWS_PROFILE" not in environment:
                environment.setdefault("AWS_ACCESS_KEY_ID", "local")
                environment.setdefault("AWS_SECRET_ACCESS_KEY", "local")
            if not environment.get("AWS_DEFAULT_REGION"):
                environment["AWS_DEFAULT_REGION"] = environment.get("AWS_REGION") or REGION
    environment["SMARTPIPE_PREFIX"] = f"bench-{uuid4().hex[:8]}-"
    return environment


@contextmanager
def run_broker(backend: str) -> Iterator[BenchBroker]:
    """Run a local broker inside the block.

    Raises:
        ConfigError: The backend is not installed.
        SmartpipeError: The broker does not start.
    """
    with EmbeddedBroker(BROKERS[backend]) as broker:
        environment = environment_for(broker.endpoint_url, environment_of(broker))
        yield BenchBroker(f"{broker.backend} {broker.version}", environment, outlives_run=False)


def external_broker(endpoint: str) -> BenchBroker:
    """Return the running broker at *endpoint*; see ``environment_for`` for the errors that it raises."""
    environment = environment_for(endpoint, os.environ)
    for service in SERVICES:
        check_urls(service, environment)
    name = "AWS" if is_aws(environment) else " and ".join(endpoints_of(environment))
    return BenchBroker(name, environment, outlives_run=True)


@asynccontextmanager
async def provision(broker: BenchBroker, load: Load, warn: Callable[[str], None]) -> AsyncIterator[None]:
    """Create the topic and the queues. On exit, also after an error, delete them if the broker outlives the run.

    Args:
        warn: Called with the names of the remaining resources if the deletion fails.

    Raises:
        TopologyError, TransportError: The topic or a queue cannot be created.
    """
    with _replace_environment(broker.environment):
        transport = open_aws_transport()
        try:
            provisioner = Provisioner(transport.session, table_and_bucket=NO_TABLE_AND_BUCKET)
            changes = await provisioner.plan(build_services(load))
            try:
                await provisioner.apply(changes)
                yield
            finally:
                if broker.outlives_run:
                    await _destroy(provisioner, broker, load, warn)
        finally:
            await transport.aclose()


async def _destroy(provisioner: Provisioner, broker: BenchBroker, load: Load, warn: Callable[[str], None]) -> None:
    deleted = False
    try:
        context = await provisioner.compare(build_services(load), ignore_errors=True, destroying=True)
        changes = context.plan_destroy(even_if_not_empty=True)
        await provisioner.apply(changes)
        deleted = all(change.pending for change in changes)
    except SmartpipeError as error:  # it must not replace an error of the run itself
        warn(str(error))
    finally:
        if not deleted:
            prefix = broker.environment["SMARTPIPE_PREFIX"]
            warn(f"topics and queues whose names begin with {prefix} may remain: delete them")


@contextmanager
def _replace_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Replace this process's environment inside the block, for clients that read it."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
