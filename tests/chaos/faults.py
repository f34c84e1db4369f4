"""The faults of the scenarios. Each is a function that takes the setup, or that returns such a function."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from tests.chaos.delivery_faults import create_expired_handles
from tests.support.proxy import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.chaos.delivery_faults import DeliveryFault
    from tests.chaos.servers import ServiceProcess
    from tests.chaos.setup import Setup

FaultFunction: TypeAlias = "Callable[[Setup], None]"

SHARE = 0.2
STALL_SECONDS = 30.0
NEVER_SECONDS = 600.0
REFUSED_SECONDS = 5.0
HOLD_SECONDS = 0.3
"""Messages wait for a slot for a second at most."""
SKEW = timedelta(minutes=10)


def nothing(_: Setup) -> None:
    """Inject no fault."""


def hold(point: str) -> FaultFunction:
    """Hold every handler at *point*."""
    return lambda setup: setup.hold(point)


def inject(*operations: str, share: float = 1.0, **options: Any) -> FaultFunction:
    """Inject a fault into a share of each operation's calls. An empty name stands for all operations."""

    def begin(setup: Setup) -> None:
        for operation in operations:
            setup.inject(operation, share=share, **options)

    return begin


def combine(*functions: FaultFunction) -> FaultFunction:
    """Inject all of the faults."""

    def begin(setup: Setup) -> None:
        for function in functions:
            function(setup)

    return begin


def stall(operation: str, times: int) -> FaultFunction:
    """Delay calls by half a minute before they reach the broker."""
    return inject(operation, times=times, delay_seconds=STALL_SECONDS)


def outlast_stalls(setup: Setup) -> None:
    """Wait until the broker has carried out all stalled calls, because the late calls are part of the fault."""
    stalls = [fault for fault in setup.faults if isinstance(fault, Fault)]
    setup.wait_until(lambda: all(fault.hits == fault.times for fault in stalls))
    until = max(fault.hit_at[-1] for fault in stalls) + STALL_SECONDS + 1
    time.sleep(max(0.0, until - time.monotonic()))


def alter_deliveries(create: Callable[[Random], DeliveryFault]) -> FaultFunction:
    """Change the messages that workers receive."""
    return lambda setup: setup.inject_delivery_fault(create(setup.random))


def expire_handles(setup: Setup) -> None:
    setup.inject("DeleteMessageBatch", share=2 * SHARE, respond=create_expired_handles(setup.random))


def refuse_for_a_while(code: str, message: str, headers: Callable[[], dict[str, str]] = dict) -> FaultFunction:
    """Respond to all calls with 403 and *code* for 5 s, while events are being handled."""

    def refuse(setup: Setup) -> None:
        setup.wait_for_effects(10)
        fault = setup.inject(answer=(403, code, message), headers=headers())
        time.sleep(REFUSED_SECONDS)
        fault.times = 0

    return refuse


def date_ten_minutes_off() -> dict[str, str]:
    """Return the header with the time of the AWS server."""
    return {"Date": format_datetime(datetime.now(UTC) + SKEW, usegmt=True)}


def kill_before_the_claim(setup: Setup) -> None:
    faults = [setup.kill_at_reply(worker, "ReceiveMessage", b'"Body"') for worker in _list_workers(setup)]
    # A receive call that is already open could deliver messages to a worker that is not killed.
    setup.wait_until(lambda: all(fault.hits for fault in faults))


def lose_deletes(setup: Setup) -> None:
    """Drop all deletes of the workers that run now."""
    for process in _list_workers(setup):
        setup.inject("DeleteMessageBatch", key=process.key, drop="request")


def kill_before_the_delete(setup: Setup) -> None:
    """Kill both workers after they have sent deletes, when no handler is between its effect and its completion."""
    setup.wait_until(lambda: all(fault.hits for fault in setup.faults))
    workers = _list_workers(setup)
    setup.hold("before")
    time.sleep(1)  # until handlers behind that point have had their effects
    setup.wait_until(lambda: setup.database.count_effects() == setup.database.count_completed_claims())
    for process in workers:
        setup.kill(process)
    setup.release("before")


def kill_at(point: str) -> FaultFunction:
    def kill(setup: Setup) -> None:
        for _ in range(setup.size.rounds):
            setup.kill(setup.wait_until_held(point))
        setup.release(point)

    return kill


def kill_at_both(setup: Setup) -> None:
    setup.kill(setup.wait_until_held("before"))
    setup.hold("after")
    setup.release("before")
    setup.kill(setup.wait_until_held("after"))
    setup.release("after")


def kill_in_a_drain(setup: Setup) -> None:
    for _ in range(setup.size.rounds):
        process = setup.wait_until_held("before")
        process.signal(signal.SIGTERM)
        process.wait_until(lambda process=process: process.logged("draining"))  # type: ignore[misc]
        setup.kill(process)
    setup.release("before")


def begin_with_a_reserve(setup: Setup) -> None:
    """Let the handlers run, and wait until the workers have received more messages than they have slots for."""
    setup.release("before")
    setup.wait_until(lambda: setup.count_in_flight() > _count_slots(setup))


def stop_with_a_reserve(setup: Setup) -> None:
    """Hold the handlers while messages wait for their slots. Then kill one worker, and let the other one drain."""
    workers = _list_workers(setup)
    setup.wait_until(lambda: _hold_with_a_reserve(setup))
    setup.kill(workers[0])
    workers[1].drain()
    workers[1].wait_until(lambda: workers[1].logged("draining"))
    setup.release("before")
    assert workers[1].wait() == 0


def _hold_with_a_reserve(setup: Setup) -> bool:
    """Hold the handlers after a moment, and return whether messages wait when those handled before are deleted."""
    setup.release("before")
    time.sleep(HOLD_SECONDS)
    setup.hold("before")
    time.sleep(HOLD_SECONDS)
    return setup.count_in_flight() > _count_slots(setup)


def kill_the_relay_at_its_publish(setup: Setup) -> None:
    setup.kill_at_reply(setup.relay, "PublishBatch", b"")


def kill_the_relay_again(setup: Setup) -> None:
    """Wait until the relay has ended, and kill its replacement at its first batch."""
    setup.relay.wait()
    setup.replace_ended()
    kill_the_relay_at_its_publish(setup)
    setup.relay.wait()


def restart_postgres(setup: Setup) -> None:
    setup.wait_for_effects(10)
    setup.servers.postgres.stop()
    time.sleep(1)
    setup.servers.postgres.start()


def kill_postgres(setup: Setup) -> None:
    setup.wait_for_effects(10)
    setup.servers.kill_postgres()
    time.sleep(1)
    setup.servers.postgres.start()


def restart_redis(setup: Setup) -> None:
    setup.wait_for_effects(10)
    setup.servers.redis.stop()
    time.sleep(1)
    setup.servers.redis.start()


def stop_past_the_lease(setup: Setup) -> None:
    process = setup.wait_until_held("before")
    process.signal(signal.SIGSTOP)
    setup.release("before")
    setup.settle(60)  # long enough for another worker to receive and handle the messages
    process.signal(signal.SIGCONT)


def _count_slots(setup: Setup) -> int:
    return len(_list_workers(setup)) * setup.concurrency


def _list_workers(setup: Setup) -> list[ServiceProcess]:
    return [process for process in setup.processes if process.kind == "worker"]
