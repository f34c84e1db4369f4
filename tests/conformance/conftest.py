"""The brokers that the suite runs over, each behind a transport, and where they are known to differ from AWS."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.derive import derive
from smartpipe.transports.aws.transport import AwsTransport
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from smartpipe.transports.open import open_aws_transport
from tests.conftest import lead_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smartpipe import Service, Transport

BROKERS = ("memory", "ministack", "moto", "botocore")
"""The last is ministack again, through aiobotocore. The others use the direct transport."""


class Bus:
    """A broker and the transport to it.

    Set ``SMARTPIPE_TEST_ENDPOINT=aws`` or a URL to run the suite against that as well.
    """

    def __init__(self, name: str, transport: Transport) -> None:
        self.name = name
        self.transport = transport

    def fresh(self) -> Transport:
        """Return a transport that a worker may close."""
        return self.transport if isinstance(self.transport, MemoryTransport) else open_aws_transport()

    async def provision(self, *services: Service) -> None:
        """Make what *services* declare."""
        if isinstance(self.transport, MemoryTransport):
            self.transport.apply(derive(services, NAMING))
            return
        assert isinstance(self.transport, AwsTransport)
        provisioner = Provisioner(self.transport.session)
        await provisioner.apply(await provisioner.plan(services))


@pytest.fixture(params=[*BROKERS, *(["endpoint"] if os.environ.get("SMARTPIPE_TEST_ENDPOINT") else [])])
async def bus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    """Each broker in turn. A test marked ``differs(broker=reason)`` is expected to fail there."""
    name = "ministack" if request.param == "botocore" else request.param
    for marker in request.node.iter_markers("differs"):
        if name in marker.kwargs:
            request.node.add_marker(pytest.mark.xfail(reason=marker.kwargs[name], strict=True))
    if name == "memory":
        yield Bus(name, MemoryTransport())
        return
    if name == "endpoint":
        url = os.environ["SMARTPIPE_TEST_ENDPOINT"]
        if url != "aws":
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        lead_to({}, monkeypatch)
    else:
        lead_to(request.getfixturevalue(name).environment, monkeypatch)
    monkeypatch.setenv("SMARTPIPE_TRANSPORT", "botocore" if request.param == "botocore" else "direct")
    transport = open_aws_transport()
    try:
        yield Bus(name, transport)
    finally:
        await transport.aclose()
