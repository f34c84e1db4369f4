"""Rules over Terraform configurations in JSON: queues of Lambda functions, task definitions and services. Pure.

Source: the documentation of Terraform's provider aws, and Terraform, "JSON Configuration Syntax".
"""

from __future__ import annotations

import json
import re
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
from smartpipe.doctor.lookup import find, find_rows, find_table, find_texts, to_number
from smartpipe.doctor.zones import find_single_subnet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.doctor.manifests import Document
    from smartpipe.settings import WorkerSettings

WORDS = Words(
    responses=f'function_response_types to ["{PARTIAL_RESPONSES}"]',
    visibility="visibility_timeout_seconds",
    timeout="timeout",
    window="maximum_batching_window_in_seconds",
    batch="batch_size",
    reserved="reserved_concurrent_executions",
    concurrency="scaling_config.maximum_concurrency",
    redrive="redrive_policy",
)
_REFERENCE = re.compile(r"\$\{(aws_\w+)\.([\w-]+)\.\w+\}")
_TASK = {"requires_compatibilities": "requiresCompatibilities", "cpu": "cpu", "memory": "memory"}


def is_terraform(value: Any) -> bool:
    """Return whether a document is a configuration with resources of AWS."""
    return any(name.startswith("aws_") for name in find_table(value, "resource"))


def examine_configuration(document: Document, settings: WorkerSettings) -> Examined:
    """Apply the rules to the resources of a configuration."""
    findings: list[Finding] = []
    not_seen: list[str] = []
    for name, row in _list_resources(document, "aws_ecs_task_definition"):
        found = _examine_task(name, row, document, settings)
        findings += found.findings
        not_seen += found.not_seen
    for name, row in _list_resources(document, "aws_lambda_event_source_mapping"):
        found = _examine_source(name, row, document)
        findings += found.findings
        not_seen += found.not_seen
    for name, row in _list_resources(document, "aws_ecs_service"):
        task = _follow(row.get("task_definition"), "aws_ecs_task_definition", document) or {}
        if runs_other_programs({"containerDefinitions": _parse(task.get("container_definitions"))}, settings):
            continue
        subnets = _first(row.get("network_configuration")).get("subnets")
        known = None if _is_computed(subnets) else subnets
        findings += find_single_subnet(f"aws_ecs_service.{name}", known, row.get("desired_count"), document.place)
    return Examined(findings, not_seen)


def _examine_task(name: str, row: dict[str, Any], document: Document, settings: WorkerSettings) -> Examined:
    resource, place = f"aws_ecs_task_definition.{name}", document.place
    containers = _parse(row.get("container_definitions"))
    if not isinstance(containers, list):
        return Examined([], [f"the containers of {resource} ({place.file}:{place.line}): they are not JSON text"])
    task = {new: row[old] for old, new in _TASK.items() if old in row}
    return examine_task({**task, "containerDefinitions": containers}, resource, place, settings)


def _examine_source(name: str, row: dict[str, Any], document: Document) -> Examined:
    resource, place = f"aws_lambda_event_source_mapping.{name}", document.place
    arn = row.get("event_source_arn")
    queue = _follow(arn, "aws_sqs_queue", document)
    if queue is None and ":sqs:" not in str(arn):
        known = isinstance(arn, str) and (arn.startswith("arn:") or _REFERENCE.fullmatch(arn))
        return Examined([], [] if known else [f"the source of {resource} ({place.file}:{place.line})"])
    source = Source(
        resource,
        place,
        WORDS,
        is_partial=PARTIAL_RESPONSES in find_texts(row, "function_response_types"),
        window=to_number(row.get("maximum_batching_window_in_seconds", 0)),
        batch=to_number(row.get("batch_size", DEFAULT_BATCH)),
        concurrency=to_number(_first(row.get("scaling_config")).get("maximum_concurrency")),
    )
    if queue is not None:
        redrive = queue.get("redrive_policy")
        source = source._replace(
            visibility=to_number(queue.get("visibility_timeout_seconds", DEFAULT_VISIBILITY_SECONDS)),
            is_fifo=str(queue.get("fifo_queue", False)).lower() == "true",
            receives=0 if redrive is None else to_number(find(_parse(redrive), "maxReceiveCount")),
        )
        if redrive is None and _has_own_redrive(arn, document):
            source = source._replace(receives=None)
    function = _follow(row.get("function_name"), "aws_lambda_function", document)
    if function is not None:
        source = source._replace(
            timeout=to_number(function.get("timeout", DEFAULT_FUNCTION_SECONDS)),
            reserved=_read_reserved(function),
        )
    return Examined([*find_source_mistakes(source)], [*describe_unknown(source)])


def _read_reserved(function: dict[str, Any]) -> float | None:
    """Return the reserved concurrency of a function; None without one, which Terraform writes as -1."""
    found = to_number(function.get("reserved_concurrent_executions"))
    return None if found is None or found < 0 else found


def _has_own_redrive(arn: Any, document: Document) -> bool:
    """Return whether a separate resource sets the redrive policy of the queue."""
    found = _REFERENCE.fullmatch(str(arn))
    own = [row for _, row in _list_resources(document, "aws_sqs_queue_redrive_policy")]
    return found is not None and any(f"aws_sqs_queue.{found[2]}." in str(row.get("queue_url")) for row in own)


def _list_resources(document: Document, type_: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the arguments of each resource. Terraform accepts a list of one table, too."""
    for name, value in find_table(document.value, "resource", type_).items():
        yield name, _first(value)


def _follow(value: Any, type_: str, document: Document) -> dict[str, Any] | None:
    """Return the arguments of the resource that an expression refers to; None if it is not in this file."""
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[1] != type_:
        return None
    return dict(_list_resources(document, type_)).get(found[2])


def _first(value: Any) -> dict[str, Any]:
    """Return a block, which may be a table or a list of tables."""
    rows = find_rows({"value": value}, "value")
    return rows[0] if rows else find_table({"value": value}, "value")


def _parse(value: Any) -> Any:
    """Return the value of JSON text; None if it is an expression."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _is_computed(subnets: Any) -> bool:
    """Return whether the number of subnets follows from an expression, as in ``"${var.subnets}"``."""
    rows = subnets if isinstance(subnets, list) else [subnets]
    return any(isinstance(one, str) and "${" in one and not _REFERENCE.fullmatch(one) for one in rows)
