"""The variables and the port of `smartpipe dev`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError
from smartpipe.cli.dev.environment import FIRST_PORT, PORTS, DotEnv, choose_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def test_without_a_file_nothing_changes(here: Path) -> None:
    before = dict(os.environ)

    assert DotEnv().load() == []
    assert dict(os.environ) == before


def test_the_environment_wins_even_with_an_empty_value(here: Path) -> None:
    os.environ.update(TAKEN="environment", EMPTY="")
    (here / ".env").write_text("TAKEN=file\nEMPTY=file\nNEW='with spaces # and no comment'\nexport OLD=1\nNAME_ONLY\n")

    names = DotEnv().load()

    assert names == ["NEW", "OLD"]
    assert (os.environ["TAKEN"], os.environ["EMPTY"]) == ("environment", "")
    assert (os.environ["NEW"], os.environ["OLD"]) == ("with spaces # and no comment", "1")
    assert "NAME_ONLY" not in os.environ


def test_a_changed_file_replaces_the_variables_of_the_last_one(here: Path) -> None:
    (here / ".env").write_text("GOES=1\nSTAYS=1\n")
    dotenv = DotEnv()
    dotenv.load()

    (here / ".env").write_text("STAYS=2\n")

    assert dotenv.load() == ["STAYS"]
    assert os.environ["STAYS"] == "2"
    assert "GOES" not in os.environ


def test_a_byte_order_mark_is_not_part_of_the_first_name(here: Path) -> None:
    (here / ".env").write_bytes(b"\xef\xbb\xbfFIRST=1\r\nSECOND=2\r\n")

    assert DotEnv().load() == ["FIRST", "SECOND"]
    assert os.environ["SECOND"] == "2"


@pytest.mark.parametrize("content", [b"PASSWORD=s3cr3t\xff", b"PASSWORD=s3cr3t\0"])
def test_a_file_that_cannot_be_read_is_an_error_without_its_content(here: Path, content: bytes) -> None:
    (here / ".env").write_bytes(content)

    with pytest.raises(ConfigError, match=r"cannot read .*\.env: ") as caught:
        DotEnv().load()

    assert "s3cr3t" not in str(caught.value)


def test_a_directory_of_this_name_is_ignored(here: Path) -> None:
    (here / ".env").mkdir()

    assert DotEnv().load() == []


def test_a_file_without_permission_to_read_it_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".env").write_text("A=1")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dotenv.dotenv_values", refuse)

    with pytest.raises(ConfigError) as caught:
        DotEnv().load()

    assert str(caught.value) == f"cannot read {here / '.env'}: Permission denied"


def test_a_file_needs_a_package(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dotenv", None)
    assert DotEnv().load() == []

    (here / ".env").write_text("A=1")

    with pytest.raises(ConfigError, match=r"reading \.env needs python-dotenv; run pip install 'smartpipe\[local\]'"):
        DotEnv().load()


def test_ports_are_below_those_of_outgoing_connections() -> None:
    """Linux gives them ports from 32768, and macOS from 49152."""
    assert (FIRST_PORT, FIRST_PORT + PORTS) == (20_000, 30_000)


def test_the_port_depends_on_the_directory_only(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    (tmp_path / "link").symlink_to(first)

    ports = {
        choose_port(first),
        choose_port(second),
        choose_port(tmp_path / "link"),
        choose_port(first / ".." / "first"),
    }

    assert len(ports) == 2
    assert all(FIRST_PORT <= port < FIRST_PORT + PORTS for port in ports)
