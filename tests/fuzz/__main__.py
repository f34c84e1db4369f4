"""Runs each target under atheris, which is guided by coverage; libFuzzer bounds time and memory of each input.

``python -m tests.fuzz [--runs N] [TARGET …]``; a failing input is written to ``crash-…`` in the working directory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.targets import TARGETS

MEMORY_MEGABYTES = 600
"""Of the whole process: Python, Pydantic and the package take a third of it."""
SECONDS_AN_INPUT = 10
MAX_BYTES = 4_096


def fuzz(name: str, arguments: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["smartpipe"]):
        for module in [module for module in sys.modules if module.startswith(("smartpipe", "tests.fuzz.targets"))]:
            del sys.modules[module]
        from tests.fuzz.targets import TARGETS as INSTRUMENTED
    atheris.Setup([sys.argv[0], *arguments], INSTRUMENTED[name][0])
    atheris.Fuzz()


def main() -> int:
    """Run the targets one after the other; return how many failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.one:
        fuzz(options.one, [*options.targets, *rest])
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(TARGETS)}")
    failed = []
    for name in options.targets or TARGETS:
        with TemporaryDirectory() as corpus:
            for number, seed in enumerate(TARGETS[name][1]):
                Path(corpus, str(number)).write_bytes(seed)
            limits = [f"-runs={options.runs}", f"-max_len={MAX_BYTES}", f"-timeout={SECONDS_AN_INPUT}"]
            command = [sys.executable, "-m", "tests.fuzz", "--one", name, corpus, *limits]
            command.append(f"-rss_limit_mb={MEMORY_MEGABYTES}")
            ran = subprocess.run(command, check=False, capture_output=True, text=True)
        covered = re.findall(r"cov: \d+ ft: \d+", ran.stderr) or [""]
        done = re.findall(r"Done \d+ runs in \d+ second", ran.stderr) or [f"exit {ran.returncode}"]
        print(f"{name}: {'ok' if ran.returncode == 0 else 'FAILED'}, {done[0]}(s), {covered[-1]}", flush=True)
        if ran.returncode != 0:
            failed.append(name)
            print(ran.stdout[-4_000:], ran.stderr[-4_000:], sep="\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
