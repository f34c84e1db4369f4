"""How each outcome is settled: its calls, its counter, its log line, and the seconds until the next delivery."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import DecodeError, Queue, Reject, Service
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.consumer.decide import Ack, DeadLetter, Defer, Halt, Outcome, Release, RetryAfter
from smartpipe.consumer.leases import DONE, RETURNED, SETTLING, Leases
from smartpipe.consumer.processor import Processed
from smartpipe.consumer.settle import MAX_IN_FLIGHT, Acknowledger, Settler
from smartpipe.consumer.slots import Slots
from smartpipe.counters import Counters
from smartpipe.envelope import wrap
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport, refused, throttled
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.leases import Lease

BROKEN = ValueError("broken")
VISIBILITY_SECONDS = 30


def handler_of_events() -> Handler:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None: ...

    return service.handlers[0]


class Settling:
    """A settler and an acknowledger on a fake transport."""

    def __init__(self, *, fifo: bool = False) -> None:
        self.transport, self.counters = FakeTransport(), Counters()
        queue = Queue("mailer", fifo=fifo)
        self.slots = Slots(10)
        self.leases = Leases(
            queue.name, self.transport, visibility_timeout_seconds=VISIBILITY_SECONDS, counters=self.counters
        )
        self.acknowledger = Acknowledger(
            queue.name, self.transport, leases=self.leases, slots=self.slots, counters=self.counters
        )
        self.settler = Settler("mailer", queue, self.transport, acknowledger=self.acknowledger, counters=self.counters)

    def hold(self, count: int = 1, **fields: Any) -> list[Lease]:
        now = asyncio.get_running_loop().time()
        return self.leases.hold([self.transport.message("{}", received_at=now, **fields) for _ in range(count)])

    async def settle(self, outcome: Outcome, **fields: Any) -> tuple[float | None, dict[str, int]]:
        """Settle one message, and return the result and the counters."""
        [lease] = self.hold(**fields)
        seconds = await self.settler.settle(lease, Processed(outcome), 0.0)
        await self.acknowledger.drain()
        return seconds, self.counters.as_dict()

    def sent(self, verb: str) -> list[tuple[float, int]]:
        """Return the time and the number of entries of each call."""
        return [(at, len(entries)) for name, _, entries, at in self.transport.calls if name == verb]


@pytest.mark.parametrize(
    ("outcome", "seconds", "counter", "verb", "line"),
    [
        (Ack(), None, "handled", "delete", "DEBUG Handled"),
        (Ack(ignored=True), None, "ignored", "delete", "DEBUG Ignored"),
        (
            RetryAfter(7, BROKEN),
            7,
            "retried",
            "change_visibility",
            "WARNING Handler failed, will retry in 7 s: ValueError: broken",
        ),
        (
            Defer(3, BROKEN),
            3,
            "deferred",
            "change_visibility",
            "INFO Not handled yet, will be redelivered in 3 s: broken",
        ),
        (
            Halt(9, "permanent-error", BROKEN),
            9,
            "halted",
            "change_visibility",
            "ERROR Group g is halted (permanent-error), will retry in 9 s: ValueError: broken",
        ),
        (
            DeadLetter("retries-exhausted", BROKEN),
            None,
            "dead_lettered",
            "delete",
            "ERROR Dead-lettered (retries-exhausted): ValueError: broken",
        ),
        (Release(0, "skipped"), 0, "released", "change_visibility", ""),
        (
            Release(0, "cancelled"),
            0,
            "cancelled",
            "change_visibility",
            "WARNING Handler cancelled, returning the message to the queue",
        ),
        (
            Release(30, "internal-error", BROKEN),
            30,
            "retried",
            "change_visibility",
            "ERROR Internal error in smartpipe, returning the message to the queue",
        ),
    ],
)
def test_each_outcome_has_one_counter_one_call_and_one_log_line(
    outcome: Outcome, seconds: float | None, counter: str, verb: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        settling = Settling()
        for count in (1, 2):
            assert await settling.settle(outcome, group_id="g") == (seconds, {counter: count})
        calls = [name for name, *_ in settling.transport.calls if name != "send"]
        assert calls == [verb] * 2
        if verb == "change_visibility":
            assert [left for _, left in settling.transport.entries(verb)] == [seconds] * 2
        assert settling.slots.unsettled == 0

    with caplog.at_level(logging.DEBUG, "smartpipe.consumer"):
        run_virtually(main())

    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert lines == ([line] * 2 if line else [])


@pytest.mark.parametrize(
    ("outcome", "debug", "shown"),
    [
        (RetryAfter(7, BROKEN), False, False),
        (RetryAfter(7, BROKEN), True, True),
        (Halt(9, "permanent-error", BROKEN), False, True),
        (Halt(9, "not-json", BROKEN), False, False),
        (DeadLetter("permanent-error", BROKEN), False, True),
        (DeadLetter("retries-exhausted", BROKEN), False, True),
        (DeadLetter("rejected", Reject("x")), False, False),
        (DeadLetter("not-json", DecodeError("not-json", "x")), False, False),
        (Release(30, "internal-error", BROKEN), False, True),
    ],
)
def test_a_log_line_has_a_traceback_if_code_caused_the_outcome(
    outcome: Outcome, debug: bool, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG if debug else logging.INFO, "smartpipe.consumer"):
        run_virtually(settle_one(outcome))

    [record] = caplog.records
    assert bool(record.exc_info) == shown


async def settle_one(outcome: Outcome) -> None:
    await Settling().settle(outcome)


async def test_the_fields_of_a_log_line_say_what_is_known_about_the_message() -> None:
    settling, handler = Settling(), handler_of_events()
    [message] = [lease.message for lease in settling.hold(receive_count=4)]
    known = {"service": "mailer", "queue": "mailer", "message_id": message.message_id, "receive_count": 4}
    envelope = wrap(ADA, source="test")._replace(time=datetime.now(UTC) - timedelta(seconds=90))

    assert settling.settler.fields(message) == {"fields": known}
    assert settling.settler.fields(message, Processed(Ack()), seconds=1.5) == {"fields": {**known, "seconds": 1.5}}
    fields = settling.settler.fields(message, Processed(Ack(), envelope, handler))["fields"]
    assert 90 <= fields.pop("age_seconds") < 150
    assert fields == {
        **known,
        "event_id": envelope.id,
        "event_type": "member.signed_up",
        "trace_id": (envelope.traceparent or "").split("-")[1],
        "handler": handler.name,
    }
    assert (
        "age_seconds" not in settling.settler.fields(message, Processed(Ack(), envelope._replace(time=None)))["fields"]
    )


@pytest.mark.parametrize("fifo", [False, True])
def test_a_copy_for_a_fifo_queue_is_deduplicated_by_the_id_of_its_message(fifo: bool) -> None:
    async def main() -> None:
        settling = Settling(fifo=fifo)
        await settling.settle(DeadLetter("rejected", Reject("x")), group_id="g" if fifo else None)
        [copy] = settling.transport.entries("send")
        assert copy.deduplication_id == ("m1" if fifo else None)
        assert copy.group_id == ("g" if fifo else None)

    run_virtually(main())


def test_a_copy_that_is_refused_is_sent_once_without_its_reason_and_one_that_fails_otherwise_is_not() -> None:
    async def main() -> None:
        settling = Settling()
        settling.transport.script["send"].extend([[refused(0)], []])
        assert await settling.settle(DeadLetter("rejected", Reject("x"))) == (None, {"dead_lettered": 1})
        reasons = [REASON_ATTRIBUTE in copy.attributes for copy in settling.transport.entries("send")]
        assert reasons == [True, False]

        settling = Settling()
        settling.transport.script["send"].extend([[refused(0)], [refused(0)]])
        assert await settling.settle(DeadLetter("rejected", Reject("x"))) == (30, {"retried": 1})
        assert len(settling.transport.entries("send")) == 2
        assert settling.transport.entries("change_visibility") == [("r1", 30)]
        assert settling.transport.entries("delete") == []

        settling, began = Settling(), asyncio.get_running_loop().time()
        settling.transport.script["send"].extend([UNREACHABLE] * 1_000)
        assert await settling.settle(DeadLetter("rejected", Reject("x"))) == (30, {"retried": 1})
        assert all(REASON_ATTRIBUTE in copy.attributes for copy in settling.transport.entries("send"))
        assert 5 <= asyncio.get_running_loop().time() - began <= 10.1

    run_virtually(main())


def test_a_reason_names_the_handler_and_a_message_that_no_handler_saw_has_none() -> None:
    async def main() -> None:
        settling, handler = Settling(), handler_of_events()
        outcome = DeadLetter("rejected", Reject("x"))
        for processed in (Processed(outcome, wrap(ADA, source="test"), handler), Processed(outcome)):
            [lease] = settling.hold()
            await settling.settler.settle(lease, processed, 0.0)
        reasons = [json.loads(copy.attributes[REASON_ATTRIBUTE].value) for copy in settling.transport.entries("send")]
        assert [reason["handler"] for reason in reasons] == [handler.name, None]
        assert [reason["queue"] for reason in reasons] == ["mailer", "mailer"]

    run_virtually(main())


def test_deletes_and_returns_are_sent_ten_at_a_time_or_after_a_twentieth_of_a_second() -> None:
    async def main() -> None:
        settling = Settling()
        for _ in range(2):
            began = asyncio.get_running_loop().time()
            settling.transport.calls.clear()
            for lease in settling.hold(12):
                settling.acknowledger.delete(lease)
                assert lease.state is SETTLING
            for lease in settling.hold(12):
                settling.acknowledger.release(lease, 5)
                assert lease.state is RETURNED
            assert settling.slots.unsettled == 24
            await asyncio.sleep(1)
            for verb in ("delete", "change_visibility"):
                times = [(round(at - began, 3), count) for at, count in settling.sent(verb)]
                assert times == [(0, 10), (0.05, 2)]
            assert settling.slots.unsettled == 0

    run_virtually(main())


def test_128_calls_for_deletes_are_open_at_most() -> None:
    async def main() -> None:
        settling = Settling()
        settling.transport.script["delete"].extend([1.0] * 1_000)
        for lease in settling.hold(10 * (MAX_IN_FLIGHT + 1)):
            settling.acknowledger.delete(lease)
        await asyncio.sleep(2.5)
        assert MAX_IN_FLIGHT == 128
        assert [at for at, _ in settling.sent("delete")] == [0] * 128 + [1]

    run_virtually(main())


def test_a_delete_that_fails_is_repeated_for_ten_seconds_and_its_lease_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        settling = Settling()
        settling.transport.script["delete"].append([refused(0)])
        settling.transport.script["delete"].extend([[throttled(0)] for _ in range(1_000)])
        leases = settling.hold(2)
        for lease in leases:
            settling.acknowledger.delete(lease)
            await asyncio.sleep(0.1)
        await asyncio.sleep(4.5)  # the last wait, of up to 5 s, may end at the deadline
        assert [lease.state for lease in leases] == [DONE, SETTLING]
        assert (settling.slots.unsettled, settling.counters.not_deleted) == (1, 1)
        await asyncio.sleep(5.7)
        assert leases[1].state is DONE
        assert (settling.slots.unsettled, settling.counters.not_deleted) == (0, 2)
        settling.leases.tick()
        await asyncio.sleep(100)
        settling.leases.tick()
        assert settling.counters.lease_lost == 0  # neither lease is held any more

    run_virtually(main())
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "Cannot delete a handled message, it will be delivered again"
    ] * 2


def test_a_call_that_hangs_is_given_up_after_three_seconds_and_another_one_follows() -> None:
    async def main() -> None:
        settling = Settling()
        settling.transport.script["delete"].append(1_000.0)
        [lease] = settling.hold()
        settling.acknowledger.delete(lease)
        await asyncio.sleep(20)
        first, second = (at for at, _ in settling.sent("delete"))
        assert 2.99 < second - first < 3.11  # up to a tenth of a second before the second
        assert settling.counters.not_deleted == 0

    run_virtually(main())


def test_a_return_that_fails_is_logged_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        settling = Settling()
        settling.transport.script["change_visibility"].append([refused(0)])
        [lease] = settling.hold()
        settling.acknowledger.release(lease, 5)
        await asyncio.sleep(1)
        assert settling.slots.unsettled == 0
        assert settling.counters.as_dict() == {}

    with caplog.at_level(logging.INFO, "smartpipe.acknowledger"):
        run_virtually(main())
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "Cannot return a message, it will reappear after its visibility timeout"
    ]


def test_a_message_whose_lease_is_lost_is_not_returned() -> None:
    async def main() -> None:
        settling = Settling()
        [lease] = settling.hold()
        await asyncio.sleep(VISIBILITY_SECONDS)
        settling.acknowledger.release(lease, 5)
        await settling.acknowledger.drain()
        assert settling.transport.calls == []
        assert (lease.state, settling.slots.unsettled) == (RETURNED, 0)

    run_virtually(main())


@pytest.mark.parametrize(("age_seconds", "wanted", "asked"), [(0, 43_200, 43_140), (0.5, 43_200, 43_139), (0, 60, 60)])
def test_a_message_is_hidden_in_whole_seconds_and_no_longer_than_sqs_allows(
    age_seconds: float, wanted: float, asked: float
) -> None:
    async def main() -> None:
        settling = Settling()
        [lease] = settling.hold()
        await asyncio.sleep(age_seconds)
        settling.acknowledger.release(lease, wanted)
        await settling.acknowledger.drain()
        assert settling.transport.entries("change_visibility") == [("r1", asked)]

    run_virtually(main())


def test_unhandled_messages_are_held_back_while_draining_until_no_receive_call_is_open() -> None:
    async def main() -> None:
        settling = Settling()
        first, second, third, fourth = settling.hold(4)
        assert await settling.slots.acquire() == 10

        settling.acknowledger.release_unhandled(first, 0)  # not draining yet
        await asyncio.sleep(1)
        assert settling.transport.entries("change_visibility") == [("r1", 0)]

        settling.acknowledger.start_drain()
        settling.acknowledger.release_unhandled(second, 2)
        settling.acknowledger.release_unhandled(third, 9)
        await asyncio.sleep(1)
        assert len(settling.transport.entries("change_visibility")) == 1

        settling.slots.end_call()
        settling.acknowledger.release_unhandled(fourth, 1)
        settling.acknowledger.release_held(5)
        settling.acknowledger.release_held(5)
        await settling.acknowledger.drain()
        assert sorted(settling.transport.entries("change_visibility")[1:]) == [("r2", 5), ("r3", 9), ("r4", 1)]
        assert settling.slots.unsettled == 0

    run_virtually(main())
