"""The scripts of exported pipelines, as their platforms run them, with stand-ins for programs that need an account."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

_STAND_INS = {
    # uv has installed the project already: it runs the command in this environment.
    "uv": """
[ "$1" = run ] || exit 0
shift
while [[ "$1" == --* ]]; do if [ "$1" = --with ]; then shift; fi; shift; done
exec "$@"
""",
    "smartpipe": f'exec {sys.executable} -m smartpipe "$@"\n',
    "pytest": f'exec {sys.executable} -m pytest -p no:cacheprovider "$@"\n',
    "docker": """
if [ "$1" = login ]; then cat > password.txt; fi
while [ $# -gt 0 ]; do
  if [ "$1" = --metadata-file ]; then echo '{"containerimage.digest": "sha256:0123"}' > "$2"; fi
  shift
done
""",
    "aws": 'if [ "$1" = ecr ]; then echo secret-of-ecr; fi\n',
    "kubectl": "",
    "gh": """
if [[ "$*" == *--method* ]]; then cp comment.md sent-comment.md; exit; fi
[ "$4" = --jq ] && jq --raw-output "$5" comments.json
""",
}


def write_programs(directory: Path) -> Path:
    """Write the stand-ins; each appends its arguments to the file ``calls``. Return the directory of the programs."""
    programs = directory / "programs"
    programs.mkdir()
    for name, script in _STAND_INS.items():
        file = programs / name
        file.write_text(f'#!/usr/bin/env bash\nset -eo pipefail\necho "{name} $*" >> "{directory}/calls"\n{script}')
        file.chmod(0o755)
    return programs


def extract_workflow(text: str) -> dict[str, list[str]]:
    """Return the scripts of each job of a GitHub workflow."""
    jobs: dict[str, Any] = yaml.safe_load(text)["jobs"]
    return {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}


def extract_template(text: str) -> dict[str, list[str]]:
    """Return the commands of each project of a CloudFormation template, without the installation of uv."""
    resources: dict[str, Any] = json.loads(text)["Resources"]
    specs = {
        name.removesuffix("Project").lower(): yaml.safe_load(one["Properties"]["Source"]["BuildSpec"])
        for name, one in resources.items()
        if one["Type"] == "AWS::CodeBuild::Project"
    }
    return {name: spec["phases"]["build"]["commands"] for name, spec in specs.items()}


def extract_jenkinsfile(text: str) -> dict[str, list[str]]:
    """Return the scripts of each stage of a Jenkinsfile, with the escapes of Groovy decoded."""
    found: dict[str, list[str]] = {}
    for stage in re.split(r"stage\('", text)[1:]:
        scripts = re.findall(r"script: '''(.*?)'''", stage, re.DOTALL)
        found[stage.partition("'")[0].lower()] = [one.replace("\\\\", "\\") for one in scripts]
    return found


def run_script(script: str, directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script in bash as GitHub does; the shebang of Jenkins and the subshells of CodeBuild are parts of it."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def build_environment(programs: Path, **variables: str) -> dict[str, str]:
    """Return this environment with the stand-ins first on the PATH, and without the variables of this test run."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "GITHUB"))}
    return {**own, **variables, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def has_tools() -> bool:
    """Return whether this machine has the programs that the scripts need and that have no stand-in."""
    return all(shutil.which(name) for name in ("bash", "git", "jq"))
