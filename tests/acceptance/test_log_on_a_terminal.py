"""The log of a process whose standard output is a terminal: columns, colours, and lines that fit."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

PROGRAM = """
import asyncio
import logging

from smartpipe import Event, Service, Topic
from smartpipe.cli.logs import configure
from smartpipe.testing import MemoryBroker

configure("info", "{log_format}")

class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str

service = Service("billing")

@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None:
    logging.getLogger("shop.billing").info("Charging\\n%s", "\\x1b[2J", extra={{"order_id": event.order_id}})

async def main() -> None:
    async with MemoryBroker(service) as broker:
        span = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
        await broker.publish(OrderPlaced(order_id="1"), traceparent=f"00-{{span}}-01")
        await broker.drain()

asyncio.run(main())
"""
FIELDS = ("order_id", "event_type", "event_id", "message_id", "trace_id", "span_id", "handler", "attempt")


def show(width: int, *, log_format: str = "auto", **environment: str) -> str:
    """Return everything that the program writes to a terminal of this *width*."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(log_format=log_format)],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={**inherited, "TERM": "xterm", **environment},
    )
    os.close(slave)
    screen = b""
    try:
        while chunk := os.read(master, 65_536):
            screen += chunk
    except OSError:  # on Linux, the other side is closed
        pass
    finally:
        os.close(master)
        code = process.wait(30)
    assert code == 0, screen
    return screen.decode().replace("\r\n", "\n")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("log_format", ["auto", "text"])
def test_a_terminal_shows_columns_in_colours_and_no_escape_of_the_message(log_format: str) -> None:
    screen = show(120, log_format=log_format)

    line = screen.splitlines()[0]
    assert "\x1b[32minfo    \x1b[0m \x1b[36mshop.billing        \x1b[0m Charging\\n\\x1b[2J" in line
    assert re.match(
        r"\d\d:\d\d:\d\d\.\d{3} info     shop\.billing         Charging\\n\\x1b\[2J +order_id=1", without_colours(line)
    )


@pytest.mark.parametrize("width", [0, 40, 60, 80, 120, 200])
def test_every_field_is_on_the_screen_whole_at_any_width(width: int) -> None:
    first, *others = without_colours(show(width)).splitlines()

    words = " ".join([first, *others]).split()
    assert [name for name in FIELDS if not any(word.startswith(f"{name}=") for word in words)] == []
    assert len(next(word for word in words if word.startswith("event_id="))) == len("event_id=") + 36
    assert all(line.startswith("  ") for line in others)
    longest = max(len(line) for line in [first, *others])
    assert longest <= (width or 80) or width == 40  # an id does not fit into 40 columns
    assert len(others) <= 8


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_a_terminal_without_colours_has_the_same_columns(environment: dict[str, str]) -> None:
    screen = show(120, **environment)

    assert "\x1b" not in screen
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} info     shop\.billing         Charging", screen)


def test_json_is_one_line_on_a_terminal_too() -> None:
    screen = show(40, log_format="json")

    assert screen.startswith('{"time": ')
    assert len(screen.splitlines()) == 1
