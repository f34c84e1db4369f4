from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.cli.targets import load_events, load_services

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_a_gap_between_upcasters_is_reported_before_any_command_begins(here: Path) -> None:
    text = MODULE.format(type="parcel.gone").replace('"1.0"', '"3.0"')
    (here / "gap.py").write_text(f"{text}\nShipped.upcast(from_version='1')(lambda data: data)\n")

    with pytest.raises(ConfigError, match="leads nowhere, because no upcaster takes version 2"):
        load_services(["gap:service"])


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
        ("declares:service", "TARGET 'declares:service': topic name 'a b' may"),
        ("leaves:service", "cannot import TARGET 'leaves:service': SystemExit: 3 ("),
        ("deep:service", "deep.py:2)"),
        ("broken:service", "broken.py:3)"),
        ("syntax:service", "syntax.py:1)"),
    ],
)
def test_the_error_for_a_wrong_target_is_one_sentence(here: Path, target: str, sentence: str) -> None:
    (here / "broken.py").write_text("\n\noops")
    (here / "syntax.py").write_text("def (")
    (here / "needs.py").write_text("import not_installed")
    (here / "declares.py").write_text("from smartpipe import Topic\nTopic('a b')")
    (here / "leaves.py").write_text("import sys\nsys.exit(3)")
    (here / "deep.py").write_text("import json\njson.loads('{')")

    with pytest.raises(ConfigError) as caught:
        load_services([target])

    [error] = caught.value.problems
    assert sentence in error
    assert "\n" not in error


def test_every_wrong_target_is_reported(here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_services(["shop", "nowhere:service", "shop:service"])

    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("load", [load_services, load_events])
def test_a_module_that_cannot_be_imported_is_reported_once_and_runs_once(here: Path, load: Any) -> None:
    (here / "broken.py").write_text("with open('runs', 'a') as file: file.write('it runs')\noops")

    with pytest.raises(ConfigError) as caught:
        load(["broken:first", "broken:second", "nowhere:service"])

    first, second = caught.value.problems
    assert "cannot import TARGET 'broken:first': NameError" in first
    assert "nowhere" in second
    assert (here / "runs").read_text() == "it runs"


def test_an_error_outside_of_the_working_directory_has_its_own_place(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path_factory.mktemp("library")
    (library / "elsewhere.py").write_text("\noops")
    monkeypatch.syspath_prepend(library)
    assert Path.cwd() == here

    with pytest.raises(ConfigError, match=r"NameError: name 'oops' is not defined \(.*library.*elsewhere\.py:2\)"):
        load_services(["elsewhere:service"])


def test_the_working_directory_comes_before_the_python_path(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path_factory.mktemp("library")
    (library / "shop.py").write_text("oops")
    monkeypatch.syspath_prepend(library)

    assert load_services(["shop:service"])
    assert sys.path.count(str(here)) == 1
    assert load_services(["shop:both"])
    assert sys.path.count(str(here)) == 1


def test_every_wrong_target_of_events_is_reported(here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_events(["shop:nothing", "nowhere", "shop:service"])

    assert here
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[tool.smartpipe]\nservices = 5\n",
        "[tool.smartpipe]\nservices = []\n",
        "[tool.smartpipe]\nservices = ['shop:service', 5]\n",
        "[tool]\nsmartpipe = 5\n",
    ],
)
def test_the_error_without_a_target_says_where_to_name_one(here: Path, content: str | None) -> None:
    if content is not None:
        (here / "pyproject.toml").write_text(content)

    with pytest.raises(ConfigError, match="no TARGET"):
        load_services([])


@pytest.mark.parametrize("content", [b"no TOML", b"\xff"])
def test_a_file_that_cannot_be_read_is_named(here: Path, content: bytes) -> None:
    (here / "pyproject.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=r"cannot read .*pyproject\.toml as TOML: "):
        load_services([])


def test_a_file_without_permission_to_read_it_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "pyproject.toml").write_text("")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)

    with pytest.raises(ConfigError, match=r"pyproject\.toml as TOML: \[Errno 13\] Permission denied"):
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


def test_a_service_with_raw_handlers_alone_has_no_events_and_is_not_an_error(here: Path) -> None:
    raw = '\nraw = Service("raw")\n@raw.subscribe_raw(dict)\nasync def take(message: dict) -> None: ...\n'
    (here / "shop.py").write_text(MODULE.format(type="parcel.shipped") + raw)

    assert [event.__name__ for event in load_events(["shop:raw", "shop:service"])] == ["Shipped"]
