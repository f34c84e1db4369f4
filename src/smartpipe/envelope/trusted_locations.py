"""The buckets and prefixes that bodies may be read from, as any publisher can send a pointer to elsewhere. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote

from smartpipe.envelope.body_encoding import ARN, PayloadLocation
from smartpipe.errors import ConfigError, DecodeError
from smartpipe.settings import PayloadSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.message import Payload

NOT_ALLOWED = "payload-not-allowed"
_WRITE, _READ = "SMARTPIPE_CLAIM_CHECK_URL", "SMARTPIPE_CLAIM_CHECK_READ"
_MAX_SHOWN_LENGTH = 200


class TrustedLocations(NamedTuple):
    """The locations that bodies may be read from.

    A key is in a location if it begins with the location's prefix and is longer than the prefix, which ends with a
    slash unless it is empty. The key is compared as written, character by character. A key with a segment ``.`` or
    ``..``, also percent-encoded, or with a slash at its start, is in no location: to S3 itself it is an ordinary key,
    but proxies and other servers may resolve it.
    """

    locations: tuple[PayloadLocation, ...] = ()

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``SMARTPIPE_CLAIM_CHECK_URL`` and ``SMARTPIPE_CLAIM_CHECK_READ``.

        Raises:
            ConfigError: Wrong settings, with a sentence for each URL.
        """
        settings = PayloadSettings.load()
        write = [PayloadLocation.parse(settings.claim_check_url)] if settings.claim_check_url else []
        return cls(tuple(dict.fromkeys([*write, *_parse_locations(settings.claim_check_read or "")])))

    def location_of(self, payload: Payload) -> PayloadLocation:
        """Return the location that *payload* is in. If there are several, return the one with the longest prefix.

        Raises:
            DecodeError: It is in none of them. The error names the bucket and the setting.
        """
        if _is_relative(payload.key):
            detail = f"{_describe(payload)}; a key that begins with a slash or has a segment . or .. is never read"
            raise DecodeError(NOT_ALLOWED, detail)
        found = [one for one in self.locations if one.bucket == payload.bucket and payload.key.startswith(one.prefix)]
        found = [one for one in found if len(payload.key) > len(one.prefix)]
        if not found:
            raise DecodeError(NOT_ALLOWED, self._refusal(payload))
        return max(found, key=lambda one: len(one.prefix))

    def _refusal(self, payload: Payload) -> str:
        urls = ", ".join(location.url for location in self.locations)
        allowed = f"only from {urls}" if urls else f"from nowhere, because neither {_WRITE} nor {_READ} is set"
        return (
            f"{_describe(payload)}, but bodies may be read {allowed}. If bucket {payload.bucket[:_MAX_SHOWN_LENGTH]!r} "
            f"and this key are right, add their location to {_READ}, as in s3://my-bucket/folder"
        )


def _describe(payload: Payload) -> str:
    return f"the message says that its body is at {payload.url[:_MAX_SHOWN_LENGTH]!r}"


def _is_relative(key: str) -> bool:
    """Return whether a server could resolve *key* as a path, to one outside the prefix."""
    segments = {*key.split("/"), *unquote(key).split("/")}
    return key.startswith("/") or not segments.isdisjoint({".", ".."})


def _parse_locations(text: str) -> Iterable[PayloadLocation]:
    found: list[PayloadLocation] = []
    errors: list[str] = []
    for url in filter(None, re.split(r"[,\s]+", text)):
        try:
            found.append(PayloadLocation.parse(url, setting=_READ, bucket=ARN))
        except ConfigError as error:
            errors += error.problems
    if errors:
        raise ConfigError(errors)
    return found
