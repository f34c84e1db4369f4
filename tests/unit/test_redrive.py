"""Looking into dead-letter queues and clearing them, on the memory transport and on scripted ones."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Queue, RetryPolicy, Service, TransportError
from smartpipe.batching.resend import _TOO_LATE
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE, FailedDelivery, copy_with_reason
from smartpipe.consumer.decide import DeadLetter
from smartpipe.dlq.messages import Selection, preview
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.dlq.redrive import LEASE_SECONDS, Clearing, Purge, Redrive, ScanResult, Tally, scan
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.object_store import put_in_memory
from smartpipe.envelope.pointer import pointer_to
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
    from smartpipe.idempotency.store import Known

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


class Desk:
    """A service's queues in memory, and somebody who looks after its dead letters."""

    def __init__(self, service: Service, transport: Transport | None = None, store: MemoryStore | None = None) -> None:
        self.service = service
        self.queue = service.queue
        self.memory = MemoryTransport()
        self.memory.apply(derive([service], NAMING))
        self.transport = transport or self.memory
        self.memories = ProcessedEvents(service.handlers, None if store is None else Claims(store))
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

    async def look(self, selection: Selection = EVERYTHING) -> ScanResult:
        return await scan(self.transport, self.queue, selection, self.memories, self.stop)

    async def redrive(
        self, selection: Selection = EVERYTHING, *, rate: float | None = None, force: bool = False
    ) -> Tally:
        looked = await self.look(selection)
        return await self.clear(
            looked, selection, Redrive(self.transport, self.queue, self.memories, force=force), rate
        )

    async def clear(
        self, looked: ScanResult, selection: Selection, treatment: Redrive | Purge, rate: float | None = None
    ) -> Tally:
        tally = Tally()
        clearing = Clearing(
            self.transport,
            self.queue,
            rate_per_second=rate,
            stop=self.stop,
            on_progress=lambda tally: self.progress.append(tally.done),
        )
        await clearing.clear(looked, selection, treatment, tally)
        return tally

    @property
    def dead(self) -> list[str]:
        return [stored.content.body for stored in self.memory.queue(self.queue.dead_letter_name).contents()]

    @property
    def alive(self) -> list[OutgoingMessage]:
        return [stored.content for stored in self.memory.queue(self.queue.name).contents()]

    @property
    def dead_depth(self) -> tuple[int, int]:
        depth = self.memory.queue(self.queue.dead_letter_name).depth
        return depth.visible, depth.in_flight


def virtually(main: Coroutine[Any, Any, None]) -> None:
    run_virtually(main)


def test_letters_come_back_as_they_were_before_and_with_the_same_event_id() -> None:
    async def main() -> None:
        desk = Desk(billing())
        envelopes = await desk.dead_letter(*map(order, range(25)))

        tally = await desk.redrive()

        assert tally == Tally(done=25)
        assert sorted(message.body for message in desk.alive) == sorted(map(encode, envelopes))
        assert all(REASON_ATTRIBUTE not in message.attributes for message in desk.alive)
        assert desk.dead == []
        assert desk.progress == [10, 20, 25]

    virtually(main())


def test_the_attribute_that_made_room_for_the_reason_has_its_place_again() -> None:
    async def main() -> None:
        desk = Desk(billing())
        attributes = {f"a{n}": Attribute("String", str(n)) for n in range(MAX_ATTRIBUTES - 1)}
        attributes["z"] = Attribute("Binary.png", b"\x00\x01")
        message = Message("m1", "r1", "not JSON", attributes=attributes)
        copy = copy_with_reason(
            message, DeadLetter("not-json", ValueError("no")), FailedDelivery("billing", "billing", None, None)
        )
        assert len(copy.attributes) == MAX_ATTRIBUTES
        assert "z" not in copy.attributes
        await desk.send_dead(copy)

        await desk.redrive()

        assert [message.attributes for message in desk.alive] == [attributes]

    virtually(main())


def test_a_look_tells_what_is_there_and_gives_it_back_at_once() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(order(1), order(2), UserLeft(name="Ada"))

        looked = await desk.look(Selection(types=("order.placed",)))

        assert looked.wanted == {("order.placed", "retries-exhausted"): 2}
        assert looked.others == {("user.left", "retries-exhausted"): 1}
        assert looked.complete
        assert desk.dead_depth == (3, 0)

    virtually(main())


def test_what_is_not_wanted_stays_and_can_be_received_at_once() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(*map(order, range(15)), error=ValueError("no"))
        await desk.dead_letter(*map(order, range(100, 130)), error=ConnectionError("the bank is closed"))

        tally = await desk.redrive(Selection(reasons=("bank",)))

        assert tally.done == 30
        assert desk.dead_depth == (15, 0)

    virtually(main())


def test_no_more_than_the_limit_are_moved_and_the_rest_is_given_back() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(*map(order, range(30)))

        tally = await desk.redrive(Selection(limit=13))

        assert tally.done == 13
        assert desk.dead_depth == (17, 0)

    virtually(main())


def test_a_rate_is_kept_and_told_to_stop_it_stops_in_the_middle() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(*map(order, range(30)))
        clock = asyncio.get_running_loop().time
        began = clock()
        asyncio.get_running_loop().call_later(12, desk.stop.set)

        tally = await desk.redrive(rate=2)

        assert tally.interrupted
        assert 12 <= clock() - began < 14
        assert 18 <= tally.done <= 26
        assert len(desk.alive) == tally.done
        assert desk.dead_depth == (30 - tally.done, 0)

    virtually(main())


def test_a_message_with_a_forged_reason_stops_nobody() -> None:
    async def main() -> None:
        desk = Desk(billing(idempotent=True), store=MemoryStore())
        await desk.dead_letter(*map(order, range(3)))
        for reason in FORGED.values():
            body = encode(wrap(order(9), source="shop"))
            attributes = {REASON_ATTRIBUTE: Attribute("String", reason)}
            await desk.send_dead(OutgoingMessage(body, len(body), attributes))

        moved = await desk.redrive()

        assert (moved.done, moved.failed, moved.not_deleted) == (3 + len(FORGED), [], [])
        assert all(REASON_ATTRIBUTE not in message.attributes for message in desk.alive)

    virtually(main())


def test_what_comes_back_while_letters_are_moved_is_not_moved_again() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(*map(order, range(5)))
        looked = await desk.look()

        class Boomerang(Redrive):
            """Whatever is moved fails again at once."""

            async def treat(self, letters: Any, tally: Tally) -> Any:
                gone = await super().treat(letters, tally)
                await asyncio.sleep(1)
                await desk.dead_letter(
                    *(order(int(json.loads(preview(letter.message, 1_000))["order_id"][1:])) for letter in gone)
                )
                return gone

        treatment = Boomerang(desk.transport, desk.queue, desk.memories, force=False)
        tally = await desk.clear(looked._replace(complete=False), EVERYTHING, treatment)

        assert tally.done == 5
        assert desk.dead_depth == (5, 0)

    virtually(main())


def test_a_fifo_queue_is_moved_group_by_group_in_order_though_a_look_shows_only_the_first() -> None:
    async def main() -> None:
        desk = Desk(bookkeeping())
        await desk.dead_letter(*(Paid(account=f"a{n % 2}", number=n) for n in range(40)))

        looked = await desk.look()
        tally = await desk.redrive()

        assert not looked.complete
        assert looked.wanted.total() < 40
        assert tally.done == 40
        for account in ("a0", "a1"):
            bodies = [message.body for message in desk.alive if message.group_id == account]
            numbers = [int(body.rpartition('"number":')[2].rstrip("}")) for body in bodies]
            assert numbers == sorted(numbers)
        assert desk.dead == []

    virtually(main())


def test_a_move_that_is_repeated_within_five_minutes_has_the_same_deduplication_id() -> None:
    async def main() -> None:
        desk = Desk(bookkeeping())
        await desk.dead_letter(Paid(account="a", number=1))
        looked = await desk.look()
        desk.memory.delete = losing  # type: ignore[method-assign]

        first = await desk.clear(looked, EVERYTHING, Redrive(desk.memory, desk.queue, desk.memories, force=False))
        del desk.memory.delete
        await asyncio.sleep(LEASE_SECONDS)
        second = await desk.redrive()

        assert (len(first.not_deleted), second.done) == (1, 1)
        assert len(desk.alive) == 1
        assert desk.dead == []

    async def losing(queue: str, receipts: Sequence[str]) -> list[Failure]:
        raise TransportError("ReadTimeoutError", "no answer", retryable=True)

    virtually(main())


def test_an_event_that_fails_again_is_moved_again_within_five_minutes() -> None:
    async def main() -> None:
        desk = Desk(bookkeeping())
        [envelope] = await desk.dead_letter(Paid(account="a", number=1))
        await desk.redrive()
        [moved] = await desk.memory.receive("books.fifo", max_messages=1, wait_seconds=0, visibility_timeout_seconds=30)
        await desk.memory.delete("books.fifo", [moved.receipt_handle])
        outcome = DeadLetter("retries-exhausted", ValueError("again"))
        await desk.send_dead(copy_with_reason(moved, outcome, FailedDelivery("books", "books.fifo", None, envelope)))

        tally = await desk.redrive()

        assert tally.done == 1
        assert len(desk.alive) == 1

    virtually(main())


def test_a_group_whose_letter_cannot_be_sent_stops_there_and_others_go_on() -> None:
    async def main() -> None:
        desk = Desk(bookkeeping())
        await desk.dead_letter(*(Paid(account=f"a{n % 2}", number=n) for n in range(6)))
        send = desk.memory.send

        async def picky(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            bad = [index for index, message in enumerate(messages) if '"number":2}' in message.body]
            return [refused(index) for index in bad] or await send(queue, messages)

        desk.memory.send = picky  # type: ignore[method-assign]

        tally = await desk.redrive()

        assert [failure.code for _, failure in tally.failed] == ["InvalidMessageContents", "GroupStopped"]
        assert [message.group_id for message in desk.alive].count("a1") == 3
        assert [message.group_id for message in desk.alive].count("a0") == 1
        assert desk.dead_depth == (2, 0)

    virtually(main())


def test_when_nothing_can_be_sent_it_gives_up_after_three_batches() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(*map(order, range(60)))

        async def gone(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            raise TransportError("QueueDoesNotExist", "queue 'billing' does not exist", retryable=False)

        desk.memory.send = gone  # type: ignore[method-assign]

        tally = await desk.redrive()

        assert len(tally.failed) == 30
        assert desk.dead_depth == (60, 0)

    virtually(main())


def test_what_is_throttled_is_sent_again_and_what_is_sent_is_deleted_alone() -> None:
    async def main() -> None:
        transport = FakeTransport()
        desk = Desk(billing(), transport)
        transport.put(order(1), order(2), order(3))
        looked = ScanResult(*(await desk.look())[:-2], complete=True, seconds=0)
        transport.put(order(1), order(2), order(3))
        transport.script["send"].extend([[throttled(0), refused(2)], []])

        tally = await desk.clear(looked, EVERYTHING, Redrive(transport, desk.queue, desk.memories, force=False))

        assert (tally.done, len(tally.failed)) == (2, 1)
        assert transport.batches("send") == [3, 1]
        assert transport.entries("delete") == ["r4", "r5"]
        assert ("r6", 0.0) in transport.entries("change_visibility")

    virtually(main())


def test_a_delete_that_fails_is_told_and_the_letter_is_not_moved_twice_by_the_same_walk() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(order(1), order(2))
        looked = await desk.look()
        delete, failures = desk.memory.delete, iter([[Failure(0, "InternalError", "oops", retryable=False)]])

        async def faulty(queue: str, receipts: Sequence[str]) -> list[Failure]:
            return next(failures, None) or await delete(queue, receipts)

        desk.memory.delete = faulty  # type: ignore[method-assign]
        tally = await desk.clear(
            looked._replace(complete=False), EVERYTHING, Redrive(desk.memory, desk.queue, desk.memories, force=False)
        )

        assert tally.done == 2
        assert len(desk.alive) == 2
        assert [failure.code for _, failure in tally.not_deleted] == ["InternalError"]

    virtually(main())


def test_a_delete_that_failed_is_made_up_for_when_the_letter_comes_by_again() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(*map(order, range(25)))
        looked = (await desk.look())._replace(complete=False)
        delete, failures = desk.memory.delete, iter([[Failure(0, "InternalError", "oops", retryable=False)]])

        async def faulty(queue: str, receipts: Sequence[str]) -> list[Failure]:
            return next(failures, None) or await delete(queue, receipts)

        desk.memory.delete = faulty  # type: ignore[method-assign]
        treatment = Redrive(desk.memory, desk.queue, desk.memories, force=False)

        tally = await desk.clear(looked, EVERYTHING, treatment, rate=0.1)

        assert (tally.done, tally.not_deleted) == (25, [])
        assert len(desk.alive) == 25
        assert desk.dead == []

    virtually(main())


def test_messages_that_sqs_hands_out_twice_are_counted_and_moved_once() -> None:
    async def main() -> None:
        desk = Desk(billing())
        desk.memory = desk.transport = MemoryTransport(duplicate_share=0.5, shuffle=True, seed=3)
        desk.memory.apply(derive([desk.service], NAMING))
        await desk.dead_letter(*map(order, range(40)))

        looked = await desk.look()
        to_the_end = looked._replace(complete=False)
        tally = await desk.clear(to_the_end, EVERYTHING, Redrive(desk.memory, desk.queue, desk.memories, force=False))

        assert looked.wanted.total() == tally.done == 40
        assert len(desk.alive) == 40
        assert desk.dead == []

    virtually(main())


def test_a_purge_deletes_what_is_wanted_and_sends_nothing() -> None:
    async def main() -> None:
        desk = Desk(billing())
        await desk.dead_letter(*map(order, range(12)))
        await desk.dead_letter(UserLeft(name="Ada"))
        selection = Selection(types=("order.placed",))

        tally = await desk.clear(await desk.look(selection), selection, Purge())

        assert tally.done == 12
        assert desk.alive == []
        assert desk.dead_depth == (1, 0)

    virtually(main())


def test_a_queue_that_cannot_be_asked_for_a_moment_is_asked_again_and_one_that_is_missing_is_not() -> None:
    async def main() -> None:
        transport = FakeTransport()
        desk = Desk(billing(), transport)
        transport.script["receive"].append(_TOO_LATE)
        transport.put(order(1))

        assert (await desk.look()).wanted.total() == 1

        transport.script["receive"].append(TransportError("QueueDoesNotExist", "gone", retryable=False))
        with pytest.raises(TransportError, match="gone"):
            await desk.look()

    virtually(main())


async def remember(store: MemoryStore, service: Service, envelope: Envelope, *, completed: bool) -> None:
    """Let the first handler's effect have happened, or be happening."""
    handler = service.handlers[0]
    assert handler.options.idempotency is not None
    claim = Claim(handler.options.idempotency.key_of(handler.full_name(""), envelope), "token", 600, 600)
    await store.claim([claim])
    if completed:
        await store.complete([claim])


def test_fault_45_what_would_be_skipped_as_handled_before_is_told_and_left_in_the_queue() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        desk = Desk(service, store=store)
        done, under_way, new = await desk.dead_letter(order(1), order(2), order(3))
        await remember(store, service, done, completed=True)
        await remember(store, service, under_way, completed=False)

        looked = await desk.look()
        tally = await desk.redrive()

        assert (looked.all_done, looked.partly_done, looked.in_progress) == (1, 0, 1)
        assert (tally.done, tally.skipped) == (2, 1)
        assert desk.dead == [encode(done)]
        assert sorted(message.body for message in desk.alive) == sorted([encode(under_way), encode(new)])

    virtually(main())


def test_fault_45_an_event_whose_body_waits_in_s3_is_looked_up_by_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://dead")

    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        desk = Desk(service, store=store)
        envelope = wrap(order(1), source="shop")
        put_in_memory(Payload("dead", envelope.id, encode(envelope)))
        size = {"ExtendedPayloadSize": Attribute("Number", "9")}
        for key in (envelope.id, "lost"):
            body = pointer_to("dead", key)
            await desk.send_dead(OutgoingMessage(body, len(body), size))
        await remember(store, service, envelope, completed=True)

        assert (await desk.look()).all_done == 1

    virtually(main())


def test_fault_45_by_force_what_is_done_is_forgotten_before_it_is_sent_and_what_is_in_progress_is_not() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        desk = Desk(service, store=store)
        done, under_way = await desk.dead_letter(order(1), order(2))
        await remember(store, service, done, completed=True)
        await remember(store, service, under_way, completed=False)
        keys = [next(iter(store._entries)), list(store._entries)[1]]
        known_at_send: list[list[Known]] = []
        send = desk.memory.send

        async def watched(queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
            known_at_send.append(await store.look(keys))
            return await send(queue, messages)

        desk.memory.send = watched  # type: ignore[method-assign]

        tally = await desk.redrive(force=True)

        assert (tally.done, tally.skipped) == (2, 0)
        [[of_done, of_under_way]] = known_at_send
        assert of_done is None
        assert of_under_way is not None

    virtually(main())


def test_fault_45_of_two_handlers_one_is_done_and_the_letter_goes_for_the_other() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()

        @service.subscribe(OrderPlaced, idempotent=True)
        async def thank(event: OrderPlaced) -> None: ...

        desk = Desk(service, store=store)
        [envelope] = await desk.dead_letter(order(1))
        await remember(store, service, envelope, completed=True)

        looked = await desk.look()
        tally = await desk.redrive()

        assert (looked.all_done, looked.partly_done) == (0, 1)
        assert (tally.done, tally.skipped) == (1, 0)

    virtually(main())


def test_fault_45_a_store_that_goes_down_in_the_middle_stops_it_and_the_rest_is_given_back() -> None:
    async def main() -> None:
        service, store = billing(idempotent=True), MemoryStore()
        desk = Desk(service, store=store)
        await desk.dead_letter(*map(order, range(25)))
        looked, ask, asked = await desk.look(), store.look, 0

        async def failing(keys: Sequence[str]) -> list[Known]:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise StoreError("look at redis://there: connection refused")
            return await ask(keys)

        store.look = failing  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="redis://there"):
            await desk.clear(looked, EVERYTHING, Redrive(desk.memory, desk.queue, desk.memories, force=False))

        assert len(desk.alive) == 10
        assert desk.dead_depth == (15, 0)

    virtually(main())


def test_what_cannot_be_decoded_is_moved_for_its_worker_to_judge() -> None:
    async def main() -> None:
        desk = Desk(billing(idempotent=True), store=MemoryStore())
        await desk.send_dead(OutgoingMessage("no JSON", 7))
        await desk.dead_letter(Paid(account="a"))

        tally = await desk.redrive()

        assert tally.done == 2

    virtually(main())
