"""The stages of a pipeline, which the formats of GitHub, AWS CodePipeline and Jenkins share. Pure.

A script needs bash with ``-eo pipefail``, uv, and the variables that ``VARIABLES`` describes.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = "tool.smartpipe.pipeline"
INSTALL = "Install"
PLAN_FILE = "plan.txt"
SUMMARY_FILE = "summary.txt"
"""The plan stage writes the plan, and its counts in one line, to these files of the working directory."""
IMAGE_FILE = "image.txt"
"""The publish stage writes the image, with its digest, to this file of the working directory."""


class PipelineOptions(BaseModel):
    """The options of ``[tool.smartpipe.pipeline]`` in pyproject.toml.

    Args:
        deploy: The platform that runs the workers.
        branch: The branch that is deployed.
        settings: Further settings of the environment that the topology or the workers need.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    deploy: Literal["kubernetes", "ecs"] = "kubernetes"
    branch: str = Field("main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    settings: list[Annotated[str, Field(pattern=r"^SMARTPIPE_[A-Z_]+$")]] = []


class Event(Enum):
    """The event that starts a pipeline: a proposed change, or a change of the branch that is deployed."""

    PROPOSAL = "proposal"
    BRANCH = "branch"


class Step(NamedTuple):
    """A step with its script for bash."""

    name: str
    script: str


class Stage(NamedTuple):
    """Steps that run in one environment, with one role.

    Args:
        events: The events that run it.
        role: The variable with the ARN of its role; None if it must not have any.
        variables: Those of ``VARIABLES`` that its scripts use.
        minutes: The time after which it is ended.
    """

    name: str
    steps: tuple[Step, ...]
    events: frozenset[Event]
    role: str | None = None
    variables: tuple[str, ...] = ()
    minutes: int = 15

    @property
    def title(self) -> str:
        """The name with a capital letter."""
        return self.name.capitalize()

    @property
    def uses_uv(self) -> bool:
        """Whether it runs commands of the project. Its first step then installs the packages."""
        return self.steps[0].name == INSTALL


class Pipeline(NamedTuple):
    """The stages in their order, and the branch that is deployed."""

    branch: str
    stages: tuple[Stage, ...]

    def find(self, name: str) -> Stage:
        """Return the stage with this name."""
        return next(stage for stage in self.stages if stage.name == name)


VARIABLES = {
    "AWS_REGION": "the region, such as eu-west-1",
    "SMARTPIPE_PREFIX": "the prefix of the environment, such as prod-; it may be empty",
    "SMARTPIPE_APPLICATION": "the application in the tags; it may be empty",
    "IMAGE_REPOSITORY": "the ECR repository, such as 123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop",
    "AWS_PLAN_ROLE": "the ARN of a role that reads the topology",
    "AWS_PUBLISH_ROLE": "the ARN of a role that pushes images to IMAGE_REPOSITORY",
    "AWS_DEPLOY_ROLE": "the ARN of a role that changes the topology and deploys",
    "EKS_CLUSTER": "the name of the EKS cluster",
    "ECS_STACK": "the name of the CloudFormation stack of the workers",
    "ECS_PARAMETERS": "the parameters of this stack, such as Cluster=shop Subnets=subnet-1,subnet-2",
    "ECS_STACK_ROLE": "the ARN of the role with which CloudFormation changes the stack",
}
"""The variables of all stages, with their descriptions."""
SETTINGS = ("AWS_REGION", "SMARTPIPE_PREFIX", "SMARTPIPE_APPLICATION")
_BOTH = frozenset(Event)
_PROPOSAL, _BRANCH = frozenset({Event.PROPOSAL}), frozenset({Event.BRANCH})
_SMARTPIPE = "uv run --no-sync smartpipe"
_INSTALL = "uv sync --locked\n"
_INSTALL_WITHOUT_TOOLS = "uv sync --locked --no-dev\n"
_CHECK_EXPORTED_SCHEMAS = f"""\
{_SMARTPIPE} schema export
git add --intent-to-add schemas
git diff --exit-code -- schemas
"""
_PLAN = f"""\
status=0
{_SMARTPIPE} topology plan > {PLAN_FILE} 2>&1 || status=$?
cat {PLAN_FILE}
# 0: nothing to change, 1: changes, 2: no plan is possible
if [ "$status" -gt 1 ]; then exit "$status"; fi
grep -E '^([0-9]+ to create|nothing to change)' {PLAN_FILE} > {SUMMARY_FILE}
"""
_PLAN_AGAIN = f"""\
# Changes that are left after an apply exit with 1.
{_SMARTPIPE} topology plan
"""
_BUILD = "docker buildx build .\n"
_PUBLISH = f"""\
registry="${{IMAGE_REPOSITORY%%/*}}"
trap 'docker logout "$registry"' EXIT
aws ecr get-login-password | docker login --username AWS --password-stdin "$registry"
# The default builder cannot attest. This one may exist from an earlier run on the same machine.
docker buildx create --name smartpipe --use || docker buildx use smartpipe
docker buildx build --push --sbom=true --provenance=mode=max --metadata-file metadata.json \\
  --tag "$IMAGE_REPOSITORY:$(git rev-parse HEAD)" .
digest=$(jq --exit-status --raw-output '."containerimage.digest"' metadata.json)
echo "$IMAGE_REPOSITORY@$digest" > {IMAGE_FILE}
"""
_SMOKE = f"""\
{_SMARTPIPE} dlq list
# Your own test of the deployed services: it needs only the packages of the project and pytest.
if [ -d tests/smoke ]; then uv run --no-dev --with pytest pytest tests/smoke; fi
"""
_DEPLOY = {
    "kubernetes": f"""\
{_SMARTPIPE} deploy export --format kubernetes --image "$IMAGE" --output workers.yaml
export KUBECONFIG="$PWD/kubeconfig"
aws eks update-kubeconfig --name "$EKS_CLUSTER"
kubectl apply --filename workers.yaml
kubectl rollout status deployment --selector app.kubernetes.io/managed-by=smartpipe --timeout 15m
""",
    "ecs": f"""\
{_SMARTPIPE} deploy export --format ecs --image "$IMAGE" --output workers.json
# CloudFormation would keep the images of the last deployment.
images=$(jq --raw-output '.Parameters | keys[] | select(endswith("Image"))' workers.json)
read -r -a parameters <<< "$ECS_PARAMETERS"
for name in $images; do parameters+=("$name=$IMAGE"); done
# Without an S3 bucket, a template may have 51,200 bytes. White space is half of it.
jq --compact-output . workers.json > compact.json
aws cloudformation deploy --stack-name "$ECS_STACK" --template-file compact.json --role-arn "$ECS_STACK_ROLE" \\
  --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset --parameter-overrides "${{parameters[@]}}"
""",
}
_DEPLOY_VARIABLES = {
    "kubernetes": ("EKS_CLUSTER",),
    "ecs": ("ECS_STACK", "ECS_PARAMETERS", "ECS_STACK_ROLE"),
}


def read_pipeline_options(table: Any) -> PipelineOptions:
    """Return the options in the contents of ``[tool.smartpipe.pipeline]``.

    Raises:
        ConfigError: It has one sentence for each wrong option.
    """
    if not isinstance(table, dict):
        raise ConfigError(
            f'pyproject.toml: {TABLE} is not a table; write [{TABLE}] with deploy = "kubernetes" or "ecs"'
        )
    try:
        return PipelineOptions.model_validate(table)
    except ValidationError as error:
        raise ConfigError([_describe_error(one) for one in error.errors(include_url=False)]) from None


def _describe_error(details: Any) -> str:
    key = str(details["loc"][0])
    if details["type"] == "extra_forbidden":
        return (
            f"pyproject.toml: [{TABLE}]: {key} is not an option; use one of {', '.join(PipelineOptions.model_fields)}"
        )
    hints = {
        "deploy": '"kubernetes" or "ecs"',
        "branch": 'the name of a branch, such as "main"',
        "settings": 'a list of names, such as ["SMARTPIPE_DRAIN_SECONDS"]',
    }
    return f"pyproject.toml: [{TABLE}]: {key} = {details['input']!r} is wrong: use {hints[key]}"


def build_pipeline(options: PipelineOptions, findings_format: str = "text") -> Pipeline:
    """Return the pipeline.

    Args:
        findings_format: The format in which ``schema check`` and ``doctor`` print their findings.
    """
    settings = tuple(dict.fromkeys((*SETTINGS, *options.settings)))
    plan = (Step(INSTALL, _INSTALL_WITHOUT_TOOLS), Step("Plan the topology", _PLAN))
    publish = Step("Build and push the image", _PUBLISH)
    to_publish = ("AWS_REGION", "IMAGE_REPOSITORY")
    to_deploy = (*settings, "IMAGE_REPOSITORY", *_DEPLOY_VARIABLES[options.deploy])
    return Pipeline(
        options.branch,
        (
            Stage("test", _build_test(options, findings_format), _BOTH, None, tuple(options.settings), 30),
            Stage("build", (Step("Build the image", _BUILD),), _PROPOSAL, minutes=30),
            Stage("plan", plan, _BOTH, "AWS_PLAN_ROLE", settings),
            Stage("publish", (publish,), _BRANCH, "AWS_PUBLISH_ROLE", to_publish, 30),
            Stage("deploy", _build_deploy(options), _BRANCH, "AWS_DEPLOY_ROLE", to_deploy, 60),
        ),
    )


def _build_test(options: PipelineOptions, findings_format: str) -> tuple[Step, ...]:
    against = f"git:origin/{options.branch}"
    return (
        Step(INSTALL, _INSTALL),
        Step("Test", "uv run --no-sync pytest\n"),
        Step(
            "Check that no consumer would refuse an event",
            f"{_SMARTPIPE} schema check --against {against} --format {findings_format}\n",
        ),
        Step("Check that the committed schemas are up to date", _CHECK_EXPORTED_SCHEMAS),
        Step(
            "Find mistakes that lose messages",
            f"{_SMARTPIPE} doctor --manifest Dockerfile --format {findings_format}\n",
        ),
    )


def _build_deploy(options: PipelineOptions) -> tuple[Step, ...]:
    return (
        Step(INSTALL, _INSTALL_WITHOUT_TOOLS),
        Step("Change the topology", f"{_SMARTPIPE} topology apply --yes\n"),
        Step("Deploy the workers", _DEPLOY[options.deploy]),
        Step("Run the smoke test", _SMOKE),
        Step("Check that nothing is left to change", _PLAN_AGAIN),
    )


def list_variables(stages: Sequence[Stage]) -> list[str]:
    """Return the variables that the stages use: those of ``VARIABLES`` in their order, and further settings."""
    used = dict.fromkeys(name for stage in stages for name in (*stage.variables, stage.role) if name)
    return [*(name for name in VARIABLES if name in used), *(name for name in used if name not in VARIABLES)]


def describe(variable: str) -> str:
    """Return the description of a variable."""
    return VARIABLES.get(variable, "a setting of smartpipe; do not put a password into it")
