"""How a claim's key stands in a store."""

from __future__ import annotations

import hashlib


def stored_key(prefix: str, key: str, *, max_bytes: int) -> str:
    """Return *key* under *prefix*, or its digest where a store could not take it.

    PostgreSQL's text has no NUL, no UTF-8 has lone surrogates, and DynamoDB's keys end at 2,048 bytes, which
    512 characters can exceed.
    """
    encoded = f"{prefix}{key}".encode(errors="surrogatepass")
    if b"\0" not in encoded and len(encoded) <= max_bytes and _is_text(key):
        return prefix + key
    return f"{prefix}sha256:{hashlib.sha256(encoded).hexdigest()}"


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
