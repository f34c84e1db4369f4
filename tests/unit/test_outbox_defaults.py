"""What an outbox asks of a connection, unless the caller says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.outbox import outbox
from tests.support.events import ADA

if TYPE_CHECKING:
    import pytest


async def test_an_event_is_written_in_a_transaction_unless_the_caller_allows_autocommit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed: list[bool] = []

    async def write(_connection: Any, _document: Any, *, autocommit: bool) -> None:
        allowed.append(autocommit)

    def write_blocking(_connection: Any, _document: Any, *, autocommit: bool) -> None:
        allowed.append(autocommit)

    monkeypatch.setattr(outbox, "write", write)
    monkeypatch.setattr(outbox, "write_blocking", write_blocking)
    box, connection = outbox.Outbox("shop"), object()
    await box.publish(ADA, connection=connection)  # type: ignore[arg-type]
    box.publish_blocking(ADA, connection=connection)  # type: ignore[arg-type]
    await box.publish(ADA, connection=connection, autocommit=True)  # type: ignore[arg-type]
    box.publish_blocking(ADA, connection=connection, autocommit=True)  # type: ignore[arg-type]

    assert allowed == [False, False, True, True]
