from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError
from smartpipe.cli import main
from smartpipe.cli.changes import Line, print_line
from smartpipe.cli.dlq import dead_letter_queues, messages

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from tests.support import exported

archive = exported.archive()
borrower = exported.borrower()
portal = exported.portal()
"""
TARGETS = ["dead_shop:archive", "dead_shop:borrower", "dead_shop:portal"]


@pytest.fixture(autouse=True)
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dead_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SMARTPIPE_PREFIX", "shop-")


def test_dead_letter_queues_have_their_names_on_aws_also_those_of_other_teams() -> None:
    assert [(one.name, one.source) for one in dead_letter_queues(TARGETS)] == [
        ("shop-archive-dlq", "shop-archive"),
        ("shop-reports-dlq", "shop-reports"),
        ("their-dead", "theirs"),
    ]


@pytest.mark.parametrize("wanted", ["reports", "reports-dlq", "shop-reports", "shop-reports-dlq"])
def test_a_queue_is_found_by_its_name_or_its_sources_with_or_without_the_prefix(wanted: str) -> None:
    [found] = dead_letter_queues(TARGETS, wanted)

    assert found.queue.name == "reports"


@pytest.mark.parametrize(
    ("targets", "wanted", "sentence"),
    [
        (TARGETS, "report", "--queue 'report' is not a queue of these services; did you mean reports?"),
        (TARGETS, "x", "; they have shop-archive-dlq, shop-reports-dlq, their-dead"),
        (["dead_shop:portal"], "x", ", which have none"),
        (["dead_shop:exported"], None, "not a smartpipe.Service"),
    ],
)
def test_a_mistake_is_told_with_what_there_is(targets: list[str], wanted: str | None, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        dead_letter_queues(targets, wanted)

    assert sentence in str(raised.value)


@pytest.mark.parametrize("line", [Line("a\x1b[2Jb\nforged\u202e", "red"), "a\x1b[2Jb\nforged\u202e"])
def test_a_printed_line_is_one_line_that_commands_no_terminal(
    line: Line | str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_line(line)

    assert capsys.readouterr().out == "a\\x1b[2Jb\\nforged\\u202e\n"


def test_an_error_is_printed_as_one_line_that_commands_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["smartpipe", "dlq", "list", "dead_shop:\x1b[2Jnone\u202e"])

    with pytest.raises(SystemExit):
        main()

    error = capsys.readouterr().err
    assert "\\x1b[2Jnone\\u202e" in error
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("count", "or_more", "expected"),
    [
        (1, False, "1 message"),
        (1, True, "1 or more messages"),
        (1_000, False, "1,000 messages"),
        (1_000, True, "1,000 or more messages"),
    ],
)
def test_a_number_of_messages_is_in_the_right_number(count: int, or_more: bool, expected: str) -> None:
    assert messages(count, or_more=or_more) == expected
