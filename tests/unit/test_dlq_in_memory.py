"""The commands `smartpipe dlq peek`, `redrive` and `purge` on queues in memory, from their options to their output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from smartpipe import Queue, RetryPolicy, Service
from smartpipe.cli import dlq, redrive
from smartpipe.cli.dlq import run_peek
from smartpipe.cli.redrive import RedriveOptions, run_purge, run_redrive
from smartpipe.consumer.dead_letter import FailedDelivery, copy_with_reason
from smartpipe.consumer.decide import DeadLetter
from smartpipe.dlq.messages import Selection
from smartpipe.envelope import encode, wrap
from smartpipe.errors import SmartpipeError, StoreError
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.store import Claim
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.message import Attribute, Message, OutgoingMessage
from smartpipe.topology.derive import derive
from smartpipe.topology.resources import Topology
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from tests.support.events import OrderPlaced, UserLeft
from tests.support.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADING = "account 000000000000, local, no prefix, application smartpipe"
YES = RedriveOptions(yes=True)


class Shop:
    """Two services with dead-letter queues in memory, and the store of the idempotent one."""

    def __init__(self) -> None:
        self.services = [self._service("billing", idempotent=True), self._service("audit", idempotent=False)]
        self.loop = VirtualTimeLoop()
        self.store = MemoryStore()
        self.transport = MemoryTransport()
        self.transport.apply(derive(self.services, NAMING))
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.before_open: Callable[[], None] = lambda: None

    def _service(self, name: str, *, idempotent: bool) -> Service:
        service = Service(name, queue=Queue(name), retry=RetryPolicy(attempts=1))

        @service.subscribe(OrderPlaced, idempotent=idempotent)
        async def bill(event: OrderPlaced) -> None: ...

        @service.subscribe(UserLeft)
        async def close(event: UserLeft) -> None: ...

        return service

    async def naming(self) -> Any:
        return NAMING

    def open_transport(self, _: object) -> Any:
        """Return the transport of one command, which closes it."""
        self.before_open()
        shop = self

        class Opened:
            session = SimpleNamespace(addresses=self)

            def __getattr__(self, name: str) -> Any:
                return getattr(shop.transport, name)

            async def aclose(self) -> None:
                shop.closed.append("transport")

        return Opened()

    async def open_claims(self, service: Service, url: object) -> Claims:
        assert url is None
        self.opened.append(service.name)
        shop = self

        class Closing(Claims):
            async def aclose(self) -> None:
                shop.closed.append("claims")

        return Closing(self.store)

    def dead_letter(self, queue: str, *names: str, error: str = "the bank is closed", to: str | None = None) -> None:
        for name in names:
            envelope = wrap(OrderPlaced(order_id=name), source="shop", event_id=name)
            message = Message(f"m-{name}", "r", encode(envelope), receive_count=3)
            where = FailedDelivery(queue, queue, "bill", envelope)
            copy = copy_with_reason(message, DeadLetter("rejected", ValueError(error)), where)
            assert self.loop.run_until_complete(self.transport.send(to or f"{queue}-dlq", [copy])) == []

    def share_a_dead_letter_queue(self) -> None:
        """Let two services have a queue of another team, both with the dead-letter queue ``shared-dlq``."""
        self.services = []
        for name in ("billing", "audit"):
            service = Service(name, queue=Queue(name, existing=True, dead_letter="shared-dlq"))
            service.subscribe(OrderPlaced)(accept)
            self.services.append(service)
        arns = [NAMING.queue_arn(name) for name in ("billing", "audit", "shared-dlq")]
        self.transport = MemoryTransport()
        self.transport.apply(Topology({"queue": {arn: {} for arn in arns}}))
        self.dead_letter("billing", "o1", "o2", to="shared-dlq")
        self.dead_letter("audit", "o3", to="shared-dlq")

    def count(self, queue: str) -> int:
        """Return the number of messages that can be received."""
        return self.loop.run_until_complete(self._count(queue))

    async def _count(self, queue: str) -> int:
        return self.transport.queue(queue).depth.visible


async def accept(event: OrderPlaced) -> None: ...


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop()
    monkeypatch.setattr(asyncio, "run", shop.loop.run_until_complete)
    monkeypatch.setattr(dlq, "load_services", lambda _: shop.services)
    monkeypatch.setattr(dlq, "create_aws_transport", shop.open_transport)
    monkeypatch.setattr(redrive, "open_claims", shop.open_claims)
    monkeypatch.delenv("SMARTPIPE_PREFIX", raising=False)
    monkeypatch.delenv("SMARTPIPE_IDEMPOTENCY_URL", raising=False)
    yield shop
    shop.loop.close()


def test_peek_shows_the_messages_of_each_queue_and_returns_them(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shop.dead_letter("audit", "o1", "o2")

    run_peek([], None, Selection(limit=3), as_json=False)

    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [HEADING, "billing-dlq (of billing): no messages", "audit-dlq (of audit): 2 messages"]
    assert lines[3:5] == [
        "  o1  order.placed 2.3 from shop",
        "      rejected after 3 receives in bill: ValueError: the ba…",
    ]
    assert [line for line in lines if line.startswith("  o")] == [
        "  o1  order.placed 2.3 from shop",
        "  o2  order.placed 2.3 from shop",
    ]
    assert len(lines) == 11
    assert shop.count("audit-dlq") == 2
    assert shop.closed == ["transport"]


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        (Selection(limit=2), "2 or more messages"),
        (Selection(limit=3), "3 or more messages"),
        (Selection(limit=4), "3 messages"),
        (Selection(limit=1, ids=("o3",)), "1 or more messages"),
        (Selection(limit=2, ids=("o3",)), "1 message"),
        (Selection(limit=2, types=("other",)), "no messages match"),
    ],
)
def test_peek_counts_the_messages_that_match_up_to_its_limit(
    shop: Shop, selection: Selection, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.dead_letter("audit", "o1", "o2", "o3")

    run_peek([], "audit", selection, as_json=False)

    assert capsys.readouterr().out.splitlines()[1] == f"audit-dlq (of audit): {count}"
    assert shop.count("audit-dlq") == 3


def test_peek_with_json_has_every_part_of_a_message(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.dead_letter("audit", "o1")
    attributes = {"a": Attribute("String", "1"), "b": Attribute("Binary", b"\x01\xff")}
    shop.loop.run_until_complete(
        shop.transport.send("billing-dlq", [OutgoingMessage("\u202ez\u00e4", 4, attributes=attributes)])
    )

    run_peek([], None, Selection(limit=10), as_json=True)

    text = capsys.readouterr().out
    found = json.loads(text)
    plain, event = found.pop("messages")
    assert found == NAMING._asdict()
    assert "\u202e" not in text
    assert "\u00e4" in text
    assert text.startswith('{\n  "partition"')
    assert plain.pop("sent_at").endswith("+00:00")
    assert plain.pop("message_id")
    assert plain == {
        "queue": "billing-dlq",
        "source_queue": "billing",
        "event_id": None,
        "type": None,
        "version": None,
        "source": None,
        "reason": "none",
        "dead_letter": {},
        "group_id": None,
        "receive_count": 1,
        "attributes": {"a": "1", "b": "01ff"},
        "body": "\u202ez\u00e4",
    }
    assert (event["queue"], event["event_id"], event["source"]) == ("audit-dlq", "o1", "shop")
    assert (event["type"], event["version"]) == ("order.placed", "2.3")
    assert (event["reason"], event["dead_letter"]["message"]) == ("rejected", "the bank is closed")


def interrupt(shop: Shop, calls: int) -> None:
    """Send a signal to this process during the receive call of this number."""
    receive, left = shop.transport.receive, [calls]

    async def receive_one(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.001)  # the loop handles the signal
        return await receive(*arguments, **options | {"max_messages": 1})

    shop.transport.receive = receive_one  # type: ignore[method-assign]


def test_a_signal_ends_a_peek_with_the_messages_so_far(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.dead_letter("audit", "o1", "o2", "o3")
    interrupt(shop, 2)

    run_peek([], "audit", Selection(limit=10), as_json=False)

    assert capsys.readouterr().out.splitlines()[1] == "audit-dlq (of audit): 2 messages"
    assert shop.count("audit-dlq") == 3


def test_a_redrive_moves_the_messages_of_every_queue(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.dead_letter("billing", "o1", "o2")

    run_redrive([], None, Selection(), YES)

    assert capsys.readouterr().out.splitlines() == [
        HEADING,
        "billing-dlq → billing: 2 messages to move",
        "    2 order.placed, rejected",
        "audit-dlq → audit: no messages",
        "billing-dlq: moved 2",
    ]
    assert (shop.count("billing"), shop.count("billing-dlq")) == (2, 0)


def test_the_progress_on_a_terminal_is_cleared_at_the_end(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(redrive, "TERMINAL_PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shop.dead_letter("audit", "o1")

    run_redrive([], "audit", Selection(), YES)

    assert capsys.readouterr().err == "\raudit-dlq: moved 1 of 1\x1b[K\r\x1b[K"


def test_only_a_redrive_of_a_queue_with_idempotent_handlers_opens_the_store(shop: Shop) -> None:
    for queue in ("billing", "audit"):
        shop.dead_letter(queue, "o1")

    run_purge([], "billing", Selection(limit=1), YES._replace(dry_run=True))
    run_redrive([], "audit", Selection(), YES)
    assert (shop.opened, shop.closed) == ([], ["transport"] * 3)

    run_redrive([], "billing", Selection(), YES)
    assert shop.opened == ["billing", "billing"]
    assert shop.closed[3:] == ["claims", "transport", "claims", "transport"]


def handled(shop: Shop, *ids: str) -> None:
    """Let the store know that the idempotent handler has handled these events."""
    handler, _ = shop.services[0].handlers
    idempotency = handler.options.idempotency
    assert idempotency is not None
    for one in ids:
        key = idempotency.key_of(handler.full_name(""), wrap(OrderPlaced(order_id=one), source="shop", event_id=one))
        claim = Claim(key, one, 60, 86_400)
        shop.loop.run_until_complete(shop.store.claim([claim]))
        shop.loop.run_until_complete(shop.store.complete([claim]))


def test_handled_messages_are_skipped_and_with_force_they_are_moved(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.dead_letter("billing", "o1", "o2", "o3")
    handled(shop, "o1", "o2")

    run_redrive([], "billing", Selection(), YES)
    assert capsys.readouterr().out.splitlines()[-1] == "billing-dlq: moved 1, skipped 2"

    run_redrive([], "billing", Selection(), YES._replace(force=True))
    assert capsys.readouterr().out.splitlines()[-1] == "billing-dlq: moved 2"


def test_without_its_store_a_redrive_moves_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.dead_letter("billing", "o1")

    async def fail(*_: object) -> None:
        raise StoreError("it is down")

    monkeypatch.setattr(redrive, "open_claims", fail)

    with pytest.raises(SmartpipeError) as raised:
        run_redrive([], "billing", Selection(), YES)

    assert str(raised.value) == (
        "billing-dlq: cannot look up which events were handled, so no further message is moved: it is down"
    )
    assert shop.count("billing-dlq") == 1
    assert shop.closed == ["transport"]


def test_a_purge_deletes_the_messages_that_match(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.dead_letter("audit", "o1", "o2", "o3")

    run_purge([], "audit", Selection(ids=("o1", "o3")), YES)

    assert capsys.readouterr().out.splitlines() == [
        HEADING,
        "audit-dlq: 2 messages to delete",
        "    2 order.placed, rejected",
        "  1 message stays",
        "    1 order.placed, rejected",
        "audit-dlq: deleted 2",
    ]
    assert (shop.count("audit"), shop.count("audit-dlq")) == (0, 1)


def test_a_signal_during_the_scan_changes_nothing(shop: Shop) -> None:
    shop.dead_letter("audit", "o1", "o2", "o3")
    interrupt(shop, 2)

    with pytest.raises(SmartpipeError, match="interrupted: nothing was changed"):
        run_purge([], "audit", Selection(), YES)

    assert shop.count("audit-dlq") == 3


def test_a_signal_during_a_purge_ends_it_before_the_next_message(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.dead_letter("audit", "o1", "o2", "o3")

    def after_the_scan() -> None:
        if shop.closed:
            interrupt(shop, 2)

    shop.before_open = after_the_scan

    with pytest.raises(typer.Exit) as ended:
        run_purge([], "audit", Selection(), YES)

    assert ended.value.exit_code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "audit-dlq: deleted 1, not reached 2; interrupted: the other messages are still in the queue"
    assert shop.count("audit-dlq") == 2


def test_a_rate_limits_a_redrive(shop: Shop) -> None:
    shop.dead_letter("audit", *(f"o{number}" for number in range(9)))
    before = shop.loop.time()

    run_redrive([], "audit", Selection(), YES._replace(rate_per_second=0.5))

    assert 14 <= shop.loop.time() - before <= 22
    assert shop.count("audit") == 9


@pytest.mark.parametrize("wanted", [None, "shared-dlq"])
def test_a_redrive_sends_each_message_of_a_shared_dead_letter_queue_to_the_queue_that_it_came_from(
    shop: Shop, wanted: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.share_a_dead_letter_queue()

    run_redrive([], wanted, Selection(), YES)

    assert (shop.count("billing"), shop.count("audit"), shop.count("shared-dlq")) == (2, 1, 0)
    assert "shared-dlq → billing: 2 messages to move" in capsys.readouterr().out


def test_messages_of_other_queues_in_a_shared_dead_letter_queue_are_neither_shown_nor_moved_nor_deleted(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.share_a_dead_letter_queue()
    audit = shop.services.pop()

    run_peek([], None, Selection(limit=10), as_json=False)
    assert "o3" not in capsys.readouterr().out
    run_redrive([], None, Selection(), YES)
    assert (shop.count("billing"), shop.count("audit"), shop.count("shared-dlq")) == (2, 0, 1)
    shop.dead_letter("billing", "o4", to="shared-dlq")
    run_purge([], "billing", Selection(), YES)
    assert shop.count("shared-dlq") == 1

    shop.services = [audit]
    run_redrive([], None, Selection(), YES)
    assert (shop.count("audit"), shop.count("shared-dlq")) == (1, 0)


def test_messages_that_sqs_moved_to_a_shared_dead_letter_queue_return_to_their_queue(shop: Shop) -> None:
    shop.share_a_dead_letter_queue()

    async def move(queue: str) -> None:
        await shop.transport.send(queue, [OutgoingMessage("{}", 2, {})])
        [stored] = shop.transport.queue(queue).receive(1, 0)
        shop.transport.queue("shared-dlq").accept_moved(stored, NAMING.queue_arn(queue))
        shop.transport.queue(queue)._remove(stored)

    for queue in ("billing", "audit"):
        shop.loop.run_until_complete(move(queue))

    run_redrive([], "audit", Selection(reasons=("none",)), YES)

    assert (shop.count("billing"), shop.count("audit"), shop.count("shared-dlq")) == (0, 1, 4)
