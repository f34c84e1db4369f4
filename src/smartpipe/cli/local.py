"""``smartpipe local``: run the local broker until Ctrl-C."""

from __future__ import annotations

import json
import signal
from threading import Event
from typing import TYPE_CHECKING

import typer

from smartpipe.errors import SmartpipeError
from smartpipe.local import EmbeddedBroker
from smartpipe.local.broker import ALL_INTERFACES
from smartpipe.worker.signals import signals_to_handle

if TYPE_CHECKING:
    from types import FrameType


def run(backend: str, host: str, port: int, *, as_json: bool) -> int:
    """Run the broker in the foreground until a signal, and print its environment variables for other shells."""
    stopped = Event()

    def stop(_signum: int, _frame: FrameType | None) -> None:
        stopped.set()

    for signum in signals_to_handle():
        signal.signal(signum, stop)
    with EmbeddedBroker(backend, host=host, port=port) as broker:
        if broker.is_exposed:
            typer.echo(_describe_exposure(broker), err=True)
        if as_json:
            typer.echo(json.dumps(broker.environment))
        else:
            typer.echo(format_exports(broker))
        while not stopped.wait(0.2):
            code = broker.wait(0)
            if code is not None:
                msg = f"the broker ended unexpectedly with exit code {code}: {broker.last_output()}"
                raise SmartpipeError(msg)
    return 0


def format_exports(broker: EmbeddedBroker) -> str:
    """Return the environment variables of *broker* as lines to paste into a shell."""
    comment = (
        f"# {broker.backend} {broker.version} on {broker.endpoint_url}, in memory, until Ctrl-C. In other terminals:"
    )
    return "\n".join([comment, *(f"export {name}={value}" for name, value in broker.environment.items())])


def _describe_exposure(broker: EmbeddedBroker) -> str:
    place = "this machine" if broker.host == ALL_INTERFACES else broker.host
    return (
        f"smartpipe: warning: the broker has no authentication. Anyone who can reach port {broker.port} of {place} can "
        "read, send and delete its messages"
    )
