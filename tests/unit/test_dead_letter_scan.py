"""A scan of a dead-letter queue, call by call, and the limits of the readable parts of its messages."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Queue, Service
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.dlq.messages import Selection, existed_before, preview, read_message
from smartpipe.dlq.processed import ProcessedEvent, ProcessedEvents
from smartpipe.dlq.redrive import Purge, Redrive, RemovalResult, Remover, ScanResult, scan
from smartpipe.dlq.scan import Scan
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.compression import compress
from smartpipe.errors import TransportError
from smartpipe.idempotency.claims import MAX_CLAIMS, Claims
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.message import Attribute, Message
from tests.support.bodies import body_of
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport, refused, throttled
from tests.support.virtual_time import put_retries_on_virtual_time, run_virtually

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = ProcessedEvents((), None)


class Scripted(FakeTransport):
    """Answers each receive call with the next messages, and then with none."""

    def __init__(self, *batches: Sequence[Message]) -> None:
        super().__init__()
        self.left = list(batches)
        self.options: list[dict[str, Any]] = []
        self.running = self.highest = 0

    async def receive(self, queue: str, **options: Any) -> list[Message]:
        self.options.append({"queue": queue, **options})
        await self._answer("receive", queue, [])
        return list(self.left.pop(0)) if self.left else []

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Any]:
        self.running += 1
        self.highest = max(self.highest, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        return await super().change_visibility(queue, leases)


def messages(*numbers: int, receipt: str = "r") -> list[Message]:
    return [Message(f"m{number}", f"{receipt}{number}", "no event", sent_at=1_000.0) for number in numbers]


def names(dead_letters: Sequence[Any]) -> list[str]:
    return [one.name for one in dead_letters]


def test_a_scan_receives_with_a_long_poll_and_returns_its_messages_at_the_end() -> None:
    async def main() -> None:
        transport = Scripted(messages(1, 2), messages(3))
        async with Scan(transport, "dead", lease_seconds=30.0) as one:
            assert names(await one.next()) == ["m1", "m2"]
            assert names(await one.next(5)) == ["m3"]
            assert await one.next() == []
            assert transport.batches("change_visibility") == []
        assert [call["max_messages"] for call in transport.options] == [10, 5, 10]
        assert transport.options[0] == {
            "queue": "dead", "max_messages": 10, "wait_seconds": 1, "visibility_timeout_seconds": 30.0,
        }  # fmt: skip
        assert transport.entries("change_visibility") == [("r1", 0.0), ("r2", 0.0), ("r3", 0.0)]
        await one.__aexit__(None, None, None)
        assert len(transport.entries("change_visibility")) == 3

    run_virtually(main())


def test_messages_are_returned_ten_by_ten_in_at_most_eight_calls_at_once() -> None:
    async def main() -> None:
        transport = Scripted(*([messages(*range(start, start + 10)) for start in range(0, 100, 10)]), messages(100))
        async with Scan(transport, "dead", lease_seconds=30.0) as one:
            while await one.next():
                pass
        assert sorted(transport.batches("change_visibility")) == [1] + [10] * 10
        assert transport.highest == 8

    run_virtually(main())


@pytest.mark.parametrize(("stale", "found"), [(19, ["m2"]), (20, [])])
def test_a_scan_ends_after_twenty_calls_that_bring_no_new_message(stale: int, found: list[str]) -> None:
    async def main() -> None:
        transport = Scripted(messages(1), *([messages(1, receipt="again")] * stale), messages(2))
        async with Scan(transport, "dead", lease_seconds=30.0) as one:
            await one.next()
            assert names(await one.next()) == found
        assert ("again1", 0.0) in transport.entries("change_visibility")

    run_virtually(main())


def test_a_message_that_returns_after_its_delete_is_deleted_again_and_not_shown() -> None:
    async def main() -> None:
        transport = Scripted(messages(1, 2), [*messages(1, receipt="again"), *messages(3)])
        async with Scan(transport, "dead", lease_seconds=30.0) as one:
            first, _ = await one.next()
            await one.delete([first])
            assert names(await one.next()) == ["m3"]
        assert transport.entries("delete") == ["r1", "again1"]
        assert transport.entries("change_visibility") == [("r2", 0.0), ("r3", 0.0)]
        assert one.not_deleted == []

    run_virtually(main())


def test_a_message_that_could_not_be_deleted_is_reported_until_a_later_delete_succeeds() -> None:
    async def main() -> None:
        transport = Scripted(messages(1, 2), messages(2, receipt="again"))
        transport.script["delete"].append([refused(0), refused(1)])
        async with Scan(transport, "dead", lease_seconds=30.0) as one:
            await one.delete(await one.next())
            assert [dead_letter.name for dead_letter, _ in one.not_deleted] == ["m1", "m2"]
            assert await one.next() == []
        assert [(dead_letter.name, failure.code) for dead_letter, failure in one.not_deleted] == [
            ("m1", "InvalidMessageContents")
        ]

    run_virtually(main())


def test_an_unreachable_queue_is_asked_for_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    put_retries_on_virtual_time(monkeypatch)

    async def main() -> float:
        transport = Scripted()
        transport.script["receive"].extend([UNREACHABLE] * 10_000)
        async with Scan(transport, "dead", lease_seconds=30.0) as one:
            with pytest.raises(TransportError):
                await one.next()
        return asyncio.get_running_loop().time()

    assert 10 <= run_virtually(main()) <= 15


def test_a_throttled_delete_and_return_are_repeated() -> None:
    async def main() -> None:
        transport = Scripted(messages(1, 2))
        transport.script["delete"].append([throttled(0)])
        transport.script["change_visibility"].append([throttled(0)])
        async with Scan(transport, "dead", lease_seconds=30.0) as one:
            await one.delete((await one.next())[:1])
        assert transport.entries("delete") == ["r1", "r1"]
        assert transport.entries("change_visibility") == [("r2", 0.0), ("r2", 0.0)]
        assert one.not_deleted == []

    run_virtually(main())


@pytest.mark.parametrize(
    ("limit", "selected", "others", "receives", "complete"),
    [(None, 3, 1, 3, True), (2, 2, 1, 1, True), (3, 3, 1, 2, True), (4, 3, 1, 3, True)],
)
def test_a_scan_counts_up_to_its_limit(
    limit: int | None, selected: int, others: int, receives: int, complete: bool
) -> None:
    async def main() -> tuple[ScanResult, Scripted]:
        transport = Scripted([*messages(1, 2), Message("other", "r", "", sent_at=None)], messages(3))
        selection = Selection(ids=("m1", "m2", "m3"), limit=limit)
        return await scan(transport, Queue("q"), selection, NOTHING, asyncio.Event()), transport

    found, transport = run_virtually(main())

    assert (found.selected.total(), found.others.total()) == (selected, others)
    assert len(transport.options) == receives
    assert found.complete == complete
    assert transport.options[0]["queue"] == "q-dlq"
    assert transport.options[0]["visibility_timeout_seconds"] == 120.0


@pytest.mark.parametrize(("limit", "complete"), [(None, False), (2, False), (1, True)])
def test_a_scan_of_a_fifo_queue_is_complete_only_at_its_limit(limit: int | None, complete: bool) -> None:
    async def main() -> ScanResult:
        return await scan(
            Scripted(messages(1)), Queue("q", fifo=True), Selection(limit=limit), NOTHING, asyncio.Event()
        )

    assert run_virtually(main()).complete == complete


def test_a_scan_includes_messages_that_were_sent_after_its_begin() -> None:
    async def main() -> ScanResult:
        late = [Message("m", "r", "", sent_at=9e9), Message("n", "s", "", sent_at=None)]
        return await scan(Scripted(late), Queue("q"), Selection(), NOTHING, asyncio.Event())

    assert run_virtually(main()).until == 9e9


def test_a_scan_that_is_stopped_receives_nothing() -> None:
    async def main() -> Scripted:
        stop, transport = asyncio.Event(), Scripted(messages(1))
        stop.set()
        found = await scan(transport, Queue("q"), Selection(), NOTHING, stop)
        assert found.selected.total() == 0
        return transport

    assert run_virtually(main()).options == []


def scanned(count: int, *, complete: bool = True) -> ScanResult:
    return ScanResult(Counter({("", "none"): count}), Counter(), 0, 0, 0, 1_000.0, complete, 1.0)


def removed(
    transport: Scripted, found: ScanResult, selection: Selection, **options: Any
) -> tuple[RemovalResult, float]:
    async def main() -> tuple[RemovalResult, float]:
        result = RemovalResult()
        rate = options.get("rate")
        remover = Remover(transport, Queue("q"), rate_per_second=rate, stop=asyncio.Event(), on_progress=lambda _: None)
        await remover.remove(found, selection, Purge(), result)
        return result, asyncio.get_running_loop().time()

    return run_virtually(main())


@pytest.mark.parametrize(
    ("found", "limit", "done", "receives"),
    [
        (scanned(2), None, 2, 1),
        (scanned(2, complete=False), None, 3, 3),
        (scanned(3), 1, 1, 1),
        (scanned(3), 2, 2, 1),
        (scanned(3), 3, 3, 2),
        (scanned(0), None, 0, 0),
    ],
)
def test_a_removal_ends_with_the_scanned_messages_or_at_the_limit(
    found: ScanResult, limit: int | None, done: int, receives: int
) -> None:
    transport = Scripted(messages(1, 2), messages(3))

    result, _ = removed(transport, found, Selection(limit=limit))

    assert (result.done, len(transport.entries("delete")), result.interrupted) == (done, done, False)
    assert len(transport.options) == receives


def test_messages_that_were_sent_after_the_scan_stay() -> None:
    late = [Message("new", "r9", "", sent_at=1_000.5), *messages(1)]

    result, _ = removed(Scripted(late), scanned(5), Selection())

    assert result.done == 1


def test_a_rate_below_one_waits_between_two_messages() -> None:
    result, seconds = removed(Scripted(messages(1, 2, 3)), scanned(3), Selection(), rate=0.1)

    assert result.done == 3
    assert 20 <= seconds < 21


def test_the_total_of_a_result_counts_each_message_once() -> None:
    failed: Any = [("one", None)]

    assert RemovalResult(done=2, skipped=3, failed=failed, not_deleted=failed).total == 6
    assert RemovalResult() == RemovalResult(0, 0, [], [], False)


async def test_a_forced_redrive_sends_what_was_handled_before() -> None:
    class Known:
        forgotten: int = 0

        async def look_up(self, found: Sequence[Any]) -> list[ProcessedEvent]:
            return [ProcessedEvent(1, ("key",)) for _ in found]

        async def forget(self, events: Sequence[ProcessedEvent]) -> None:
            self.forgotten += len(events)

    for force in (False, True):
        known: Any = Known()
        result, transport = RemovalResult(), FakeTransport()
        sent = await Redrive(transport, Queue("q"), known, force=force).apply(
            list(map(read_message, messages(1, 2))), result
        )
        assert (len(sent), result.done, result.skipped, known.forgotten) == ((2, 2, 0, 2) if force else (0, 0, 2, 0))
        assert len(transport.entries("send")) == result.done


@pytest.mark.parametrize(
    ("handlers", "completed", "by_all"),
    [(0, (), False), (1, (), False), (1, ("a",), True), (2, ("a",), False), (2, ("a", "b"), True)],
)
def test_an_event_was_handled_by_all_its_handlers_if_it_has_any(
    handlers: int, completed: tuple[str, ...], by_all: bool
) -> None:
    assert ProcessedEvent(handlers, completed).by_all_handlers is by_all


class Store(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.forgotten: list[list[str]] = []

    async def read(self, keys: Sequence[str]) -> list[Any]:
        self.reads.append(len(keys))
        return await super().read(keys)

    async def forget(self, keys: Sequence[str]) -> None:
        self.forgotten.append(list(keys))


async def test_the_store_is_asked_for_a_limited_number_of_claims_at_once() -> None:
    service, store = Service("mailer"), Store()

    @service.subscribe(UserSignedUp, idempotent=True)
    async def send(event: UserSignedUp) -> None: ...

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None: ...

    known = ProcessedEvents(service.handlers, Claims(store))
    count = MAX_CLAIMS + 1
    bodies = [encode(wrap(ADA, source="s", event_id=f"e{number}")) for number in range(count)]
    found = await known.look_up([read_message(Message("m", "r", body)) for body in bodies])

    assert store.reads == [MAX_CLAIMS, 1]
    assert found == [ProcessedEvent(1)] * count
    others = [encode(wrap(UserLeft(name="Ada"), source="s")), "no event"]
    assert await known.look_up([read_message(Message("m", "r", body)) for body in others]) == [
        ProcessedEvent(1),
        ProcessedEvent(0),
    ]
    await known.forget([ProcessedEvent(1, ("a",)), ProcessedEvent(2), ProcessedEvent(2, ("b", "c"))])
    assert store.forgotten == [["a", "b", "c"]]
    await known.aclose()


async def test_without_idempotent_handlers_nothing_is_known() -> None:
    assert await NOTHING.look_up(list(map(read_message, messages(1, 2)))) == [ProcessedEvent()] * 2
    await NOTHING.forget([ProcessedEvent(1, ("a",))])


@pytest.mark.parametrize(("sent_at", "existed"), [(1_000.0, True), (1_000.1, False), (None, True)])
def test_a_message_existed_if_it_was_sent_by_then(sent_at: float | None, existed: bool) -> None:
    assert existed_before(read_message(Message("m", "r", "", sent_at=sent_at)), 1_000.0) is existed


@pytest.mark.parametrize(
    ("selection", "filters"),
    [
        (Selection(), False),
        (Selection(limit=1), False),
        (Selection(types=("a",)), True),
        (Selection(reasons=("a",)), True),
        (Selection(ids=("a",)), True),
        (Selection(sent_before=0.0), True),
    ],
)
def test_a_limit_is_not_a_filter(selection: Selection, filters: bool) -> None:
    assert selection.has_filters is filters


@pytest.mark.parametrize("more", [0, 1])
def test_a_body_is_decompressed_up_to_four_megabytes(more: int) -> None:
    frame = body_of('{"anything":""}')
    body = frame.replace('""', json.dumps("x" * (4_194_304 - len(frame) + more)))
    attributes = {"content-encoding": Attribute("String", "gzip")}

    found = read_message(Message("m", "r", compress(body, "gzip"), attributes=attributes))

    assert (found.event_type is None) == bool(more)


@pytest.mark.parametrize("count", [65_000, 65_536])
def test_data_with_many_objects_is_shown_as_text(count: int) -> None:
    body = body_of('{"anything":[' + ",".join(["{}"] * count) + "]}")

    is_text = preview(Message("m", "r", body), 30) == body[:30]

    assert is_text == (count > 65_000)


def test_the_error_of_a_message_has_the_type_without_the_module_of_python() -> None:
    reason = {"kind": "rejected", "error_type": "shop.errors.Closed", "message": "no"}
    attributes = {REASON_ATTRIBUTE: Attribute("String", json.dumps(reason))}

    assert read_message(Message("m", "r", "", attributes=attributes)).error == "shop.errors.Closed: no"
