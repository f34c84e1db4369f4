"""How stores write the key of a claim, and read the numbers of a claim. Pure."""

from __future__ import annotations

import math
from hashlib import sha256

from smartpipe.keys import compose, escape
from smartpipe.limits import MAX_VISIBILITY_SECONDS

MAX_ATTEMPTS = 2_147_483_646


def stored_key(prefix: str, key: str, *, max_bytes: int) -> str:
    """Return *key* under *prefix*, or its digest if a store might refuse the key.

    Text in PostgreSQL cannot contain NUL, UTF-8 cannot contain lone surrogates, and DynamoDB limits keys to 2,048
    bytes, which 512 characters can exceed. The first ``/`` or ``=`` ends the prefix; it marks a key or a digest.
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


# A store may contain any number, for example if another program has written it.


def limit_lease(seconds: float) -> float:
    """Return the remaining time of a lease, limited to 0 to 12 hours."""
    return 0.0 if math.isnan(seconds) else min(max(0.0, seconds), float(MAX_VISIBILITY_SECONDS))


def limit_attempt(number: float) -> int:
    """Return the number of an attempt, limited to 1 to 2,147,483,646."""
    return 1 if math.isnan(number) else int(min(max(1, number), MAX_ATTEMPTS))
