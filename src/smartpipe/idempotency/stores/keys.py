"""How a key is written in a store."""

from __future__ import annotations

from hashlib import sha256

from smartpipe.keys import compose, escape


def stored_key(prefix: str, key: str, *, max_bytes: int) -> str:
    """Return *key* under *prefix*, or its digest if a store could not take it.

    PostgreSQL's text has no NUL, UTF-8 has no lone surrogates, and DynamoDB's keys end at 2,048 bytes, which 512
    characters can exceed. The first ``/`` or ``=`` ends the prefix, and says whether a key or a digest follows.
    """
    start = escape(prefix)
    try:
        stored = f"{start}/{key}"
        if "\0" not in key and len(stored.encode()) <= max_bytes:
            return stored
    except UnicodeEncodeError:
        pass
    digest = sha256(compose(prefix, key).encode()).hexdigest()
    stored = f"{start}={digest}"
    return stored if len(stored) <= max_bytes else f"={digest}"
