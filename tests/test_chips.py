"""Catalogue of chips: complete, sourced, found by exact reported name, and names that match several chips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.analysis.chips import PRECISIONS, Chip, ambiguity, catalogue, find_chip, largest_peak, match_chips
from harness.errors import ConfigError


@pytest.fixture
def entry() -> dict[str, Any]:
    """One chip as the file has it."""
    return {
        "vendor": "V",
        "reported_names": ["x"],
        "dense_tflops": dict.fromkeys(PRECISIONS, 1),
        "memory_gb": 1,
        "memory_tb_per_s": 1,
        "link_gb_per_s": None,
        "power_watts": 1,
        "source": "a data sheet",
        "grade": "A",
    }


def read(tmp_path: Path, content: Any) -> Any:
    file = tmp_path / "chips.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return catalogue(file)


def names(chips: tuple[Chip, ...]) -> list[str]:
    return [chip.name for chip in chips]


def test_every_entry_is_whole() -> None:
    chips = catalogue().chips
    assert len(chips) >= 35
    for chip in chips:
        assert chip.peak_flops.keys() == set(PRECISIONS)
        for precision, peak in chip.peak_flops.items():
            assert peak is None or 1e12 < peak < 1e16, (chip.name, precision)
        for source in chip.sources.values():
            assert len(source.text) > 10, chip.name
        assert chip.memory_bytes is None or 5e8 < chip.memory_bytes < 2e12
        assert chip.memory_bytes_per_second is None or 5e11 < chip.memory_bytes_per_second < 1e17
        assert chip.link_bytes_per_second is None or 3e10 < chip.link_bytes_per_second < 1e12
        assert chip.power_watts is None or 100 <= chip.power_watts <= 23_000


def test_a_measured_product_is_below_its_peak() -> None:
    compared = 0
    for chip in catalogue().chips:
        for precision, measured in chip.measured_flops.items():
            peak = chip.peak_flops[precision]
            assert peak is not None
            assert measured < peak, (chip.name, precision)
            compared += 1
    assert compared >= 15


@pytest.mark.parametrize(
    "name",
    ["Ascend 910 (910A)", "Ascend 910B1", "Ascend 910B4", "Ascend 910C (one die)", "NVIDIA A100 40GB PCIe",
     "NVIDIA A800 SXM4 80GB", "NVIDIA H100 PCIe", "NVIDIA H800 SXM5", "NVIDIA H20", "NVIDIA H200 SXM",
     "NVIDIA GH200 96GB", "Intel Gaudi", "Intel Gaudi 2", "Intel Gaudi 3", "Graphcore GC200", "Graphcore Bow",
     "Cerebras WSE-2", "Cerebras WSE-3", "SambaNova SN10", "SambaNova SN30", "SambaNova SN40L"],
)  # fmt: skip
def test_the_article_s_chips_and_their_successors_are_in(name: str) -> None:
    assert names(match_chips(name)) == [name]


# What the data sheets say, written down a second time: TFLOP/s of fp32, tf32, bf16, fp16 and fp8, GB/s of the link one
# way, and the grade. The traps are sparse figures (624, 3958), the SXM part's taken for PCIe, and both ways of a link.
SHEETS: dict[str, tuple[float | str | None, ...]] = {
    "NVIDIA A100-SXM4-40GB": (19.5, 156, 312, 312, None, 300, "A"),
    "NVIDIA A100-SXM4-80GB": (19.5, 156, 312, 312, None, 300, "A"),
    "NVIDIA A100-PCIE-40GB": (19.5, 156, 312, 312, None, None, "A"),
    "NVIDIA A100 80GB PCIe": (19.5, 156, 312, 312, None, 300, "A"),
    "NVIDIA A800-SXM4-80GB": (19.5, 156, 312, 312, None, 200, "B"),
    "NVIDIA H100 80GB HBM3": (67, 494.5, 989, 989, 1979, 450, "A"),
    "NVIDIA H100 PCIe": (51, 378, 756, 756, 1513, 300, "A"),
    "NVIDIA H800": (67, 494.5, 989, 989, 1979, 200, "B"),
    "NVIDIA H20": (44, 74, 148, 148, 296, 450, "B"),
    "NVIDIA H200": (67, 494.5, 989, 989, 1979, 450, "A"),
    "NVIDIA GH200 480GB": (67, 494.5, 989, 989, 1979, 450, "A"),
    "Ascend910A": (None, None, None, 256, None, 90, "B"),
    "Ascend910B1": (94, None, 373.88, 373.88, None, 196, "C"),
    "Ascend910B2": (94, None, 353.8944, 353.8944, None, 196, "B"),
    "Ascend910B3": (73, None, 294.912, 294.912, None, 196, "B"),
    "Ascend910B4": (None, None, 245.76, 245.76, None, 196, "B"),
    "Ascend910_9392": (None, None, 353.8944, 353.8944, None, 196, "C"),
    "Ascend950DT_9582": (None, None, 486, 486, 919, 840, "B"),
    "GAUDI2": (None, None, 432, None, 865, 300, "A"),
    "GAUDI3": (229, 459, 1677, 459, 1677, 600, "B"),
    "AMD Instinct MI300X": (163.4, 653.7, 1307.4, 1307.4, 2610, 448, "A"),
}


@pytest.mark.parametrize("name", SHEETS)
def test_is_found_by_what_its_driver_reports_with_its_sheet_s_figures(name: str) -> None:
    chip = find_chip(name)
    assert chip is not None
    figures = [*(chip.peak_flops[precision] for precision in PRECISIONS), chip.link_bytes_per_second]
    *expected, grade = SHEETS[name]
    units = [1e12] * len(PRECISIONS) + [1e9]
    assert figures == [None if each is None else pytest.approx(float(each) * unit)
                       for each, unit in zip(expected, units, strict=True)]  # fmt: skip
    assert chip.confidence == grade


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("V100", "NVIDIA V100 SXM2 32GB"), ("A100 80GB SXM", "NVIDIA A100 80GB SXM4"), ("H20", "NVIDIA H20"),
        ("H100 PCIe", "NVIDIA H100 PCIe"), ("H200", "NVIDIA H200 SXM"), ("Bow", "Graphcore Bow"),
        ("WSE-2", "Cerebras WSE-2"), ("SN10", "SambaNova SN10"), ("SN40L", "SambaNova SN40L"),
        ("Gaudi 2", "Intel Gaudi 2"), ("Habana Gaudi 3", "Intel Gaudi 3"), ("910B4", "Ascend 910B4"),
        ("GH200 96GB", "NVIDIA GH200 96GB"), ("950DT", "Ascend 950DT"),
    ],
)  # fmt: skip
def test_everyday_names_mean_their_chip(written: str, name: str) -> None:
    assert names(match_chips(written)) == [name]


@pytest.mark.parametrize("written", ["A100-80G", "A100 80GB", "A100-40GB", "A100 PCIe", "H100", "GH200", "Gaudi"])
def test_names_of_several_parts_mean_all_of_them(written: str) -> None:
    assert len(match_chips(written)) >= 2


@pytest.mark.parametrize("name", ["A100", "NVIDIA A100", "910B", "Ascend910B", "Ascend910B22", "ascend910b2", "", None])
def test_is_never_guessed_from_part_of_a_name(name: str | None) -> None:
    assert find_chip(name) is None


def test_the_first_ascend_lacks_bf16() -> None:
    chip = find_chip("Ascend910A")
    assert chip is not None
    assert "bf16" in chip.lacks
    assert chip.peak_flops["bf16"] is None


@pytest.mark.parametrize(
    ("name", "matrix_units", "label"),
    [("910B1", 373.88, 400), ("910B2", 353.8944, 376), ("910B3", 294.912, 313), ("910B4", 245.76, 280),
     ("910C die", 353.8944, 376), ("910C package", 707.7888, 752), ("950PR", 432, 486), ("950DT", 486, 547)],
)  # fmt: skip
def test_huawei_s_label_is_apart_from_the_peak_of_the_matrix_units(
    name: str, matrix_units: float, label: float
) -> None:
    (chip,) = match_chips(name)
    assert [round(value / 1e12, 4) for value, _ in chip.peaks("bf16")] == [matrix_units, label]
    assert [kind for _, kind in chip.peaks("bf16")] == ["peak of the matrix units", "label"]
    assert chip.ceiling_flops("bf16") == pytest.approx(label * 1e12)


def test_other_vendors_have_one_peak() -> None:
    (chip,) = match_chips("H200")
    assert chip.peaks("bf16") == [(989e12, "peak")]
    assert chip.peaks("fp4") == []
    assert chip.ceiling_flops("fp4") is None


@pytest.mark.parametrize("number", ["9391", "9392", "9381", "9382", "9372", "9362"])
def test_a_910c_is_found_by_the_names_of_its_dies(number: str) -> None:
    chip = find_chip(f"Ascend910_{number}")
    assert chip is not None
    assert chip.name == "Ascend 910C (one die)"


def test_whoever_writes_910c_may_mean_a_die_or_a_package() -> None:
    for written in ("910C", "Ascend 910C", "Atlas A3"):
        assert names(match_chips(written)) == ["Ascend 910C (one die)", "Ascend 910C (two dies)"]


def test_gc200_and_gh200_are_two_vendors() -> None:
    assert [chip.vendor for name in ("GC200", "GH200") for chip in match_chips(name)] == [
        "Graphcore",
        "NVIDIA",
        "NVIDIA",
    ]


class TestWhatPeopleWrite:
    def test_a_910b_may_be_any_of_four(self) -> None:
        four = [f"Ascend 910B{number}" for number in "1234"]
        for written in ("910B", "Ascend910B", "ascend 910b", "Atlas 800T A2"):
            assert names(match_chips(written)) == four
        assert ambiguity("Ascend910B") == "'Ascend910B' may be " + ", ".join(four)

    def test_one_chip_is_not_ambiguous(self) -> None:
        assert names(match_chips("910B3")) == ["Ascend 910B3"]
        assert names(match_chips("a100-80g sxm")) == ["NVIDIA A100 80GB SXM4"]
        assert ambiguity("910B3") is None

    @pytest.mark.parametrize("written", ["", "910B7", "A10", "A1000", "a100 nvl", "RTX 4090"])
    def test_part_of_a_name_means_nothing(self, written: str) -> None:
        assert match_chips(written) == ()
        assert ambiguity(written) is None

    def test_the_largest_peak_of_those_that_may_be_meant(self) -> None:
        assert largest_peak(match_chips("910B"), "bf16") == 400e12
        # The chip of 2019 has no bf16: whoever writes of bf16 means one of the others.
        assert largest_peak(match_chips("Ascend 910"), "bf16") == 400e12
        # An unknown peak among them: nothing can be called impossible.
        assert largest_peak(match_chips("Gaudi"), "bf16") is None
        assert largest_peak((), "bf16") is None


@pytest.mark.parametrize("text", ["", "chips: [1]", "chips: {X: {reported_names: [x]}}"])
def test_a_malformed_catalogue_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no valid catalogue"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grade": "Z"}, "grade 'Z'"),
        ({"but": {"memory": {"source": "s", "grade": "C"}}}, "'memory' is not one of"),
        ({"lacks": ["bf16"]}, "lacks bf16, but has a peak"),
        ({"but": {"memory_gb": {"source": "one page", "grade": "D"}}}, "grade 'D'"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, Any], said: str, entry: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, {"chips": {"X": {**entry, **change}}})


def test_one_name_for_two_chips_is_refused(entry: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'x' is a reported name of X and of Y"):
        read(tmp_path, {"chips": {"X": entry, "Y": entry}})
    with pytest.raises(ConfigError, match="'X' means X and X, Y"):
        read(tmp_path, {"chips": {"X": entry, "Y": {**entry, "reported_names": ["y"]}},
                        "families": {"F": {"members": ["X", "Y"], "also_called": ["X"]}}})  # fmt: skip


def test_a_figure_may_have_a_source_of_its_own(entry: dict[str, Any], tmp_path: Path) -> None:
    entry["but"] = {"power_watts": {"source": "one page", "grade": "C"}}
    (chip,) = read(tmp_path, {"chips": {"X": entry}}).chips
    assert (chip.sources["power_watts"].text, chip.sources["power_watts"].grade) == ("one page", "C")
    assert (chip.sources["memory_gb"].text, chip.confidence) == ("a data sheet", "A")
