"""The catalogue of events: ``smartpipe schema docs``."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import BaseModel, Field, computed_field

from smartpipe import ConfigError, Event, Queue, Service, Topic
from smartpipe.cli.schema.catalogue import run_catalogue
from smartpipe.cli.schema.fixtures import run_fixtures
from smartpipe.contracts.catalogue import Entry, format_duration, make_pages
from smartpipe.contracts.files import describe, export
from smartpipe.contracts.fixtures import read_fixtures
from smartpipe.contracts.page import Code, Form, Heading, Items, Json, Page, Paragraph, Table, render
from tests.support import golden
from tests.support.processes import smartpipe

ROOT = Path(__file__).parents[2]
FAIR, FORGETFUL = "tests.support.golden:fair", "tests.support.golden:forgetful"
PRODUCER = "tests.unit.test_catalogue:producer"
SIGNUP = ["signup.api:service", "signup.email_verification:service", "signup.friend_discovery:service"]
producer = Service("golden-till", publishes=[golden.Sold])


class Address(BaseModel):
    """Where a parcel goes."""

    city: str = Field(description="With <postcode> | country", examples=["3001 Bern"])


class Sent(Event, topic=Topic("parcels", fifo=True), type="golden.sent", version="2.0", key="parcel"):
    """A parcel has left.

    The carrier has *scanned* it.
    """

    parcel: str
    to: Address
    grams: int = Field(ge=1, description="Weight")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def heavy(self) -> bool:
        return self.grams > 1_000


def page_of(event: type[Event], form: Form = "markdown") -> str:
    described = describe(event)
    _, page = make_pages([Entry([described], [described], {}, [], [])])
    return render(page, form)[1]


def cells(text: str, first: str) -> list[list[str]]:
    """Return the rows of Markdown tables that begin with this text."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith(f"| {first}")
    ]


def test_a_page_shows_the_purpose_the_declaration_and_the_fields_with_types_limits_and_examples() -> None:
    text = page_of(Sent)

    assert "\nA parcel has left.\n\nThe carrier has \\*scanned\\* it.\n" in text
    assert cells(text, "Topic") == [["Topic", "`parcels.fifo` (FIFO: the events of one key arrive in order)"]]
    assert cells(text, "Key") == [["Key", "`parcel`"]]
    assert cells(text, "`grams`") == [["`grams`", "`integer, minimum 1`", "yes", "", "Weight"]]
    assert cells(text, "`to`") == [["`to`", "`Address`", "yes", "", "Where a parcel goes."]]
    assert "### `Address`" in text
    assert cells(text, "`city`") == [
        ["`city`", "`string`", "yes", "", 'With \\<postcode\\> \\| country. Examples: `"3001 Bern"`']
    ]
    assert cells(text, "`heavy`") == [["`heavy`", "`boolean`", "only sent", "", ""]]


def test_each_member_of_a_union_has_its_own_table_and_a_recursive_one_has_only_one() -> None:
    text = page_of(golden.Sold)

    assert cells(text, "`payment`")[0][1] == "`Card \\| Cash`"
    assert cells(text, "`total`")[0][1] == "`number \\| string (decimal)`"
    assert [row[1] for row in cells(text, "`kind`")] == ['`"card"`', '`"cash"`']
    assert text.count("### `Category`") == 1
    assert cells(text, "`parent`") == [["`parent`", "`Category \\| null`", "no", "`null`", ""]]


def test_the_page_names_producers_and_consumers_with_their_queues_handlers_and_retention(tmp_path: Path) -> None:
    run_catalogue([FAIR, FORGETFUL, PRODUCER], tmp_path / "none", tmp_path, "markdown")
    sold, returned = ((tmp_path / f"golden.{name}.md").read_text() for name in ("sold", "returned"))

    assert cells(sold, "Published by") == [["Published by", "golden-till"]]
    assert cells(sold, "Consumed by") == [["Consumed by", "golden-fair"]]
    assert cells(returned, "Published by") == [["Published by", "no service in this catalogue"]]
    assert cells(returned, "golden-fair") == [
        [
            "golden-fair",
            "`golden-returns`",
            "`tests.support.golden.accept_returned`",
            "1.x",
            "4 days",
            "`golden-returns-dlq`",
            "14 days",
        ]
    ]
    assert len(cells(returned, "golden-forgetful")) == 1
    index = (tmp_path / "README.md").read_text()
    assert [row[0] for row in cells(index, "[golden.")] == [
        "[golden.returned](golden.returned.md)",
        "[golden.sold](golden.sold.md)",
        "[golden.unwritten](golden.unwritten.md)",
    ]
    assert cells(index, "[golden.sold]")[0][3:] == ["`golden-shop`", "golden-till", "golden-fair"]


def test_the_example_is_the_committed_message_or_a_new_one(tmp_path: Path) -> None:
    message = {"type": "golden.returned", "dataversion": "1.0", "data": {"order_id": "from the file"}}
    (tmp_path / "golden.returned").mkdir()
    fixtures = [{"name": name, "message": {**message, "id": name}} for name in ("other", "full")]
    (tmp_path / "golden.returned" / "1.0.fixtures.json").write_text(json.dumps(fixtures))

    run_catalogue([FAIR], tmp_path, tmp_path / "pages", "markdown")

    def example_of(name: str) -> dict[str, object]:
        text = (tmp_path / "pages" / f"{name}.md").read_text()
        found = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
        assert found
        return json.loads(found[1])  # type: ignore[no-any-return]

    assert example_of("golden.returned") == {**message, "id": "full"}
    assert golden.Sold.model_validate(example_of("golden.sold")["data"]).coupon == "XMAS"


def test_the_versions_are_listed_with_their_changes_the_newest_first(tmp_path: Path) -> None:
    export([golden.Returned], tmp_path)
    for suffix in ("contract", "reader", "writer"):
        path = tmp_path / "golden.returned" / f"1.0.{suffix}.json"
        older = json.loads(path.read_text().replace('"version": "1.0"', '"version": "0.9"'))
        if suffix != "contract":
            fields = older["$defs"]["Returned"]
            fields["properties"].pop("reason")
            fields["properties"]["code"] = {"type": "integer", "default": 1}
            fields["required"].remove("reason")
        path.with_name(f"0.9.{suffix}.json").write_text(json.dumps(older))

    run_catalogue([FAIR], tmp_path, tmp_path / "pages", "markdown")

    text = (tmp_path / "pages" / "golden.returned.md").read_text()
    assert text.partition("## Versions\n\n")[2].splitlines() == [
        "1.0 (in code): a major version, which consumers of the one before cannot read. Changes since 0.9:",
        "",
        '- added `reason`: `"broken" | "late", required`',
        "- removed `code`: `integer, optional, default 1`",
        "",
        "0.9 (earlier): the first version.",
    ]


def test_two_major_versions_in_code_have_fields_and_an_example_each(tmp_path: Path) -> None:
    class Old(Event, topic=golden.shop, type="golden.moved", version="1.4"):
        place: str

    class New(Event, topic=golden.shop, type="golden.moved", version="2.0"):
        shelf: int

    old, new = describe(Old), describe(New)
    _, page = make_pages([Entry([old, new], [old, new], {"1.4": {"a": 1}, "2.0": {"b": 2}}, [], [])])

    headings = [block.line[0] for block in page.blocks if isinstance(block, Heading)]
    assert headings[:4] == [
        "Fields of version 2.0",
        "Fields of version 1.4",
        "Example of version 2.0",
        "Example of version 1.4",
    ]


class _Reader(HTMLParser):
    """Collects the text and the tags of a page, and refuses tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"href", "src"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_as_html_is_one_well_formed_file_without_anything_external(tmp_path: Path) -> None:
    run_catalogue([FAIR, FORGETFUL], tmp_path / "none", tmp_path, "html")

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["golden.returned.html", "golden.sold.html", "golden.unwritten.html", "index.html"]
    for path in tmp_path.iterdir():
        reader = _Reader()
        reader.feed(path.read_text())
        assert reader.open == []
        assert set(reader.sources) <= set(names)
        assert "prefers-color-scheme: dark" in path.read_text()


def test_text_of_a_class_cannot_become_markup() -> None:
    class Sly(Event, topic=golden.shop, type="golden.sly", version="1.0"):
        """<script>alert(1)</script> [a](b) | `c`"""

        name: str = Field("</code>|`", description="<img src=x>")

    html, markdown = page_of(Sly, "html"), page_of(Sly)

    reader = _Reader()
    reader.feed(html)
    assert "<script>alert(1)</script> [a](b) | `c`" in reader.text
    assert "<img" not in html
    assert "<script" not in html
    assert cells(markdown, "`name`") == [["`name`", "`string`", "no", '``"</code>\\|`"``', "\\<img src=x\\>"]]
    assert "\\<script\\>alert(1)\\</script\\> \\[a\\](b) \\| \\`c\\`" in markdown


BEGINNINGS = st.text('ab1 .-+*_`#>|<&;()[]!~=\\"\n', min_size=1, max_size=12).filter(lambda text: text.strip())
READ_MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@given(BEGINNINGS)
@example("- no list")
@example("1. no list")
@example("--- no heading")
@example("__init__ &lt;")
def test_any_text_is_shown_as_it_is_whatever_markdown_makes_of_its_characters(text: str) -> None:
    line = (text,)
    page = Page("", "", [Paragraph(line), Items([line]), Table(("x",), [(line,)])])

    reader = _Reader()
    reader.feed(READ_MARKDOWN.render(render(page, "markdown")[1]))

    shown = " ".join(text.split())
    assert " ".join(reader.text.split()) == f"{shown} {shown} x {shown}"
    assert reader.open == []


def test_lines_of_a_docstring_that_begin_with_a_dash_are_a_list() -> None:
    class Listed(Event, topic=golden.shop, type="golden.listed", version="1.0"):
        """A parcel has left. Its carrier:

        - has scanned it,
          and weighed it
        - does not wait. There are:
        * no exceptions

        1999 - 2001 is a range.
        """

    assert (
        "A parcel has left. Its carrier:\n\n- has scanned it, and weighed it\n- does not wait. There are:\n"
        "- no exceptions\n\n1999 - 2001 is a range.\n"
    ) in page_of(Listed)


def test_code_with_backticks_and_links_to_types_with_special_characters_are_encoded() -> None:
    page = Page("a!2Fb", "a/b", [Paragraph((Code("a`b"),)), Json("```"), Table(("x",), [((Code("|"),),)])])

    assert render(page, "markdown")[1].endswith("``a`b``\n\n````json\n```\n````\n\n| x |\n| --- |\n| `\\|` |\n")
    described = describe(golden.Returned)
    slashed = described._replace(declaration=described.declaration.model_copy(update={"type": "com.a/b"}))
    index, _ = make_pages([Entry([slashed], [slashed], {}, [], [])])
    assert "[com.a/b](com.a!2Fb.md)" in render(index, "markdown")[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1_209_600, "14 days"), (86_400, "1 day"), (5_400, "90 minutes"), (61, "61 seconds"), (7_200, "2 hours")],
)
def test_durations_are_in_the_largest_unit_that_divides_them(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pdf"):
        run_catalogue([FAIR], tmp_path, tmp_path, "pdf")


def test_the_same_services_give_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run_catalogue([FAIR], tmp_path / "none", tmp_path, "html")

    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert words == ["written"] * 3 + ["unchanged"] * 3


def test_the_committed_catalogue_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, run in examples: `smartpipe schema docs` with the TARGETs in SIGNUP and the options below.

    ``--directory ../schemas --output ../docs/events``
    """
    monkeypatch.syspath_prepend(ROOT / "examples")

    run_catalogue(SIGNUP, ROOT / "schemas", tmp_path, "markdown")

    assert {path.name: path.read_text() for path in (ROOT / "docs" / "events").iterdir()} == {
        path.name: path.read_text() for path in tmp_path.iterdir()
    }


def test_a_queue_with_its_own_retention_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("golden-brief", queue=Queue("golden-brief", retention_seconds=3_600))

    @service.subscribe(golden.Unwritten)
    async def take(event: golden.Unwritten) -> None:
        """Do nothing."""

    monkeypatch.setattr(golden, "brief", service, raising=False)
    run_catalogue(["tests.support.golden:brief"], tmp_path / "none", tmp_path, "markdown")

    assert cells((tmp_path / "golden.unwritten.md").read_text(), "golden-brief")[0][4] == "1 hour"


def test_the_command_writes_the_pages_and_refuses_wrong_input_without_a_traceback(tmp_path: Path) -> None:
    done = smartpipe(
        "schema", "docs", FAIR, "--output", str(tmp_path), "--directory", str(tmp_path), "--format", "html"
    )
    wrong = smartpipe("schema", "docs", FAIR, "--output", str(tmp_path), "--format", "pdf")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"  written  {tmp_path.as_posix()}/index.html"
    assert wrong.returncode == 2
    assert wrong.stderr == "smartpipe: --format 'pdf' is unknown: use one of markdown, html\n"


def test_services_with_raw_handlers_and_types_with_slashes_have_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slashed(Event, topic=golden.shop, type="com.example/order:placed", version="1.0"):
        name: str

    service = Service("golden-external")

    @service.subscribe(Slashed)
    async def take(event: Slashed) -> None:
        """Do nothing."""

    @service.subscribe_raw(dict)
    async def take_raw(message: dict[str, Any]) -> None:
        """Do nothing."""

    monkeypatch.setattr(golden, "external", service, raising=False)
    for _ in range(2):
        run_fixtures(["tests.support.golden:external"], tmp_path / "schemas", 1, as_json=False)
        run_catalogue(["tests.support.golden:external"], tmp_path / "schemas", tmp_path / "pages", "markdown")

    page = (tmp_path / "pages" / "com.example!2Forder!3Aplaced.md").read_text()
    assert len(cells(page, "golden-external")) == 1
    assert "take_raw" not in page
    assert [path.parent.name for path in read_fixtures(tmp_path / "schemas")] == ["com.example!2Forder!3Aplaced"]
