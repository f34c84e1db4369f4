"""Large bodies are written to their store before their messages are sent, and no more often than necessary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smartpipe.envelope.body_encoding import BodyEncoding, PayloadLocation
from smartpipe.envelope.object_store import MemoryObjectStore
from smartpipe.errors import TransportError
from smartpipe.message import Failure, OutgoingMessage, Payload
from smartpipe.payload_offload import PayloadOffload, reindex, split_failed

if TYPE_CHECKING:
    from collections.abc import Sequence

MEMORY = PayloadLocation("memory", "payloads", "")


class Counting(MemoryObjectStore):
    """Counts the objects that are written, and whether the store was closed."""

    def __init__(self) -> None:
        self.written: list[Payload] = []
        self.closed = 0

    async def put(self, payload: Payload) -> None:
        self.written.append(payload)
        await super().put(payload)

    async def aclose(self) -> None:
        self.closed += 1


async def accept(_: Sequence[OutgoingMessage]) -> list[Failure]:
    return []


def offloading(monkeypatch: pytest.MonkeyPatch) -> tuple[PayloadOffload, Counting, list[str]]:
    store, opened = Counting(), list[str]()

    def open_store(scheme: str) -> Counting:
        opened.append(scheme)
        return store

    monkeypatch.setattr("smartpipe.payload_offload.open_object_store", open_store)
    return PayloadOffload(BodyEncoding(claim_check=MEMORY)), store, opened


async def test_an_object_is_written_once_however_often_its_message_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    offload, store, opened = offloading(monkeypatch)
    messages = [OutgoingMessage("x", 1, payload=Payload(MEMORY.bucket, key, "text")) for key in "ab"]

    for _ in range(3):
        assert await offload.send(messages, accept) == []
    assert [payload.key for payload in store.written] == ["a", "b"]
    assert opened == ["memory"]

    await offload.aclose()
    assert store.closed == 1


async def test_a_process_remembers_the_last_ten_thousand_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.payload_offload.MAX_REMEMBERED", 3)
    offload, store, _ = offloading(monkeypatch)

    for key in "abcabcda":
        await offload.send([OutgoingMessage("x", 1, payload=Payload(MEMORY.bucket, key, "text"))], accept)

    assert "".join(payload.key for payload in store.written) == "abcda"


async def test_messages_without_payloads_open_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    offload, _, opened = offloading(monkeypatch)

    async def refuse(messages: Sequence[OutgoingMessage]) -> list[Failure]:
        return [Failure(len(messages) - 1, "No", "no", retryable=False)]

    assert await offload.send([OutgoingMessage("a", 1)] * 2, refuse) == [Failure(1, "No", "no", retryable=False)]
    assert opened == []
    await offload.aclose()


@pytest.mark.parametrize(("given", "bucket", "expected"), [
    (None, "bodies", "111111111111"), (None, "other", None), ("222222222222", "bodies", "222222222222"),
])  # fmt: skip
async def test_the_owner_of_the_configured_bucket_is_that_of_payloads_without_one(
    given: str | None, bucket: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store, _ = offloading(monkeypatch)
    offload = PayloadOffload(BodyEncoding(claim_check=PayloadLocation("memory", "bodies", "", "111111111111")))

    await offload.send([OutgoingMessage("x", 1, payload=Payload(bucket, "a", "text", given))], accept)

    assert [payload.owner for payload in store.written] == [expected]


def test_failures_of_payloads_and_of_the_messages_sent_have_positions_among_all_messages() -> None:
    error, lasting = (TransportError("X", "why", retryable=retryable) for retryable in (True, False))

    written, failed = split_failed([None, error, None, lasting, None])

    assert written == [0, 2, 4]
    assert failed == [
        Failure(1, "PayloadNotPut", "why", retryable=True),
        Failure(3, "PayloadNotPut", "why", retryable=False),
    ]
    refused = [Failure(0, "A", "a", retryable=True), Failure(2, "B", "b", retryable=False)]
    assert reindex(refused, written) == [Failure(0, "A", "a", retryable=True), Failure(4, "B", "b", retryable=False)]
