"""``python -m tests.release``: build the files of a release in dist/, and check them.

It publishes nothing. The result is the files of a commit: the source distribution, the wheel, the software bill of
materials, the notes of the version, and SHA256SUMS.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from smartpipe.version import __version__
from tests.release.artifacts import build_twice, hash_file, list_missing, run_git
from tests.release.audit import audit
from tests.release.notes import find_notes
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

ACCEPTED = Path(__file__).with_name("accepted.toml")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.release", description="Build and check a release.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="directory of the files; default dist")
    parser.add_argument(
        "--check",
        action="store_true",
        help="accept a commit that is not a release: its changelog, tag and audit may be missing",
    )
    options = parser.parse_args()
    release = Release(options.output, is_check=options.check)
    with tempfile.TemporaryDirectory() as work:
        release.run(Path(work))
    return 1 if release.failed else 0


class Release:
    """One run. A failed check does not hide the others, as long as there are files to check."""

    def __init__(self, output: Path, *, is_check: bool) -> None:
        self.failed = False
        self._output = output
        self._is_check = is_check
        self._console = Console(highlight=False, markup=False, soft_wrap=True)

    def run(self, work: Path) -> None:
        """Build, check and, if all is well, write the files."""
        self._try("commit", self._check_commit, needs_release=True)
        self._try("changelog", lambda: self._write_notes(work), needs_release=True)
        if not self._try("build", lambda: self._build(work)):
            return
        self._try("metadata", self._check_metadata)
        self._try("contents", self._check_contents)
        if self._try("smoke test", lambda: self._smoke(work)):
            self._try("SBOM", lambda: self._write_sbom(work))
            self._try("audit", lambda: self._audit(work), needs_release=True)
        if not self.failed:
            self._try("files", self._write)

    def _try(self, name: str, check: Callable[[], str], *, needs_release: bool = False) -> bool:
        """Run one check and print its result. With ``--check``, some may fail."""
        try:
            self._console.print(f"ok      {name}: {check()}")
        except (ValueError, subprocess.SubprocessError) as error:
            excused = needs_release and self._is_check and not isinstance(error, Vulnerable)
            self.failed = self.failed or not excused
            output = getattr(error, "stderr", None) or ""
            self._console.print(
                f"{'skipped' if excused else 'FAILED '} {name}: {error}{f': {output}' if output else ''}"
            )
            return False
        return True

    def _check_commit(self) -> str:
        if changed := [line[3:] for line in run_git(ROOT, "status", "--porcelain").splitlines()]:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(f"not committed, so not in the release: {', '.join(changed[:3])}{more}")
        tag = f"v{__version__}"
        if tag not in run_git(ROOT, "tag", "--points-at", "HEAD").split("\n"):
            raise ValueError(f"HEAD has no tag {tag}: git tag --annotate {tag} --message 'smartpipe {__version__}'")
        return f"{run_git(ROOT, 'rev-parse', 'HEAD')} has the tag {tag}"

    def _write_notes(self, work: Path) -> str:
        notes = find_notes((ROOT / "CHANGELOG.md").read_text(), __version__)
        self._notes = work / f"smartpipe-{__version__}.md"
        self._notes.write_text(notes)
        return f"the section of {__version__} has {len(notes.splitlines())} lines"

    def _build(self, work: Path) -> str:
        self._source, self._wheel = sorted(build_twice(ROOT, work / "build"), key=lambda one: one.suffix)
        return f"{self._source.name} and {self._wheel.name}, built twice with the same bytes"

    def _check_metadata(self) -> str:
        _run(sys.executable, "-m", "twine", "check", "--strict", self._source, self._wheel)
        return "twine accepts both files"

    def _check_contents(self) -> str:
        if missing := list_missing(ROOT, self._wheel):
            raise ValueError("; ".join(missing))
        return "the wheel has the files that are in git"

    def _smoke(self, work: Path) -> str:
        """Install the wheel without extras into a clean virtual environment, and handle one event with it."""
        self._venv = work / "venv"
        _run(sys.executable, "-m", "venv", "--without-pip", self._venv)
        python = self._venv / "bin" / "python"
        _run(sys.executable, "-m", "pip", "--quiet", "--python", python, "install", self._wheel)
        printed = _run(self._venv / "bin" / "smartpipe", "--version", cwd=work)
        if __version__ not in printed:
            raise ValueError(f"smartpipe --version prints {printed.strip()!r}, and the version is {__version__}")
        return _run(python, "-P", "-W", "error", ROOT / "tests" / "smoke.py", cwd=work).strip()

    def _write_sbom(self, work: Path) -> str:
        self._sbom = work / f"smartpipe-{__version__}.cdx.json"
        project = work / "pyproject.toml"  # the tool does not run hatchling, so it cannot find the version
        text = (ROOT / "pyproject.toml").read_text()
        project.write_text(text.replace('dynamic = ["version"]', f'version = "{__version__}"'))
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--validate"]
        options = ["--pyproject", project, "--mc-type", "library", "--output-file", self._sbom]
        epoch = run_git(ROOT, "log", "-1", "--format=%ct")
        _run(*command, *options, self._venv / "bin" / "python", environment={"SOURCE_DATE_EPOCH": epoch})
        found = json.loads(self._sbom.read_text())
        if found["metadata"]["component"].get("version") != __version__:
            raise ValueError(f"{self._sbom.name} has no version of smartpipe")
        return f"{self._sbom.name}, CycloneDX {found['specVersion']}, {len(found['components'])} dependencies"

    def _audit(self, work: Path) -> str:
        site_packages = next((work / "venv" / "lib").glob("python*/site-packages"))
        found = audit(site_packages, ACCEPTED, datetime.now(UTC).date())
        if found.vulnerable:
            raise Vulnerable("; ".join(found.vulnerable))
        if found.not_audited:
            first = found.not_audited[0]
            raise ValueError(f"{len(found.not_audited)} packages were not looked up, such as {first}")
        return f"{found.audited} packages without a known vulnerability"

    def _write(self) -> str:
        self._output.mkdir(parents=True, exist_ok=True)
        for stale in self._output.glob("smartpipe-*"):
            stale.unlink()
        files = [self._source, self._wheel, self._sbom, *([self._notes] if hasattr(self, "_notes") else [])]
        copies = [Path(shutil.copy(one, self._output)) for one in files]
        sums = "".join(f"{hash_file(one)}  {one.name}\n" for one in copies)
        (self._output / "SHA256SUMS").write_text(sums)
        return f"{len(copies) + 1} files in {self._output.name}/"


class Vulnerable(ValueError):
    """A known vulnerability, which also fails a check."""


def _run(*words: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(one) for one in words],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise ValueError(
            f"{Path(str(words[0])).name} exited with {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
