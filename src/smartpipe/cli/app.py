"""The commands and their options; what they do is in the module of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smartpipe.cli.dlq_app import dlq
from smartpipe.cli.topology_app import Targets, topology
from smartpipe.version import __version__

app = typer.Typer(
    name="smartpipe",
    help="Event-driven pub/sub on Amazon SNS and SQS: smart endpoints, dumb pipes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
schema = typer.Typer(help="JSON Schemas of events.", no_args_is_help=True)
store = typer.Typer(help="The tables of idempotent handlers and of the outbox.", no_args_is_help=True)
app.add_typer(topology, name="topology")
app.add_typer(dlq, name="dlq")
app.add_typer(schema, name="schema")
app.add_typer(store, name="store")

Target = Annotated[
    str | None, typer.Argument(help="module:attribute of a Service; default: services in [tool.smartpipe]")
]


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        typer.echo(f"smartpipe {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Event-driven pub/sub on Amazon SNS and SQS: smart endpoints, dumb pipes."""


@app.command()
def worker(  # noqa: PLR0913 - typer makes an option of each
    target: Target = None,
    *,
    processes: Annotated[
        int | None, typer.Option(help="Processes under one supervisor. [SMARTPIPE_PROCESSES, 1]")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Messages a queue at once. [SMARTPIPE_CONCURRENCY, 10]")
    ] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="From SIGTERM to exit. [SMARTPIPE_DRAIN_SECONDS, 25]")
    ] = None,
    wait_seconds: Annotated[
        int | None, typer.Option(help="Length of a long poll. [SMARTPIPE_WAIT_SECONDS, 20]")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Where /livez, /readyz, /metrics are served. [SMARTPIPE_HOST, 0.0.0.0]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Their port, 0 for a free one. [SMARTPIPE_PORT, 8080]")] = None,
    verify: Annotated[
        str | None, typer.Option(help="Topology at start: missing, strict, off. [SMARTPIPE_VERIFY, missing]")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error. [SMARTPIPE_LOG_LEVEL, info]")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="json, text, auto. [SMARTPIPE_LOG_FORMAT, auto]")] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: drain and start anew whenever sources change.")
    ] = False,
    process: Annotated[int | None, typer.Option(hidden=True)] = None,
    supervised: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a service's handlers until SIGTERM or SIGINT, then drain. Exit 0: nothing was cancelled."""
    flags = {
        "processes": processes,
        "concurrency": concurrency,
        "drain_seconds": drain_seconds,
        "wait_seconds": wait_seconds,
        "host": host,
        "port": port,
        "verify": verify,
        "log_level": log_level,
        "log_format": log_format,
    }
    if supervised is not None:
        from smartpipe.cli.worker import run

        run(target, flags, process=process, socket=supervised)
    from smartpipe.cli.supervise import run_worker

    run_worker(target, flags, reload=reload)


@schema.command()
def export(
    targets: Targets = None,
    *,
    directory: Annotated[Path, typer.Option(help="Where to write <type>/<version>.json.")] = Path("schemas"),
    json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Write the JSON Schema of each event: of services, of events, or of all events of a module."""
    from smartpipe.cli.schema import run_export

    run_export(targets or [], directory, as_json=json)


@app.command()
def relay(
    *,
    once: Annotated[bool, typer.Option("--once", help="Publish what waits, and end.")] = False,
    host: Annotated[
        str | None, typer.Option(help="Where /livez, /readyz, /metrics are served. [SMARTPIPE_HOST, 0.0.0.0]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Their port, 0 for a free one. [SMARTPIPE_PORT, 8080]")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error. [SMARTPIPE_LOG_LEVEL, info]")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="json, text, auto. [SMARTPIPE_LOG_FORMAT, auto]")] = None,
) -> None:
    """Publish what services committed to the outbox in SMARTPIPE_OUTBOX_URL, until SIGTERM. Many may run."""
    from smartpipe.cli.relay import run

    run({"host": host, "port": port, "log_level": log_level, "log_format": log_format}, once=once)


@store.command()
def migrate(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the migrations of each database as JSON.")] = False,
    forget_old_claims: Annotated[
        bool,
        typer.Option(
            "--forget-old-claims",
            help="Delete claims of earlier versions, which this one cannot use: their effects may happen again.",
        ),
    ] = False,
) -> None:
    """Create or update the tables in each PostgreSQL of SMARTPIPE_IDEMPOTENCY_URL and SMARTPIPE_OUTBOX_URL."""
    from smartpipe.cli.store import run_migrate

    run_migrate(as_json=json, forget_old_claims=forget_old_claims)


@app.command()
def local(
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65_535)] = 0,
    backend: Annotated[str, typer.Option(help="ministack or moto.")] = "ministack",
    json: Annotated[bool, typer.Option("--json", help="Print the environment as JSON.")] = False,
) -> None:
    """Run a broker on this machine, in the foreground, until Ctrl-C: no AWS account, no Docker."""
    from smartpipe.cli.local import run

    raise typer.Exit(run(backend, port, as_json=json))


@app.command()
def dev(
    targets: Targets = None,
    *,
    port: Annotated[int, typer.Option(help="The broker's on 127.0.0.1; 0 takes a free one.", min=0, max=65_535)] = 0,
    backend: Annotated[str, typer.Option(help="ministack or moto.")] = "ministack",
    reload: Annotated[
        bool | None, typer.Option(help="Start anew whenever sources change; by default, if watchfiles is there.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error. [SMARTPIPE_LOG_LEVEL, info]")
    ] = None,
) -> None:
    """Run a broker, the services' topology and a worker for each service, in this terminal, until Ctrl-C."""
    from smartpipe.cli.dev import run

    run(targets or [], backend, port, reload=reload, log_level=log_level)


@app.command()
def bench(  # noqa: PLR0913 - typer makes an option of each
    *,
    events: Annotated[int | None, typer.Option(help="Events that are measured. [5000]")] = None,
    size: Annotated[int | None, typer.Option(help="Bytes of each message, as SNS counts them. [1024]")] = None,
    queues: Annotated[int | None, typer.Option(help="Subscribed queues. [3]")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Messages each worker handles at once. [100]")] = None,
    processes: Annotated[int | None, typer.Option(help="Worker processes of each queue. [1]")] = None,
    producers: Annotated[int | None, typer.Option(help="Producer processes. [1]")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Events per second, each due at its time; by default as fast as it goes.")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Events before those that are measured. [a tenth, at most 1000]")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="memory (one process), local (ministack) or moto. [local]")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="A broker that is there: a URL, or aws for the environment as it is.")
    ] = None,
    patience: Annotated[
        float | None, typer.Option(help="Seconds without anything happening that end the run. [30]")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures there: FILE.svg or FILE.png.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it costs money on AWS.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a fan-out: throughput, latency, CPU, requests and their cost on AWS. Exit 1: something is missing."""
    from smartpipe.cli.bench import BenchOptions, run_bench

    flags = {
        "events": events,
        "size_bytes": size,
        "queues": queues,
        "concurrency": concurrency,
        "processes": processes,
        "producers": producers,
        "rate_per_second": rate,
        "warmup": warmup,
        "patience_seconds": patience,
    }
    run_bench(flags, BenchOptions(backend, endpoint, plot, yes=yes, as_json=json))
