"""Rules over templates of CloudFormation and AWS SAM: tasks, services, and queues of Lambda functions. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.doctor.ecs import examine_task, runs_other_programs
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.lambdas import (
    DEFAULT_BATCH,
    DEFAULT_FUNCTION_SECONDS,
    DEFAULT_VISIBILITY_SECONDS,
    PARTIAL_RESPONSES,
    Source,
    Words,
    describe_unknown,
    find_source_mistakes,
)
from smartpipe.doctor.lookup import find, find_table, find_texts, to_number
from smartpipe.doctor.zones import find_single_subnet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.manifests import Document
    from smartpipe.settings import WorkerSettings

TASK = "AWS::ECS::TaskDefinition"
FUNCTIONS = ("AWS::Lambda::Function", "AWS::Serverless::Function")


def examine_template(document: Document, settings: WorkerSettings) -> Examined:
    """Apply the rules to the resources of a template."""
    findings: list[Finding] = []
    not_seen: list[str] = []
    resources = find_table(document.value, "Resources")
    for name, resource in resources.items():
        properties = find_table(resource, "Properties")
        type_ = find(resource, "Type")
        if type_ == TASK:
            found = examine_task(properties, name, document.place, settings)
            findings += found.findings
            not_seen += found.not_seen
        elif type_ == "AWS::ECS::Service":
            if runs_other_programs(_follow(properties.get("TaskDefinition"), resources, TASK), settings):
                continue
            network = find_table(properties, "NetworkConfiguration", "AwsvpcConfiguration")
            findings += find_single_subnet(name, network.get("Subnets"), properties.get("DesiredCount"), document.place)
        elif type_ == "AWS::Lambda::EventSourceMapping":
            function = _follow(properties.get("FunctionName"), resources, *FUNCTIONS)
            found = _examine_source(name, properties, properties.get("EventSourceArn"), function, document)
            findings += found.findings
            not_seen += found.not_seen
        elif type_ == "AWS::Serverless::Function":
            for event, source in _list_events(properties):
                common = find_table(document.value, "Globals", "Function")
                found = _examine_source(
                    f"{name}, event {event}", source, source.get("Queue"), {**common, **properties}, document
                )
                findings += found.findings
                not_seen += found.not_seen
    return Examined(findings, not_seen)


def _list_events(function: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the properties of each queue among the events of a SAM function."""
    for name, event in find_table(function, "Events").items():
        if find(event, "Type") == "SQS":
            yield name, find_table(event, "Properties")


def _examine_source(
    name: str, properties: dict[str, Any], arn: Any, function: dict[str, Any] | None, document: Document
) -> Examined:
    """Apply the rules to an event source, if it is a queue.

    Args:
        arn: The ARN of the source, or a reference to a queue.
        function: The properties of the function, as far as the template declares them.
    """
    resources = find_table(document.value, "Resources")
    queue = _follow(arn, resources, "AWS::SQS::Queue")
    place = document.place
    if queue is None and not isinstance(arn, str):
        return Examined([], [f"the source of {name} ({place.file}:{place.line})"])
    if queue is None and ":sqs:" not in str(arn):
        return Examined([], [])
    source = Source(
        name,
        place,
        Words(),
        is_partial=PARTIAL_RESPONSES in find_texts(properties, "FunctionResponseTypes"),
        window=_read(properties, "MaximumBatchingWindowInSeconds", 0),
        batch=_read(properties, "BatchSize", DEFAULT_BATCH),
        concurrency=to_number(find(properties, "ScalingConfig", "MaximumConcurrency")),
        is_fifo=str(arn).endswith(".fifo") if isinstance(arn, str) else None,
    )
    if queue is not None:
        fifo = queue.get("FifoQueue")
        redrive = queue.get("RedrivePolicy")
        source = source._replace(
            visibility=_read(queue, "VisibilityTimeout", DEFAULT_VISIBILITY_SECONDS),
            is_fifo=str(fifo).lower() == "true",
            receives=0 if redrive is None else to_number(find(redrive, "maxReceiveCount")),
        )
    if function is not None:
        source = source._replace(
            timeout=_read(function, "Timeout", DEFAULT_FUNCTION_SECONDS),
            reserved=to_number(function.get("ReservedConcurrentExecutions")),
        )
    return Examined([*find_source_mistakes(source)], [*describe_unknown(source)])


def _read(table: dict[str, Any], name: str, default: float) -> float | None:
    """Return the number of a setting: the default if it is not there, None if it is not a number."""
    return to_number(table.get(name, default))


def _follow(value: Any, resources: dict[str, Any], *types: str) -> dict[str, Any] | None:
    """Return the properties of the resource of these types that a Ref or GetAtt names; None if it is not in here."""
    attribute = find(value, "Fn::GetAtt")
    name = find(value, "Ref") or (attribute[0] if isinstance(attribute, list) and attribute else None)
    if isinstance(attribute, str):
        name = attribute.partition(".")[0]
    resource = resources.get(str(name))
    return find_table(resource, "Properties") if find(resource, "Type") in types else None
