"""The exported compose file, carried out without Docker: its commands and variables, as processes on loopback.

The broker listens on all addresses, as in its container. The other containers reach it at another address than this
machine does, as by the name ``smartpipe-broker``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from smartpipe.deploy.compose import BROKER, BROKER_PORT, LOCAL_STORE, TOPOLOGY
from smartpipe.local.broker import list_variables
from tests.support.loopback import free_port
from tests.support.processes import Process, smartpipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICE = """
from smartpipe import Event, Service, Topic

class CratePacked(Event, topic=Topic("compose-crates"), type="compose.crate.packed", version="1.0"):
    crate_id: str

packing = Service("packing")

@packing.subscribe(CratePacked, idempotent=True)
async def ship(event: CratePacked) -> None:
    print("shipped", event.crate_id, flush=True)
"""
PROJECT = """
[dependency-groups]
dev = ["smartpipe[local]"]

[tool.smartpipe]
services = ["crates:packing"]

[tool.smartpipe.deploy]
image = "crates:1"
cpu = 0.5
memory = "512Mi"
"""
BROKER_ADDRESS = "127.0.0.9"


class Containers:
    """The services of a compose file, as processes."""

    def __init__(self, text: str, directory: Path) -> None:
        self.port = free_port()
        at_this_address = text.replace(f"{BROKER}:{BROKER_PORT}", f"{BROKER_ADDRESS}:{self.port}")
        self._services = yaml.safe_load(at_this_address)["services"]
        self._directory = directory
        self._started: list[Process] = []

    def start(self, name: str, **variables: str) -> Process:
        command, environment = self._describe(name)
        process = Process(*command, directory=str(self._directory), **{**environment, **variables})
        self._started.append(process)
        return process

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        command, environment = self._describe(name)
        return smartpipe(*command, directory=str(self._directory), **environment)

    def is_healthy(self, name: str) -> bool:
        kind, program, *arguments = self._services[name]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        words = [one.replace(f":{BROKER_PORT}/", f":{self.port}/") for one in arguments]
        return subprocess.run([sys.executable, *words], capture_output=True, check=False).returncode == 0

    def end(self) -> None:
        for one in reversed(self._started):
            one.end()

    def _describe(self, name: str) -> tuple[list[str], dict[str, Any]]:
        service = self._services[name]
        assert service["entrypoint"] == ["smartpipe"]
        command = [one.replace(str(BROKER_PORT), str(self.port)) for one in service["command"]]
        environment = {
            key: LOCAL_STORE if key == "SMARTPIPE_IDEMPOTENCY_URL" else value
            for key, value in service.get("environment", {}).items()
        }
        return command, environment


@pytest.fixture
def containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Containers]:
    for name in list(os.environ):
        if name.startswith(("AWS_", "SMARTPIPE_")):
            monkeypatch.delenv(name)
    (tmp_path / "crates.py").write_text(SERVICE)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    exported = smartpipe("deploy", "export", "--format", "compose", directory=str(tmp_path))
    assert (exported.returncode, exported.stderr) == (0, "")
    containers = Containers(exported.stdout, tmp_path)
    yield containers
    containers.end()


def publish(crate_id: str, containers: Containers, directory: Path) -> None:
    """Publish an event from this machine, which reaches the broker at another address."""
    variables = list_variables(f"http://127.0.0.1:{containers.port}")
    data = ("--data", f'{{"crate_id": "{crate_id}"}}')
    published = smartpipe("publish", "compose.crate.packed", *data, directory=str(directory), **variables)
    assert published.returncode == 0, published.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["direct", "botocore"])
def test_compose_starts_a_broker_that_the_other_containers_reach_and_a_worker_drains_on_sigterm(
    transport: str, containers: Containers, tmp_path: Path
) -> None:
    broker = containers.start(BROKER)
    broker.wait_until(lambda: containers.is_healthy(BROKER))
    applied = containers.run(TOPOLOGY)
    assert applied.returncode == 0, applied.stderr
    worker = containers.start("packing", SMARTPIPE_PORT="0", SMARTPIPE_TRANSPORT=transport)
    worker.wait_until(lambda: any("ready: packing" in line for line in worker.lines))

    publish("c-1", containers, tmp_path)
    worker.wait_until(lambda: "shipped c-1" in worker.lines)
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert any("warning: the broker has no authentication" in line for line in broker.lines)
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0


@pytest.mark.timeout(120)
def test_a_worker_goes_on_when_the_broker_has_lost_its_queues_and_compose_has_created_them_again(
    containers: Containers, tmp_path: Path
) -> None:
    broker = containers.start(BROKER)
    broker.wait_until(lambda: containers.is_healthy(BROKER))
    assert containers.run(TOPOLOGY).returncode == 0
    worker = containers.start("packing", SMARTPIPE_PORT="0")
    worker.wait_until(lambda: any("ready: packing" in line for line in worker.lines))
    broker.end()

    second = containers.start(BROKER)
    second.wait_until(lambda: containers.is_healthy(BROKER))
    assert containers.run(TOPOLOGY).returncode == 0
    publish("c-2", containers, tmp_path)

    worker.wait_until(lambda: "shipped c-2" in worker.lines)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.timeout(120)
def test_without_the_order_of_compose_a_worker_exits_until_its_queue_exists_and_then_runs(
    containers: Containers,
) -> None:
    """Swarm starts all containers at once, and starts those again that fail."""
    early = containers.start("packing", SMARTPIPE_PORT="0")
    early.wait_until(lambda: any("retrying" in line for line in early.lines))
    broker = containers.start(BROKER)
    broker.wait_until(lambda: containers.is_healthy(BROKER))

    assert early.wait() == 1
    assert any("missing: queue packing" in line for line in early.lines), early.lines
    assert containers.run(TOPOLOGY).returncode == 0
    second = containers.start("packing", SMARTPIPE_PORT="0")
    second.wait_until(lambda: any("ready: packing" in line for line in second.lines))
    second.signal(signal.SIGTERM)
    assert second.wait() == 0


@pytest.mark.timeout(120)
def test_a_topology_without_its_broker_fails_with_the_address_and_changes_nothing(containers: Containers) -> None:
    failed = containers.run(TOPOLOGY)

    assert failed.returncode == 1
    assert f"http://{BROKER_ADDRESS}:{containers.port}" in failed.stderr
    assert "Traceback" not in failed.stderr
