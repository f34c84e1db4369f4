"""The commands and their options. The module with a command's name implements it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer

from smartpipe.cli.deploy.commands import deploy
from smartpipe.cli.dlq_app import dlq
from smartpipe.cli.new.commands import EXAMPLE, new
from smartpipe.cli.schema.commands import schema
from smartpipe.cli.telemetry.commands import telemetry
from smartpipe.cli.topology_app import AsJson, Targets, complete_types, show_whole_help, topology
from smartpipe.version import __version__

app = typer.Typer(
    name="smartpipe",
    help="Event-driven pub/sub on Amazon SNS and SQS: smart endpoints, dumb pipes.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
store = typer.Typer(help="The tables of idempotent handlers and of the outbox.", no_args_is_help=True)
app.command(epilog=EXAMPLE)(new)
app.add_typer(topology, name="topology")
app.add_typer(dlq, name="dlq")
app.add_typer(telemetry, name="telemetry")
app.add_typer(schema, name="schema")
app.add_typer(deploy, name="deploy")
app.add_typer(store, name="store")

Host = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Address of /livez, /readyz and /metrics. [SMARTPIPE_HOST, 0.0.0.0]"),
]
Port = Annotated[
    int | None, typer.Option(metavar="PORT", help="Their port; 0 selects a free one. [SMARTPIPE_PORT, 8080]")
]
LogLevel = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        help="debug, info, warning or error. [SMARTPIPE_LOG_LEVEL, info]",
        autocompletion=lambda: ["debug", "info", "warning", "error"],
    ),
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="json, text or auto. [SMARTPIPE_LOG_FORMAT, auto]",
        autocompletion=lambda: ["json", "text", "auto"],
    ),
]
Backend = Annotated[
    str, typer.Option(metavar="NAME", help="ministack or moto.", autocompletion=lambda: ["ministack", "moto"])
]


def _print_version(requested: bool) -> None:  # noqa: FBT001 - typer's callback
    if requested:
        typer.echo(f"smartpipe {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Event-driven pub/sub on Amazon SNS and SQS: smart endpoints, dumb pipes."""


@app.command()
def worker(  # noqa: PLR0913 - typer makes an option of each
    targets: Targets = None,
    *,
    processes: Annotated[
        int | None, typer.Option(metavar="N", help="Processes under one supervisor. [SMARTPIPE_PROCESSES, 1]")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(metavar="N", help="Messages of each queue to handle concurrently. [SMARTPIPE_CONCURRENCY, 10]"),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Maximum time from SIGTERM to exit. [SMARTPIPE_DRAIN_SECONDS, 25]"),
    ] = None,
    wait_seconds: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Length of a long poll. [SMARTPIPE_WAIT_SECONDS, 20, or 1 on a terminal]"),
    ] = None,
    protect_task: Annotated[
        bool,
        typer.Option(
            "--protect-task",
            help="On ECS, protect the task while handlers run that outlive the drain. [SMARTPIPE_PROTECT_TASK, false]",
        ),
    ] = False,
    host: Host = None,
    port: Port = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="CHECK",
            help="Check of the topology at start: missing, strict or off. [SMARTPIPE_VERIFY, missing]",
            autocompletion=lambda: ["missing", "strict", "off"],
        ),
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: drain and restart when sources change.")
    ] = False,
    process: Annotated[int | None, typer.Option(hidden=True)] = None,
    siblings: Annotated[int, typer.Option(hidden=True)] = 1,
    supervised: Annotated[Path | None, typer.Option(hidden=True)] = None,
    development: Annotated[bool, typer.Option("--development", hidden=True)] = False,
) -> None:
    """Run handlers of services until SIGTERM or SIGINT, then drain. Exit code 0 means that nothing was cancelled."""
    flags = {
        "processes": processes,
        "concurrency": concurrency,
        "drain_seconds": drain_seconds,
        "wait_seconds": wait_seconds,
        "protect_task": protect_task or None,
        "host": host,
        "port": port,
        "verify": verify,
        "log_level": log_level,
        "log_format": log_format,
    }
    if supervised is not None:
        from smartpipe.cli.worker import run

        run(targets or [], flags, process=process, siblings=siblings, socket=supervised, development=development)
    from smartpipe.cli.supervise import run_worker

    run_worker(targets or [], flags, reload=reload)


@app.command()
def health(
    *,
    ready: Annotated[bool, typer.Option("--ready", help="Ask /readyz instead of /livez.")] = False,
    host: Host = None,
    port: Port = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Maximum time to wait for the answer.")] = 3,
) -> None:
    """Ask the worker or relay at SMARTPIPE_HOST and SMARTPIPE_PORT for its health. Exit with 0: healthy, 1: not."""
    from smartpipe.cli.health import run_health

    run_health({"host": host, "port": port}, ready=ready, timeout_seconds=timeout)


@app.command()
def relay(
    *,
    once: Annotated[bool, typer.Option("--once", help="Publish the waiting events, and exit.")] = False,
    host: Host = None,
    port: Port = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    supervised: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Publish the events in the outbox of SMARTPIPE_OUTBOX_URL until SIGTERM. You can run several relays."""
    from smartpipe.cli.relay import run

    flags = {"host": host, "port": port, "log_level": log_level, "log_format": log_format}
    run(flags, once=once, socket=supervised)


@store.command()
def migrate(
    *,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL of all migrations, and connect to no database.")
    ] = False,
    json: AsJson = False,
    forget_old_claims: Annotated[
        bool,
        typer.Option(
            "--forget-old-claims",
            help="Delete claims of earlier versions, which this version cannot use. Their events may be handled again.",
        ),
    ] = False,
) -> None:
    """Create or update the tables in each PostgreSQL of SMARTPIPE_IDEMPOTENCY_URL and SMARTPIPE_OUTBOX_URL."""
    from smartpipe.cli.store import print_sql, run_migrate

    if sql:
        print_sql(as_json=json, forget_old_claims=forget_old_claims)
    else:
        run_migrate(as_json=json, forget_old_claims=forget_old_claims)


@app.command()
def local(
    *,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="IPv4 address to listen on; 0.0.0.0 for all, as in a container. The broker has no authentication.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", help="Port to listen on; 0 selects a free one.", min=0, max=65_535)
    ] = 0,
    backend: Backend = "ministack",
    json: AsJson = False,
) -> None:
    """Run a local broker in the foreground until Ctrl-C, without an AWS account or Docker."""
    from smartpipe.cli.local import run

    raise typer.Exit(run(backend, host, port, as_json=json))


@app.command()
def dev(  # noqa: PLR0913 - typer makes an option of each
    targets: Targets = None,
    *,
    relay: Annotated[bool, typer.Option("--relay", help="Also run a relay of the outbox.")] = False,
    programs: Annotated[
        list[str] | None,
        typer.Option(
            "--run", metavar="COMMAND", help="Also run this program, as in --run 'uvicorn app:app'. Can be repeated."
        ),
    ] = None,
    one_process: Annotated[
        bool, typer.Option("--one-process", help="Run all services in one worker process. Default: one for each.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Port of the broker on 127.0.0.1; 0 selects a free one. Default: always the same in this directory.",
            min=0,
            max=65_535,
        ),
    ] = None,
    backend: Backend = "ministack",
    reload: Annotated[
        bool | None, typer.Option(help="Restart when sources change. Default: on if watchfiles is installed.")
    ] = None,
    log_level: LogLevel = None,
    describe: Annotated[bool, typer.Option("--describe", hidden=True)] = False,
) -> None:
    """Run a broker and a worker for each service in this terminal until Ctrl-C, and apply the topology."""
    if describe:
        from smartpipe.cli.dev.services import print_services

        print_services(targets or [])
        return
    from smartpipe.cli.dev.project import DevOptions
    from smartpipe.cli.dev.run import run

    options = DevOptions(backend, port, reload, log_level, relay, tuple(programs or ()), one_process)
    run(targets or [], options)


@app.command()
def publish(  # noqa: PLR0913 - typer makes an option of each
    type_: Annotated[str, typer.Argument(metavar="TYPE", hidden=True, autocompletion=complete_types)],
    targets: Targets = None,
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="JSON",
            help="The fields of the event as a JSON object, @FILE to read them from a file, or - for standard input. "
            "These may have one object on each line, and each becomes an event.",
        ),
    ] = "{}",
    version: Annotated[
        str | None, typer.Option(metavar="MAJOR", help="The major version, if the type has several.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Send the event to this queue, and not to its topic.")
    ] = None,
    attributes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Further message attribute, for filter policies; NAME:=JSON for a number or a list. Can be repeated.",
        ),
    ] = None,
    event_id: Annotated[str | None, typer.Option(metavar="ID", help="The id of the event. Default: a new one.")] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, metavar="N", help="Publish the event N times, each with an id of its own."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, max=10_000, metavar="N", help="The maximum number of events per second."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Validate an event against its class, publish it, and print its id."""
    from smartpipe.cli.publish.run import PublishArguments, run_publish

    arguments = PublishArguments(
        type=type_,
        version=version,
        data=data,
        attributes=attributes or (),
        queue=queue,
        event_id=event_id,
        count=count,
        rate_per_second=rate,
        as_json=json,
    )
    run_publish(targets or [], arguments)


@app.command()
def doctor(
    targets: Targets = None,
    *,
    manifests: Annotated[
        list[Path] | None,
        typer.Option(
            "--manifest",
            metavar="FILE",
            help="A Dockerfile, or a file of Kubernetes, KEDA, compose, ECS, CloudFormation or Terraform. Repeatable.",
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Also read the account of this environment: queues, policies, metrics, alarms."),
    ] = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="Estimate the monthly bill of AWS instead. Formats: text, json.")
    ] = False,
    messages_per_day: Annotated[
        float | None, typer.Option(min=0, max=1e15, metavar="N", help="With --costs: the messages of each event type.")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="text, json, sarif or github (annotations of a pull request).",
            autocompletion=lambda: ["text", "json", "sarif", "github"],
        ),
    ] = "text",
    fail_on: Annotated[
        str,
        typer.Option(
            metavar="SEVERITY",
            help="The mildest severity that fails the command: error or warning.",
            autocompletion=lambda: ["error", "warning"],
        ),
    ] = "error",
) -> None:
    """Find mistakes that lose work or messages. Without --live, it calls no service. Exit code 1: see --fail-on."""
    from smartpipe.cli.doctor.run import check_options, run_costs, run_doctor

    check_options(costs=costs, live=live, manifests=manifests, messages_per_day=messages_per_day)
    if costs:
        run_costs(targets or [], form, messages_per_day)
    else:
        run_doctor(targets or [], manifests or [], form, fail_on, live=live)


@app.command()
def bench(  # noqa: PLR0913 - typer makes an option of each
    *,
    events: Annotated[int | None, typer.Option(metavar="N", help="Number of measured events. [5000]")] = None,
    size: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Size of each message in bytes, as SNS counts it. [1024]")
    ] = None,
    queues: Annotated[int | None, typer.Option(metavar="N", help="Number of subscribed queues. [3]")] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Messages that each worker handles concurrently. [10]")
    ] = None,
    processes: Annotated[int | None, typer.Option(metavar="N", help="Worker processes of each queue. [1]")] = None,
    producers: Annotated[int | None, typer.Option(metavar="N", help="Producer processes. [1]")] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Events per second, each with a due time. Default: as fast as possible."),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(metavar="N", help="Number of events before the measured ones. [a tenth, at most 1000]")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="memory (one process), local (ministack) or moto. [local]")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="A running broker: a URL, or aws to use your environment.")
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            metavar="MS", help="Add a round trip of MS milliseconds between the processes and the broker. [0]"
        ),
    ] = None,
    patience: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds without progress after which the run ends. [30]")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Plot the figures to FILE.svg or FILE.png.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a run that costs money on AWS.")] = False,
    json: AsJson = False,
) -> None:
    """Measure a fan-out: throughput, latency, CPU, requests and cost on AWS. Exit code 1: deliveries are missing."""
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
    run_bench(flags, BenchOptions(backend, endpoint, plot, latency, yes=yes, as_json=json))


show_whole_help(app)
