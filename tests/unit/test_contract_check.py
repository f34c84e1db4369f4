"""The findings of a check: sequence of versions, moves, merging, exceptions, and the parties that are affected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, Json

from smartpipe import ConfigError, Event, Topic
from smartpipe.contracts.accepted import Accepted, add_accepted, apply_accepted, check_exception, read_accepted
from smartpipe.contracts.check import Options, Usage, check, find_removed, have_same_meaning
from smartpipe.contracts.compare import Document, find_breaks
from smartpipe.contracts.differences import find_differences
from smartpipe.contracts.files import Described, describe, parse_files
from smartpipe.contracts.findings import RULES, Finding, Parties
from smartpipe.contracts.schemas import render_json
from tests.support.contract_changes import TYPE, make_event

if TYPE_CHECKING:
    from collections.abc import Mapping


def version(number: str, **fields: Any) -> Described:
    return describe(make_event(fields, number))


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def compare(
    new: Described,
    *older: Described,
    options: Options = Options(),  # noqa: B008 - a tuple
    usage: Mapping[str, Usage] | None = None,
) -> list[Finding]:
    return check([new], {TYPE: list(older)} if older else {}, options, usage or {})


def retired(one: Described) -> Described:
    return one._replace(declaration=one.declaration.model_copy(update={"retired": True}))


def test_an_event_without_earlier_versions_has_no_findings() -> None:
    assert compare(version("1.0", b=str)) == []


def test_a_break_is_found_in_every_older_minor_version_and_shown_once() -> None:
    [finding] = compare(version("1.2", b=str), version("1.0"), version("1.1", c=(int, 0)), options=Options("backward"))[
        :1
    ]

    assert finding.code == "SC101"
    assert finding.against == ["1.0", "1.1"]


def test_only_the_latest_version_counts_if_the_check_is_not_transitive() -> None:
    older = (version("1.0"), version("1.1", b=(str, "x")))
    new = version("1.2", b=str)

    assert codes(compare(new, *older)) == ["SC101"]
    assert compare(new, *older, options=Options(transitive=False)) == []


@pytest.mark.parametrize(
    ("mode", "expected"), [("full", ["SC101", "SC102"]), ("forward", ["SC102"]), ("backward", ["SC101"])]
)
def test_the_mode_selects_the_direction(mode: Any, expected: list[str]) -> None:
    findings = compare(version("1.1", b=int), version("1.0", c=str), options=Options(mode))

    assert sorted(codes(findings)) == expected


def test_a_new_major_version_is_not_compared_with_the_old_one() -> None:
    assert compare(version("2.0", b=str), version("1.0", c=int)) == []


def test_a_retired_version_is_not_compared() -> None:
    assert compare(version("1.1", b=str), retired(version("1.0"))) == []


def test_a_version_that_was_changed_in_place_is_a_finding_even_if_the_change_is_compatible() -> None:
    assert codes(compare(version("1.0", b=(str, "x")), version("1.0"))) == ["SC302"]


def test_titles_descriptions_and_names_of_classes_may_change_in_place() -> None:
    class Line(BaseModel):
        sku: str

    class RenamedLine(BaseModel):
        """A line."""

        sku: str = Field(description="The stock keeping unit.", title="SKU")

    old, new = version("1.0", lines=list[Line]), version("1.0", lines=list[RenamedLine])

    assert have_same_meaning(old, new)
    assert compare(new, old) == []


@pytest.mark.parametrize(
    ("number", "older", "message"),
    [
        ("1.2", ["1.0"], "version 1.2 follows 1.0; the next one is 1.1"),
        ("1.1", ["1.0", "1.1", "1.2"], "version 1.1 is older than 1.2, which is committed"),
        ("3.0", ["1.0"], "version 3.0 follows 1.0; the next one is 2.0"),
        ("2.1", ["1.0", "1.1"], "version 2.1 follows 1.1; the next one is 2.0"),
    ],
)
def test_versions_have_no_gaps_and_never_go_back(number: str, older: list[str], message: str) -> None:
    findings = compare(version(number), *map(version, older))

    assert [(one.code, one.message) for one in findings] == [("SC303", message)]


@pytest.mark.parametrize(
    ("number", "older"), [("1.1", ["1.0"]), ("2.0", ["1.0", "1.1"]), ("1.0", ["1.0"]), ("1.0", ["2.0"])]
)
def test_the_next_version_is_in_sequence(number: str, older: list[str]) -> None:
    assert compare(version(number), *map(version, older)) == []


def test_another_topic_key_or_tenant_is_a_finding_that_names_both_values() -> None:
    class Old(Event, topic=Topic("orders"), type="contracts.moved", version="1.0", key="a"):
        a: int

    old = describe(Old)
    moved = old.declaration.model_copy(update={"topic": "sales", "fifo": True, "key": ("a", "b"), "version": "1.1"})
    [finding] = check([old._replace(declaration=moved)], {"contracts.moved": [old]}, Options(), {})

    assert finding.code == "SC301"
    assert (
        finding.message == "since 1.0: topic was orders and is sales; key was a and is a, b; FIFO was False and is True"
    )


def test_a_removed_version_is_a_finding_unless_it_was_retired() -> None:
    before = {TYPE: [version("1.0"), version("1.1")]}
    after = {TYPE: [version("1.1")]}

    assert [(one.code, one.version) for one in find_removed(before, after, [TYPE])] == [("SC304", "1.0")]
    assert find_removed({TYPE: [retired(version("1.0")), version("1.1")]}, after, [TYPE]) == []
    assert find_removed(before, after, ["another.type"]) == []


def test_an_older_major_version_needs_a_handler_while_its_messages_may_exist() -> None:
    usage = {TYPE: Usage(Parties(("shop",), ("billing",)), {"billing": frozenset({2})})}

    [finding] = compare(version("2.0"), version("1.0"), usage=usage)

    assert finding.code == "SC305"
    assert "no handler of billing reads them" in finding.message
    assert compare(version("2.0"), retired(version("1.0")), usage=usage) == []
    assert compare(version("2.0"), version("1.0")) == []  # no service is known
    both = {TYPE: usage[TYPE]._replace(majors={"billing": frozenset({1, 2})})}
    assert compare(version("2.0"), version("1.0"), usage=both) == []


def test_a_handler_of_one_service_does_not_read_the_older_messages_of_another_one() -> None:
    majors = {"billing": frozenset({1, 2}), "mail": frozenset({2})}

    [finding] = compare(version("2.0"), version("1.0"), usage={TYPE: Usage(Parties(), majors)})

    assert finding.code == "SC305"
    assert "no handler of mail reads them" in finding.message


def test_a_finding_names_the_services_that_are_affected() -> None:
    usage = {TYPE: Usage(Parties(("shop",), ("billing", "mail")), {"billing": frozenset({1}), "mail": frozenset({1})})}

    [added, removed] = sorted(
        compare(version("1.1", b=int), version("1.0", c=str), usage=usage), key=lambda one: one.code
    )

    assert added.affected == ["older messages of shop, in queues and dead-letter queues: billing, mail"]
    assert removed.affected == ["consumers that still have an older version: billing, mail"]


def test_a_rename_is_one_finding_only_between_fields_of_one_type_and_object() -> None:
    assert codes(compare(version("1.1", c=str), version("1.0", b=str))) == ["SC103"]
    assert sorted(codes(compare(version("1.1", c=int), version("1.0", b=str)))) == ["SC101", "SC102"]


def test_values_added_to_and_removed_from_an_enumeration_are_two_findings_that_name_them() -> None:
    findings = compare(version("1.1", b=Literal["x", "z"]), version("1.0", b=Literal["x", "y"] | None))

    assert [(one.code, one.message) for one in findings] == [
        ("SC104", 'field \'b\' of version 1.1 may be "z"; consumers of version 1.0 accept "x" | "y"'),
        ("SC105", 'field \'b\' of version 1.0 may be "y", null; consumers of version 1.1 accept "x" | "z"'),
    ]


def test_a_pattern_that_was_added_refuses_texts_and_another_pattern_cannot_be_decided() -> None:
    letters, digits = Annotated[str, Field(pattern="^[a-z]+$")], Annotated[str, Field(pattern="^[0-9]+$")]

    assert codes(compare(version("1.1", b=letters), version("1.0", b=str))) == ["SC106"]
    assert codes(compare(version("1.1", b=letters), version("1.0", b=digits))) == ["SC202"]
    assert compare(version("1.1", b=str), version("1.0", b=str)) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (Sequence[int], Sequence[str], ["SC108"]),
        (defaultdict[str, int], defaultdict[str, str], ["SC108"]),
        (Path, str, []),
        (dict[int, int], dict[str, int], ["SC106"]),
        (dict[bool, int], dict[int, int], ["SC202"]),
        (bool, Literal[True, False], []),
        (bool, Literal[True], ["SC105"]),
        (Json[list[int]], Json[list[str]], ["SC108"]),
        (str, Json[list[int]], ["SC107"]),
    ],
)
def test_sequences_paths_keys_of_maps_and_switches_are_compared_by_the_values_that_are_sent(
    before: Any, after: Any, expected: list[str]
) -> None:
    assert codes(compare(version("1.1", b=after), version("1.0", b=before))) == expected


@pytest.mark.parametrize(
    ("written", "accepted", "expected"),
    [
        (str, Json, ["format"]),
        (Json, Json[list[int]], ["type"]),
        (Json[list[int]], Json, []),
        (Json[list[int]], str, []),
        (Literal["[1]", "[2]"], Json[list[int]], []),
        (Literal["red", "[1]"], Json[list[int]], ["format"]),
        (Literal["1", "[1]"], Json[list[int]], ["type"]),
        (Literal['[1, "a"]'], Json[list[int | str]], []),
        (Literal["red"], Json, ["format"]),
        (Literal['{"a": 1}'], Json[dict[str, int]], []),
    ],
)
def test_text_that_a_reader_takes_for_json_must_be_json_that_fits(
    written: Any, accepted: Any, expected: list[str]
) -> None:
    writer, reader = describe(make_event({"b": written})).writer, describe(make_event({"b": accepted})).reader
    breaks = find_breaks(Document.of_data(writer), Document.of_data(reader))
    assert [(one.path, one.rule) for one in breaks] == [("b", rule) for rule in expected]


@pytest.mark.parametrize(
    ("written", "accepted", "expected"),
    [
        ({"const": [1, 2]}, {"type": "array", "items": {"type": "integer"}, "maxItems": 2}, []),
        ({"const": [1, 2]}, {"type": "array", "items": {"type": "integer"}, "maxItems": 1}, [("", "limit")]),
        ({"enum": [[1], ["a"]]}, {"type": "array", "items": {"type": "integer"}}, [("[0]", "type")]),
        ({"enum": [[1], [2]]}, {"enum": [[2], [1], [3]]}, []),
        ({"const": {"a": 1}}, {"type": "object", "properties": {"a": {"type": "integer"}}}, []),
        ({"const": {"a": 1}}, {"type": "object", "required": ["b"]}, [("b", "required")]),
    ],
)
def test_lists_and_objects_that_are_the_only_values_are_compared_by_what_they_contain(
    written: dict[str, Any], accepted: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    breaks = find_breaks(Document(written), Document(accepted))
    assert [(one.path, one.rule) for one in breaks] == expected


def test_defaults_and_examples_that_look_like_references_are_data() -> None:
    default, examples = {"$ref": "other.json"}, [{"$ref": "#/$defs/Gone"}]
    one = version("1.0", b=(dict[str, str], Field(default, examples=examples)), c=(str, Field(alias="$ref")))
    files = {".contract.json": one.declaration.model_dump(), ".reader.json": one.reader, ".writer.json": one.writer}

    read = parse_files({f"{TYPE}/1.0{suffix}": render_json(value) for suffix, value in files.items()}, "schemas")

    assert read == {TYPE: [one]}


def test_an_accepted_finding_does_not_fail_and_an_exception_that_nothing_needs_is_returned() -> None:
    [finding] = compare(version("1.1", b=str), version("1.0"))
    day = date(2026, 1, 2)
    needed = Accepted(code="SC101", type=TYPE, reason="all are deployed", date=day)
    others = [
        needed.model_copy(update={"code": "SC102"}),
        needed.model_copy(update={"type": "x"}),
        needed.model_copy(update={"path": "c"}),
    ]

    assert finding.fails
    assert apply_accepted([finding], [needed, *others]) == others
    assert not finding.fails
    assert finding.accepted == ("all are deployed", day)


@pytest.mark.parametrize(
    ("version", "against", "accepted"),
    [
        ("1.1", ["1.0"], True), ("1.2", ["1.0"], True), ("1.2", ["1.0", "1.1"], False), ("1.2", ["1.1"], False),
        ("1.1", ["1.1"], True), ("1.2", ["1.2"], False), ("1.10", ["1.0"], True),
        ("2.3", ["2.0"], True), ("2.3", ["2.0", "2.2"], False), ("3.1", ["3.0"], False),
        ("1.1", [], True), ("1.0", [], False), ("1.2", [], False),
    ],
)  # fmt: skip
def test_an_exception_holds_later_only_if_versions_before_it_are_affected(
    version: str, against: list[str], accepted: bool
) -> None:
    one = Accepted(code="SC104", type=TYPE, reason="x", date=date(2026, 1, 2), versions=["1.1", "2.2"])
    finding = Finding("SC104", TYPE, version, "state", "more values", against)

    assert one.covers(finding) is accepted
    assert one.model_copy(update={"versions": []}).covers(finding)


def test_an_exception_is_kept_with_its_reason_and_date_and_replaces_the_last_one(tmp_path: Path) -> None:
    findings = [Finding("SC104", TYPE, version, "state", "more values") for version in ("1.10", "1.9", "1.10")]
    add_accepted(tmp_path, findings[:1], "first", None)
    add_accepted(tmp_path, findings, " second ", None)
    file = add_accepted(tmp_path, findings[1:2], "third", "state")

    assert [(one.reason, one.path, one.versions) for one in read_accepted(tmp_path)] == [
        ("second", None, ["1.9", "1.10"]), ("third", "state", ["1.9"]),
    ]  # fmt: skip
    assert all(one.date == date.today() for one in read_accepted(tmp_path))  # noqa: DTZ011 - the day of the machine
    assert file.name == "accepted.json"


@pytest.mark.parametrize(("code", "reason", "error"), [("SC999", "x", "SC999"), ("SC104", "  ", "--reason is empty")])
def test_an_exception_needs_a_known_code_and_a_reason(code: str, reason: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        check_exception(code, reason)


def test_a_wrong_file_of_exceptions_is_named_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "accepted.json").write_text('[{"code": "SC104", "type": "x", "reason": "y", "date": "soon"}]')

    with pytest.raises(ConfigError, match=r"accepted\.json: 0\.date: "):
        read_accepted(tmp_path)


def test_the_differences_of_two_versions_are_listed_by_field() -> None:
    old = version("1.0", gone=str, limited=Annotated[int, Field(ge=1)], state=(str, "new"), lines=list[dict[str, int]])
    new = version(
        "1.1", limited=Annotated[int, Field(ge=0)], state=(str, "open"), lines=list[dict[str, int]], c=(int, 3)
    )

    assert [tuple(one) for one in find_differences(old, new)] == [
        ("~", "limited", "integer, minimum 1 → integer, minimum 0"),
        ("~", "state", 'default "new" → "open"'),
        ("+", "c", "integer, optional, default 3"),
        ("-", "gone", "string, required"),
    ]
    assert find_differences(old, old) == []


def test_each_rule_has_a_title_and_a_remedy_and_warnings_have_the_codes_of_the_200s() -> None:
    for code, rule in RULES.items():
        assert rule.title
        assert rule.remedy
        assert (rule.severity == "warning") == code.startswith("SC2")


class Card(BaseModel):
    kind: Literal["card"] = "card"
    note: str = "none"


class Cash(BaseModel):
    kind: Literal["cash"] = "cash"


class Gift(BaseModel):
    kind: Literal["gift"] = "gift"


class PlainCard(BaseModel):
    kind: Literal["card"] = "card"
    note: str = "-"


def test_the_fields_of_a_member_that_a_union_gets_or_loses_change_no_default_of_the_others() -> None:
    two, three = version("1.0", pay=Card | Cash), version("1.1", pay=Card | Cash | Gift)

    assert codes(compare(three, two)) == ["SC104"]
    assert codes(compare(version("1.1", pay=Card | Cash), version("1.0", pay=Card | Cash | Gift))) == ["SC105"]
    assert [tuple(one) for one in find_differences(two, three)] == [
        ("~", "pay", "Card | Cash → Card | Cash | Gift"),
        ("~", "pay.kind", '"card" | "cash" → "card" | "cash" | "gift"'),
    ]


def test_a_default_that_changes_in_a_member_of_a_union_is_found() -> None:
    [finding] = compare(version("1.1", pay=PlainCard | Cash), version("1.0", pay=Card | Cash))

    assert (finding.code, finding.message) == ("SC203", """the default of field 'pay.note' was "none" and is "-\"""")
