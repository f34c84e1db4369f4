"""The parts of Terraform and its AWS provider that exports need: arguments of resources, and the calls for them.

Written from hashicorp/aws 6.36.0's documentation of ``aws_sqs_queue``, ``aws_sqs_queue_policy``,
``aws_sqs_queue_redrive_allow_policy``, ``aws_sns_topic`` and ``aws_sns_topic_subscription``, and from Terraform's
"JSON Configuration Syntax" and "Strings and Templates".
"""

from __future__ import annotations

import json
import re
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import boto3

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMPLATE = re.compile(r"\$\$\{|%%\{|\$\{([^}]*)\}")
_CHOICE = re.compile(r"(.+?) \? jsonencode\((\[.*?\])\) : ")
_LAST = re.compile(r"jsonencode\((\[.*\])\)")
_REFERENCE = re.compile(r"((?:data\.)?[a-z_]+\.[A-Za-z0-9_-]+)\.([a-z_]+)")
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
META_ARGUMENTS = {"depends_on": list}

# Argument → type, of version 6.36.0. Every resource has `region` since 6.0.
ARGUMENTS: dict[str, dict[str, type]] = {
    "aws_sqs_queue": {
        "name": str, "delay_seconds": int, "deduplication_scope": str, "fifo_queue": bool, "fifo_throughput_limit": str,
        "kms_master_key_id": str, "max_message_size": int, "message_retention_seconds": int, "policy": str,
        "redrive_allow_policy": str, "redrive_policy": str, "region": str, "sqs_managed_sse_enabled": bool,
        "tags": dict, "visibility_timeout_seconds": int,
    },
    "aws_sqs_queue_policy": {"queue_url": str, "policy": str, "region": str},
    "aws_sqs_queue_redrive_allow_policy": {"queue_url": str, "redrive_allow_policy": str, "region": str},
    "aws_sns_topic": {
        "name": str, "fifo_topic": bool, "fifo_throughput_scope": str, "kms_master_key_id": str, "region": str,
        "tags": dict,
    },
    "aws_sns_topic_subscription": {
        "topic_arn": str, "protocol": str, "endpoint": str, "filter_policy": str, "filter_policy_scope": str,
        "raw_message_delivery": bool, "redrive_policy": str, "region": str,
    },
}  # fmt: skip
REQUIRED = {
    "aws_sqs_queue_policy": {"queue_url", "policy"},
    "aws_sqs_queue_redrive_allow_policy": {"queue_url", "redrive_allow_policy"},
    "aws_sns_topic_subscription": {"topic_arn", "protocol", "endpoint"},
}
CONFLICTS = {"aws_sqs_queue": {"kms_master_key_id", "sqs_managed_sse_enabled"}}
EXPORTED = {
    "aws_sqs_queue": {"arn", "id", "url"},
    "aws_sns_topic": {"arn", "id"},
    "data.aws_caller_identity": {"account_id"},
    "data.aws_partition": {"partition"},
    "data.aws_region": {"region"},
}
JSON_ARGUMENTS = {"policy", "redrive_policy", "redrive_allow_policy", "filter_policy"}
"""Arguments that must be JSON after the references in them are resolved."""
SQS_DEFAULT = "1048576"
_QUEUE_DEFAULTS: dict[str, Any] = {
    "delay_seconds": 0, "max_message_size": 262_144, "message_retention_seconds": 345_600,
    "visibility_timeout_seconds": 30,
}  # fmt: skip
_QUEUE_ATTRIBUTES = {
    "delay_seconds": "DelaySeconds",
    "deduplication_scope": "DeduplicationScope",
    "fifo_queue": "FifoQueue",
    "fifo_throughput_limit": "FifoThroughputLimit",
    "kms_master_key_id": "KmsMasterKeyId",
    "max_message_size": "MaximumMessageSize",
    "message_retention_seconds": "MessageRetentionPeriod",
    "redrive_policy": "RedrivePolicy",
    "sqs_managed_sse_enabled": "SqsManagedSseEnabled",
    "visibility_timeout_seconds": "VisibilityTimeout",
}
_TOPIC_ATTRIBUTES = {
    "fifo_topic": "FifoTopic",
    "fifo_throughput_scope": "FifoThroughputScope",
    "kms_master_key_id": "KmsMasterKeyId",
}
_SUBSCRIPTION_ATTRIBUTES = {
    "filter_policy": "FilterPolicy",
    "filter_policy_scope": "FilterPolicyScope",
    "raw_message_delivery": "RawMessageDelivery",
    "redrive_policy": "RedrivePolicy",
}


def find_errors(configuration: dict[str, Any]) -> list[str]:
    """Return the errors that Terraform or its AWS provider would report."""
    found = []
    blocks = {f"{kind}.{label}": block for kind, label, block in _blocks(configuration)}
    known = {*blocks, *(f"data.{kind}.{label}" for kind, by in configuration.get("data", {}).items() for label in by)}
    choices: dict[str, str] = configuration.get("locals", {})
    found += [
        f"{name}: this is not a choice by region: {text}" for name, text in choices.items() if not choice_in(text)
    ]
    used = json.dumps(configuration["resource"])
    found += [f"local.{name} is not used" for name in choices if f"${{local.{name}}}" not in used]
    for address, block in blocks.items():
        kind, _, label = address.partition(".")
        arguments = {**ARGUMENTS.get(kind, {}), **META_ARGUMENTS}
        found += [f"{address}: no such argument {name}" for name in block if name not in arguments]
        found += [
            f"{address}: {name} is not of type {arguments[name].__name__}"
            for name, value in block.items()
            if name in arguments and type(value) is not arguments[name]
        ]
        found += [f"{address}: {name} is required" for name in REQUIRED.get(kind, set()) - block.keys()]
        found += [
            f"{address}: these conflict: {both}" for both in [CONFLICTS.get(kind)] if both and both <= block.keys()
        ]
        found += [] if LABEL.fullmatch(label) else [f"{address}: {label} is not an identifier"]
        found += [
            f"{address}: depends on {one}, which does not exist"
            for one in block.get("depends_on", [])
            if one not in known
        ]
    for text in _texts({**configuration, "locals": {}}):
        for expression in filter(None, _TEMPLATE.findall(text)):
            if expression.removeprefix("local.") in choices:
                continue
            match = _REFERENCE.fullmatch(expression)
            exported = EXPORTED.get(match[1].rpartition(".")[0], set()) if match else set()
            if not match or match[1] not in known or match[2] not in exported:
                found.append(f"{expression} refers to an unknown object")
    return found


def choice_in(text: str) -> tuple[list[tuple[str, list[str]]], list[str]] | None:
    """Parse a conditional on the region: conditions with a list each, and the list for all other regions."""
    whole = text.removeprefix("${").removesuffix("}")
    choices = [(found[1], json.loads(found[2])) for found in _CHOICE.finditer(whole)]
    last = _LAST.fullmatch(_CHOICE.sub("", whole))
    return (choices, json.loads(last[1])) if last else None


def chosen_in(text: str, region: str) -> str:
    """Return the value of a conditional in a region, as JSON."""
    choices, otherwise = choice_in(text) or ([], [])
    chosen = [values for condition, values in choices if _holds(condition, region)]
    return json.dumps([one.replace("${data.aws_region.current.region}", region) for one in [*chosen, otherwise][0]])


def _holds(condition: str, region: str) -> bool:
    if match := re.fullmatch(r'data\.aws_region\.current\.region == "([a-z0-9-]+)"', condition):
        return match[1] == region
    match = re.fullmatch(r"contains\((\[.*\]), data\.aws_region\.current\.region\)", condition)
    assert match, condition
    return region in json.loads(match[1])


class Workspace:
    """Applies a configuration: creates each resource after those that it refers to."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._blocks = {f"{kind}.{label}": block for kind, label, block in _blocks(configuration)}
        self._outputs: dict[str, Any] = configuration.get("output", {})
        identity = boto3.client("sts").get_caller_identity()
        self._sns: Any = boto3.client("sns")
        self._sqs: Any = boto3.client("sqs")
        self._known = {
            "data.aws_caller_identity.current.account_id": identity["Account"],
            "data.aws_partition.current.partition": identity["Arn"].split(":")[1],
            "data.aws_region.current.region": self._sns.meta.region_name,
        }
        region = self._sns.meta.region_name
        self._known |= {
            f"local.{name}": chosen_in(text, region) for name, text in configuration.get("locals", {}).items()
        }

    def apply(self) -> dict[str, Any]:
        """Create the resources; return the outputs."""
        make = {
            "aws_sqs_queue": self._make_queue,
            "aws_sqs_queue_policy": self._set_attribute,
            "aws_sqs_queue_redrive_allow_policy": self._set_attribute,
            "aws_sns_topic": self._make_topic,
            "aws_sns_topic_subscription": self._make_subscription,
        }
        graph = {address: set(self._list_dependencies(block)) for address, block in self._blocks.items()}
        for address in TopologicalSorter(graph).static_order():  # raises CycleError, as Terraform would
            block = {name: self._resolve(value) for name, value in self._blocks[address].items()}
            block.pop("depends_on", None)
            make[address.partition(".")[0]](address, block)
        return {name: self._resolve(output["value"]) for name, output in self._outputs.items()}

    def _list_dependencies(self, block: dict[str, Any]) -> Iterator[str]:
        yield from block.get("depends_on", [])
        for text in _texts(block):
            for expression in filter(None, _TEMPLATE.findall(text)):
                if not expression.startswith(("data.", "local.")):
                    yield expression.rpartition(".")[0]

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._resolve(one) for name, one in value.items()}
        if isinstance(value, list):
            return [self._resolve(one) for one in value]
        if isinstance(value, str):
            return _TEMPLATE.sub(lambda found: self._known[found[1]] if found[1] else found[0][1:], value)
        return value

    def _make_queue(self, address: str, block: dict[str, Any]) -> None:
        attributes = _attributes({**_QUEUE_DEFAULTS, **block}, _QUEUE_ATTRIBUTES)
        if (
            attributes["MaximumMessageSize"] == SQS_DEFAULT
        ):  # the default of ministack, which refuses it as an attribute
            del attributes["MaximumMessageSize"]
        made = self._sqs.create_queue(QueueName=block["name"], Attributes=attributes, tags=block.get("tags", {}))
        url = made["QueueUrl"]
        found = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
        self._known |= {f"{address}.url": url, f"{address}.id": url, f"{address}.arn": found["QueueArn"]}

    def _set_attribute(self, _: str, block: dict[str, Any]) -> None:
        names = {"policy": "Policy", "redrive_allow_policy": "RedriveAllowPolicy"}
        url = block["queue_url"]
        # moto drops a queue's policy when another attribute is set.
        kept = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"]).get("Attributes", {})
        self._sqs.set_queue_attributes(QueueUrl=url, Attributes={**kept, **_attributes(block, names)})

    def _make_topic(self, address: str, block: dict[str, Any]) -> None:
        tags = [{"Key": key, "Value": value} for key, value in block.get("tags", {}).items()]
        attributes = _attributes(block, _TOPIC_ATTRIBUTES)
        arn = self._sns.create_topic(Name=block["name"], Attributes=attributes, Tags=tags)["TopicArn"]
        self._sns.tag_resource(ResourceArn=arn, Tags=tags)  # ministack ignores the tags of CreateTopic
        self._known |= {f"{address}.arn": arn, f"{address}.id": arn}

    def _make_subscription(self, _: str, block: dict[str, Any]) -> None:
        region = block.get("region")
        sns: Any = boto3.client("sns", region_name=region) if region else self._sns
        sns.subscribe(
            TopicArn=block["topic_arn"],
            Protocol=block["protocol"],
            Endpoint=block["endpoint"],
            Attributes=_attributes(block, _SUBSCRIPTION_ATTRIBUTES),
        )


def _attributes(block: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    for name in JSON_ARGUMENTS & block.keys():
        json.loads(block[name])
    values = {names[name]: value for name, value in block.items() if name in names}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _blocks(configuration: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for kind, labelled in configuration["resource"].items():
        for label, block in labelled.items():
            yield kind, label, block


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
