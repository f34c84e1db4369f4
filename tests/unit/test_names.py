"""Physical names, ARNs and URLs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import names, urls
from smartpipe.names import Naming, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

CHINA = Naming("aws-cn", "cn-north-1", "123456789012", "staging-")
ARN = "arn:aws:sqs:eu-west-1:210987654321:orders"


def test_a_name_gets_the_prefix_and_an_arn_stays_as_it_is() -> None:
    assert CHINA.physical_name("orders") == "staging-orders"
    assert CHINA.queue_arn("orders") == "arn:aws-cn:sqs:cn-north-1:123456789012:staging-orders"
    assert CHINA.topic_arn("orders") == "arn:aws-cn:sns:cn-north-1:123456789012:staging-orders"
    assert (CHINA.physical_name(ARN), CHINA.queue_arn(ARN), CHINA.topic_arn(ARN)) == ("orders", ARN, ARN)


def test_a_table_and_a_bucket_have_no_prefix() -> None:
    assert CHINA.table_arn("claims") == "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/claims"
    assert CHINA.bucket_arn("bodies") == "arn:aws-cn:s3:::bodies"
    assert names.name_in(CHINA.table_arn("claims")) == "claims"


def test_an_arn_is_taken_apart() -> None:
    assert names.partition_in(CHINA.queue_arn("a")) == "aws-cn"
    assert (names.service_in(ARN), names.region_in(ARN), names.account_in(ARN)) == ("sqs", "eu-west-1", "210987654321")
    assert (names.name_in(ARN), names.name_in("orders")) == ("orders", "orders")
    assert [names.is_arn(name) for name in (ARN, "orders", "my-arn:x")] == [True, False, False]


@pytest.mark.parametrize(
    "url", ["https://sqs.eu-west-1.amazonaws.com/000000000001/mails", "http://localhost:4566/x/000000000001/mails"]
)
def test_a_queue_url_leads_to_an_arn_in_the_region_of_another(url: str) -> None:
    assert names.queue_arn_at(url, like=ARN) == "arn:aws:sqs:eu-west-1:000000000001:mails"


class Mailer:
    def send(self) -> None: ...
    def __call__(self) -> None: ...


@pytest.mark.parametrize(("function", "name"), [
    (Mailer().send, "Mailer.send"), (Mailer, "Mailer"), (Mailer(), "Mailer"), (partial(Mailer()), "Mailer"),
    (partial(partial(Mailer.send), None), "Mailer.send"),
])  # fmt: skip
def test_a_function_is_named_by_its_module_and_its_qualified_name(function: Callable[..., Any], name: str) -> None:
    assert name_of(function) == f"{__name__}.{name}"


@pytest.mark.parametrize(("url", "shown"), [
    ("postgresql://db:5432/claims", "postgresql://db:5432/claims"),
    ("PostgreSQL://db/claims?sslmode=require#x", "postgresql://db/claims"),
    ("postgresql://ada:pw@a:1,b:2/claims", "postgresql://a:1,b:2/claims"),
    ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
    ("redis://:p@ss@host/0", "redis://..."),
    ("redis://:pass/word@host", "redis://..."),
    ("redis://host/0?x=a@b", "redis://..."),
    ("redis://host/0#a@b", "redis://..."),
    ("redis://host:port", "redis://..."),
    ("redis://host:123456", "redis://..."),
    ("redis://a,b:x/0", "redis://..."),
    ("redis://[::1/0", "redis://..."),
    ("secret", "..."),
    ("://secret", "..."),
    ("1x://secret", "..."),
    (f"{'x' * 31}://host", f"{'x' * 31}://host"),
    (f"{'x' * 32}://host", "..."),
    ("se cret://host", "..."),
    ("", "..."),
])  # fmt: skip
def test_a_url_is_shown_without_any_part_that_may_be_secret(url: str, shown: str) -> None:
    assert urls.describe_url(url) == shown


@pytest.mark.parametrize(("url", "readable", "readable_with_at"), [
    ("http://proxy:80", True, True), ("http://ada:pw@proxy", True, True), ("http://ada:p@w@proxy", False, True),
    ("http://ada:pw@proxy/a@b", False, False), ("http://ada:p/w@proxy", False, False),
])  # fmt: skip
def test_an_at_sign_is_readable_only_in_the_password_of_a_proxy(
    url: str, readable: bool, readable_with_at: bool
) -> None:
    assert urls.is_readable(url) is readable
    assert urls.is_readable(url, at_in_password=True) is readable_with_at


@pytest.mark.parametrize(("url", "expected"), [
    ("postgresql://db", True), ("postgres://db", True), ("POSTGRESQL+asyncpg://db", True), ("postgresqlx://db", False),
    ("mypostgresql://db", False), ("postgresql:db", False), ("redis://db", False),
])  # fmt: skip
def test_postgresql_is_recognized_with_any_driver(url: str, expected: bool) -> None:
    assert urls.is_postgres(url) is expected


def test_every_url_in_a_text_loses_its_user_and_its_query() -> None:
    text = "from redis://a:b@c/d?e=f#g to 'https://h:i@j:k@l/m#n' and o@p?q"

    assert urls.redact(text) == "from redis://c/d to 'https://l/m' and o@p?q"
