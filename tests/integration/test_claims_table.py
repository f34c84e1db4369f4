"""The DynamoDB table of claims, which is part of the topology."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest

from smartpipe import Publisher, Service, TopologyError
from smartpipe.names import Naming
from smartpipe.testing import planned, provision, working
from smartpipe.topology.export.iam import build_policies
from smartpipe.topology.table_and_bucket import TableAndBucket
from tests.conftest import lead_to
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.topologies import destroy
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe import EmbeddedBroker, Event


@pytest.fixture
def table(moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a table that does not exist yet, in moto's environment."""
    lead_to(moto.environment, monkeypatch)
    name = f"claims-{uuid4().hex[:8]}"
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", f"dynamodb://{name}")
    return name


def serving(seen: list[Event]) -> Service:
    service = Service("mailer")

    @service.subscribe(UserSignedUp, idempotent=True)
    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    return service


async def test_a_table_is_created_and_used_and_its_drift_is_noticed(table: str) -> None:
    seen: list[Event] = []
    service = serving(seen)

    made = await provision(service)
    async with Publisher("test") as publisher:
        await publisher.publish(ADA)
    async with working(service):
        await until(lambda: seen)
    dynamodb: Any = boto3.client("dynamodb")
    dynamodb.update_time_to_live(
        TableName=table, TimeToLiveSpecification={"Enabled": False, "AttributeName": "expires_at"}
    )
    drift = await planned(service)

    assert f"create table {table}" in made
    assert drift == [f'update table {table} (TimeToLive: "" → expires_at)']
    assert await provision(service) == drift
    assert await planned(service) == []


async def test_destroying_a_service_or_an_environment_keeps_the_table(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Event] = []
    production = serving(seen)
    await provision(production)
    prefix = os.environ["SMARTPIPE_PREFIX"]
    monkeypatch.setenv("SMARTPIPE_PREFIX", f"{prefix}staging-")
    staging = serving([])
    await provision(staging)

    line = f"external table {table} (services and environments may share it, and it holds claims)"
    assert line in await destroy(staging)
    monkeypatch.setenv("SMARTPIPE_PREFIX", prefix)
    assert await planned(production) == []
    async with Publisher("test") as publisher:
        await publisher.publish(ADA)
    async with working(production):
        await until(lambda: seen)
    assert line in await destroy(production, orphaned=True)
    assert boto3.client("dynamodb").describe_table(TableName=table)["Table"]["TableStatus"] == "ACTIVE"


async def test_without_idempotent_handlers_there_is_no_table(table: str) -> None:
    service = Service("mailer")

    @service.subscribe(UserLeft)
    async def handle(_: UserLeft) -> None: ...

    assert not any("table" in line for line in await provision(service))


async def test_a_table_with_another_key_is_an_error_and_is_not_changed(table: str) -> None:
    dynamodb: Any = boto3.client("dynamodb")
    dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )

    with pytest.raises(TopologyError, match="is not one of claims: its key must be the string 'claim'"):
        await provision(serving([]))


def test_policies_name_the_table() -> None:
    found = build_policies(
        serving([]), Naming("aws", "eu-west-1", "123456789012"), TableAndBucket(claims_table="claims")
    )

    for role in ("consume", "provision"):
        [statement] = [one for one in found[role]["Statement"] if one["Action"][0].startswith("dynamodb:")]
        assert statement["Resource"] == ["arn:aws:dynamodb:eu-west-1:123456789012:table/claims"]
        assert "dynamodb:DeleteTable" not in statement["Action"]
