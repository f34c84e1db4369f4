"""Examine services, settings and manifests, and make one report of all findings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from smartpipe.deploy.place import find_partition
from smartpipe.doctor.cloudformation import examine_template
from smartpipe.doctor.compose import examine_compose
from smartpipe.doctor.declared import NAMING, Declarations, examine_declarations
from smartpipe.doctor.dockerfile import examine_dockerfile, is_dockerfile
from smartpipe.doctor.ecs import examine_task
from smartpipe.doctor.events import examine_events
from smartpipe.doctor.findings import Examined, Finding
from smartpipe.doctor.ignores import apply_ignores
from smartpipe.doctor.kubernetes import find_pod_mistakes, list_workloads
from smartpipe.doctor.lookup import find, find_rows, find_table
from smartpipe.doctor.manifests import Document, name_file, read_documents, read_text
from smartpipe.doctor.promises import read_promises, read_settings
from smartpipe.doctor.report import Report, sort_findings
from smartpipe.doctor.scaling import find_scaling_mistakes
from smartpipe.doctor.terraform import examine_configuration, is_terraform
from smartpipe.errors import ConfigError
from smartpipe.names import Naming
from smartpipe.settings import AwsSettings, TransportSettings, WorkerSettings, find_region_variable, unknown_settings
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET, TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from smartpipe.doctor.ignores import Ignore
    from smartpipe.doctor.promises import Promise
    from smartpipe.service import Service


def examine(
    services: Sequence[Service],
    manifests: Sequence[Path],
    ignores: Sequence[Ignore],
    today: date,
    live: Examined | None = None,
    account: str | None = None,
    pyproject: dict[str, Any] | None = None,
) -> Report:
    """Apply the rules of all layers, and ignore the findings that pyproject.toml ignores.

    Args:
        live: The result of the live layer, for the *account* that the report names.
        pyproject: The parsed pyproject.toml, for the promises and settings of services.

    Raises:
        ConfigError: A manifest is YAML, and PyYAML is not installed.
    """
    settings, table_and_bucket, layer = read_environment()
    layers = [layer]
    if services:
        own = [read_settings(one, pyproject or {}, settings) for one in services]
        declared = Declarations(services, own, table_and_bucket, *read_naming())
        layers += [examine_declarations(declared), examine_events(services)]
    else:
        layers.append(Examined([], ["declared services: no TARGET was named, and pyproject.toml lists none"]))
    promises = read_promises(services, pyproject or {}, settings, os.environ.get("SMARTPIPE_PREFIX", ""))
    layers.append(examine_manifests(manifests, settings, promises))
    if live is not None:
        layers.append(live)
    findings = [finding for one in layers for finding in one.findings]
    not_seen = [sentence for one in layers for sentence in one.not_seen]
    kept = sort_findings(apply_ignores(sort_findings(findings), ignores, today))
    return Report(kept, not_seen, len(services), len(manifests), account)


def read_naming() -> tuple[Naming, list[str]]:
    """Return the naming of this environment, and the variables of region and account that it does not have."""
    try:
        settings = AwsSettings.load()
    except ConfigError:  # a finding of `read_environment`
        settings = AwsSettings.model_construct()
    variable = find_region_variable()
    region = os.environ[variable] if variable else None
    unknown = [
        name for name, value in (("AWS_REGION", region), ("SMARTPIPE_ACCOUNT_ID", settings.account_id)) if not value
    ]
    region = region or NAMING.region
    account_id = settings.account_id or NAMING.account_id
    return Naming(find_partition(region), region, account_id, settings.prefix, settings.application), unknown


def examine_manifests(paths: Iterable[Path], settings: WorkerSettings, promises: Mapping[str, Promise]) -> Examined:
    """Apply the rules to all files. Resources of Kubernetes may be in different files."""
    findings: list[Finding] = []
    not_seen: list[str] = []
    kubernetes: list[Document] = []
    for path in paths:
        text = read_text(path)
        if isinstance(text, Finding):
            findings.append(text)
            continue
        for found in _examine_file(text, name_file(path), path.name, settings):
            if isinstance(found, Document):
                kubernetes.append(found)
            else:
                findings += found.findings
                not_seen += found.not_seen
    workloads = list_workloads(kubernetes, settings)
    for workload in workloads:
        findings += find_pod_mistakes(workload)
        for container, _ in workload.containers:
            not_seen += container.list_unknown()
    findings += find_scaling_mistakes(kubernetes, workloads, promises)
    return Examined(findings, not_seen)


def _examine_file(text: str, file: str, name: str, settings: WorkerSettings) -> Iterator[Examined | Document]:
    """Yield the results of each document, and the resources of Kubernetes themselves."""
    if is_dockerfile(name):
        yield examine_dockerfile(text, file)
        return
    documents = list(read_documents(text, file))
    if not documents:
        yield Examined([], [f"{file}: it has no documents"])
    for one in documents:
        if isinstance(one, Finding):
            yield Examined([one], [])
        else:
            yield from _examine_document(one, settings)


def _examine_document(document: Document, settings: WorkerSettings) -> Iterator[Examined | Document]:
    place, value = document
    if find(value, "apiVersion") and find(value, "kind") == "List":
        yield from (Document(place, item) for item in find_rows(value, "items"))
    elif find(value, "apiVersion") and find(value, "kind"):
        yield document
    elif find_table(value, "Resources"):
        yield examine_template(document, settings)
    elif is_terraform(value):
        yield examine_configuration(document, settings)
    elif task := next(
        (one for one in (value, find(value, "taskDefinition")) if find_rows(one, "containerDefinitions")), None
    ):
        yield examine_task(task, f"task {task.get('family', place.file)}", place, settings)
    elif find_table(value, "services"):
        yield examine_compose(document, settings)
    else:
        kinds = "Kubernetes, compose, CloudFormation, Terraform nor a task definition of ECS"
        yield Examined([], [f"{place.file}:{place.line}: the document is neither {kinds}"])


def read_environment() -> tuple[WorkerSettings, TableAndBucket, Examined]:
    """Return the settings of this environment, or the defaults if one of them is wrong, with findings about them."""
    findings = [
        Finding(code="SP114", resource="environment", message=sentence, remedy="correct or remove the variable")
        for sentence in unknown_settings()
    ]
    problems: list[str] = []
    try:
        settings = WorkerSettings.load()
    except ConfigError as error:
        problems += error.problems
        settings = WorkerSettings.model_construct()
    try:
        TransportSettings.load()
    except ConfigError as error:
        problems += error.problems
    try:
        table_and_bucket = TableAndBucket.from_environment()
    except ConfigError as error:
        problems += error.problems
        table_and_bucket = NO_TABLE_AND_BUCKET
    findings += [
        Finding(code="SP113", resource="environment", message=problem, remedy="set a valid value, or unset it")
        for problem in problems
    ]
    not_seen = (
        "settings of other environments: this report uses the SMARTPIPE_* variables of this one: drain "
        f"{settings.drain_seconds:g} s, concurrency {settings.concurrency}, processes {settings.processes}"
    )
    return settings, table_and_bucket, Examined(findings, [not_seen])
