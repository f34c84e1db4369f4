"""Compressed bodies: gzip or zstd, in Base64 because SNS and SQS carry text. Pure.

The message attribute ``content-encoding`` names the coding, as HTTP's header does (RFC 9110, section 8.4).
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
"""What others call a body that is not compressed: the name of the attribute is a common one."""
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""What every zstd decoder should have room for (RFC 8878, section 3.1.1.1.2); a frame that wants more is refused."""


def check_encoding(encoding: str) -> None:
    """Find out now whether what *encoding* needs is installed.

    Raises:
        ConfigError: It is not: with the command that installs it.
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
        packed = _zstandard().ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    else:
        packer = zlib.compressobj(GZIP_LEVEL, wbits=_GZIP)
        packed = packer.compress(data) + packer.flush()
    return b64encode(packed).decode()


def decompress(body: str, encoding: str, limit_bytes: int) -> str:
    """Return what *body* was before it was compressed.

    Raises:
        DecodeError: It is not compressed so, or would be longer than *limit_bytes*. A body that expands to a thousand
            times its size must not take the process down.
        PayloadError: The coding is none of ours, or needs a package that is not installed: other workers may have it.
    """
    name = encoding.strip().lower()
    if name in PLAIN:
        return body
    unpack = {"gzip": _gunzipped, "x-gzip": _gunzipped, "zstd": _unzstd}.get(name)
    if unpack is None:
        detail = f"{ENCODING_ATTRIBUTE} {encoding!r} is none of gzip, zstd"
        raise PayloadError("unknown-encoding", detail)
    try:
        return unpack(b64decode(body, validate=True), limit_bytes).decode()
    except ModuleNotFoundError:
        detail = "a body in zstd needs the package zstandard; run pip install 'smartpipe[zstd]'"
        raise PayloadError("unknown-encoding", detail) from None
    except (binascii.Error, UnicodeError, zlib.error, EOFError, ValueError) as error:
        detail = f"the body is not what its {ENCODING_ATTRIBUTE} {name!r} says: {error or type(error).__name__}"
        raise DecodeError("not-compressed", detail) from None


def _gunzipped(data: bytes, limit_bytes: int) -> bytes:
    """Decompress every member (RFC 1952, section 2.2), in steps: of members that are empty there could be millions."""
    unpacked = bytearray()
    member, members, position, pending = None, 0, 0, b""
    room = limit_bytes
    while pending or position < len(data):
        if not pending:
            pending = data[position : position + _STEP_BYTES]
            position += _STEP_BYTES
        if member is None:
            member, members = zlib.decompressobj(wbits=_GZIP), members + 1
            if members > MAX_MEMBERS:
                raise ValueError(f"it has more than {MAX_MEMBERS:,} members")
        part = member.decompress(pending, room + 1)
        unpacked += part
        room -= len(part)
        _refuse_beyond(limit_bytes, room)
        pending = member.unused_data
        if member.eof:
            member = None
    if member is not None or not members:
        raise EOFError("it ends too early")
    return bytes(unpacked)


def _unzstd(data: bytes, limit_bytes: int) -> bytes:
    module = _zstandard()
    unpacker = module.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    try:
        with unpacker.stream_reader(data, read_across_frames=True) as reader:
            found: bytes = reader.read(limit_bytes + 1)
        _refuse_beyond(limit_bytes, limit_bytes - len(found))
        expected = module.frame_content_size(data)
    except module.ZstdError as error:
        raise ValueError(error) from None
    if expected > len(found):
        raise EOFError("it ends too early")
    return found


def _refuse_beyond(limit_bytes: int, room: int) -> None:
    if room < 0:
        msg = (
            f"it would be longer than {limit_bytes:,} bytes; raise SMARTPIPE_DECOMPRESSED_LIMIT_BYTES, or of a body in "
            "S3 SMARTPIPE_PAYLOAD_LIMIT_BYTES, if it may be"
        )
        raise ValueError(msg)


def _zstandard() -> Any:
    return import_module("zstandard")
