"""The decisions of ``make release``: the notes of a version, and known vulnerabilities."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from tests.release.artifacts import compare
from tests.release.audit import judge, read_accepted
from tests.release.notes import find_notes

if TYPE_CHECKING:
    from pathlib import Path

CHANGELOG = """# Changelog

## Unreleased

### Added

- A change of the future.

## 1.4.0 - 2027-01-31

### Fixed

- A message with a null byte is dead-lettered.

## 1.3.0 - 2026-12-01

## 1.2.0

- No date.
"""
TODAY = date(2027, 2, 1)


def report(*vulnerabilities: dict[str, Any], **row: Any) -> dict[str, Any]:
    return {"dependencies": [{"name": "aiohttp", "version": "3.1.0", "vulns": list(vulnerabilities), **row}]}


def test_the_notes_are_the_section_of_the_version() -> None:
    assert find_notes(CHANGELOG, "1.4.0") == "### Fixed\n\n- A message with a null byte is dead-lettered.\n"


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("1.5.0", r"CHANGELOG.md has no section ## 1\.5\.0 - YYYY-MM-DD: rename ## Unreleased to it"),
        ("1.3.0", r"the section of 1\.3\.0 lists no change"),
        ("1.2.0", r"the section of 1\.2\.0 has no date"),
        ("1.4", r"version '1\.4' .* is not MAJOR\.MINOR\.PATCH"),
        ("1.4.0.dev1", "is not MAJOR"),
    ],
)
def test_a_version_without_notes_is_not_released(version: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        find_notes(CHANGELOG, version)


def test_a_known_vulnerability_names_the_package_and_the_fix() -> None:
    found = judge(report({"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3.1.1"]}), {}, TODAY)

    assert found.vulnerable == ["aiohttp 3.1.0 has PYSEC-1 = CVE-1; versions with the fix: 3.1.1"]


def test_a_vulnerability_is_accepted_by_any_of_its_ids_until_its_last_day() -> None:
    accepted = read_accepted(
        '[[vulnerability]]\nid = "CVE-1"\nreason = "we never serve files"\nuntil = 2027-02-01\n', "accepted.toml"
    )
    vulnerable = report({"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": []})

    assert judge(vulnerable, accepted, TODAY).vulnerable == []
    (expired,) = judge(vulnerable, accepted, date(2027, 2, 2)).vulnerable
    assert expired.endswith("versions with the fix: none; it was accepted until 2027-02-01: we never serve files")


@pytest.mark.parametrize("entry", ['id = "CVE-1"', 'id = "CVE-1"\nreason = ""\nuntil = 2027-02-01', 'reason = "why"'])
def test_a_vulnerability_is_not_accepted_without_id_reason_and_date(entry: str) -> None:
    with pytest.raises(ValueError, match=r"accepted\.toml: .* needs id, reason and until"):
        read_accepted(f"[[vulnerability]]\n{entry}\n", "accepted.toml")


def test_a_package_that_was_not_looked_up_is_not_called_clean() -> None:
    found = judge(report(skip_reason="not found"), {}, TODAY)

    assert (found.audited, found.not_audited) == (0, ["aiohttp: not found"])


def test_smartpipe_itself_need_not_be_published_yet() -> None:
    found = judge({"dependencies": [{"name": "smartpipe", "skip_reason": "not found"}]}, {}, TODAY)

    assert (found.audited, found.not_audited) == (0, [])


def test_two_builds_with_other_bytes_are_an_error(tmp_path: Path) -> None:
    import zipfile

    for folder, text in (("one", "a = 1\n"), ("two", "a = 2\n")):
        (tmp_path / folder).mkdir()
        with zipfile.ZipFile(tmp_path / folder / "shop.whl", "w") as wheel:
            wheel.writestr("same.py", "b = 1\n")
            wheel.writestr("shop.py", text)

    with pytest.raises(ValueError, match=r"^shop\.whl from a later day has other bytes: shop\.py$"):
        compare([tmp_path / "one" / "shop.whl"], [tmp_path / "two" / "shop.whl"], "a later day")
