"""A connection to the first of a host's addresses that answers, with TLS if wanted.

Source: RFC 8305, Happy Eyeballs. asyncio and uvloop do not do this by default: an address whose packets are lost would
use up all the time for connecting.
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
"""The Connection Attempt Delay of RFC 8305, section 5. After it the next address is tried in parallel."""

P = TypeVar("P", bound=asyncio.Protocol)


async def connect(protocol: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None) -> P:
    """Return a connected instance of *protocol*. A cancel, or an error, leaves no socket open.

    Raises:
        TimeoutError: It took longer than CONNECT_SECONDS.
        OSError: The name is unknown, no address accepts connections, or the TLS handshake failed (`ssl.SSLError`).
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        addresses = await find_addresses(host, port)
        try:
            connected = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1)
        except RuntimeError as error:  # uvloop raises it for some sockets that cannot be used
            raise OSError(str(error)) from error
        _, connection = await loop.create_connection(
            protocol, sock=connected, ssl=tls, server_hostname=host if tls else None
        )
    return connection


async def find_addresses(host: str, port: int) -> list[Any]:
    """Look up the IPv6 and IPv4 addresses of *host*, in the system's order of preference."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
