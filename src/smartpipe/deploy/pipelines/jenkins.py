"""A declarative Jenkinsfile that runs the pipeline. Pure.

Sources: Jenkins, "Pipeline Syntax", and the plugins Credentials Binding and OpenID Connect Provider. The plugin writes
a token into a file, and the AWS SDKs exchange it for credentials of the role in ``AWS_ROLE_ARN``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.deploy.pipelines.stages import IMAGE_FILE, PLAN_FILE, SUMMARY_FILE, Event, describe, list_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.deploy.pipelines.stages import Pipeline, Stage, Step

CREDENTIALS_ID = "aws-oidc-token"
_AFTER = {
    "plan": [
        f"archiveArtifacts artifacts: '{PLAN_FILE}'",
        "script {",
        f"    currentBuild.description = readFile('{SUMMARY_FILE}').trim()",
        "}",
    ],
    "publish": ["script {", f"    env.IMAGE = readFile('{IMAGE_FILE}').trim()", "}"],
}
"""The steps after the scripts of a stage."""


def write_jenkinsfile(pipeline: Pipeline, services: Sequence[str]) -> str:
    """Return the Jenkinsfile of a multibranch pipeline.

    Args:
        services: The names of the services. The header has them.
    """
    names = list_variables(pipeline.stages)
    width = max(map(len, names))
    lines = [
        *(f"// {line}" if line else "//" for line in _header(pipeline, services)),
        *(f"//   {name:<{width}}  {describe(name)}" for name in names),
        "pipeline {",
        "    agent none",
        "    options {",
        "        disableConcurrentBuilds()",
        "    }",
        "    stages {",
        *(f"        {line}" for stage in pipeline.stages for line in _stage(stage, pipeline.branch)),
        "    }",
        "}",
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _header(pipeline: Pipeline, services: Sequence[str]) -> list[str]:
    return [
        f"Jenkinsfile that tests and deploys {', '.join(services)}.",
        "Written by `smartpipe deploy export --format jenkins`; run it again when the options of the pipeline change.",
        "",
        f"For a multibranch pipeline that also fetches {pipeline.branch}. Agents need uv, git, jq, docker with buildx,",
        "the AWS CLI 2, and kubectl for Kubernetes. The plugin OpenID Connect Provider provides the credentials",
        f"{CREDENTIALS_ID}, an id token as a file, with the audience sts.amazonaws.com. Set these variables, for",
        "example in the properties of the folder:",
    ]


def _stage(stage: Stage, branch: str) -> Iterator[str]:
    """Yield the lines of a stage. Approval comes before the agent, which would wait for it."""
    yield f"stage('{stage.title}') {{"
    yield "    agent any"
    conditions = list(_list_conditions(stage, branch))
    if conditions:
        yield "    when {"
        yield from (f"        {line}" for line in ("beforeAgent true", "beforeInput true", *conditions))
        yield "    }"
    if stage.name == "deploy":
        yield "    input {"
        yield "        message 'Deploy to production?'"
        yield "    }"
    if stage.role:
        yield "    environment {"
        yield f'        AWS_ROLE_ARN = "${{env.{stage.role}}}"'
        yield f"        AWS_WEB_IDENTITY_TOKEN_FILE = credentials('{CREDENTIALS_ID}')"
        yield "    }"
    yield "    steps {"
    yield f"        timeout(time: {stage.minutes}, unit: 'MINUTES') {{"
    for step in stage.steps:
        yield from (f"            {line}" for line in _script(step))
    yield from (f"            {line}" for line in _AFTER.get(stage.name, ()))
    yield "        }"
    yield "    }"
    yield "}"


def _list_conditions(stage: Stage, branch: str) -> Iterator[str]:
    """Yield the conditions of a stage. A pull request from a fork gets no role."""
    if stage.events == {Event.BRANCH}:
        yield f"branch '{branch}'"
    elif stage.events == {Event.PROPOSAL}:
        yield "changeRequest()"
    elif stage.role:
        yield "anyOf {"
        yield f"    branch '{branch}'"
        yield "    expression { env.CHANGE_ID && !env.CHANGE_FORK }"
        yield "}"


def _script(step: Step) -> Iterator[str]:
    """Yield the lines of a step. A text in three quotes has no variables of Groovy, but it has escapes."""
    escaped = step.script.replace("\\", "\\\\").removesuffix("\n")
    yield f"sh label: '{step.name}', script: '''#!/usr/bin/env bash"
    yield "set -eo pipefail"
    yield from escaped.split("\n")
    yield "'''"
