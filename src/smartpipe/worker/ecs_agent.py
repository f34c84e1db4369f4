"""Call the agent of Amazon ECS to set and remove the scale-in protection of this task.

Source: Amazon ECS Developer Guide, "Amazon ECS task scale-in protection endpoint".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from smartpipe.consumer.decide import describe_error
from smartpipe.escaping import shorten_text

if TYPE_CHECKING:
    from collections.abc import Mapping

CALL_SECONDS = 6.0
"""The agent itself gives up its call to ECS after 4 s."""
MAX_RESPONSE_BYTES = 65_536
MAX_REASON_CHARACTERS = 500
ADVICE = {
    "AccessDeniedException": "give the task role ecs:UpdateTaskProtection and ecs:GetTaskProtection",
    "DEPLOYMENT_BLOCKED": "the service has more protected tasks than its desired count; raise the desired count, or "
    "wait until other tasks are no longer protected",
    "TASK_NOT_VALID": "ECS protects only the tasks of a service",
}
"""The remedy for codes of errors and reasons of failures."""


class AgentError(Exception):
    """The agent did not set or remove the protection.

    Args:
        refused: Whether the state of the task has certainly not changed. Otherwise, the call may have had its effect.
    """

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(shorten_text(reason, MAX_REASON_CHARACTERS))
        self.refused = refused


class EcsAgent:
    """The agent at *uri*, the value of ``ECS_AGENT_URI``."""

    def __init__(self, uri: str) -> None:
        self._url = f"{uri.rstrip('/')}/task-protection/v1/state"

    async def set_protection(self, minutes: int | None) -> None:
        """Protect the task for this number of minutes from now; None removes the protection.

        Raises:
            AgentError: The agent or ECS refused it, did not answer within 6 s, or could not be called. There is no
                other error.
        """
        # The agent refuses unknown fields.
        body = {"ProtectionEnabled": minutes is not None} | ({} if minutes is None else {"ExpiresInMinutes": minutes})
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.put(self._url, json=body, allow_redirects=False) as response,
            ):
                text = await _read_body(response)
        except Exception as error:  # noqa: BLE001 - no error of a call may disturb the worker
            raise AgentError(describe_failure(error), refused=False) from None
        refusal = read_refusal(response.status, text, enabled=minutes is not None)
        if refusal:
            raise AgentError(refusal, refused=is_certain(response.status, text))


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body up to a limit. It may arrive in several parts."""
    text = b""
    async for part in response.content.iter_chunked(MAX_RESPONSE_BYTES):
        text += part
        if len(text) >= MAX_RESPONSE_BYTES:
            break
    return text


def describe_failure(error: Exception) -> str:
    """Return the reason why there is no answer."""
    return f"no answer within {CALL_SECONDS:g} s" if isinstance(error, TimeoutError) else describe_error(error)


def find_agent(environ: Mapping[str, str]) -> EcsAgent | str:
    """Return the agent of this task, or a sentence that says why there is none."""
    uri = environ.get("ECS_AGENT_URI", "").strip()
    if not uri:
        return (
            "ECS_AGENT_URI is not set. This process is not in a container of Amazon ECS, or the agent of its container "
            "instance is too old"
        )
    try:
        url = urlsplit(uri)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        valid = False
    return EcsAgent(uri) if valid else f"ECS_AGENT_URI={uri} is not an HTTP URL"


def read_refusal(status: int, text: bytes, *, enabled: bool) -> str:
    """Return an empty text if the response confirms the wanted state, or else the reason with advice."""
    answer = _parse(text)
    for name, code, detail in (("failure", "Reason", "Detail"), ("error", "Code", "Message")):
        found = answer.get(name)
        if isinstance(found, dict):
            words = [str(found[key]).rstrip(".") for key in (code, detail) if found.get(key)]
            advice = ADVICE.get(str(found.get(code)))
            return "; ".join([": ".join(words) or name, *([advice] if advice else [])])
    protection = answer.get("protection")
    if status == 200 and isinstance(protection, dict) and protection.get("ProtectionEnabled") is enabled:  # noqa: PLR2004
        return ""
    return f"unexpected response with status {status}: {text[:200].decode(errors='replace')}"


def is_certain(status: int, text: bytes) -> bool:
    """Return whether a refusal says that nothing has changed.

    A server error does not: the agent responds with one if its own call to ECS timed out, and this call may have had
    its effect. Neither does a response that is not the agent's.
    """
    if status >= 500:  # noqa: PLR2004
        return False
    return status >= 400 or not _parse(text).keys().isdisjoint({"failure", "error", "protection"})  # noqa: PLR2004


def _parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object of a response; an empty one if it is not one."""
    try:
        body: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
