"""Pages of headings, tables and code, as Markdown and as HTML. Pure."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

Form: TypeAlias = Literal["markdown", "html"]
SUFFIXES: dict[Form, str] = {"markdown": ".md", "html": ".html"}
INDEX_FILES: dict[Form, str] = {"markdown": "README.md", "html": "index.html"}
NOTICE = "Written by `smartpipe schema docs`. Do not edit: the next run overwrites it."


class Code(NamedTuple):
    """Text as code, within a line."""

    text: str


class Link(NamedTuple):
    """A link to the page with this name, without suffix, or to the index if the name is empty."""

    text: str
    page: str


Inline: TypeAlias = "str | Code | Link"
Line: TypeAlias = "tuple[Inline, ...]"


class Heading(NamedTuple):
    """A heading of the second level."""

    line: Line


class Subheading(NamedTuple):
    """A heading of the third level."""

    line: Line


class Paragraph(NamedTuple):
    """A paragraph."""

    line: Line


class Table(NamedTuple):
    """A table. Without a header, its first column has headings."""

    header: Sequence[str]
    rows: Sequence[Sequence[Line]]


class Items(NamedTuple):
    """A list."""

    lines: Sequence[Line]


class Json(NamedTuple):
    """A block of JSON."""

    text: str


Block: TypeAlias = "Heading | Subheading | Paragraph | Table | Items | Json"


class Page(NamedTuple):
    """A page.

    Args:
        name: Of its file, without suffix; empty for the index.
    """

    name: str
    title: str
    blocks: Sequence[Block]


def render(page: Page, form: Form) -> tuple[str, str]:
    """Return the name of the page's file and its text."""
    name = f"{page.name}{SUFFIXES[form]}" if page.name else INDEX_FILES[form]
    return name, _render_markdown(page) if form == "markdown" else _render_html(page)


def _target(link: Link, form: Form) -> str:
    return quote(f"{link.page}{SUFFIXES[form]}", safe="!") if link.page else INDEX_FILES[form]


def _render_markdown(page: Page) -> str:
    parts = [f"<!-- {NOTICE} -->", f"# {_escape_markdown(page.title)}"]
    if page.name:
        parts.append(_markdown((Link("All events", ""),)))
    parts += [_markdown_block(block) for block in page.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {_markdown(block.line)}"
    if isinstance(block, Subheading):
        return f"### {_markdown(block.line)}"
    if isinstance(block, Paragraph):
        return _escape_start(_markdown(block.line))
    if isinstance(block, Items):
        return "\n".join(f"- {_escape_start(_markdown(line))}" for line in block.lines)
    if isinstance(block, Json):
        fence = "`" * max(3, *(len(run) + 1 for run in [*re.findall("`+", block.text), ""]))
        return f"{fence}json\n{block.text}\n{fence}"
    columns = len(block.header or block.rows[0])
    header = block.header or [""] * columns
    lines = [_markdown_row(header), _markdown_row(["---"] * columns)]
    lines += [_markdown_row([_markdown(cell, in_table=True) for cell in row]) for row in block.rows]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(line: Line, *, in_table: bool = False) -> str:
    return "".join(_markdown_inline(one, in_table=in_table) for one in line)


def _markdown_inline(one: Inline, *, in_table: bool) -> str:
    if isinstance(one, Link):
        return f"[{_escape_markdown(one.text)}]({_target(one, 'markdown')})"
    if isinstance(one, str):
        return _escape_markdown(one)
    text = one.text.replace("\n", " ")
    marks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    code = f"{marks}{padding}{text}{padding}{marks}"
    return code.replace("|", "\\|") if in_table else code


def _escape_markdown(text: str) -> str:
    """Escape a text. An underscore within a word needs no escape."""
    escaped = re.sub(r"([\\`*\[\]<>|~#&]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))
    lead, trail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if text.strip() else ""
    return f"{lead and ' '}{escaped}{trail and ' '}"


def _escape_start(text: str) -> str:
    """Escape what begins a list or is a rule at the start of a line."""
    return re.sub(r"^(\s*\d*)([-+.)](?=\s|$)|-(?=[-\s]*$))", r"\1\\\2", text)


def _render_html(page: Page) -> str:
    back = f"<nav>{_html((Link('All events', ''),))}</nav>\n" if page.name else ""
    body = "\n".join(_html_block(block) for block in page.blocks)
    return (
        "<!doctype html>\n"
        f"<!-- {escape(NOTICE)} -->\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{back}<h1>{escape(page.title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{_html(block.line)}</h2>"
    if isinstance(block, Subheading):
        return f"<h3>{_html(block.line)}</h3>"
    if isinstance(block, Paragraph):
        return f"<p>{_html(block.line)}</p>"
    if isinstance(block, Items):
        return "<ul>\n" + "\n".join(f"<li>{_html(line)}</li>" for line in block.lines) + "\n</ul>"
    if isinstance(block, Json):
        return f"<pre><code>{escape(block.text)}</code></pre>"
    rows = []
    if block.header:
        rows.append("<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in block.header) + "</tr>")
    for row in block.rows:
        first = f'<th scope="row">{_html(row[0])}</th>' if not block.header else f"<td>{_html(row[0])}</td>"
        rows.append("<tr>" + first + "".join(f"<td>{_html(cell)}</td>" for cell in row[1:]) + "</tr>")
    name = "" if block.header else ' class="facts"'
    return f'<div class="table"><table{name}>\n' + "\n".join(rows) + "\n</table></div>"


def _html(line: Line) -> str:
    return "".join(_html_inline(one) for one in line)


def _html_inline(one: Inline) -> str:
    if isinstance(one, Link):
        return f'<a href="{escape(_target(one, "html"))}">{escape(one.text)}</a>'
    return escape(one) if isinstance(one, str) else f"<code>{escape(one.text)}</code>"


STYLE = """\
:root { color-scheme: light dark; --text: #1f2328; --back: #ffffff; --soft: #59636e; --line: #d1d9e0; --code: #f3f5f7;
  --link: #0757b8; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --back: #0d1117; --soft: #9aa4af; --line: #3a424c;
  --code: #1b222b; --link: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 0.75rem; padding-bottom: 0.3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
code { font-size: 0.88em; background: var(--code); border-radius: 4px; padding: 0.1em 0.35em; overflow-wrap: anywhere; }
td:first-child code { white-space: nowrap; }
pre { background: var(--code); border-radius: 6px; padding: 0.9rem 1rem; overflow-x: auto; line-height: 1.45; }
pre code { background: none; padding: 0; overflow-wrap: normal; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.45rem 0.75rem 0.45rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: 0.9em; }
.facts th { width: 11rem; }
nav { font-size: 0.9em; }
"""
