"""Idempotency stores: one module a server, imported by the scheme of its URL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.errors import ConfigError
from smartpipe.urls import is_postgres, is_readable, scheme_of, shown, unreadable

if TYPE_CHECKING:
    from smartpipe.idempotency.store import Store

__all__ = ["shown", "store_for"]


class _Home(NamedTuple):
    module: str
    name: str
    extra: str


_REDIS = _Home("smartpipe.idempotency.stores.redis", "RedisStore", "redis")
_POSTGRES = _Home("smartpipe.idempotency.stores.postgres", "PostgresStore", "postgres")
_HOMES = {
    "memory": _Home("smartpipe.idempotency.stores.memory", "MemoryStore", ""),
    "redis": _REDIS,
    "rediss": _REDIS,
    "valkey": _REDIS,
    "valkeys": _REDIS,
    "unix": _REDIS,
    "postgresql": _POSTGRES,
    "postgres": _POSTGRES,
    "dynamodb": _Home("smartpipe.idempotency.stores.dynamodb", "DynamoStore", "dynamodb"),
}


def store_for(url: str, *, prefix: str = "") -> Store:
    """Return the store that *url* leads to. It connects when it is opened.

    Args:
        url: ``memory://``; ``redis://``, ``rediss://`` or ``unix://`` as redis-py reads them, or ``valkey://`` or
            ``valkeys://``; ``postgresql://`` as libpq reads it, or with SQLAlchemy's driver, as in
            ``postgresql+asyncpg://``; or ``dynamodb://TABLE``.
        prefix: Sets this store's keys apart from those of other prefixes on the same server. Workers need none:
            their keys name environment, service, queue and handler.

    Raises:
        ConfigError: An unknown scheme, a part that cannot be read, or a package that is not installed. It says
            nothing of the URL but its scheme: the rest may hold a password, and where, only a good URL tells.
    """
    url = url.strip()
    scheme = scheme_of(url)
    home = home_of(url)
    if home is None:
        known = ", ".join(f"{name}://" for name in _HOMES)
        found = f"the scheme {scheme!r}" if scheme else "the scheme"
        raise ConfigError(f"SMARTPIPE_IDEMPOTENCY_URL: {found} of the store's URL is none of {known}")
    try:
        module = import_module(home.module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "smartpipe":
            raise
        raise ConfigError(
            f"a store at {scheme}:// needs the package {error.name}; run pip install 'smartpipe[{home.extra}]'"
        ) from None
    try:
        if not is_readable(url):
            raise ValueError  # noqa: TRY301 - handled like a URL that the store itself cannot read
        store: Store = getattr(module, home.name)(url, prefix=prefix)
    except ValueError:  # its text quotes parts of the URL
        raise ConfigError(unreadable("SMARTPIPE_IDEMPOTENCY_URL", scheme)) from None
    return store


def home_of(url: str) -> _Home | None:
    """Return where the store of *url* is implemented; None for an unknown scheme."""
    return _POSTGRES if is_postgres(url) else _HOMES.get(scheme_of(url))
