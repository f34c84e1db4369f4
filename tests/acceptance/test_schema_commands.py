"""``smartpipe schema`` as teams run it: in a git repository, in pipelines, and with wrong input."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.processes import ROOT, replace_module, smartpipe

if TYPE_CHECKING:
    from pathlib import Path

EVENTS = '''
from typing import Literal
from smartpipe import Event, Service, Topic

orders = Topic("orders")

class OrderPlaced(Event, topic=orders, type="order.placed", version="1.0"):
    """A customer has placed an order."""

    order_id: str
    cents: int
    state: Literal["new", "paid"] = "new"

class OrderShipped(Event, topic=orders, type="order.shipped", version="1.0"):
    order_id: str

checkout = Service("checkout", publishes=[OrderPlaced, OrderShipped])
billing = Service("billing")

@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...
'''
CONTRACT = '{"type": "order.placed", "version": "1.0", "topic": "orders", "fifo": false}'
TARGETS = ("shop:checkout", "shop:billing")


class Shop:
    """A project in a git repository, with its schemas committed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.git("init", "--quiet", "--initial-branch=main")
        (directory / "shop.py").write_text(EVENTS)
        assert self.run("export", *TARGETS).returncode == 0
        self.commit()

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=self.directory, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Change")

    def change(self, *changes: tuple[str, str]) -> None:
        text = (self.directory / "shop.py").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        replace_module(self.directory / "shop.py", text)

    def accept(self, code: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("accept", code, "order.placed", *TARGETS, *options)

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return smartpipe("schema", command, *arguments, directory=str(self.directory))

    def check(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("check", *TARGETS, *arguments)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # a hook of git sets them
        monkeypatch.delenv(name, raising=False)
    return Shop(tmp_path)


NEXT = ('type="order.placed", version="1.0"', 'type="order.placed", version="1.1"')


def test_an_unchanged_project_passes(shop: Shop) -> None:
    done = shop.check("--against", "git:main")

    assert done.stdout == "Compared 2 events with 2 versions: 0 errors, 0 warnings.\n"
    assert done.returncode == 0


def test_a_compatible_change_with_the_next_version_passes(shop: Shop) -> None:
    shop.change(NEXT, ("cents: int", 'cents: int\n    coupon: str = ""'))

    done = shop.check("--against", "git:main")

    assert done.returncode == 0, done.stdout


def test_a_break_names_code_field_parties_remedy_and_a_message_that_would_break(shop: Shop) -> None:
    shop.change(NEXT, ("cents: int", "cents: int\n    customer: str"))

    done = shop.check()

    assert done.returncode == 1
    assert done.stdout == (
        "order.placed 1.1  (shop.py:7)\n"
        "  SC101  error: a required field was added\n"
        "         field 'customer' is required, and events of version 1.0 may not have it\n"
        "         affects: older messages of checkout, in queues and dead-letter queues: billing\n"
        '         example: {"cents": 0, "order_id": "", "state": "new"} is refused: customer: Field required\n'
        "         remedy: give the field a default, or declare the next major version\n"
        "\n"
        "Compared 2 events with 2 versions: 1 error, 0 warnings.\n"
    )


def test_an_export_over_the_committed_file_is_found_when_git_is_asked(shop: Shop) -> None:
    shop.change(("cents: int", 'cents: int\n    coupon: str = ""'))
    assert shop.run("export", *TARGETS).returncode == 0

    assert shop.check().returncode == 0
    done = shop.check("--against", "git:HEAD")

    assert done.returncode == 1
    assert "SC302" in done.stdout


def test_files_of_an_earlier_version_that_an_export_has_overwritten_are_found_after_the_version_is_raised(
    shop: Shop,
) -> None:
    shop.change(("cents: int", "cents: int\n    coupon: str = ''"))
    shop.run("export", *TARGETS)  # over version 1.0
    shop.change(NEXT)
    shop.run("export", *TARGETS)

    overwritten = shop.check("--against", "git:main")
    shop.git("checkout", "main", "--", "schemas/order.placed")
    restored = shop.check("--against", "git:main")

    assert "order.placed 1.0" in overwritten.stdout
    assert "SC302  error: a version was changed in place" in overwritten.stdout
    assert "the files of version 1.0 describe other messages than before" in overwritten.stdout
    assert "remedy: restore its files if they have changed" in overwritten.stdout
    assert overwritten.returncode == 1
    assert restored.returncode == 0, restored.stdout


def test_a_version_that_is_retired_on_this_branch_is_not_compared(shop: Shop) -> None:
    shop.change(NEXT, ("cents: int", "cents: int\n    customer: str"))
    contract = shop.directory / "schemas" / "order.placed" / "1.0.contract.json"
    contract.write_text(json.dumps({**json.loads(contract.read_text()), "retired": True}))

    done = shop.check("--against", "git:main")

    assert done.returncode == 0, done.stdout


def test_an_optional_field_becomes_required_when_the_versions_without_it_are_retired(shop: Shop) -> None:
    shop.change(NEXT, ("cents: int", 'cents: int\n    customer: str = ""'))
    shop.run("export", *TARGETS)
    shop.commit()
    shop.change(('version="1.1"', 'version="1.2"'), ('customer: str = ""', "customer: str"))
    before = shop.check("--against", "git:main")
    contract = shop.directory / "schemas" / "order.placed" / "1.0.contract.json"
    contract.write_text(json.dumps({**json.loads(contract.read_text()), "retired": True}))

    done = shop.check("--against", "git:main")

    assert "SC101" in before.stdout
    assert done.returncode == 0, done.stdout


def test_a_deleted_version_is_found_when_git_is_asked(shop: Shop) -> None:
    shop.change(NEXT)
    assert shop.run("export", *TARGETS).returncode == 0
    for file in (shop.directory / "schemas" / "order.placed").glob("1.0.*"):
        file.unlink()

    done = shop.check("--against", "git:main")

    assert done.returncode == 1
    assert "SC304" in done.stdout


def test_a_renamed_type_is_found_and_a_type_that_the_other_branch_has_added_is_not(shop: Shop) -> None:
    shop.git("checkout", "--quiet", "-b", "branch")
    shop.git("checkout", "--quiet", "main")
    shop.change(('type="order.shipped"', 'type="order.returned"'))
    shop.run("export", *TARGETS)
    shop.commit()
    shop.git("checkout", "--quiet", "branch")
    before = shop.check("--against", "git:main")
    shop.change(('type="order.shipped"', 'type="order.sent"'))
    shutil.rmtree(shop.directory / "schemas" / "order.shipped")
    shop.run("export", *TARGETS)

    renamed = shop.check("--against", "git:main")
    shop.run("accept", "SC304", "order.shipped", *TARGETS, "--reason", "nobody subscribes", "--against", "git:main")
    accepted = shop.check("--against", "git:main")

    assert before.returncode == 0, before.stdout
    assert "order.shipped 1.0\n  SC304  error: a version was removed\n" in renamed.stdout
    assert "order.returned" not in renamed.stdout
    assert renamed.returncode == 1
    assert "exception" not in accepted.stdout
    assert accepted.returncode == 0


def test_a_deleted_schema_directory_is_found_when_git_is_asked(shop: Shop) -> None:
    shutil.rmtree(shop.directory / "schemas")

    done = shop.check("--against", "git:main")

    assert done.returncode == 1
    assert done.stdout.count("SC304") == 2


def test_the_variables_that_git_sets_for_its_hooks_do_not_hide_the_schemas(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.change(NEXT, ("cents: int", "cents: int\n    customer: str"))
    monkeypatch.setenv("GIT_DIR", str(shop.directory / ".git"))

    done = shop.check("--against", "git:HEAD")

    assert done.returncode == 1
    assert "SC101" in done.stdout


def test_an_accepted_finding_passes_and_shows_its_reason(shop: Shop) -> None:
    shop.change(NEXT, ('"paid"]', '"paid", "sent"]'))
    assert shop.check().returncode == 1

    done = shop.accept("SC104", "--path", "state", "--reason", "billing is deployed")
    assert done.stdout == "Accepted SC104 of order.placed state in schemas/accepted.json. Commit the file.\n"
    checked = shop.check("--against", "git:main")

    assert checked.returncode == 0
    assert "accepted: on " in checked.stdout
    assert "billing is deployed" in checked.stdout
    assert checked.stdout.endswith("0 errors, 0 warnings, 1 accepted.\n")


def test_an_exception_is_called_unnecessary_only_by_a_check_in_both_directions_with_all_versions(shop: Shop) -> None:
    shop.change(NEXT, ('"paid"]', '"paid", "sent"]'))
    shop.accept("SC104", "--path", "state", "--reason", "billing is deployed")
    shop.accept("SC104", "--reason", "a leftover")
    shop.change(('"paid", "sent"]', '"paid"]'))

    whole, backward, latest = shop.check(), shop.check("--mode", "backward"), shop.check("--latest")

    sentence = "This check does not need the exception SC104 of order.placed. If no check of other services needs it, "
    assert f"{sentence}remove it from accepted.json.\n" in whole.stdout
    assert whole.stdout.count("exception") == 2
    assert "exception" not in backward.stdout + latest.stdout


def test_a_value_that_is_added_after_an_exception_is_found(shop: Shop) -> None:
    shop.change(NEXT, ('"paid"]', '"paid", "sent"]'))
    shop.accept("SC104", "--path", "state", "--reason", "billing is deployed")
    shop.run("export", *TARGETS)
    shop.change(('version="1.1"', 'version="1.2"'))
    unchanged = shop.check()
    shop.change(('"sent"]', '"sent", "lost"]'))

    added = shop.check()
    shop.accept("SC104", "--path", "state", "--reason", "mail is deployed")
    accepted = shop.check()

    assert (unchanged.returncode, added.returncode, accepted.returncode) == (0, 1, 0), unchanged.stdout
    assert "SC104" in added.stdout
    assert "mail is deployed" in accepted.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["SC104", "order.plcaed", *TARGETS], ["SC105", "order.placed", *TARGETS],
        ["SC104", "order.placed", *TARGETS, "--path", "sate"], ["SC304", "order.placed", *TARGETS],
    ],
    ids=["type", "code", "path", "against"],
)  # fmt: skip
def test_only_a_finding_that_the_check_has_can_be_accepted(shop: Shop, arguments: list[str]) -> None:
    shop.change(NEXT, ('"paid"]', '"paid", "sent"]'))

    done = shop.run("accept", *arguments, "--reason", "billing is deployed")

    assert done.returncode == 2
    assert f"the check has no finding {arguments[0]} of {arguments[1]}" in done.stderr
    assert not (shop.directory / "schemas" / "accepted.json").exists()


def test_github_gets_an_annotation_at_the_line_of_the_class(shop: Shop) -> None:
    shop.change(NEXT, ("cents: int", "cents: str"))

    done = shop.check("--format", "github")

    [annotation, last] = done.stdout.splitlines()
    assert annotation.startswith(
        "::error title=SC108 order.placed,file=shop.py,line=7::field 'cents' of version 1.1 may "
    )
    assert "%0Aremedy: " in annotation
    assert last.startswith("Compared 2 events")


def test_programs_get_json_and_sarif(shop: Shop) -> None:
    shop.change(NEXT, ("cents: int", "cents: str"))

    [finding] = json.loads(shop.check("--format", "json").stdout)["findings"]
    [run] = json.loads(shop.check("--format", "sarif").stdout)["runs"]

    assert (finding["code"], finding["path"], finding["producers"], finding["consumers"]) == (
        "SC108", "cents", ["checkout"], ["billing"],
    )  # fmt: skip
    assert finding["example"]["data"]["cents"] == ""
    [result] = run["results"]
    assert result["ruleId"] == "SC108"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "shop.py"
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} >= {"SC101", "SC305"}


def test_the_differences_to_the_last_version_are_listed(shop: Shop) -> None:
    shop.change(NEXT, ("cents: int", "total: float"))

    done = shop.run("diff", *TARGETS)

    assert done.stdout == (
        "order.placed 1.0 → 1.1\n"
        "  + total  number, required\n"
        "  - cents  integer, required\n"
        "order.shipped 1.0 does not differ from 1.0\n"
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--against", "git:nowhere"), "git reference 'nowhere' does not exist here; fetch it first"),
        (("--against", "git:--help"), "git reference '--help' is not valid"),
        (("--against", "elsewhere"), "schema directory 'elsewhere' does not exist; run `smartpipe schema export`"),
        (("--directory", "elsewhere"), "schema directory 'elsewhere' does not exist"),
        (
            ("--against", "git:main", "--directory", "else/where"),
            "schema directory 'else/where' exists neither here nor in git:main; run `smartpipe schema export`",
        ),
        (("--mode", "sideways"), "--mode 'sideways' is unknown: use one of full, forward, backward"),
        (("--format", "xml"), "--format 'xml' is unknown: use one of text, json, github, sarif"),
    ],
)
def test_wrong_options_are_errors_with_exit_code_2(shop: Shop, arguments: tuple[str, ...], error: str) -> None:
    done = shop.check(*arguments)

    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("1.0.reader.json", "{", "order.placed/1.0.reader.json is not JSON"),
        ("1.0.reader.json", None, "order.placed/1.0.reader.json is missing"),
        ("1.0.writer.json", "[]", "order.placed/1.0.writer.json is not a JSON object"),
        ("1.0.contract.json", "{}", "order.placed/1.0.contract.json: type: Field required"),
        ("1.0.contract.json", CONTRACT.replace("1.0", "1"), "order.placed/1.0.contract.json: version: String should"),
        ("1.0.reader.json", '{"properties": []}', "order.placed/1.0.reader.json: properties is [], not an object"),
        ("1.0.reader.json", '{"type": 5}', "order.placed/1.0.reader.json: type is 5, not one of array, boolean"),
        ("1.0.reader.json", '{"$defs": {"A": {"minLength": "x"}}}', '$defs.A.minLength is "x", not a number'),
        ("1.0.reader.json", '{"$ref": "other.json"}', "it refers to 'other.json', but only references within the file"),
        ("1.0.reader.json", "[" * 100_000, "order.placed/1.0.reader.json is not JSON"),
        ("1.0.reader.json", '{"items":' * 101 + "{}" + "}" * 101, "has more than 100 schemas within each other"),
        ("1.0.reader.json", '{"properties": {"data": {"$ref": "#/$defs/Gone"}}}', "it refers to '#/$defs/Gone'"),
    ],
)
def test_a_wrong_schema_file_is_named(shop: Shop, file: str, text: str | None, error: str) -> None:
    path = shop.directory / "schemas" / "order.placed" / file
    path.unlink()
    if text is not None:
        path.write_text(text)

    done = shop.check()

    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_a_linked_directory_of_a_type_is_an_error_because_a_commit_has_none_of_its_files(shop: Shop) -> None:
    shop.git("mv", "schemas/order.placed", "placed")
    (shop.directory / "schemas" / "order.placed").symlink_to("../placed")
    shop.commit()

    here, against = shop.check(), shop.check("--against", "git:HEAD")

    assert here.returncode == 0
    assert "'schemas/order.placed' is a symbolic link or a submodule, and git:HEAD does not have its" in against.stderr
    assert against.returncode == 2


@pytest.mark.parametrize("against", [(), ("--against", "git:HEAD")])
@pytest.mark.parametrize("submodule", [False, True])
def test_an_empty_schema_directory_such_as_of_a_submodule_that_was_not_fetched_is_an_error(
    shop: Shop, against: tuple[str, ...], submodule: bool
) -> None:
    (shop.directory / "submodule").mkdir()
    if submodule:
        head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=shop.directory, text=True).strip()
        shop.git("update-index", "--add", "--cacheinfo", f"160000,{head},submodule")
        shop.git("commit", "--quiet", "--message", "Add a submodule")

    done = shop.check("--directory", "submodule", *against)

    assert (
        "schema directory 'submodule' is empty; run `smartpipe schema export` or, if it is a submodule" in done.stderr
    )
    assert done.returncode == 2


def test_a_directory_of_a_type_that_is_a_submodule_and_was_not_fetched_is_an_error(shop: Shop) -> None:
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=shop.directory, text=True).strip()
    shop.git("rm", "-r", "--quiet", "schemas/order.placed")
    (shop.directory / "schemas" / "order.placed").mkdir(parents=True)
    shop.git("update-index", "--add", "--cacheinfo", f"160000,{head},schemas/order.placed")
    shop.git("commit", "--quiet", "--message", "Link the schemas")

    done = shop.check("--against", "git:HEAD")

    assert "schema directory 'schemas/order.placed' is empty; run `smartpipe schema export` or, if it" in done.stderr
    assert done.returncode == 2


def test_outside_of_a_repository_git_is_not_possible(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(EVENTS)

    done = smartpipe("schema", "check", "shop", "--against", "git:main", directory=str(tmp_path))

    assert done.returncode == 2
    assert "is not in a git repository; pass a directory to --against" in done.stderr


def test_an_event_without_a_schema_is_an_error_and_the_others_are_compared(shop: Shop) -> None:
    opaque = (
        "class Opaque:\n"
        "    @classmethod\n"
        "    def __get_pydantic_core_schema__(cls, source, handler):\n"
        "        from pydantic_core import core_schema\n"
        "        return core_schema.no_info_plain_validator_function(\n"
        "            lambda value: value, serialization=core_schema.to_string_ser_schema())\n\n"
    )
    shop.change(
        ("class OrderPlaced", f"{opaque}class OrderPlaced"),
        ("    order_id: str\n\ncheckout", "    order_id: Opaque\n\ncheckout"),
        ("cents: int", "cents: str"),
    )

    done = shop.check()

    assert done.returncode == 2
    assert "SC108" in done.stdout
    assert "OrderShipped: JSON Schema cannot describe field 'order_id'" in done.stderr


def test_the_hook_in_the_docs_passes_and_fails_as_the_check_does(shop: Shop) -> None:
    text = (ROOT / "docs" / "contracts.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    [hook] = yaml.safe_load(text)["repos"][0]["hooks"]
    command, *arguments = shlex.split(hook["entry"])
    assert command == "smartpipe"

    passed = smartpipe(*arguments, *TARGETS, directory=str(shop.directory))
    shop.change(NEXT, ("cents: int", "cents: str"))
    failed = smartpipe(*arguments, *TARGETS, directory=str(shop.directory))

    assert (passed.returncode, failed.returncode) == (0, 1)


def test_an_older_major_version_needs_a_handler_or_an_upcaster(shop: Shop) -> None:
    shop.change(
        ('type="order.placed", version="1.0"', 'type="order.placed", version="2.0"'), ("cents: int", "cents: str")
    )

    alone = shop.check()
    shop.change(("checkout = ", '@OrderPlaced.upcast(from_version="1")\ndef _(data): return data\n\ncheckout = '))
    upcast = shop.check()

    assert (alone.returncode, upcast.returncode) == (1, 0)
    assert "SC305" in alone.stdout
    assert "messages of version 1.x may still be in queues, and no handler of billing reads them" in alone.stdout
