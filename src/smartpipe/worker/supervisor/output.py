"""Prefix the lines of several processes in one terminal with the name of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.escaping import escape_keeping_colours, escape_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS = ("36", "35", "34", "33", "32", "96", "95", "94")
QUIET = "2"


class PrefixedLines:
    """Writes whole lines with a prefix. Text without a newline waits for the rest of its line, or for the end.

    Control characters are escaped, except tabs and, if the prefix is coloured, colours.
    """

    def __init__(self, prefix: str, write: Callable[[str], object]) -> None:
        self._prefix = prefix
        self._coloured = "\x1b" in prefix
        self._write = write
        self._partial_line = b""

    def feed(self, chunk: bytes) -> None:
        """Write the complete lines of *chunk*, which may begin and end within a line."""
        *lines, self._partial_line = (self._partial_line + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode(errors="replace")
            self._write(f"{self._prefix}{escape_keeping_colours(text) if self._coloured else escape_text(text)}\n")

    def end(self) -> None:
        """Write a last line without a newline."""
        if self._partial_line:
            self.feed(b"\n")


def build_prefixes(owner: str, names: Sequence[str], *, coloured: bool) -> tuple[str, list[str]]:
    """Return a prefix for *owner*, and one for each of *names*. They have one width and, if *coloured*, colours."""
    width = max(map(len, (owner, *names)))

    def build(name: str, colour: str) -> str:
        text = f"{name:<{width}} │ "
        return f"\x1b[{colour}m{text}\x1b[0m" if coloured else text

    return build(owner, QUIET), [build(name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(names)]
