"""Opens the idempotency store at a URL. The module of a store is imported when a URL of its kind is opened."""

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
"""The extra of this package that each scheme needs."""


def open_store(url: str, *, prefix: str = "") -> Store:
    """Return the store at *url*. It connects when it is opened.

    Args:
        url: ``memory://``; ``redis://``, ``rediss://`` or ``unix://`` in the form of redis-py, or ``valkey://`` or
            ``valkeys://``; ``postgresql://`` in the form of libpq, or with a driver of SQLAlchemy, as in
            ``postgresql+asyncpg://``; or ``dynamodb://TABLE``.
        prefix: Separates the keys of this store from those with another prefix on the same server. Workers need no
            prefix: their keys contain environment, service, queue and handler.

    Raises:
        ConfigError: The scheme is unknown, a part of the URL cannot be read, or a package is not installed. The error
            shows no part of the URL but its scheme, because the password is certain to be found only in a valid URL.
    """
    url = url.strip()
    scheme = scheme_of(url)
    extra = _extra_for(url)
    if extra is None:
        known = ", ".join(f"{name}://" for name in _EXTRAS)
        found = f"the scheme {scheme!r}" if scheme else "the scheme"
        raise ConfigError(f"SMARTPIPE_IDEMPOTENCY_URL: {found} of the store's URL is not one of {known}")
    try:
        store_class = _import_store(extra)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "smartpipe":
            raise
        raise ConfigError(
            f"the store at {scheme}:// needs the package {error.name}; run pip install 'smartpipe[{extra}]'"
        ) from None
    try:
        if not is_readable(url):
            raise ValueError  # noqa: TRY301 - the same error as for a URL that the store itself cannot read
        store: Store = store_class(url, prefix=prefix)
    except ValueError:  # do not let it pass: its text quotes parts of the URL
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
