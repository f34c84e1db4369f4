"""Commands with wrong AWS variables and settings: exit code 2, the name of the variable, and no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.credentials import write_aws_files
from tests.support.processes import smartpipe

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe import EmbeddedBroker

SECRET = "c0ncealed"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the two AWS files. The environment names them, and has no other AWS variable."""
    write_aws_files(tmp_path, monkeypatch)
    return tmp_path


def test_commands_use_the_region_of_the_environment(fast_broker: EmbeddedBroker, files: Path) -> None:
    environment = {**fast_broker.environment, "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-west-1"}

    planned = smartpipe("topology", "plan", "tests.acceptance.services:service", **environment)

    assert "eu-west-1" in planned.stdout


@pytest.mark.parametrize(
    ("command", "code"),
    [(("topology", "plan"), 1), (("dlq", "list"), 0), (("worker", "--port", "0"), 2), (("relay", "--once"), 2)],
    ids=["plan", "dlq", "worker", "relay"],
)
def test_only_processes_that_move_messages_refuse_a_wrong_transport(
    fast_broker: EmbeddedBroker, command: tuple[str, ...], code: int
) -> None:
    target = [] if command[0] == "relay" else ["tests.acceptance.services:service"]
    environment = {"SMARTPIPE_TRANSPORT": "boto", "SMARTPIPE_OUTBOX_URL": "postgresql://x/y"}

    ended = smartpipe(*command, *target, **fast_broker.environment, **environment)

    assert ended.returncode == code, ended.stderr
    assert ("SMARTPIPE_TRANSPORT=boto" in ended.stderr) == (code == 2)


@pytest.mark.parametrize("transport", ["direct", "botocore"])
@pytest.mark.parametrize(
    "command", [("worker", "tests.acceptance.services:service", "--port", "0", "--verify", "off"), ("relay", "--once")]
)
def test_processes_exit_with_2_at_the_start_with_any_verification(
    fast_broker: EmbeddedBroker, files: Path, command: tuple[str, ...], transport: str
) -> None:
    (files / "credentials").write_text(
        f"[default]\naws_access_key_id = k\naws_secret_access_key = s\naws_session_token = {SECRET}\n  X-Evil: y\n"
    )

    ended = smartpipe(
        *command,
        AWS_ENDPOINT_URL=fast_broker.endpoint_url,
        SMARTPIPE_TRANSPORT=transport,
        SMARTPIPE_OUTBOX_URL="postgresql://x@127.0.0.1:1/y",
    )

    assert ended.returncode == 2
    assert "from the shared credentials file: the session token contains a line break" in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("topology", "plan", "tests.acceptance.services:service"),
        ("topology", "destroy", "tests.acceptance.services:service", "--yes"),
        ("worker", "tests.acceptance.services:service", "--port", "0"),
        ("dlq", "list", "tests.acceptance.services:service"),
        ("relay", "--once"),
    ],
)
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "SMARTPIPE_PREFIX"])
def test_commands_exit_with_2_and_name_the_variable(
    fast_broker: EmbeddedBroker, command: tuple[str, ...], variable: str
) -> None:
    environment = {**fast_broker.environment, "SMARTPIPE_OUTBOX_URL": "postgresql://x/y", variable: f"{SECRET}\n"}

    ended = smartpipe(*command, **environment)

    assert ended.returncode == 2
    assert f"{variable} ends with a line break" in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
