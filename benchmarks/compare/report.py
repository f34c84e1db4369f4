"""Build ``RESULTS.md``: targets and measured values, the tables, and an explanation of the method. Pure."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.compare.contenders import BARE, DEFAULT, FANFERRO, FORTY_TASKS, IDLE, SMARTPIPE, SYNC, TABLES
from benchmarks.compare.table import Figures, Line, build_lines, format_rates, format_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Runs = dict[str, dict[str, list[Figures]]]

HEAD = """# Results

The figures are the CPU time of the client's process per message, in µs. This is the user and system time of all
threads, from the {warm}th message to the response to the last delete. Each figure is the median of {rounds} rounds. In
each round, every client ran once, in rotating order, on the same broker. [How](#how) describes the method.
To make this page again, run `{command}`.
"""
PICTURE = """
![CPU per message of each client, with the bare aiobotocore loop marked](results.svg)
"""
HOW = """
## How

- **Each run has its own process and queue.** The queue is new, and another process fills it beforehand. A run counts
  only if the client has handled every event and has left the queue empty. A run that publishes counts only if the
  queue that subscribes to the topic has received every event.
- **All clients process the same event**: nested JSON of some 300 bytes, in the envelope that each client expects. This
  is CloudEvents for smartpipe and for the loops of aiobotocore and boto3 (some 600 bytes). sqs-workers, kombu (Base64
  twice), taskiq, tomodachi (inside SNS's envelope) and fanferro (the plain event) have their own. The loops publish the
  same messages as smartpipe, with the `type` attribute. The handler only counts the event.
- **smartpipe does all of its work**: it runs a `Worker` with a service and a typed event that Pydantic validates,
  with routing, leases, heartbeats, batched deletes, JSON logs and the health server. Its figure includes the drain. Of
  the other clients, only fanferro validates events and renews leases. Concurrency 80 is the number of messages that the
  bare loop has in flight. The default of a worker is 10.
- **The bare loop** is aiobotocore and nothing else: 8 tasks, each of which receives ten messages, parses them and
  deletes them in one call. All clients that use asyncio run on uvloop, as smartpipe's worker does. So does the
  bare loop. taskiq, kombu and tomodachi delete messages one by one, because they are built that way.
- **The round trip of 15 ms** comes from the proxy of `smartpipe bench --latency`, between the client and the broker.
  Its table shows the throughput, because waiting costs no CPU. Client, proxy and broker share the cores, so the fastest
  clients are limited by the machine. [The throughput over other distances](LATENCY.md) has a picture.
- **The tables of publishing leave out** kombu, taskiq and sqs-workers, which send to SQS and do not publish to SNS.
- **Slow clients get fewer messages**, so that a run ends. Quick clients get more, so that a run lasts long enough. The
  clock starts after {warm} messages. After that, the clients get these numbers of messages, in thousands:
  {counts}.
- **The other figures are CPU time**, not wall time. The broker shares the cores with the client, so the throughput
  says more about the broker than about any client. At times, other processes share the cores too. This is why you see
  medians, with their spread.
"""


class Target(NamedTuple):
    """A figure with a *limit* and a better *aim*. The measured value is shown with *digits* decimals.

    Args:
        at_least: The figure must not be lower than the limit, instead of not higher.
    """

    figure: str
    limit: float
    aim: float
    unit: str = ""
    digits: int = 3
    at_least: bool = False


RATIO = Target("worker with default settings, CPU relative to the bare loop", 0.24, 0.18)
BEST = Target("worker with concurrency 80, CPU relative to the bare loop", 0.22, 0.16)
TUNED = Target("worker with default settings, CPU relative to concurrency 80", 1.1, 1.0, digits=2)
SHARE = Target("default settings, messages per second at 15 ms relative to none", 0.6, 0.9, digits=2, at_least=True)
FORTY = Target("default settings at 15 ms, messages per second relative to the bare loop with 40 tasks", 1.1, 1.5,
    digits=2, at_least=True)  # fmt: skip
HANDLER = Target("sync handler, CPU relative to an async one", 1.3, 1.15, digits=2)
MANY = Target("`publish_many`, CPU relative to bare PublishBatch", 0.15, 0.12)
SINGLE = Target("100 concurrent `publish` calls, CPU relative to one bare Publish each", 0.08, 0.04)
MEMORY = Target("worker in memory, CPU per message", 20, 15, " µs", 0)
CONSUME_FANFERRO = Target("worker with concurrency 80, CPU relative to fanferro", 0.5, 0.33, digits=2)
PUBLISH_FANFERRO = Target("`publish_many`, CPU relative to fanferro", 0.5, 0.33, digits=2)
IDLING = Target("idle worker on 20-second polls, CPU", 0.5, 0.2, " %", 2)


def build_page(runs: Runs, machine: Mapping[str, str], *, warm: int) -> str:
    """Return the whole page as Markdown."""
    lines = {key: build_lines(runs[key], bare=BARE) for key in TABLES}
    rounds = max(len(found) for found in runs["consume"].values())
    counts = fill(
        "; ".join(f"{one.name}: {one.weight}" for one in TABLES["consume"].contenders), 116, subsequent_indent="  "
    )
    parts = [
        HEAD.format(warm=warm, rounds=rounds, command=machine["command"]),
        format_targets(lines, runs["idle"]),
        PICTURE,
    ]
    for key, table in TABLES.items():
        notes = {contender.name: contender.note for contender in table.contenders}
        formatted = (
            format_rates(lines[key], lines["consume"], notes) if table.milliseconds else format_table(lines[key], notes)
        )
        parts += [f"\n## {table.title}\n", formatted + "\n"]
    parts += [HOW.format(warm=warm, counts=counts), "\n## Where\n", format_machine(machine, lines)]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def format_targets(tables: Mapping[str, Sequence[Line]], idle: Mapping[str, Sequence[Figures]]) -> str:
    """Return the table of targets."""
    near, far, many, single = ({line.name: line for line in found} for found in tables.values())
    valid = [figures for figures in idle[IDLE.name] if not figures.error]
    idling = 100 * valid[0].cpu_seconds / valid[0].wall_seconds if valid else None
    ours = f"{SMARTPIPE}, publish_many"
    rows = [
        (RATIO, near[DEFAULT].ratio),
        (BEST, near[SMARTPIPE].ratio),
        (TUNED, _divide(near[DEFAULT].middle, near[SMARTPIPE].middle)),
        (HANDLER, _divide(near[SYNC].middle, near[DEFAULT].middle)),
        (SHARE, _divide(far[DEFAULT].per_second, near[DEFAULT].per_second)),
        (FORTY, _divide(far[DEFAULT].per_second, far[FORTY_TASKS].per_second)),
        (CONSUME_FANFERRO, _divide(near[SMARTPIPE].middle, near[FANFERRO].middle)),
        (MANY, many[ours].ratio),
        (PUBLISH_FANFERRO, _divide(many[ours].middle, many[FANFERRO].middle)),
        (SINGLE, single[f"{SMARTPIPE}, publish"].ratio),
        (MEMORY, near[f"{SMARTPIPE}, in memory"].middle or None),
        (IDLING, idling),
    ]
    head = "| figure | limit | aim | measured | result |\n|---|--:|--:|--:|---|\n"
    return head + "\n".join(_format_row(target, value) for target, value in rows) + "\n"


def _divide(value: float, base: float) -> float | None:
    """Return the ratio of two figures; None if one of them is missing."""
    return value / base if value and base else None


def _format_row(target: Target, value: float | None) -> str:
    limits = f"{_format_limit(target, target.limit)} | {_format_limit(target, target.aim)}"
    if value is None:
        return f"| {target.figure} | {limits} | not run | |"
    return f"| {target.figure} | {limits} | {value:.{target.digits}f}{target.unit} | {verdict(target, value)} |"


def _format_limit(target: Target, value: float) -> str:
    return f"{'≥' if target.at_least else '≤'} {value:g}{target.unit}"


def verdict(target: Target, value: float) -> str:
    """Return whether *value* reaches the target."""
    sign = -1 if target.at_least else 1
    if sign * value <= sign * target.aim:
        return "aim reached"
    return "reached" if sign * value <= sign * target.limit else "**missed**"


def format_machine(machine: Mapping[str, str], tables: Mapping[str, Sequence[Line]]) -> str:
    """Return the machine and the versions, one line each."""
    items = [f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in machine.items()]
    versions: dict[str, str] = {}
    for line in (line for found in tables.values() for line in found):
        if line.versions:
            label = line.name.partition(",")[0] if line.name != BARE else "bare loop"
            label = SMARTPIPE if label.startswith(SMARTPIPE) else label
            versions[label] = ", ".join(f"{package} {number}" for package, number in line.versions.items())
    items += [f"- {name}: {found}" for name, found in versions.items()]
    return "\n".join(items) + "\n"


def figures_of(runs: Mapping[str, Mapping[str, Sequence[Sequence[object]]]]) -> Runs:
    """Convert figures that were read from JSON."""
    return {
        mode: {name: [Figures(*figures) for figures in found] for name, found in clients.items()}  # type: ignore[arg-type]
        for mode, clients in runs.items()
    }
