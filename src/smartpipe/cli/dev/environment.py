"""The environment of ``smartpipe dev``: variables from ``.env``, and the port of the broker."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

from smartpipe.errors import ConfigError

DOTENV = ".env"
FIRST_PORT = 20_000
PORTS = 10_000
"""All are below the ports that Linux and macOS give to outgoing connections."""


class DotEnv:
    """The variables of the file ``.env`` in the working directory, as part of this process's environment.

    A variable that is set in the environment wins over the file, as with Docker Compose and uvicorn.
    """

    def __init__(self) -> None:
        self._outer = dict(os.environ)

    def load(self) -> list[str]:
        """Read the file again, replace the variables of the last time, and return the names of the new ones.

        Raises:
            ConfigError: The file cannot be read, or python-dotenv is not installed.
        """
        wanted = {name: value for name, value in _read(Path(DOTENV)).items() if name not in self._outer}
        for name in set(os.environ) - set(self._outer) - set(wanted):
            del os.environ[name]
        os.environ.update(wanted)
        return sorted(wanted)


def _read(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        from dotenv import dotenv_values
    except ModuleNotFoundError:
        raise ConfigError("reading .env needs python-dotenv; run pip install 'smartpipe[local]'") from None
    try:
        values = dotenv_values(path, encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path.absolute()}: {error.strerror}") from None
    except ValueError:  # its text could contain a part of a secret
        raise ConfigError(f"cannot read {path.absolute()}: it is not UTF-8") from None
    wrong = [name for name, value in values.items() if "\0" in f"{name}{value or ''}" or not name]
    if wrong:
        raise ConfigError(f"cannot read {path.absolute()}: a variable has a NUL character, or no name")
    return {name: value for name, value in values.items() if value is not None}


def choose_port(directory: Path) -> int:
    """Return the port of the broker for a project: the same each time, and another one for most other projects."""
    return FIRST_PORT + crc32(str(directory.resolve()).encode()) % PORTS
