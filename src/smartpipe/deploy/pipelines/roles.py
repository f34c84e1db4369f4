"""IAM roles of the stages of a pipeline, as resources of AWS CloudFormation. Pure.

Sources: AWS CloudFormation, template reference of AWS::IAM::Role; GitHub, "OpenID Connect reference".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.deploy.pipelines.stages import describe
from smartpipe.topology.resources import POLICY_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from smartpipe.deploy.pipelines.rights import Rights
    from smartpipe.deploy.pipelines.stages import Pipeline, Stage

ROLES_FILE = "github-roles.json"
PARAMETERS: dict[str, Any] = {
    "Repository": {
        "Type": "String",
        "AllowedPattern": "^[^/]+/.+$",
        "Description": "The repository, such as example/shop.",
    },
    "ImageRepository": {
        "Type": "String",
        "AllowedPattern": "^[a-z0-9][a-z0-9._/-]*$",
        "Description": "Name of the ECR repository in this account and region.",
    },
}
_IN_POLICIES = frozenset({"EKS_CLUSTER", "ECS_STACK", "ECS_STACK_ROLE"})
"""The variables that policies contain."""
_HOST = "token.actions.githubusercontent.com"
_PLACE = "${AWS::Region}:${AWS::AccountId}"
_REPOSITORY_ARN = {"Fn::Sub": f"arn:${{AWS::Partition}}:ecr:{_PLACE}:repository/${{ImageRepository}}"}
_STACK_ARN = {"Fn::Sub": f"arn:${{AWS::Partition}}:cloudformation:{_PLACE}:stack/${{EcsStack}}/*"}
_CLUSTER_ARN = {"Fn::Sub": f"arn:${{AWS::Partition}}:eks:{_PLACE}:cluster/${{EksCluster}}"}


def build_github_roles(pipeline: Pipeline, rights: Rights) -> dict[str, Any]:
    """Return a template with the role of each stage, which only its job in GitHub can assume."""
    branch = f"ref:refs/heads/{pipeline.branch}"
    subjects = {"plan": ["pull_request", branch], "publish": [branch], "deploy": ["environment:production"]}
    stages = [pipeline.find(name) for name in subjects]
    targets = name_parameters(name for stage in stages for name in stage.variables if name in _IN_POLICIES)
    resources: dict[str, Any] = {}
    for stage in stages:
        policies = build_policies(stage, rights)
        trust = _trust_github(subjects[stage.name])
        statements = list_own_rights(stage, targets)
        resources |= {**policies, f"{stage.title}Role": build_role(trust, statements, list(policies))}
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "Roles of a pipeline of smartpipe on GitHub. Written by `smartpipe deploy export --format "
        "github`; run it again when services or options change.",
        "Parameters": {
            **PARAMETERS,
            **describe_parameters(targets),
            "OidcProvider": {
                "Type": "String",
                "AllowedPattern": f"^arn:.+:oidc-provider/{_HOST.replace('.', '[.]')}$",
                "Description": f"ARN of the OIDC provider of IAM for {_HOST}.",
            },
        },
        "Resources": resources,
        "Outputs": {
            f"{stage.title}RoleArn": {
                "Description": f"The variable {stage.role}",
                "Value": {"Fn::GetAtt": [f"{stage.title}Role", "Arn"]},
            }
            for stage in stages
        },
    }


def name_parameters(variables: Iterable[str]) -> dict[str, str]:
    """Return the names of the parameters for variables, as in ``EksCluster``."""
    return {name: "".join(word.capitalize() for word in name.split("_")) for name in variables}


def describe_parameters(targets: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters for variables, by their names."""
    return {parameter: {"Type": "String", "Description": describe(name)} for name, parameter in targets.items()}


def build_policies(stage: Stage, rights: Rights) -> dict[str, Any]:
    """Return the managed policies with which a stage reads or changes the topology."""
    documents = {"plan": rights.plan, "deploy": rights.deploy}.get(stage.name, ())
    return {
        f"{stage.title}Policy{number}": {"Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": document}}
        for number, document in enumerate(documents, 1)
    }


def list_own_rights(stage: Stage, targets: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the statements that only this stage needs, besides those of the topology."""
    found: list[dict[str, Any]] = []
    if stage.name == "publish":
        push = [
            "BatchCheckLayerAvailability", "BatchGetImage", "CompleteLayerUpload", "GetDownloadUrlForLayer",
            "InitiateLayerUpload", "PutImage", "UploadLayerPart",
        ]  # fmt: skip
        found += [
            allow(["ecr:GetAuthorizationToken"], ["*"]),
            allow([f"ecr:{action}" for action in push], [_REPOSITORY_ARN]),
        ]
    if stage.name == "deploy" and "EKS_CLUSTER" in targets:
        found.append(allow(["eks:DescribeCluster"], [_CLUSTER_ARN]))
    if stage.name == "deploy" and "ECS_STACK" in targets:
        change = ["CreateChangeSet", "DescribeChangeSet", "DescribeStacks", "ExecuteChangeSet"]
        passed = {"StringEquals": {"iam:PassedToService": "cloudformation.amazonaws.com"}}
        found += [
            allow([f"cloudformation:{action}" for action in change], [_STACK_ARN]),
            {**allow(["iam:PassRole"], [{"Ref": targets["ECS_STACK_ROLE"]}]), "Condition": passed},
        ]
    return found


def trust_service(service: str) -> dict[str, Any]:
    """Return the statement with which a service of AWS can assume a role, for this account only."""
    return {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
    }


def _trust_github(subjects: Sequence[str]) -> dict[str, Any]:
    conditions = {
        f"{_HOST}:aud": "sts.amazonaws.com",
        f"{_HOST}:sub": [{"Fn::Sub": f"repo:${{Repository}}:{subject}"} for subject in subjects],
    }
    return {
        "Effect": "Allow",
        "Principal": {"Federated": {"Ref": "OidcProvider"}},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": conditions},
    }


def build_role(
    trust: Mapping[str, Any], statements: Sequence[dict[str, Any]], managed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a role with these statements, and with the managed policies of these resources."""
    own = [{"PolicyName": "own", "PolicyDocument": build_document(statements)}] if statements else []
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": build_document([trust]),
            **({"Policies": own} if own else {}),
            **({"ManagedPolicyArns": [{"Ref": name} for name in managed]} if managed else {}),
        },
    }


def build_document(statements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a policy document."""
    return {"Version": POLICY_VERSION, "Statement": list(statements)}


def allow(actions: Sequence[str], resources: Sequence[Any]) -> dict[str, Any]:
    """Return a statement that allows *actions*."""
    return {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
