"""checkov judges the files of ``smartpipe deploy export`` for Amazon ECS. `.ci/run` installs it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import ecs
from tests.support.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SKIPPED_CHECKS = {"CKV_AWS_158": "CloudWatch encrypts log groups itself; a KMS key is a choice of the account"}
"""Checks that the template fails, each with the reason."""


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("name", "build", "passed"),
    [("ecs.json", ecs.template_of, 40), ("main.tf.json", ecs.configuration_of, 60)],
    ids=["cloudformation", "terraform"],
)
def test_checkov_finds_only_what_is_argued(
    name: str, build: Callable[[], Any], passed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "redis://:hunter2@cache/0")
    (tmp_path / name).write_text(json.dumps(build(), indent=1))

    frameworks = ["cloudformation", "terraform", "terraform_json"]
    command = [find_program("checkov"), "-d", ".", "--framework", *frameworks, "--output", "json", "--skip-download"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110)

    results = json.loads(done.stdout)["results"]
    assert len(results["passed_checks"]) > passed
    assert {one["check_id"] for one in results["failed_checks"]} == SKIPPED_CHECKS.keys()
