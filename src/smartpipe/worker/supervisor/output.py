"""Lines of several processes in one terminal: each says whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.escaping import escape_keeping_colours, escape_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS = ("36", "35", "34", "33", "32", "96", "95", "94")
QUIET = "2"


class PrefixedLines:
    """Writes whole lines, each after its prefix; what has no newline yet waits for it, or for the end.

    Of control characters a line keeps colours, if the prefix has one, and tabs.
    """

    def __init__(self, prefix: str, write: Callable[[str], object]) -> None:
        self._prefix = prefix
        self._coloured = "\x1b" in prefix
        self._write = write
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Take what was read; lines may be cut anywhere."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode(errors="replace")
            self._write(f"{self._prefix}{escape_keeping_colours(text) if self._coloured else escape_text(text)}\n")

    def end(self) -> None:
        """Write a last line that has no newline."""
        if self._rest:
            self.feed(b"\n")


def prefixes(owner: str, names: Sequence[str], *, coloured: bool) -> tuple[str, list[str]]:
    """Return a prefix for *owner*, and one for each of *names*: of one width and, where colours may be, of its own."""
    width = max(map(len, (owner, *names)))

    def made(name: str, colour: str) -> str:
        text = f"{name:<{width}} │ "
        return f"\x1b[{colour}m{text}\x1b[0m" if coloured else text

    return made(owner, QUIET), [made(name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(names)]
