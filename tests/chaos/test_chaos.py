"""Some scenarios of the crash matrix, with few events. ``make chaos`` runs all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.pool import _run
from tests.chaos.report import Run, build_page
from tests.chaos.runner import run_scenario
from tests.chaos.servers import RunSize, Servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.runner import Outcome

SHORT = RunSize(events=24)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


def run(servers: Servers, key: str) -> Outcome:
    return run_scenario(servers, key, seed=1, size=SHORT)


def test_workers_killed_before_and_after_their_commits_lose_and_double_no_effect(servers: Servers) -> None:
    outcome = run(servers, "killed-at-both")

    assert outcome.violations == []
    assert outcome.kills == 2


def test_lost_replies_to_deletes_double_no_effect(servers: Servers) -> None:
    outcome = run(servers, "delete-replies-lost")

    assert outcome.violations == []
    assert outcome.faults > 0


def test_two_services_with_handlers_of_the_same_name_each_have_the_effect_of_every_event(servers: Servers) -> None:
    outcome = run(servers, "twins-delivered-twice")

    assert outcome.violations == []
    assert outcome.effects == 2 * outcome.published == outcome.expected > 0
    assert outcome.faults > 0


def test_a_relay_killed_while_publishing_loses_and_doubles_no_event(servers: Servers) -> None:
    outcome = run(servers, "relay-killed")

    assert outcome.violations == []
    assert outcome.kills == 2


def test_a_scenario_that_cannot_be_run_is_reported_as_a_failure_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.chaos.pool.Servers", NoServers)

    outcome = _run("copies", 1, SHORT)
    written = build_page([outcome], Run(seed=1, size=SHORT, lanes=2, seconds=1), {})

    assert outcome.violations == ["not run: OSError: no port is free"]
    assert f"| {outcome.scenario.name}: not run | - |" in written
    assert f"- **{outcome.scenario.name}**: not run: OSError: no port is free." in written


class NoServers:
    def __enter__(self) -> None:
        raise OSError("no port is free")
