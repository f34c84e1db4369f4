"""Validators whose cost does not grow with the number of errors in a body.

Pydantic reports every error, together with the invalid input as a Python object. A list of 349,525 wrong items, which
fits into one SQS message, causes 349,525 errors. Twenty missing fields cause twenty copies of the object that lacks
them. Either blocks the event loop for seconds and takes hundreds of megabytes. The validators here stop at the first
error of each collection, and create no error objects unless they are asked to.
"""

from __future__ import annotations

from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError, PydanticKnownError, SchemaValidator, ValidationError, core_schema

from smartpipe.envelope.unions import TryCounter

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from pydantic import TypeAdapter

MAX_FORBIDDEN_FIELDS = 100
"""Stop counting unknown fields, in models that forbid them, above this number."""
NAMES_SHOWN = 10
FEW_MEMBERS = 4_096
"""A number of members of objects. The same number of errors takes some milliseconds."""

_COLLECTIONS = frozenset(
    {"list", "tuple", "set", "frozenset", "deque", "dict", "frozen-dict", "ordered-dict", "counter"}
)
_DICTS = frozenset({"dict", "frozen-dict", "ordered-dict", "counter"})
_CONTAINERS = _COLLECTIONS | {"model", "dataclass", "typed-dict"}
# The keys under which a core schema contains other schemas. "fields" and "choices" map a user's names to schemas, so
# the names in them have no meaning here. All other keys contain values, such as defaults, which may look like schemas.
_NESTED = (
    "schema",
    "definitions",
    "items_schema",
    "keys_schema",
    "values_schema",
    "extras_schema",
    "extras_keys_schema",
    "steps",
    "json_schema",
    "python_schema",
    "lax_schema",
    "strict_schema",
    "arguments_schema",
    "var_args_schema",
    "var_kwargs_schema",
)
_NAMED = ("fields", "choices")


class TooManyForbiddenFields(Exception):
    """The body has more unknown fields than an error message lists. It ends the validation immediately."""


def build_bounded_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function that parses and validates JSON, and returns None for invalid data.

    It raises ValidationError for text that is not JSON. If a Pydantic plugin observes validations, return the validator
    of *adapter* itself, which raises ValidationError for invalid data too.
    """
    if type(adapter.validator) is not SchemaValidator:
        return adapter.validator.validate_json
    return _build(_default_to_none(transform(adapter.core_schema, _stop_at_first_error)), in_thread=False)


def build_explaining_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function, for small bodies, that raises ValidationError with the first error of each collection."""
    return _build(transform(adapter.core_schema, _stop_at_first_error), in_thread=False)


def build_cooperative_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function like that of ``build_bounded_validator``, for large bodies. To be called in a thread.

    Pydantic holds the global interpreter lock from the first byte to the last. The function returned here calls a
    Python function after each container and after each value of a dict, and there CPython lets other threads run. So
    the event loop waits for milliseconds, not for the whole body. Each such call costs some 100 ns.

    Pydantic lists the errors of all forbidden fields without a pause. So if fields are forbidden and the body has many
    members, it is validated twice, the first time to count the unknown fields.
    """
    if type(adapter.validator) is not SchemaValidator:
        return adapter.validator.validate_json
    validate = _build(_default_to_none(_make_cooperative(adapter.core_schema)), in_thread=True)
    forbidden = _ForbiddenFields()
    bounded = transform(adapter.core_schema, forbidden.bound)
    if not forbidden.possible:
        return validate
    count = _build(_default_to_none(_make_cooperative(bounded)), in_thread=True)

    def validate_unless_many_forbidden(body: str) -> Any:
        if body.count(":") > FEW_MEMBERS:
            forbidden.count = 0
            with suppress(ValidationError):  # not JSON; *validate* will report it
                count(body)
            if forbidden.count > MAX_FORBIDDEN_FIELDS:
                return None
        return validate(body)

    return validate_unless_many_forbidden


def build_cooperative_explaining_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function like that of ``build_explaining_validator``, for large bodies. To be called in a thread.

    It reports one error, with all names, for an object that lacks required fields. Its result is not the validated
    value. It also raises TooManyForbiddenFields.
    """
    forbidden = _ForbiddenFields()
    validate = _build(_make_cooperative(transform(adapter.core_schema, forbidden.bound)), in_thread=True)

    def validate_json(body: str) -> Any:
        forbidden.count = 0
        return validate(body)

    return validate_json


def _make_cooperative(schema: Any) -> Any:
    # The order matters: the later changes wrap schemas, and the earlier ones would not recognize wrapped schemas.
    for change in (_stop_at_first_error, _yield_inside, _OneErrorForMissingFields(schema).change, _yield_after):
        schema = transform(schema, change)
    return schema


def _build(schema: Any, *, in_thread: bool) -> Callable[[str], Any]:
    tries = TryCounter(schema, in_thread=in_thread)
    if tries.needed:
        return tries.wrap(_build_unbounded(transform(schema, tries.bound)))
    return _build_unbounded(schema)


def _build_unbounded(schema: Any) -> Callable[[str], Any]:
    # Cache only the names in a body: other strings, such as ids, rarely repeat. Do not use the prebuilt validators of
    # the classes, because they do not have the changes.
    return SchemaValidator(schema, {"cache_strings": "keys"}, _use_prebuilt=False).validate_json


def _default_to_none(schema: dict[str, Any]) -> dict[str, Any]:
    if schema["type"] == "definitions":
        return schema | {"schema": _default_to_none(schema["schema"])}
    return dict(core_schema.with_default_schema(schema, default=None, on_error="default"))


def transform(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a core schema with *change* applied to each schema in it, the innermost first."""
    if isinstance(schema, (list, tuple)):  # steps of a chain, choices of a union with their labels
        return type(schema)(transform(one, change) for one in schema)
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    for key in _NESTED:
        if key in copy:
            copy[key] = transform(copy[key], change)
    for key in _NAMED:
        named = copy.get(key)
        if isinstance(named, dict):
            copy[key] = {name: transform(one, change) for name, one in named.items()}
        elif isinstance(named, list):
            copy[key] = transform(named, change)
    return change(copy)


def _stop_at_first_error(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") in _COLLECTIONS:
        schema["fail_fast"] = True
    return schema


def _yield_inside(schema: dict[str, Any]) -> dict[str, Any]:
    """Let other threads run after each value of a dict, and after each unknown field of an object that allows them."""
    if schema.get("type") in _DICTS:
        schema["values_schema"] = _add_yield(schema.get("values_schema", core_schema.any_schema()))
    elif schema.get("type") in ("model-fields", "typed-dict") and schema.get("extra_behavior") == "allow":
        schema["extras_schema"] = _add_yield(schema.get("extras_schema", core_schema.any_schema()))
    return schema


def _add_yield(schema: Any) -> Any:
    return core_schema.no_info_after_validator_function(_return_unchanged, schema)


def _yield_after(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") not in _CONTAINERS:
        return schema
    ref = schema.pop("ref", None)
    wrapper: dict[str, Any] = dict(core_schema.no_info_after_validator_function(_return_unchanged, schema))
    return wrapper | ({"ref": ref} if ref else {})  # definitions are referred to by it


def _return_unchanged(value: Any) -> Any:
    return value


class _OneErrorForMissingFields:
    """Makes Pydantic check all required fields of an object together, after its last field.

    Pydantic by itself keeps a copy of the object for each missing field, and the object may be the whole body.
    """

    # Types of schemas that certainly have no default. A field with a schema of another type stays unchanged.
    _REQUIRED = frozenset({"any", "bool", "int", "float", "decimal", "str", "bytes", "date", "time", "datetime"}) | {
        *("timedelta", "literal", "enum", "uuid", "url", "nullable", "union", "tagged-union"),
        *_CONTAINERS,
    }

    def __init__(self, schema: Any) -> None:
        definitions = schema.get("definitions", ())
        self._required_refs = {one.get("ref") for one in definitions if one.get("type") in self._REQUIRED}

    def change(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return *schema* with optional fields instead of required ones, and with a check of the required names."""
        if schema.get("type") == "typed-dict":
            required = frozenset(
                name
                for name, field in schema["fields"].items()
                if field.get("required", schema.get("total", True)) and self._has_no_default(field)
            )
            fields = {
                name: field | {"required": False} if name in required else field
                for name, field in schema["fields"].items()
            }
            return _add_check(schema | {"fields": fields}, required, lambda value: value)
        if schema.get("type") == "model-fields":
            required = frozenset(name for name, field in schema["fields"].items() if self._has_no_default(field))
            fields = {
                name: field | {"schema": core_schema.with_default_schema(field["schema"], default=None)}
                if name in required
                else field
                for name, field in schema["fields"].items()
            }
            # The result of model fields is a tuple: values, extra values, names of the fields that were set.
            return _add_check(schema | {"fields": fields}, required, itemgetter(2))
        return schema

    def _has_no_default(self, field: dict[str, Any]) -> bool:
        schema = field["schema"]
        return schema["type"] in self._REQUIRED or schema.get("schema_ref") in self._required_refs


def _add_check(
    schema: dict[str, Any], required: frozenset[str], names_in: Callable[[Any], Container[str]]
) -> dict[str, Any]:
    def check(value: Any) -> Any:
        present = names_in(value)
        missing = [name for name in required if name not in present]
        if missing:
            names = ", ".join(sorted(missing)[:NAMES_SHOWN])
            more = f" and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
            raise PydanticCustomError("missing", "Field required: {names}", {"names": names + more})
        return value

    ref = schema.pop("ref", None)
    wrapper: dict[str, Any] = dict(core_schema.no_info_after_validator_function(check, schema))
    return wrapper | ({"ref": ref} if ref else {})


class _ForbiddenFields:
    """Counts the unknown fields of one validation in models and typed dictionaries that forbid them."""

    def __init__(self) -> None:
        self.count = 0
        self.possible = False

    def bound(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return *schema*; if it forbids unknown fields, make it call ``_refuse`` for each instead of listing all."""
        config = schema.get("config", {})
        if config.get("extra_fields_behavior") != "forbid":
            return schema
        self.possible = True
        allowed = schema | {"config": {**config, "extra_fields_behavior": "allow"}}
        refuse = core_schema.no_info_plain_validator_function(self._refuse)
        if schema["type"] == "typed-dict":
            return allowed | {"extra_behavior": "allow", "extras_schema": refuse}
        if schema["type"] == "model":
            return allowed | {"schema": _change_fields(schema["schema"], refuse)}
        return schema

    def _refuse(self, _: object) -> object:
        self.count += 1
        if self.count > MAX_FORBIDDEN_FIELDS:
            raise TooManyForbiddenFields
        raise PydanticKnownError("extra_forbidden")


def _change_fields(schema: dict[str, Any], refuse: core_schema.CoreSchema) -> dict[str, Any]:
    """Return a model's inner schema with *refuse* for unknown fields, which may be within validators of the model."""
    if schema["type"] == "model-fields":
        return schema | {"extra_behavior": "allow", "extras_keys_schema": refuse}
    return schema | {"schema": _change_fields(schema["schema"], refuse)} if "schema" in schema else schema
