from __future__ import annotations

import pytest

from smartpipe.worker.supervisor.output import PrefixedLines, prefixes


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
    ids=["whole", "cut", "unfinished", "empty", "cut inside of a letter", "no UTF-8", "long", "nothing"],
)
def test_each_line_gets_its_prefix_wherever_reads_cut_it(chunks: list[bytes], written: list[str]) -> None:
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
def test_what_a_process_prints_cannot_command_the_terminal(prefix: str, line: str, written: str) -> None:
    lines: list[str] = []

    PrefixedLines(prefix, lines.append).feed(f"{line}\n".encode())

    assert lines == [f"{written}\n"]


def test_prefixes_have_one_width_and_a_colour_each_where_colours_may_be() -> None:
    assert prefixes("me", ["a", "long"], coloured=False) == ("me   │ ", ["a    │ ", "long │ "])
    assert prefixes("me", ["a", "long"], coloured=True) == (
        "\x1b[2mme   │ \x1b[0m",
        ["\x1b[36ma    │ \x1b[0m", "\x1b[35mlong │ \x1b[0m"],
    )
