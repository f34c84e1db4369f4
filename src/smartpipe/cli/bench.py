"""``smartpipe bench``: check the options, show the progress, and print the figures."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import typer

from smartpipe.cli.changes import print_line
from smartpipe.cli.confirm import confirm
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.escaping import escape_json
from smartpipe.worker.signals import on_stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from smartpipe.bench.figures import Figures
    from smartpipe.bench.load import Load
    from smartpipe.bench.run import Reports, RunProgress

    OnProgress: TypeAlias = Callable[[RunProgress], None]

MEMORY = "memory"
BACKENDS = (MEMORY, "local", "moto")
PLOT_SUFFIXES = (".svg", ".png")
BAR_WIDTH = 24


class BenchOptions(NamedTuple):
    """The broker of a run, and the form of its output.

    Args:
        endpoint: A URL or ``aws``, instead of a backend.
        plot: The file to plot the figures to.
        latency_milliseconds: The round trip to add between the processes and the broker.
    """

    backend: str | None = None
    endpoint: str | None = None
    plot: Path | None = None
    latency_milliseconds: float | None = None
    yes: bool = False
    as_json: bool = False


def run_bench(flags: dict[str, Any], options: BenchOptions) -> None:
    """Measure, and print the figures. Exit with 1 if an event was not published or a delivery did not arrive."""
    _check_options(options)
    from smartpipe.bench.fanout import padding_for
    from smartpipe.bench.figures import describe_machine
    from smartpipe.bench.load import Load, default_warmup
    from smartpipe.bench.report import build_json, format_text

    values = {name: value for name, value in flags.items() if value is not None}
    load = Load(**{"warmup": default_warmup(values.get("events", Load.events)), **values})
    padding_for(load.size_bytes)  # raises an error if the size is too small
    figures = _run_in_memory(load, options) if options.backend == MEMORY else _run_in_processes(load, options)
    if options.as_json:
        typer.echo(escape_json(json.dumps(build_json(figures, describe_machine()), indent=2)))
    else:
        for line in format_text(figures, describe_machine()):
            print_line(line)
    if options.plot is not None:
        from smartpipe.bench.plot import plot

        plot(figures, options.plot)
    if figures.failed or figures.missing:
        raise typer.Exit(1)


def _check_options(options: BenchOptions) -> None:
    """Report errors before anything is started that would otherwise fail after the run."""
    errors = []
    if options.backend is not None and options.endpoint is not None:
        errors.append("--backend starts a broker, and --endpoint names a running one: use only one of them")
    elif options.backend not in (None, *BACKENDS):
        errors.append(
            f"--backend {options.backend!r} is not one of {', '.join(BACKENDS)}; use --endpoint for other brokers"
        )
    if options.latency_milliseconds is not None:
        errors += _latency_errors(options.latency_milliseconds, options)
    needed = {"hdrh": "hdrhistogram"}
    if options.plot is not None:
        needed["matplotlib"] = "matplotlib"
        if options.plot.suffix not in PLOT_SUFFIXES:
            errors.append(f"--plot {options.plot} does not end with one of {', '.join(PLOT_SUFFIXES)}")
        elif not options.plot.absolute().parent.is_dir():
            errors.append(f"--plot {options.plot}: directory {options.plot.parent} does not exist")
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        errors.append(f"bench needs {' and '.join(missing)}; run pip install 'smartpipe[bench]'")
    if errors:
        raise ConfigError(errors)


def _latency_errors(milliseconds: float, options: BenchOptions) -> Iterator[str]:
    from smartpipe.bench.broker import AWS
    from smartpipe.bench.distance import MAX_MILLISECONDS, wrong_endpoint_error

    if not 0 <= milliseconds <= MAX_MILLISECONDS:
        yield f"--latency={milliseconds:g} is outside the range 0 to {MAX_MILLISECONDS:,g} milliseconds"
    if options.backend == MEMORY:
        yield "--latency adds a distance to a broker, and --backend memory has none: remove one of them"
    if options.endpoint is not None and options.endpoint.startswith("https:"):
        yield wrong_endpoint_error(options.endpoint)
    if options.endpoint == AWS:
        yield "--latency adds a distance to a broker, and AWS has a distance of its own: remove --latency"


def _run_in_memory(load: Load, options: BenchOptions) -> Figures:
    from smartpipe.bench.figures import RunSetting, compute_figures
    from smartpipe.bench.in_memory import InMemoryRun
    from smartpipe.worker.tuning import choose_loop_factory

    if load.producers > 1 or load.processes > 1:
        raise ConfigError("--backend memory runs in one process: remove --producers and --processes")
    setting = RunSetting("memory", published_first=load.rate_per_second is None, one_process=True)

    async def measure(on_progress: OnProgress) -> Reports:
        return await InMemoryRun(load, on_progress).run()

    with asyncio.Runner(loop_factory=choose_loop_factory()) as runner:
        return compute_figures(load, setting, runner.run(_run_with_display(load, options, measure)))


def _run_in_processes(load: Load, options: BenchOptions) -> Figures:
    from smartpipe.bench.broker import external_broker, is_aws, provision, run_broker
    from smartpipe.bench.cost import max_cost_of
    from smartpipe.bench.distance import open_distance
    from smartpipe.bench.figures import RunSetting, compute_figures
    from smartpipe.bench.report import describe_traffic
    from smartpipe.bench.run import run

    with (
        run_broker(options.backend or "local")
        if options.endpoint is None
        else nullcontext(external_broker(options.endpoint)) as broker
    ):
        if is_aws(broker.environment):
            cost = f"at most about ${max_cost_of(load).total:,.2f}"
            confirm(
                f"Send {describe_traffic(load)} on AWS, for {cost}, and delete the queues afterwards?",
                yes=options.yes,
                as_json=options.as_json,
                alternative="try --backend local, which is free of charge",
            )

        async def measure(on_progress: OnProgress) -> Reports:
            async with provision(broker, load, _warn):
                if not milliseconds:
                    return await run(load, broker.environment, on_progress)
                async with open_distance(broker.environment, milliseconds) as environment:
                    return await run(load, environment, on_progress)

        milliseconds = options.latency_milliseconds or 0.0
        setting = RunSetting(broker.name, latency_milliseconds=milliseconds)
        return compute_figures(load, setting, asyncio.run(_run_with_display(load, options, measure)))


async def _run_with_display(
    load: Load, options: BenchOptions, measure: Callable[[OnProgress], Awaitable[Reports]]
) -> Reports:
    """Measure, and show the progress. The first Ctrl-C or SIGTERM cleans up, and the second ends the process."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine

    def interrupt(_: str) -> None:
        task.cancel()

    visible = sys.stderr.isatty() and not options.as_json
    with on_stop(interrupt), _display_progress(load, visible=visible) as on_progress:
        try:
            return await measure(on_progress)
        except asyncio.CancelledError:
            raise SmartpipeError("interrupted: nothing was measured") from None


@contextmanager
def _display_progress(load: Load, *, visible: bool) -> Iterator[OnProgress]:
    """Yield a function that displays the progress as two bars if *visible*, or else does nothing."""
    if not visible:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(BAR_WIDTH),
        TextColumn("{task.completed:>11,.0f} of {task.total:,.0f}"),
        TextColumn("{task.fields[rate]:>11}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        published = bars.add_task("starting", total=load.events, rate="", start=False)
        delivered = bars.add_task("delivered", total=load.deliveries, rate="", start=False)

        def show(progress: RunProgress) -> None:
            for task_id, done in ((published, progress.published), (delivered, progress.handled)):
                task = bars.tasks[task_id]
                if done and not task.started:
                    bars.start_task(task_id)
                rate = f"{task.speed:,.0f}/s" if task.speed else ""
                bars.update(task_id, completed=done, rate=rate)
            bars.update(published, description="published" if progress.published else progress.phase)

        yield show


def _warn(text: str) -> None:
    print_line(f"smartpipe: {text}", err=True)
