"""TARGETs: ``module:attribute``, as for uvicorn, imported from the working directory."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.events import Event
from smartpipe.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType


def load_services(targets: Sequence[str]) -> list[Service]:
    """Return the services that *targets* name, or those of pyproject.toml without any.

    Raises:
        ConfigError: Every faulty target, one sentence each.
    """
    services: list[Service] = []
    problems: list[str] = []
    for target in targets or configured():
        try:
            found = _resolve(target)
            if not isinstance(found, Service):
                problems.append(f"{target} is of type {type(found).__name__}, not a smartpipe.Service")
            elif not found.handlers and not found.publishes:
                hint = "add @service.subscribe(...), or publishes=[...] if it only publishes"
                problems.append(f"{target}: service {found.name!r} has no handlers; {hint}")
            else:
                services.append(found)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return services


def load_events(targets: Sequence[str]) -> list[type[Event]]:
    """Return the events of services, event classes, or whole modules (a target without attribute).

    Raises:
        ConfigError: Every faulty target, one sentence each.
    """
    events: dict[type[Event], None] = {}
    problems: list[str] = []
    for target in targets or configured():
        try:
            found = _resolve(target) if ":" in target else _import(target, target)
            events.update(dict.fromkeys(_events_of(found, target)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return list(events)


def _events_of(found: Any, target: str) -> Iterable[type[Event]]:
    if isinstance(found, Service) and found.handlers:
        return [handler.event for handler in found.handlers]
    candidates = vars(found).values() if hasattr(found, "__spec__") and not isinstance(found, type) else [found]
    events = [one for one in candidates if isinstance(one, type) and issubclass(one, Event) and one.__contract__]
    if not events:
        msg = f"{target} has no events: name a Service, an Event class, or a module that declares events"
        raise ConfigError(msg)
    return events


def _resolve(target: str) -> Any:
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        msg = f"TARGET {target!r} is not module:attribute, as in signup.email_verification:service"
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
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            msg = f"TARGET {target!r}: there is no module {error.name!r} in {here} or on the Python path"
            raise ConfigError(msg) from None
        raise ConfigError(_fault(target, error)) from error
    except SmartpipeError as error:
        raise ConfigError([f"TARGET {target!r}: {line}" for line in str(error).splitlines()]) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(_fault(target, error)) from error


def _fault(target: str, error: BaseException) -> str:
    """Say what went wrong inside of the user's module, and in which line."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if Path(frame.filename).is_relative_to(Path.cwd())]
        frame = (theirs or frames)[-1]
        place = f"{frame.filename}:{frame.lineno}"
    said = error.msg if isinstance(error, SyntaxError) else error
    return f"TARGET {target!r} cannot be imported: {type(error).__name__}: {said} ({place})"


def configured() -> list[str]:
    """Return ``services`` of ``[tool.smartpipe]`` in the working directory's pyproject.toml.

    Raises:
        ConfigError: It lists none, or cannot be read.
    """
    import tomllib

    path = Path("pyproject.toml")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        msg = f"{path.absolute()} cannot be read as TOML: {error}"
        raise ConfigError(msg) from None
    tool = settings.get("tool", {}).get("smartpipe", {})
    services = tool.get("services", []) if isinstance(tool, dict) else []
    if not isinstance(services, list) or not services or not all(isinstance(one, str) for one in services):
        msg = (
            "no TARGET: name one, as in signup.email_verification:service, or list them in pyproject.toml as "
            '[tool.smartpipe] services = ["..."]'
        )
        raise ConfigError(msg)
    return services
