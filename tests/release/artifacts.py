"""Builds the source distribution and the wheel of a commit, twice, and compares the bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ANOTHER_MACHINE = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
"""The second build runs with these variables, in a directory with a longer name, and creates private files."""


def run_git(root: Path, *words: str) -> str:
    """Return the output of a command of git, without the last line break."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.rstrip("\n")


def build_twice(root: Path, work: Path) -> list[Path]:
    """Return the source distribution and the wheel of HEAD.

    The timestamps in them are the time of the commit (https://reproducible-builds.org/docs/source-date-epoch/).

    Raises:
        ValueError: Two builds differ; or the wheel from the source distribution is another one.
    """
    epoch = run_git(root, "log", "-1", "--format=%ct")
    first = _build(_export(root, work / "one"), work / "first", epoch, {}, 0o022)
    second = _build(_export(root, work / "another-directory"), work / "second", epoch, ANOTHER_MACHINE, 0o077)
    compare(first, second, "another directory, time zone and file mode")
    source = next(one for one in first if one.suffix == ".gz")
    with tarfile.open(source) as archive:
        archive.extractall(work / "unpacked", filter="data")
    unpacked = next((work / "unpacked").iterdir())
    wheels = _build(unpacked, work / "third", epoch, {}, 0o022, "--wheel")
    compare([one for one in first if one.suffix == ".whl"], wheels, "the source distribution")
    return first


def compare(first: Sequence[Path], second: Sequence[Path], where: str) -> None:
    """Raise ValueError if two builds have other names or other bytes. *where* describes the second one."""
    names = [[one.name for one in build] for build in (first, second)]
    if names[0] != names[1]:
        raise ValueError(f"the build from {where} has {', '.join(names[1])} instead of {', '.join(names[0])}")
    for one, other in zip(first, second, strict=True):
        if hash_file(one) != hash_file(other):
            differing = sorted(set(_list_contents(one)) ^ set(_list_contents(other)))
            shown = ", ".join(dict.fromkeys(name for name, _ in differing[:6])) or "only the archive's own bytes differ"
            raise ValueError(f"{one.name} from {where} has other bytes: {shown}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def list_missing(root: Path, wheel: Path) -> list[str]:
    """Return the tracked files of the package that the wheel lacks, and the files that it has besides them."""
    tracked = {
        one.removeprefix("src/") for one in run_git(root, "ls-tree", "-r", "--name-only", "HEAD", "src/").split("\n")
    }
    with zipfile.ZipFile(wheel) as archive:
        packaged = {one for one in archive.namelist() if ".dist-info/" not in one}
    return [f"the wheel lacks src/{one}" for one in sorted(tracked - packaged)] + [
        f"the wheel has {one}, which is not in git" for one in sorted(packaged - tracked)
    ]


def _export(root: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    archive = target.with_suffix(".tar")
    run_git(root, "archive", "--format=tar", f"--output={archive}", "HEAD")
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    return target


def _build(
    source: Path, output: Path, epoch: str, environment: dict[str, str], umask: int, *options: str
) -> list[Path]:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, *options, source],
        env={**os.environ, **environment, "SOURCE_DATE_EPOCH": epoch},
        capture_output=True,
        text=True,
        umask=umask,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"the build failed: {(done.stdout + done.stderr).strip()[-1000:]}")
    return sorted(one for one in output.iterdir() if one.suffix in {".gz", ".whl"})


def _list_contents(path: Path) -> list[tuple[str, str]]:
    """Return the name of each file in an archive, with its hash, mode and time."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return [
                (one.filename, f"{hashlib.sha256(wheel.read(one)).hexdigest()} {one.external_attr:o} {one.date_time}")
                for one in wheel.infolist()
            ]
    with tarfile.open(path) as archive:
        return [
            (
                one.name,
                f"{hashlib.sha256(content.read()).hexdigest()} {one.mode:o} {one.mtime} {one.uname}"
                if (content := archive.extractfile(one)) is not None
                else f"{one.mode:o}",
            )
            for one in archive
        ]
