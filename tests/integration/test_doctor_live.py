"""The calls of ``smartpipe doctor --live`` on real brokers: pages, refusals, calls that a broker lacks, and time."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe import Event, Queue, Service, Topic
from smartpipe.doctor.costs.prices import PRICES
from smartpipe.doctor.examine import read_environment
from smartpipe.doctor.live import read
from smartpipe.doctor.live.examine import examine_account
from smartpipe.doctor.live.inquiry import Inquiry
from smartpipe.doctor.live.read import read_expiry
from smartpipe.settings import AwsSettings
from smartpipe.testing import provision
from smartpipe.transports.aws.session import AwsSession
from tests.conftest import lead_to
from tests.support.proxy import Fault, FaultProxy

if TYPE_CHECKING:
    from smartpipe import EmbeddedBroker
    from smartpipe.doctor.findings import Examined
    from smartpipe.doctor.live.account import Account
    from tests.support.calls import Call
    from tests.support.queues import Queues

examined = Topic("examined")


class Examinable(Event, topic=examined, type="examined.happened", version="1.0"):
    number: int


def make_service(queue: Queue | None = None) -> Service:
    service = Service("examinee", queue=queue, publishes=[Examinable])

    @service.subscribe(Examinable)
    async def handle(event: Examinable) -> None: ...

    return service


async def diagnose(service: Service | None = None) -> Examined:
    session = AwsSession(AwsSettings.load())
    try:
        found, _ = await examine_account(session, [service or make_service()], read_environment(), PRICES)
    finally:
        await session.aclose()
    return found


def codes(found: Examined) -> list[str]:
    return sorted(one.code for one in found.findings)


def not_found(_: Call) -> tuple[int, dict[str, str], bytes]:
    return 404, {"Content-Type": "text/html"}, b"<html>no</html>"


def prefixed(name: str) -> str:
    return os.environ["SMARTPIPE_PREFIX"] + name


def put_value(namespace: str, metric: str, name: str, value: float, minutes_ago: float = 5) -> None:
    dimension = {"Name": "QueueName" if namespace == "AWS/SQS" else "TopicName", "Value": prefixed(name)}
    moment = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    datum: Any = {"MetricName": metric, "Dimensions": [dimension], "Value": value, "Timestamp": moment}
    boto3.client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=[datum])


def put_alarm(name: str, metric: str, queue: str) -> None:
    boto3.client("cloudwatch").put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SQS",
        MetricName=metric,
        Dimensions=[{"Name": "QueueName", "Value": queue}],
        Period=60,
        EvaluationPeriods=1,
        Threshold=0,
        ComparisonOperator="GreaterThanThreshold",
        Statistic="Maximum",
        AlarmActions=["arn:aws:sns:us-east-1:000000000000:pager"],
    )


@pytest.mark.usefixtures("broker")
async def test_every_broker_is_examined_and_the_calls_that_it_lacks_are_not_seen(queues: Queues) -> None:
    await provision(make_service())
    before = await diagnose()
    queues.send("examinee-dlq", "one", "two")

    after = await diagnose()

    assert codes(before) == ["SP302"]
    assert codes(after) == ["SP301", "SP302"]
    assert any("recent changes of filter policies: the endpoint does not answer" in one for one in after.not_seen)


@pytest.fixture
def account(moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """The broker that has CloudWatch and KMS."""
    lead_to(moto.environment, monkeypatch)
    return moto


@pytest.mark.usefixtures("account")
async def test_metrics_and_alarms_are_read_in_pages() -> None:
    await provision(make_service())
    for number in range(105):  # a page has 100
        put_alarm(prefixed(f"a{number}"), "ApproximateNumberOfMessagesVisible", "another")
    put_alarm(prefixed("z1"), "ApproximateNumberOfMessagesVisible", prefixed("examinee-dlq"))
    put_alarm(prefixed("z2"), "ApproximateAgeOfOldestMessage", prefixed("examinee"))
    put_value("AWS/SNS", "NumberOfNotificationsFailed", "examined", 3)
    put_value("AWS/SNS", "NumberOfNotificationsFailedToRedriveToDlq", "examined", 2)
    put_value("AWS/SQS", "ApproximateAgeOfOldestMessage", "examinee", 300_000)
    put_value("AWS/SQS", "ApproximateNumberOfNoisyGroups", "examinee", 1)
    put_value("AWS/SQS", "NumberOfEmptyReceives", "examinee", 5_000_000, minutes_ago=1_500)

    found = await diagnose()

    assert codes(found) == ["SP304", "SP305", "SP310", "SP311"]
    [failed] = [one for one in found.findings if one.code == "SP304"]
    assert failed.figures == {"failed": 3, "lost": 2}


@pytest.mark.usefixtures("account")
async def test_the_policy_of_a_key_is_read_by_its_alias() -> None:
    kms = boto3.client("kms")
    key, alias = kms.create_key()["KeyMetadata"]["KeyId"], f"alias/{prefixed('key')}"
    kms.create_alias(AliasName=alias, TargetKeyId=key)
    service = make_service(Queue("encrypted", kms_key=alias))
    await provision(service)

    bad = await diagnose(service)
    [finding] = [one for one in bad.findings if one.code == "SP307"]
    statement = json.loads(finding.remedy.partition(": ")[2])
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))
    good = await diagnose(service)

    assert finding.resource == f"key {alias}"
    assert "SP307" not in codes(good)


@pytest.mark.usefixtures("fast_broker")
async def test_a_queue_of_another_team_is_not_judged_by_its_settings(queues: Queues) -> None:
    boto3.client("sqs").create_queue(QueueName=prefixed("theirs-dlq"))
    url = boto3.client("sqs").create_queue(
        QueueName=prefixed("theirs"), Attributes={"VisibilityTimeout": "7", "MessageRetentionPeriod": "60"}
    )["QueueUrl"]
    arn = boto3.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": arn}]}
    redrive = {"deadLetterTargetArn": f"{arn}-dlq", "maxReceiveCount": 100}
    boto3.client("sqs").set_queue_attributes(
        QueueUrl=url, Attributes={"Policy": json.dumps(policy), "RedrivePolicy": json.dumps(redrive)}
    )
    topic = boto3.client("sns").create_topic(Name=prefixed("examined"))["TopicArn"]
    boto3.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    service = make_service(Queue("theirs", existing=True))

    found = await diagnose(service)

    about_queue = [one for one in found.findings if "theirs" in one.resource]
    assert about_queue == []
    assert any(f"policies and alarms of {prefixed('theirs')}" in one for one in found.not_seen)


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("DescribeAlarms", "cloudwatch:DescribeAlarms"),
        ("GetMetricData", "cloudwatch:GetMetricData"),
        ("GetQueueAttributes", "sqs:GetQueueAttributes"),
        ("GetSubscriptionAttributes", "sns:GetSubscriptionAttributes"),
        ("GetTopicAttributes", "sns:GetTopicAttributes"),
        ("ListQueueTags", "sqs:ListQueueTags"),
        ("ListSubscriptionsByTopic", "sns:ListSubscriptionsByTopic"),
        ("LookupEvents", "cloudtrail:LookupEvents"),
    ],
)
async def test_a_refused_action_is_named_and_its_resources_do_not_seem_to_be_missing(
    operation: str, action: str, fast_proxy: FaultProxy
) -> None:
    await provision(make_service())
    fast_proxy.add(Fault(operation, answer=(403, "AccessDenied", "no")))

    found = await diagnose()

    assert [one.resource for one in found.findings if one.code == "SP300"] == [action]
    assert {one.code for one in found.findings} <= {"SP300", "SP302"}


async def test_a_broker_that_answers_nonsense_is_not_seen_and_nothing_crashes(fast_proxy: FaultProxy) -> None:
    await provision(make_service())
    for operation in ("DescribeAlarms", "GetMetricData"):
        fast_proxy.add(Fault(operation, respond=not_found))

    found = await diagnose()

    assert codes(found) == []
    assert any("the endpoint does not answer as AWS does" in one for one in found.not_seen)


@pytest.mark.parametrize("operation", ["", "ListSubscriptionsByTopic", "GetQueueAttributes"])
async def test_an_account_whose_resources_cannot_be_read_is_an_error(
    operation: str, fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provision(make_service())
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "000000000000")
    fast_proxy.add(Fault(operation, respond=not_found))

    found = await diagnose()

    [finding] = [one for one in found.findings if one.code == "SP300"]
    assert finding.severity == "error"
    assert finding.message == (
        "AWS could not be asked: the deployed resources: the endpoint does not answer as AWS does"
    )
    assert "the account" in found.not_seen


async def test_a_call_without_a_response_is_not_seen_once_the_time_of_all_calls_is_over(
    fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provision(make_service())
    read_details = read.read_details

    async def hurry(inquiry: Inquiry, account: Account) -> Account:
        hasty = Inquiry(inquiry.session, 0.5)  # for these calls alone: a busy machine needs longer for the topology
        found = await read_details(hasty, account)
        inquiry.not_seen += hasty.not_seen
        return found

    monkeypatch.setattr(read, "read_details", hurry)
    fast_proxy.add(Fault("DescribeAlarms", delay_seconds=30))

    found = await diagnose()

    assert "alarms of CloudWatch: it could not be read within 0.5 s" in found.not_seen
    assert codes(found) == []


async def test_a_clock_that_is_wrong_is_compared_with_the_date_of_the_response(fast_proxy: FaultProxy) -> None:
    await provision(make_service())
    past = datetime.now(UTC) - timedelta(seconds=90)
    fast_proxy.add(Fault("GetCallerIdentity", headers={"Date": past.strftime("%a, %d %b %Y %H:%M:%S GMT")}))

    found = await diagnose()

    [skew] = [one for one in found.findings if one.code == "SP308"]
    assert 85 <= float(skew.figures["skew_seconds"]) <= 120
    assert "ahead of" in skew.message


async def test_an_endpoint_that_refuses_connections_is_an_error(
    fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "FIRST_CALL_SECONDS", 0.1)
    fast_proxy.refuse()

    found = await diagnose()

    [finding] = found.findings
    assert (finding.code, finding.severity) == ("SP300", "error")
    assert "does the network allow connections" in finding.message


async def test_temporary_credentials_are_compared_with_their_expiry(
    fast_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provision(make_service())
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    unknown = await diagnose()
    soon = datetime.now(UTC) + timedelta(minutes=50)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", soon.isoformat())
    known = await diagnose()

    assert any("AWS_CREDENTIAL_EXPIRATION is not set" in one for one in unknown.not_seen)
    assert [one.resource for one in known.findings if one.code == "SP308"] == ["credentials"]


def test_an_expiry_has_a_time_zone_and_may_be_wrong() -> None:
    assert read_expiry("2026-11-27T12:00:00Z") == datetime(2026, 11, 27, 12, tzinfo=UTC)
    assert read_expiry("soon") is None
    assert read_expiry(None) is None


async def test_changes_of_filter_policies_are_read_from_cloudtrail(fast_proxy: FaultProxy) -> None:
    await provision(make_service())
    sns = boto3.client("sns")
    [subscription] = [
        one["SubscriptionArn"]
        for page in sns.get_paginator("list_subscriptions").paginate()
        for one in page["Subscriptions"]
        if one["TopicArn"].endswith(prefixed("examined"))
    ]
    detail = {"requestParameters": {"attributeName": "FilterPolicy", "subscriptionArn": subscription}}
    event = {"EventTime": datetime.now(UTC).timestamp() - 60, "CloudTrailEvent": json.dumps(detail)}
    body = json.dumps({"Events": [event]}).encode()
    trail = Fault("LookupEvents", respond=lambda _: (200, {"Content-Type": "application/x-amz-json-1.1"}, body))
    fast_proxy.add(trail)

    found = await diagnose()

    assert trail.hits == 1
    assert [one.severity for one in found.findings if one.code == "SP309"] == ["note"]
