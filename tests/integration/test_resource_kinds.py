"""A sixth kind of resource, an alarm of CloudWatch: it needs a record in KINDS and one in OPERATIONS, and no more."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import boto3
import pytest

from smartpipe import Service
from smartpipe.names import Naming, name_in
from smartpipe.tags import own_tags
from smartpipe.testing import planned, provision, working
from smartpipe.topology.aws.calls import call_for, from_tag_list, to_tag_list
from smartpipe.topology.aws.operations import OPERATIONS, Operations
from smartpipe.topology.export.cloudformation import build_template
from smartpipe.topology.export.iam import build_policies
from smartpipe.topology.kinds import KINDS, Permission, ResourceKind, kind_of
from smartpipe.topology.resources import TAGS
from tests.conftest import lead_to
from tests.support.events import UserSignedUp
from tests.support.topologies import destroy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe import EmbeddedBroker, Event
    from smartpipe.topology.aws.calls import Reading
    from smartpipe.topology.changes import Change
    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Attributes, Topology
    from smartpipe.transports.aws.session import AwsSession


def alarm_arn(naming: Naming, queue: str) -> str:
    name = name_in(naming.queue_arn(queue))
    return f"arn:{naming.partition}:cloudwatch:{naming.region}:{naming.account_id}:alarm:{name}"


def derive_alarms(services: Sequence[Declares], naming: Naming, _: object) -> dict[str, Attributes]:
    """Return an alarm for each dead-letter queue, at the first message in it."""
    return {
        alarm_arn(naming, binding.queue.dead_letter_name): {"Threshold": 1.0, TAGS: own_tags(naming, service.name)}
        for service in services
        for binding in service.bindings
    }


ALARM = ResourceKind(
    name="alarm",
    resource_type="cloudwatch:alarm",
    derive=derive_alarms,
    permissions=(Permission("provision", "ChangeAlarms", ("cloudwatch:DescribeAlarms", "cloudwatch:PutMetricAlarm")),),
)


async def read_alarm(reading: Reading, arn: str, _: Topology) -> Attributes | None:
    client = await reading.session.client("cloudwatch")
    describe = partial(client.describe_alarms, AlarmNames=[name_in(arn)])
    found = (await reading.call(describe, "cloudwatch:DescribeAlarms", arn) or {}).get("MetricAlarms")
    if not found:
        return None
    listed = await reading.call(
        partial(client.list_tags_for_resource, ResourceARN=arn), "cloudwatch:ListTagsForResource", arn
    )
    return {"Threshold": found[0]["Threshold"], TAGS: from_tag_list((listed or {}).get("Tags", []))}


async def put_alarm(session: AwsSession, change: Change) -> None:
    client = await session.client("cloudwatch")
    call = client.put_metric_alarm(
        AlarmName=change.name,
        Namespace="AWS/SQS",
        MetricName="ApproximateNumberOfMessagesVisible",
        Dimensions=[{"Name": "QueueName", "Value": change.name}],
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        Threshold=change.attributes["Threshold"],
        Tags=to_tag_list(change.attributes.get(TAGS, {})),
    )
    await call_for(change, call, "cloudwatch:PutMetricAlarm")


async def delete_alarm(session: AwsSession, change: Change) -> None:
    client = await session.client("cloudwatch")
    await call_for(change, client.delete_alarms(AlarmNames=[change.name]), "cloudwatch:DeleteAlarms")


@pytest.fixture
def alarm(moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the kind, and return the name of the service's alarm."""
    lead_to(moto.environment, monkeypatch)
    monkeypatch.setitem(KINDS, ALARM.name, ALARM)
    calls = Operations(read=read_alarm, create=put_alarm, update=put_alarm, delete=delete_alarm)
    monkeypatch.setitem(OPERATIONS, ALARM.name, calls)
    return f"{os.environ['SMARTPIPE_PREFIX']}mailer-dlq"


def mailer() -> Service:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(_: Event) -> None: ...

    return service


async def test_a_new_kind_is_planned_applied_read_and_destroyed(alarm: str) -> None:
    prefix = os.environ["SMARTPIPE_PREFIX"]
    first = await planned(mailer())
    await provision(mailer())
    second = await planned(mailer())
    boto3.client("cloudwatch").put_metric_alarm(
        AlarmName=alarm, Threshold=5, ComparisonOperator="GreaterThanThreshold", EvaluationPeriods=1, Period=60,
        Namespace="AWS/SQS", MetricName="ApproximateNumberOfMessagesVisible", Statistic="Maximum",
    )  # fmt: skip
    drift = await planned(mailer())
    fixed = await provision(mailer())
    destroyed = await destroy(mailer())

    assert first == [
        f"create queue {prefix}mailer-dlq",
        f"create queue {prefix}mailer",
        f"create topic {prefix}users",
        f"create alarm {alarm}",
        f"create subscription {prefix}users → {prefix}mailer",
    ]
    assert second == []
    assert drift == fixed == [f"update alarm {alarm} (Threshold: 5.0 → 1.0)"]
    assert destroyed == [
        f"delete subscription {prefix}users → {prefix}mailer",
        f"delete topic {prefix}users",
        f"delete alarm {alarm}",
        f"delete queue {prefix}mailer",
        f"delete queue {prefix}mailer-dlq",
    ]
    assert await planned(mailer()) == first


async def test_destroying_keeps_a_resource_of_another_application(alarm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_APPLICATION", "billing")
    await provision(mailer())
    monkeypatch.setenv("SMARTPIPE_APPLICATION", "shop")

    kept = await destroy(mailer())

    assert f"external alarm {alarm} (its tags name application billing)" in kept
    assert boto3.client("cloudwatch").describe_alarms(AlarmNames=[alarm])["MetricAlarms"]


async def test_a_worker_starts_without_permission_to_read_the_new_kind(alarm: str) -> None:
    await provision(mailer())
    boto3.client("cloudwatch").delete_alarms(AlarmNames=[alarm])

    async with working(mailer()) as worker:
        assert worker.ready


def test_the_iam_export_has_the_permissions_of_the_new_kind(alarm: str) -> None:
    naming = Naming("aws", "eu-west-1", "123456789012", "shop-")
    statements = build_policies(mailer(), naming)["provision"]["Statement"]

    assert {
        "Sid": "ChangeAlarms",
        "Effect": "Allow",
        "Action": ["cloudwatch:DescribeAlarms", "cloudwatch:PutMetricAlarm"],
        "Resource": ["arn:aws:cloudwatch:eu-west-1:123456789012:alarm:shop-mailer-dlq"],
    } in statements


def test_templates_leave_the_new_kind_out(alarm: str) -> None:
    template = build_template([mailer()], prefix="shop-", application="shop")

    assert {one["Type"].split("::")[1] for one in template["Resources"].values()} == {"SNS", "SQS"}


def test_the_kind_of_an_arn_is_found_by_service_and_resource_type(alarm: str) -> None:
    naming = Naming("aws", "eu-west-1", "123456789012")
    arns = {
        "topic": naming.topic_arn("users"),
        "queue": naming.queue_arn("mailer"),
        "table": naming.table_arn("claims"),
        "bucket": naming.bucket_arn("bodies"),
        "alarm": alarm_arn(naming, "mailer-dlq"),
    }

    assert {name: kind_of(arn).name for name, arn in arns.items()} == {name: name for name in arns}
    with pytest.raises(LookupError, match="no kind of resource"):
        kind_of("arn:aws:cloudwatch:eu-west-1:123456789012:dashboard/x")


def test_every_kind_has_its_operations() -> None:
    assert KINDS.keys() == OPERATIONS.keys()
    for name, operations in OPERATIONS.items():
        assert (operations.read is None) != (operations.find is None)
        assert (operations.delete is None) == bool(KINDS[name].kept_because)
