"""The short form of the crash matrix: ``make chaos`` is the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.driver import play
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stand import Extent, Stand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.driver import Outcome

BY_KEY = {scenario.key: scenario for scenario in SCENARIOS}
SHORT = Extent(events=24)


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with Stand() as found:
        yield found


def played(stand: Stand, key: str) -> Outcome:
    return play(stand, BY_KEY[key], seed=1, extent=SHORT)


def test_workers_killed_before_and_after_their_commits_lose_nothing_and_double_nothing(stand: Stand) -> None:
    outcome = played(stand, "killed-at-both")

    assert outcome.broken == []
    assert outcome.kills == 2


def test_lost_replies_of_deletes_double_nothing(stand: Stand) -> None:
    outcome = played(stand, "delete-replies-lost")

    assert outcome.broken == []
    assert outcome.hindered > 0


def test_a_relay_killed_while_publishing_loses_nothing_and_doubles_nothing(stand: Stand) -> None:
    outcome = played(stand, "relay-killed")

    assert outcome.broken == []
    assert outcome.kills == 2
