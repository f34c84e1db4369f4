"""Validators whose cost does not depend on how wrong a body is.

Pydantic reports every error, with the input that caused it as a Python object. A list of 349,525 wrong items, which
fits one SQS message, makes 349,525 errors; twenty missing fields make twenty copies of the object that lacks them.
Either blocks the event loop for seconds and takes hundreds of megabytes. The validators here stop each collection at
its first error, and make no error objects unless asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticKnownError, SchemaValidator, core_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import TypeAdapter

MAX_FORBIDDEN_FIELDS = 10_000
"""A body with more unknown fields, in models that forbid them, is refused without looking at the rest."""

_COLLECTIONS = frozenset(
    {"list", "tuple", "set", "frozenset", "deque", "dict", "frozen-dict", "ordered-dict", "counter"}
)
_CONTAINERS = _COLLECTIONS | {"model", "dataclass", "typed-dict"}
# Where a core schema holds other schemas. "fields" and "choices" map a user's names to schemas, so their own keys say
# nothing; what is not named here is a value, such as a default, that may look like a schema.
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
    """The body has more unknown fields than are worth listing. It ends a validation at once."""


def bounded_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function that parses and validates JSON, and returns None for data that does not fit.

    It raises ValidationError for a text that is not JSON. So does, for data that does not fit, the validator of
    *adapter*, which is used as it is where a Pydantic plugin wants to see each validation.
    """
    if type(adapter.validator) is not SchemaValidator:
        return adapter.validator.validate_json
    return _build(_none_where_wrong(_changed(adapter.core_schema, _stop_at_first_error)))


def explaining_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function that raises ValidationError with the first error of each collection: for small bodies."""
    return _build(_changed(adapter.core_schema, _stop_at_first_error))


def cooperative_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return what ``bounded_validator`` returns, for large bodies and to be called in a thread.

    Pydantic holds Python's global lock from the first byte to the last. After each container this one calls a Python
    function, which is where CPython lets other threads run: the event loop waits for milliseconds, not for the whole
    body. That costs some 100 ns a container.

    It also raises TooManyForbiddenFields.
    """
    if type(adapter.validator) is not SchemaValidator:
        return adapter.validator.validate_json
    forbidden = _ForbiddenFields()
    schema: Any = adapter.core_schema
    # The later ones wrap schemas, so that the earlier ones would not find what they change.
    for change in (_stop_at_first_error, forbidden.bound, _OneErrorForMissingFields(schema).change, _yield_after):
        schema = _changed(schema, change)
    validate = _build(_none_where_wrong(schema))

    def validate_json(body: str) -> Any:
        forbidden.count = 0
        return validate(body)

    return validate_json


def _build(schema: Any) -> Callable[[str], Any]:
    # Of the strings in a body, ids for example, only names are worth a cache. Prebuilt validators are those of the
    # classes, which know nothing of the change.
    return SchemaValidator(schema, {"cache_strings": "keys"}, _use_prebuilt=False).validate_json


def _none_where_wrong(schema: dict[str, Any]) -> dict[str, Any]:
    if schema["type"] == "definitions":
        return schema | {"schema": _none_where_wrong(schema["schema"])}
    return dict(core_schema.with_default_schema(schema, default=None, on_error="default"))


def _changed(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a core schema in which *change* was applied to each schema, the innermost first."""
    if isinstance(schema, (list, tuple)):  # steps of a chain, choices of a union with their labels
        return type(schema)(_changed(one, change) for one in schema)
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    for key in _NESTED:
        if key in copy:
            copy[key] = _changed(copy[key], change)
    for key in _NAMED:
        named = copy.get(key)
        if isinstance(named, dict):
            copy[key] = {name: _changed(one, change) for name, one in named.items()}
        elif isinstance(named, list):
            copy[key] = _changed(named, change)
    return change(copy)


def _stop_at_first_error(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") in _COLLECTIONS:
        schema["fail_fast"] = True
    return schema


def _yield_after(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") not in _CONTAINERS:
        return schema
    ref = schema.pop("ref", None)
    wrapper: dict[str, Any] = dict(core_schema.no_info_after_validator_function(_unchanged, schema))
    return wrapper | ({"ref": ref} if ref else {})  # definitions are found by it


def _unchanged(value: Any) -> Any:
    return value


class _OneErrorForMissingFields:
    """Lets Pydantic check once, behind the last field of an object, whether the required ones were there.

    It keeps a copy of the object with each field that is missing, and the object may be the whole body.
    """

    # Schemas that certainly have no default of their own. A field with another one stays as it is.
    _REQUIRED = frozenset({"any", "bool", "int", "float", "decimal", "str", "bytes", "date", "time", "datetime"}) | {
        *("timedelta", "literal", "enum", "uuid", "url", "nullable", "union", "tagged-union"),
        *_CONTAINERS,
    }

    def __init__(self, schema: Any) -> None:
        definitions = schema.get("definitions", ())
        self._required_refs = {one.get("ref") for one in definitions if one.get("type") in self._REQUIRED}

    def change(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return *schema* without required fields, and with the one check in their place."""
        if schema.get("type") == "typed-dict":
            required = frozenset(
                name
                for name, field in schema["fields"].items()
                if field.get("required", schema.get("total", True)) and self._plain(field)
            )
            fields = {
                name: field | {"required": False} if name in required else field
                for name, field in schema["fields"].items()
            }
            return _checked_after(schema | {"fields": fields}, lambda value: required <= value.keys())
        if schema.get("type") == "model-fields":
            required = frozenset(name for name, field in schema["fields"].items() if self._plain(field))
            fields = {
                name: field | {"schema": core_schema.with_default_schema(field["schema"], default=None)}
                if name in required
                else field
                for name, field in schema["fields"].items()
            }
            # Validated model fields are a tuple: values, extra values, names of the fields that were set.
            return _checked_after(schema | {"fields": fields}, lambda value: required <= value[2])
        return schema

    def _plain(self, field: dict[str, Any]) -> bool:
        schema = field["schema"]
        return schema["type"] in self._REQUIRED or schema.get("schema_ref") in self._required_refs


def _checked_after(schema: dict[str, Any], complete: Callable[[Any], bool]) -> dict[str, Any]:
    def check(value: Any) -> Any:
        if not complete(value):
            raise PydanticKnownError("missing")
        return value

    ref = schema.pop("ref", None)
    wrapper: dict[str, Any] = dict(core_schema.no_info_after_validator_function(check, schema))
    return wrapper | ({"ref": ref} if ref else {})


class _ForbiddenFields:
    """Counts the unknown fields of one validation in models and typed dictionaries that forbid them."""

    def __init__(self) -> None:
        self.count = 0

    def bound(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Let each unknown field call ``_refuse``, in place of Pydantic's own list of all of them."""
        config = schema.get("config", {})
        if config.get("extra_fields_behavior") != "forbid" or schema["type"] not in ("model", "typed-dict"):
            return schema
        schema["config"] = {**config, "extra_fields_behavior": "allow"}
        refuse = core_schema.no_info_plain_validator_function(self._refuse)
        if schema["type"] == "typed-dict":
            return schema | {"extra_behavior": "allow", "extras_schema": refuse}
        inner = schema["schema"]
        if inner.get("type") == "model-fields":
            schema["schema"] = inner | {"extra_behavior": "allow", "extras_keys_schema": refuse}
        return schema

    def _refuse(self, _: object) -> object:
        self.count += 1
        if self.count > MAX_FORBIDDEN_FIELDS:
            raise TooManyForbiddenFields
        raise PydanticKnownError("extra_forbidden")
