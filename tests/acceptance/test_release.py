"""``make release`` in a clone with a tag: its files, and the known vulnerabilities that stop it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from smartpipe.version import __version__
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTES = "### Added\n\n- Everything.\n"
AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Ada"), ("EMAIL", "ada@example.com"))
}


class VulnerabilityDatabase(BaseHTTPRequestHandler):
    """Answers as OSV does: httptools has a vulnerability if *vulnerable* is set."""

    vulnerable = False

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = query["package"]
        found = {"id": "GHSA-1", "summary": "bad", "details": "bad", "affected": [{"package": package, "ranges": []}]}
        known = self.vulnerable and package["name"] == "httptools"
        body = json.dumps({"vulns": [found]} if known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[False, True], ids=["no known vulnerability", "a vulnerable dependency"])
def vulnerable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def database(*, vulnerable: bool) -> Iterator[str]:
    handler = type("Handler", (VulnerabilityDatabase,), {"vulnerable": vulnerable})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a clone of this repository whose HEAD is a release."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout of git")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(ROOT), str(clone))
    changelog = clone / "CHANGELOG.md"
    changelog.write_text(
        changelog.read_text().replace("## Unreleased\n", f"## {__version__} - 2027-01-31\n\n{NOTES}\n## 0.0.1\n", 1)
    )
    git(clone, "commit", "--quiet", "--all", "--message", "Release")
    git(clone, "tag", f"v{__version__}")
    return clone


def git(directory: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=directory, env={**os.environ, **AUTHOR}, check=True, timeout=60)


@pytest.mark.timeout(300)  # three builds, and an installation into a clean environment
def test_a_release_has_checked_files_and_a_vulnerable_dependency_stops_it(
    clone: Path, database: str, *, vulnerable: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.release"],
        cwd=clone,
        env={
            **os.environ,
            "PYTHONPATH": str(clone / "src"),
            "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
            "PIP_AUDIT_OSV_URL": database,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    lines = dict(line[8:].split(": ", 1) for line in done.stdout.splitlines())
    assert list(lines)[:7] == ["commit", "changelog", "build", "metadata", "contents", "smoke test", "SBOM"], done
    if vulnerable:
        assert done.returncode == 1
        assert "FAILED  audit: httptools" in done.stdout
        assert not (clone / "dist").exists()
    else:
        assert done.returncode == 0, done
        assert lines["audit"].endswith("packages without a known vulnerability")
        check_files(clone / "dist")


def check_files(dist: Path) -> None:
    names = {one.name for one in dist.iterdir()}
    stem = f"smartpipe-{__version__}"
    listed = {f"{stem}.tar.gz", f"{stem}-py3-none-any.whl", f"{stem}.cdx.json", f"{stem}.md"}
    assert names == {*listed, "SHA256SUMS"}
    assert (dist / f"{stem}.md").read_text() == NOTES
    sums = [line.split() for line in (dist / "SHA256SUMS").read_text().splitlines()]
    assert {name: digest for digest, name in sums} == {
        name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in listed
    }
    with zipfile.ZipFile(dist / f"{stem}-py3-none-any.whl") as wheel:
        assert {"smartpipe/py.typed", f"{stem}.dist-info/licenses/LICENSE"} <= set(wheel.namelist())
    bill = json.loads((dist / f"{stem}.cdx.json").read_text())
    assert bill["metadata"]["component"]["version"] == __version__
    assert {"aiobotocore", "boto3", "pydantic", "tenacity"} <= {one["name"] for one in bill["components"]}
