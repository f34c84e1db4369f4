"""``python -m tests.mutants.server``: run tests again and again, each time in a fork of this process.

pytest with all libraries takes four seconds to begin, and most mutants are noticed by the first test. So this process
imports the libraries once, and nothing of the project. It reads a line of JSON for each run from stdin, with the
options of pytest and a limit in seconds, and writes a line with the exit code (-1 beyond the limit) and the first test
that failed.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HANGS = -1
# pytest rewrites the assertions of its plugins, and here some have been imported already.
OPTIONS = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
WARM_UP = ("-q", "--collect-only", "-p", "no:cacheprovider", "tests/unit", "tests/integration", "tests/conformance")
WARM_UP_SECONDS = 300.0


def main() -> None:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "modules"
        _fork(lambda: _list_modules(file), WARM_UP_SECONDS)
        for name in file.read_text().split():
            with suppress(BaseException):
                import_module(name)
        gc.freeze()
        _answer("ready")
        for line in sys.stdin:
            _answer(_serve(json.loads(line), Path(directory) / "output"))


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _serve(request: dict[str, Any], output: Path) -> dict[str, Any]:
    code = _fork(lambda: _run_tests(request["options"], output), request["seconds"])
    failed = [line for line in output.read_text().splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return {"code": code, "failed": failed[0].partition(" ")[2].partition(" - ")[0] if failed else ""}


def _fork(run: Callable[[], int], limit_seconds: float) -> int:
    """Return the exit code of *run* in a fork with a process group of its own, which is killed in the end."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            # A mutant may loop for ever, and this process may be killed meanwhile.
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit_seconds), int(limit_seconds) + 10))
            code = run()
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    handle = os.pidfd_open(child)
    try:
        ended = bool(select.select([handle], [], [], limit_seconds)[0])
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(status) if ended else HANGS


def _run_tests(options: Sequence[str], output: Path) -> int:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = int(pytest.main([*OPTIONS, *options]))
    sys.stdout.flush()
    return code


def _list_modules(file: Path) -> int:
    """Write the names of all modules outside of the project that the tests import."""
    code = _run_tests(WARM_UP, file.with_name("output"))
    project = str(Path.cwd())
    paths = {name: getattr(module, "__file__", None) or project for name, module in sys.modules.items()}
    file.write_text("\n".join(name for name, path in paths.items() if not path.startswith(project)))
    return code


if __name__ == "__main__":
    main()
