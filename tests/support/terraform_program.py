"""The ``terraform`` program on configurations of exports, if it is here and its provider can be installed.

The provider comes from the mirror or the cache in the file that ``TF_CLI_CONFIG_FILE`` names. Without this file, each
test would download it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SECONDS = 110
"""The longest time of a call. Tests with two or three calls need a timeout of their own."""
NEWER_PROVIDER = {
    '">= 6.8"': '">= 5.100"',
    "data.aws_region.current.region": "data.aws_region.current.id",
    '"max_message_size": 1048576': '"max_message_size": 262144',
}
"""What an export of a topology needs from a newer provider than 5.100, and its counterpart there."""


def initialize(directory: Path, configuration: dict[str, Any]) -> None:
    """Write the configuration, and install its provider; skip the test if that is not possible here."""
    if shutil.which("terraform") is None:
        pytest.skip("needs terraform")
    if not Path(os.environ.get("TF_CLI_CONFIG_FILE", "")).is_file():
        pytest.skip("needs TF_CLI_CONFIG_FILE, a configuration of terraform with a mirror or a cache of hashicorp/aws")
    (directory / "main.tf.json").write_text(json.dumps(configuration, indent=1))
    try:
        done = run_terraform(directory, "init", "-input=false", "-backend=false", "-no-color")
    except subprocess.TimeoutExpired:
        pytest.skip("terraform init does not end: it may need a network")
    if done.returncode != 0:
        pytest.skip(f"terraform init cannot install the provider: {done.stderr.strip().splitlines()[:4]}")


def validate(directory: Path) -> list[str]:
    """Return the errors and warnings of ``terraform validate``."""
    found = json.loads(run_terraform(directory, "validate", "-json").stdout)
    return [f"{one['summary']}: {one['detail']}" for one in found["diagnostics"]]


def run_terraform(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["terraform", f"-chdir={directory}", *arguments],
        env={**os.environ, **environment, "CHECKPOINT_DISABLE": "1", "NO_COLOR": "1", "TF_IN_AUTOMATION": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def adapt_to_older_provider(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return a topology as the AWS provider 5.100 accepts it."""
    text = json.dumps(configuration)
    for newer, older in NEWER_PROVIDER.items():
        assert newer in text, newer
        text = text.replace(newer, older)
    found: dict[str, Any] = json.loads(text)
    for block in found["resource"]["aws_sns_topic_subscription"].values():
        block.pop("region", None)
    return found
