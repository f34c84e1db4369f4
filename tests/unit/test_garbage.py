from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from smartpipe.worker.garbage import THRESHOLD, spare_collections

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_a_workers_process_collects_less_often() -> None:
    gc.set_threshold(700, 10, 10)

    spare_collections()
    frozen = gc.get_freeze_count()
    spare_collections()

    assert gc.get_threshold() == (THRESHOLD, 10, 10)
    assert frozen > 0
    assert gc.get_freeze_count() <= frozen


def test_whoever_has_set_the_collector_is_left_alone() -> None:
    gc.set_threshold(50_000, 5, 5)

    spare_collections()

    assert gc.get_threshold() == (50_000, 5, 5)
