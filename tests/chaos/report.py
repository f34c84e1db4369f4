"""Format the table, for the terminal and for docs/delivery-guarantees.md."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from string import Template
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from smartpipe.consumer.guard import MIN_LEASE_SECONDS
from smartpipe.version import __version__
from tests.chaos.service import LEASE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.runner import Outcome
    from tests.chaos.servers import RunSize

PAGE = Path(__file__).with_name("page.md")
HEADINGS = {
    "events": "published events: SNS or SQS accepted them, or the outbox's transaction committed",
    "effects": "effects of these events. If two services handle every event, each service has its own effect",
    "missing": "effects that did not happen. Must be 0",
    "twice": "effects that happened more than once, in handlers with `delivery.transaction()`. Must be 0",
    "plain": (
        "effects that happened more than once, in handlers that insert on their own connection. Must be 0, except in "
        "rows marked *: see below"
    ),
    "order": "events of a FIFO queue whose effect happened after that of a later event of their group. Must be 0",
    "DLQ": "messages in the dead-letter queue. Must be 0, because no handler here fails permanently",
    "left": (
        "messages that are still in the queue (visible, in flight or delayed) and events that are still in the outbox "
        "two minutes after the fault. Must be 0"
    ),
    "kills": "processes killed with SIGKILL. Each was replaced",
    "faults": "calls to AWS and deliveries with an injected fault",
    "s": "duration in seconds, including the start and the end of the processes",
}


class Run(NamedTuple):
    """The options and the duration of a run."""

    seed: int
    size: RunSize
    lanes: int
    seconds: float


def format_figures(outcome: Outcome) -> list[str]:
    if outcome.error:
        return ["-"] * len(HEADINGS)
    scenario = outcome.scenario
    return [
        *map(str, [outcome.published, outcome.effects, outcome.missing]),
        str(outcome.doubled) if scenario.store == "postgres" else "-",
        f"{outcome.doubled_plain}*" if scenario.may_double else str(outcome.doubled_plain),
        str(outcome.out_of_order) if scenario.form == "fifo" else "-",
        *map(str, [outcome.dead_lettered, outcome.remaining, outcome.kills, outcome.faults]),
        f"{outcome.seconds:.0f}",
    ]


def format_name(outcome: Outcome) -> str:
    return f"{outcome.scenario.name}: not run" if outcome.error else outcome.scenario.name


def build_table(outcomes: Sequence[Outcome]) -> Table:
    """Build the table for the terminal. It fits into 100 columns."""
    table = Table(padding=(0, 0), caption="* may be more than 0: docs/delivery-guarantees.md explains why")
    table.add_column("scenario", ratio=1)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        table.add_row(format_name(outcome), *format_figures(outcome), style="red" if outcome.violations else None)
    return table


def build_page(outcomes: Sequence[Outcome], run: Run, servers: Mapping[str, str]) -> str:
    """Build the page as Markdown.

    Args:
        servers: The names and versions of the servers.
    """
    packages = ("ministack", "moto", "asyncpg", "redis", "aiobotocore")
    versions = {"smartpipe": __version__, **servers, **{name: version(name) for name in packages}}
    rows = ["| scenario | " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * len(HEADINGS)]
    rows += [f"| {format_name(outcome)} | " + " | ".join(format_figures(outcome)) + " |" for outcome in outcomes]
    violations = [
        f"- **{outcome.scenario.name}**: {', '.join(outcome.violations)}." for outcome in outcomes if outcome.violations
    ]
    marked = [
        _item(f"{outcome.scenario.name}: {_format_doubled(outcome)}.", "  ")
        for outcome in outcomes
        if outcome.scenario.may_double and not outcome.error
    ]
    return Template(PAGE.read_text()).substitute(
        seed=run.seed,
        events=run.size.events,
        lanes=run.lanes,
        minutes=f"{run.seconds / 60:.0f}",
        scenarios=len(outcomes),
        lease=LEASE_SECONDS,
        claimed=f"{max(MIN_LEASE_SECONDS, LEASE_SECONDS):.0f}",
        date=f"{datetime.now(UTC):%d %B %Y}",
        machine=f"{platform.system()} on {platform.machine()}",
        cores=os.cpu_count(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=fill(", ".join(f"{name} {number}" for name, number in versions.items()), 108),
        published=f"{sum(outcome.published for outcome in outcomes):,}",
        kills=sum(outcome.kills for outcome in outcomes),
        hindered=f"{sum(outcome.faults for outcome in outcomes):,}",
        ended=sum(len(outcome.unexpected_exits) for outcome in outcomes) or "no",
        rows="\n".join(rows),
        meanings="\n".join(_item(f"**{heading}**: {meaning}.") for heading, meaning in HEADINGS.items()),
        broken="\n".join(["## Failures in this run", "", *violations, "", ""]) if violations else "",
        marked="\n".join(marked),
    )


def _format_doubled(outcome: Outcome) -> str:
    return f"{outcome.doubled_plain} of {outcome.plain} effects ({outcome.scenario.may_double})"


def _item(text: str, indent: str = "") -> str:
    """Return a list item with lines of at most 120 characters."""
    first, rest = f"{indent}- ", f"{indent}  "
    return fill(text, 120, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)
