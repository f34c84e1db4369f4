"""Tables and buckets that exist already, because another process created them at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from smartpipe import TransportError
from smartpipe.topology.aws import storage
from smartpipe.topology.changes import Change
from smartpipe.topology.resources import TAGS

if TYPE_CHECKING:
    from types import SimpleNamespace


class Session:
    """A session whose DynamoDB refuses to create a table."""

    def __init__(self, code: str) -> None:
        self._code = code

    async def client(self, _: str) -> Session:
        return self

    async def create_table(self, **_: Any) -> SimpleNamespace:
        raise ClientError({"Error": {"Code": self._code, "Message": "no"}}, "CreateTable")


@pytest.mark.parametrize(("code", "updated"), [("ResourceInUseException", True), ("LimitExceededException", False)])
async def test_a_table_that_another_process_has_just_created_is_updated(
    monkeypatch: pytest.MonkeyPatch, code: str, updated: bool
) -> None:
    changes: list[Change] = []

    async def update(_: Any, change: Change) -> None:
        changes.append(change)

    monkeypatch.setattr(storage, "update_table", update)
    table = "arn:aws:dynamodb:eu-west-1:123456789012:table/claims"
    change = Change("create", "table", (table,), {TAGS: {}}, {})

    try:
        await storage.create_table(Session(code), change)  # type: ignore[arg-type]
    except TransportError as error:
        assert not updated
        assert error.code == code  # noqa: PT017 - which of the two happens is what is tested
    assert changes == ([change] if updated else [])
