"""The command `smartpipe bench`: its errors, its outputs, and the runs that it starts. No run measures anything."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from smartpipe import ConfigError
from smartpipe.bench.figures import RunSetting
from smartpipe.bench.load import Load
from smartpipe.bench.run import RunProgress
from smartpipe.cli import bench
from smartpipe.cli.bench import BenchOptions, run_bench
from smartpipe.errors import SmartpipeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MEMORY = BenchOptions("memory")
FLAGS: dict[str, Any] = {"events": 20, "queues": 2, "rate_per_second": None}
LOCAL = {"AWS_ENDPOINT_URL": "http://localhost:1"}


class Run:
    """The parts of a run, all of them replaced, and a record of what was done."""

    def __init__(self, patch: Callable[[str, Any], None]) -> None:
        self.done: list[Any] = []
        self.loads: list[Load] = []
        self.settings: list[RunSetting] = []
        self.failed = self.missing = 0
        self.progress: list[RunProgress] = []
        self.environment = LOCAL
        self.on_measure: Callable[[], Any] = lambda: None
        run = self

        class InMemoryRun:
            def __init__(self, load: Load, on_progress: Callable[[RunProgress], None]) -> None:
                self._on_progress = on_progress

            async def run(self) -> str:
                return await run.measure("in memory", self._on_progress)

        async def run_processes(
            _: Load, environment: dict[str, str], on_progress: Callable[[RunProgress], None]
        ) -> str:
            return await run.measure(environment, on_progress)

        patch("in_memory.InMemoryRun", InMemoryRun)
        patch("run.run", run_processes)
        patch("broker.run_broker", self.run_broker)
        patch("broker.external_broker", self.external_broker)
        patch("broker.provision", self.provision)
        patch("distance.open_distance", self.open_distance)
        patch("figures.compute_figures", self.compute_figures)
        patch("figures.describe_machine", lambda: {"cores": 2})
        patch("report.format_text", lambda _, machine: ["the figures", f"of \x1b {machine}"])
        patch("report.build_json", lambda _, machine: {"of": machine, "and": "\u202e"})
        patch("plot.plot", lambda _, file: self.done.append(("plot", file)))

    async def measure(self, where: Any, on_progress: Callable[[RunProgress], None]) -> str:
        self.done.append(where)
        for progress in self.progress:
            on_progress(progress)
        result = self.on_measure()
        if result is not None:
            await result
        return "reports"

    def compute_figures(self, load: Load, setting: RunSetting, reports: str) -> Any:
        assert reports == "reports"
        self.loads.append(load)
        self.settings.append(setting)
        return SimpleNamespace(failed=self.failed, missing=self.missing)

    @contextmanager
    def run_broker(self, backend: str) -> Iterator[Any]:
        self.done.append(("start", backend))
        yield SimpleNamespace(name=f"{backend} 1", environment=self.environment)
        self.done.append("stop")

    def external_broker(self, endpoint: str) -> Any:
        self.done.append(("external", endpoint))
        return SimpleNamespace(name="external", environment=self.environment)

    @asynccontextmanager
    async def provision(self, broker: Any, _: Load, warn: Callable[[str], None]) -> AsyncIterator[None]:
        self.done.append("provision")
        yield
        warn(f"{broker.name} was \x1b left")

    @asynccontextmanager
    async def open_distance(self, environment: dict[str, str], milliseconds: float) -> AsyncIterator[Any]:
        yield {**environment, "milliseconds": milliseconds}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(lambda name, value: monkeypatch.setattr(f"smartpipe.bench.{name}", value))


def test_a_run_in_memory_prints_its_figures_as_text(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run_bench(FLAGS, MEMORY)

    assert capsys.readouterr() == ("the figures\nof \\x1b {'cores': 2}\n", "")
    assert run.done == ["in memory"]
    assert run.loads == [Load(events=20, queues=2, warmup=2)]
    assert run.settings == [RunSetting("memory", published_first=True, one_process=True)]


def test_with_a_rate_a_run_in_memory_handles_events_while_it_publishes(run: Run) -> None:
    run_bench(FLAGS | {"rate_per_second": 5.0, "warmup": 7}, MEMORY)

    assert run.loads == [Load(events=20, queues=2, warmup=7, rate_per_second=5.0)]
    assert run.settings == [RunSetting("memory", published_first=False, one_process=True)]


def test_without_flags_the_load_is_the_default(run: Run) -> None:
    run_bench({}, MEMORY)

    assert run.loads == [Load()]


def test_json_is_indented_and_has_no_characters_that_command_a_terminal(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run_bench(FLAGS, MEMORY._replace(as_json=True))

    assert capsys.readouterr().out == json.dumps({"of": {"cores": 2}, "and": "\u202e"}, indent=2) + "\n"


@pytest.mark.parametrize(("failed", "missing", "code"), [(0, 0, None), (1, 0, 1), (0, 1, 1)])
def test_the_exit_code_is_1_if_an_event_was_not_published_or_a_delivery_is_missing(
    run: Run, failed: int, missing: int, code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run.failed, run.missing = failed, missing
    ended = None
    try:
        run_bench(FLAGS, MEMORY._replace(plot=Path("x.svg")))
    except typer.Exit as error:
        ended = error.exit_code

    assert ended == code
    assert "the figures" in capsys.readouterr().out
    assert run.done == ["in memory", ("plot", Path("x.svg"))]


@pytest.mark.parametrize("flags", [{"producers": 2}, {"processes": 2}])
def test_a_run_in_memory_has_one_process(run: Run, flags: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="--backend memory runs in one process: remove --producers and --processes"):
        run_bench(flags, MEMORY)

    assert run.done == []


@pytest.mark.parametrize(
    ("options", "started", "backend"),
    [
        (BenchOptions(), ("start", "local"), "local 1"),
        (BenchOptions("local"), ("start", "local"), "local 1"),
        (BenchOptions("moto"), ("start", "moto"), "moto 1"),
        (BenchOptions(endpoint="http://x:1"), ("external", "http://x:1"), "external"),
    ],
)
def test_processes_run_on_a_broker_that_the_command_starts_or_on_a_running_one(
    run: Run, options: BenchOptions, started: object, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_bench(FLAGS, options)

    assert run.done[:3] == [started, "provision", LOCAL]
    assert run.done[3:] == (["stop"] if started[0] == "start" else [])  # type: ignore[index]
    assert run.settings == [RunSetting(backend)]
    assert capsys.readouterr().err == f"smartpipe: {backend} was \\x1b left\n"


@pytest.mark.parametrize("milliseconds", [0.0, 0.5, 10_000.0])
def test_processes_get_the_distance_to_the_broker(run: Run, milliseconds: float) -> None:
    run_bench(FLAGS, BenchOptions(latency_milliseconds=milliseconds))

    assert run.done[2] == ({**LOCAL, "milliseconds": milliseconds} if milliseconds else LOCAL)
    assert run.settings == [RunSetting("local 1", latency_milliseconds=milliseconds)]


def test_a_run_on_aws_is_confirmed_with_its_cost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def confirm(question: str, **options: Any) -> None:
        asked.append((question, options))

    monkeypatch.setattr(bench, "confirm", confirm)
    run_bench(FLAGS, BenchOptions(endpoint="http://x:1"))
    assert asked == []

    run.environment = {}
    run_bench({"events": 1_000_000, "warmup": 0}, BenchOptions(endpoint="aws", yes=True, as_json=True))

    [(question, options)] = asked
    assert question.startswith("Send 1,000,000 events")
    assert question.endswith(" on AWS, for at most about $2.90, and delete the queues afterwards?")
    assert options == {"yes": True, "as_json": True, "alternative": "try --backend local, which is free of charge"}


@pytest.mark.parametrize(
    ("options", "errors"),
    [
        (
            BenchOptions("kafka"),
            ["--backend 'kafka' is not one of memory, local, moto; use --endpoint for other brokers"],
        ),
        (
            BenchOptions("kafka", "aws"),
            ["--backend starts a broker, and --endpoint names a running one: use only one of them"],
        ),
        (
            BenchOptions(latency_milliseconds=-0.5),
            ["--latency=-0.5 is outside the range 0 to 10,000 milliseconds"],
        ),
        (
            BenchOptions("memory", latency_milliseconds=10_000.5),
            [
                "--latency=10000.5 is outside the range 0 to 10,000 milliseconds",
                "--latency adds a distance to a broker, and --backend memory has none: remove one of them",
            ],
        ),
        (
            BenchOptions(endpoint="https://x", latency_milliseconds=1.0),
            ["--latency needs an endpoint with http://, and https://x is none"],
        ),
        (
            BenchOptions(endpoint="aws", latency_milliseconds=1.0),
            ["--latency adds a distance to a broker, and AWS has a distance of its own: remove --latency"],
        ),
        (
            BenchOptions("x", plot=Path("a.pdf")),
            [
                "--backend 'x' is not one of memory, local, moto; use --endpoint for other brokers",
                "--plot a.pdf does not end with one of .svg, .png",
            ],
        ),
        (BenchOptions(plot=Path("nowhere/a.svg")), ["--plot nowhere/a.svg: directory nowhere does not exist"]),
    ],
)
def test_wrong_options_are_reported_together_before_anything_is_started(
    run: Run, options: BenchOptions, errors: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        run_bench(FLAGS, options)

    assert list(raised.value.problems) == errors
    assert run.done == []


@pytest.mark.parametrize(
    ("installed", "plot", "needed"),
    [
        ((), None, "hdrhistogram"),
        ((), Path("a.svg"), "hdrhistogram and matplotlib"),
        (("hdrh",), Path("a.png"), "matplotlib"),
        (("matplotlib",), Path("a.svg"), "hdrhistogram"),
        (("hdrh",), None, None),
    ],
)
def test_missing_packages_are_named_if_the_run_needs_them(
    run: Run, installed: tuple[str, ...], plot: Path | None, needed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: name if name in installed else None)
    errors: tuple[str, ...] = ()
    try:
        run_bench(FLAGS, MEMORY._replace(plot=plot))
    except ConfigError as error:
        errors = error.problems

    assert errors == ((f"bench needs {needed}; run pip install 'smartpipe[bench]'",) if needed else ())


def test_a_size_below_that_of_the_envelope_is_refused_before_anything_is_started(run: Run) -> None:
    with pytest.raises(ConfigError, match="--size 20 is less than the envelope alone"):
        run_bench({"size_bytes": 20}, BenchOptions())

    assert run.done == []


@pytest.mark.parametrize("options", [MEMORY, BenchOptions()])
def test_a_signal_ends_the_run_and_nothing_is_measured(run: Run, options: BenchOptions) -> None:
    async def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(3_600)

    run.on_measure = interrupt

    with pytest.raises(SmartpipeError, match="interrupted: nothing was measured"):
        run_bench(FLAGS, options)

    assert run.settings == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(terminal: io.StringIO) -> list[str]:
    """Return the distinct lines that the terminal showed, without colours and other commands."""
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue()))
    return list(dict.fromkeys(" ".join(line.replace("━", " ").replace("╸", " ").split()) for line in lines if line))


@pytest.mark.parametrize(
    ("progress", "published", "delivered"),
    [
        ([RunProgress("warming up")], "warming up 0 of 20", "delivered 0 of 40"),
        (
            [RunProgress("measuring", 20, 3), RunProgress("measuring", 20, 40)],
            "published 20 of 20",
            "delivered 40 of 40",
        ),
    ],
)
def test_a_terminal_shows_the_phase_and_the_published_and_delivered_events(
    run: Run,
    progress: list[RunProgress],
    published: str,
    delivered: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    run.progress = progress

    run_bench(FLAGS, MEMORY)

    shown = shown_on(terminal)
    assert capsys.readouterr().out.startswith("the figures\n")
    assert any(re.fullmatch(rf"{published}( [\d,]+/s)?", line) for line in shown), shown
    assert any(re.fullmatch(rf"{delivered}( [\d,]+/s)?", line) for line in shown), shown
    assert terminal.getvalue().endswith("\x1b[2K")  # the bars are gone


@pytest.mark.parametrize(("terminal", "as_json"), [(io.StringIO(), False), (Terminal(), True)])
def test_nothing_shows_the_progress_beside_json_or_without_a_terminal(
    run: Run, terminal: io.StringIO, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    run.progress = [RunProgress("measuring", 20, 3)]

    run_bench(FLAGS, MEMORY._replace(as_json=as_json))

    assert terminal.getvalue() == ""
