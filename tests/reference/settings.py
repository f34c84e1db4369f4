"""The page of the settings: each variable with its type, default and unit, from the classes that read them."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from smartpipe import settings
from smartpipe.settings import ENV_PREFIX
from tests.reference import docstrings
from tests.reference.tables import code, table, unit_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

INTRODUCTION = """\
# Settings

Every environment variable of smartpipe. `make reference` writes this page from the code.
[Settings](../reference.md#settings) explains how the variables are read, and which of AWS's own variables matter.

An empty variable counts as not set. A wrong value ends the command with exit code 2, and the error names the variable
and its value. A variable that begins with `SMARTPIPE_` and resembles a setting causes a warning.

"""
GROUPS = {
    "AwsSettings": "Every command and every process that calls AWS",
    "TransportSettings": "Every process that publishes or receives",
    "PayloadSettings": "Every process that publishes or receives: large bodies",
    "ClaimSettings": "Workers and Lambda functions with idempotent handlers, and `smartpipe store migrate`",
    "StoreSettings": "`smartpipe relay`, and `smartpipe store migrate`",
    "ConcurrencySettings": "Workers and `smartpipe dev`: concurrency",
    "LambdaSettings": "Lambda functions",
    "ServerSettings": "Workers and relays: probes and logs",
    "WorkerSettings": "Workers",
}
OTHER = {
    "log_level": "The level of all loggers. `debug` writes a line for every handled message.",
    "log_format": "`json` or `text`; `auto` means text on a terminal, and JSON otherwise.",
}
"""Descriptions of settings that the docstring of their class does not describe."""
TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", SecretStr: "URL, a secret"}


def page() -> str:
    """Return the page."""
    sections = [INTRODUCTION]
    seen: set[str] = set()
    for name, title in GROUPS.items():
        cls = getattr(settings, name)
        described = docstrings.read(cls).arguments
        fields = {key: field for key, field in cls.model_fields.items() if key not in seen}
        rows = [_row(key, field, described.get(key) or OTHER[key]) for key, field in fields.items()]
        sections.append(f"## {title}\n\n" + table(("variable", "type", "default", "unit", "range", ""), rows))
        seen |= set(fields)
    everything = {key for cls in settings._ALL for key in cls.model_fields}
    assert seen == everything, f"add the classes of {everything - seen} to GROUPS in tests/reference/settings.py"
    return "".join(sections).rstrip("\n") + "\n"


def _row(name: str, field: FieldInfo, text: str) -> tuple[str, ...]:
    default = (
        ""
        if field.default in (None, "")
        else code(str(field.default).lower() if field.annotation is bool else str(field.default))
    )
    return (
        code(f"{ENV_PREFIX}{name.upper()}"),
        _type_of(field.annotation),
        default,
        unit_of(name),
        _range_of(field),
        text.replace("|", "\\|"),
    )


def _type_of(annotation: Any) -> str:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        [annotation] = [one for one in typing.get_args(annotation) if one is not type(None)]
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(code(str(one)) for one in typing.get_args(annotation))
    return TYPES[annotation]


def _range_of(field: FieldInfo) -> str:
    limits = {key: getattr(one, key) for one in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(one, key)}
    pattern = [one.pattern for one in field.metadata if getattr(one, "pattern", None)]
    if pattern:
        return code(pattern[0])
    low, high = (f"{limits[key]:,}" if key in limits else "" for key in ("ge", "le"))
    return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""
