"""Creates the resources of a CloudFormation template with calls of SNS and SQS; emulators support only a part of it.

Source: AWS CloudFormation, template reference: the "Return values" and the properties of AWS::SQS::Queue,
AWS::SQS::QueuePolicy, AWS::SNS::Topic and AWS::SNS::Subscription; "Pseudo parameters".
"""

from __future__ import annotations

import json
import re
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import boto3

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(r"\$\{([^!}]+)\}")


class Stack:
    """One stack: ``make`` creates each resource after those that it refers to or depends on."""

    def __init__(self, template: dict[str, Any]) -> None:
        self._resources: dict[str, dict[str, Any]] = template["Resources"]
        self._outputs: dict[str, dict[str, Any]] = template.get("Outputs", {})
        self._conditions: dict[str, Any] = template.get("Conditions", {})
        identity = boto3.client("sts").get_caller_identity()
        self._sns: Any = boto3.client("sns")
        self._sqs: Any = boto3.client("sqs")
        self._references = {
            "AWS::AccountId": identity["Account"],
            "AWS::Partition": identity["Arn"].split(":")[1],
            "AWS::Region": self._sns.meta.region_name,
        }
        self._attributes: dict[tuple[str, str], str] = {}

    def make(self) -> dict[str, str]:
        """Create the resources; return the outputs."""
        graph = {name: set(self._list_dependencies(resource)) for name, resource in self._resources.items()}
        make = {
            "AWS::SQS::Queue": self._make_queue,
            "AWS::SQS::QueuePolicy": self._make_queue_policy,
            "AWS::SNS::Topic": self._make_topic,
            "AWS::SNS::Subscription": self._make_subscription,
        }
        for name in TopologicalSorter(
            graph
        ).static_order():  # raises CycleError; CloudFormation would refuse the template
            resource = self._resources[name]
            make[resource["Type"]](name, self._resolve(resource["Properties"]))
        return {name: self._resolve(output["Value"]) for name, output in self._outputs.items()}

    def _list_dependencies(self, resource: dict[str, Any]) -> Iterator[str]:
        yield from resource.get("DependsOn", [])
        yield from (name for name in _list_references(resource["Properties"]) if not name.startswith("AWS::"))

    def _resolve(self, value: Any) -> Any:
        match value:
            case {"Ref": name}:
                return self._references[name]
            case {"Fn::GetAtt": [name, attribute]}:
                return self._attributes[name, attribute]
            case {"Fn::Sub": str(text)}:
                return _TOKEN.sub(lambda token: self._references[token[1]], text)
            case {"Fn::If": [condition, chosen, otherwise]}:
                return self._resolve(chosen if self._resolve(self._conditions[condition]) else otherwise)
            case {"Fn::Equals": [one, other]}:
                return self._resolve(one) == self._resolve(other)
            case {"Fn::Or": terms}:
                assert 2 <= len(terms) <= 10, "CloudFormation accepts 2 to 10"
                return any(map(self._resolve, terms))
            case dict():
                return {key: self._resolve(one) for key, one in value.items()}
            case list():
                return [self._resolve(one) for one in value]
        return value

    def _make_queue(self, name: str, properties: dict[str, Any]) -> None:
        tags = {tag["Key"]: tag["Value"] for tag in properties.pop("Tags", [])}
        queue_name = properties.pop("QueueName")
        url = self._sqs.create_queue(QueueName=queue_name, Attributes=texts(properties), tags=tags)["QueueUrl"]
        found = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
        self._references[name] = url
        self._attributes[name, "Arn"] = found["QueueArn"]

    def _make_queue_policy(self, _: str, properties: dict[str, Any]) -> None:
        for url in properties["Queues"]:
            policy = json.dumps(properties["PolicyDocument"])
            self._sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})

    def _make_topic(self, name: str, properties: dict[str, Any]) -> None:
        tags = properties.pop("Tags", [])
        topic_name = properties.pop("TopicName")
        arn = self._sns.create_topic(Name=topic_name, Attributes=texts(properties), Tags=tags)["TopicArn"]
        self._sns.tag_resource(ResourceArn=arn, Tags=tags)  # ministack ignores the tags of CreateTopic
        self._references[name] = arn

    def _make_subscription(self, name: str, properties: dict[str, Any]) -> None:
        region = properties.pop("Region", None)
        sns: Any = boto3.client("sns", region_name=region) if region else self._sns
        arguments = {word: properties.pop(word) for word in ("TopicArn", "Protocol", "Endpoint")}
        made = sns.subscribe(**arguments, Attributes=texts(properties), ReturnSubscriptionArn=True)
        self._references[name] = made["SubscriptionArn"]


def texts(attributes: dict[str, Any]) -> dict[str, str]:
    """Return attributes as text, as SNS and SQS accept them."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in attributes.items()}


def _list_references(value: Any) -> Iterator[str]:
    match value:
        case {"Ref": str(name)} | {"Fn::GetAtt": [str(name), _]}:
            yield name
        case {"Fn::Sub": str(text)}:
            yield from _TOKEN.findall(text)
        case dict():
            for one in value.values():
                yield from _list_references(one)
        case list():
            for one in value:
                yield from _list_references(one)
