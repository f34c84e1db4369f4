"""A workflow for GitHub Actions that runs the pipeline. Pure.

Sources: GitHub, "Workflow syntax for GitHub Actions" and "Configuring OpenID Connect in Amazon Web Services".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.deploy.dockerfile import UV_VERSION
from smartpipe.deploy.pipelines.stages import IMAGE_FILE, PLAN_FILE, describe, list_variables
from smartpipe.deploy.yaml import write_documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.deploy.pipelines.stages import Pipeline, Stage

WORKFLOW_FILE = ".github/workflows/deploy.yaml"
MAX_COMMENT_BYTES = 60_000
"""A comment may have 65,536 characters."""


class _Action(NamedTuple):
    name: str
    commit: str
    version: str


_CHECKOUT = _Action("actions/checkout", "de0fac2e4500dabe0009e67214ff5f5447ce83dd", "v6.0.2")
_SETUP_UV = _Action("astral-sh/setup-uv", "cec208311dfd045dd5311c1add060b2062131d57", "v8.0.0")
_ASSUME_ROLE = _Action("aws-actions/configure-aws-credentials", "8df5847569e6427dd6c4fb1cf565c83acfa8afa7", "v6.0.0")
ACTIONS = (_CHECKOUT, _SETUP_UV, _ASSUME_ROLE)
"""Pinned by commit, because a tag can be moved. The commits are those in the workflows of astral-sh/uv."""

_IS_PROPOSAL = "github.event_name == 'pull_request'"
_IS_BRANCH = "github.event_name == 'push'"
_IS_OWN = (
    "github.event.pull_request.head.repo.full_name == github.repository"
    " && github.event.pull_request.user.login != 'dependabot[bot]'"
)
_MARK = "<!-- smartpipe topology plan -->"
_PASS_PLAN = f"""\
# A delimiter that the plan cannot contain.
delimiter="plan-$RANDOM-$RANDOM-$RANDOM"
{{ echo "plan<<$delimiter"; head -c {MAX_COMMENT_BYTES} {PLAN_FILE}; echo; echo "$delimiter"; }} >> "$GITHUB_OUTPUT"
"""
_PASS_IMAGE = f"""\
# Only the digest: GitHub passes no output that contains a secret, as an account can be.
echo "digest=$(cut -d @ -f 2 {IMAGE_FILE})" >> "$GITHUB_OUTPUT"
"""
_COMMENT = f"""\
{{ echo '{_MARK}'; echo '`smartpipe topology plan`:'; echo '````text'; echo "$PLAN"; echo '````'; }} > comment.md
comments="repos/$GITHUB_REPOSITORY/issues/$PULL_REQUEST/comments"
own='.[] | select(.user.login == "github-actions[bot]" and (.body | startswith("{_MARK}"))) | .id'
known=$(gh api --paginate "$comments" --jq "$own" | sed -n 1p)
if [ -n "$known" ]; then
  gh api --silent --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$known" --field body=@comment.md
else
  gh api --silent --method POST "$comments" --field body=@comment.md
fi
"""


def write_workflow(pipeline: Pipeline, services: Sequence[str]) -> str:
    """Return the workflow.

    Args:
        services: The names of the services. The header has them.
    """
    workflow = {
        "name": "Deploy",
        "on": {"pull_request": {"branches": [pipeline.branch]}, "push": {"branches": [pipeline.branch]}},
        "permissions": {},
        "concurrency": {
            "group": "deploy-${{ github.ref }}",
            "cancel-in-progress": f"${{{{ {_IS_PROPOSAL} }}}}",
        },
        "defaults": {"run": {"shell": "bash"}},
        "jobs": _build_jobs(pipeline),
    }
    text = write_documents(_header(pipeline, services), [workflow])
    for action in ACTIONS:
        pinned = f"{action.name}@{action.commit}"
        text = text.replace(f'"{pinned}"', f"{pinned}  # {action.version}")
    return text


def _header(pipeline: Pipeline, services: Sequence[str]) -> list[str]:
    names = list_variables(pipeline.stages)
    width = max(map(len, names))
    return [
        f"GitHub workflow that tests and deploys {', '.join(services)}.",
        "Written by `smartpipe deploy export --format github`; run it again when the options of the pipeline change.",
        "",
        "Set these variables of the repository. None of them is secret:",
        *(f"  {name:<{width}}  {describe(name)}" for name in names),
    ]


def _build_jobs(pipeline: Pipeline) -> dict[str, Any]:
    test, build, plan, publish, deploy = (
        pipeline.find(name) for name in ("test", "build", "plan", "publish", "deploy")
    )
    passing = {"name": "Pass the plan on", "id": "passed", "run": _PASS_PLAN}
    passing_image = {"name": "Pass the digest on", "id": "passed", "run": _PASS_IMAGE}
    image = {"IMAGE": "${{ vars.IMAGE_REPOSITORY }}@${{ needs.publish.outputs.digest }}"}
    return {
        "test": _job(test, whole_history=True),
        "build": _job(build, needs=["test"], when=_IS_PROPOSAL),
        "plan": _job(
            plan,
            needs=["test"],
            when=f"{_IS_BRANCH} || ({_IS_OWN})",
            more=[passing],
            outputs={"plan": "${{ steps.passed.outputs.plan }}"},
        ),
        "comment": _comment(),
        "publish": _job(
            publish,
            needs=["test", "plan"],
            when=_IS_BRANCH,
            more=[passing_image],
            outputs={"digest": "${{ steps.passed.outputs.digest }}"},
        ),
        "deploy": _job(deploy, needs=["publish"], when=_IS_BRANCH, environment="production", variables=image),
    }


def _job(
    stage: Stage,
    *,
    needs: Sequence[str] = (),
    when: str | None = None,
    more: Sequence[dict[str, Any]] = (),
    outputs: dict[str, str] | None = None,
    environment: str | None = None,
    variables: dict[str, str] | None = None,
    whole_history: bool = False,
) -> dict[str, Any]:
    own = {name: f"${{{{ vars.{name} }}}}" for name in stage.variables}
    return {
        "name": stage.title,
        **({"needs": list(needs)} if needs else {}),
        **({"if": when} if when else {}),
        "runs-on": "ubuntu-latest",
        "timeout-minutes": stage.minutes,
        **({"environment": environment} if environment else {}),
        "permissions": {"contents": "read", **({"id-token": "write"} if stage.role else {})},
        **({"env": {**own, **(variables or {})}} if own or variables else {}),
        **({"outputs": outputs} if outputs else {}),
        "steps": [*_list_steps(stage, whole_history=whole_history), *more],
    }


def _list_steps(stage: Stage, *, whole_history: bool) -> list[dict[str, Any]]:
    """Return the steps of a stage. Packages are installed without its role, because they bring code of others."""
    checkout = {"persist-credentials": False, **({"fetch-depth": 0} if whole_history else {})}
    steps: list[dict[str, Any]] = [{"uses": _name(_CHECKOUT), "with": checkout}]
    scripts = [{"name": step.name, "run": step.script} for step in stage.steps]
    if stage.uses_uv:
        steps.append({"uses": _name(_SETUP_UV), "with": {"version": f"{UV_VERSION}.x", "enable-cache": False}})
        steps.append(scripts.pop(0))
    if stage.role:
        role = {"aws-region": "${{ vars.AWS_REGION }}", "role-to-assume": f"${{{{ vars.{stage.role} }}}}"}
        steps.append({"uses": _name(_ASSUME_ROLE), "with": role})
    return [*steps, *scripts]


def _name(action: _Action) -> str:
    return f"{action.name}@{action.commit}"


def _comment() -> dict[str, Any]:
    """Return the job that writes the plan into the pull request. It has no role, and runs no code of the project."""
    return {
        "name": "Comment",
        "needs": ["plan"],
        "if": _IS_PROPOSAL,
        "runs-on": "ubuntu-latest",
        "timeout-minutes": 5,
        "permissions": {"pull-requests": "write"},
        "steps": [
            {
                "name": "Write the plan into the pull request",
                "env": {
                    "GH_TOKEN": "${{ github.token }}",
                    "PLAN": "${{ needs.plan.outputs.plan }}",
                    "PULL_REQUEST": "${{ github.event.pull_request.number }}",
                },
                "run": _COMMENT,
            }
        ],
    }
