"""URLs that may hold a password: shown without it, and checked before a library reads them. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")
_POSTGRES = re.compile(r"postgres(ql)?(\+[a-z0-9_]+)?")
_HOST = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9._~%-]*)(:[0-9]{1,5})?")
# From the scheme to the last "@" of the word: a password may hold an unencoded "/", "?", "#" or "@".
_USER_IN_TEXT = re.compile(r"(?<=://)[^\s\"'<>]*@")
_QUERY_IN_TEXT = re.compile(r"(://[^\s\"'<>?#]*)[?#][^\s\"'<>]*")


def describe_url(url: str) -> str:
    """Return *url* without its secrets: the user, the password, the query and the fragment.

    Where it is not certain which part is the password, only the scheme is left, as in ``postgresql://...``.
    """
    scheme = scheme_of(url)
    if not scheme:
        return "..."
    if not is_readable(url):
        return f"{scheme}://..."
    parts = urlsplit(url)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def scheme_of(url: str) -> str:
    """Return the scheme of *url* in lower case; empty where there is none, as then anything may be secret."""
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator and _SCHEME.fullmatch(scheme) else ""


def is_postgres(url: str) -> bool:
    """Return whether *url* is ``postgresql://`` or ``postgres://``, also with SQLAlchemy's driver as ``+asyncpg``."""
    return _POSTGRES.fullmatch(scheme_of(url)) is not None


def is_readable(url: str, *, at_in_password: bool = False) -> bool:
    """Return whether every reader of URLs finds the same user, password, hosts and ports in *url*.

    It is not when the password holds an unencoded character that ends the part of the URL that it is in (RFC 3986,
    section 3.2): libraries then take the rest of it for a port, a path or a host, and print that.

    Args:
        at_in_password: Allow an unencoded "@" in the password, as the readers of proxies' URLs do.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text quotes parts of the URL
        return False
    if (parts.netloc.count("@") > 1 and not at_in_password) or "@" in parts.path + parts.query + parts.fragment:
        return False
    return all(_HOST.fullmatch(host) for host in parts.netloc.rpartition("@")[2].split(","))


def unreadable_url_message(setting: str, scheme: str) -> str:
    """Say that the URL of *setting* cannot be read, and nothing of it but its scheme."""
    return (
        f"{setting}: the URL at {scheme}:// cannot be read; are all special characters of its password "
        "percent-encoded, as in %40 for @, and is its port a number?"
    )


def redact(text: str) -> str:
    """Return *text* with the user, the password and the query taken out of every URL in it."""
    return _QUERY_IN_TEXT.sub(r"\1", _USER_IN_TEXT.sub("", text))
