"""``smartpipe new``: names, templates, and errors that leave no half project. tests/acceptance/test_new.py runs one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from importlib.resources import files
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from smartpipe import ConfigError
from smartpipe.cli.new import name as names
from smartpipe.cli.new import render
from smartpipe.cli.new import run as new
from smartpipe.cli.new.commands import NEW_TEMPLATES
from smartpipe.cli.new.name import MAX_LENGTH, ProjectName, read_name
from smartpipe.cli.new.render import TEMPLATES, format_source, render_files
from smartpipe.cli.new.run import run_new
from smartpipe.deploy.ecs_tasks import CPU_UNITS, FARGATE_SIZES
from smartpipe.deploy.options import parse_memory, read_options
from smartpipe.errors import SmartpipeError
from tests.support.programs import find_program

if TYPE_CHECKING:
    from pathlib import Path

LONGEST = "a" + "b" * (MAX_LENGTH - 1)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judge(program: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [find_program(program), *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop", ("shop", "shop", "shop")),
        ("order-mail", ("order-mail", "order_mail", "order-mail")),
        ("order_mail2", ("order_mail2", "order_mail2", "order-mail2")),
        (LONGEST, (LONGEST, LONGEST, LONGEST)),
    ],
)
def test_a_name_is_that_of_the_directory_the_package_and_the_container(text: str, expected: tuple[str, ...]) -> None:
    assert read_name(text) == expected


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("My Shop!", "; try my-shop"),
        ("1shop", "; try shop"),
        ("shop-", "; try shop"),
        ("a--b", "; try a-b"),
        ("../shop", "; try shop"),
        ("Class", "; try class-service"),
        ("Ünicode", "; try nicode"),
        (LONGEST + "c", f"; try {LONGEST}"),
        ("", ""),
        ("店", ""),
    ],
)
def test_a_name_that_no_package_can_have_is_refused_with_one_that_it_can(text: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_name(text)

    assert f"NAME {text!r} cannot be the name of a project" in str(caught.value)
    assert str(caught.value).endswith(f"between them{remedy}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class", "is a keyword of Python"),
        ("match", "is a keyword of Python"),
        ("email", "is the name of a module of Python"),
        ("test", "is the name of a module of tests"),
        ("tests", "is the name of a module of tests"),
        ("smartpipe", "is the name of the package that you import"),
        ("pydantic-settings", "is the name of a package that pydantic-settings has installed"),
    ],
)
def test_a_name_of_another_module_is_refused_with_a_suggestion(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_new(text, "service")

    assert str(caught.value) == f"NAME {text!r} {reason}, so Python could not import your package; try {text}-service"
    read_name(f"{text}-service")


@pytest.mark.parametrize("text", ["smartpipe-broker", "smartpipe_topology", "smartpipe-relay"])
def test_a_name_of_another_container_is_refused_with_a_suggestion(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_new(text, "service")

    assert str(caught.value) == (
        f"NAME {text!r} is the name of a container that `smartpipe deploy export` adds to yours; try {text}-service"
    )


def test_an_unknown_template_is_refused_with_those_that_exist(directory: Path) -> None:
    with pytest.raises(ConfigError, match="--template 'cron' is unknown: use one of service, api\\+worker"):
        run_new("shop", "cron")

    assert list(directory.iterdir()) == []


def test_the_templates_in_the_help_are_those_that_exist_and_use_every_file() -> None:
    assert tuple(TEMPLATES) == NEW_TEMPLATES
    used = {f"{name}.tmpl" for template in TEMPLATES.values() for name in template.values()}
    assert used == {one.name for one in (files("smartpipe.cli.new") / "files").iterdir()}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["a", "order-mail", LONGEST])
def test_the_files_of_a_project_are_valid_and_formatted_with_any_name(
    template: str, name: str, directory: Path
) -> None:
    texts = render_files(template, read_name(name))
    for path, text in texts.items():
        assert "~" not in path + text
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
        if path.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(texts["pyproject.toml"])
    assert project["project"]["name"] == name
    assert yaml.safe_load(texts[".github/workflows/ci.yml"])["permissions"] == {"contents": "read"}
    assert json.loads(texts["example.json"])["order_id"] == "1"

    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = judge("ruff", *command, directory=directory)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_event_by_hand_names_its_target_because_the_image_has_no_pyproject_toml() -> None:
    assert (
        "smartpipe publish order.placed shop.workers:service" in render_files("service", read_name("shop"))["README.md"]
    )


def test_a_makefile_has_tabs_and_a_shell_variable_that_make_passes_on() -> None:
    text = render_files("api+worker", read_name("shop"))["Makefile"]

    assert "\n\t$(RUN) pytest\n" in text
    assert "shop.api:app --port $(PORT)" in text


@pytest.mark.parametrize("template", TEMPLATES)
def test_fargate_accepts_the_sizes_of_a_new_project(template: str) -> None:
    text = render_files(template, read_name("shop"))["pyproject.toml"]
    options = read_options(tomllib.loads(text)["tool"]["smartpipe"]["deploy"], ["shop"], complete=True)["shop"]

    assert parse_memory(options.memory) // 2**20 in FARGATE_SIZES[int(options.cpu * CPU_UNITS)]


@pytest.fixture
def project(directory: Path) -> Path:
    run_new("shop", "api+worker")
    return directory / "shop"


def test_compose_adds_the_api_to_the_exported_services(project: Path) -> None:
    done = judge("docker-compose", "config", "--format", "json", directory=project)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["services"]
    assert set(found) == {"api", "shop", "smartpipe-broker", "smartpipe-topology"}
    assert found["api"]["image"] == found["shop"]["image"]
    aws = {name: value for name, value in found["shop"]["environment"].items() if name in found["api"]["environment"]}
    assert found["api"]["environment"] == aws


def test_github_accepts_the_workflow_and_zizmor_finds_nothing(project: Path) -> None:
    workflow = ".github/workflows/ci.yml"

    judged = judge("check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow, directory=project)
    assert judged.returncode == 0, judged.stdout
    audited = judge("zizmor", "--offline", "--no-progress", workflow, directory=project)
    assert audited.returncode == 0, audited.stdout + audited.stderr


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, None),
        ("{}", None),
        ("not JSON", None),
        ('{"url": "file:///tmp/my%20wheel.whl", "archive_info": {}}', 'smartpipe = { path = "/tmp/my wheel.whl" }'),
        (
            '{"url": "file:///src/smartpipe", "dir_info": {"editable": true}}',
            'smartpipe = { path = "/src/smartpipe", editable = true }',
        ),
        ('{"url": "file:///src/smartpipe", "dir_info": {}}', 'smartpipe = { path = "/src/smartpipe" }'),
        (
            '{"url": "https://git.example.com/smartpipe", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            'smartpipe = { git = "https://git.example.com/smartpipe", rev = "abc" }',
        ),
        (
            '{"url": "https://example.com/s.whl", "archive_info": {}}',
            'smartpipe = { url = "https://example.com/s.whl" }',
        ),
    ],
)
def test_a_project_installs_smartpipe_from_the_place_where_this_one_comes_from(
    record: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "distribution", lambda _: SimpleNamespace(read_text=lambda _: record))

    source = render.find_source()

    assert (format_source(source).splitlines()[-1] if source else None) == expected
    project = tomllib.loads(render_files("service", read_name("shop"))["pyproject.toml"])
    assert ("sources" in project["tool"].get("uv", {})) == (source is not None)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not run the export in another process."""
    monkeypatch.setattr(new, "_export_compose", lambda *_: "services: {}\n")


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("uv", "steps"), [("/usr/bin/uv", "  cd shop\n  make demo"), (None, "  cd shop\n  # without uv: ")]
)
def test_without_uv_the_next_steps_say_where_the_programs_come_from(
    uv: str | None, steps: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: uv)

    run_new("shop", "service")

    assert steps in capsys.readouterr().out


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("exists", [False, True], ids=["a new directory", "an empty directory"])
def test_a_project_is_written_at_once_and_the_next_steps_are_printed(
    exists: bool, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if exists:
        (directory / "shop").mkdir()

    run_new("shop", "service")

    assert [path.name for path in directory.iterdir()] == ["shop"]
    assert (directory / "shop" / "compose.yaml").read_text() == "services: {}\n"
    printed = capsys.readouterr().out
    assert printed.startswith("shop: 14 files written\n")
    assert "  cd shop\n" in printed
    assert "  make demo" in printed
    umask = os.umask(0)
    os.umask(umask)
    assert (directory / "shop").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("kind", ["a directory with a file", "a file", "a link to nothing"])
def test_an_existing_directory_or_file_is_never_overwritten(kind: str, directory: Path) -> None:
    if kind == "a directory with a file":
        (directory / "shop").mkdir()
        (directory / "shop" / "mine").write_text("mine")
    elif kind == "a file":
        (directory / "shop").write_text("mine")
    else:
        (directory / "shop").symlink_to("nowhere")
    before = {path: path.is_file() and path.read_text() for path in directory.rglob("*")}

    with pytest.raises(ConfigError, match="nothing was changed: choose another name, or move it"):
        run_new("shop", "service")

    assert {path: path.is_file() and path.read_text() for path in directory.rglob("*")} == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SmartpipeError("x")])
def test_a_failure_leaves_nothing_behind(
    error: BaseException, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        assert len(list(directory.rglob("workers.py"))) == 1
        raise error

    monkeypatch.setattr(new, "_export_compose", fail)

    with pytest.raises(type(error) if not isinstance(error, OSError) else ConfigError) as caught:
        run_new("shop", "service")

    assert list(directory.iterdir()) == []
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot create shop in {directory}: No space left on device"


def test_a_directory_without_permission_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)

    with pytest.raises(ConfigError, match="cannot create shop in .*: Permission denied"):
        run_new("shop", "service")


def test_the_settings_of_the_shell_do_not_reach_the_compose_file(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFIX", "prod-")
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://me:hunter2@db/shop")

    run_new("shop", "service")

    found = yaml.safe_load((directory / "shop" / "compose.yaml").read_text())["services"]
    assert list(found) == ["smartpipe-broker", "smartpipe-topology", "shop"]
    assert "SMARTPIPE_PREFIX" not in found["shop"]["environment"]
    assert not list((directory / "shop").rglob("__pycache__"))


def test_the_packages_of_the_api_need_not_be_installed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = directory / "missing"
    missing.mkdir()
    (missing / "fastapi.py").write_text("raise ModuleNotFoundError('fastapi')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(missing), *sys.path]))

    run_new("shop", "api+worker")

    text = (directory / "shop" / "compose.yaml").read_text()
    assert yaml.safe_load(text)["services"]["smartpipe-topology"]["command"][-2:] == [
        "shop.api:service",
        "shop.workers:service",
    ]
    assert "# Without shop-api: no worker runs" in text


def test_an_export_that_fails_is_reported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "_EXPORT", ("-c", "import sys; sys.exit('no such format')"))

    with pytest.raises(SmartpipeError, match="the compose file could not be written: no such format"):
        run_new("shop", "service")

    assert list(directory.iterdir()) == []


def test_a_package_of_an_earlier_project_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "packages_distributions", lambda: {"shop": ["shop-dist"]})

    with pytest.raises(ConfigError, match="is the name of a package that shop-dist has installed"):
        read_name("shop")
    assert read_name("shops") == ProjectName("shops", "shops", "shops")
