"""The table, for the terminal and for the documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.driver import Outcome

HEADINGS = ["events", "effects", "missing", "twice", "twice, plain", "dead", "stranded", "kills", "hindered", "s"]


def figures(outcome: Outcome) -> list[str]:
    plain = f"{outcome.twice_plain}*" if outcome.scenario.may_double else str(outcome.twice_plain)
    twice = "-" if outcome.scenario.store == "redis" else str(outcome.twice)
    counts = [outcome.published, outcome.effects, outcome.missing]
    rest = [outcome.dead, outcome.stranded, outcome.kills, outcome.hindered]
    return [*map(str, counts), twice, plain, *map(str, rest), f"{outcome.seconds:.0f}"]


def table(outcomes: Sequence[Outcome]) -> Table:
    """Make what the terminal shows; it fits 100 columns."""
    made = Table(padding=(0, 0), caption="* may be more than 0: see docs/delivery-guarantees.md")
    made.add_column("what happens", ratio=1)
    for heading in HEADINGS:
        made.add_column(heading, justify="right")
    for outcome in outcomes:
        style = "red" if outcome.broken else None
        made.add_row(outcome.scenario.name, *figures(outcome), style=style)
    return made


def page(outcomes: Sequence[Outcome], *, seed: int, events: int) -> str:
    """Write the document."""
    rows = ["| what happens | " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * len(HEADINGS)]
    rows += [f"| {outcome.scenario.name} | " + " | ".join(figures(outcome)) + " |" for outcome in outcomes]
    return "\n".join(["# Delivery guarantees", "", *rows, ""])
