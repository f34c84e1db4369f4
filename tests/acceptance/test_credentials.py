"""Commands whose credential provider fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.credentials import leave_no_credentials, let_process_print
from tests.support.processes import smartpipe

if TYPE_CHECKING:
    from pathlib import Path

    from smartpipe import EmbeddedBroker


@pytest.mark.parametrize("transport", ["direct", "botocore"])
@pytest.mark.parametrize(
    "command",
    [
        ("worker", "tests.acceptance.services:service", "--port", "0"),
        ("worker", "tests.acceptance.services:service", "--port", "0", "--verify", "off"),
        ("relay", "--once"),
        ("topology", "plan", "tests.acceptance.services:service"),
        ("dlq", "list", "tests.acceptance.services:service"),
        ("worker", "tests.acceptance.services:service", "--port", "0", "--processes", "2"),
    ],
)
def test_processes_exit_with_2_and_name_the_provider(
    fast_broker: EmbeddedBroker,
    command: tuple[str, ...],
    transport: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_no_credentials(tmp_path, monkeypatch)
    let_process_print(tmp_path, "not JSON")

    ended = smartpipe(
        *command,
        AWS_ENDPOINT_URL=fast_broker.endpoint_url,
        SMARTPIPE_TRANSPORT=transport,
        SMARTPIPE_OUTBOX_URL="postgresql://x@127.0.0.1:1/y",
    )

    assert ended.returncode == 2
    assert "credentials from credential_process: " in ended.stderr
    assert "Traceback" not in ended.stderr
