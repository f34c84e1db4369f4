"""Tags: how smartpipe knows its own topics and queues among others. Pure."""

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
    """Return the tags of what smartpipe makes; a queue has its *service* too, a topic belongs to no one service."""
    tags = {APPLICATION: naming.application, PREFIX: naming.prefix}
    return tags if service is None else {**tags, SERVICE: service}


def tag_problems(tags: Mapping[str, str]) -> list[str]:
    """Say what SQS and SNS would refuse. Source: AWS, "Tagging your AWS resources", restrictions."""
    problems = [
        f"tag {key!r}={value!r}: letters, digits, spaces and . : / = + - @ _ only, 1 to {MAX_KEY_LENGTH} characters of "
        f"the key, at most {MAX_VALUE_LENGTH} of the value"
        for key, value in tags.items()
        if not (isinstance(key, str) and isinstance(value, str))
        or not 1 <= len(key) <= MAX_KEY_LENGTH
        or len(value) > MAX_VALUE_LENGTH
        or not (_CHARACTERS.fullmatch(key) and _CHARACTERS.fullmatch(value))
    ]
    problems += [
        f"tag {key!r}: names beginning with {start!r} are taken"
        for key in map(str, tags)
        for start in ("aws:", OWN)
        if key.lower().startswith(start)
    ]
    most = MAX_TAGS - 3
    if len(tags) > most:
        problems.append(f"{len(tags)} tags; AWS takes {MAX_TAGS}, and smartpipe's own are 3, so {most} at most")
    return problems
