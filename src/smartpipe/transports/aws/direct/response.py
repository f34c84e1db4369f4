"""How an answer of HTTP/1.1 is read: by its Content-Length, in chunks, or to the end of the connection. Pure.

Source: RFC 9112, section 6.
"""

from __future__ import annotations

import re
from typing import NamedTuple

END = b"\r\n\r\n"
_SAID = re.compile(rb"\r\n(content-length|transfer-encoding|connection):[ \t]*([^\r\n]*)")


class Response(NamedTuple):
    """An answer. *head* has its headers, as they came."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> str | None:
        """Return the value of a header, by its name in lower case."""
        lowered = self.head.lower()
        start = lowered.find(b"\r\n" + name + b":")
        if start < 0:
            return None
        start += len(name) + 3
        end = lowered.find(b"\r\n", start)
        return self.head[start : end if end >= 0 else None].strip().decode("latin-1")


class Framing:
    """How the body of one answer is to be read."""

    def __init__(self, head: bytes, start: int) -> None:
        line, _, headers = head.partition(b"\r\n")
        parts = line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1."):  # noqa: PLR2004
            raise ValueError(f"the answer is no HTTP/1.1: {line[:80]!r}")
        self.status = int(parts[1])
        self.head = b"\r\n" + headers
        self.start = start
        said: dict[bytes, bytes] = dict(_SAID.findall(self.head.lower()))
        connection = said.get(b"connection", b"").rstrip()
        self.keep_alive = connection != b"close" and (parts[0] != b"HTTP/1.0" or connection == b"keep-alive")
        self._chunked = said.get(b"transfer-encoding", b"").rstrip().endswith(b"chunked")
        length = said.get(b"content-length")
        self._length = 0 if self.status == 204 else None if length is None else _size(length, 10)  # noqa: PLR2004
        self.to_the_end = not self._chunked and self._length is None
        if self.to_the_end:
            self.keep_alive = False
        self.end = start + (self._length or 0)
        self._chunks: list[bytes] = []
        self._position = start

    def body_in(self, received: bytes | bytearray) -> bytes | None:
        """Return the body if it is whole."""
        if self._chunked:
            return self._unchunked(received)
        if self._length is None or len(received) < self.end:
            return None
        return bytes(received[self.start : self.end])

    def _unchunked(self, received: bytes | bytearray) -> bytes | None:
        while True:
            end = received.find(b"\r\n", self._position)
            if end < 0:
                return None
            size = _size(bytes(received[self._position : end]).split(b";")[0], 16)
            start = end + 2
            if size == 0:  # trailers, if any, end with an empty line
                last = received.find(END, end)
                self.end = last + len(END)
                return b"".join(self._chunks) if last >= 0 else None
            if len(received) < start + size + 2:
                return None
            if not received.startswith(b"\r\n", start + size):
                raise ValueError("a chunk of the answer does not end where it should")
            self._chunks.append(bytes(received[start : start + size]))
            self._position = start + size + 2


def _size(text: bytes, base: int) -> int:
    """Read a size; `int` alone takes a sign too, and a chunk of -6 bytes would be read for ever."""
    text = text.strip()
    if not text.isalnum():
        raise ValueError(f"the answer has {text[:20]!r} for a size")
    return int(text, base)
