"""Where a run takes place: a broker of its own, or an endpoint, with topics and queues that nobody else has."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from smartpipe.bench.fanout import services_of
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.local import EmbeddedBroker
from smartpipe.local.broker import REGION, environment_of
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.companions import NO_COMPANIONS
from smartpipe.transports.aws.configuration import check_urls, endpoint_error
from smartpipe.transports.open import open_aws_transport
from smartpipe.urls import describe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from smartpipe.bench.load import Load

AWS = "aws"
SERVICES = ("SNS", "SQS")
BROKERS = {"local": "ministack", "moto": "moto"}
# Settings of other services: they would want a bucket, a store or a table, or name somebody else's resources.
NOT_MEANT = ("SMARTPIPE_CLAIM_CHECK", "SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_OUTBOX_URL")


class Place(NamedTuple):
    """Where events go.

    Args:
        name: As people read it.
        environment: Of everybody who goes there.
        lasting: What is made there stays after the run, unless it is deleted.
    """

    name: str
    environment: dict[str, str]
    lasting: bool


def endpoints(environment: Mapping[str, str]) -> list[str]:
    """Return where SNS and SQS are, as far as *environment* says so; an empty text is AWS."""
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return [""]
    everywhere = environment.get("AWS_ENDPOINT_URL", "")
    return list(dict.fromkeys(environment.get(f"AWS_ENDPOINT_URL_{service}") or everywhere for service in SERVICES))


def is_aws(environment: Mapping[str, str]) -> bool:
    """Return whether requests made in *environment* cost money, of which a profile's own endpoints know nothing."""
    hosts = [urlsplit(url).hostname or "" for url in endpoints(environment)]
    return any(not host or host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws")) for host in hosts)


def environment_at(endpoint: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what leads to an endpoint: *inherited* as it is for ``aws``, else with the URL.

    An endpoint that is no AWS gets a region and made-up keys where there are none.

    Raises:
        ConfigError: It is neither ``aws`` nor a URL.
    """
    environment = {name: value for name, value in inherited.items() if not name.startswith(NOT_MEANT)}
    if endpoint != AWS:
        fault = endpoint_error(endpoint)
        if fault or not urlsplit(endpoint).hostname:
            found = f"{describe_url(endpoint)} {fault}" if fault else describe_url(endpoint)
            msg = f"--endpoint {found}: it is neither a URL, as in http://localhost:4566, nor aws"
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
def broker_of_our_own(backend: str) -> Iterator[Place]:
    """Run a broker for the time of the block.

    Raises:
        ConfigError: It is not installed.
        SmartpipeError: It does not start.
    """
    with EmbeddedBroker(BROKERS[backend]) as broker:
        environment = environment_at(broker.endpoint_url, environment_of(broker))
        yield Place(f"{broker.backend} {broker.version}", environment, lasting=False)


def place_at(endpoint: str) -> Place:
    """Return the place of an endpoint; errors as those of ``environment_at``."""
    environment = environment_at(endpoint, os.environ)
    for service in SERVICES:
        check_urls(service, environment)
    name = "AWS" if is_aws(environment) else " and ".join(endpoints(environment))
    return Place(name, environment, lasting=True)


@asynccontextmanager
async def provision(place: Place, load: Load, tell: Callable[[str], None]) -> AsyncIterator[None]:
    """Make the topic and the queues; at the end, however it comes, delete them where they would stay.

    Args:
        tell: Told what is left over, should the deletion fail.

    Raises:
        TopologyError, TransportError: They cannot be made.
    """
    with _environment(place.environment):
        transport = open_aws_transport()
        try:
            provisioner = Provisioner(transport, companions=NO_COMPANIONS)
            changes = await provisioner.plan(services_of(load))
            try:
                await provisioner.apply(changes)
                yield
            finally:
                if place.lasting:
                    await _destroyed(provisioner, place, load, tell)
        finally:
            await transport.aclose()


async def _destroyed(provisioner: Provisioner, place: Place, load: Load, tell: Callable[[str], None]) -> None:
    gone = False
    try:
        survey = await provisioner.survey(services_of(load), even_if_faulty=True, destroying=True)
        changes = survey.destruction(even_if_not_empty=True)
        await provisioner.apply(changes)
        gone = all(change.pending for change in changes)
    except SmartpipeError as error:  # the run's own outcome counts
        tell(str(error))
    finally:
        if not gone:
            prefix = place.environment["SMARTPIPE_PREFIX"]
            tell(f"topics and queues whose names begin with {prefix} may be left: delete them")


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Make *wanted* this process's environment, for the clients that read theirs from it."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
