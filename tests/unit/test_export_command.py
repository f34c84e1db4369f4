from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError
from smartpipe.cli.export import FORMATS, run_export

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from tests.support import exported

portal = exported.portal()
archive = exported.archive()
cinema = exported.cinema()
"""


@pytest.fixture(autouse=True)
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a working directory with services, and an environment without AWS settings."""
    (tmp_path / "exported_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "SMARTPIPE_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMARTPIPE_PREFIX", "shop-")
    monkeypatch.setenv("SMARTPIPE_APPLICATION", "the shop")


TARGETS = ["exported_shop:portal", "exported_shop:archive"]


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "iam"])
def test_all_formats_but_iam_need_neither_region_nor_credentials(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_export(TARGETS, form, None)

    text = capsys.readouterr().out
    assert "archive" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_names_have_the_environments_prefix_and_tags_its_application(capsys: pytest.CaptureFixture[str]) -> None:
    run_export(TARGETS, "cloudformation", None)

    queue = json.loads(capsys.readouterr().out)["Resources"]["ArchiveQueue"]["Properties"]
    assert queue["QueueName"] == "shop-archive"
    assert {"Key": "smartpipe:application", "Value": "the shop"} in queue["Tags"]


def test_documents_are_indented_and_keep_the_users_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exported_text.py").write_text(
        "from smartpipe import Event, Service, Topic\n"
        "class Painted(Event, topic=Topic('pictures'), type='painted', version='1.0'):\n"
        '    """Sch\u00f6n."""\n'
        "service = Service('painter', publishes=[Painted])\n",
        encoding="utf-8",
    )

    run_export(["exported_text:service"], "asyncapi", None)

    text = capsys.readouterr().out
    assert "Sch\u00f6n." in text
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_policies_are_by_service_with_arns_of_the_real_account(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")

    run_export(TARGETS, "iam", None)

    found = json.loads(capsys.readouterr().out)
    assert {name: list(by_purpose) for name, by_purpose in found.items()} == {
        "archive": ["consume", "provision", "redrive", "examine"],
        "portal": ["publish", "provision", "examine"],
    }
    assert "arn:aws:sqs:eu-west-1:123456789012:shop-archive" in found["archive"]["consume"]["Statement"][0]["Resource"]


def test_a_policy_that_is_too_long_for_iam_is_split_and_standard_error_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", "123456789012")
    (tmp_path / "exported_many.py").write_text("from tests.unit.test_export_iam import of_many_queues\n"
                                               "many = of_many_queues(60)\n")  # fmt: skip

    run_export(["exported_many:many"], "iam", None)

    printed = capsys.readouterr()
    assert {"consume", "consume-2"} <= json.loads(printed.out)["many"].keys()
    assert "service many: policy consume is longer than the 6,144 characters" in printed.err


def test_an_output_file_has_the_same_text_as_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export(TARGETS, "mermaid", None)
    printed = capsys.readouterr().out

    run_export(TARGETS, "mermaid", tmp_path / "picture.mmd")

    assert (tmp_path / "picture.mmd").read_text() == printed
    assert capsys.readouterr().out == f"mermaid written to {tmp_path / 'picture.mmd'}\n"


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--format 'pulumi' is unknown: use one of cloudformation, .*, iam"):
        run_export(TARGETS, "pulumi", None)


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output .*nowhere/x cannot be written: No such file"):
        run_export(TARGETS, "dot", tmp_path / "nowhere" / "x")


def test_services_that_a_format_cannot_represent_are_refused_with_an_alternative() -> None:
    with pytest.raises(ConfigError, match="use --format cloudformation"):
        run_export(["exported_shop:cinema"], "terraform", None)
