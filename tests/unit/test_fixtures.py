"""Golden messages: ``smartpipe schema fixtures``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict

from smartpipe import ConfigError, Event
from smartpipe.cli.schema.fixtures import run_fixtures
from smartpipe.cli.targets import load_events
from smartpipe.contracts.files import describe, export, read_directory
from smartpipe.contracts.fixtures import Fixture, read_fixtures, render_fixtures
from smartpipe.contracts.messages import make_messages
from smartpipe.envelope.decode import get_decoder
from tests.support.contract_changes import Tree, make_event
from tests.support.golden import Collected, Returned, Secretive, Sold, shop
from tests.unit.test_contract_views import KINDS

ROOT = Path(__file__).parents[2]
SOLD = "tests.support.golden:Sold"
SECRETIVE = "tests.support.golden:Secretive"


def data_of(fixtures: list[Fixture]) -> dict[str, Any]:
    return {one.name: one.message["data"] for one in fixtures}


@pytest.fixture(scope="module")
def messages() -> dict[str, Any]:
    return data_of(make_messages(describe(Sold), Sold, 2).fixtures)


def test_each_message_fits_the_writers_schema_and_is_accepted_by_the_class() -> None:
    described = describe(Sold)
    validator = jsonschema.Draft202012Validator(described.writer)

    made = make_messages(described, Sold, 5)

    assert made.notes == []
    assert len(made.fixtures) >= 8
    for one in made.fixtures:
        validator.validate(one.message)
        envelope = get_decoder(frozenset({Sold})).decode(json.dumps(one.message))
        assert envelope.version == "1.2"
        assert isinstance(envelope.data, Sold)
        assert one.message["partitionkey"] == one.message["data"]["order_id"]


def test_the_ids_are_unique_and_no_message_is_there_twice() -> None:
    made = make_messages(describe(Sold), Sold, 10).fixtures

    assert len({one.message["id"] for one in made}) == len({one.name for one in made}) == len(made)
    assert len({json.dumps(one.message["data"], sort_keys=True) for one in made}) == len(made)


def test_the_first_message_has_the_defaults_and_readable_values(messages: dict[str, Any]) -> None:
    assert messages["minimal"] == {
        "order_id": "order-1",
        "email": "ada@example.com",
        "at": "2026-01-31T12:30:00Z",
        "day": "2026-01-31",
        "total": "42.00",
        "payment": {"kind": "card", "number": "123456789012", "network": "visa"},
        "earlier": [],
        "category": {"title": "A title", "parent": None, "children": []},
        "size": None,
        "quantity": 3,
        "weight": 0.5,
        "gift": False,
        "tags": [],
        "pieces": {},
        "coupon": None,
        "iban": "CH9300762011623852957",
    }


def test_the_full_message_has_every_field_with_a_value(messages: dict[str, Any]) -> None:
    full = messages["full"]

    assert all(value not in (None, [], {}) for value in full.values())
    assert full["category"]["parent"] is not None
    assert full["coupon"] == "XMAS"


def test_together_the_messages_have_every_member_of_each_union_and_every_value_of_each_enumeration(
    messages: dict[str, Any],
) -> None:
    chosen = [value for name, value in messages.items() if name.startswith(("minimal", "full"))]
    payments = [one["payment"] for one in chosen]
    earlier = [payment for one in chosen for payment in one["earlier"]]

    assert {one["kind"] for one in payments} == {one["kind"] for one in earlier} == {"card", "cash"}
    assert {one["network"] for one in payments if "network" in one} == {"visa", "amex", "diners"}
    assert {one["size"] for one in chosen} == {None, "small", "large"}
    assert {one["gift"] for one in chosen} == {True, False}
    assert {one["coupon"] for one in chosen} >= {"XMAS", "SUMMER"}


def test_the_last_messages_have_values_at_the_limits(messages: dict[str, Any]) -> None:
    smallest, largest = messages["smallest"], messages["largest"]

    assert (smallest["order_id"], smallest["at"]) == ("", "1970-01-01T00:00:00Z")
    assert (smallest["weight"], largest["weight"]) == (0, 29.99)
    assert "😀" in largest["order_id"]
    assert largest["iban"].startswith("CH")
    assert largest["total"] == "42.00"


def test_values_of_an_older_version_fit_both_of_its_schemas() -> None:
    described = describe(Sold)
    made = make_messages(described, None, 5)

    assert made.notes == []
    for one in made.fixtures:
        jsonschema.Draft202012Validator(described.writer).validate(one.message)
        jsonschema.Draft202012Validator(described.reader).validate(one.message)
        assert one.message["partitionkey"] == one.message["data"]["order_id"]
    totals = {one.message["data"]["total"] for one in made.fixtures}
    assert {float(total) for total in totals}, "each is a number, as its class demands"


def test_the_same_event_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "smartpipe", "schema", "fixtures", SOLD, "--directory", str(tmp_path / seed)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        written.append((tmp_path / seed / "golden.sold" / "1.2.fixtures.json").read_bytes())

    assert written[0] == written[1]
    assert written[0].decode() == render_fixtures(make_messages(describe(Sold), Sold, 3).fixtures)


def export_two_versions(directory: Path) -> None:
    """Write the schemas of Returned, and the same ones as those of version 0.9."""
    export([Returned], directory)
    for suffix in ("contract", "reader", "writer"):
        path = directory / "golden.returned" / f"1.0.{suffix}.json"
        older = path.read_text().replace('"version": "1.0"', '"version": "0.9"').replace("^1\\\\.", "^0\\\\.")
        path.with_name(f"0.9.{suffix}.json").write_text(older)


def test_the_command_writes_a_file_for_each_version_and_keeps_those_of_older_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_two_versions(tmp_path)

    run_fixtures(["tests.support.golden:Returned"], tmp_path, 0, as_json=False)
    first = capsys.readouterr().out
    kept = tmp_path / "golden.returned" / "0.9.fixtures.json"
    by_hand = json.loads(kept.read_text())[:1]
    kept.write_text(json.dumps(by_hand))
    run_fixtures(["tests.support.golden:Returned"], tmp_path, 0, as_json=True)

    assert [line.split()[0] for line in first.splitlines()] == ["written", "written"]
    assert json.loads(capsys.readouterr().out) == [
        {"path": kept.as_posix(), "changed": False, "messages": 1},
        {"path": str(tmp_path / "golden.returned" / "1.0.fixtures.json"), "changed": False, "messages": 4},
    ]
    assert [one.version for one in read_fixtures(tmp_path)[kept]] == ["0.9"]
    assert len(read_directory(tmp_path)["golden.returned"]) == 2


def test_a_retired_version_gets_no_file(tmp_path: Path) -> None:
    export_two_versions(tmp_path)
    contract = tmp_path / "golden.returned" / "0.9.contract.json"
    contract.write_text(json.dumps({**json.loads(contract.read_text()), "retired": True}))

    run_fixtures(["tests.support.golden:Returned"], tmp_path, 0, as_json=False)

    assert [path.name for path in tmp_path.glob("*/*.fixtures.json")] == ["1.0.fixtures.json"]


def test_a_kept_message_that_does_not_fit_its_schema_is_named(tmp_path: Path) -> None:
    export_two_versions(tmp_path)
    run_fixtures(["tests.support.golden:Returned"], tmp_path, 0, as_json=False)
    path = tmp_path / "golden.returned" / "0.9.fixtures.json"
    path.write_text(path.read_text().replace('"late"', '"lost"'))

    with pytest.raises(ConfigError, match=r"0\.9\.fixtures\.json: message 'full-2' does not fit .*'lost'.*delete"):
        run_fixtures(["tests.support.golden:Returned"], tmp_path, 0, as_json=False)


def test_a_field_for_which_no_value_is_known_is_named_with_the_remedy_and_other_files_are_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"golden\.secretive 1\.0: .*code: .*it is not the code.*examples="):
        run_fixtures([SECRETIVE, "tests.support.golden:Returned"], tmp_path, 0, as_json=False)

    assert (tmp_path / "golden.returned" / "1.0.fixtures.json").exists()


def test_a_value_that_the_class_refuses_is_replaced_by_the_next_plausible_one() -> None:
    messages = data_of(make_messages(describe(Collected), Collected, 0).fixtures)

    assert messages == {"minimal": {"at": "2026-01-31T12:30:00"}}


def test_examples_of_a_field_help_where_the_class_refuses_all_other_values() -> None:
    described = describe(Secretive)
    described.writer["$defs"]["Secretive"]["properties"]["code"]["examples"] = ["xyzzy-plugh"]

    assert data_of(make_messages(described, Secretive, 0).fixtures) == {"minimal": {"code": "xyzzy-plugh"}}


def test_an_example_of_the_class_is_a_message() -> None:
    class Exemplary(Event, topic=shop, type="golden.exemplary", version="1.0"):
        model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Grace"}]})
        name: str

    assert data_of(make_messages(describe(Exemplary), Exemplary, 0).fixtures)["example-1"] == {"name": "Grace"}


def test_values_that_contain_themselves_end() -> None:
    class Branch(BaseModel):
        left: Branch | Leaf
        right: Branch | Leaf

    class Leaf(BaseModel):
        number: int

    Branch.model_rebuild(_types_namespace={"Leaf": Leaf, "Branch": Branch})

    class Grown(Event, topic=shop, type="golden.grown", version="1.0"):
        root: Branch
        leaves: list[Branch]

    made = make_messages(describe(Grown), Grown, 3)

    assert data_of(made.fixtures)["minimal"]["root"] == {"left": {"number": 1}, "right": {"number": 1}}
    assert made.notes == []


def test_without_the_extra_the_command_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one == "hypothesis" or one.startswith("hypothesis.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("messages", "examples", "strategies"):
        monkeypatch.delitem(sys.modules, f"smartpipe.contracts.{name}", raising=False)
        monkeypatch.delattr(f"smartpipe.contracts.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "hypothesis", None)

    with pytest.raises(ConfigError, match=r"hypothesis: pip install 'smartpipe\[contracts\]'"):
        run_fixtures([SOLD], tmp_path, 0, as_json=False)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "fixtures.json: the file: Invalid JSON"),
        ('[{"name": "a"}]', "fixtures.json: 0.message: Field required"),
        ('{"a": 1}', "fixtures.json: the file: Input should be a valid"),
    ],
)
def test_a_wrong_file_is_named_with_its_error(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.0.fixtures.json").write_text(text)

    with pytest.raises(ConfigError, match=error):
        read_fixtures(tmp_path)


def test_the_committed_fixtures_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `cd examples && smartpipe schema fixtures signup.events --directory ../schemas` when this fails."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    [event] = load_events(["signup.events"])

    committed = (ROOT / "schemas" / "user.signed_up" / "1.0.fixtures.json").read_text()

    assert committed == render_fixtures(make_messages(describe(event), event, 3).fixtures)


def test_a_composite_key_of_an_older_version_is_sent_as_one_text() -> None:
    described = describe(Returned)
    declaration = described.declaration.model_copy(update={"key": ("order_id", "reason")})

    [first, *_] = make_messages(described._replace(declaration=declaration), None, 0).fixtures

    assert first.message["partitionkey"] == "order-1/broken"


@pytest.mark.parametrize("kind", KINDS)
def test_messages_have_fields_of_every_kind_from_the_class_and_from_both_schemas(kind: str) -> None:
    event = make_event({"b": KINDS[kind]})
    described = describe(event)

    for writer in (event, None):
        made = make_messages(described, writer, 1)

        assert made.notes == []
        assert len(made.fixtures) >= 3
        for one in made.fixtures:
            get_decoder(frozenset({event})).decode(json.dumps(one.message))


def test_a_value_that_contains_itself_does_so_once_in_a_full_message() -> None:
    event = make_event({"b": Tree})

    assert data_of(make_messages(describe(event), event, 0).fixtures)["full"]["b"] == {
        "value": 1,
        "children": [{"value": 1, "children": []}],
    }
