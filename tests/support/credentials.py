"""The endpoint of a container that hands out a role's credentials, as ECS and EKS have it; it can fail."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

    import pytest


class CredentialEndpoint:
    """Use it as a context manager; it serves on loopback, from a thread of its own.

    ``issued`` has every access key that it handed out; while ``failing`` it answers 503. The credentials are
    said to last for ``lifetime_seconds``: botocore fetches others when ten minutes are left.
    """

    def __init__(self) -> None:
        self.issued: list[str] = []
        self.asked = 0
        self.failing = False
        self.lifetime_seconds = 3_600.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """Leads botocore here, when it finds no credentials elsewhere."""
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{self._server.server_address[1]}/role",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_CONFIG_FILE": "/dev/null",
        }

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the environment's credentials be those from here."""
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
