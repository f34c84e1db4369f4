"""Print the results of a run, and write them into docs/soak.md."""

from __future__ import annotations

import re
from textwrap import fill
from typing import TYPE_CHECKING

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.soak.flood import Flood
    from tests.soak.record import Record

PAGE = ROOT / "docs" / "soak.md"
PICTURE = ROOT / "docs" / "soak.svg"


def format_soak(record: Record) -> str:
    """Return the figures as a Markdown table with the machine above it."""
    longest = [f"{record.names[key]} {_describe_process(record, key)}" for key in record.spared]
    judged = record.growth
    young = [key for key in record.samples if key not in record.spared]
    grown = [judged[key].memory_bytes / 1e6 for key in young if key in judged]
    rows = {
        "events accepted by SNS, SQS or the outbox's transaction": f"{record.accepted:,}",
        "effects that they must have": f"{record.expected:,}",
        "**lost** effects. Must be 0": record.lost,
        "**doubled** effects of the two idempotent services. Must be 0": record.doubled,
        "repeated effects of the service without idempotency, which at least once permits": record.repeated,
        "effects out of order on the FIFO queue. Must be 0": record.out_of_order,
        "**stranded** messages and outbox rows, two minutes after the last disturbance. Must be 0": record.stranded,
        "poison messages sent": record.poison,
        "… that are not in a dead-letter queue with their reason. Must be 0": record.poison_lost,
        "… of which a dead-letter queue has another copy": record.poison_repeated,
        "good messages dead-lettered. Must be 0": record.good_dead_lettered,
        "internal errors in the logs. Must be 0": record.internal_errors,
        "workers and relays killed with SIGKILL": len(record.kills),
        "workers and relays stopped with SIGTERM (and those of them that returned messages: exit code 1)": (
            f"{record.drains} ({record.drains_with_1})"
        ),
        "disturbances of the broker or the database": len(record.disturbances),
        "calls and deliveries with an injected fault": f"{record.faults:,}",
        "processes that ended, and were replaced, because a fault met their start": len(record.failed_ends),
        "processes that live long enough to be judged, and their largest growth of memory": (
            f"{len(grown)} short-lived: {max(grown, default=0):+.1f} MB; {len(record.spared)} long-lived: "
            f"{max((judged[key].memory_bytes / 1e6 for key in record.spared if key in judged), default=0):+.1f} MB"
        ),
        "CPU of all processes together": f"{record.cpu_cores:.2f} cores",
    }
    table = ["| figure | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([_format_machine(record.machine), "", *table, "", *(f"- {line}" for line in longest)])


def _describe_process(record: Record, key: str) -> str:
    samples, growth = record.samples[key], record.growth.get(key)
    peak = max(sample.memory_bytes for sample in samples) / 1e6
    text = f"({key}): {samples[-1].memory_bytes / 1e6:.1f} MB at the end, {peak:.1f} MB at most, "
    text += f"{samples[-1].descriptors} descriptors"
    if growth is None:
        return text
    return f"{text}; grew by {growth.memory_bytes / 1e6:+.1f} MB and {growth.descriptors:+d} descriptors"


def format_flood(flood: Flood) -> str:
    """Return the figures as a paragraph."""
    low, high = (choose(sample.memory_bytes for sample in flood.samples) / 1e6 for choose in (min, max))
    text = (
        f"{flood.dead_lettered:,} of {flood.poison:,} poison messages were dead-lettered in {flood.seconds:.0f} s. The "
        f"worker had {flood.before / 1e6:.1f} MB after the first 15,000 to 25,000 messages and {flood.after / 1e6:.1f} "
        f"MB at the end ({low:.1f} to {high:.1f} MB over the whole run), and {flood.samples[-1].descriptors} file "
        f"descriptors. All of the {flood.checked} reasons that were read were right."
    )
    return "\n".join([_format_machine(flood.machine), "", fill(text, 120)])


def _format_machine(machine: Mapping[str, str]) -> str:
    return fill("Run: " + "; ".join(f"{name} {value}" for name, value in machine.items()) + ".", 120)


def write_section(name: str, text: str) -> None:
    """Replace the text between the two comments with this name."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = PAGE.read_text()
    written, count = re.subn(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", page, count=1, flags=re.DOTALL)
    assert count == 1, f"{PAGE} has no section {name}"
    PAGE.write_text(written)
