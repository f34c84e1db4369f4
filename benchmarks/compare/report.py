"""Build ``RESULTS.md``: targets and measured values, the tables, and an explanation of the method. Pure."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.compare.contenders import BARE, IDLE, SMARTPIPE, TABLES
from benchmarks.compare.table import Figures, Line, build_lines, format_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Runs = dict[str, dict[str, list[Figures]]]

TITLES = {
    "consume": "Consuming: receive, handle, delete",
    "publish": "Publishing many",
    "publish-single": "Publishing one by one, with 100 concurrent calls",
}
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
  twice), taskiq and tomodachi (inside SNS's envelope) have their own. The loops publish the same messages as smartpipe,
  with the `type` attribute. The handler only counts the event.
- **smartpipe does all of its work**: it runs a `Worker` with a service and a typed event that Pydantic validates,
  with routing, leases, heartbeats, batched deletes, JSON logs and the health server. Its figure includes the drain. The
  other clients do not validate events and do not renew leases. Concurrency 80 is the number of messages that the bare
  loop has in flight. The default of a worker is 10.
- **The bare loop** is aiobotocore and nothing else: 8 tasks, each of which receives ten messages, parses them and
  deletes them in one call. All clients that use asyncio run on uvloop, as smartpipe's worker does. So does the
  bare loop. taskiq, kombu and tomodachi delete messages one by one, because they are built that way.
- **The tables of publishing leave out** kombu, taskiq and sqs-workers, which send to SQS and do not publish to SNS.
- **Slow clients get fewer messages**, so that a run ends. Quick clients get more, so that a run lasts long enough. The
  clock starts after {warm} messages. After that, the clients get these numbers of messages, in thousands:
  {counts}.
- **The figures are CPU time**, not wall time. The broker shares the cores with the client, so the throughput says more
  about the broker than about any client. At times, other processes share the cores too. This is why you see medians,
  with their spread.
"""


class Target(NamedTuple):
    """A figure with a *limit* and a better *aim*. The measured value is shown with *digits* decimals."""

    figure: str
    limit: float
    aim: float
    unit: str = ""
    digits: int = 3


RATIO = Target("worker, relative to the bare loop", 0.35, 0.22)
MEMORY = Target("worker in memory, µs per message", 40, 20, " µs", 0)
MANY = Target("`publish_many`, relative to bare PublishBatch", 0.30, 0.15)
SINGLE = Target("100 concurrent `publish` calls, relative to one bare Publish each", 0.10, 0.04)
IDLING = Target("idle worker on 20-second polls, CPU", 0.5, 0.2, " %", 2)


def build_page(runs: Runs, machine: Mapping[str, str], *, warm: int) -> str:
    """Return the whole page as Markdown."""
    tables = {mode: build_lines(runs[mode], bare=BARE) for mode in TABLES}
    rounds = max(len(found) for found in runs["consume"].values())
    counts = fill("; ".join(f"{one.name}: {one.weight}" for one in TABLES["consume"]), 116, subsequent_indent="  ")
    parts = [
        HEAD.format(warm=warm, rounds=rounds, command=machine["command"]),
        format_targets(tables, runs["idle"]),
        PICTURE,
    ]
    for mode, title in TITLES.items():
        notes = {contender.name: contender.note for contender in TABLES[mode]}
        parts += [f"\n## {title}\n", format_table(tables[mode], notes) + "\n"]
    parts += [HOW.format(warm=warm, counts=counts), "\n## Where\n", format_machine(machine, tables)]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def format_targets(tables: Mapping[str, Sequence[Line]], idle: Mapping[str, Sequence[Figures]]) -> str:
    """Return the table of targets."""
    consume = {line.name: line for line in tables["consume"]}
    many = {line.name: line for line in tables["publish"]}
    single = {line.name: line for line in tables["publish-single"]}
    valid = [figures for figures in idle[IDLE.name] if not figures.error]
    idling = 100 * valid[0].cpu_seconds / valid[0].wall_seconds if valid else None
    rows = [
        (RATIO, consume[SMARTPIPE].ratio),
        (MEMORY, consume[f"{SMARTPIPE}, in memory"].middle or None),
        (MANY, many[f"{SMARTPIPE}, publish_many"].ratio),
        (SINGLE, single[f"{SMARTPIPE}, publish"].ratio),
        (IDLING, idling),
    ]
    head = "| figure | limit | aim | measured | result |\n|---|--:|--:|--:|---|\n"
    return head + "\n".join(_format_row(target, value) for target, value in rows) + "\n"


def _format_row(target: Target, value: float | None) -> str:
    if value is None:
        return f"| {target.figure} | {target.limit:g}{target.unit} | {target.aim:g}{target.unit} | not run | |"
    measured = f"{value:.{target.digits}f}"
    limits = f"{target.limit:g}{target.unit} | {target.aim:g}{target.unit}"
    return f"| {target.figure} | {limits} | {measured}{target.unit} | {verdict(target, value)} |"


def verdict(target: Target, value: float) -> str:
    """Return whether *value* reaches the target."""
    return "aim reached" if value <= target.aim else "reached" if value <= target.limit else "**missed**"


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
