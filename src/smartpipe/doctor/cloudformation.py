"""Rules over CloudFormation templates: task definitions, and queues that Lambda functions receive from. Pure.

Source: AWS Lambda, "Configuring your queue to use with Lambda" and "Handling errors for an SQS event source".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.doctor.ecs import examine_task
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.lookup import find, find_table, find_texts, to_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.manifests import Document
    from smartpipe.settings import WorkerSettings

VISIBILITY_FACTOR = 6
DEFAULT_VISIBILITY_SECONDS = 30
DEFAULT_FUNCTION_SECONDS = 3
PARTIAL_RESPONSES = "ReportBatchItemFailures"


def examine_template(document: Document, settings: WorkerSettings) -> Examined:
    """Apply the rules to the resources of a template."""
    findings: list[Finding] = []
    not_seen: list[str] = []
    resources = find_table(document.value, "Resources")
    for name, resource in resources.items():
        properties = find_table(resource, "Properties")
        type_ = find(resource, "Type")
        if type_ == "AWS::ECS::TaskDefinition":
            found = examine_task(properties, name, document.place, settings)
            findings += found.findings
            not_seen += found.not_seen
        elif type_ == "AWS::Lambda::EventSourceMapping":
            sources = _Mapping(name, properties, resources, document)
            findings += sources.find_mistakes()
            not_seen += sources.list_unknown()
    return Examined(findings, not_seen)


class _Mapping:
    """An event source mapping, with its queue and its function as far as the template declares them."""

    def __init__(self, name: str, properties: dict[str, Any], resources: dict[str, Any], document: Document) -> None:
        self._name = name
        self._properties = properties
        self._document = document
        self._queue = _follow(properties.get("EventSourceArn"), resources, "AWS::SQS::Queue")
        self._function = _follow(properties.get("FunctionName"), resources, "AWS::Lambda::Function")
        source = properties.get("EventSourceArn")
        self._is_sqs = self._queue is not None or (isinstance(source, str) and ":sqs:" in source)

    def find_mistakes(self) -> Iterator[Finding]:
        """SP206: messages that come back while the function still runs, and batches that fail as a whole."""
        if self._is_sqs and PARTIAL_RESPONSES not in find_texts(self._properties, "FunctionResponseTypes"):
            yield Finding(
                code="SP206",
                resource=self._name,
                message=f"it does not have {PARTIAL_RESPONSES}: one failed message makes Lambda repeat the batch, "
                "also the messages that were handled",
                remedy=f"set FunctionResponseTypes: [{PARTIAL_RESPONSES}]",
                place=self._document.place,
            )
        visibility, timeout, window = self._read_times()
        if visibility is None or timeout is None:
            return
        needed = VISIBILITY_FACTOR * timeout + window
        if visibility < needed:
            yield Finding(
                code="SP206",
                resource=self._name,
                message=f"the visibility timeout of its queue is {visibility:g} s, and AWS asks for {needed:g} s: "
                f"{VISIBILITY_FACTOR} times the function's timeout of {timeout:g} s, and the batching window. If "
                "Lambda is throttled, messages are delivered again while it still retries them",
                remedy=f"set VisibilityTimeout of the queue to {needed:g}, or lower the function's Timeout",
                figures={"visibility_seconds": visibility, "timeout_seconds": timeout, "needed_seconds": needed},
                place=self._document.place,
            )

    def list_unknown(self) -> Iterator[str]:
        """Yield a sentence if the visibility timeout cannot be compared with the function's timeout."""
        if self._is_sqs and None in self._read_times():
            yield (
                f"the timeouts of queue and function of {self._name} "
                f"({self._document.place.file}:{self._document.place.line}): the template does not have both as numbers"
            )
        elif not self._is_sqs and not isinstance(self._properties.get("EventSourceArn"), str):
            yield f"the source of {self._name} ({self._document.place.file}:{self._document.place.line})"

    def _read_times(self) -> tuple[float | None, float | None, float]:
        """Return visibility timeout, the function's timeout and the batching window."""
        window = to_number(self._properties.get("MaximumBatchingWindowInSeconds")) or 0
        visibility = timeout = None
        if self._queue is not None:
            visibility = to_number(self._queue.get("VisibilityTimeout", DEFAULT_VISIBILITY_SECONDS))
        if self._function is not None:
            timeout = to_number(self._function.get("Timeout", DEFAULT_FUNCTION_SECONDS))
        return visibility, timeout, window


def _follow(value: Any, resources: dict[str, Any], type_: str) -> dict[str, Any] | None:
    """Return the properties of the resource of this type that a Ref or GetAtt names; None if it is not in here."""
    attribute = find(value, "Fn::GetAtt")
    name = find(value, "Ref") or (attribute[0] if isinstance(attribute, list) and attribute else None)
    if isinstance(attribute, str):
        name = attribute.partition(".")[0]
    resource = resources.get(str(name))
    return find_table(resource, "Properties") if find(resource, "Type") == type_ else None
