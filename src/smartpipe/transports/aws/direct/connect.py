"""A connection to whichever of a host's addresses answers first, with TLS on it where wanted.

Source: RFC 8305, Happy Eyeballs. Neither asyncio nor uvloop does it unasked: an address that swallows packets would
take the whole of the time that a connection may take.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, TypeVar

from aiohappyeyeballs import start_connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

CONNECT_SECONDS = 5.0
"""For the name, TCP and TLS together."""
NEXT_ADDRESS_SECONDS = 0.25
"""The next address is tried besides those before it: RFC 8305, section 5, the Connection Attempt Delay."""

P = TypeVar("P", bound=asyncio.Protocol)


async def connect(protocol: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None) -> P:
    """Return what *protocol* made, connected. A cancel, or a failure, leaves no socket open.

    Raises:
        TimeoutError: It took longer than CONNECT_SECONDS.
        OSError: The name is unknown, no address takes connections, or TLS does not come about (`ssl.SSLError`).
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        addresses = await addresses_of(host, port)
        try:
            connected = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1)
        except RuntimeError as error:  # uvloop's, for some sockets that cannot be used
            raise OSError(str(error)) from error
        _, made = await loop.create_connection(protocol, sock=connected, ssl=tls, server_hostname=host if tls else None)
    return made


async def addresses_of(host: str, port: int) -> list[Any]:
    """Look *host* up, IPv6 and IPv4, in the system's order of preference."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
