"""Containers in manifests of any kind: whether they run a worker, and with which settings. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence  # noqa: TC003 - fields of a named tuple
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.deploy.workloads import GRACE_SECONDS, MESSAGE_COPIES, estimate_memory
from smartpipe.doctor.findings import Finding
from smartpipe.doctor.lookup import to_number
from smartpipe.limits import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.ci_formats import Place
    from smartpipe.doctor.findings import Figure
    from smartpipe.settings import WorkerSettings

_WORKER = re.compile(r"(?:^|[\s/;&|(\"'])smartpipe(?:[\s\\]+-[^\s]+)*[\s\\]+worker(?![\w.:/-])")
_HIDDEN = re.compile(r"(?:^|(?:^|[\s/])smartpipe\s+)\$")
"""The program, or the command of smartpipe, is a variable."""
_SCRIPT = re.compile(r"\.(ba|da|a|z)?sh(?![\w.])")
_SHELLS = re.compile(r"(.*/)?(ba|da|a|z)?sh")
_TRUE = {"1", "true", "t", "yes", "y", "on"}
"""The values that Pydantic reads as true."""
_EXEC = re.compile(r"\s*exec\s")
_SEQUENCE = re.compile(r"&&|;|\n")
_WORKER_SETTINGS = {
    f"SMARTPIPE_{name}"
    for name in ("DRAIN_SECONDS", "CONCURRENCY", "PROCESSES", "WAIT_SECONDS", "LIVENESS_SECONDS", "PROTECT_TASK")
}
_WORKER_PATHS = {"/livez", "/readyz"}


class Container(NamedTuple):
    """A container of a manifest.

    Args:
        resource: Its name in findings.
        command: The words of its command with arguments; empty if the image decides.
        environment: The values of its variables; None if a value is not in the manifest.
        paths: The paths of its probes.
        hides_variables: Whether it gets further variables that are not in the manifest.
        settings: Those of doctor's environment, for those that the manifest does not set.
    """

    resource: str
    place: Place
    command: Sequence[str]
    environment: Mapping[str, Any]
    settings: WorkerSettings
    paths: Sequence[str] = ()
    hides_variables: bool = False

    @property
    def is_worker(self) -> bool | None:
        """Whether it runs ``smartpipe worker``; None if the manifest does not say."""
        words = " ".join(self.command)
        if _WORKER.search(words):
            return True
        arguments = not words or words.startswith(("-", "worker"))  # of an entry point in the image
        if not arguments and _SCRIPT.search(words) is None and not self._hides_command:
            return False
        if self.environment.keys() & _WORKER_SETTINGS or _WORKER_PATHS & set(self.paths):
            return True
        return None

    @property
    def _hides_command(self) -> bool:
        return _HIDDEN.search(" ".join(self.command)) is not None

    @property
    def drain_seconds(self) -> float:
        """The drain of its worker."""
        return self._find_setting("drain_seconds")

    @property
    def protects_task(self) -> bool:
        """Whether it protects its task on ECS while long handlers run."""
        words = " ".join(self.command).split()
        value = self.environment.get("SMARTPIPE_PROTECT_TASK")
        if "--protect-task" in words:
            return True
        return self.settings.protect_task if value is None else str(value).strip().lower() in _TRUE

    @property
    def processes(self) -> int:
        """The number of its worker processes."""
        return int(self._find_setting("processes"))

    @property
    def slots(self) -> int:
        """The number of messages that a process handles concurrently, if it has one queue."""
        return int(self._find_setting("concurrency"))

    def list_unknown(self) -> Iterator[str]:
        """Yield a sentence for each fact about it that the manifest does not have."""
        where = f"{self.resource} ({self.place.file}:{self.place.line})"
        if self.is_worker is None:
            hidden = "it has a variable" if self._hides_command else "it is in the image"
            yield f'the command of {where}: {hidden}; write it here, as in ["smartpipe", "worker"]'
        elif self.is_worker and (
            self.hides_variables
            or not all(
                map(_is_literal, (self.environment[name] for name in _WORKER_SETTINGS & self.environment.keys()))
            )
        ):
            yield f"variables of {where} that come from elsewhere: settings of this environment are used instead"

    def make_finding(
        self, code: str, message: str, remedy: str, figures: Mapping[str, Figure] | None = None, **options: Any
    ) -> Finding:
        """Return a finding about it."""
        return Finding(
            code=code,
            resource=self.resource,
            message=message,
            remedy=remedy,
            figures=figures or {},
            place=self.place,
            **options,
        )

    def _find_setting(self, name: str) -> float:
        option = f"--{name.replace('_', '-')}"
        words = " ".join(self.command).split()
        for place, word in enumerate(words):
            following = words[place + 1] if place + 1 < len(words) else ""
            text = following if word == option else word.removeprefix(f"{option}=") if "=" in word else ""
            if word.partition("=")[0] == option and (number := to_number(text)) is not None:
                return number
        number = to_number(self.environment.get(f"SMARTPIPE_{name.upper()}"))
        return float(getattr(self.settings, name)) if number is None else number


def _is_literal(value: Any) -> bool:
    """Return whether a value is in the manifest itself: not None, a function, or a text with a variable."""
    return isinstance(value, (str, int, float)) and "$" not in str(value)


def find_short_grace(container: Container, grace: float, setting: str, lost: float = 0) -> Iterator[Finding]:
    """SP201: the platform sends SIGKILL while the worker drains. *lost* seconds of the grace pass before SIGTERM."""
    needed = container.drain_seconds + GRACE_SECONDS + lost
    if grace >= needed:
        return
    before = f", of which {lost:g} s pass before SIGTERM" if lost else ""
    yield container.make_finding(
        "SP201",
        f"{setting} is {grace:g} s{before}, and the worker drains for {container.drain_seconds:g} s: the platform "
        "kills it while its handlers run",
        f"set {setting} to {needed:g} s, or lower SMARTPIPE_DRAIN_SECONDS",
        {"grace_seconds": grace, "drain_seconds": container.drain_seconds, "needed_seconds": needed},
    )


def find_lost_signals(container: Container) -> Iterator[Finding]:
    """SP202: a shell is the first process of the container, and need not pass SIGTERM on to the worker."""
    if runs_in_shell(container.command):
        yield container.make_finding(
            "SP202",
            "its command runs in a shell, which is process 1: SIGTERM may end the shell, or be ignored, and the "
            "worker is killed at the end of the grace period",
            'write the command as a list without a shell, ["smartpipe", "worker"], or write exec before smartpipe',
        )


def find_small_memory(container: Container, limit_bytes: float) -> Iterator[Finding]:
    """SP208: the messages alone, at their maximum size, need more memory than the limit."""
    needed = estimate_memory(container.slots * container.processes, MAX_MESSAGE_BYTES)
    if limit_bytes < needed:
        mebibytes = 1_048_576
        yield container.make_finding(
            "SP208",
            f"{container.slots} messages in each of {container.processes} processes need up to "
            f"{needed / mebibytes:,.0f} MiB for a queue, {MESSAGE_COPIES} times their maximum size of 1 MiB, and the "
            f"memory limit is {limit_bytes / mebibytes:,.0f} MiB",
            "raise the memory limit, or lower SMARTPIPE_CONCURRENCY",
            {"limit_bytes": limit_bytes, "needed_bytes": needed},
        )


def find_shared_cpu(container: Container, cpus: float) -> Iterator[Finding]:
    """SP208: several processes share less than one CPU."""
    if cpus < 1 < container.processes:
        yield container.make_finding(
            "SP208",
            f"{container.processes} processes share {cpus:g} CPU, so they are slower than one process",
            "set SMARTPIPE_PROCESSES=1 and run more tasks, or raise the CPU limit to one for each process",
            {"cpus": cpus, "processes": container.processes},
        )


def runs_in_shell(command: Sequence[str]) -> bool:
    """Return whether a shell runs *command* and stays its parent."""
    if not (command and _SHELLS.fullmatch(command[0])):
        return False
    flags = [place for place, word in enumerate(command) if place and word.startswith("-") and "c" in word]
    script = command[flags[0] + 1] if flags and flags[0] + 1 < len(command) else ""
    return _EXEC.match(_SEQUENCE.split(script.strip().rstrip(";"))[-1]) is None
