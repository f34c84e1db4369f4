"""A CloudFormation template of AWS CodePipeline, with the buildspecs of its CodeBuild projects. Pure.

Sources: AWS CodeBuild, "Build specification reference" 0.2; AWS CodePipeline, "CodeBuild action reference" and
"CodeStarSourceConnection action reference"; AWS CloudFormation, template reference of AWS::CodePipeline::Pipeline and
AWS::CodeBuild::Project.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smartpipe.deploy.dockerfile import UV_VERSION
from smartpipe.deploy.pipelines.roles import (
    PARAMETERS,
    allow,
    build_document,
    build_policies,
    build_role,
    describe_parameters,
    list_own_rights,
    name_parameters,
    trust_service,
)
from smartpipe.deploy.pipelines.stages import IMAGE_FILE, SUMMARY_FILE, Event
from smartpipe.deploy.yaml import write_documents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.deploy.pipelines.rights import Rights
    from smartpipe.deploy.pipelines.stages import Pipeline, Stage

TEMPLATE_FILE = "pipeline.json"
BUILD_IMAGE = "aws/codebuild/amazonlinux-x86_64-standard:5.0"
_EXPORTED = {
    "plan": ("PLAN_SUMMARY", f'export PLAN_SUMMARY="$(cat {SUMMARY_FILE})"'),
    "publish": ("IMAGE", f'export IMAGE="$(cat {IMAGE_FILE})"'),
}
"""The variable that a stage passes on, and the command that sets it."""
_CONNECTION = {"Ref": "Connection"}
_BUCKET_ARN = {"Fn::GetAtt": ["Artifacts", "Arn"]}
_PARAMETERS: dict[str, Any] = {
    "Connection": {
        "Type": "String",
        "AllowedPattern": "^arn:.+:connection/.+$",
        "Description": "ARN of the connection (AWS CodeConnections) to the repository.",
    },
    **PARAMETERS,
}
_REPOSITORY_URI = {"Fn::Sub": "${AWS::AccountId}.dkr.ecr.${AWS::Region}.${AWS::URLSuffix}/${ImageRepository}"}


def write_buildspec(stage: Stage) -> str:
    """Return the buildspec of the CodeBuild project of a stage.

    Each script runs in a subshell, because CodeBuild's shell keeps the options that a script sets.
    """
    scripts = [f"(\nset -eo pipefail\n# {step.name}\n{step.script})\n" for step in stage.steps]
    exported = _EXPORTED.get(stage.name)
    buildspec = {
        "version": 0.2,
        "env": {"shell": "bash", **({"exported-variables": [exported[0]]} if exported else {})},
        "phases": {
            **(
                {"install": {"on-failure": "ABORT", "commands": [f"pip install --quiet 'uv=={UV_VERSION}.*'"]}}
                if stage.uses_uv
                else {}
            ),
            "build": {"on-failure": "ABORT", "commands": [*scripts, *([exported[1]] if exported else [])]},
        },
    }
    header = [
        f"Buildspec of the stage {stage.name}.",
        "Written by `smartpipe deploy export --format codebuild`; run it again when options of the pipeline change.",
    ]
    return write_documents(header, [buildspec])


def name_buildspec(stage: Stage) -> str:
    """Return the name of the file with a buildspec."""
    return f"buildspec-{stage.name}.yml"


def list_stages(pipeline: Pipeline) -> list[Stage]:
    """Return the stages of CodePipeline, which runs only for the branch that is deployed."""
    return [stage for stage in pipeline.stages if Event.BRANCH in stage.events]


def build_pipeline_template(
    pipeline: Pipeline, rights: Rights, settings: Mapping[str, Any], *, inline: bool
) -> dict[str, Any]:
    """Return the template.

    Args:
        settings: The values of settings that the policies depend on. The others are parameters.
        inline: Whether the template contains the buildspecs. Otherwise they are files of the repository.
    """
    stages = list_stages(pipeline)
    targets = _list_targets(pipeline, settings)
    parameters = {
        **_PARAMETERS,
        **describe_parameters(targets),
        **(
            {}
            if inline
            else {
                "BuildspecDirectory": {
                    "Type": "String",
                    "Default": "",
                    "Description": "Directory of the buildspecs in the repository, with a slash at its end.",
                }
            }
        ),
    }
    resources = {
        **_artifacts(),
        "PipelineRole": _pipeline_role(stages),
        "Pipeline": _pipeline(pipeline, stages),
    }
    for stage in stages:
        resources |= _build_project(stage, rights, settings, targets, inline=inline)
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "A pipeline that tests and deploys services of smartpipe. Written by `smartpipe deploy export "
        "--format codebuild`; run it again when services or options change.",
        "Parameters": parameters,
        "Resources": dict(sorted(resources.items())),
        "Outputs": {"PipelineName": {"Description": "Name of the pipeline", "Value": {"Ref": "Pipeline"}}},
    }


def _list_targets(pipeline: Pipeline, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters for the variables of the platform and for further settings, by the variables."""
    left = [name for name in pipeline.find("deploy").variables if name not in settings and name != "IMAGE_REPOSITORY"]
    return name_parameters(left)


def _artifacts() -> dict[str, Any]:
    secure = {"Bool": {"aws:SecureTransport": "false"}}
    objects = {"Fn::Sub": "${Artifacts.Arn}/*"}
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [_BUCKET_ARN, objects]}
    return {
        "Artifacts": {
            "Type": "AWS::S3::Bucket",
            "DeletionPolicy": "Retain",
            "UpdateReplacePolicy": "Retain",
            "Properties": {
                "BucketEncryption": {
                    "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
                },
                "PublicAccessBlockConfiguration": {
                    "BlockPublicAcls": True,
                    "BlockPublicPolicy": True,
                    "IgnorePublicAcls": True,
                    "RestrictPublicBuckets": True,
                },
                "LifecycleConfiguration": {"Rules": [{"Id": "expire", "Status": "Enabled", "ExpirationInDays": 30}]},
            },
        },
        "ArtifactsPolicy": {
            "Type": "AWS::S3::BucketPolicy",
            "Properties": {
                "Bucket": {"Ref": "Artifacts"},
                "PolicyDocument": build_document([{**deny, "Condition": secure}]),
            },
        },
    }


def _use_connection() -> dict[str, Any]:
    return allow(["codeconnections:UseConnection", "codestar-connections:UseConnection"], [_CONNECTION])


def _pipeline_role(stages: Sequence[Stage]) -> dict[str, Any]:
    projects = [{"Fn::GetAtt": [f"{stage.title}Project", "Arn"]} for stage in stages]
    objects = {"Fn::Sub": "${Artifacts.Arn}/*"}
    statements = [
        allow(["s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"], [objects]),
        allow(["s3:GetBucketLocation", "s3:GetBucketVersioning"], [_BUCKET_ARN]),
        allow(["codebuild:BatchGetBuilds", "codebuild:StartBuild"], projects),
        _use_connection(),
    ]
    return build_role(trust_service("codepipeline.amazonaws.com"), statements)


def _build_project(
    stage: Stage, rights: Rights, settings: Mapping[str, Any], targets: Mapping[str, str], *, inline: bool
) -> dict[str, Any]:
    name = stage.title
    policies = build_policies(stage, rights)
    log_group = f"{name}Logs"
    logs = {"Fn::GetAtt": [log_group, "Arn"]}
    objects = {"Fn::Sub": "${Artifacts.Arn}/*"}
    statements = [
        allow(["logs:CreateLogStream", "logs:PutLogEvents"], [logs]),
        allow(["s3:GetObject", "s3:GetObjectVersion"], [objects]),
        allow(["s3:GetBucketLocation"], [_BUCKET_ARN]),
        _use_connection(),
        *list_own_rights(stage, targets),
    ]
    values: dict[str, Any] = {
        "IMAGE_REPOSITORY": _REPOSITORY_URI,
        **{variable: {"Ref": parameter} for variable, parameter in targets.items()},
        **settings,
    }
    variables = [{"Name": variable, "Value": values[variable]} for variable in stage.variables if variable in values]
    source = write_buildspec(stage) if inline else {"Fn::Sub": f"${{BuildspecDirectory}}{name_buildspec(stage)}"}
    project = {
        "ServiceRole": {"Fn::GetAtt": [f"{name}Role", "Arn"]},
        "Artifacts": {"Type": "CODEPIPELINE"},
        "Source": {"Type": "CODEPIPELINE", "BuildSpec": source},
        "TimeoutInMinutes": stage.minutes,
        "LogsConfig": {"CloudWatchLogs": {"Status": "ENABLED", "GroupName": {"Ref": log_group}}},
        "Environment": {
            "Type": "LINUX_CONTAINER",
            "ComputeType": "BUILD_GENERAL1_SMALL",
            "Image": BUILD_IMAGE,
            **({"PrivilegedMode": True} if any("docker" in step.script for step in stage.steps) else {}),
            **({"EnvironmentVariables": variables} if variables else {}),
        },
    }
    return {
        **policies,
        log_group: {
            "Type": "AWS::Logs::LogGroup",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {"RetentionInDays": 30},
        },
        f"{name}Role": build_role(trust_service("codebuild.amazonaws.com"), statements, list(policies)),
        f"{name}Project": {"Type": "AWS::CodeBuild::Project", "Properties": project},
    }


def _pipeline(pipeline: Pipeline, stages: Sequence[Stage]) -> dict[str, Any]:
    by_name = {stage.name: stage for stage in stages}
    source = {
        "Name": "Source",
        "ActionTypeId": {"Category": "Source", "Owner": "AWS", "Provider": "CodeStarSourceConnection", "Version": "1"},
        "Configuration": {
            "ConnectionArn": _CONNECTION,
            "FullRepositoryId": {"Ref": "Repository"},
            "BranchName": pipeline.branch,
            "OutputArtifactFormat": "CODEBUILD_CLONE_REF",  # with its history, for `schema check`
        },
        "OutputArtifacts": [{"Name": "Source"}],
    }
    approve = {
        "Name": "Approve",
        "RunOrder": 1,
        "ActionTypeId": {"Category": "Approval", "Owner": "AWS", "Provider": "Manual", "Version": "1"},
        "Configuration": {"CustomData": "The topology: #{Plan.PLAN_SUMMARY}"},
    }
    image = [{"name": "IMAGE", "value": "#{Publish.IMAGE}", "type": "PLAINTEXT"}]
    return {
        "Type": "AWS::CodePipeline::Pipeline",
        "Properties": {
            "PipelineType": "V2",
            "ExecutionMode": "SUPERSEDED",
            "RoleArn": {"Fn::GetAtt": ["PipelineRole", "Arn"]},
            "ArtifactStore": {"Type": "S3", "Location": {"Ref": "Artifacts"}},
            "Stages": [
                {"Name": "Source", "Actions": [source]},
                {"Name": "Test", "Actions": [_action(by_name["test"])]},
                {"Name": "Build", "Actions": [_action(by_name["plan"]), _action(by_name["publish"])]},
                {
                    "Name": "Production",
                    "Actions": [
                        approve,
                        _action(by_name["deploy"], order=2, EnvironmentVariables=json.dumps(image)),
                    ],
                },
            ],
        },
    }


def _action(stage: Stage, order: int = 1, **configuration: str) -> dict[str, Any]:
    name = stage.title
    return {
        "Name": name,
        "RunOrder": order,
        "ActionTypeId": {"Category": "Build", "Owner": "AWS", "Provider": "CodeBuild", "Version": "1"},
        "Configuration": {"ProjectName": {"Ref": f"{name}Project"}, **configuration},
        "InputArtifacts": [{"Name": "Source"}],
        **({"Namespace": name} if stage.name in _EXPORTED else {}),
    }
