"""``smartpipe deploy export``: the formats, and the files that each of them writes. It calls no service."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from smartpipe.cli.deploy.project import Project
from smartpipe.cli.export import check_choice, format_json, write_directory, write_or_print
from smartpipe.cli.targets import read_pyproject, read_tool_table
from smartpipe.deploy.ansible import write_playbook
from smartpipe.deploy.cloudformation import build_template
from smartpipe.deploy.compose import AWS_FILE, BROKER_URL, LOCAL_FILE, Contents, write_aws, write_local
from smartpipe.deploy.dockerfile import choose_python, write_dockerfile
from smartpipe.deploy.kubernetes import name_workloads, write_files, write_manifests
from smartpipe.deploy.pipelines.codebuild import (
    TEMPLATE_FILE,
    build_pipeline_template,
    list_stages,
    name_buildspec,
    write_buildspec,
)
from smartpipe.deploy.pipelines.github import WORKFLOW_FILE, write_workflow
from smartpipe.deploy.pipelines.jenkins import write_jenkinsfile
from smartpipe.deploy.pipelines.rights import build_pipeline_rights
from smartpipe.deploy.pipelines.roles import ROLES_FILE, build_github_roles
from smartpipe.deploy.pipelines.stages import build_pipeline, read_pipeline_options
from smartpipe.deploy.terraform import build_configuration
from smartpipe.deploy.workloads import choose_port
from smartpipe.doctor.lookup import find
from smartpipe.errors import ConfigError
from smartpipe.local.broker import list_variables
from smartpipe.settings import AwsSettings, WorkerSettings
from smartpipe.topology.table_and_bucket import TableAndBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.deploy.pipelines.rights import Rights
    from smartpipe.deploy.pipelines.stages import PipelineOptions


_LOCAL_EXTRA = re.compile(r"smartpipe\[[^\]]*\blocal\b")


_MARK = "smartpipe deploy export"
"""It is in the header of each file, except for IAM policies."""


class Format(NamedTuple):
    """A format of ``deploy export``.

    Args:
        write: Returns the text of its one file.
        write_files: Returns the texts of a directory by the names of its files; None if the format is one file.
        has_image: Whether it contains the image of the containers.
    """

    write: Callable[[Project], str]
    write_files: Callable[[Project], dict[str, str]] | None = None
    has_image: bool = True


def run_export(
    targets: Sequence[str],
    form: str,
    output: Path | None = None,
    directory: Path | None = None,
    *,
    image: str | None = None,
) -> None:
    """Print the files of the services of *targets* in the format *form*, or write them to *output* or *directory*.

    Args:
        image: The image of all containers, instead of those in the options.

    Raises:
        ConfigError: The format is unknown; options or settings are wrong; or a file cannot be written.
    """
    check_choice("--format", form, list(FORMATS))
    chosen = FORMATS[form]
    if image is not None and not chosen.has_image:
        several = " or ".join(name for name, one in FORMATS.items() if one.has_image)
        raise ConfigError(f"--image is for --format {several}, and {form} contains no image: leave it out")
    if directory is None:
        text = chosen.write(Project(targets, image))
        if output is not None:
            _keep_others(output, text)
        write_or_print(text, form, output)
        return
    if output is not None:
        msg = "--output writes one file, and --directory several: use only one of them"
        raise ConfigError(msg)
    if chosen.write_files is None:
        several = " or ".join(name for name, one in FORMATS.items() if one.write_files is not None)
        raise ConfigError(f"--directory is for --format {several}, not {form}: use --output")
    files = chosen.write_files(Project(targets, image))
    for name, text in files.items():
        _keep_others(directory / name, text)
    write_directory(directory, files)


def _keep_others(path: Path, text: str) -> None:
    """Raise ConfigError if *text* would replace a file that is not an export, such as a Dockerfile of your own."""
    if _MARK not in text or not path.is_file():
        return
    try:
        present = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return  # to write it fails too, and says why
    if present.strip() and _MARK not in present:
        raise ConfigError(f"{path} was not written by `{_MARK}`: move it away, or name another file")


def _write_manifests(project: Project) -> str:
    return write_manifests(project.workloads, project.producers, project.place)


def _write_manifest_files(project: Project) -> dict[str, str]:
    """Return the manifests and the IAM policies.

    Raises:
        ConfigError: The account is not known.
    """
    if project.place.account_id is None:
        msg = "--directory also writes IAM policies, and these contain the account: set SMARTPIPE_ACCOUNT_ID"
        raise ConfigError(msg)
    rights = project.build_rights(project.place.account_id)
    names = name_workloads(project.workloads)
    policies = {
        f"{names[name]}.{purpose}.json": format_json(document)
        for name, documents in rights.items()
        for purpose, document in documents.items()
    }
    return {**write_files(project.workloads, project.place), **policies}


def _write_dockerfile(project: Project) -> str:
    """Return the Dockerfile of the project in the working directory, with all services that have handlers."""
    if not Path("uv.lock").is_file():
        msg = f"{Path.cwd()} has no uv.lock, so an image would not always have the same packages: run `uv lock`"
        raise ConfigError(msg)
    pyproject = read_pyproject()
    port = choose_port(WorkerSettings.load().port)
    requires = find(pyproject, "project", "requires-python")
    python = choose_python(_read_pinned(), requires if isinstance(requires, str) else None)
    return write_dockerfile(list(project.running), port, packaged="build-system" in pyproject, python=python)


def _read_pinned() -> str | None:
    """Return the text of ``.python-version``; None without this file."""
    path = Path(".python-version")
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _write_compose(project: Project) -> str:
    """Return the compose file for a laptop."""
    variables = list_variables(BROKER_URL)
    contents = Contents(project.build_workloads(variables), list(project.services), project.producers)
    text = write_local(contents, variables)
    if not _LOCAL_EXTRA.search(json.dumps(read_pyproject(), default=str)):
        typer.echo(
            "smartpipe: warning: the image of the broker contains the packages of your dev group, and pyproject.toml "
            "does not name smartpipe[local]: run `uv add --dev 'smartpipe[local]'`",
            err=True,
        )
    return text


def _write_compose_files(project: Project) -> dict[str, str]:
    """Return the files for a laptop and for AWS."""
    on_aws = Contents(project.workloads, list(project.services), project.producers)
    return {LOCAL_FILE: _write_compose(project), AWS_FILE: write_aws(on_aws)}


def _write_template(project: Project) -> str:
    return format_json(build_template(project.describe_tasks(), project.producers))


def _write_configuration(project: Project) -> str:
    return format_json(build_configuration(project.describe_tasks(), project.producers))


def _write_playbook(project: Project) -> str:
    return write_playbook(project.services.values(), project.place, AwsSettings.load().application)


def _write_workflow(project: Project) -> str:
    pipeline = build_pipeline(_read_pipeline_options(), "github")
    return write_workflow(pipeline, project.names)


def _write_workflow_files(project: Project) -> dict[str, str]:
    """Return the workflow, and a template with its roles."""
    roles = build_github_roles(build_pipeline(_read_pipeline_options()), _build_rights(project))
    return {WORKFLOW_FILE: _write_workflow(project), ROLES_FILE: format_json(roles)}


def _write_jenkinsfile(project: Project) -> str:
    return write_jenkinsfile(build_pipeline(_read_pipeline_options()), project.names)


def _write_pipeline(project: Project) -> str:
    return format_json(_build_pipeline_template(project, inline=True))


def _write_pipeline_files(project: Project) -> dict[str, str]:
    stages = list_stages(build_pipeline(_read_pipeline_options()))
    return {
        TEMPLATE_FILE: format_json(_build_pipeline_template(project, inline=False)),
        **{name_buildspec(stage): write_buildspec(stage) for stage in stages},
    }


def _build_pipeline_template(project: Project, *, inline: bool) -> dict[str, Any]:
    settings = AwsSettings.load()
    values = {
        "AWS_REGION": {"Ref": "AWS::Region"},
        "SMARTPIPE_PREFIX": settings.prefix,
        "SMARTPIPE_APPLICATION": settings.application,
    }
    pipeline = build_pipeline(_read_pipeline_options())
    return build_pipeline_template(pipeline, _build_rights(project), values, inline=inline)


def _build_rights(project: Project) -> Rights:
    settings = AwsSettings.load()
    services = list(project.services.values())
    return build_pipeline_rights(services, settings.prefix, settings.application, TableAndBucket.from_environment())


def _read_pipeline_options() -> PipelineOptions:
    return read_pipeline_options(read_tool_table().get("pipeline", {}))


FORMATS = {
    "kubernetes": Format(_write_manifests, _write_manifest_files),
    "compose": Format(_write_compose, _write_compose_files),
    "dockerfile": Format(_write_dockerfile, has_image=False),
    "ecs": Format(_write_template),
    "terraform": Format(_write_configuration),
    "ansible": Format(_write_playbook, has_image=False),
    "github": Format(_write_workflow, _write_workflow_files, has_image=False),
    "codebuild": Format(_write_pipeline, _write_pipeline_files, has_image=False),
    "jenkins": Format(_write_jenkinsfile, has_image=False),
}
