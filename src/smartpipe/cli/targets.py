"""Import the objects that TARGETs name: ``module:attribute``, as for uvicorn, from the working directory."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.events import Event, declared_events
from smartpipe.service import Service
from smartpipe.topics import Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType

T = TypeVar("T")


def load_services(targets: Sequence[str]) -> list[Service]:
    """Return the services that *targets* name. If there are none, return the services in pyproject.toml.

    Raises:
        ConfigError: One sentence for each wrong target.
    """
    return _load_each(targets, _load_service)


def load_events(targets: Sequence[str]) -> list[type[Event]]:
    """Return the events of services, of event classes, or of modules (targets without an attribute).

    The events of a service are those that it handles and those that it publishes.

    Raises:
        ConfigError: One sentence for each wrong target.
    """

    def load(target: str) -> Iterable[type[Event]]:
        return _events_of(_resolve(target) if ":" in target else _import(target, target), target)

    return list(dict.fromkeys(chain.from_iterable(_load_each(targets, load))))


def _load_each(targets: Sequence[str], load: Callable[[str], T]) -> list[T]:
    """Return the result of *load* for each TARGET, or for those in pyproject.toml if there are none.

    Raises:
        ConfigError: One sentence for each wrong target. A module that cannot be imported counts once.
    """
    loaded: list[T] = []
    errors: list[str] = []
    broken: set[str] = set()
    for target in targets or read_configured_targets():
        module_name = target.partition(":")[0]
        if module_name in broken:
            continue
        try:
            loaded.append(load(target))
        except ConfigError as error:
            errors += error.problems
            if module_name not in sys.modules:
                broken.add(module_name)
    if errors:
        raise ConfigError(errors)
    return loaded


def _load_service(target: str) -> Service:
    found = _resolve(target)
    if not isinstance(found, Service):
        msg = f"{target} is of type {type(found).__name__}, not a smartpipe.Service"
        raise ConfigError(msg)
    if not found.handlers and not found.publishes:
        hint = "add @service.subscribe(...), or publishes=[...] if it only publishes"
        raise ConfigError(f"{target}: service {found.name!r} has no handlers; {hint}")
    _ = found.bindings  # raises ConfigError if upcasters leave a gap
    return found


def services_among(targets: Sequence[str]) -> list[Service]:
    """Return the services among *targets*, which ``load_events`` has loaded."""
    found = [_resolve(target) for target in targets or read_configured_targets() if ":" in target]
    return [one for one in found if isinstance(one, Service)]


def _events_of(found: Any, target: str) -> Iterable[type[Event]]:
    if isinstance(found, Service):
        handled = [event for handler in found.handlers for event in handler.events]
        published = [one for one in found.publishes if not isinstance(one, Queue)]
        if found.handlers or published:  # raw handlers take no events
            return [*handled, *published]
    if isinstance(found, type) and issubclass(found, Event) and found is not Event:
        candidates: Iterable[Any] = declared_events(found)  # of a base class, the events that extend it
    else:
        candidates = vars(found).values() if hasattr(found, "__spec__") and not isinstance(found, type) else ()
    events = [cls for cls in candidates if isinstance(cls, type) and issubclass(cls, Event) and cls.__contract__]
    if not events:
        msg = f"{target} has no events: name a Service, an Event class, or a module that declares events"
        raise ConfigError(msg)
    return events


def _resolve(target: str) -> Any:
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        msg = f"TARGET {target!r} is not module:attribute, such as signup.email_verification:service"
        raise ConfigError(msg)
    found: Any = _import(module_name, target)
    for name in attribute.split("."):
        if not hasattr(found, name):
            names = sorted(key for key, value in getattr(found, "__dict__", {}).items() if isinstance(value, Service))
            hint = f"; its services: {', '.join(names)}" if names else ""
            msg = f"TARGET {target!r}: {module_name} has no attribute {attribute!r}{hint}"
            raise ConfigError(msg)
        found = getattr(found, name)
    return found


def _import(module_name: str, target: str) -> ModuleType:
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            msg = f"TARGET {target!r}: no module {error.name!r} in {directory} or on the Python path"
            raise ConfigError(msg) from None
        raise ConfigError(_describe_import_error(target, error)) from error
    except SmartpipeError as error:
        raise ConfigError([f"TARGET {target!r}: {line}" for line in str(error).splitlines()]) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(_describe_import_error(target, error)) from error


def _describe_import_error(target: str, error: BaseException) -> str:
    """Return the error in the user's module, with its file and line."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        user_frames = [frame for frame in frames if Path(frame.filename).is_relative_to(Path.cwd())]
        frame = (user_frames or frames)[-1]
        place = f"{frame.filename}:{frame.lineno}"
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"cannot import TARGET {target!r}: {type(error).__name__}: {text} ({place})"


def read_configured_targets() -> list[str]:
    """Return ``services`` in ``[tool.smartpipe]`` of the pyproject.toml in the working directory.

    Raises:
        ConfigError: The file lists no services, or cannot be read.
    """
    services = read_tool_table().get("services", [])
    if not isinstance(services, list) or not services or not all(isinstance(name, str) for name in services):
        msg = (
            "no TARGET: name one, such as signup.email_verification:service, or list services in pyproject.toml as "
            '[tool.smartpipe] services = ["..."]'
        )
        raise ConfigError(msg)
    return services


def read_tool_table() -> dict[str, Any]:
    """Return ``[tool.smartpipe]`` of the pyproject.toml in the working directory; an empty table if there is none.

    Raises:
        ConfigError: The file cannot be read.
    """
    tool = read_pyproject().get("tool", {}).get("smartpipe", {})
    return tool if isinstance(tool, dict) else {}


def read_pyproject() -> dict[str, Any]:
    """Return the contents of the pyproject.toml in the working directory; nothing if there is no such file.

    Raises:
        ConfigError: The file cannot be read.
    """
    import tomllib

    path = Path("pyproject.toml")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        msg = f"cannot read {path.absolute()} as TOML: {error}"
        raise ConfigError(msg) from None
