"""Pictures of a comparison: names, contents, and SVG that a page can embed."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.analysis.verdict import compare
from harness.report import draw_runs, draw_speed
from harness.report.content import measured_sides
from harness.report.plots import CAPTIONS, figures
from harness.report.svg import COLORS, INK, MAX_POINTS, downsample, standalone, truncate
from tests.comparisons import CASES, case, pictures_of
from tests.conftest import PROJECT, assert_golden
from tests.records import A100, ASCEND, make_record, make_records, make_side, merged

SVG = "{http://www.w3.org/2000/svg}"
SPEED = {"ratio", "step_time", "tokens_per_second", "phases", "memory"}
PAPERS = ("#ffffff", "#14171c")


def texts(svg: str) -> list[str]:
    """Return every text of a picture, its title and description first."""
    return [words for element in ElementTree.fromstring(svg).iter() if (words := (element.text or "").strip())]


def everything() -> Iterator[tuple[str, str, str]]:
    for name in CASES:
        for picture, svg in pictures_of(name).items():
            yield name, picture, svg


class TestWhichThereAre:
    @pytest.mark.parametrize("name", CASES)
    def test_speed_is_drawn_where_it_may_be_stated(self, name: str) -> None:
        stated = any(pair.quantities for pair in case(name).pairs)
        assert set(pictures_of(name)) - {"power"} == {"loss", *(SPEED if stated else ())}

    @pytest.mark.parametrize("name", CASES)
    def test_come_in_the_order_of_the_captions(self, name: str) -> None:
        assert list(pictures_of(name)) == [picture for picture in CAPTIONS if picture in pictures_of(name)]

    def test_power_needs_samples(self) -> None:
        assert "power" in pictures_of("faster")
        assert "power" not in pictures_of("slower")

    def test_emulated_sides_have_no_speed(self) -> None:
        for picture in SPEED:
            assert not any("emulated" in text for text in texts(pictures_of("three_sides")[picture]))
        assert any("emulated" in text for text in texts(pictures_of("three_sides")["loss"]))

    def test_unknown_memory_is_no_picture_and_half_known_says_so(self) -> None:
        unknown = merged(A100, {"memory": {"peak_allocated_bytes": None}})
        sides = [make_side(name, make_records(2, on=unknown)) for name in "ab"]
        assert "memory" not in figures(compare(sides))
        half = figures(compare([sides[0], make_side("c", make_records(2, on=ASCEND))]))["memory"]
        assert {"unknown", "14.06 GiB of 61.0 GiB"} <= set(texts(half))

    def test_no_losses_no_picture(self) -> None:
        sides = [make_side(name, [make_record(status="oom", error="x", finished_steps=0, process=number)])
                 for number, name in enumerate("ab")]  # fmt: skip
        assert figures(compare(sides)) == {}


class TestWhatTheySay:
    @pytest.mark.parametrize("name", ["slower", "faster", "three_sides", "hostile"])
    def test_golden_texts(self, name: str) -> None:
        said = "".join(f"{picture}: {text}\n" for picture, svg in pictures_of(name).items() for text in texts(svg))
        assert_golden(f"compare/pictures-{name}.txt", said)

    def test_a_side_keeps_its_colour(self) -> None:
        """The second of three sides has no speed; the third keeps its own color in pictures without the second."""
        sides = [
            make_side("a", make_records(2, on=A100)),
            make_side("b", make_records(2, on=ASCEND, config={"seed": 2})),
            make_side("c", make_records(2, on=ASCEND)),
        ]
        comparison = compare(sides)
        assert list(measured_sides(comparison)) == [0, 2]
        for picture in ("ratio", "step_time", "tokens_per_second", "memory"):
            svg = figures(comparison)[picture]
            assert COLORS[2] in svg
            assert COLORS[1] not in svg

    def drawn_axis(self, *seconds: tuple[float, float]) -> tuple[Any, Any]:
        """Return the axes of the picture of ratios of sides with these two step times each, and the comparison."""
        sides = [
            make_side(f"side {name}", [make_record(on=ASCEND, process=number, step_seconds=each)
                                       for number, each in enumerate(pair, 1)])
            for name, pair in enumerate([(0.2, 0.3), *seconds])
        ]  # fmt: skip
        figure = Figure()
        comparison = compare(sides)
        draw_speed.draw_ratios(draw_speed.ratios_of(comparison), comparison.margin, "step time", figure)
        return figure.axes[0], comparison

    @pytest.mark.parametrize(
        "seconds",
        [((0.31, 0.24),), ((0.1, 0.6),), ((0.251, 0.252), (0.1, 0.6)), ((1.9, 2.6),), ((0.1, 0.6), (1.9, 2.6))],
        ids=str,
    )
    def test_wide_intervals_are_on_a_logarithmic_axis_and_clipped_with_arrows(
        self, seconds: tuple[tuple[float, float], ...]
    ) -> None:
        """Two repeats a side, with 95 % intervals over a factor of 10 and up to one of a hundred million."""
        axes, comparison = self.drawn_axis(*seconds)
        ratios = [pair.headline.ratio for pair in comparison.pairs]
        low, high = axes.get_xlim()
        assert axes.get_xscale() == "log"
        assert max(found.high / found.low for found in ratios) > 10
        assert 0.05 < low < 1 < high < 250
        assert all(low < found.estimate < high for found in ratios)
        arrows = sum(line.get_marker() in ("<", ">") for line in axes.lines)
        low, high = low * (high / low) ** (0.06 / 1.12), high / (high / low) ** (0.06 / 1.12)
        assert arrows == sum(int(found.low < 0.99 * low) + int(found.high > 1.01 * high) for found in ratios)
        ticks = axes.get_xticks()
        assert 1.0 in ticks
        assert 2 <= len(ticks) <= 8

    def test_numbers_stand_beside_the_axis_and_not_on_it(self) -> None:
        axes, _ = self.drawn_axis((0.31, 0.24), (0.21, 0.29))
        assert not list(axes.texts)
        assert all(re.search(r"\n1\.\d+ \(0\.\d+ to 3\.\d+\)$", each.get_text()) for each in axes.get_yticklabels())

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(0.95, 1.05, [0.95, 0.975, 1.0, 1.025, 1.05]), (0.1, 10, [0.1, 0.2, 0.5, 1, 2, 5, 10]), (0.5, 2, [0.5, 1, 2]),
         (0.01, 100, [0.01, 0.1, 1, 10, 100])],
    )  # fmt: skip
    def test_ticks_are_round(self, low: float, high: float, expected: list[float]) -> None:
        assert draw_speed.ratio_ticks(low, high) == pytest.approx(expected)

    def test_wide_intervals_do_not_press_the_speeds_together(self) -> None:
        sides = [make_side(name, [make_record(on=ASCEND, process=number, step_seconds=each)
                                  for number, each in enumerate(pair, 1)])
                 for name, pair in {"a": (0.2, 0.3), "b": (0.1, 0.6)}.items()]  # fmt: skip
        figure = Figure()
        draw_speed.draw_speeds(compare(sides), figure)
        speeds = [value for side in sides for value in side.values("timing", "tokens_per_second")]
        low, high = figure.axes[0].get_ylim()
        assert max(speeds) - min(speeds) > 0.3 * (high - low)

    def test_every_process_is_a_dot(self) -> None:
        svg = pictures_of("slower")["tokens_per_second"]
        dots = [len(re.findall(rf"<use [^>]*{color}", svg)) for color in COLORS[:2]]
        assert dots == [7, 7]

    def test_every_block_is_a_dot(self) -> None:
        svg = pictures_of("single_run")["step_time"]
        intervals = len(case("single_run").reference.first["timing"]["intervals"])
        assert len(re.findall(rf"<use [^>]*{COLORS[0]}", svg)) == intervals

    def test_losses_that_are_not_finite_are_told(self) -> None:
        record = make_record(on=A100)
        record["losses"]["train"][100:] = [None] * 100
        comparison = compare([make_side("a", [record]), make_side("b", make_records(1, on=ASCEND))])
        first = record["losses"]["train"][0]
        assert f"a: {first:.4f} to " in figures(comparison)["loss"]
        assert "100 of them without a finite loss" in figures(comparison)["loss"]

    def test_phases_and_the_rest_make_up_the_step(self) -> None:
        timing = case("faster").reference.first["timing"]
        found = draw_runs.mean_phases(make_side("a", [case("faster").reference.first]))
        assert set(found) == {"forward", "backward", "optimizer", "rest"}
        assert math.fsum(found.values()) == pytest.approx(timing["mean_step_seconds"])
        assert found["rest"] == pytest.approx(0.04 * timing["mean_step_seconds"])

    def test_differences_are_drawn_of_the_same_work_only(self) -> None:
        def lines(name: str) -> int:
            return len(re.findall(r"stroke-width: 0\.7;?\s*\"|stroke-width: 0\.7[^\d]", pictures_of(name)["loss"]))

        assert lines("equivalent") == 4 + 5
        assert lines("not_comparable") == 1


class TestInAPage:
    def test_are_well_formed_and_have_a_title(self) -> None:
        for name, picture, svg in everything():
            root = ElementTree.fromstring(svg)
            assert root.tag == SVG + "svg"
            assert root.attrib["role"] == "img"
            named = {element.attrib.get("id"): element.text for element in root}
            title, description = (named[key] for key in root.attrib["aria-labelledby"].split())
            assert title == CAPTIONS[picture][0]
            assert description, (name, picture)

    def test_ids_are_used_once_and_every_reference_is_met(self) -> None:
        for name in CASES:
            page = "".join(pictures_of(name).values())
            ids = re.findall(r'\bid="([^"]+)"', page)
            assert len(ids) == len(set(ids))
            used = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', page)
            assert {first or second for first, second in used} <= set(ids)
            assert used

    def test_take_the_page_s_colour_and_bring_no_style_of_their_own(self) -> None:
        for _, _, svg in everything():
            assert "currentColor" in svg
            colors = {color.lower() for color in re.findall(r"#[0-9a-fA-F]{6}\b", svg)}
            assert colors <= set(COLORS)
            assert not re.search(r"<(style|script|metadata|image|a)\b|<!--|<\?|<!DOCTYPE", svg)
            assert "http" not in svg.replace("http://www.w3.org/", "").replace("http://evil.example", "")
            assert INK not in svg

    def test_hostile_text_stays_text(self) -> None:
        for svg in (*pictures_of("hostile").values(), *pictures_of("hostile_failure").values()):
            root = ElementTree.fromstring(svg)
            assert not {element.tag for element in root.iter()} & {SVG + "script", "script"}
        assert any(text.startswith("<script>") for text in texts(pictures_of("hostile")["loss"]))
        assert all(len(text) <= 70 for text in texts(pictures_of("hostile")["loss"])[2:]), "labels are cut"

    def test_as_a_file_it_follows_the_reader_s_scheme(self) -> None:
        text = standalone(pictures_of("equivalent")["loss"])
        root = ElementTree.fromstring(text.encode())
        assert "prefers-color-scheme:dark" in (root.find(SVG + "style").text or "")  # pyright: ignore
        width, height = (float(root.attrib[key]) for key in ("width", "height"))
        box = [float(number) for number in root.attrib["viewBox"].split()]
        assert width == 480
        assert height / width == pytest.approx(box[3] / box[2], rel=0.01)


class TestSameEveryTime:
    @pytest.mark.slow
    def test_in_another_process(self) -> None:
        script = (
            "import hashlib\n"
            "from tests.comparisons import pictures_of\n"
            "print(hashlib.sha256(''.join(pictures_of('faster').values()).encode()).hexdigest())"
        )
        done = [
            subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=120,
                           check=True, env={"PYTHONHASHSEED": seed, "PATH": "", "HOME": "/tmp"})
            for seed in ("1", "2")
        ]  # fmt: skip
        assert done[0].stdout == done[1].stdout != ""

    def test_whatever_the_user_s_style(self) -> None:
        import matplotlib

        with matplotlib.rc_context({"axes.facecolor": "red", "xtick.labelsize": 30, "axes.spines.left": False}):
            assert figures(case("single_run")) == pictures_of("single_run")

    def test_matplotlib_is_loaded_when_something_is_drawn(self) -> None:
        script = "import sys, harness.report.page, harness.report.write; print('matplotlib' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True,
                              cwd=PROJECT)  # fmt: skip
        assert done.stdout == "False\n"


class TestThinning:
    def test_short_curves_are_left_alone(self) -> None:
        curve = [float(number) for number in range(MAX_POINTS)]
        assert downsample(curve) == (list(range(MAX_POINTS)), curve)

    def test_long_curves_keep_spikes_and_gaps(self) -> None:
        curve = [math.sin(number / 5000) for number in range(50_000)]
        curve[12_345], curve[23_456], curve[34_567] = 99.0, -99.0, math.nan
        places, values = downsample(curve)
        assert len(places) <= MAX_POINTS
        assert places == sorted(set(places))
        assert {12_345, 23_456, 34_567} <= set(places)
        assert max(values) == 99.0
        assert min(values) == -99.0
        assert all(curve[place] == value or math.isnan(value) for place, value in zip(places, values, strict=True))

    def test_all_missing(self) -> None:
        places, values = downsample([math.nan] * 10_000)
        assert 0 < len(places) <= MAX_POINTS
        assert all(math.isnan(value) for value in values)

    def test_is_applied_to_long_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from matplotlib.axes import Axes

        lengths: list[int] = []
        plot = Axes.plot

        def counted(axes: Axes, x: Any, *rest: Any, **style: Any) -> Any:
            lengths.append(len(x))
            return plot(axes, x, *rest, **style)

        work = {"workload": {"steps": 9000, "eval_every": 0, "interval_steps": 10}}
        samples = {"samples": [[float(second), 300.0] for second in range(9000)]}
        records = [make_record(config=work, process=number) for number in (1, 2)]
        for record in records:
            record["losses"]["train"][4321] = 77.0
        sides = [make_side(name, [{**record, "telemetry": samples}])
                 for name, record in zip("ab", records, strict=True)]  # fmt: skip
        monkeypatch.setattr(Axes, "plot", counted)
        found = figures(compare(sides, margin=0.5))
        assert {"loss", "step_time", "power"} <= set(found)
        assert 1000 < max(lengths) <= MAX_POINTS
        # The axis reaches up to the spike.
        assert "60" in texts(found["loss"])

    def test_many_repeats_make_no_large_picture(self) -> None:
        sides = [make_side("a", make_records(60, on=A100)), make_side("b", make_records(60, on=ASCEND))]
        assert max(len(svg) for svg in figures(compare(sides)).values()) < 700_000

    def test_scripts_that_the_font_lacks_are_drawn_without_a_word(self, recwarn: pytest.WarningsRecorder) -> None:
        sides = [make_side(name, make_records(2, on=on)) for name, on in (("昇腾 910B", ASCEND), ("A100", A100))]
        assert "昇腾 910B" in texts(figures(compare(sides))["loss"])
        assert [str(warning.message) for warning in recwarn] == []

    def test_a_label_is_no_formula(self) -> None:
        sides = [make_side(name, make_records(2, on=on)) for name, on in ((r"$\frac$", ASCEND), ("A100", A100))]
        assert r"$\frac$" in texts(figures(compare(sides))["loss"])

    def test_labels_are_cut(self) -> None:
        assert truncate("abcdef", 6) == "abcdef"
        assert truncate("abcdefg", 6) == "abcde…"


def _linear(color: str) -> Any:
    value = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, two: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    light = sorted(float(_linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, two))
    return (light[1] + 0.05) / (light[0] + 0.05)


# Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _lab(linear: Any) -> Any:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(xyz / [0.95047, 1.0, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class TestColours:
    @pytest.mark.parametrize("paper", PAPERS)
    @pytest.mark.parametrize("color", COLORS)
    def test_stand_out_from_both_papers(self, color: str, paper: str) -> None:
        assert contrast(color, paper) >= 3
        assert paper in (PROJECT / "harness" / "report" / "style.css").read_text()

    @pytest.mark.parametrize("vision", VISION)
    def test_stay_apart_for_every_vision(self, vision: str) -> None:
        seen = [_lab(np.clip(np.array(VISION[vision]) @ _linear(color), 0, 1)) for color in COLORS[:5]]
        # A difference of 2.3 is just noticeable; lines and dots need several times as much.
        assert min(float(np.linalg.norm(one - two)) for one, two in combinations(seen, 2)) > 15
