"""Workers whose calls to SQS fail on the wire: between their clients and a broker stands a proxy."""

from __future__ import annotations

import logging
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Queue, Service
from smartpipe.testing import working
from tests.support.events import OrderPlaced
from tests.support.proxy import Fault
from tests.support.shop import Shop
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe.worker.worker import Worker
    from tests.support.proxy import FaultProxy


@pytest.fixture
async def shop(fast_proxy: FaultProxy) -> Shop:
    return await Shop.provisioned(fast_proxy)


def polling(worker: Worker) -> bool:
    return worker.ready and worker.consumers[0].open_calls > 0


class Names:
    """A resolver that knows one more name, ``host``, while it is not ``failing``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = "sqs.smartpipe.test"
        self.failing = False
        self.refused = 0
        self._look_up = socket.getaddrinfo
        monkeypatch.setattr("socket.getaddrinfo", self)

    def __call__(self, host: str, *arguments: Any, **options: Any) -> Any:
        if host == self.host and self.failing:
            self.refused += 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._look_up("127.0.0.1" if host == self.host else host, *arguments, **options)


def cut(status: int, headers: dict[str, str], answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Answer with half of the body, as if that were all."""
    return status, headers, answer[: len(answer) // 2]


def overloaded(_: int, headers: dict[str, str], __: bytes) -> tuple[int, dict[str, str], bytes]:
    """Answer with the page of a load balancer."""
    return (
        503,
        {**headers, "Content-Type": "text/html"},
        b"<html><body>503 Service Temporarily Unavailable</body></html>",
    )


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


@pytest.mark.usefixtures("no_time_lost")
async def test_fault_05_receiving_survives_every_kind_of_failure_and_logs_each_once(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with working(shop.service) as worker:
        await until(lambda: polling(worker))
        faults = [
            fast_proxy.add(Fault("ReceiveMessage", times=2, answer=(503, "ServiceUnavailable", "down"))),
            fast_proxy.add(Fault("ReceiveMessage", times=2, drop="request")),
            fast_proxy.add(Fault("ReceiveMessage", times=1, rewrite=cut)),
            fast_proxy.add(Fault("ReceiveMessage", times=1, rewrite=overloaded)),
            fast_proxy.add(Fault("ReceiveMessage", times=1, truncate=True)),
            fast_proxy.add(Fault("ReceiveMessage", answer=(400, "NeverHeardOf", "a code of next year"))),
        ]
        await until(lambda: all(fault.hits >= (fault.times or 2) for fault in faults))
        fast_proxy.refuse()
        fast_proxy.faults.clear()
        await until(lambda: said(caplog, "EndpointConnectionError"))
        assert not worker.ready
        fast_proxy.listen()
        await until(lambda: worker.ready)
        await shop.put("7")
        await until(lambda: shop.seen == ["7"])

    codes = [line.split(": ")[1] for line in said(caplog, "Cannot receive from queue")]
    cut_off = "ConnectionClosedError"
    assert codes[:6] == ["ServiceUnavailable", cut_off, "JSONDecodeError", "503", cut_off, "NeverHeardOf"]
    assert codes[6:] in (["EndpointConnectionError"], [cut_off, "EndpointConnectionError"])  # a call was under way
    assert len(said(caplog, "Receiving from queue")) == 1


@pytest.mark.usefixtures("no_time_lost")
async def test_fault_05_receiving_survives_a_name_that_cannot_be_resolved(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    names = Names(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{names.host}:{fast_proxy.port}")
    monkeypatch.setattr("aiohttp.connector._DNSCacheTable.expired", lambda *_: True)  # after 10 s, otherwise
    async with working(shop.service) as worker:
        await until(lambda: polling(worker))
        names.failing = True
        fast_proxy.refuse()  # what is connected needs no name
        fast_proxy.listen()
        await until(lambda: names.refused > 2)
        assert not worker.ready
        names.failing = False
        await until(lambda: worker.ready)
        await shop.put("7")
        await until(lambda: shop.seen == ["7"])

    assert len(said(caplog, "Receiving from queue")) == 1
    assert said(caplog, "Cannot receive from queue shop, retrying: EndpointConnectionError")


NO_QUEUE = (400, "QueueDoesNotExist", "The specified queue does not exist.")
NO_RIGHT = (403, "AccessDenied", "User: arn:aws:iam::000000000000:user/shop is not authorized")


@pytest.mark.parametrize(
    ("answer", "headers", "words"),
    [
        (NO_QUEUE, {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"}, "topology apply"),
        (NO_QUEUE, {}, "topology apply"),
        ((400, "AWS.SimpleQueueService.NonExistentQueue", "No such queue."), {}, "topology apply"),
        (NO_RIGHT, {}, "need the action sqs:ReceiveMessage on queue"),
    ],
    ids=["missing-in-both-spellings", "missing-in-the-new", "missing-in-the-old", "denied"],
)
async def test_fault_16_a_missing_or_denied_queue_is_logged_by_name_and_the_worker_is_not_ready(
    fast_proxy: FaultProxy,
    shop: Shop,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, str, str],
    headers: dict[str, str],
    words: str,
) -> None:
    monkeypatch.setenv("SMARTPIPE_QUEUE_METRICS_SECONDS", "0")  # all calls are counted
    async with working(shop.service) as worker:
        await until(lambda: polling(worker))
        fast_proxy.calls.clear()
        fault = fast_proxy.add(Fault("ReceiveMessage", answer=answer, headers=headers))
        await until(lambda: fault.hits >= 2)
        assert not worker.ready
        calls = len(fast_proxy.calls)
        fast_proxy.faults.clear()
        await until(lambda: worker.ready)

    [line] = said(caplog, "Cannot receive from queue")
    assert words in line
    assert worker.consumers[0].queue.name in line
    assert all(later - earlier > 0.19 for earlier, later in pairwise(fault.hit_at))
    assert calls <= 2 * fault.hits + 1  # each may ask for the queue's URL again


@pytest.mark.usefixtures("no_time_lost")
async def test_fault_17_a_throttled_receive_or_delete_is_retried(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await throttled(fast_proxy, shop, caplog, (400, "RequestThrottled"))


@pytest.mark.usefixtures("no_time_lost")
@pytest.mark.parametrize(("status", "code"), [(400, "KmsThrottled"), (403, "OverLimit")])
async def test_fault_18_throttles_that_botocore_does_not_know_are_retried_too(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture, status: int, code: str
) -> None:
    await throttled(fast_proxy, shop, caplog, (status, code))


async def throttled(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture, answer: tuple[int, str]
) -> None:
    """Handle one message while two calls of each kind are answered so."""
    caplog.set_level(logging.INFO)
    faults = [
        fast_proxy.add(Fault(operation, times=2, answer=(*answer, "Rate exceeded")))
        for operation in ("ReceiveMessage", "DeleteMessageBatch")
    ]
    await shop.put("7")
    async with working(shop.service) as worker:
        await shop.emptied()

    assert [fault.hits for fault in faults] == [2, 2]
    assert shop.seen == ["7"]
    assert worker.consumers[0].counters.not_deleted == 0
    assert len(said(caplog, f"Cannot receive from queue shop, retrying: {answer[1]}")) == 1
    assert len(said(caplog, "again after 2 failed calls")) == 1


@pytest.mark.usefixtures("no_time_lost")
async def test_fault_35_a_receive_call_without_a_response_is_given_up_after_its_wait_and_a_margin(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.transports.aws.direct.sqs.POLL_MARGIN_SECONDS", 0.5)
    fast_proxy.add(Fault("ReceiveMessage", times=1, delay_seconds=600))
    await shop.put("7")
    async with working(shop.service):
        await until(lambda: shop.seen)

    assert said(caplog, "Cannot receive from queue shop, retrying: ReadTimeoutError")


@pytest.mark.usefixtures("no_time_lost", "restless")
async def test_fault_19_while_credentials_are_expired_running_handlers_continue(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.release.clear()
    await shop.put("7")
    async with working(shop.service) as worker:
        await until(lambda: shop.seen)
        answer = (403, "ExpiredToken", "The security token included in the request is expired")
        faults = [
            fast_proxy.add(Fault(operation, times=2, answer=answer))
            for operation in ("ReceiveMessage", "ChangeMessageVisibilityBatch", "DeleteMessageBatch")
        ]
        await until(lambda: faults[0].hits == faults[1].hits == 2)
        assert not shop.deliveries[0].lease_lost
        shop.release.set()
        await shop.emptied()
        await until(lambda: worker.ready)

    assert [fault.hits for fault in faults] == [2, 2, 2]
    assert shop.seen == ["7"]
    assert worker.consumers[0].counters.as_dict() == {"received": 1, "handled": 1}
    assert len(said(caplog, "the credentials have expired, waiting for new ones")) == 2  # of polls, and of leases


async def test_fault_53_a_wrong_clock_is_reported_with_both_times(
    fast_proxy: FaultProxy, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = datetime.now(UTC) + timedelta(minutes=10)
    headers = {"Date": format_datetime(theirs, usegmt=True)}
    answer = (403, "InvalidSignatureException", "Signature expired: 20261123T020000Z is now earlier than")
    fast_proxy.add(Fault("ReceiveMessage", answer=answer, headers=headers))
    async with working(shop.service) as worker:
        await until(lambda: said(caplog, "Cannot receive from queue"))
        assert not worker.ready

    [line] = said(caplog, "Cannot receive from queue")
    assert f"AWS's {theirs:%Y-%m-%d %H:%M:%S} UTC" in line
    assert "this machine's clock says" in line


@pytest.mark.usefixtures("fast_proxy")
async def test_fault_58_a_queue_of_another_region_ends_the_start_with_both_regions_named() -> None:
    arn = "arn:aws:sqs:ap-south-1:000000000000:shop"
    service = Service("shop", queue=Queue(arn, existing=True))

    @service.subscribe(OrderPlaced)
    async def handle(_: OrderPlaced) -> None: ...

    with pytest.raises(ConfigError, match=r"is in region ap-south-1, .* works in us-east-1: set AWS_REGION"):
        async with working(service):
            pass
