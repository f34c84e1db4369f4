"""Compresses bodies by gzip or zstd, and encodes them in Base64, because SNS and SQS carry text. Pure.

The message attribute ``content-encoding`` names the encoding, as the header of HTTP does (RFC 9110, section 8.4).
"""

from __future__ import annotations

import binascii
import zlib
from base64 import b64decode, b64encode
from importlib import import_module
from typing import Any

from smartpipe.errors import ConfigError, DecodeError, PayloadError

ENCODING_ATTRIBUTE = "content-encoding"
GZIP_LEVEL = 6
ZSTD_LEVEL = 3
_GZIP = 16 + zlib.MAX_WBITS
_STEP_BYTES = 65_536
MAX_MEMBERS = 1_000
PLAIN = frozenset({"", "identity", "utf-8", "utf8", "us-ascii", "ascii"})
"""Values that other producers set for a body that is not compressed. The name of the attribute is a common one."""
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""The window size that every zstd decoder should support (RFC 8878, section 3.1.1.1.2). Larger ones are refused."""


def check_compression(encoding: str) -> None:
    """Check that the package for *encoding* is installed.

    Raises:
        ConfigError: It is not installed. The error has the command that installs it.
    """
    if encoding == "zstd":
        try:
            _zstandard()
        except ModuleNotFoundError:
            msg = "SMARTPIPE_COMPRESSION=zstd needs the package zstandard; run pip install 'smartpipe[zstd]'"
            raise ConfigError(msg) from None


def compress(body: str, encoding: str) -> str:
    """Return *body* compressed, in Base64."""
    data = body.encode()
    if encoding == "zstd":
        compressed = _zstandard().ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    else:
        compressor = zlib.compressobj(GZIP_LEVEL, wbits=_GZIP)
        compressed = compressor.compress(data) + compressor.flush()
    return b64encode(compressed).decode()


def decompress(body: str, encoding: str, limit_bytes: int) -> str:
    """Return *body* decompressed.

    Raises:
        DecodeError: It is not compressed by *encoding*, or would be longer than *limit_bytes*. A body that expands to
            a thousand times its size must not crash the process.
        PayloadError: The encoding is unknown, or its package is not installed; other workers may support it.
    """
    name = encoding.strip().lower()
    if name in PLAIN:
        return body
    decompress_data = {"gzip": _decompress_gzip, "x-gzip": _decompress_gzip, "zstd": _decompress_zstd}.get(name)
    if decompress_data is None:
        detail = f"{ENCODING_ATTRIBUTE} {encoding!r} is not one of gzip, zstd"
        raise PayloadError("unknown-encoding", detail)
    try:
        return decompress_data(b64decode(body, validate=True), limit_bytes).decode()
    except ModuleNotFoundError:
        detail = "a body in zstd needs the package zstandard; run pip install 'smartpipe[zstd]'"
        raise PayloadError("unknown-encoding", detail) from None
    except (binascii.Error, UnicodeError, zlib.error, EOFError, ValueError) as error:
        reason = error or type(error).__name__
        detail = f"the body cannot be decompressed as its {ENCODING_ATTRIBUTE} {name!r} says: {reason}"
        raise DecodeError("not-compressed", detail) from None


def _decompress_gzip(data: bytes, limit_bytes: int) -> bytes:
    """Decompress every member (RFC 1952, section 2.2), in steps, because there could be millions of empty members."""
    decompressed = bytearray()
    member, members, position, pending = None, 0, 0, b""
    remaining = limit_bytes
    while pending or position < len(data):
        if not pending:
            pending = data[position : position + _STEP_BYTES]
            position += _STEP_BYTES
        if member is None:
            member, members = zlib.decompressobj(wbits=_GZIP), members + 1
            if members > MAX_MEMBERS:
                raise ValueError(f"it has more than {MAX_MEMBERS:,} members")
        part = member.decompress(pending, remaining + 1)
        decompressed += part
        remaining -= len(part)
        _refuse_if_too_long(limit_bytes, remaining)
        pending = member.unused_data
        if member.eof:
            member = None
    if member is not None or not members:
        raise EOFError("it ends too early")
    return bytes(decompressed)


def _decompress_zstd(data: bytes, limit_bytes: int) -> bytes:
    module = _zstandard()
    decompressor = module.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(data, read_across_frames=True) as reader:
            decompressed: bytes = reader.read(limit_bytes + 1)
        _refuse_if_too_long(limit_bytes, limit_bytes - len(decompressed))
        expected = module.frame_content_size(data)
    except module.ZstdError as error:
        raise ValueError(error) from None
    if expected > len(decompressed):
        raise EOFError("it ends too early")
    return decompressed


def _refuse_if_too_long(limit_bytes: int, remaining: int) -> None:
    if remaining < 0:
        msg = (
            f"it would be longer than {limit_bytes:,} bytes; to accept it, raise SMARTPIPE_DECOMPRESSED_LIMIT_BYTES, "
            "or for a body in S3 SMARTPIPE_PAYLOAD_LIMIT_BYTES"
        )
        raise ValueError(msg)


def _zstandard() -> Any:
    return import_module("zstandard")
