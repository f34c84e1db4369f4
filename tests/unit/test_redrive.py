"""Scans, redrives and purges of dead-letter queues, on the memory transport and on scripted ones."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Queue, RetryPolicy, Service, TransportError
from smartpipe.batching.resend import _TOO_LATE
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE, FailedDelivery, copy_with_reason
from smartpipe.consumer.decide import DeadLetter
from smartpipe.dlq.messages import Selection, preview
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.dlq.redrive import LEASE_SECONDS, Purge, Redrive, RemovalResult, Remover, ScanResult, scan
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.object_store import put_in_memory
from smartpipe.envelope.pointer import write_pointer
from smartpipe.errors import StoreError
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.store import Claim
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.limits import MAX_ATTRIBUTES
from smartpipe.message import Attribute, Failure, Message, OutgoingMessage, Payload
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from tests.support.events import OrderPlaced, Paid, UserLeft
from tests.support.fakes import FakeTransport, refused, throttled
from tests.support.forgeries import FORGED
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from smartpipe import Event, Transport
    from smartpipe.envelope import Envelope
    from smartpipe.idempotency.store import ClaimState

EVERYTHING = Selection()


def billing(*, idempotent: bool = False) -> Service:
    service = Service("billing", retry=RetryPolicy(attempts=1))

    @service.subscribe(OrderPlaced, idempotent=idempotent)
    async def bill(event: OrderPlaced) -> None: ...

    @service.subscribe(UserLeft)
    async def close(event: UserLeft) -> None: ...

    return service


def bookkeeping() -> Service:
    service = Service("books", queue=Queue("books", fifo=True))

    @service.subscribe(Paid)
    async def book(event: Paid) -> None: ...

    return service


def order(number: int) -> OrderPlaced:
    return OrderPlaced(order_id=f"o{number}")


class DeadLetterQueue:
    """The queues of a service in memory, with scans, redrives and purges of the dead-letter queue."""

    def __init__(self, service: Service, transport: Transport | None = None, store: MemoryStore | None = None) -> None:
        self.service = service
        self.queue = service.queue
        self.memory = MemoryTransport()
        self.memory.apply(derive([service], NAMING))
        self.transport = transport or self.memory
        self.processed_events = ProcessedEvents(service.handlers, None if store is None else Claims(store))
        self.stop = asyncio.Event()
        self.progress: list[int] = []
        self._numbers = count()

    async def dead_letter(self, *events: Event, error: Exception | None = None) -> list[Envelope]:
        """Put events into the dead-letter queue, as a worker does."""
        envelopes = [wrap(event, source="shop") for event in events]
        for number, envelope in enumerate(envelopes):
            message = Message(f"{envelope.id}-{number}", "r", encode(envelope), group_id=envelope.key)
            where = FailedDelivery(self.service.name, self.queue.name, "bill", envelope)
            copy = copy_with_reason(message, DeadLetter("retries-exhausted", error or ValueError("no")), where)
            await self.send_dead(copy)
        return envelopes

    async def send_dead(self, copy: OutgoingMessage) -> None:
        if self.queue.fifo:
            copy = copy._replace(deduplication_id=f"dead-{next(self._numbers)}")
        assert await self.memory.send(self.queue.dead_letter_name, [copy]) == []

    async def scan(self, selection: Selection = EVERYTHING) -> ScanResult:
        return await scan(self.transport, self.queue, selection, self.processed_events, self.stop)

    async def redrive(
        self, selection: Selection = EVERYTHING, *, rate: float | None = None, force: bool = False
    ) -> RemovalResult:
        scanned = await self.scan(selection)
        return await self.remove(
            scanned, selection, Redrive(self.transport, self.queue, self.processed_events, force=force), rate
        )

    async def remove(
        self, scanned: ScanResult, selection: Selection, action: Redrive | Purge, rate: float | None = None
    ) -> RemovalResult:
        result = RemovalResult()
        remover = Remover(
            self.transport,
            self.queue,
            rate_per_second=rate,
            stop=self.stop,
            on_progress=lambda result: self.progress.append(result.done),
        )
        await remover.remove(scanned, selection, action, result)
        return result

    @property
    def remaining(self) -> list[str]:
        return [stored.content.body for stored in self.memory.queue(self.queue.dead_letter_name).contents()]

    @property
    def moved(self) -> list[OutgoingMessage]:
        return [stored.content for stored in self.memory.queue(self.queue.name).contents()]

    @property
    def dead_depth(self) -> tuple[int, int]:
        depth = self.memory.queue(self.queue.dead_letter_name).depth
        return depth.visible, depth.in_flight


def virtually(main: Coroutine[Any, Any, None]) -> None:
    run_virtually(main)


def test_messages_return_as_they_were_before_and_with_the_same_event_id() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        envelopes = await dlq.dead_letter(*map(order, range(25)))

        result = await dlq.redrive()

        assert result == RemovalResult(done=25)
        assert sorted(message.body for message in dlq.moved) == sorted(map(encode, envelopes))
        assert all(REASON_ATTRIBUTE not in message.attributes for message in dlq.moved)
        assert dlq.remaining == []
        assert dlq.progress == [10, 20, 25]

    virtually(main())


def test_the_attribute_that_was_replaced_by_the_reason_is_restored() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        attributes = {f"a{n}": Attribute("String", str(n)) for n in range(MAX_ATTRIBUTES - 1)}
        attributes["z"] = Attribute("Binary.png", b"\x00\x01")
        message = Message("m1", "r1", "not JSON", attributes=attributes)
        copy = copy_with_reason(
            message, DeadLetter("not-json", ValueError("no")), FailedDelivery("billing", "billing", None, None)
        )
        assert len(copy.attributes) == MAX_ATTRIBUTES
        assert "z" not in copy.attributes
        await dlq.send_dead(copy)

        await dlq.redrive()

        assert [message.attributes for message in dlq.moved] == [attributes]

    virtually(main())


def test_a_scan_counts_the_messages_and_returns_them_immediately() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(order(1), order(2), UserLeft(name="Ada"))

        scanned = await dlq.scan(Selection(types=("order.placed",)))

        assert scanned.selected == {("order.placed", "retries-exhausted"): 2}
        assert scanned.others == {("user.left", "retries-exhausted"): 1}
        assert scanned.complete
        assert dlq.dead_depth == (3, 0)

    virtually(main())


def test_messages_that_are_not_selected_stay_and_can_be_received_immediately() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(15)), error=ValueError("no"))
        await dlq.dead_letter(*map(order, range(100, 130)), error=ConnectionError("the bank is closed"))

        result = await dlq.redrive(Selection(reasons=("bank",)))

        assert result.done == 30
        assert dlq.dead_depth == (15, 0)

    virtually(main())


def test_no_more_than_the_limit_are_moved_and_the_others_return_to_the_queue() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(30)))

        result = await dlq.redrive(Selection(limit=13))

        assert result.done == 13
        assert dlq.dead_depth == (17, 0)

    virtually(main())


def test_the_rate_limit_is_kept_and_a_redrive_can_be_stopped_in_the_middle() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(30)))
        clock = asyncio.get_running_loop().time
        began = clock()
        asyncio.get_running_loop().call_later(12, dlq.stop.set)

        result = await dlq.redrive(rate=2)

        assert result.interrupted
        assert 12 <= clock() - began < 14
        assert 18 <= result.done <= 26
        assert len(dlq.moved) == result.done
        assert dlq.dead_depth == (30 - result.done, 0)

    virtually(main())


def test_a_message_with_a_forged_reason_does_not_stop_a_redrive() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing(idempotent=True), store=MemoryStore())
        await dlq.dead_letter(*map(order, range(3)))
        for reason in FORGED.values():
            body = encode(wrap(order(9), source="shop"))
            attributes = {REASON_ATTRIBUTE: Attribute("String", reason)}
            await dlq.send_dead(OutgoingMessage(body, len(body), attributes))

        moved = await dlq.redrive()

        assert (moved.done, moved.failed, moved.not_deleted) == (3 + len(FORGED), [], [])
        assert all(REASON_ATTRIBUTE not in message.attributes for message in dlq.moved)

    virtually(main())


def test_a_message_that_returns_during_a_redrive_is_not_moved_again() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(5)))
        scanned = await dlq.scan()

        class Boomerang(Redrive):
            """Whatever is moved fails again at once."""

            async def apply(self, dead_letters: Any, result: RemovalResult) -> Any:
                removed = await super().apply(dead_letters, result)
                await asyncio.sleep(1)
                await dlq.dead_letter(
                    *(order(int(json.loads(preview(one.message, 1_000))["order_id"][1:])) for one in removed)
                )
                return removed

        action = Boomerang(dlq.transport, dlq.queue, dlq.processed_events, force=False)
        result = await dlq.remove(scanned._replace(complete=False), EVERYTHING, action)

        assert result.done == 5
        assert dlq.dead_depth == (5, 0)

    virtually(main())


def test_a_fifo_queue_is_moved_group_by_group_in_order_though_a_scan_sees_only_the_first() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(bookkeeping())
        await dlq.dead_letter(*(Paid(account=f"a{n % 2}", number=n) for n in range(40)))

        scanned = await dlq.scan()
        result = await dlq.redrive()

        assert not scanned.complete
        assert scanned.selected.total() < 40
        assert result.done == 40
        for account in ("a0", "a1"):
            bodies = [message.body for message in dlq.moved if message.group_id == account]
            numbers = [int(body.rpartition('"number":')[2].rstrip("}")) for body in bodies]
            assert numbers == sorted(numbers)
        assert dlq.remaining == []

    virtually(main())


def test_a_move_repeated_within_five_minutes_has_the_same_deduplication_id() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(bookkeeping())
        await dlq.dead_letter(Paid(account="a", number=1))
        scanned = await dlq.scan()
        dlq.memory.delete = losing  # type: ignore[method-assign]

        first = await dlq.remove(scanned, EVERYTHING, Redrive(dlq.memory, dlq.queue, dlq.processed_events, force=False))
        del dlq.memory.delete
        await asyncio.sleep(LEASE_SECONDS)
        second = await dlq.redrive()

        assert (len(first.not_deleted), second.done) == (1, 1)
        assert len(dlq.moved) == 1
        assert dlq.remaining == []

    async def losing(queue: str, receipts: Sequence[str]) -> list[Failure]:
        raise TransportError("ReadTimeoutError", "no answer", retryable=True)

    virtually(main())


def test_an_event_that_fails_again_is_moved_again_within_five_minutes() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(bookkeeping())
        [envelope] = await dlq.dead_letter(Paid(account="a", number=1))
        await dlq.redrive()
        [moved] = await dlq.memory.receive("books.fifo", max_messages=1, wait_seconds=0, visibility_timeout_seconds=30)
        await dlq.memory.delete("books.fifo", [moved.receipt_handle])
        outcome = DeadLetter("retries-exhausted", ValueError("again"))
        await dlq.send_dead(copy_with_reason(moved, outcome, FailedDelivery("books", "books.fifo", None, envelope)))

        result = await dlq.redrive()

        assert result.done == 1
        assert len(dlq.moved) == 1

    virtually(main())


def test_a_group_stops_at_a_message_that_cannot_be_sent_and_other_groups_continue() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(bookkeeping())
        await dlq.dead_letter(*(Paid(account=f"a{n % 2}", number=n) for n in range(6)))
        send = dlq.memory.send

        async def picky(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            bad = [index for index, message in enumerate(messages) if '"number":2}' in message.body]
            return [refused(index) for index in bad] or await send(queue, messages)

        dlq.memory.send = picky  # type: ignore[method-assign]

        result = await dlq.redrive()

        failures = [(failure.code, failure.retryable) for _, failure in result.failed]
        assert failures == [("InvalidMessageContents", False), ("GroupStopped", True)]
        assert [message.group_id for message in dlq.moved].count("a1") == 3
        assert [message.group_id for message in dlq.moved].count("a0") == 1
        assert dlq.dead_depth == (2, 0)

    virtually(main())


def test_when_nothing_can_be_sent_it_gives_up_after_three_batches() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(60)))

        async def gone(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            raise TransportError("QueueDoesNotExist", "queue 'billing' does not exist", retryable=False)

        dlq.memory.send = gone  # type: ignore[method-assign]

        result = await dlq.redrive()

        assert len(result.failed) == 30
        assert dlq.dead_depth == (60, 0)

    virtually(main())


def test_it_does_not_give_up_while_every_third_batch_is_sent() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(90)))
        send, batches = dlq.memory.send, count(1)

        async def sometimes(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            if next(batches) % 3:
                raise TransportError("QueueDoesNotExist", "queue 'billing' does not exist", retryable=False)
            return await send(queue, messages)

        dlq.memory.send = sometimes  # type: ignore[method-assign]

        result = await dlq.redrive()

        assert (result.done, len(result.failed)) == (30, 60)
        assert dlq.dead_depth == (60, 0)

    virtually(main())


def test_throttled_messages_are_sent_again_and_only_sent_messages_are_deleted() -> None:
    async def main() -> None:
        transport = FakeTransport()
        dlq = DeadLetterQueue(billing(), transport)
        transport.put(order(1), order(2), order(3))
        scanned = ScanResult(*(await dlq.scan())[:-2], complete=True, seconds=0)
        transport.put(order(1), order(2), order(3))
        transport.script["send"].extend([[throttled(0), refused(2)], []])

        result = await dlq.remove(scanned, EVERYTHING, Redrive(transport, dlq.queue, dlq.processed_events, force=False))

        assert (result.done, len(result.failed)) == (2, 1)
        assert transport.batches("send") == [3, 1]
        assert transport.entries("delete") == ["r4", "r5"]
        assert ("r6", 0.0) in transport.entries("change_visibility")

    virtually(main())


def test_a_failed_delete_is_reported_and_the_message_is_not_moved_twice_by_the_same_scan() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(order(1), order(2))
        scanned = await dlq.scan()
        delete, failures = dlq.memory.delete, iter([[Failure(0, "InternalError", "oops", retryable=False)]])

        async def faulty(queue: str, receipts: Sequence[str]) -> list[Failure]:
            return next(failures, None) or await delete(queue, receipts)

        dlq.memory.delete = faulty  # type: ignore[method-assign]
        result = await dlq.remove(
            scanned._replace(complete=False),
            EVERYTHING,
            Redrive(dlq.memory, dlq.queue, dlq.processed_events, force=False),
        )

        assert result.done == 2
        assert len(dlq.moved) == 2
        assert [failure.code for _, failure in result.not_deleted] == ["InternalError"]

    virtually(main())


def test_a_failed_delete_is_repeated_when_the_message_is_received_again() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(25)))
        scanned = (await dlq.scan())._replace(complete=False)
        delete, failures = dlq.memory.delete, iter([[Failure(0, "InternalError", "oops", retryable=False)]])

        async def faulty(queue: str, receipts: Sequence[str]) -> list[Failure]:
            return next(failures, None) or await delete(queue, receipts)

        dlq.memory.delete = faulty  # type: ignore[method-assign]
        action = Redrive(dlq.memory, dlq.queue, dlq.processed_events, force=False)

        result = await dlq.remove(scanned, EVERYTHING, action, rate=0.1)

        assert (result.done, result.not_deleted) == (25, [])
        assert len(dlq.moved) == 25
        assert dlq.remaining == []

    virtually(main())


def test_messages_that_sqs_delivers_twice_are_counted_and_moved_once() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        dlq.memory = dlq.transport = MemoryTransport(duplicate_share=0.5, shuffle=True, seed=3)
        dlq.memory.apply(derive([dlq.service], NAMING))
        await dlq.dead_letter(*map(order, range(40)))

        scanned = await dlq.scan()
        to_the_end = scanned._replace(complete=False)
        result = await dlq.remove(
            to_the_end, EVERYTHING, Redrive(dlq.memory, dlq.queue, dlq.processed_events, force=False)
        )

        assert scanned.selected.total() == result.done == 40
        assert len(dlq.moved) == 40
        assert dlq.remaining == []

    virtually(main())


def test_a_purge_deletes_the_selected_messages_and_sends_none() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing())
        await dlq.dead_letter(*map(order, range(12)))
        await dlq.dead_letter(UserLeft(name="Ada"))
        selection = Selection(types=("order.placed",))

        result = await dlq.remove(await dlq.scan(selection), selection, Purge())

        assert result.done == 12
        assert dlq.moved == []
        assert dlq.dead_depth == (1, 0)

    virtually(main())


def test_an_unreachable_queue_is_retried_and_a_missing_one_is_not() -> None:
    async def main() -> None:
        transport = FakeTransport()
        dlq = DeadLetterQueue(billing(), transport)
        transport.script["receive"].append(_TOO_LATE)
        transport.put(order(1))

        assert (await dlq.scan()).selected.total() == 1

        transport.script["receive"].append(TransportError("QueueDoesNotExist", "gone", retryable=False))
        with pytest.raises(TransportError, match="gone"):
            await dlq.scan()

    virtually(main())


async def remember(store: MemoryStore, service: Service, envelope: Envelope, *, completed: bool) -> None:
    """Claim the event for the first handler, and complete the claim if it is *completed*."""
    handler = service.handlers[0]
    assert handler.options.idempotency is not None
    claim = Claim(handler.options.idempotency.key_of(handler.full_name(""), envelope), "token", 600, 600)
    await store.claim([claim])
    if completed:
        await store.complete([claim])


def test_fault_45_messages_that_were_handled_before_are_counted_and_left_in_the_queue() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        dlq = DeadLetterQueue(service, store=store)
        done, under_way, new = await dlq.dead_letter(order(1), order(2), order(3))
        await remember(store, service, done, completed=True)
        await remember(store, service, under_way, completed=False)

        scanned = await dlq.scan()
        result = await dlq.redrive()

        assert (scanned.processed, scanned.partly_processed, scanned.in_progress) == (1, 0, 1)
        assert (result.done, result.skipped) == (2, 1)
        assert dlq.remaining == [encode(done)]
        assert sorted(message.body for message in dlq.moved) == sorted([encode(under_way), encode(new)])

    virtually(main())


def test_fault_45_an_event_whose_body_is_in_s3_is_looked_up_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://dead")

    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        dlq = DeadLetterQueue(service, store=store)
        envelope = wrap(order(1), source="shop")
        put_in_memory(Payload("dead", envelope.id, encode(envelope)))
        size = {"ExtendedPayloadSize": Attribute("Number", "9")}
        for key in (envelope.id, "lost"):
            body = write_pointer("dead", key)
            await dlq.send_dead(OutgoingMessage(body, len(body), size))
        await remember(store, service, envelope, completed=True)

        assert (await dlq.scan()).processed == 1

    virtually(main())


def test_fault_45_with_force_completed_claims_are_forgotten_before_sending_and_claims_in_progress_are_not() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        dlq = DeadLetterQueue(service, store=store)
        done, under_way = await dlq.dead_letter(order(1), order(2))
        await remember(store, service, done, completed=True)
        await remember(store, service, under_way, completed=False)
        keys = [next(iter(store._entries)), list(store._entries)[1]]
        known_at_send: list[list[ClaimState]] = []
        send = dlq.memory.send

        async def watched(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            known_at_send.append(await store.read(keys))
            return await send(queue, messages)

        dlq.memory.send = watched  # type: ignore[method-assign]

        result = await dlq.redrive(force=True)

        assert (result.done, result.skipped) == (2, 0)
        [[of_done, of_under_way]] = known_at_send
        assert of_done is None
        assert of_under_way is not None

    virtually(main())


def test_fault_45_a_message_that_one_of_two_handlers_has_handled_is_moved_for_the_other() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()

        @service.subscribe(OrderPlaced, idempotent=True)
        async def thank(event: OrderPlaced) -> None: ...

        dlq = DeadLetterQueue(service, store=store)
        [envelope] = await dlq.dead_letter(order(1))
        await remember(store, service, envelope, completed=True)

        scanned = await dlq.scan()
        result = await dlq.redrive()

        assert (scanned.processed, scanned.partly_processed) == (0, 1)
        assert (result.done, result.skipped) == (1, 0)

    virtually(main())


def test_fault_45_if_the_store_fails_during_a_redrive_the_other_messages_return_to_the_queue() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        dlq = DeadLetterQueue(service, store=store)
        await dlq.dead_letter(*map(order, range(25)))
        scanned, ask, asked = await dlq.scan(), store.read, 0

        async def failing(keys: Sequence[str]) -> list[ClaimState]:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise StoreError("look at redis://there: connection refused")
            return await ask(keys)

        store.read = failing  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="redis://there"):
            await dlq.remove(scanned, EVERYTHING, Redrive(dlq.memory, dlq.queue, dlq.processed_events, force=False))

        assert len(dlq.moved) == 10
        assert dlq.dead_depth == (15, 0)

    virtually(main())


def test_a_message_that_cannot_be_decoded_is_moved_too() -> None:
    async def main() -> None:
        dlq = DeadLetterQueue(billing(idempotent=True), store=MemoryStore())
        await dlq.send_dead(OutgoingMessage("no JSON", 7))
        await dlq.dead_letter(Paid(account="a"))

        result = await dlq.redrive()

        assert result.done == 2

    virtually(main())


class LeaseRecorder(MemoryTransport):
    """Records the visibility timeout of each receive call."""

    def __init__(self) -> None:
        super().__init__()
        self.lease_seconds: list[float] = []

    async def receive(self, queue: str, **options: Any) -> list[Message]:
        self.lease_seconds.append(options["visibility_timeout_seconds"])
        return await super().receive(queue, **options)


@pytest.mark.parametrize(
    ("scan_seconds", "rate", "expected"),
    [
        (0.0, None, LEASE_SECONDS),
        (15.0, None, LEASE_SECONDS),
        (100.0, None, 300.0),  # three times as long as the scan took
        (0.0, 0.5, LEASE_SECONDS + 20),  # and the time of a batch at this rate
        (0.0, 100.0, LEASE_SECONDS + 0.1),
        (40.0, 0.1, LEASE_SECONDS + 100),
        (1_000_000.0, None, 43_200.0),  # the maximum of SQS
        (0.0, 0.000_01, 43_200.0),
    ],
)
def test_a_redrive_hides_its_messages_for_as_long_as_it_may_need_for_them(
    scan_seconds: float, rate: float | None, expected: float
) -> None:
    async def main() -> list[float]:
        transport = LeaseRecorder()
        dead = DeadLetterQueue(billing(), transport)
        transport.apply(derive([dead.service], NAMING))
        selected = Counter({("order.placed", "rejected"): 1})
        scanned = ScanResult(selected, Counter(), 0, 0, 0, 0.0, complete=True, seconds=scan_seconds)
        await dead.remove(scanned, EVERYTHING, Purge(), rate)
        return transport.lease_seconds

    assert set(run_virtually(main())) == {expected}
