"""The README's snippets, pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.processes import ROOT, Process

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from smartpipe import EmbeddedBroker

README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_producer_and_consumer_of_the_readme_work_as_pasted(
    ministack: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, program = snippets("python")
    start_broker, use = snippets("sh")[-2:]
    assert start_broker == ". .venv/bin/activate\nsmartpipe local --port 4566\n"
    _, exports, apply, publish, work = use.replace("4566", str(ministack.port)).splitlines()
    (tmp_path / "hello.py").write_text(program)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")  # noqa: PTH120
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    script = f"set -e\n{exports}\n{apply}\n{publish}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 changes made\npublished " in done.stdout

    environment = dict(pair.split("=", 1) for pair in exports.removeprefix("export ").split())
    worker = Process(*work.split()[1:], "--port", "0", "--wait-seconds", "1", PYTHONUNBUFFERED="1", **environment)
    try:
        worker.wait_until(lambda: "hello Ada" in worker.lines)
    finally:
        worker.end()


def test_the_first_program_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    program, _ = snippets("python")
    [output] = snippets("text")
    (tmp_path / "first.py").write_text(program)

    done = subprocess.run([sys.executable, "first.py"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


def test_the_programs_of_the_readme_are_short() -> None:
    lines = [len([line for line in program.splitlines() if line.strip()]) for program in snippets("python")]

    assert lines[0] <= 16
    assert lines[1] <= 20


def test_every_link_of_the_documents_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)", page.read_text())]

    assert len(links) > 15
    assert [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()] == []
