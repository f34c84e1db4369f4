"""CloudWatch alarms on the metrics of SQS and SNS, as resources of a CloudFormation template. Pure.

Source: AWS CloudFormation, AWS::CloudWatch::Alarm; Amazon SQS, "Available CloudWatch metrics"; Amazon SNS, "Viewing
CloudWatch metrics".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.names import name_in
from smartpipe.topics import FIFO_SUFFIX
from smartpipe.topology.resources import dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from smartpipe.monitoring.rules import AlertOptions
    from smartpipe.topology.resources import Topology

ALARM_TOPIC = "AlarmTopicArn"
PARAMETERS = {
    ALARM_TOPIC: {
        "Type": "String",
        "Default": "",
        "Description": "ARN of the SNS topic that CloudWatch notifies; empty: the alarms only change their state.",
    }
}
_HAS_TOPIC = "HasAlarmTopic"
CONDITIONS = {_HAS_TOPIC: {"Fn::Not": [{"Fn::Equals": [{"Ref": ALARM_TOPIC}, ""]}]}}
ACTIONS = {"Fn::If": [_HAS_TOPIC, [{"Ref": ALARM_TOPIC}], {"Ref": "AWS::NoValue"}]}
"""The value of ``AlarmActions`` and ``OKActions``."""


class _Alarm(NamedTuple):
    """An alarm, for a metric above a threshold in each of *minutes* one after the other."""

    suffix: str
    metric: str
    statistic: str
    threshold: float
    minutes: int
    text: str
    page: str


def render_alarms(
    topology: Topology, ids: Mapping[str, str], options: AlertOptions, refer: Callable[[str], Any]
) -> dict[str, Any]:
    """Return the alarms of the topics and queues that *ids* has, by logical id.

    Args:
        ids: The logical ids of the topics and queues, by ARN.
        refer: Returns the name of a topic or queue, as a text or as a reference to a resource, for its ARN.
    """
    dead_letter_arns = {dead_letter_of(attributes) for attributes in topology.queues.values()}
    found: dict[str, Any] = {}
    for arn, logical_id in ids.items():
        if arn in topology.topics:
            namespace, dimension, alarms = "AWS/SNS", "TopicName", _alarms_of_topic(arn)
        elif arn in dead_letter_arns:
            namespace, dimension, alarms = "AWS/SQS", "QueueName", _alarms_of_dead_letter_queue(arn)
        else:
            namespace, dimension = "AWS/SQS", "QueueName"
            alarms = _alarms_of_queue(arn, int(topology.queues[arn].get("DelaySeconds", 0)), options)
        for alarm in alarms:
            properties = {
                "AlarmName": f"{name_in(arn)}-{alarm.metric}",
                "AlarmDescription": f"{alarm.text} Runbook: {options.url_of(alarm.page)}",
                "Namespace": namespace,
                "MetricName": alarm.metric,
                "Dimensions": [{"Name": dimension, "Value": refer(arn)}],
                "Statistic": alarm.statistic,
                "Period": 60,
                "EvaluationPeriods": alarm.minutes,
                "Threshold": alarm.threshold,
                "ComparisonOperator": "GreaterThanThreshold",
                # SQS and SNS send no data while a queue or a topic is not used.
                "TreatMissingData": "notBreaching",
                "AlarmActions": ACTIONS,
                "OKActions": ACTIONS,
            }
            found[f"{logical_id}{alarm.suffix}Alarm"] = {"Type": "AWS::CloudWatch::Alarm", "Properties": properties}
    return found


def _alarms_of_dead_letter_queue(arn: str) -> Iterator[_Alarm]:
    text = f"Messages are in the dead-letter queue {name_in(arn)}. SQS deletes them after 14 days."
    yield _Alarm("NotEmpty", "ApproximateNumberOfMessagesVisible", "Maximum", 0, 1, text, "dead-letter-messages")


def _alarms_of_queue(arn: str, delay_seconds: int, options: AlertOptions) -> Iterator[_Alarm]:
    threshold = options.promise_seconds + delay_seconds
    text = f"The oldest message of queue {name_in(arn)} has been waiting for more than {threshold:g} s."
    if not arn.endswith(FIFO_SUFFIX):
        text += " SQS leaves out messages that were received three times or more, so failing messages may be older."
    yield _Alarm("Age", "ApproximateAgeOfOldestMessage", "Maximum", threshold, 10, text, "oldest-message")


def _alarms_of_topic(arn: str) -> Iterator[_Alarm]:
    text = f"SNS could not deliver messages of topic {name_in(arn)} to a queue."
    yield _Alarm("Failed", "NumberOfNotificationsFailed", "Sum", 0, 1, text, "failed-deliveries")
