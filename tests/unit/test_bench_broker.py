"""The broker of a benchmark: its environment, and the topic and queues that a run creates and deletes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.bench import broker as bench_broker
from smartpipe.bench.broker import BenchBroker, environment_for, external_broker, is_aws, provision, run_broker
from smartpipe.bench.load import Load
from smartpipe.errors import SmartpipeError
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOAD = Load(queues=2)
ENVIRONMENT = {"SMARTPIPE_PREFIX": "bench-1-", "AWS_REGION": "eu-west-1"}


class Provisioning:
    """Replaces the provisioner, and records what it does and in which environment."""

    def __init__(self) -> None:
        self.happened: list[Any] = []
        self.environments: list[dict[str, str]] = []
        self.error: Exception | None = None
        self.pending = True
        found = self

        class Provisioner:
            def __init__(self, session: str, *, table_and_bucket: Any) -> None:
                assert (session, table_and_bucket) == ("session", NO_TABLE_AND_BUCKET)
                found.environments.append(dict(os.environ))

            async def plan(self, services: Sequence[Any]) -> list[str]:
                return [f"create {service.name}" for service in services]

            async def compare(self, services: Sequence[Any], **options: bool) -> Any:
                found.happened.append(("compare", len(services), options))
                return SimpleNamespace(plan_destroy=found.plan_destroy)

            async def apply(self, changes: list[Any]) -> None:
                found.happened.append(changes)
                if found.error is not None and not isinstance(changes[0], str):
                    raise found.error

        self.provisioner = Provisioner

    def plan_destroy(self, **options: bool) -> list[Any]:
        self.happened.append(options)
        return [SimpleNamespace(pending=True), SimpleNamespace(pending=self.pending)]

    async def aclose(self) -> None:
        self.happened.append("closed")


@pytest.fixture
def provisioning(monkeypatch: pytest.MonkeyPatch) -> Provisioning:
    found = Provisioning()
    transport = SimpleNamespace(session="session", aclose=found.aclose)
    monkeypatch.setattr(bench_broker, "Provisioner", found.provisioner)
    monkeypatch.setattr(bench_broker, "open_aws_transport", lambda: transport)
    return found


async def run(*, outlives_run: bool, error: Exception | None = None) -> list[str]:
    """Provision the queues of a run, which may fail, and return the warnings."""
    warnings: list[str] = []
    broker = BenchBroker("x", ENVIRONMENT, outlives_run)
    before = dict(os.environ)
    try:
        async with provision(broker, LOAD, warnings.append):
            assert dict(os.environ) == ENVIRONMENT
            if error is not None:
                raise error
    finally:
        assert dict(os.environ) == before
    return warnings


async def test_the_queues_of_a_run_are_created_and_on_a_broker_that_stays_deleted(provisioning: Provisioning) -> None:
    assert await run(outlives_run=True) == []

    creation, compared, destroyed, deletions, closed = provisioning.happened
    assert creation == ["create queue-1", "create queue-2"]
    assert compared == ("compare", 2, {"ignore_errors": True, "destroying": True})
    assert destroyed == {"even_if_not_empty": True}
    assert len(deletions) == 2
    assert closed == "closed"
    assert provisioning.environments == [ENVIRONMENT]


async def test_the_queues_on_a_broker_that_ends_with_the_run_stay(provisioning: Provisioning) -> None:
    assert await run(outlives_run=False) == []

    assert provisioning.happened == [["create queue-1", "create queue-2"], "closed"]


async def test_queues_are_deleted_after_a_failed_run_too(provisioning: Provisioning) -> None:
    with pytest.raises(ValueError, match="broken"):
        await run(outlives_run=True, error=ValueError("broken"))

    assert len(provisioning.happened) == 5
    assert provisioning.happened[-1] == "closed"


REMAIN = "topics and queues whose names begin with bench-1- may remain: delete them"


async def test_queues_that_could_not_be_deleted_are_a_warning(provisioning: Provisioning) -> None:
    provisioning.pending = False
    assert await run(outlives_run=True) == [REMAIN]

    provisioning.pending = True
    provisioning.error = SmartpipeError("refused")
    assert await run(outlives_run=True) == ["refused", REMAIN]
    with pytest.raises(ValueError, match="broken"):
        await run(outlives_run=True, error=ValueError("broken"))

    provisioning.error = KeyError("ours")
    with pytest.raises(KeyError):
        await run(outlives_run=True)


@pytest.mark.parametrize(("backend", "package"), [("local", "ministack"), ("moto", "moto")])
def test_a_local_broker_runs_as_long_as_the_run(backend: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state: list[str] = []

    @contextmanager
    def start(name: str) -> Iterator[Any]:
        state.append(f"start {name}")
        yield SimpleNamespace(
            backend=name, version="1.2", endpoint_url="http://127.0.0.1:1", environment={"AWS_REGION": "us-east-1"}
        )
        state.append("stop")

    monkeypatch.setattr(bench_broker, "EmbeddedBroker", start)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("SHOP", "1")

    with run_broker(backend) as broker:
        assert state == [f"start {package}"]

    assert state[1:] == ["stop"]
    assert (broker.name, broker.outlives_run) == (f"{package} 1.2", False)
    assert broker.environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert broker.environment["SHOP"] == "1"
    assert "AWS_PROFILE" not in broker.environment


@pytest.fixture
def _no_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_no_endpoints")
def test_a_running_broker_is_named_by_its_endpoints_or_as_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert external_broker("aws")[::2] == ("AWS", True)
    assert external_broker("http://localhost:1")[::2] == ("http://localhost:1", True)
    assert external_broker("https://sns.eu-west-1.amazonaws.com").name == "AWS"

    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", "http://localhost:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://localhost:2")
    assert external_broker("aws").name == "http://localhost:1 and http://localhost:2"

    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "localhost:2")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL_SQS"):
        external_broker("aws")


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [
        ("localhost:1", "--endpoint ... must begin with http:// or https://: expected a URL"),
        ("http://", "--endpoint http"),
        ("", "--endpoint "),
    ],
)
def test_an_endpoint_is_a_url_or_aws(endpoint: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        environment_for(endpoint, {})

    assert str(raised.value).startswith(error)
    assert str(raised.value).endswith(": expected a URL, such as http://localhost:4566, or aws")


@pytest.mark.parametrize(
    ("inherited", "added"),
    [
        (
            {},
            {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"},
        ),
        ({"AWS_PROFILE": "x", "AWS_DEFAULT_REGION": "eu-west-1"}, {}),
        ({"AWS_PROFILE": "x", "AWS_REGION": "eu-west-1"}, {"AWS_DEFAULT_REGION": "eu-west-1"}),
        (
            {"AWS_ACCESS_KEY_ID": "a", "AWS_DEFAULT_REGION": "", "AWS_REGION": ""},
            {"AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"},
        ),
    ],
)
def test_an_endpoint_outside_aws_gets_the_missing_keys_and_region(
    inherited: dict[str, str], added: dict[str, str]
) -> None:
    found = environment_for("http://localhost:1", inherited)

    prefix = found.pop("SMARTPIPE_PREFIX")
    assert len(prefix) == len("bench-12345678-")
    assert prefix.endswith("-")
    assert found == {**inherited, **added, "AWS_ENDPOINT_URL": "http://localhost:1"}


def test_an_endpoint_of_aws_gets_no_keys() -> None:
    found = environment_for("https://sqs.eu-west-1.amazonaws.com", {})

    assert found.keys() == {"AWS_ENDPOINT_URL", "SMARTPIPE_PREFIX"}


@pytest.mark.parametrize(
    ("host", "costs"),
    [
        ("sqs.cn-north-1.amazonaws.com.cn", True),
        ("sqs.eu-west-1.api.aws", True),
        ("amazonaws.com.example.org", False),
        ("localhost", False),
    ],
)
def test_requests_to_a_host_of_aws_cost_money(host: str, costs: bool) -> None:
    assert is_aws({"AWS_ENDPOINT_URL": f"https://{host}"}) == costs


@pytest.mark.parametrize(("value", "costs"), [("TRUE", True), ("false", False), ("", False)])
def test_endpoints_that_are_ignored_do_not_count(value: str, costs: bool) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://localhost:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": value}

    assert is_aws(environment) == costs
