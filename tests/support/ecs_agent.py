"""An agent of Amazon ECS on loopback: the protection of one task, and its metadata. It can fail."""

from __future__ import annotations

import json
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.support.loopback import LoopbackServer

if TYPE_CHECKING:
    from types import TracebackType

PATH = "/api/a1b2c3/task-protection/v1/state"
TASK = "arn:aws:ecs:eu-west-1:123456789012:task/shop/5f0c1bda5d3f4f6c9f5e0d6f7a3f1c55"


METADATA: dict[str, Any] = {
    "Cluster": "arn:aws:ecs:eu-west-1:123456789012:cluster/shop",
    "TaskARN": TASK,
    "Family": "films",
    "Revision": "26",
    "DesiredStatus": "RUNNING",
    "KnownStatus": "RUNNING",
    "Limits": {"CPU": 0.25, "Memory": 512},
    "AvailabilityZone": "eu-west-1a",
    "LaunchType": "FARGATE",
    "Containers": [{"DockerId": "a1b2c3", "Name": "worker", "Type": "NORMAL"}],
}


class Answer(NamedTuple):
    """A response that the agent gives instead of doing its work."""

    body: Any
    status: int = 200
    delay_seconds: float = 0.0


DEPLOYMENT_BLOCKED = Answer(
    {"failure": {"Arn": TASK, "Reason": "DEPLOYMENT_BLOCKED", "Detail": "The deployment is blocked."}}
)
DENIED = Answer(
    {"error": {"Arn": TASK, "Code": "AccessDeniedException", "Message": "not authorized to perform this action"}}, 403
)
THROTTLED = Answer({}, 429)


class FakeEcsAgent:
    """A context manager that serves the agent's endpoint.

    ``requests`` are the bodies of all PUT requests. ``script`` contains the answers to the next ones, and
    ``metadata_script`` those to the next requests for metadata. After them, the agent does its work. ``open_calls`` and
    ``most_open_calls`` count PUT requests at the same time.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.script: deque[Answer] = deque()
        self.metadata_script: deque[Answer] = deque()
        self.protected = False
        self.open_calls = self.most_open_calls = 0
        self._server = LoopbackServer(self._make_handler())

    @property
    def uri(self) -> str:
        """The value of ``ECS_AGENT_URI``."""
        return f"{self._server.endpoint_url}/api/a1b2c3"

    @property
    def metadata_uri(self) -> str:
        """The value of ``ECS_CONTAINER_METADATA_URI_V4``."""
        return f"{self._server.endpoint_url}/v4/a1b2c3"

    @property
    def states(self) -> list[bool]:
        """The states that were asked for."""
        return [request["ProtectionEnabled"] for request in self.requests]

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, traceback)

    def answer(self, request: dict[str, Any]) -> Answer:
        self.requests.append(request)
        if self.script:
            return self.script.popleft()
        unknown = request.keys() - {"ProtectionEnabled", "ExpiresInMinutes"}
        minutes = request.get("ExpiresInMinutes", 120)
        if unknown or not 1 <= minutes <= 2_880:
            return Answer({"error": {"Code": "InvalidParameterException", "Message": f"{unknown or minutes}"}}, 400)
        self.protected = request["ProtectionEnabled"]
        expires = {"ExpirationDate": "2026-11-27T20:00:00Z"} if self.protected else {}
        return Answer({"protection": {"ProtectionEnabled": self.protected, "TaskArn": TASK, **expires}})

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                agent.open_calls += 1
                agent.most_open_calls = max(agent.most_open_calls, agent.open_calls)
                text = self.rfile.read(int(self.headers["Content-Length"]))
                found = agent.answer(json.loads(text)) if self.path == PATH else Answer({}, 404)
                time.sleep(found.delay_seconds)
                agent.open_calls -= 1
                self._respond(found)

            def do_GET(self) -> None:
                found = Answer({} if self.path != "/v4/a1b2c3/task" else METADATA)
                if agent.metadata_script:
                    found = agent.metadata_script.popleft()
                    time.sleep(found.delay_seconds)
                self._respond(found)

            def _respond(self, found: Answer) -> None:
                body = found.body if isinstance(found.body, bytes) else json.dumps(found.body).encode()
                with suppress(ConnectionError):  # the client has given up
                    self.send_response(found.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        return Handler
