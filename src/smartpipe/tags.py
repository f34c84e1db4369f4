"""The tags by which smartpipe recognizes its own topics and queues. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.names import Naming

APPLICATION = "smartpipe:application"
PREFIX = "smartpipe:prefix"
SERVICE = "smartpipe:service"
OWN = "smartpipe:"
MAX_TAGS = 50
MAX_KEY_LENGTH = 128
MAX_VALUE_LENGTH = 256
_CHARACTERS = re.compile(r"[\w .:/=+@-]*")


def own_tags(naming: Naming, service: str | None = None) -> dict[str, str]:
    """Return the tags of a resource that smartpipe creates. Queues are also tagged with their *service*, topics not."""
    tags = {APPLICATION: naming.application, PREFIX: naming.prefix}
    return tags if service is None else {**tags, SERVICE: service}


def tag_errors(tags: Mapping[str, str]) -> list[str]:
    """Return a sentence for each of the *tags* that SQS and SNS would refuse.

    Source: AWS, "Tagging your AWS resources", restrictions.
    """
    errors = [
        f"tag {key!r}={value!r}: use only letters, digits, spaces and . : / = + - @ _, with 1 to {MAX_KEY_LENGTH} "
        f"characters in the key and at most {MAX_VALUE_LENGTH} in the value"
        for key, value in tags.items()
        if not (isinstance(key, str) and isinstance(value, str))
        or not 1 <= len(key) <= MAX_KEY_LENGTH
        or len(value) > MAX_VALUE_LENGTH
        or not (_CHARACTERS.fullmatch(key) and _CHARACTERS.fullmatch(value))
    ]
    errors += [
        f"tag {key!r}: keys that begin with {start!r} are reserved"
        for key in map(str, tags)
        for start in ("aws:", OWN)
        if key.lower().startswith(start)
    ]
    maximum = MAX_TAGS - 3
    if len(tags) > maximum:
        errors.append(f"{len(tags)} tags: AWS allows {MAX_TAGS}, and smartpipe needs 3, so use at most {maximum}")
    return errors
