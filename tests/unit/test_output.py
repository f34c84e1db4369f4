from __future__ import annotations

import pytest

from smartpipe.worker.supervisor.output import PrefixedLines, build_prefixes


@pytest.mark.parametrize(
    ("chunks", "written"),
    [
        ([b"one\ntwo\n"], ["> one\n", "> two\n"]),
        ([b"o", b"ne\ntw", b"o\n"], ["> one\n", "> two\n"]),
        ([b"without an end"], ["> without an end\n"]),
        ([b"\n"], ["> \n"]),
        ([b"\xc3", b"\xa4\n"], ["> ä\n"]),
        ([b"\xff\n"], ["> \ufffd\n"]),
        ([b"x" * 100_000 + b"\n"], ["> " + "x" * 100_000 + "\n"]),
        ([], []),
    ],
    ids=["whole", "cut", "unfinished", "empty", "cut inside a character", "not UTF-8", "long", "nothing"],
)
def test_each_line_gets_its_prefix_even_if_a_read_ends_within_it(chunks: list[bytes], written: list[str]) -> None:
    lines: list[str] = []
    output = PrefixedLines("> ", lines.append)

    for chunk in chunks:
        output.feed(chunk)
    output.end()

    assert lines == written


@pytest.mark.parametrize(
    ("prefix", "line", "written"),
    [
        ("> ", "\x1b[31mred\x1b[0m", "> \\x1b[31mred\\x1b[0m"),
        ("\x1b[36m> \x1b[0m", "\x1b[31mred\x1b[0m", "\x1b[36m> \x1b[0m\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b[36m> \x1b[0m", "\x1b[2Jx\x1b]0;title\x07", "\x1b[36m> \x1b[0m\\x1b[2Jx\\x1b]0;title\\x07"),
        ("> ", "over\rwritten\u202e\x9b", "> over\\rwritten\\u202e\\x9b"),
        ("> ", "of Windows\r", "> of Windows"),
        ("\x1b[36m> \x1b[0m", "a\ttab", "\x1b[36m> \x1b[0ma\ttab"),
    ],
    ids=["uncoloured", "coloured", "commands", "cursor", "line end", "tab"],
)
def test_the_output_of_a_process_cannot_control_the_terminal(prefix: str, line: str, written: str) -> None:
    lines: list[str] = []

    PrefixedLines(prefix, lines.append).feed(f"{line}\n".encode())

    assert lines == [f"{written}\n"]


def test_prefixes_have_the_same_width_and_different_colours() -> None:
    assert build_prefixes("me", ["a", "long"], coloured=False) == ("me   │ ", ["a    │ ", "long │ "])
    assert build_prefixes("me", ["a", "long"], coloured=True) == (
        "\x1b[2mme   │ \x1b[0m",
        ["\x1b[36ma    │ \x1b[0m", "\x1b[35mlong │ \x1b[0m"],
    )
