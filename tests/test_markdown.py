"""Markdown report: complete, with foreign text escaped."""

from __future__ import annotations

import re
from functools import cache

import pytest
from markdown_it import MarkdownIt

import harness
from harness.report.content import all_sides
from harness.report.markdown import escape, render_markdown
from harness.text import printable
from tests.comparisons import CASES, HOSTILE, case, masked, pictures_of
from tests.conftest import assert_golden
from tests.test_page import Parsed, spaced
from tests.test_verdict_table import SPEED

COMMANDS = ["python -m harness compare runs/A100 'runs/Ascend 910B'", "echo ```` ```"]


@cache
def markdown(name: str) -> str:
    return render_markdown(case(name), COMMANDS, pictures_of(name))


@cache
def html(name: str) -> str:
    """Render as CommonMark with tables; raw HTML, if any came through, stays raw."""
    return MarkdownIt("commonmark").enable("table").render(markdown(name))


@pytest.mark.parametrize(
    "name", ["slower", "single_run", "not_comparable", "different", "emulated", "three_sides", "claimed", "hostile"]
)
def test_golden(name: str) -> None:
    text = markdown(name).replace(f"Report of harness {harness.__version__}", "Report of harness <version>")
    assert_golden(f"compare/report-{name}.md", masked(text, case(name)))


@pytest.mark.parametrize("name", CASES)
class TestEveryCase:
    def test_says_what_the_comparison_says(self, name: str) -> None:
        text = Parsed(html(name)).text
        for pair in case(name).pairs:
            assert spaced(printable(pair.summary)) in text
            for gate in pair.gates:
                assert spaced(printable(gate.summary)) in text
                for detail in gate.details if gate.passed is False else ():
                    assert spaced(printable(detail)) in text
            for quantity in pair.quantities:
                assert f"{quantity.ratio.estimate:.3f}" in text
        for side in all_sides(case(name)):
            for run in side.runs:
                assert spaced(printable(run.path)) in text
                assert run.record["content_sha256"] in text

    def test_has_no_markup_but_its_own(self, name: str) -> None:
        tags = {tag for tag, _ in Parsed(html(name)).elements}
        assert tags <= {"h1", "h2", "h3", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td",
                        "img", "pre", "code"}  # fmt: skip
        assert "<br" not in html(name)

    def test_tables_have_as_many_cells_as_columns(self, name: str) -> None:
        for table in re.findall(r"(?:^\|.*\n)+", markdown(name), re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(counts) == 1, table
        rows = re.findall(r"<tr>(.*?)</tr>", html(name), re.DOTALL)
        assert len(rows) > 5

    def test_pictures_are_files_beside_it(self, name: str) -> None:
        images = [str(attributes["src"]) for attributes in Parsed(html(name)).named("img")]
        assert images == [f"{picture}.svg" for picture in pictures_of(name)]

    def test_commands_are_in_one_block(self, name: str) -> None:
        assert Parsed(html(name)).named("pre") == [{}]
        block = re.findall(r"<pre><code[^>]*>(.*?)</code></pre>", html(name), re.DOTALL)[0]
        assert "echo ```` ```" in block


@pytest.mark.parametrize("name", ["emulated", "not_comparable", "different", "failed"])
def test_no_speed_where_none_may_be_stated(name: str) -> None:
    assert not SPEED.search(Parsed(html(name)).text)
    assert SPEED.search(Parsed(html("slower")).text), "the pattern would find one"


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "- a",
        "+ a",
        "12. a",
        "3) a",
        "===",
        "---",
        "# a #",
        "> a",
        "<script x",
        "    code",
        "a\n\nb",
        "**a** _b_ ~~c~~ `d`",
        "[a](b) ![c](d) <e@f.g> <http://h>",
        "&amp; &#65;",
        "a | b \\| c",
        "\\",
    ],
)
class TestEscaping:
    def test_shows_text_as_it_is(self, text: str) -> None:
        shown = Parsed(MarkdownIt("commonmark").enable("table").render(escape(text)))
        assert shown.text == spaced(printable(text))
        assert [tag for tag, _ in shown.elements] == ["p"]

    def test_in_a_cell(self, text: str) -> None:
        table = f"| a | b |\n| :-- | :-- |\n| {escape(text)} | x |\n"
        cells = re.findall(r"<td[^>]*>(.*?)</td>", MarkdownIt("commonmark").enable("table").render(table))
        assert [Parsed(cell).text for cell in cells] == [spaced(printable(text)), "x"]


@pytest.mark.parametrize("text", ["2.13.0", "85.1 GB", "bf16, 5 processes", "a-b", "torch"])
def test_plain_text_stays_plain(text: str) -> None:
    assert escape(text) == text


def test_what_github_would_turn_into_something() -> None:
    assert escape(":warning: www.evil.example $x$") == "&#58;warning: www&#46;evil.example &#36;x&#36;"
