"""Page and files of a report: complete, escaped, accessible, and written atomically."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import harness
from harness.analysis.verdict import to_dict
from harness.errors import RunFailed
from harness.report.content import all_sides
from harness.report.page import render_page
from harness.report.plots import CAPTIONS
from harness.report.write import write_report
from harness.text import printable
from tests.comparisons import CASES, HOSTILE, case, masked, pictures_of
from tests.conftest import PROJECT, assert_golden
from tests.test_plots import contrast
from tests.test_verdict_table import SPEED

COMMANDS = ["python -m harness compare runs/A100 'runs/Ascend 910B'", f"echo '{HOSTILE}'"]
VOID = {"meta", "br", "link", "img", "hr", "input"}


@cache
def page(name: str) -> str:
    return render_page(case(name), COMMANDS, pictures_of(name))


class Parsed(HTMLParser):
    """Elements with their attributes, and texts of a page whose elements must all be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def named(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


@cache
def parsed(name: str) -> Parsed:
    return Parsed(page(name))


def spaced(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    "name", ["slower", "single_run", "not_comparable", "different", "emulated", "three_sides", "claimed", "hostile"]
)
def test_golden(name: str) -> None:
    """Without pictures and style sheet, which have other tests."""
    text = re.sub(r"<svg .*?</svg>", "<svg/>", page(name), flags=re.DOTALL)
    text = re.sub(r"<style>.*?</style>", "<style/>", text, flags=re.DOTALL)
    text = text.replace(f"Report of harness {harness.__version__}", "Report of harness <version>")
    assert_golden(f"compare/page-{name}.html", masked(text, case(name)))


@pytest.mark.parametrize("name", CASES)
class TestEveryCase:
    def test_is_well_formed_and_named(self, name: str) -> None:
        found = parsed(name)
        assert page(name).startswith('<!doctype html>\n<html lang="en">')
        assert found.named("html") == [{"lang": "en"}]
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.named("meta")
        title = re.findall(r"<title>(.*?)</title>", page(name).split("<body>")[0])
        assert len(title) == 1
        assert title[0]

    def test_headings_are_in_order(self, name: str) -> None:
        levels = [int(tag[1]) for tag, _ in parsed(name).elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later - earlier <= 1 for earlier, later in pairwise(levels))

    def test_says_things_in_order(self, name: str) -> None:
        text = page(name)[page(name).index("<body>") :]
        several = len(case(name).pairs) > 1
        marks = [">Gates</h", ">Numbers</h", ">Pictures</h", ">Cautions</h", ">How to reproduce</h"]
        places = [text.index(mark) for mark in ("<h1>", *((">Summary</h",) if several else ()), *marks)]
        assert places == sorted(places)
        first = spaced(printable(case(name).pairs[0].summary))
        before_gates = Parsed(text[: places[1]].replace("<body>", "").rsplit("<main>", 1)[0]).text
        assert first in before_gates

    def test_tables_have_headers_and_scroll_in_their_box(self, name: str) -> None:
        found = parsed(name)
        assert found.named("th")
        assert all(header.get("scope") in ("col", "row", "rowgroup") for header in found.named("th"))
        elements = found.elements
        for place, (tag, _) in enumerate(elements):
            if tag == "table":
                assert elements[place - 1][0] == "div"
                assert elements[place - 1][1]["class"] == "scroll"
                assert elements[place - 1][1]["tabindex"] == "0"
                assert elements[place - 1][1]["aria-label"]

    def test_pictures_have_titles_and_ids_are_used_once(self, name: str) -> None:
        found = parsed(name)
        assert len(found.named("svg")) == len(pictures_of(name))
        ids = [value for _, attributes in found.elements if (value := attributes.get("id"))]
        assert len(ids) == len(set(ids))
        for picture in found.named("svg"):
            assert picture["role"] == "img"
            assert set((picture["aria-labelledby"] or "").split()) <= set(ids)

    def test_needs_nothing_from_elsewhere_and_runs_nothing(self, name: str) -> None:
        found = parsed(name)
        tags = {tag for tag, _ in found.elements}
        assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "a", "video"}
        for tag, attributes in found.elements:
            assert not [key for key in attributes if key.startswith("on")], tag
            for key in ("src", "href", "xlink:href", "action", "data"):
                assert not attributes.get(key) or str(attributes[key]).startswith("#")
        assert not re.search(r"url\((?!#)|@import", page(name))
        assert "default-src 'none'" in page(name)

    def test_shows_every_process_gate_and_caution(self, name: str) -> None:
        text = parsed(name).text
        for pair in case(name).pairs:
            for gate in pair.gates:
                assert spaced(printable(gate.summary)) in text
            for quantity in pair.quantities:
                factor = 1000 if quantity.key == "step_time" else 1
                if quantity.key in ("step_time", "tokens_per_second"):
                    digits = 2 if quantity.key == "step_time" else 0
                    shown = [f"{factor * value:,.{digits}f}" for value in (*quantity.reference, *quantity.other)]
                    assert all(value in text for value in shown)
        for side in all_sides(case(name)):
            for run in side.runs:
                assert run.record["content_sha256"] in text
                assert spaced(printable(run.path)) in text
        assert spaced(printable(COMMANDS[1])) in text


@pytest.mark.parametrize("name", ["emulated", "not_comparable", "different", "failed"])
def test_no_speed_where_none_may_be_stated(name: str) -> None:
    assert not SPEED.search(parsed(name).text)
    assert SPEED.search(parsed("slower").text), "the pattern would find one"
    if name == "emulated":
        assert "emulated" in parsed(name).text


def test_failing_gates_show_what_differs() -> None:
    assert "workload.learning_rate: 0.0006 against 0.001" in parsed("not_comparable").text
    assert "the device ran out of memory" in parsed("failed").text
    assert "<details open>" in page("different")
    assert "<details open>" not in page("slower")


def test_outliers_and_weakness_are_marked() -> None:
    assert page("slower").count('<td class="number odd"><span class="mark">outlier</span>') >= 2
    assert re.search(r'<span class="badge care">\s*single run', page("single_run"))


def test_hostile_text_is_text() -> None:
    for name in ("hostile", "hostile_failure"):
        assert spaced(printable(HOSTILE)) in parsed(name).text
        assert "<script" not in page(name)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff]", page(name))
        page(name).encode()


def test_a_label_cannot_end_an_attribute() -> None:
    labels = [str(value) for _, attributes in parsed("hostile").elements if (value := attributes.get("aria-label"))]
    assert sum(printable(HOSTILE) in label for label in labels) >= 3


class TestStyle:
    SHEET = (PROJECT / "harness" / "report" / "style.css").read_text()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_the_contrast_of_wcag_aa(self, scheme: str) -> None:
        schemes = self.SHEET.split("@media screen and (prefers-color-scheme: dark)")
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", schemes[0 if scheme == "light" else 1]))
        for text, papers in (
            ("ink", ("paper", "panel")),
            ("muted", ("paper", "panel")),
            *((tone, (f"{tone}-bg",)) for tone in ("good", "news", "care", "bad")),
            ("care", ("paper",)),
        ):
            for paper in papers:
                assert contrast(colors[text], colors[paper]) >= 4.5, (text, paper)

    def test_answers_to_print_and_to_small_screens(self) -> None:
        assert "@media print" in self.SHEET
        assert "overflow-x: auto" in self.SHEET


class TestFiles:
    def test_are_the_page_the_markdown_the_verdict_and_the_pictures(self, tmp_path: Path) -> None:
        paths = write_report(case("faster"), tmp_path / "a" / "b", COMMANDS)
        names = [f"{name}.svg" for name in CAPTIONS]
        assert [path.name for path in paths] == ["verdict.json", *names, "report.md", "report.html"]
        assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == sorted(path.name for path in paths)
        assert paths[-1].read_text() == page("faster")
        linked = re.findall(r"!\[[^]]*\]\(([^)]*)\)", paths[-2].read_text())
        assert linked == names
        assert "prefers-color-scheme" in (tmp_path / "a" / "b" / "loss.svg").read_text()

    def test_are_replaced(self, tmp_path: Path) -> None:
        write_report(case("single_run"), tmp_path, COMMANDS)
        before = (tmp_path / "report.html").read_text()
        write_report(case("slower"), tmp_path, COMMANDS)
        assert (tmp_path / "report.html").read_text() != before

    @pytest.mark.parametrize("name", CASES)
    def test_verdict_follows_its_schema(self, name: str, tmp_path: Path) -> None:
        write_report(case(name), tmp_path, [])
        verdict = json.loads((tmp_path / "verdict.json").read_text(), parse_constant=pytest.fail)
        assert verdict == json.loads(json.dumps(to_dict(case(name))))
        jsonschema.validate(verdict, SCHEMA, cls=jsonschema.Draft202012Validator)

    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunFailed, match=r"file/report: cannot be created: .*; choose another folder$"):
            write_report(case("single_run"), tmp_path / "file" / "report", [])

    def test_a_full_disk_is_one_line_and_leaves_nothing_half_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.replace

        def full(source: Any, target: Any) -> None:
            if str(target).endswith("report.md"):
                raise OSError(28, "No space left on device")
            real(source, target)

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(RunFailed, match=r"report\.md: cannot be written: No space left on device"):
            write_report(case("single_run"), tmp_path, [])
        assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".json"}, "the page comes last"


SCHEMA = json.loads((PROJECT / "harness" / "schemas" / "verdict.schema.json").read_text())


class TestSchema:
    def test_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("schema_version",), 1),
            (("surprise",), 1),
            (("pairs",), []),
            (("pairs", 0, "verdict"), "better"),
            (("pairs", 0, "gates", 0, "passed"), "yes"),
            (("pairs", 0, "quantities", 0, "other"), [0]),
            (("pairs", 0, "quantities", 0, "surprise"), 1),
            (("reference", "runs", 0, "content_sha256"), "x"),
        ],
    )
    def test_refuses(self, path: tuple[Any, ...], value: Any) -> None:
        verdict = json.loads(json.dumps(to_dict(case("slower"))))
        place = verdict
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(verdict, SCHEMA, cls=jsonschema.Draft202012Validator)
