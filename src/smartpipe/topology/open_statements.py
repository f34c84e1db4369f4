"""Whether a statement of a resource policy allows everyone. Pure.

Source: AWS Global Condition Context Keys; IAM JSON Policy Elements, "Condition operators" and "Principal"; Amazon S3,
"The meaning of public".
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_WILDCARD = re.compile(r"[*?]")
_EXACT = frozenset({"stringequals", "stringequalsignorecase"})
_PATTERNS = frozenset({"stringlike", "arnlike", "arnequals"})
"""ArnEquals and ArnLike behave alike: both accept wildcards."""
_ADDRESSES = frozenset({"ipaddress"})
_OF_THE_RESOURCE = ("${aws:resourceaccount}", "${aws:resourceorgid}", "${aws:resourceorgpaths}")


def allows_everyone(statement: Mapping[str, Any]) -> bool:
    """Return whether an Allow statement names everyone as principal, and no condition says who it is.

    All conditions of a statement have to be true, so one that limits is enough.
    """
    tests = statement.get("Condition")
    return _has_open_principal(statement) and not any(map(_limits, _tests_of(tests if isinstance(tests, dict) else {})))


def _has_open_principal(statement: Mapping[str, Any]) -> bool:
    if "NotPrincipal" in statement:
        return True
    principal = statement.get("Principal")
    found = principal.get("AWS") if isinstance(principal, dict) else principal
    return "*" in _listed(found)


def _tests_of(conditions: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield operator, key and values of each test. Names of keys are not case-sensitive."""
    for operator, tests in conditions.items():
        for key, values in tests.items() if isinstance(tests, dict) else ():
            yield operator.lower(), key.lower(), _listed(values)


def _limits(test: tuple[str, str, list[Any]]) -> bool:
    """Return whether a test is true only for requests of certain accounts, organizations, networks or resources.

    A negated test is not, nor one with ``IfExists`` or ``ForAllValues``, which is true without the key: anybody can
    make a request without it. Several values are alternatives, so each has to limit.
    """
    operator, key, values = test
    operator = operator.removeprefix("foranyvalue:")
    is_fixed = _LIMITING.get(key)
    if is_fixed is None:
        return False
    if operator in _EXACT:  # a wildcard is an ordinary character here
        return all(_is_literal(str(value)) for value in values)
    if operator in _PATTERNS or (operator in _ADDRESSES and is_fixed is _is_narrow):
        return all(is_fixed(str(value)) for value in values)
    return False


def _is_literal(value: str) -> bool:
    """Return whether a value is not a variable, or only one that stands for the owner of the resource."""
    return "${" not in value or value.lower() in _OF_THE_RESOURCE


def _is_whole(value: str) -> bool:
    return not _WILDCARD.search(value) and _is_literal(value)


def _is_path(value: str) -> bool:
    """Return whether a path of an organization, ``o-id/r-root/ou-unit/``, names the organization."""
    return _is_whole(value.partition("/")[0])


def _is_user_id(value: str) -> bool:
    """Return whether a user id, ``AROA…:session``, names the role or user. Sessions may have any name."""
    return _is_whole(value.partition(":")[0])


def _is_arn(value: str) -> bool:
    """Return whether a pattern of ARNs names an account; or, if they have none as those of S3, the resource."""
    parts = value.split(":", 5)
    if len(parts) < 6:  # noqa: PLR2004 - arn, partition, service, region, account and resource
        return _is_whole(
            value
        )  # not an ARN: a pattern such as arn:aws:sns:* has any account, and other text matches none
    account, resource = parts[4:]
    return _is_whole(account) if account else _is_whole(re.split("[/:]", resource)[0])


def _is_narrow(value: str) -> bool:
    try:
        return ip_network(value, strict=False).prefixlen > 0
    except ValueError:
        return _is_whole(value)


_LIMITING: dict[str, Callable[[str], bool]] = {
    "aws:principalaccount": _is_whole,
    "aws:principalarn": _is_arn,
    "aws:principalorgid": _is_whole,
    "aws:principalorgpaths": _is_path,
    "aws:sourceaccount": _is_whole,
    "aws:sourcearn": _is_arn,
    "aws:sourceip": _is_narrow,
    "aws:sourceorgid": _is_whole,
    "aws:sourceorgpaths": _is_path,
    "aws:sourceowner": _is_whole,
    "aws:sourcevpc": _is_whole,
    "aws:sourcevpcarn": _is_arn,
    "aws:sourcevpce": _is_whole,
    "aws:userid": _is_user_id,
    "aws:vpceaccount": _is_whole,
    "aws:vpceorgid": _is_whole,
    "aws:vpceorgpaths": _is_path,
}
"""The keys that say whose request it is, with a function: whether a pattern says that too.

Others do not. Anybody can use TLS (``aws:SecureTransport``), tag a role (``aws:PrincipalTag``), name a user
(``aws:username``), let a service of AWS call (``aws:PrincipalIsAWSService``) or have an address in a private network
(``aws:VpcSourceIp``).
"""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
