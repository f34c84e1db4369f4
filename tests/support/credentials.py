"""An endpoint for the credentials of a role, as in a container on ECS or EKS, and a process that prints credentials."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.support.loopback import LoopbackServer

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class CredentialEndpoint(LoopbackServer):
    """Issues the credentials of a role.

    ``issued`` contains every issued access key. While ``failing`` is set, it responds with 503. Credentials are valid
    for ``lifetime_seconds``. botocore fetches new ones ten minutes before the end.
    """

    def __init__(self) -> None:
        self.issued: list[str] = []
        self.asked = 0
        self.failing = False
        self.lifetime_seconds = 3_600.0
        super().__init__(self._handler())

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that lead botocore here if it finds no other credentials."""
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.endpoint_url}/role",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_CONFIG_FILE": "/dev/null",
        }

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the environment's credentials come from this endpoint."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0.01)

    def _answer(self) -> tuple[int, dict[str, str]]:
        self.asked += 1
        if self.failing:
            return 503, {"message": "no credentials for now"}
        self.issued.append(f"ROLE{len(self.issued) + 1:08}")
        until = datetime.now(UTC) + timedelta(seconds=self.lifetime_seconds)
        return 200, {
            "AccessKeyId": self.issued[-1],
            "SecretAccessKey": "secret",
            "Token": f"token of {self.issued[-1]}",
            "Expiration": f"{until:%Y-%m-%dT%H:%M:%SZ}",
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, answer = endpoint._answer()
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        return Handler


def leave_no_credentials(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the AWS files in *directory*, which are missing, and the container as the only providers."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(directory / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "none"))
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0.01)


def let_process_print(directory: Path, text: str, *, before: str = "") -> None:
    """Let credential_process print *text*, after running the Python code *before*."""
    script = directory / "credentials.py"
    script.write_text(f"{before}\nprint({text!r})")
    (directory / "config").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")


def write_aws_files(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the two AWS files with three profiles. The environment names them, and has no other AWS variable."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    (directory / "config").write_text(
        "[default]\nregion = eu-central-1\n[profile new]\nregion = eu-west-2\n[profile old]\nregion = eu-west-3\n"
    )
    (directory / "credentials").write_text(
        "".join(
            f"[{name}]\naws_access_key_id = key-{name}\naws_secret_access_key = s\n"
            for name in ("default", "new", "old")
        )
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(directory / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "credentials"))
