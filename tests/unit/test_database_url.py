"""The options and the advice that a URL of PostgreSQL leads to."""

from __future__ import annotations

import asyncpg
import pytest

from smartpipe.idempotency.stores.database import CACHE_SIZE, DEFAULT_CACHE_SIZE, DatabaseUrl

ADVICE = f"add ?{CACHE_SIZE}=0"


@pytest.mark.parametrize(
    ("query", "pooled", "size"),
    [
        ("", True, 0),
        ("", False, DEFAULT_CACHE_SIZE),
        (f"?{CACHE_SIZE}=0", False, 0),
        (f"?{CACHE_SIZE}=7", True, 7),  # the URL decides
        (f"?{CACHE_SIZE}=7", False, 7),
    ],
)
def test_prepared_statements_are_cached_unless_there_is_a_pooler_or_the_url_says_otherwise(
    query: str, pooled: bool, size: int
) -> None:
    url = DatabaseUrl.parse(f"postgresql://localhost/shop{query}", "SETTING")

    assert url.cache_options(pooled=pooled) == {CACHE_SIZE: size}


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (asyncpg.InvalidSQLStatementNameError('prepared statement "s1" does not exist'), True),
        (asyncpg.DuplicatePreparedStatementError('prepared statement "s1" already exists'), True),
        (asyncpg.UndefinedTableError("relation does not exist"), False),
        (ConnectionRefusedError("refused"), False),
        (TimeoutError(), False),
    ],
)
def test_only_a_mixed_up_prepared_statement_leads_to_the_advice_about_poolers(error: Exception, advised: bool) -> None:
    url = DatabaseUrl.parse("postgresql://app:s3cret@localhost/shop", "SETTING")

    text = str(url.store_error("claim", error))

    assert (ADVICE in text) == advised
    assert "s3cret" not in text
