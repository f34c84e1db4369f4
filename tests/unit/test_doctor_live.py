"""Each rule of ``smartpipe doctor --live``, on plain values, with a bad and a good example."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Event, Queue, Service, Topic
from smartpipe.doctor.costs.prices import PRICES
from smartpipe.doctor.live.account import (
    AGE,
    DEPTH,
    EMPTY_RECEIVES,
    FAILED,
    GROUPS_IN_FLIGHT,
    NOISY_GROUPS,
    NOT_REDRIVEN,
    SENT,
    Account,
    Alarm,
    Clock,
    Environment,
    Key,
    recent,
    sum_of_days,
)
from smartpipe.doctor.live.examine import examine_read, find_denials
from smartpipe.doctor.live.inquiry import read_alarm
from smartpipe.doctor.live.policies import allows_sns
from smartpipe.doctor.live.read import Read
from smartpipe.doctor.lookup import find_region
from smartpipe.names import Naming
from smartpipe.topology.aws.cloudwatch import Point
from smartpipe.topology.changes import Change
from smartpipe.topology.checks import find_notes
from smartpipe.topology.derive import derive
from smartpipe.topology.plan import plan
from smartpipe.topology.policy import build_key_statement
from smartpipe.topology.resources import TAGS, Denial, Topology

if TYPE_CHECKING:
    from smartpipe.doctor.findings import Finding

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
NAMING = Naming("aws", "eu-west-1", "123456789012", "t-")
SQS, SNS = "arn:aws:sqs:eu-west-1:123456789012:t-", "arn:aws:sns:eu-west-1:123456789012:t-"
SHOP, DEAD, ORDERS = f"{SQS}shop", f"{SQS}shop-dlq", f"{SNS}live-orders"
DAYS = 86_400
orders = Topic("live-orders")
steps = Topic("live-steps", fifo=True)
large = Topic("live-large", limit_bytes=1_048_576)


class Ordered(Event, topic=orders, type="live.ordered", version="1.0"):
    number: int


class Stepped(Event, topic=steps, type="live.stepped", version="1.0", key="order"):
    order: str


class Scanned(Event, topic=large, type="live.scanned", version="1.0"):
    number: int


def deploy(event: Any = Ordered, queue: Queue | None = None, **changes: dict[str, Any]) -> Account:
    """Return an account in which everything is as declared, but for *changes* of attributes, by the end of the ARN."""
    service = Service("shop", queue=queue, publishes=[event])

    @service.subscribe(event)
    async def handle(event: Any) -> None: ...

    desired = derive([service], NAMING)
    deployed = {
        kind: {key: {**attributes} for key, attributes in resources.items()}
        for kind, resources in desired.resources.items()
    }
    for arn, attributes in deployed["queue"].items():
        text = json.dumps(attributes["Policy"]) if "Policy" in attributes else ""
        attributes.update({"Policy": text, "QueueArn": arn})
    for resources in (deployed["queue"], deployed["topic"]):
        for arn, attributes in resources.items():
            attributes.update(changes.get(arn.rpartition(":")[2].replace(".", "_").replace("-", "_"), {}))
    actual = Topology(deployed, desired.external)
    return Account(
        NAMING,
        desired,
        actual,
        NOW,
        changes=plan(desired, actual),
        notes=find_notes(desired, actual),
        alarms=[Alarm("all", frozenset({("AWS/SQS", DEPTH, "t-shop-dlq"), ("AWS/SQS", AGE, "t-shop")}), "OK")],
    )


def find(account: Account, code: str | None = None, **environment: Any) -> list[Finding]:
    read = Read(account, Environment("eu-west-1", {})._replace(**environment), [])
    return [one for one in examine_read(read, 20) if code in (None, one.code)]


def points(*values: float, step: timedelta = timedelta(minutes=5)) -> list[Point]:
    """Return values of which the last is an hour old."""
    first = NOW - timedelta(hours=1) - step * (len(values) - 1)
    return [Point(first + step * number, value) for number, value in enumerate(values)]


def in_days(*values: float) -> list[Point]:
    return points(*values, step=timedelta(days=1))


@pytest.mark.parametrize("event", [Ordered, Stepped, Scanned])
def test_an_account_that_is_as_declared_has_no_findings(event: Any) -> None:
    account = deploy(event, Queue("shop", fifo=event is Stepped))._replace(alarms=None)

    assert find(account) == []


def test_messages_in_a_dead_letter_queue_are_a_warning_with_their_number() -> None:
    [found] = find(deploy(t_shop_dlq={"ApproximateNumberOfMessages": "3"}), "SP301")

    assert (found.severity, found.resource, found.figures["messages"]) == ("warning", "queue t-shop-dlq", 3)
    assert "about 3 messages" in found.message


def test_dead_letter_messages_older_than_10_of_their_14_days_are_an_error() -> None:
    account = deploy(t_shop_dlq={"ApproximateNumberOfMessages": "3"})
    late, early = (account._replace(metrics={recent(AGE, DEAD, "Maximum"): points(1, age * DAYS)}) for age in (10, 9.9))

    assert [one.severity for one in find(late, "SP301")] == ["error"]
    assert [one.severity for one in find(early, "SP301")] == ["warning"]


def test_messages_that_sqs_itself_moved_have_no_reason() -> None:
    account = deploy(t_shop_dlq={"ApproximateNumberOfMessages": "8"})
    sent, depth = sum_of_days(SENT, DEAD), recent(DEPTH, DEAD, "Minimum")

    def count(metrics: Any) -> Any:
        return find(account._replace(metrics=metrics), "SP301")[0].figures.get("without_reason")

    assert count({sent: in_days(2, 3), depth: points(7, 7)}) == 2
    assert count({sent: in_days(2, 8), depth: points(7, 7)}) is None
    assert count({depth: points(7, 7)}) is None
    # CloudWatch has not counted the last minutes yet.
    assert count({sent: in_days(0), depth: [Point(NOW - timedelta(minutes=5), 8)]}) is None


@pytest.mark.parametrize(("age", "count"), [(276_480, 1), (276_479, 0)])
def test_messages_that_are_nearly_as_old_as_the_retention_of_their_queue_are_an_error(age: float, count: int) -> None:
    found = find(deploy()._replace(metrics={recent(AGE, SHOP, "Maximum"): points(1, age)}), "SP311")

    assert [one.severity for one in found] == ["error"] * count


def test_the_dead_letter_queue_of_another_team_is_only_a_note() -> None:
    queue = Queue("theirs", existing=True)
    account = deploy(queue=queue, t_theirs_dlq={"ApproximateNumberOfMessages": "3"})

    assert [one.severity for one in find(account, "SP301")] == ["note"]


def test_a_queue_without_an_alarm_on_depth_or_age_is_a_warning() -> None:
    [found] = find(deploy()._replace(alarms=[]), "SP302")

    assert found.resource == "queue t-shop"
    assert "of dead-letter queue t-shop-dlq and of queue t-shop" in found.message


def test_an_alarm_on_messages_sent_does_not_watch_a_dead_letter_queue() -> None:
    alarms = [Alarm("one", frozenset({("AWS/SQS", SENT, "t-shop-dlq"), ("AWS/SQS", AGE, "t-shop")}), "OK")]

    [found] = find(deploy()._replace(alarms=alarms), "SP302")

    assert "NumberOfMessagesSent does not see" in found.message


def test_alarms_that_search_for_their_metrics_and_those_that_are_unknown_are_not_judged() -> None:
    searching = read_alarm(
        {"AlarmName": "all", "Metrics": [{"Expression": 'SELECT MAX(x) FROM SCHEMA("AWS/SQS", QueueName)'}]}
    )

    assert searching.searches
    assert find(deploy()._replace(alarms=[searching]), "SP302") == []
    assert find(deploy()._replace(alarms=None), "SP302") == []


def test_alarms_without_data_or_without_an_action_are_found_if_they_are_about_our_queues() -> None:
    watched = frozenset({("AWS/SQS", DEPTH, "t-shop-dlq"), ("AWS/SQS", AGE, "t-shop")})
    alarms = [
        Alarm("dumb", watched, "INSUFFICIENT_DATA"),
        Alarm("mute", watched, "OK", notifies=False),
        Alarm("other", frozenset({("AWS/SQS", DEPTH, "x")}), "INSUFFICIENT_DATA"),
    ]

    assert [(one.resource, one.severity) for one in find(deploy()._replace(alarms=alarms), "SP302")] == [
        ("alarm dumb", "warning"),
        ("alarm mute", "note"),
    ]


def test_an_alarm_is_read_from_its_metric_or_its_queries() -> None:
    metric = {"Namespace": "AWS/SQS", "MetricName": AGE, "Dimensions": [{"Name": "QueueName", "Value": "q"}]}
    simple = {"AlarmName": "a", "StateValue": "OK", "AlarmActions": ["arn"], "ActionsEnabled": True, **metric}
    query = {"AlarmName": "b", "Metrics": [{"MetricStat": {"Metric": metric}}, {"Expression": "m1 * 2"}]}

    assert read_alarm(simple) == Alarm("a", frozenset({("AWS/SQS", AGE, "q")}), "OK")
    assert read_alarm(query) == Alarm("b", frozenset({("AWS/SQS", AGE, "q")}), "OK", notifies=False)


def test_an_alarm_that_only_scales_tasks_is_neither_missing_data_nor_a_watch_over_a_queue() -> None:
    policy = "arn:aws:autoscaling:us-east-1:000000000000:scalingPolicy:1:resource/ecs/service/c/s:policyName/backlog"
    topic = "arn:aws:sns:us-east-1:000000000000:pages"
    metrics = [
        {"MetricStat": {"Metric": {"MetricName": DEPTH, "Namespace": "AWS/SQS", "Dimensions": [dimension]}}}
        for dimension in ({"Name": "QueueName", "Value": name} for name in ("t-shop", "t-shop-dlq"))
    ]
    entry = {"AlarmName": "TargetTracking", "StateValue": "INSUFFICIENT_DATA", "Metrics": metrics}
    scaling = read_alarm({**entry, "AlarmActions": [policy]})
    paging = read_alarm({**entry, "AlarmActions": [policy, topic], "StateValue": "OK"})

    assert [one.resource for one in find(deploy()._replace(alarms=[scaling]), "SP302")] == ["queue t-shop"]
    assert find(deploy()._replace(alarms=[paging]), "SP302") == []


def test_no_alarm_is_expected_on_the_queue_of_another_team() -> None:
    assert find(deploy(queue=Queue("theirs", existing=True))._replace(alarms=[]), "SP302") == []


def policy(**statement: Any) -> str:
    return json.dumps({"Statement": [{"Sid": "x", "Effect": "Allow", "Action": "sqs:SendMessage", **statement}]})


@pytest.mark.parametrize(
    ("statement", "severity"),
    [
        ({"Principal": "*"}, "error"),
        ({"Principal": {"AWS": "*"}, "Condition": {"Bool": {"aws:SecureTransport": "true"}}}, "error"),
        ({"Principal": {"Service": "s3.amazonaws.com"}}, "warning"),
        ({"Principal": {"AWS": "arn:aws:iam::999999999999:root"}}, "note"),
        ({"Principal": {"AWS": "999999999999"}}, "note"),
        ({"Principal": "*", "Effect": "Deny"}, None),
        ({"Principal": {"AWS": "arn:aws:iam::123456789012:role/a"}}, None),
        ({"Principal": "*", "Condition": {"StringEquals": {"aws:SourceOwner": "123456789012"}}}, None),
        (
            {
                "Principal": {"Service": "s3.amazonaws.com"},
                "Condition": {"ArnLike": {"AWS:SourceArn": "arn:aws:s3:::b"}},
            },
            None,
        ),
    ],
)
def test_statements_that_let_others_send_are_found(statement: dict[str, Any], severity: str | None) -> None:
    queue = deploy(t_shop={"Policy": policy(**statement)})
    topic = deploy(t_live_orders={"Policy": policy(**statement)})

    expected = [severity] if severity else []
    assert [one.severity for one in find(queue, "SP303")] == expected
    assert [one.resource for one in find(topic, "SP303")] == ["topic t-live-orders"] * len(expected)


def test_the_policy_of_a_queue_of_another_team_is_not_judged() -> None:
    account = deploy(queue=Queue("theirs", existing=True), t_theirs={"Policy": policy(Principal="*")})

    assert find(account, "SP303") == []


def test_failed_deliveries_are_a_warning_and_lost_messages_an_error() -> None:
    failed, lost = sum_of_days(FAILED, ORDERS), sum_of_days(NOT_REDRIVEN, ORDERS)
    warning, error, fine = (
        find(deploy()._replace(metrics=metrics), "SP304")
        for metrics in (
            {failed: in_days(2, 3), lost: in_days(0, 0)},
            {failed: in_days(2, 3), lost: in_days(0, 4)},
            {failed: in_days(0, 0)},
        )
    )

    assert [(one.severity, one.figures["failed"]) for one in warning] == [("warning", 5)]
    assert [(one.severity, one.figures["lost"]) for one in error] == [("error", 4)]
    assert fine == []


@pytest.mark.parametrize(("a_day", "severity"), [(84_000_00, "warning"), (120_000, "note"), (4_320, None)])
def test_empty_receives_cost_money_from_a_dollar_a_month_on(a_day: int, severity: str | None) -> None:
    metrics = {sum_of_days(EMPTY_RECEIVES, SHOP): [Point(NOW - timedelta(days=2), 2 * a_day)]}

    found = find(deploy()._replace(metrics=metrics), "SP305")

    assert [one.severity for one in found] == ([severity] if severity else [])
    if severity == "note":  # 3.6 million calls at $0.40 a million
        assert found[0].figures == {"dollars_per_month": 1.44, "calls_per_month": 3_600_000}


def test_empty_receives_cost_as_much_as_your_prices_say() -> None:
    metrics = {sum_of_days(EMPTY_RECEIVES, SHOP): [Point(NOW - timedelta(days=2), 240_000)]}
    read = Read(deploy()._replace(metrics=metrics), Environment("eu-west-1", {}), [])

    [found] = [one for one in examine_read(read, 20, replace(PRICES, sqs_standard=0.8)) if one.code == "SP305"]

    assert found.figures["dollars_per_month"] == 2.88


def test_the_cause_of_empty_receives_is_a_short_wait_of_this_environment_or_of_others() -> None:
    metrics = {sum_of_days(EMPTY_RECEIVES, SHOP): [Point(NOW - timedelta(days=2), 1_000_000)]}
    account = deploy()._replace(metrics=metrics)
    read = Read(account, Environment("eu-west-1", {}), [])

    [short] = [one for one in examine_read(read, 5) if one.code == "SP305"]
    [long] = find(account, "SP305")

    assert "waits for 5 s" in short.message
    assert "It is not this one" in long.message
    assert "Others wait for 0 s" in long.message


def test_drift_is_a_warning_a_missing_resource_an_error_and_tags_alone_a_note() -> None:
    other_tags = {TAGS: {"smartpipe:application": "smartpipe", "smartpipe:prefix": "t-"}}
    account = deploy(t_shop={"VisibilityTimeout": "7"}, t_shop_dlq=other_tags)
    desired, actual = account.desired, account.actual.replace(topic={})
    found = find(account._replace(changes=plan(desired, actual)), "SP306")

    assert {(one.resource, one.severity) for one in found} == {
        ("topic t-live-orders", "error"),
        ("queue t-shop", "warning"),
        ("queue t-shop-dlq", "note"),
    }
    assert any("VisibilityTimeout: 7 → 30" in one.message for one in found)


def test_an_orphan_is_a_note_and_an_unwanted_subscription_a_warning() -> None:
    changes = [
        Change("orphaned", "queue", (f"{SQS}old",), {}, {}, "no TARGET declares it"),
        Change("delete", "subscription", (ORDERS, SHOP), {}, {}, "no handler needs its events any more"),
    ]

    assert [one.severity for one in find(deploy()._replace(changes=changes), "SP306")] == ["note", "warning"]


def test_a_subscription_that_the_owner_of_a_queue_has_to_make_is_a_warning() -> None:
    account = deploy(queue=Queue("theirs", existing=True))
    missing = account.actual.replace(subscription={})

    [found] = find(account._replace(changes=plan(account.desired, missing)), "SP306")

    assert found.severity == "warning"
    assert "its events do not arrive" in found.message


def test_other_settings_of_the_queue_of_another_team_are_not_drift() -> None:
    changed = {"VisibilityTimeout": "7", "MessageRetentionPeriod": "60", "KmsMasterKeyId": "alias/theirs"}

    assert find(deploy(queue=Queue("theirs", existing=True), t_theirs=changed)) == []


KEY = "alias/shop"


def with_key(key: Key | None, **attributes: str) -> list[Finding]:
    account = deploy(queue=Queue("shop", kms_key=KEY), t_shop=attributes)
    return find(account._replace(keys={KEY: key} if key else {}), "SP307")


def test_a_key_whose_policy_does_not_let_sns_encrypt_is_an_error_with_the_statement() -> None:
    [found] = with_key(Key("CUSTOMER", "Enabled", policy(Principal={"AWS": "arn:aws:iam::123456789012:root"})))
    good = json.dumps({"Statement": [build_key_statement(SHOP, [ORDERS])]})

    assert found.severity == "error"
    assert "kms:GenerateDataKey*" in found.remedy
    assert with_key(Key("CUSTOMER", "Enabled", good)) == []
    assert with_key(Key("CUSTOMER", "Enabled", None)) == []
    assert with_key(None) == []


@pytest.mark.parametrize("key", [Key("AWS", "Enabled", "{}"), Key("CUSTOMER", "PendingDeletion", "{}")])
def test_a_key_of_aws_and_a_key_that_is_being_deleted_are_errors(key: Key) -> None:
    assert [one.severity for one in with_key(key)] == ["error"]


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ({"Action": "kms:*"}, True),
        ({"Action": ["kms:GenerateDataKey", "kms:Decrypt"]}, True),
        ({"Action": ["kms:Decrypt"]}, False),
        ({"Action": "kms:*", "Condition": {"StringEquals": {"aws:SourceAccount": "999999999999"}}}, False),
        ({"Action": "kms:*", "Condition": {"ArnLike": {"aws:SourceArn": f"{SNS}*"}}}, True),
        ({"Action": "kms:*", "Principal": {"Service": "sqs.amazonaws.com"}}, False),
        ({"Action": "kms:*", "Principal": "*"}, True),
        ({"Action": "kms:*", "Effect": "Deny"}, False),
    ],
)
def test_a_key_policy_is_evaluated_for_the_topic(statement: dict[str, Any], allowed: bool) -> None:
    text = policy(**{"Principal": {"Service": "sns.amazonaws.com"}, **statement})

    assert allows_sns(text, ORDERS, SHOP) is allowed


def test_a_short_reuse_of_data_keys_is_a_note_with_the_calls_of_kms() -> None:
    [found] = with_key(None, KmsDataKeyReusePeriodSeconds="60")

    assert (found.severity, found.figures["calls_per_month"]) == ("note", 43_200)
    assert with_key(None, KmsDataKeyReusePeriodSeconds="300") == []


@pytest.mark.parametrize(("seconds", "count"), [(61, 1), (-61, 1), (60, 0), (-60, 0)])
def test_a_clock_that_is_more_than_a_minute_wrong_is_an_error(seconds: int, count: int) -> None:
    found = find(deploy(), "SP308", clock=Clock(NOW + timedelta(seconds=seconds), NOW))

    assert [one.severity for one in found] == ["error"] * count


def test_credentials_that_expire_within_an_hour_are_a_warning() -> None:
    [found] = find(deploy(), "SP308", expiry=NOW + timedelta(minutes=59))

    assert (found.severity, found.resource) == ("warning", "credentials")
    assert find(deploy(), "SP308", expiry=NOW + timedelta(minutes=61)) == []


def test_an_account_that_is_not_that_of_the_credentials_is_a_warning() -> None:
    assert [one.severity for one in find(deploy(), "SP308", account_id="999999999999")] == ["warning"]
    assert find(deploy(), "SP308", account_id="123456789012") == []


def test_an_address_in_another_region_is_an_error() -> None:
    urls = {"queue t-shop": "https://sqs.us-east-1.amazonaws.com/123456789012/t-shop"}

    [found] = find(deploy(), "SP308", urls=urls)

    assert (found.severity, found.resource, found.figures["address_region"]) == ("error", "queue t-shop", "us-east-1")


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "eu-west-1"),
        ("https://vpce-1a.sqs.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
        ("https://queue.amazonaws.com/1/q", None),
        ("http://localhost:4566/1/q", None),
        ("http://sqs.eu-west-1.localhost.localstack.cloud:4566/1/q", None),
    ],
)
def test_the_region_of_an_address_is_known_only_for_aws(url: str, region: str | None) -> None:
    assert find_region(url) == region


def test_a_subscription_that_waits_for_its_confirmation_delivers_nothing() -> None:
    [found] = find(deploy()._replace(pending=frozenset({(ORDERS, SHOP), (ORDERS, "x@example.com")})), "SP309")

    assert found.resource == "subscription t-live-orders → t-shop"


def test_a_filter_policy_that_was_changed_within_15_minutes_is_a_note() -> None:
    account = deploy()
    account.actual.subscriptions[ORDERS, SHOP]["SubscriptionArn"] = "arn:1"
    recently, earlier = (
        find(account._replace(filter_changes={"arn:1": NOW - timedelta(minutes=minutes)}), "SP309")
        for minutes in (14, 15)
    )

    assert [one.severity for one in recently] == ["note"]
    assert earlier == []


def test_an_external_queue_that_accepts_less_than_its_topic_is_a_warning() -> None:
    queue = Queue("theirs", existing=True)
    bad = find(deploy(Scanned, queue, t_theirs={"MaximumMessageSize": "262144"}), "SP309")

    assert [one.figures for one in bad] == [{"queue_bytes": 262_144, "topic_bytes": 1_048_576}]
    assert find(deploy(Scanned, queue, t_theirs={"MaximumMessageSize": "1048576"}), "SP309") == []
    assert find(deploy(Ordered, queue, t_theirs={"MaximumMessageSize": "262144"}), "SP309") == []
    assert len(find(deploy(Scanned, queue, t_theirs={"MaximumMessageSize": "1024"}), "SP309")) == 1


def test_apply_raises_the_limit_of_an_own_queue_so_it_is_only_drift() -> None:
    account = deploy(Scanned, t_shop={"MaximumMessageSize": "262144"})

    assert find(account, "SP309") == []
    assert [one.resource for one in find(account, "SP306")] == ["queue t-shop"]


def test_noisy_tenants_are_a_note() -> None:
    metric = recent(NOISY_GROUPS, SHOP, "Maximum")

    assert [one.severity for one in find(deploy()._replace(metrics={metric: points(0, 2, 0)}), "SP310")] == ["note"]
    assert find(deploy()._replace(metrics={metric: points(0, 0)}), "SP310") == []


def test_a_fifo_queue_with_a_backlog_of_one_group_is_a_warning() -> None:
    arn = f"{SQS}shop.fifo"
    waiting, groups = recent(DEPTH, arn, "Minimum"), recent(GROUPS_IN_FLIGHT, arn, "Maximum")
    account = deploy(Stepped, Queue("shop", fifo=True))

    def count(metrics: Any) -> int:
        return len(find(account._replace(metrics=metrics), "SP310"))

    assert count({waiting: points(50, 10), groups: points(1, 1)}) == 1
    assert count({waiting: points(50, 9), groups: points(1, 1)}) == 0
    assert count({waiting: points(50, 10), groups: points(1, 2)}) == 0
    assert count({groups: points(1, 1)}) == 0


def test_refused_actions_are_one_finding_for_each_that_names_it() -> None:
    denials = [Denial("sqs:ListQueueTags", SHOP), Denial("sqs:ListQueueTags", DEAD), Denial("kms:GetKeyPolicy", "*")]

    found = list(find_denials(denials))

    assert [(one.code, one.resource, one.severity) for one in found] == [
        ("SP300", "kms:GetKeyPolicy", "warning"),
        ("SP300", "sqs:ListQueueTags", "warning"),
    ]
    assert "t-shop, t-shop-dlq" in found[1].message
