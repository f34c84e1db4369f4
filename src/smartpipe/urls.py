"""Describes URLs without their passwords, and checks URLs before a library parses them. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")
_POSTGRES = re.compile(r"postgres(ql)?(\+[a-z0-9_]+)?")
_HOST = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9._~%-]*)(:[0-9]{1,5})?")
# From the scheme to the last "@" of the word: a password may contain an unencoded "/", "?", "#" or "@".
_USER_IN_TEXT = re.compile(r"(?<=://)[^\s\"'<>]*@")
_QUERY_IN_TEXT = re.compile(r"(://[^\s\"'<>?#]*)[?#][^\s\"'<>]*")


def describe_url(url: str) -> str:
    """Return *url* without its secrets: the user, the password, the query and the fragment.

    If it is not certain which part is the password, return only the scheme, as in ``postgresql://...``.
    """
    scheme = scheme_of(url)
    if not scheme:
        return "..."
    if not is_readable(url):
        return f"{scheme}://..."
    parts = urlsplit(url)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def scheme_of(url: str) -> str:
    """Return the scheme of *url* in lower case; empty if it has none, because then any part may be secret."""
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator and _SCHEME.fullmatch(scheme) else ""


def is_postgres(url: str) -> bool:
    """Return whether *url* is ``postgresql://`` or ``postgres://``, also with a driver of SQLAlchemy, ``+asyncpg``."""
    return _POSTGRES.fullmatch(scheme_of(url)) is not None


def is_readable(url: str, *, at_in_password: bool = False) -> bool:
    """Return whether every URL parser finds the same user, password, hosts and ports in *url*.

    Parsers disagree if the password contains an unencoded character that ends a part of the URL (RFC 3986, section
    3.2). Libraries then take the rest of the password for a port, a path or a host, and print it.

    Args:
        at_in_password: Allow an unencoded "@" in the password, as parsers of proxy URLs do.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # do not let it pass: its text quotes parts of the URL
        return False
    if (parts.netloc.count("@") > 1 and not at_in_password) or "@" in parts.path + parts.query + parts.fragment:
        return False
    return all(_HOST.fullmatch(host) for host in parts.netloc.rpartition("@")[2].split(","))


def unreadable_url_message(setting: str, scheme: str) -> str:
    """Return the error message for an unreadable URL in *setting*. It shows no part of the URL but its scheme."""
    return (
        f"{setting}: the URL {scheme}://... cannot be read. Check that all special characters of its password are "
        "percent-encoded, as in %40 for @, that its port is a number, and that its options and their values are known "
        "to the driver for this scheme"
    )


def redact(text: str) -> str:
    """Return *text* without the user, the password and the query of every URL in it."""
    return _QUERY_IN_TEXT.sub(r"\1", _USER_IN_TEXT.sub("", text))


def join_host(host: str, port: int) -> str:
    """Return the authority of a URL, as in ``127.0.0.1:8080`` or ``[::1]:8080`` (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reach_locally(host: str) -> str:
    """Return the address at which a server that listens on *host* answers on this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - the addresses of all interfaces
