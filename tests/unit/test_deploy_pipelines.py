"""The pipelines for GitHub, CodePipeline and Jenkins. tests/acceptance/test_pipeline_scripts.py carries them out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from smartpipe import ConfigError, Event, Service, Topic
from smartpipe.cli.deploy.export import run_export
from smartpipe.deploy.pipelines.codebuild import build_pipeline_template, write_buildspec
from smartpipe.deploy.pipelines.github import ACTIONS, write_workflow
from smartpipe.deploy.pipelines.jenkins import write_jenkinsfile
from smartpipe.deploy.pipelines.rights import build_pipeline_rights
from smartpipe.deploy.pipelines.roles import build_github_roles
from smartpipe.deploy.pipelines.stages import PipelineOptions, build_pipeline, list_variables, read_pipeline_options
from smartpipe.topology.export.iam import MAX_CHARACTERS
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET, TableAndBucket
from tests.support import exported
from tests.support.pipelines import extract_jenkinsfile, extract_template, extract_workflow
from tests.support.processes import ROOT
from tests.support.programs import find_program, judge

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe.deploy.pipelines.rights import Rights

PLATFORMS = ["kubernetes", "ecs"]
NODE = ROOT / ".venv" / "node" / "node_modules" / ".bin"
VALUES = {"AWS_REGION": {"Ref": "AWS::Region"}, "SMARTPIPE_PREFIX": "prod-", "SMARTPIPE_APPLICATION": "shop"}
OPTIONS = PipelineOptions(settings=["SMARTPIPE_DRAIN_SECONDS"])


@pytest.fixture(params=PLATFORMS)
def options(request: pytest.FixtureRequest) -> PipelineOptions:
    return OPTIONS.model_copy(update={"deploy": request.param})


def workflow(options: PipelineOptions = OPTIONS) -> str:
    return write_workflow(build_pipeline(options), ["billing"])


def rights() -> Rights:
    return build_pipeline_rights(exported.services(), "prod-", "shop", NO_TABLE_AND_BUCKET)


def template(options: PipelineOptions = OPTIONS, *, inline: bool = True) -> dict[str, Any]:
    return build_pipeline_template(build_pipeline(options), rights(), VALUES, inline=inline)


def resources(**keywords: Any) -> dict[str, Any]:
    found: dict[str, Any] = template(**keywords)["Resources"]
    return found


# The judges.


def test_the_schema_of_github_accepts_the_workflow(options: PipelineOptions, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(workflow(options))

    judge(find_program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(file))


def test_zizmor_has_no_findings(options: PipelineOptions, tmp_path: Path) -> None:
    directory = tmp_path / ".github" / "workflows"
    directory.mkdir(parents=True)
    (directory / "deploy.yaml").write_text(workflow(options))

    judge(find_program("zizmor"), "--offline", "--no-progress", str(directory))


def test_action_validator_has_no_findings(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(workflow())

    judge(find_program("action-validator", str(NODE)), str(file))


@pytest.mark.timeout(300)
def test_groovy_lint_finds_no_error(options: PipelineOptions, tmp_path: Path) -> None:
    linter = find_program("npm-groovy-lint", str(NODE))
    (tmp_path / "Jenkinsfile").write_text(write_jenkinsfile(build_pipeline(options), ["billing"]))

    judge(linter, "--noserver", "--failon", "error", "--path", str(tmp_path))


# One model.


def test_the_formats_have_the_same_scripts(options: PipelineOptions) -> None:
    pipeline = build_pipeline(options)
    jobs = extract_workflow(workflow(options))
    projects = extract_template(json.dumps(template(options)))
    stages = extract_jenkinsfile(write_jenkinsfile(pipeline, ["billing"]))

    for stage in pipeline.stages:
        expected = [step.script for step in stage.steps]
        assert jobs[stage.name][: len(expected)] == expected
        assert [_unindent(one) for one in stages[stage.name]] == expected
        if stage.name != "build":  # CodePipeline does not run for pull requests
            assert [re.sub(r"^\(\nset .*\n# .*\n|\)\n$", "", one) for one in projects[stage.name]][
                : len(expected)
            ] == expected


def _unindent(script: str) -> str:
    """Return a script of Jenkins without its first two lines."""
    _, _, *lines = script.split("\n")
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "".join(f"{line[margin:]}\n" for line in lines[:-1])


def test_every_variable_of_a_script_is_described_and_set(options: PipelineOptions) -> None:
    stages = build_pipeline(options).stages
    for stage in stages:
        text = "".join(step.script for step in stage.steps)
        assigned = {"status", "digest", "images", "parameters", "name", "registry", "IMAGE", "PWD"}
        used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", text)) - assigned
        assert used <= set(stage.variables)
    header = workflow(options).partition("---")[0]
    assert all(f"  {name} " in header for name in list_variables(stages))


# GitHub.


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow())["jobs"]
    return found


def test_further_settings_reach_the_doctor_the_plan_and_the_deployment() -> None:
    with_setting = [name for name, job in jobs().items() if "SMARTPIPE_DRAIN_SECONDS" in job.get("env", {})]
    parameters = template()["Parameters"]

    assert with_setting == ["test", "plan", "deploy"]
    assert "SmartpipeDrainSeconds" in parameters
    assert "SmartpipePrefix" not in parameters  # the policies depend on it


def test_actions_are_pinned_by_commit_and_named_by_version() -> None:
    used = set(re.findall(r"uses: (.*)", workflow()))

    assert used == {f"{one.name}@{one.commit}  # {one.version}" for one in ACTIONS}
    assert all(re.fullmatch(r"[0-9a-f]{40}", one.commit) for one in ACTIONS)


def test_each_job_has_the_least_permissions() -> None:
    reads, assumes = {"contents": "read"}, {"contents": "read", "id-token": "write"}

    assert yaml.safe_load(workflow())["permissions"] == {}
    assert {name: job["permissions"] for name, job in jobs().items()} == {
        "test": reads,
        "build": reads,
        "plan": assumes,
        "comment": {"pull-requests": "write"},
        "publish": assumes,
        "deploy": assumes,
    }


def test_packages_are_installed_before_a_job_gets_its_role() -> None:
    for name in ("plan", "deploy"):
        names = [step.get("name") or step["uses"].partition("@")[0] for step in jobs()[name]["steps"]]
        assert names.index("Install") < names.index("aws-actions/configure-aws-credentials")


def test_pull_requests_of_forks_and_of_dependabot_get_no_role() -> None:
    with_role = {name: job["if"] for name, job in jobs().items() if "id-token" in job["permissions"]}

    assert with_role.pop("plan") == (
        "github.event_name == 'push' || (github.event.pull_request.head.repo.full_name == github.repository && "
        "github.event.pull_request.user.login != 'dependabot[bot]')"
    )
    assert set(with_role.values()) == {"github.event_name == 'push'"}


def test_a_newer_commit_ends_checks_but_no_deployment() -> None:
    assert yaml.safe_load(workflow())["concurrency"] == {
        "group": "deploy-${{ github.ref }}",
        "cancel-in-progress": "${{ github.event_name == 'pull_request' }}",
    }
    assert jobs()["deploy"]["environment"] == "production"
    assert all("timeout-minutes" in job for job in jobs().values())


def test_no_script_contains_an_expression_that_github_would_replace() -> None:
    assert not [step for job in jobs().values() for step in job["steps"] if "${{" in step.get("run", "")]


# CodePipeline.


def test_production_needs_an_approval_that_shows_the_plan() -> None:
    *_, production = resources()["Pipeline"]["Properties"]["Stages"]
    approve, deploy = production["Actions"]

    assert approve["ActionTypeId"]["Provider"] == "Manual"
    assert approve["Configuration"]["CustomData"] == "The topology: #{Plan.PLAN_SUMMARY}"
    assert (approve["RunOrder"], deploy["RunOrder"]) == (1, 2)
    image = {"name": "IMAGE", "value": "#{Publish.IMAGE}", "type": "PLAINTEXT"}
    assert json.loads(deploy["Configuration"]["EnvironmentVariables"]) == [image]


def test_exported_variables_are_set_in_the_shell_of_codebuild() -> None:
    pipeline = build_pipeline(OPTIONS)
    for name, variable in (("plan", "PLAN_SUMMARY"), ("publish", "IMAGE")):
        spec = yaml.safe_load(write_buildspec(pipeline.find(name)))
        assert spec["env"]["exported-variables"] == [variable]
        assert spec["phases"]["build"]["commands"][-1].startswith(f'export {variable}="$(cat ')


def test_only_the_projects_that_run_docker_are_privileged() -> None:
    projects = {name: one["Properties"] for name, one in resources().items() if name.endswith("Project")}

    assert [name for name, one in projects.items() if one["Environment"].get("PrivilegedMode")] == ["PublishProject"]


def test_the_plan_role_only_reads_and_the_deploy_role_deletes_no_queue_or_topic() -> None:
    found = rights()
    reading, changing = ({a for one in docs for s in one["Statement"] for a in s["Action"]} for docs in found)

    assert all(re.match(r"\w+:(Get|List|Describe)", action) for action in reading)
    assert {"sns:CreateTopic", "sqs:CreateQueue", "sns:Unsubscribe"} <= changing
    assert not [action for action in changing if action in {"sns:DeleteTopic", "sqs:DeleteQueue"}]
    assert "this-" not in json.dumps(found)
    assert "the-" not in json.dumps(found).replace("the-dead", "")


def test_the_policies_contain_the_table_of_claims() -> None:
    service = Service("claims-once")
    service.subscribe(exported.AccountOpened, idempotent=True)(exported.handle)
    changing = json.dumps(build_pipeline_rights([service], "", "shop", TableAndBucket("claims")).deploy)

    assert "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/claims" in changing


def test_a_topic_by_arn_may_be_in_the_account_of_the_pipeline_or_not() -> None:
    arn = "arn:aws:sns:eu-west-1:123456789012:shared"

    class Shared(Event, topic=Topic(arn=arn), type="pipeline.shared", version="1.0"):
        pass

    found = build_pipeline_rights([exported.subscribed(Service("audit"), Shared)], "", "shop", NO_TABLE_AND_BUCKET)

    for documents in found:
        statements = [statement for one in documents for statement in one["Statement"]]
        resources = [one["Resource"] for one in statements if "sns:ListSubscriptionsByTopic" in one["Action"]]
        assert any(arn in one for one in resources)
        assert any("sns:ListSubscriptions" in one["Action"] for one in statements)


def test_a_bucket_with_an_owner_may_be_in_the_account_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://bodies/shop?owner=123456789012")

    found = build_pipeline_rights([exported.archive()], "", "shop", TableAndBucket.from_environment())

    assert "s3:GetLifecycleConfiguration" in json.dumps(found.plan)
    assert "s3:PutLifecycleConfiguration" in json.dumps(found.deploy)


def test_policies_of_many_services_are_split_and_fit_into_iam_in_every_region() -> None:
    services = []
    for number in range(40):
        topic = Topic(f"a-topic-with-a-name-of-the-usual-length-{number}")

        class Many(Event, topic=topic, type=f"pipeline.many.{number}", version="1.0"):
            pass

        services.append(exported.subscribed(Service(f"a-service-with-a-usual-name-{number}"), Many))
    found = build_pipeline_rights(services, "production-", "shop", NO_TABLE_AND_BUCKET)

    assert 1 < len(found.deploy) <= 10
    for document in found.deploy:
        text = json.dumps(document, separators=(",", ":"))
        text = re.sub(r'\{"Fn::Sub":("[^"]*")\}', r"\1", text)
        for pseudo, longest in (
            ("Partition", "aws-us-gov"),
            ("Region", "ap-southeast-1"),
            ("AccountId", "123456789012"),
        ):
            text = text.replace(f"${{AWS::{pseudo}}}", longest)
        assert len(text) <= MAX_CHARACTERS


# The roles for GitHub.


def roles(options: PipelineOptions = OPTIONS) -> dict[str, Any]:
    return build_github_roles(build_pipeline(options), rights())


def test_a_role_can_only_be_assumed_by_the_job_that_needs_it() -> None:
    found = {}
    for name, role in roles()["Resources"].items():
        if role["Type"] == "AWS::IAM::Role":
            (trust,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
            (conditions,) = trust["Condition"].values()
            assert conditions["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com"
            found[name] = [one["Fn::Sub"] for one in conditions["token.actions.githubusercontent.com:sub"]]

    assert found == {
        "PlanRole": ["repo:${Repository}:pull_request", "repo:${Repository}:ref:refs/heads/main"],
        "PublishRole": ["repo:${Repository}:ref:refs/heads/main"],
        "DeployRole": ["repo:${Repository}:environment:production"],
    }


def test_the_roles_for_github_have_the_rights_of_those_of_codepipeline() -> None:
    on_aws, on_github = resources(), roles()["Resources"]
    assert {name: one for name, one in on_aws.items() if "ManagedPolicy" in one["Type"]} == {
        name: one for name, one in on_github.items() if "ManagedPolicy" in one["Type"]
    }
    (own,) = on_github["PublishRole"]["Properties"]["Policies"]
    (more,) = on_aws["PublishRole"]["Properties"]["Policies"]
    statements = more["PolicyDocument"]["Statement"]
    assert all(one in statements for one in own["PolicyDocument"]["Statement"])


# Jenkins.


def test_jenkins_waits_for_approval_without_an_agent_and_only_on_the_branch() -> None:
    text = write_jenkinsfile(build_pipeline(PipelineOptions(branch="release/1")), ["billing"])
    deploy = text.partition("stage('Deploy')")[2]

    assert text.count("{") == text.count("}")
    assert "agent none" in text
    assert "beforeInput true\n                branch 'release/1'" in deploy
    assert "message 'Deploy to production?'" in deploy
    plan = text.partition("stage('Plan')")[2].partition("stage(")[0]
    assert "expression { env.CHANGE_ID && !env.CHANGE_FORK }" in plan


# The command.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a project in an environment without AWS settings."""
    module = f"piped_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(
        "from smartpipe import Event, Service, Topic\n"
        f"class Piped(Event, topic=Topic('piped'), type='{module}', version='1.0'): ...\n"
        "billing = Service('billing', publishes=[Piped])\n"
    )
    (tmp_path / "pyproject.toml").write_text(f'[tool.smartpipe]\nservices = ["{module}:billing"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "SMARTPIPE_PREFIX"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.mark.parametrize("form", ["github", "jenkins", "codebuild"])
def test_a_pipeline_needs_no_aws_settings_and_no_options(
    project: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export([], form)
    first = capsys.readouterr().out
    run_export([], form)

    assert capsys.readouterr().out == first
    assert "topology apply --yes" in first


def test_a_directory_has_the_template_and_the_buildspecs_that_it_names(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export([], "codebuild", None, project / "ci")

    files = {path.name for path in (project / "ci").iterdir()}
    text = (project / "ci" / "pipeline.json").read_text()
    assert files == {"pipeline.json", *re.findall(r"\$\{BuildspecDirectory\}(.*?)\"", text)}
    assert capsys.readouterr().out.count("  written  ") == 5


def test_the_image_of_the_command_replaces_that_of_the_options(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with (project / "pyproject.toml").open("a") as file:
        file.write(
            '[tool.smartpipe.deploy]\ncpu = 1\nmemory = "512Mi"\n[tool.smartpipe.deploy.billing]\nimage = "old"\n'
        )
    module = next(project.glob("piped_*.py"))
    with module.open("a") as file:
        file.write("@billing.subscribe(Piped)\nasync def charge(event: Piped) -> None: ...\n")

    run_export([], "kubernetes", image="example.com/shop@sha256:1")

    assert 'image: "example.com/shop@sha256:1"' in capsys.readouterr().out


def test_a_directory_for_github_has_the_workflow_and_its_roles(project: Path) -> None:
    run_export([], "github", None, project / "ci")

    assert (project / "ci/.github/workflows/deploy.yaml").is_file()
    assert json.loads((project / "ci/github-roles.json").read_text())["Resources"]


@pytest.mark.usefixtures("project")
def test_an_image_that_is_none_or_has_no_place_is_an_error_with_a_remedy() -> None:
    for image in ("", "two words"):
        with pytest.raises(ConfigError, match="--image '.*' is not an image: name it as in"):
            run_export([], "kubernetes", image=image)
    with pytest.raises(ConfigError, match="--image is for --format kubernetes.*, and github contains no image"):
        run_export([], "github", image="shop:1")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"deploy": "nomad"}, r"\[tool.smartpipe.pipeline\]: deploy = 'nomad' is wrong: use \"kubernetes\" or \"ecs\""),
        ({"branch": "-x"}, "branch = '-x' is wrong: use the name of a branch"),
        ({"settings": ["DRAIN"]}, "settings = 'DRAIN' is wrong: use a list of names"),
        ({"brnch": "main"}, "brnch is not an option; use one of deploy, branch, settings"),
        (5, "tool.smartpipe.pipeline is not a table"),
    ],
)
def test_wrong_options_are_errors_with_a_remedy(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_pipeline_options(table)
