"""Open the idempotency store of a URL. The module of a server is imported when its URL is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.errors import ConfigError
from smartpipe.urls import is_postgres, is_readable, scheme_of, unreadable_url_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.idempotency.store import Store

_EXTRAS = {
    "memory": "",
    "redis": "redis",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "unix": "redis",
    "postgresql": "postgres",
    "postgres": "postgres",
    "dynamodb": "dynamodb",
}
"""The extra of the package that each scheme needs."""


def open_store(url: str, *, prefix: str = "") -> Store:
    """Return the store that *url* names. It connects when it is opened.

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
    extra = _extra_for(url)
    if extra is None:
        known = ", ".join(f"{name}://" for name in _EXTRAS)
        found = f"the scheme {scheme!r}" if scheme else "the scheme"
        raise ConfigError(f"SMARTPIPE_IDEMPOTENCY_URL: {found} of the store's URL is none of {known}")
    try:
        store_class = _import_store(extra)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "smartpipe":
            raise
        raise ConfigError(
            f"a store at {scheme}:// needs the package {error.name}; run pip install 'smartpipe[{extra}]'"
        ) from None
    try:
        if not is_readable(url):
            raise ValueError  # noqa: TRY301 - handled like a URL that the store itself cannot read
        store: Store = store_class(url, prefix=prefix)
    except ValueError:  # its text quotes parts of the URL
        raise ConfigError(unreadable_url_message("SMARTPIPE_IDEMPOTENCY_URL", scheme)) from None
    return store


def is_store_url(url: str) -> bool:
    """Return whether ``open_store`` knows the scheme of *url*."""
    return _extra_for(url) is not None


def _extra_for(url: str) -> str | None:
    return "postgres" if is_postgres(url) else _EXTRAS.get(scheme_of(url))


def _import_store(extra: str) -> Callable[..., Store]:
    if extra == "redis":
        from smartpipe.idempotency.stores.redis import RedisStore

        return RedisStore
    if extra == "postgres":
        from smartpipe.idempotency.stores.postgres import PostgresStore

        return PostgresStore
    if extra == "dynamodb":
        from smartpipe.idempotency.stores.dynamodb import DynamoStore

        return DynamoStore
    from smartpipe.idempotency.stores.memory import MemoryStore

    return MemoryStore
