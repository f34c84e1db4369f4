"""Rules over Dockerfiles. Pure.

Source: Docker, "Dockerfile reference": shell and exec form, USER, multi-stage builds.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.ci_formats import Place
from smartpipe.doctor.containers import runs_in_shell
from smartpipe.doctor.findings import Examined, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"(Dockerfile|Containerfile)(\..+)?|.+\.(dockerfile|containerfile)", re.IGNORECASE)
_STAGE = re.compile(r"(?:--\S+\s+)*(?P<image>\S+)(?:\s+AS\s+(?P<name>\S+))?", re.IGNORECASE)
_HEREDOC = re.compile(r"<<-?([\"']?)(\w+)\1")
_ROOT = {"root", "0"}


class Instruction(NamedTuple):
    """An instruction and its line."""

    name: str
    text: str
    line: int


class Stage(NamedTuple):
    """The instructions of a stage that decide how its image runs: the last one of each name."""

    image: str
    line: int
    last: dict[str, Instruction]


def is_dockerfile(name: str) -> bool:
    """Return whether a file with this name is a Dockerfile."""
    return _NAME.fullmatch(name) is not None


def examine_dockerfile(text: str, file: str) -> Examined:
    """Apply the rules to the last stage, which is the image that runs."""
    stage = find_last_stage(text)
    if stage is None:
        return Examined(
            [
                Finding(
                    code="SP200",
                    resource=file,
                    message="it has no FROM instruction",
                    remedy="name a Dockerfile",
                    place=Place(file, 1),
                )
            ],
            [],
        )
    not_seen = []
    if not stage.last.keys() & {"CMD", "ENTRYPOINT"}:
        not_seen.append(f"the command of {file}: it comes from {stage.image}")
    return Examined([*find_shell_form(stage, file), *find_root(stage, file)], not_seen)


def find_shell_form(stage: Stage, file: str) -> Iterator[Finding]:
    """SP202: /bin/sh is process 1, and need not pass SIGTERM on."""
    entry, command = stage.last.get("ENTRYPOINT"), stage.last.get("CMD")
    one = entry or command
    if one is None:
        return
    words = _read_list(one.text)
    arguments = _read_list(command.text) if entry and command else []
    if words is not None and arguments is None and command is not None:
        fault = "CMD is in shell form, so ENTRYPOINT gets the arguments /bin/sh -c and a text"
        place = Place(file, command.line)
    elif runs_in_shell(["sh", "-c", one.text] if words is None else [*words, *(arguments or ())]):
        form = "is in shell form" if words is None else "starts a shell"
        fault = (
            f"{one.name} {form}, so /bin/sh is process 1: SIGTERM may not reach the worker, which is then killed while "
            "its handlers run"
        )
        place = Place(file, one.line)
    else:
        return
    remedy = f'write {one.name} ["smartpipe", "worker"], or exec before the command'
    yield Finding(code="SP202", resource=file, message=fault, remedy=remedy, place=place)


def find_root(stage: Stage, file: str) -> Iterator[Finding]:
    """SP202: the worker can change everything in the container."""
    user = stage.last.get("USER")
    name = user.text.partition(":")[0].strip() if user else None
    if name in _ROOT or (name is None and "nonroot" not in stage.image):
        reason = f"USER is {name}" if name else "there is no USER instruction, and most base images run as root"
        yield Finding(
            code="SP202",
            resource=f"{file}, user",
            message=f"the worker runs as root: {reason}",
            remedy="add USER 10001 before the command",
            place=Place(file, user.line if user else stage.line),
        )


def find_last_stage(text: str) -> Stage | None:
    """Return the last stage, with the instructions that it inherits from earlier stages; None without a FROM."""
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for one in read_instructions(text):
        if one.name == "FROM":
            found = _STAGE.match(one.text)
            image, name = (found["image"], found["name"]) if found else (one.text, None)
            parent = stages.get(image.lower())
            current = Stage(parent.image if parent else image, one.line, dict(parent.last) if parent else {})
            stages[(name or str(len(stages))).lower()] = current
        elif current is not None:
            command = current.last.get("CMD")
            if one.name == "ENTRYPOINT" and command and command.line < current.line:
                del current.last["CMD"]  # a new entry point resets the command of the base image
            current.last[one.name] = one
    return current


def read_instructions(text: str) -> Iterator[Instruction]:
    """Yield the instructions, with continued lines joined, and without comments and heredocs."""
    rows = iter(enumerate(text.splitlines(), 1))
    for number, row in rows:
        if not row.strip() or row.lstrip().startswith("#"):
            continue
        joined = row.rstrip()
        while joined.endswith("\\"):
            following = next(rows, (0, ""))[1].rstrip()
            joined = joined[:-1] + ("\\" if following.lstrip().startswith("#") else following)
        name, rest = [*joined.split(maxsplit=1), ""][:2]
        heredoc = _HEREDOC.search(rest) if name.upper() in {"RUN", "COPY", "ADD"} else None
        if heredoc:
            for _, line in rows:
                if line.strip() == heredoc[2]:
                    break
        yield Instruction(name.upper(), rest.strip(), number)


def _read_list(text: str) -> list[str] | None:
    """Return the words of the exec form; None for the shell form."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return [str(word) for word in words] if isinstance(words, list) else None
