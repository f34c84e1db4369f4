"""``smartpipe health``: asks a worker or relay for its health, for orchestrators that run a command."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException

import typer

from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.settings import ServerSettings
from smartpipe.urls import join_host, reach_locally

MAX_ANSWER_BYTES = 2_000
MAX_TIMEOUT_SECONDS = 3_600.0


def run_health(flags: dict[str, object], *, ready: bool, timeout_seconds: float) -> None:
    """Print the answer of ``/livez`` or ``/readyz``.

    Raises:
        ConfigError: The port is 0, or a setting is wrong.
        SmartpipeError: The answer is not 200, or there is none.
    """
    settings = ServerSettings.load(**flags)
    if settings.port == 0:
        raise ConfigError("port 0 selects a free port, which this command cannot know: set SMARTPIPE_PORT or --port")
    if not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
        raise ConfigError(f"--timeout {timeout_seconds:g} must be a number of seconds above 0, at most 3600")
    path = "/readyz" if ready else "/livez"
    host = reach_locally(settings.host)
    place = f"http://{join_host(host, settings.port)}{path}"
    connection = HTTPConnection(host, settings.port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER_BYTES).decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SmartpipeError(f"{place} does not answer: {reason}") from None
    finally:
        connection.close()
    if response.status != 200:  # noqa: PLR2004
        raise SmartpipeError(f"{place} answers {response.status}: {answer}")
    typer.echo(answer)
