"""Each script of the exported pipelines, carried out with the real smartpipe on moto, and stand-ins for the clouds."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.deploy.pipelines.stages import PipelineOptions, build_pipeline
from tests.conftest import lead_to
from tests.support.pipelines import (
    build_environment,
    extract_jenkinsfile,
    extract_template,
    extract_workflow,
    has_tools,
    run_script,
    write_programs,
)
from tests.support.processes import ROOT, replace_module, smartpipe
from tests.support.proxy import FaultProxy, allowed_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from smartpipe import EmbeddedBroker

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not has_tools(), reason="the scripts need bash, git and jq"),
]
SERVICE = """
from smartpipe import Event, Service, Topic

class OrderPlaced(Event, topic=Topic("pipeline-orders"), type="pipeline.order.placed", version="1.0"):
    order_id: str

billing = Service("pipeline-billing", timeout_seconds=20, publishes=[OrderPlaced])

@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...
"""
SECOND = """
class OrderPaid(Event, topic=Topic("pipeline-orders"), type="pipeline.order.paid", version="1.0"):
    order_id: str

@billing.subscribe(OrderPaid)
async def send_receipt(event: OrderPaid) -> None: ...
"""
PROJECT = """
[project]
name = "pipelineshop"
version = "1"

[tool.smartpipe]
services = ["pipelineshop:billing"]

[tool.smartpipe.deploy]
image = "registry.example.com/shop:1"
cpu = 0.5
memory = "512Mi"
"""
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop"
DIGEST = f"{IMAGE}@sha256:0123"
EXTRACTORS: dict[str, Callable[[str], dict[str, list[str]]]] = {
    "github": extract_workflow,
    "codebuild": extract_template,
    "jenkins": extract_jenkinsfile,
}


class Checkout:
    """A project in git, with the scripts of its exported pipeline."""

    def __init__(self, directory: Path, form: str) -> None:
        self.directory = directory / "project"
        self.directory.mkdir()
        self._log = directory / "calls"
        for name, text in {
            "pipelineshop.py": SERVICE,
            "pyproject.toml": PROJECT,
            "uv.lock": "",
            "test_shop.py": "def test_shop() -> None: ...\n",
        }.items():
            (self.directory / name).write_text(text)
        self.environment = build_environment(
            write_programs(directory),
            PYTHONPATH=str(ROOT / "src"),
            AWS_REGION=os.environ["AWS_REGION"],
            IMAGE_REPOSITORY=IMAGE,
            IMAGE=DIGEST,
            EKS_CLUSTER="shop",
            GITHUB_OUTPUT=str(directory / "output"),
            GITHUB_REPOSITORY="example/shop",
            PULL_REQUEST="7",
        )
        self.export("dockerfile", "Dockerfile")
        self.smartpipe("schema", "export")
        for command in (
            ("init", "--quiet", "--initial-branch", "main"),
            ("add", "."),
            ("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", "Begin"),
            ("update-ref", "refs/remotes/origin/main", "HEAD"),
        ):
            subprocess.run(["git", *command], cwd=self.directory, check=True)
        self.scripts = EXTRACTORS[form](self.export(form))

    def smartpipe(self, *arguments: str) -> str:
        done = smartpipe(*arguments, directory=str(self.directory), **self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def export(self, form: str, file: str | None = None) -> str:
        return self.smartpipe("deploy", "export", "--format", form, *(("--output", file) if file else ()))

    def run(self, stage: str) -> subprocess.CompletedProcess[str]:
        """Run the scripts of a stage until one fails; return the last result, with the output of all."""
        output, errors = "", ""
        for script in self.scripts[stage]:
            done = run_script(script, self.directory, self.environment)
            output, errors = output + done.stdout, errors + done.stderr
            if done.returncode:
                break
        return subprocess.CompletedProcess(done.args, done.returncode, output, errors)

    def succeed(self, stage: str) -> str:
        done = self.run(stage)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def calls(self) -> list[str]:
        """The calls of the stand-ins, in their order."""
        return self._log.read_text().splitlines()

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()


@pytest.fixture
def _moto(moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to(moto.environment, monkeypatch)


@pytest.fixture
def github(tmp_path: Path, _moto: None) -> Checkout:
    return Checkout(tmp_path, "github")


@pytest.mark.usefixtures("_moto")
@pytest.mark.parametrize("form", list(EXTRACTORS))
def test_all_stages_succeed_in_their_order_and_leave_nothing_to_change(tmp_path: Path, form: str) -> None:
    checkout = Checkout(tmp_path, form)
    assert "1 passed" in checkout.succeed("test")
    assert "4 to create" in checkout.succeed("plan")
    assert checkout.read("plan.txt").startswith("account 123456789012")
    assert checkout.read("summary.txt").startswith("4 to create")
    checkout.succeed("publish")
    assert checkout.read("image.txt") == f"{DIGEST}\n"
    assert checkout.read("password.txt") == "secret-of-ecr\n"
    deployed = checkout.succeed("deploy")

    assert "4 changes made" in deployed
    assert deployed.rstrip().endswith("nothing to change; 4 unchanged")
    assert f'image: "{DIGEST}"' in checkout.read("workers.yaml")
    assert [call for call in checkout.calls if call.startswith(("docker buildx build --push", "kubectl"))] == [
        (
            "docker buildx build --push --sbom=true --provenance=mode=max --metadata-file metadata.json "
            f"--tag {IMAGE}:{head_of(checkout)} ."
        ),
        "kubectl apply --filename workers.yaml",
        "kubectl rollout status deployment --selector app.kubernetes.io/managed-by=smartpipe --timeout 15m",
    ]


def head_of(github: Checkout) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=github.directory, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_policies_of_the_template_are_enough_to_plan_and_to_deploy(
    fast_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        checkout = Checkout(tmp_path, "codebuild")
        proxy.judge = allowed_by(read_policies(checkout.export("codebuild")), "000000000000")

        checkout.environment["AWS_ACCESS_KEY_ID"] = "plan"
        assert "4 to create" in checkout.succeed("plan")
        assert "may not sqs:CreateQueue" in checkout.run("deploy").stderr
        checkout.environment["AWS_ACCESS_KEY_ID"] = "deploy"
        assert "4 changes made" in checkout.succeed("deploy")


def read_policies(template: str) -> dict[str, Any]:
    """Return the managed policies of the roles of a template, in the account and region of the broker."""
    place = {"Partition": "aws", "Region": "us-east-1", "AccountId": "000000000000"}

    def resolve(value: Any) -> str:
        text = value["Fn::Sub"] if isinstance(value, dict) else value
        return re.sub(r"\$\{AWS::(\w+)\}", lambda found: place[found[1]], text)

    policies: dict[str, Any] = {}
    for name, resource in json.loads(template)["Resources"].items():
        if resource["Type"] == "AWS::IAM::ManagedPolicy":
            statements = policies.setdefault(name.partition("Policy")[0].lower(), {"Statement": []})["Statement"]
            for one in resource["Properties"]["PolicyDocument"]["Statement"]:
                statements.append({**one, "Resource": [resolve(arn) for arn in one["Resource"]]})
    return policies


def test_a_plan_that_is_not_possible_fails_its_stage_and_shows_the_reason(github: Checkout) -> None:
    github.environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"

    done = github.run("plan")

    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stdout


def test_a_failed_test_ends_the_first_stage_before_the_other_checks(github: Checkout) -> None:
    (github.directory / "test_shop.py").write_text("def test_shop() -> None:\n    assert False\n")

    assert github.run("test").returncode == 1
    assert not [call for call in github.calls if call.startswith("smartpipe schema")]


def test_an_event_that_consumers_would_refuse_fails_the_first_stage(github: Checkout) -> None:
    replace_module(github.directory / "pipelineshop.py", SERVICE.replace("order_id: str", "order_id: int"))

    done = github.run("test")

    assert done.returncode == 1
    assert "order_id" in done.stdout


def test_schemas_that_nobody_committed_fail_the_first_stage(github: Checkout) -> None:
    with (github.directory / "pipelineshop.py").open("a") as file:
        file.write(SECOND)

    done = github.run("test")

    assert done.returncode == 1
    assert "+++ b/schemas/pipeline.order.paid/" in done.stdout


def test_a_missing_dockerfile_fails_the_first_stage_with_an_annotation(github: Checkout) -> None:
    (github.directory / "Dockerfile").unlink()

    done = github.run("test")

    assert done.returncode == 1
    assert "::error" in done.stdout
    assert "SP200" in done.stdout


def test_changes_that_are_left_after_the_deployment_fail_it(github: Checkout) -> None:
    *_, last = github.scripts["deploy"]

    done = run_script(last, github.directory, github.environment)  # nothing has been applied

    assert done.returncode == 1
    assert "4 to create" in done.stdout


def test_an_image_that_cannot_be_pushed_passes_nothing_on(github: Checkout, tmp_path: Path) -> None:
    (tmp_path / "programs" / "docker").write_text('#!/bin/sh\n[ "$1" = login ]\n')

    assert github.run("publish").returncode != 0
    assert not (github.directory / "image.txt").exists()


def test_the_password_of_the_registry_does_not_stay_on_the_machine(github: Checkout) -> None:
    github.succeed("publish")

    assert github.calls[-1] == "docker logout 123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def test_the_smoke_test_of_the_project_runs_and_can_fail_the_deployment(github: Checkout) -> None:
    smoke = github.directory / "tests" / "smoke"
    smoke.mkdir(parents=True)
    (smoke / "test_it.py").write_text("def test_it() -> None:\n    assert False\n")

    done = github.run("deploy")

    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "pytest tests/smoke" in github.calls


def test_a_pull_request_gets_one_comment_which_later_plans_replace(github: Checkout) -> None:
    github.succeed("plan")
    output = (github.directory.parent / "output").read_text()
    first, *plan, last = output.splitlines()
    assert first == f"plan<<{last}"
    github.environment["PLAN"] = "\n".join(plan)

    by_others = [{"id": 40, "user": {"login": "someone"}, "body": "<!-- smartpipe topology plan -->"}]
    by_workflows = [{"id": 41, "user": {"login": "github-actions[bot]"}, "body": "another workflow"}]
    comments = github.directory / "comments.json"
    comments.write_text(json.dumps([*by_others, *by_workflows]))
    github.succeed("comment")
    sent = github.read("sent-comment.md")
    ours = [{"id": number, "user": {"login": "github-actions[bot]"}, "body": sent} for number in (42, 43)]
    comments.write_text(json.dumps([*by_others, *by_workflows, *ours]))
    github.succeed("comment")

    assert sent.startswith("<!-- smartpipe topology plan -->\n")
    assert "4 to create" in sent
    posted, patched = [call for call in github.calls if "--method" in call]
    assert "--method POST repos/example/shop/issues/7/comments --field body=@comment.md" in posted
    assert "--method PATCH repos/example/shop/issues/comments/42 --field body=@comment.md" in patched


def test_the_deploy_job_gets_the_digest_of_the_image(github: Checkout) -> None:
    github.succeed("publish")

    assert (github.directory.parent / "output").read_text() == "digest=sha256:0123\n"


def test_a_pull_request_only_builds_the_image(github: Checkout) -> None:
    github.succeed("build")

    assert github.calls == ["docker buildx build ."]


def test_on_ecs_every_image_and_every_parameter_of_the_variable_reach_the_stack(tmp_path: Path) -> None:
    programs = write_programs(tmp_path)
    parameters: dict[str, dict[str, str]] = {"Image": {}, "BillingImage": {}, "Cluster": {}}
    (programs / "smartpipe").write_text(f"#!/bin/sh\necho '{json.dumps({'Parameters': parameters})}' > workers.json\n")
    environment = build_environment(
        programs,
        IMAGE=DIGEST,
        ECS_STACK="shop",
        ECS_PARAMETERS="Cluster=shop Subnets=subnet-1,subnet-2",
        ECS_STACK_ROLE="arn:aws:iam::123456789012:role/shop",
    )
    deploy = build_pipeline(PipelineOptions(deploy="ecs")).find("deploy")
    (script,) = [step.script for step in deploy.steps if "cloudformation" in step.script]

    done = run_script(script, tmp_path, environment)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines()[-1] == (
        "aws cloudformation deploy --stack-name shop --template-file compact.json "
        "--role-arn arn:aws:iam::123456789012:role/shop --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset "
        f"--parameter-overrides Cluster=shop Subnets=subnet-1,subnet-2 BillingImage={DIGEST} Image={DIGEST}"
    )
    assert (tmp_path / "compact.json").read_text() == json.dumps(
        {"Parameters": parameters}, separators=(",", ":")
    ) + "\n"


def test_the_exported_template_for_ecs_has_the_image_as_a_parameter_that_the_script_finds(github: Checkout) -> None:
    pyproject = github.directory / "pyproject.toml"
    pyproject.write_text(f'{PROJECT.replace("512Mi", "1Gi")}\n[tool.smartpipe.pipeline]\ndeploy = "ecs"\n')
    github.environment["ECS_PARAMETERS"] = "Cluster=shop"
    deploy = extract_workflow(github.export("github"))["deploy"]
    (script,) = [one for one in deploy if "cloudformation" in one]

    done = run_script(script, github.directory, github.environment)

    assert done.returncode == 0, done.stderr
    assert github.calls[-1].endswith(f"--parameter-overrides Cluster=shop Image={DIGEST}")
