"""The short form of the crash matrix: ``make chaos`` is the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.driver import play
from tests.chaos.lanes import _play
from tests.chaos.report import Run, page
from tests.chaos.stand import Extent, Stand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.driver import Outcome

SHORT = Extent(events=24)


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with Stand() as found:
        yield found


def played(stand: Stand, key: str) -> Outcome:
    return play(stand, key, seed=1, extent=SHORT)


def test_workers_killed_before_and_after_their_commits_lose_nothing_and_double_nothing(stand: Stand) -> None:
    outcome = played(stand, "killed-at-both")

    assert outcome.broken == []
    assert outcome.kills == 2


def test_lost_replies_of_deletes_double_nothing(stand: Stand) -> None:
    outcome = played(stand, "delete-replies-lost")

    assert outcome.broken == []
    assert outcome.hindered > 0


def test_two_services_with_handlers_of_one_name_have_an_effect_each_of_every_event(stand: Stand) -> None:
    outcome = played(stand, "twins-delivered-twice")

    assert outcome.broken == []
    assert outcome.effects == 2 * outcome.published == outcome.wanted > 0
    assert outcome.hindered > 0


def test_a_relay_killed_while_publishing_loses_nothing_and_doubles_nothing(stand: Stand) -> None:
    outcome = played(stand, "relay-killed")

    assert outcome.broken == []
    assert outcome.kills == 2


def test_a_scenario_that_cannot_be_played_is_told_with_its_reason_and_is_no_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.chaos.lanes.Stand", NoServers)

    outcome = _play("copies", 1, SHORT)
    written = page([outcome], Run(seed=1, extent=SHORT, lanes=2, seconds=1), {})

    assert outcome.broken == ["not played: OSError: no port is free"]
    assert f"| {outcome.scenario.name}: not played | - |" in written
    assert f"- **{outcome.scenario.name}**: not played: OSError: no port is free." in written


class NoServers:
    def __enter__(self) -> None:
        raise OSError("no port is free")
