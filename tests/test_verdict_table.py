"""Terminal table of a comparison against golden text for every verdict, also with hostile records."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from harness.analysis.format import amount, interval, scaled
from harness.analysis.verdict import Comparison, compare
from harness.report import content, provenance
from harness.report.console import WIDTH, PlainConsole
from harness.report.verdict_table import print_comparison
from harness.text import printable
from tests.comparisons import CASES, HOSTILE, case, masked
from tests.conftest import assert_golden
from tests.records import A100, ASCEND, CPU, make_records, make_side

SPEED = re.compile(r"\b(ms|µs|tokens/s|TFLOP/s|[\d.]+ s)\b")


def screen(comparison: Comparison, width: int = WIDTH) -> str:
    stream = io.StringIO()
    print_comparison(comparison, PlainConsole(width, stream))
    return stream.getvalue()


@pytest.mark.parametrize("name", CASES)
class TestEveryCase:
    def test_golden(self, name: str) -> None:
        assert_golden(f"compare/table-{name}.txt", masked(screen(case(name)), case(name)))

    def test_fits_the_width_and_obeys_no_control_character(self, name: str) -> None:
        text = screen(case(name))
        assert max(len(line) for line in text.splitlines()) <= WIDTH
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)

    def test_begins_with_the_verdict(self, name: str) -> None:
        words = " ".join(screen(case(name)).split())
        assert words.startswith(" ".join(printable(case(name).pairs[0].summary).split()))


@pytest.mark.parametrize("name", ["emulated", "not_comparable", "different", "failed"])
def test_no_speed_where_none_may_be_stated(name: str) -> None:
    assert not SPEED.search(screen(case(name)))
    assert SPEED.search(screen(case("slower"))), "the pattern would find one"


def test_every_process_is_shown_and_outliers_are_marked() -> None:
    comparison = case("slower")
    lines = [line for line in screen(comparison).splitlines() if re.search(r"\b299\.\d\d", line)]
    values = comparison.pairs[0].other.values("timing", "mean_step_seconds")
    assert re.findall(r"[\d.]+\*?", lines[0].split("other")[1]) == [
        f"{1000 * value:.2f}" + ("*" if index == 3 else "") for index, value in enumerate(values)
    ]


def test_failing_gates_show_what_differs() -> None:
    assert "- workload.learning_rate: 0.0006 against 0.001" in screen(case("not_comparable"))
    assert "runs/Ascend 910B/3: oom: the device ran out of memory" in screen(case("failed"))


def test_long_labels_do_not_squeeze_the_numbers() -> None:
    label = "x" * 150
    sides = [make_side(name, make_records(2, on=A100, step_seconds=s)) for name, s in (("a", 1), (label, 2), ("c", 3))]
    text = screen(compare(sides))
    assert re.search(r"1\.\d{3} to 2\.\d{3}", text)
    assert text.replace("\n", "").replace(" ", "").count("x" * 150) >= 3, "the label is whole"


def test_foreign_consoles_interpret_nothing() -> None:
    """rich's own console has markup and :emoji: on."""
    stream = io.StringIO()
    label = "[bold]:warning:[/bold]"
    sides = [make_side(name, make_records(2, on=on)) for name, on in (("a", A100), (label, ASCEND), ("c", CPU))]
    print_comparison(compare(sides), Console(file=stream, width=WIDTH))
    assert stream.getvalue().count(label) >= 4
    assert "\N{WARNING SIGN}" not in stream.getvalue()


def test_unknown_interval_is_called_unknown() -> None:
    pair = case("single_run").pairs[0]
    ratio = dataclasses.replace(pair.quantities[0].ratio, low=None, high=None)
    quantity = dataclasses.replace(pair.quantities[0], ratio=ratio)
    comparison = dataclasses.replace(case("single_run"), pairs=(dataclasses.replace(pair, quantities=(quantity,)),))
    assert "unknown" in screen(comparison)


class TestFormat:
    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [
            (0.25, "s", "250.00 ms"),
            (1.0, "s", "1.0000 s"),
            (3725.27, "s", "3,725.3 s"),
            (4.2e-5, "s", "42.000 µs"),
            (3e-10, "s", "0.30000 ns"),
            (0.0, "s", "0 s"),
            (131072.4, "tokens/s", "131,072 tokens/s"),
            (0.5, "tokens/s", "0.50000 tokens/s"),
            (0.0029, "J/token", "2.9000 mJ/token"),
        ],
    )
    def test_units_suit_the_size(self, value: float, unit: str, text: str) -> None:
        assert amount(value, unit) == text

    def test_a_column_has_one_unit_and_one_number_of_decimals(self) -> None:
        assert scaled([0.0005, 1.5], "s") == (["0.0005", "1.5000"], "s")

    def test_interval(self) -> None:
        assert interval(0.99849, 1.2) == "0.998 to 1.200"
        assert interval(None, None) == "unknown"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain Größe 東京", "plain Größe 東京"),
            ("a\nb\tc\u2028d", "a b c d"),
            ("\x1b[2J\x00\x9b", r"\x1b[2J\x00\x9b"),
            ("\u202egnp.exe", r"\u202egnp.exe"),
            ("\ud800", r"\ud800"),
            ("\ufffe", "\ufffd"),
        ],
    )
    def test_printable(self, text: str, shown: str) -> None:
        assert printable(text) == shown


class TestContent:
    def test_repeated_folder_names_become_paths(self) -> None:
        side = make_side("a", make_records(2))
        assert content.processes(side) == ["1", "2"]
        twice = dataclasses.replace(side, runs=(side.runs[0], side.runs[0]))
        assert content.processes(twice) == ["runs/a/1/record.json"] * 2

    def test_facts_show_what_differs_within_a_side(self) -> None:
        records = [*make_records(1, environment={"host": "one"}), *make_records(1, environment={"host": "two"})]
        facts = dict(
            provenance.provenance_rows(compare([make_side("a", records), make_side("b", make_records(1, on=A100))]))
        )
        assert facts["host"] == ["one / two", "bench-1"]
        assert facts["driver"] == ["none", "570.86.15"]
        assert facts["uncommitted changes"] == ["no", "no"]
        assert facts["torch"] == ["2.13.0+cpu", "2.13.0+cu128"]
        assert facts["device memory"] == ["137.4 GB", "85.1 GB"]

    def test_a_caution_of_the_reference_is_told_once(self) -> None:
        found = [caution.side for caution in content.cautions(case("three_sides")) if caution.name == "modified source"]
        assert found == ["A100"]
        told = [caution.side for pair in case("three_sides").pairs for caution in pair.cautions]
        assert told.count("A100") >= 2

    def test_hostile_text_is_made_printable_everywhere(self) -> None:
        comparison = case("hostile")
        texts = [content.title(comparison), *(content.describe(side) for side in content.all_sides(comparison))]
        texts += [cell for name, cells in provenance.provenance_rows(comparison) for cell in (name, *cells)]
        texts += [cell for row in provenance.records(comparison) for cell in row]
        assert all("\x1b" not in text for text in texts)
        assert sum(printable(HOSTILE) in text for text in texts) >= 6
