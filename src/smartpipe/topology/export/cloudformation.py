"""An AWS CloudFormation template that creates what ``topology apply`` does. Pure.

Source: AWS CloudFormation, template reference of AWS::SQS::Queue, AWS::SQS::QueuePolicy, AWS::SNS::Topic and
AWS::SNS::Subscription, and "Understand CloudFormation quotas".
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError
from smartpipe.names import name_in, region_in
from smartpipe.topics import FIFO_SUFFIX
from smartpipe.topology.derive import derive
from smartpipe.topology.export.portable import (
    REGION,
    Principals,
    declared_names,
    portable,
    principals_of,
    rewrite,
    typed,
    unique,
    with_tokens,
)
from smartpipe.topology.regions import ENABLED_BY_DEFAULT, LISTED_TWICE
from smartpipe.topology.resources import TAGS, TOPIC_DEFAULTS, Attributes, dead_letter_of, without_defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Topology

MAX_RESOURCES = 500
MAX_OUTPUTS = 200
_BY_DEFAULT = "RegionIsEnabledByDefault"
_FUNCTION = re.compile(r'"(Ref|Condition|Fn::[A-Za-z:]+)":')
_ARN = r"arn:${AWS::Partition}:\1:${AWS::Region}:${AWS::AccountId}:"


def template(services: Iterable[Declares], *, prefix: str, application: str) -> dict[str, Any]:
    """Return the template of all that *services* need, for any account and region.

    External resources, declared by their ARNs, are subscribed to and never created. Beyond 200 topics and
    queues, which is CloudFormation's limit, there are no outputs.

    Raises:
        ConfigError: The declarations contradict each other, or make more than 500 resources.
    """
    topology = derive(services, portable(prefix, application))
    names = declared_names(topology, prefix)
    ids = unique({arn: _logical_id(arn, name) for arn, name in names.items()})
    resources = {
        **{ids[arn]: _topic(arn, topology.topics[arn]) for arn in topology.topics if arn in ids},
        **{ids[arn]: _queue(arn, topology.queues[arn], ids) for arn in topology.queues if arn in ids},
        **_policies(topology, ids),
        **_subscriptions(topology, ids),
    }
    if len(resources) > MAX_RESOURCES:
        msg = (
            f"the template would have {len(resources)} resources, and CloudFormation takes {MAX_RESOURCES} in a stack: "
            "export TARGETs that share no topics by themselves, or use `--format terraform`, which has no such limit"
        )
        raise ConfigError(msg)
    outputs = {name: value for arn, one in ids.items() for name, value in _output(arn, one)}
    conditions = _conditions(resources, topology)
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Topics, queues and subscriptions of application {application} by smartpipe",
        **({"Conditions": conditions} if conditions else {}),
        "Resources": dict(sorted(resources.items())),
        **({"Outputs": dict(sorted(outputs.items()))} if len(outputs) <= MAX_OUTPUTS else {}),
    }


def _logical_id(arn: str, name: str) -> str:
    """Return letters and digits only, as in ``EmailVerificationQueue``."""
    words = re.split(r"[^A-Za-z0-9]+", name.removesuffix(FIFO_SUFFIX))
    kind = "Topic" if ":sns:" in arn else "Queue"
    return (
        "".join(word[:1].upper() + word[1:] for word in words) + kind + ("Fifo" if name.endswith(FIFO_SUFFIX) else "")
    )


def _say(ids: Mapping[str, str], text: str) -> Any:
    """Return the reference to what has this ARN, or stands in for the account; other text as it is."""
    if text in ids:
        return {"Ref": ids[text]} if ":sns:" in text else {"Fn::GetAtt": [ids[text], "Arn"]}
    return _substituted(text)


def _substituted(text: str) -> Any:
    found = with_tokens(text, _ARN, "${AWS::AccountId}")
    return text if found == text else {"Ref": "AWS::AccountId"} if found == "${AWS::AccountId}" else {"Fn::Sub": found}


def _topic(arn: str, attributes: Attributes) -> dict[str, Any]:
    said = without_defaults(attributes, TOPIC_DEFAULTS)
    return {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": name_in(arn), **_properties(said)}}


def _queue(arn: str, attributes: Attributes, ids: Mapping[str, str]) -> dict[str, Any]:
    said = {name: value for name, value in attributes.items() if name != "Policy" and value != ""}
    references: dict[str, Callable[[str], Any]] = {
        "RedrivePolicy": partial(_say, ids),
        "RedriveAllowPolicy": _substituted,  # in words, for a reference back would close a circle
    }
    for name, say in references.items():
        if name in said:
            said[name] = rewrite(said[name], say)
    return {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": name_in(arn), **_properties(said)}}


def _properties(attributes: Attributes) -> dict[str, Any]:
    tags = [{"Key": key, "Value": value} for key, value in attributes[TAGS].items()]
    return {**{name: typed(name, value) for name, value in attributes.items() if name != TAGS}, TAGS: tags}


def _policies(topology: Topology, ids: Mapping[str, str]) -> dict[str, Any]:
    return {
        _policy_id(ids[arn]): {
            "Type": "AWS::SQS::QueuePolicy",
            "Properties": {
                "Queues": [{"Ref": ids[arn]}],
                "PolicyDocument": {
                    **attributes["Policy"],
                    "Statement": [_statement(one, ids) for one in attributes["Policy"]["Statement"]],
                },
            },
        }
        for arn, attributes in topology.queues.items()
        if arn in ids and attributes["Policy"]["Statement"]
    }


def _statement(statement: dict[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = rewrite(statement, partial(_say, ids))
    principals = principals_of(statement)
    return found if principals is None else {**found, "Principal": {"Service": _chosen(principals)}}


def _chosen(principals: Principals) -> Any:
    """Return the principals as a choice that CloudFormation makes by the stack's region."""
    found: Any = [_regional(one) for one in principals.opt_in]
    if principals.by_default != principals.opt_in:
        found = {"Fn::If": [_BY_DEFAULT, principals.by_default, found]}
    for region, let_in in principals.within.items():
        found = {"Fn::If": [_within(region), let_in, found]}
    return found


def _regional(principal: str) -> Any:
    return {"Fn::Sub": principal.replace(REGION, "${AWS::Region}")} if REGION in principal else principal


def _within(region: str) -> str:
    return "RegionIs" + "".join(word.capitalize() for word in region.split("-"))


def _conditions(resources: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
    """Return the conditions that *resources* go by; an ``Fn::Or`` takes ten terms."""
    halves = ENABLED_BY_DEFAULT[:9], ENABLED_BY_DEFAULT[9:]
    known = {_BY_DEFAULT: {"Fn::Or": [{"Fn::Or": [_is(region) for region in half]} for half in halves]}}
    known |= {_within(region): _is(region) for region in (*map(region_in, topology.external), *LISTED_TWICE)}
    text = json.dumps(resources)
    return {name: condition for name, condition in sorted(known.items()) if f'"Fn::If": ["{name}"' in text}


def _is(region: str) -> dict[str, Any]:
    return {"Fn::Equals": [{"Ref": "AWS::Region"}, region]}


def _policy_id(queue_id: str) -> str:
    return f"{queue_id}Policy"


def _subscriptions(topology: Topology, ids: Mapping[str, str]) -> dict[str, Any]:
    wanted = {arns: attributes for arns, attributes in topology.subscriptions.items() if arns[1] in ids}
    names = unique({arns: f"{_topic_id(arns[0], ids)}{ids[arns[1]]}Subscription" for arns in wanted})
    return {names[arns]: _subscription(*arns, attributes, ids) for arns, attributes in wanted.items()}


def _topic_id(arn: str, ids: Mapping[str, str]) -> str:
    return ids.get(arn) or _logical_id(arn, name_in(arn))


def _subscription(topic_arn: str, queue_arn: str, attributes: Attributes, ids: Mapping[str, str]) -> dict[str, Any]:
    dead_letter = dead_letter_of(attributes)
    letting_in = [queue_arn, *([dead_letter] if dead_letter else [])]
    said = {name: typed(name, value) for name, value in attributes.items()}
    said["FilterPolicy"] = _literal(said["FilterPolicy"])
    if dead_letter:
        said["RedrivePolicy"] = rewrite(said["RedrivePolicy"], partial(_say, ids))
    return {
        "Type": "AWS::SNS::Subscription",
        # What is published before the policies let it in would be lost.
        "DependsOn": [_policy_id(ids[arn]) for arn in letting_in],
        "Properties": {
            "TopicArn": _say(ids, topic_arn),
            "Protocol": "sqs",
            "Endpoint": _say(ids, queue_arn),
            **({} if topic_arn in ids else {"Region": region_in(topic_arn)}),
            **said,
        },
    }


def _literal(policy: dict[str, Any]) -> Any:
    """Return a user's policy as JSON text where CloudFormation would take one of its names for a function."""
    text = json.dumps(policy)
    return text if _FUNCTION.search(text) else policy


def _output(arn: str, logical_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what programs in other languages, and other stacks, ask for."""
    if ":sns:" in arn:
        return [(f"{logical_id}Arn", {"Description": f"ARN of {name_in(arn)}", "Value": {"Ref": logical_id}})]
    return [(f"{logical_id}Url", {"Description": f"URL of {name_in(arn)}", "Value": {"Ref": logical_id}})]
