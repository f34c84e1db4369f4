from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError
from smartpipe.cli.targets import load_events, load_services

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = """
from smartpipe import Event, Queue, Service, Topic
class Shipped(Event, topic=Topic("parcels"), type="{type}", version="1.0"):
    parcel: str
service, empty, number = Service("shipping"), Service("empty"), 5
class Billed(Event, topic=Topic("parcels"), type="{type}.billed", version="1.0"):
    parcel: str
producer = Service("producer", publishes=[Billed, Queue("elsewhere")])
sender = Service("sender", publishes=[Queue("elsewhere")])
both = Service("both", publishes=[Billed, Shipped])
@both.subscribe(Shipped)
async def handle_both(event: Shipped) -> None: ...
@service.subscribe(Shipped)
async def handle(event: Shipped) -> None: ...
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    path = list(sys.path)
    (tmp_path / "shop.py").write_text(MODULE.format(type="parcel.shipped"))
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_service_is_imported_from_the_working_directory(here: Path) -> None:
    [service] = load_services(["shop:service"])

    assert service.name == "shipping"


def test_without_target_pyproject_lists_the_services(here: Path) -> None:
    (here / "pyproject.toml").write_text('[tool.smartpipe]\nservices = ["shop:service"]\n')

    assert [service.name for service in load_services([])] == ["shipping"]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("shop", "is not module:attribute"),
        (":service", "is not module:attribute"),
        ("shop:", "is not module:attribute"),
        ("nowhere:service", "no module 'nowhere' in "),
        ("shop.deeper:service", "no module 'shop.deeper'"),
        ("shop:servce", "has no attribute 'servce'; its services: both, empty, producer, sender, service"),
        ("shop:number", "is of type int, not a smartpipe.Service"),
        ("shop:empty", "service 'empty' has no handlers"),
        ("broken:service", "NameError: name 'oops' is not defined ("),
        ("syntax:service", "SyntaxError"),
        ("needs:service", "No module named 'not_installed'"),
    ],
)
def test_the_error_for_a_wrong_target_is_one_sentence(here: Path, target: str, sentence: str) -> None:
    (here / "broken.py").write_text("\n\noops")
    (here / "syntax.py").write_text("def (")
    (here / "needs.py").write_text("import not_installed")

    with pytest.raises(ConfigError) as caught:
        load_services([target])

    [error] = caught.value.problems
    assert sentence in error
    assert "\n" not in error


def test_every_wrong_target_is_reported(here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_services(["shop", "nowhere:service", "shop:service"])

    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("content", [None, "", "[tool.smartpipe]\nservices = 5\n"])
def test_the_error_without_a_target_says_where_to_name_one(here: Path, content: str | None) -> None:
    if content is not None:
        (here / "pyproject.toml").write_text(content)

    with pytest.raises(ConfigError, match="no TARGET"):
        load_services([])


@pytest.mark.parametrize(
    ("target", "events"),
    [
        ("shop:service", ["Shipped"]),
        ("shop:producer", ["Billed"]),
        ("shop:both", ["Shipped", "Billed"]),
        ("shop:Shipped", ["Shipped"]),
        ("shop", ["Shipped", "Billed"]),
    ],
)
def test_events_come_from_services_classes_and_modules(here: Path, target: str, events: list[str]) -> None:
    """A service's events are those that it handles and those that it publishes, each once."""
    assert [event.__name__ for event in load_events([target])] == events


@pytest.mark.parametrize("target", ["shop:empty", "shop:sender"])
def test_a_service_without_events_is_an_error(here: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=f"{target} has no events"):
        load_events([target])


def test_a_module_without_events_is_an_error(here: Path) -> None:
    (here / "plain.py").write_text("x = 5")

    with pytest.raises(ConfigError, match="has no events"):
        load_events(["plain"])
