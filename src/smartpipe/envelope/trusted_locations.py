"""From which buckets and prefixes bodies may be read: any publisher can send a message that points elsewhere. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote

from smartpipe.envelope.encoding import ARN, ClaimCheck
from smartpipe.errors import ConfigError, DecodeError
from smartpipe.settings import PayloadSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.message import Payload

NOT_ALLOWED = "payload-not-allowed"
_WRITE, _READ = "SMARTPIPE_CLAIM_CHECK_URL", "SMARTPIPE_CLAIM_CHECK_READ"
_SHOWN = 200


class TrustedLocations(NamedTuple):
    """The locations that bodies may be read from.

    A key is in a location if it begins with its prefix, which ends with a slash unless it is empty, and goes on. The
    comparison is of the key as it is written, character by character. A key with a segment ``.`` or ``..``, also
    percent-encoded, or with a slash at its start, is in no location: to S3 itself it would be a key like others, but
    proxies and other servers may resolve it.
    """

    locations: tuple[ClaimCheck, ...] = ()

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SMARTPIPE_CLAIM_CHECK_URL`` and ``SMARTPIPE_CLAIM_CHECK_READ``.

        Raises:
            ConfigError: Faulty settings, with a sentence for each URL.
        """
        settings = PayloadSettings.load()
        written = [ClaimCheck.at(settings.claim_check_url)] if settings.claim_check_url else []
        return cls(tuple(dict.fromkeys([*written, *_listed(settings.claim_check_read or "")])))

    def location_of(self, payload: Payload) -> ClaimCheck:
        """Return the location that *payload* is in: of several the one with the longest prefix.

        Raises:
            DecodeError: It is in none; its text names the bucket and the setting.
        """
        if _climbs(payload.key):
            detail = f"{_where(payload)}, and a key that begins with a slash or has a segment . or .. is never read"
            raise DecodeError(NOT_ALLOWED, detail)
        found = [one for one in self.locations if one.bucket == payload.bucket and payload.key.startswith(one.prefix)]
        found = [one for one in found if len(payload.key) > len(one.prefix)]
        if not found:
            raise DecodeError(NOT_ALLOWED, self._refusal(payload))
        return max(found, key=lambda one: len(one.prefix))

    def _refusal(self, payload: Payload) -> str:
        allowed = ", ".join(one.url for one in self.locations) or f"nowhere, as neither {_WRITE} nor {_READ} is set"
        return (
            f"{_where(payload)}, and bodies may be read from {allowed}. If bucket {payload.bucket[:_SHOWN]!r} and this "
            f"key are right, add their location to {_READ}, as in s3://my-bucket/folder"
        )


def _where(payload: Payload) -> str:
    return f"the message says that its body is at {payload.url[:_SHOWN]!r}"


def _climbs(key: str) -> bool:
    segments = {*key.split("/"), *unquote(key).split("/")}
    return key.startswith("/") or not segments.isdisjoint({".", ".."})


def _listed(text: str) -> Iterable[ClaimCheck]:
    found: list[ClaimCheck] = []
    problems: list[str] = []
    for url in filter(None, re.split(r"[,\s]+", text)):
        try:
            found.append(ClaimCheck.at(url, setting=_READ, bucket=ARN))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found
