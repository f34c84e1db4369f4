"""An AWS CloudFormation template that creates the same resources as ``topology apply``, or alarms for them. Pure.

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
from smartpipe.topology.export.alarms import CONDITIONS, PARAMETERS, render_alarms
from smartpipe.topology.export.portable import (
    REGION,
    Principals,
    convert,
    created_names,
    make_unique,
    portable_naming,
    principals_of,
    replace_placeholders,
    rewrite,
)
from smartpipe.topology.kinds import TOPIC, kind_of
from smartpipe.topology.regions import ENABLED_BY_DEFAULT, LISTED_TWICE
from smartpipe.topology.resources import TAGS, TOPIC_DEFAULTS, Attributes, dead_letter_of, omit_defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smartpipe.monitoring.rules import AlertOptions
    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Topology

MAX_RESOURCES = 500
MAX_OUTPUTS = 200
_BY_DEFAULT = "RegionIsEnabledByDefault"
_FUNCTION = re.compile(r'"(Ref|Condition|Fn::[A-Za-z:]+)":')
_ARN = r"arn:${AWS::Partition}:\1:${AWS::Region}:${AWS::AccountId}:"


def build_template(
    services: Iterable[Declares], *, prefix: str, application: str, alarms: AlertOptions | None = None
) -> dict[str, Any]:
    """Return the template of the topics, queues and subscriptions that *services* need, for any account and region.

    The template subscribes to external topics and does not create them. It has no outputs if it has more than 200
    topics and queues, which is CloudFormation's limit.

    Args:
        alarms: Also create CloudWatch alarms, with these options.

    Raises:
        ConfigError: The declarations contradict each other, or make more than 500 resources.
    """
    topology = derive(services, portable_naming(prefix, application))
    ids = _logical_ids(topology, prefix)
    resources = {name: one for render in _RENDERERS.values() for name, one in render(topology, ids).items()}
    if alarms is not None:
        resources |= render_alarms(topology, ids, alarms, partial(_refer_to_name, ids))
    if len(resources) > MAX_RESOURCES:
        msg = (
            f"the template would have {len(resources)} resources, and CloudFormation takes {MAX_RESOURCES} in a stack; "
            "export TARGETs that share no topics separately, or use `--format terraform`, which has no such limit"
        )
        raise ConfigError(msg)
    outputs = dict(_output(arn, logical_id) for arn, logical_id in ids.items())
    conditions = {**_conditions(resources, topology), **(CONDITIONS if alarms else {})}
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Topics, queues and subscriptions of application {application} by smartpipe",
        **({"Parameters": PARAMETERS} if alarms else {}),
        **({"Conditions": conditions} if conditions else {}),
        "Resources": dict(sorted(resources.items())),
        **({"Outputs": dict(sorted(outputs.items()))} if len(outputs) <= MAX_OUTPUTS else {}),
    }


def build_alarm_template(
    services: Iterable[Declares], *, prefix: str, application: str, options: AlertOptions
) -> dict[str, Any]:
    """Return a template with only the alarms, for topics and queues that ``topology apply`` or another stack creates.

    Raises:
        ConfigError: The declarations contradict each other, or make more than 500 alarms.
    """
    topology = derive(services, portable_naming(prefix, application))
    resources = render_alarms(topology, _logical_ids(topology, prefix), options, name_in)
    if len(resources) > MAX_RESOURCES:
        msg = (
            f"the template would have {len(resources)} alarms, and CloudFormation takes {MAX_RESOURCES} resources in a "
            "stack; name fewer TARGETs"
        )
        raise ConfigError(msg)
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Alarms for the topics and queues of application {application} by smartpipe",
        "Parameters": PARAMETERS,
        "Conditions": CONDITIONS,
        "Resources": dict(sorted(resources.items())),
    }


def _logical_ids(topology: Topology, prefix: str) -> dict[str, str]:
    names = created_names(topology, prefix)
    return make_unique({arn: _logical_id(arn, name) for arn, name in names.items()})


def _refer_to_name(ids: Mapping[str, str], arn: str) -> dict[str, Any]:
    return {"Fn::GetAtt": [ids[arn], "TopicName" if kind_of(arn) is TOPIC else "QueueName"]}


def _logical_id(arn: str, name: str) -> str:
    """Return an id of letters and digits, as in ``EmailVerificationQueue``."""
    words = re.split(r"[^A-Za-z0-9]+", name.removesuffix(FIFO_SUFFIX))
    kind = "Topic" if kind_of(arn) is TOPIC else "Queue"
    suffix = "Fifo" if name.endswith(FIFO_SUFFIX) else ""
    return "".join(word[:1].upper() + word[1:] for word in words) + kind + suffix


def _refer(ids: Mapping[str, str], text: str) -> Any:
    """Return a reference to the resource with the ARN *text*, or a substitution; other text as it is."""
    if text in ids:
        return {"Ref": ids[text]} if kind_of(text) is TOPIC else {"Fn::GetAtt": [ids[text], "Arn"]}
    return _substitute(text)


def _substitute(text: str) -> Any:
    found = replace_placeholders(text, _ARN, "${AWS::AccountId}")
    return text if found == text else {"Ref": "AWS::AccountId"} if found == "${AWS::AccountId}" else {"Fn::Sub": found}


def _render_topics(topology: Topology, ids: Mapping[str, str]) -> dict[str, Any]:
    return {ids[arn]: _topic(arn, attributes) for arn, attributes in topology.topics.items() if arn in ids}


def _topic(arn: str, attributes: Attributes) -> dict[str, Any]:
    properties = _properties(omit_defaults(attributes, TOPIC_DEFAULTS))
    return {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": name_in(arn), **properties}}


def _render_queues(topology: Topology, ids: Mapping[str, str]) -> dict[str, Any]:
    queues = {ids[arn]: _queue(arn, attributes, ids) for arn, attributes in topology.queues.items() if arn in ids}
    return {**queues, **_policies(topology, ids)}


def _queue(arn: str, attributes: Attributes, ids: Mapping[str, str]) -> dict[str, Any]:
    rendered = {name: value for name, value in attributes.items() if name != "Policy" and value != ""}
    references: dict[str, Callable[[str], Any]] = {
        "RedrivePolicy": partial(_refer, ids),
        "RedriveAllowPolicy": _substitute,  # not a reference: CloudFormation refuses circular ones
    }
    for name, change in references.items():
        if name in rendered:
            rendered[name] = rewrite(rendered[name], change)
    return {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": name_in(arn), **_properties(rendered)}}


def _properties(attributes: Attributes) -> dict[str, Any]:
    tags = [{"Key": key, "Value": value} for key, value in attributes[TAGS].items()]
    return {**{name: convert(name, value) for name, value in attributes.items() if name != TAGS}, TAGS: tags}


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
    found: dict[str, Any] = rewrite(statement, partial(_refer, ids))
    principals = principals_of(statement)
    return found if principals is None else {**found, "Principal": {"Service": _choose(principals)}}


def _choose(principals: Principals) -> Any:
    """Return the principals with conditions, so that CloudFormation chooses them by the stack's region."""
    found: Any = [_regional(one) for one in principals.opt_in]
    if principals.by_default != principals.opt_in:
        found = {"Fn::If": [_BY_DEFAULT, principals.by_default, found]}
    for region, allowed in principals.within.items():
        found = {"Fn::If": [_within(region), allowed, found]}
    return found


def _regional(principal: str) -> Any:
    return {"Fn::Sub": principal.replace(REGION, "${AWS::Region}")} if REGION in principal else principal


def _within(region: str) -> str:
    return "RegionIs" + "".join(word.capitalize() for word in region.split("-"))


def _conditions(resources: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
    """Return the conditions that *resources* use; an ``Fn::Or`` has at most ten terms."""
    halves = ENABLED_BY_DEFAULT[:9], ENABLED_BY_DEFAULT[9:]
    known = {_BY_DEFAULT: {"Fn::Or": [{"Fn::Or": [_is(region) for region in half]} for half in halves]}}
    known |= {_within(region): _is(region) for region in (*map(region_in, topology.external), *LISTED_TWICE)}
    text = json.dumps(resources)
    return {name: condition for name, condition in sorted(known.items()) if f'"Fn::If": ["{name}"' in text}


def _is(region: str) -> dict[str, Any]:
    return {"Fn::Equals": [{"Ref": "AWS::Region"}, region]}


def _policy_id(queue_id: str) -> str:
    return f"{queue_id}Policy"


def _render_subscriptions(topology: Topology, ids: Mapping[str, str]) -> dict[str, Any]:
    wanted = {arns: attributes for arns, attributes in topology.subscriptions.items() if arns[1] in ids}
    names = make_unique({arns: f"{_topic_id(arns[0], ids)}{ids[arns[1]]}Subscription" for arns in wanted})
    return {names[arns]: _subscription(*arns, attributes, ids) for arns, attributes in wanted.items()}


def _topic_id(arn: str, ids: Mapping[str, str]) -> str:
    return ids.get(arn) or _logical_id(arn, name_in(arn))


def _subscription(topic_arn: str, queue_arn: str, attributes: Attributes, ids: Mapping[str, str]) -> dict[str, Any]:
    dead_letter = dead_letter_of(attributes)
    receiving = [queue_arn, *([dead_letter] if dead_letter else [])]
    rendered = {name: convert(name, value) for name, value in attributes.items()}
    rendered["FilterPolicy"] = _literal(rendered["FilterPolicy"])
    if dead_letter:
        rendered["RedrivePolicy"] = rewrite(rendered["RedrivePolicy"], partial(_refer, ids))
    return {
        "Type": "AWS::SNS::Subscription",
        # SNS drops events that it delivers before the policies allow it.
        "DependsOn": [_policy_id(ids[arn]) for arn in receiving],
        "Properties": {
            "TopicArn": _refer(ids, topic_arn),
            "Protocol": "sqs",
            "Endpoint": _refer(ids, queue_arn),
            **({} if topic_arn in ids else {"Region": region_in(topic_arn)}),
            **rendered,
        },
    }


def _literal(policy: dict[str, Any]) -> Any:
    """Return a filter policy. It is JSON text if it has a null, or a name that CloudFormation takes for a function.

    CloudFormation refuses a template with a null anywhere. SNS accepts the text too.
    """
    text = json.dumps(policy)
    return text if _FUNCTION.search(text) or _has_null(policy) else policy


def _has_null(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_has_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _output(arn: str, logical_id: str) -> tuple[str, dict[str, Any]]:
    """Return a topic's ARN or a queue's URL, for other programs and stacks."""
    address = "ARN" if kind_of(arn) is TOPIC else "URL"
    description = f"{address} of {name_in(arn)}"
    return f"{logical_id}{address.capitalize()}", {"Description": description, "Value": {"Ref": logical_id}}


_RENDERERS: dict[str, Callable[[Topology, Mapping[str, str]], dict[str, Any]]] = {
    "topic": _render_topics,
    "queue": _render_queues,
    "subscription": _render_subscriptions,
}
"""By the name of the kind. Templates leave out the other kinds."""
