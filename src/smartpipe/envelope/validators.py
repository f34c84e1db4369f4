"""Validators whose cost does not depend on how wrong a body is.

Pydantic reports every error, with the input that caused it as a Python object. A list of 349,525 wrong items, which
fits one SQS message, makes 349,525 errors; twenty missing fields make twenty copies of the object that lacks them.
Either blocks the event loop for seconds and takes hundreds of megabytes. The validators here stop each collection at
its first error, and make no error objects unless asked to.
"""

from __future__ import annotations

from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError, PydanticKnownError, SchemaValidator, ValidationError, core_schema

from smartpipe.envelope.unions import Tries

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from pydantic import TypeAdapter

MAX_FORBIDDEN_FIELDS = 100
"""Of a body with more unknown fields, in models that forbid them, the others are not looked for."""
NAMES_SHOWN = 10
FEW_MEMBERS = 4_096
"""Of objects. As many errors take some milliseconds."""

_COLLECTIONS = frozenset(
    {"list", "tuple", "set", "frozenset", "deque", "dict", "frozen-dict", "ordered-dict", "counter"}
)
_DICTS = frozenset({"dict", "frozen-dict", "ordered-dict", "counter"})
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
    """The body has more unknown fields than are worth listing. It ends an explanation at once."""


def bounded_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function that parses and validates JSON, and returns None for data that does not fit.

    It raises ValidationError for a text that is not JSON. So does, for data that does not fit, the validator of
    *adapter*, which is used as it is where a Pydantic plugin wants to see each validation.
    """
    if type(adapter.validator) is not SchemaValidator:
        return adapter.validator.validate_json
    return _build(_none_where_wrong(_changed(adapter.core_schema, _stop_at_first_error)), in_thread=False)


def explaining_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return a function that raises ValidationError with the first error of each collection: for small bodies."""
    return _build(_changed(adapter.core_schema, _stop_at_first_error), in_thread=False)


def cooperative_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return what ``bounded_validator`` returns, for large bodies and to be called in a thread.

    Pydantic holds Python's global lock from the first byte to the last. After each container, and each value of a
    dict, this one calls a Python function, which is where CPython lets other threads run: the event loop waits for
    milliseconds, not for the whole body. That costs some 100 ns for each.

    Of unknown fields that are forbidden Pydantic makes one list of errors, in one go. So a body with many members is
    validated twice where they are forbidden, the first time to count the unknown ones.
    """
    if type(adapter.validator) is not SchemaValidator:
        return adapter.validator.validate_json
    validate = _build(_none_where_wrong(_cooperative(adapter.core_schema)), in_thread=True)
    forbidden = _ForbiddenFields()
    bounded = _changed(adapter.core_schema, forbidden.bound)
    if not forbidden.possible:
        return validate
    count = _build(_none_where_wrong(_cooperative(bounded)), in_thread=True)

    def validate_few(body: str) -> Any:
        if body.count(":") > FEW_MEMBERS:
            forbidden.count = 0
            with suppress(ValidationError):  # not JSON, which *validate* says as well
                count(body)
            if forbidden.count > MAX_FORBIDDEN_FIELDS:
                return None
        return validate(body)

    return validate_few


def cooperative_explaining_validator(adapter: TypeAdapter[Any]) -> Callable[[str], Any]:
    """Return what ``explaining_validator`` returns, for large bodies and to be called in a thread.

    An object that lacks required fields has one error, which names them. What the function returns is not the value.
    It also raises TooManyForbiddenFields.
    """
    forbidden = _ForbiddenFields()
    validate = _build(_cooperative(_changed(adapter.core_schema, forbidden.bound)), in_thread=True)

    def validate_json(body: str) -> Any:
        forbidden.count = 0
        return validate(body)

    return validate_json


def _cooperative(schema: Any) -> Any:
    # The later ones wrap schemas, so that the earlier ones would not find what they change.
    for change in (_stop_at_first_error, _yield_inside, _OneErrorForMissingFields(schema).change, _yield_after):
        schema = _changed(schema, change)
    return schema


def _build(schema: Any, *, in_thread: bool) -> Callable[[str], Any]:
    tries = Tries(schema, in_thread=in_thread)
    if tries.needed:
        return tries.counting(_built(_changed(schema, tries.bound)))
    return _built(schema)


def _built(schema: Any) -> Callable[[str], Any]:
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


def _yield_inside(schema: dict[str, Any]) -> dict[str, Any]:
    """Yield after each value of a dict, and each field of an object that allows unknown ones."""
    if schema.get("type") in _DICTS:
        schema["values_schema"] = _yielding(schema.get("values_schema", core_schema.any_schema()))
    elif schema.get("type") in ("model-fields", "typed-dict") and schema.get("extra_behavior") == "allow":
        schema["extras_schema"] = _yielding(schema.get("extras_schema", core_schema.any_schema()))
    return schema


def _yielding(schema: Any) -> Any:
    return core_schema.no_info_after_validator_function(_unchanged, schema)


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
            return _checked_after(schema | {"fields": fields}, required, lambda value: value)
        if schema.get("type") == "model-fields":
            required = frozenset(name for name, field in schema["fields"].items() if self._plain(field))
            fields = {
                name: field | {"schema": core_schema.with_default_schema(field["schema"], default=None)}
                if name in required
                else field
                for name, field in schema["fields"].items()
            }
            # Validated model fields are a tuple: values, extra values, names of the fields that were set.
            return _checked_after(schema | {"fields": fields}, required, itemgetter(2))
        return schema

    def _plain(self, field: dict[str, Any]) -> bool:
        schema = field["schema"]
        return schema["type"] in self._REQUIRED or schema.get("schema_ref") in self._required_refs


def _checked_after(
    schema: dict[str, Any], required: frozenset[str], names_in: Callable[[Any], Container[str]]
) -> dict[str, Any]:
    def check(value: Any) -> Any:
        there = names_in(value)
        missing = [name for name in required if name not in there]
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
        """Let each unknown field call ``_refuse``, in place of Pydantic's own list of all of them."""
        config = schema.get("config", {})
        if config.get("extra_fields_behavior") != "forbid":
            return schema
        self.possible = True
        allowed = schema | {"config": {**config, "extra_fields_behavior": "allow"}}
        refuse = core_schema.no_info_plain_validator_function(self._refuse)
        if schema["type"] == "typed-dict":
            return allowed | {"extra_behavior": "allow", "extras_schema": refuse}
        inner = schema.get("schema", {})
        if schema["type"] == "model" and inner.get("type") == "model-fields":
            return allowed | {"schema": inner | {"extra_behavior": "allow", "extras_keys_schema": refuse}}
        return schema

    def _refuse(self, _: object) -> object:
        self.count += 1
        if self.count > MAX_FORBIDDEN_FIELDS:
            raise TooManyForbiddenFields
        raise PydanticKnownError("extra_forbidden")
