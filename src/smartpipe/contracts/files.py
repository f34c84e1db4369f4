"""The files of a schema directory: three for each version of an event, one for the envelope, and the exceptions.

``<type>/<version>.writer.json`` and ``<type>/<version>.reader.json`` are the two views of an event. The third,
``<type>/<version>.contract.json``, has what a JSON Schema cannot say, such as the topic. Characters of a type that file
systems refuse are written as in keys: ``/`` is ``!2F``.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smartpipe.contracts.compare import Document
from smartpipe.contracts.keywords import find_wrong_keyword
from smartpipe.contracts.schemas import envelope_schema, event_schema, render_json
from smartpipe.errors import ConfigError
from smartpipe.events import contract_of, parse_version
from smartpipe.keys import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from smartpipe.events import Event

ENVELOPE_FILE = "envelope.json"
ACCEPTED_FILE = "accepted.json"
CONTRACT, READER, WRITER = ".contract.json", ".reader.json", ".writer.json"
FIXTURES = ".fixtures.json"
"""The suffix of example messages, which ``contracts.fixtures`` reads and writes."""
_NOT_IN_COMMIT = ("120000 ", "160000 ")
"""The modes of symbolic links and submodules, whose files a commit does not list."""
_GIT_VARIABLES = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"})


class Declaration(BaseModel):
    """The contract file of one version.

    Args:
        retired: Set it by hand when no message of the version can exist any more. The version is then not compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    version: str = Field(pattern=r"^[0-9]{1,9}\.[0-9]{1,9}$")
    topic: str
    fifo: bool
    key: tuple[str, ...] = ()
    tenant: str | None = None
    retired: bool = False

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor version."""
        return parse_version(self.version)


class Described(NamedTuple):
    """One version of an event: its declaration, and the schemas of its envelope."""

    declaration: Declaration
    reader: dict[str, Any]
    writer: dict[str, Any]


Versions: TypeAlias = "dict[str, list[Described]]"
"""The versions of each type, the oldest first."""


class Exported(NamedTuple):
    """For each written file, whether it has changed; and a sentence for each event without a schema."""

    files: dict[Path, bool]
    errors: list[str]


def describe(event: type[Event]) -> Described:
    """Return the contract of a class.

    Raises:
        ConfigError: JSON Schema cannot describe a field of the event.
    """
    contract = contract_of(event)
    key = (contract.key,) if isinstance(contract.key, str) else tuple(contract.key or ())
    declaration = Declaration(
        type=contract.type,
        version=contract.version,
        topic=contract.topic.name,
        fifo=contract.topic.fifo,
        key=key,
        tenant=contract.tenant,
    )
    return Described(declaration, event_schema(event, "reader"), event_schema(event, "writer"))


def export(events: Iterable[type[Event]], directory: Path) -> Exported:
    """Write the files of each event, and ``envelope.json``, below *directory*. No file is deleted.

    The same events always produce the same bytes. An event that JSON Schema cannot describe does not stop the others.
    """
    files: dict[Path, Any] = {directory / ENVELOPE_FILE: envelope_schema()}
    errors: list[str] = []
    for event in events:
        try:
            described = describe(event)
        except ConfigError as error:
            errors += error.problems
            continue
        start = directory / stem_of(described.declaration)
        declaration = described.declaration.model_dump(mode="json", exclude={"retired"})
        for suffix, value in ((CONTRACT, declaration), (READER, described.reader), (WRITER, described.writer)):
            files[start.with_name(start.name + suffix)] = value
    return Exported({path: write_text(path, render_json(value)) for path, value in sorted(files.items())}, errors)


def stem_of(declaration: Declaration) -> str:
    """Return the path of a version's files below the directory, without their suffix."""
    return f"{escape(declaration.type)}/{declaration.version}"


def read_directory(directory: Path) -> Versions:
    """Read the versions in a directory.

    Raises:
        ConfigError: There is no such directory, or a file is missing or wrong. Each error has a sentence.
    """
    if not directory.is_dir():
        raise ConfigError(f"schema directory {str(directory)!r} does not exist; run `smartpipe schema export`")
    texts = {
        path.relative_to(directory).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(directory.glob("*/*.json"))
    }
    return parse_files(texts, str(directory))


def read_git(reference: str, directory: Path) -> Versions:
    """Read the versions in *directory* as they are in a commit, branch or tag of its git repository.

    Raises:
        ConfigError: git cannot be run, the reference does not exist, or a file is missing or wrong.
    """
    if reference.startswith("-"):
        raise ConfigError(f"git reference {reference!r} is not valid")
    place, below = _split_existing(directory)
    revision = _resolve_commit(reference, place)
    listed = _run_git(["ls-tree", "-r", "-z", revision, "--", f"./{below}"], place) or b""
    start = "" if below == "." else f"{below}/"
    modes = {path: mode for mode, _, path in (one.partition("\t") for one in os.fsdecode(listed).split("\0"))}
    # git lists a submodule that is not fetched as "./".
    paths = [path for path in modes if path not in {"", "./"} and path.startswith(start)]
    links = [directory / path.removeprefix(start) for path in paths if modes[path].startswith(_NOT_IN_COMMIT)]
    for link in (link for link in links if link.parent == directory):
        refuse_empty(link)
        if link.is_dir() and (link.is_symlink() or (link / ".git").exists()):
            raise ConfigError(
                f"{str(link)!r} is a symbolic link or a submodule, and git:{reference} does not have its "
                "files; pass the directory that has them to --directory"
            )
    names = [
        name
        for name in (path.removeprefix(start) for path in paths)
        if name.count("/") == 1 and name.endswith(".json") and "\n" not in name
    ]
    if not paths and not directory.is_dir():
        raise ConfigError(
            f"schema directory {str(directory)!r} exists neither here nor in git:{reference}; "
            "run `smartpipe schema export`"
        )
    if not paths:
        refuse_empty(directory)
    asked = os.fsencode("".join(f"{revision}:./{start}{name}\n" for name in names))
    found = _run_git(["cat-file", "--batch"], place, asked) or b""
    texts: dict[str, str] = {}
    for name in names:
        head, _, found = found.partition(b"\n")
        size = int(head.rsplit(b" ", 1)[1])
        texts[name] = found[:size].decode(errors="replace")
        found = found[size + 1 :]
    return parse_files(texts, f"git:{reference}")


def refuse_empty(directory: Path) -> None:
    """Refuse a directory without any file: nothing would be compared with it. So is a submodule that is not fetched.

    Raises:
        ConfigError: The directory exists and is empty.
    """
    if directory.is_dir() and next(directory.iterdir(), None) is None:
        raise ConfigError(
            f"schema directory {str(directory)!r} is empty; run `smartpipe schema export` or, if it is a submodule, "
            "`git submodule update --init`"
        )


def find_merge_base(reference: str, directory: Path) -> str:
    """Return the last commit that *reference* and the current branch share; *reference* if git finds none.

    Raises:
        ConfigError: git cannot be run, or the reference does not exist.
    """
    place, _ = _split_existing(directory)
    found = _run_git(["merge-base", _resolve_commit(reference, place), "HEAD"], place)
    return found.decode().strip() if found else reference


def _resolve_commit(reference: str, place: Path) -> str:
    commit = _run_git(["rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}"], place)
    if commit is None:
        msg = (
            f"git reference {reference!r} does not exist here; fetch it first: `git fetch origin`, and in a pipeline "
            "check out the whole history"
        )
        raise ConfigError(msg)
    return commit.decode().strip()


def parse_files(texts: Mapping[str, str], place: str) -> Versions:
    """Return the versions that files describe. *texts* has their text by path below the directory.

    Raises:
        ConfigError: One sentence for each file that is missing or wrong.
    """
    errors: list[str] = []
    versions: Versions = {}
    for name in texts:
        if name.endswith(CONTRACT):
            try:
                described = _parse_version(texts, name.removesuffix(CONTRACT))
            except ConfigError as error:
                errors += error.problems
            else:
                versions.setdefault(described.declaration.type, []).append(described)
    if errors:
        raise ConfigError([f"{place}: {error}" for error in errors])
    for found in versions.values():
        found.sort(key=lambda one: one.declaration.number)
    return versions


def _parse_version(texts: Mapping[str, str], stem: str) -> Described:
    contract, reader, writer = (_parse(texts, stem + suffix) for suffix in (CONTRACT, READER, WRITER))
    try:
        declaration = Declaration.model_validate(contract)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{stem}{CONTRACT}: {where}: {first['msg']}") from None
    if stem_of(declaration) != stem:
        raise ConfigError(f"{stem}{CONTRACT} is about {stem_of(declaration)}")
    return Described(declaration, reader, writer)


def _parse(texts: Mapping[str, str], name: str) -> dict[str, Any]:
    if name not in texts:
        raise ConfigError(f"{name} is missing; restore it, or run `smartpipe schema export` at that version")
    try:
        value = json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is not a JSON object")
    fault = find_wrong_keyword(value) if name.endswith((READER, WRITER)) else None
    fault = fault or Document(value).find_wrong_reference()
    if fault is not None:
        raise ConfigError(f"{name}: {fault}")
    return value


def write_text(path: Path, text: str) -> bool:
    """Write a file, and its directories, unless it has this text; return whether it was written.

    Raises:
        ConfigError: The file cannot be written, or it exists and is not text.
    """
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} cannot be written: it exists, and is not text; move it away") from None
    return True


def _split_existing(directory: Path) -> tuple[Path, str]:
    """Return the directory above *directory*, or itself, that exists, and the rest of the path."""
    place = directory.absolute()
    while not place.is_dir():
        place = place.parent
    return place, directory.absolute().relative_to(place).as_posix()


def _run_git(arguments: list[str], directory: Path, given: bytes | None = None) -> bytes | None:
    """Return the output of git; None if it failed without a message.

    Raises:
        ConfigError: git is not installed, or it failed with a message.
    """
    # Git sets these for its hooks. They would name another repository, or the directory as the root of this one.
    env = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            ["git", *arguments],  # noqa: S607 - the user's git
            cwd=directory,
            env=env,
            input=given,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise ConfigError(
            f"git cannot be run: {error.strerror}; install it, or pass a directory to --against"
        ) from None
    if not done.returncode:
        return done.stdout
    message = done.stderr.decode(errors="replace").strip()
    if "not a git repository" in message:
        raise ConfigError(f"{str(directory)!r} is not in a git repository; pass a directory to --against")
    if message:
        raise ConfigError(f"git {arguments[0]} failed in {str(directory)!r}: {' '.join(message.split())}")
    return None
