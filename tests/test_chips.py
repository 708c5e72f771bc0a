"""The catalogue of chips: whole, sourced, and found by exact reported name only."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.analysis.chips import catalogue, find_chip
from harness.errors import ConfigError


def test_every_entry_is_whole() -> None:
    chips = {chip.name: chip for chip in catalogue().values()}
    assert len(chips) >= 11
    for chip in chips.values():
        assert len(chip.source) > 10
        assert {"fp32", "bf16", "fp16"} <= chip.peak_flops.keys()
        for precision, peak in chip.peak_flops.items():
            assert peak is None or 1e12 < peak < 1e16, (chip.name, precision)
        for precision in chip.lacks:
            assert chip.peak_flops[precision] is None


@pytest.mark.parametrize(
    ("name", "bf16"), [("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 80GB HBM3", 989e12), ("Ascend910B2", 353.89e12)]
)
def test_is_found_by_what_its_driver_reports(name: str, bf16: float) -> None:
    chip = find_chip(name)
    assert chip is not None
    assert chip.peak_flops["bf16"] == bf16


@pytest.mark.parametrize("name", ["A100", "NVIDIA A100", "910B", "Ascend910B", "Ascend910B22", "ascend910b2", "", None])
def test_is_never_guessed_from_part_of_a_name(name: str | None) -> None:
    assert find_chip(name) is None


def test_the_first_ascend_lacks_bf16() -> None:
    chip = find_chip("Ascend910A")
    assert chip is not None
    assert chip.lacks == ("bf16",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as a catalogue"),
        ("chips: [1]", "cannot be read as a catalogue"),
        ("chips: {X: {reported_names: [x]}}", "cannot be read as a catalogue"),
        (
            "chips:\n"
            + "".join(
                f"  {name}: {{reported_names: [same], dense_tflops: {{}}, memory_gb: 1, source: s, confidence: A}}\n"
                for name in "XY"
            ),
            "'same' is a reported name of X and of Y",
        ),
        (
            "chips: {X: {reported_names: [x], dense_tflops: {}, memory_gb: 1, source: s, confidence: Z}}",
            "confidence 'Z'",
        ),
    ],
)
def test_a_malformed_catalogue_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "chips.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        catalogue(file)
