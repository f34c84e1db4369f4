"""``smartpipe bench``: options in, a live display, figures out."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from smartpipe.cli.ask import ask
from smartpipe.cli.changes import tell
from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.escaping import escape_json
from smartpipe.worker.signals import on_stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from smartpipe.bench.figures import Figures
    from smartpipe.bench.load import Load
    from smartpipe.bench.run import Reports, Standing

MEMORY = "memory"
BACKENDS = (MEMORY, "local", "moto")
PICTURES = (".svg", ".png")
BAR_WIDTH = 24


class Manner(NamedTuple):
    """How it is to be done and told.

    Args:
        endpoint: A URL or ``aws``, in place of a backend.
        picture: Where to draw the figures.
    """

    backend: str | None = None
    endpoint: str | None = None
    picture: Path | None = None
    yes: bool = False
    as_json: bool = False


def run_bench(flags: dict[str, Any], manner: Manner) -> None:
    """Measure, and tell the figures; exit 1 where something was not published, or did not come."""
    _check(manner)
    from smartpipe.bench.fanout import padding_for
    from smartpipe.bench.figures import machine
    from smartpipe.bench.load import Load, usual_warmup
    from smartpipe.bench.report import as_json, in_words

    given = {name: value for name, value in flags.items() if value is not None}
    load = Load(**{"warmup": usual_warmup(given.get("events", Load.events)), **given})
    padding_for(load.size_bytes)
    figures = _in_memory(load, manner) if manner.backend == MEMORY else _in_processes(load, manner)
    if manner.as_json:
        typer.echo(escape_json(json.dumps(as_json(figures, machine()), indent=2)))
    else:
        for line in in_words(figures, machine()):
            tell(line)
    if manner.picture is not None:
        from smartpipe.bench.plot import plot

        plot(figures, manner.picture)
    if figures.failed or figures.missing:
        raise typer.Exit(1)


def _check(manner: Manner) -> None:
    """Refuse before anything is started what could only fail after it."""
    problems = []
    if manner.backend is not None and manner.endpoint is not None:
        problems.append("--backend is a broker of the command's own, --endpoint one that is there: give one of them")
    elif manner.backend not in (None, *BACKENDS):
        problems.append(
            f"--backend {manner.backend!r} is none of {', '.join(BACKENDS)}; other brokers are an --endpoint"
        )
    needed = {"hdrh": "hdrhistogram"}
    if manner.picture is not None:
        needed["matplotlib"] = "matplotlib"
        if manner.picture.suffix not in PICTURES:
            problems.append(f"--plot {manner.picture} ends with none of {', '.join(PICTURES)}")
        elif not manner.picture.absolute().parent.is_dir():
            problems.append(f"--plot {manner.picture}: there is no directory {manner.picture.parent}")
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        problems.append(f"bench needs {' and '.join(missing)}; run pip install 'smartpipe[bench]'")
    if problems:
        raise ConfigError(problems)


def _in_memory(load: Load, manner: Manner) -> Figures:
    from smartpipe.bench.figures import Setting, figures
    from smartpipe.bench.inmemory import InMemory
    from smartpipe.worker.tuning import choose_loop_factory

    if load.producers > 1 or load.processes > 1:
        raise ConfigError("--backend memory is one process: leave --producers and --processes out")
    setting = Setting("memory", in_turn=load.rate_per_second is None, one_process=True)

    async def work(watch: Callable[[Standing], None]) -> Reports:
        return await InMemory(load, watch).run()

    with asyncio.Runner(loop_factory=choose_loop_factory()) as runner:
        return figures(load, setting, runner.run(_measured(load, manner, work)))


def _in_processes(load: Load, manner: Manner) -> Figures:
    from smartpipe.bench.cost import at_most
    from smartpipe.bench.figures import Setting, figures
    from smartpipe.bench.place import broker_of_our_own, is_aws, place_at, provision
    from smartpipe.bench.report import worst_case
    from smartpipe.bench.run import run

    with (
        broker_of_our_own(manner.backend or "local")
        if manner.endpoint is None
        else nullcontext(place_at(manner.endpoint)) as place
    ):
        if is_aws(place.environment):
            price = at_most(load).total
            question = f"Send {worst_case(load)} on AWS, for at most about ${price:,.2f}, and delete the queues again?"
            ask(
                question,
                yes=manner.yes,
                as_json=manner.as_json,
                look="try it with --backend local, which costs nothing",
            )

        async def work(watch: Callable[[Standing], None]) -> Reports:
            async with provision(place, load, _warn):
                return await run(load, place.environment, watch)

        return figures(load, Setting(place.name), asyncio.run(_measured(load, manner, work)))


async def _measured(load: Load, manner: Manner, work: Callable[[Callable[[Standing], None]], Any]) -> Reports:
    """Do the work under a display; the first Ctrl-C or SIGTERM ends it cleanly, the second at once."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine

    def interrupt(_: str) -> None:
        task.cancel()

    with on_stop(interrupt), _display(load, shown=sys.stderr.isatty() and not manner.as_json) as watch:
        try:
            reports: Reports = await work(watch)
        except asyncio.CancelledError:
            raise SmartpipeError("interrupted: nothing was measured") from None
        return reports


@contextmanager
def _display(load: Load, *, shown: bool) -> Iterator[Callable[[Standing], None]]:
    """Give what shows how far a run is: two bars on a terminal, nothing elsewhere."""
    if not shown:
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        published = progress.add_task("starting", total=load.events, rate="", start=False)
        delivered = progress.add_task("delivered", total=load.deliveries, rate="", start=False)

        def watch(standing: Standing) -> None:
            for task_id, done in ((published, standing.published), (delivered, standing.handled)):
                task = progress.tasks[task_id]
                if done and not task.started:
                    progress.start_task(task_id)
                rate = f"{task.speed:,.0f}/s" if task.speed else ""
                progress.update(task_id, completed=done, rate=rate)
            progress.update(published, description="published" if standing.published else standing.phase)

        yield watch


def _warn(text: str) -> None:
    tell(f"smartpipe: {text}", err=True)
