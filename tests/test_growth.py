"""Pictures of speed against sequence length and model size."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from harness.report.svg import standalone
from tests.conftest import load_script

growth = load_script("draw_growth.py")


def record(
    model: str, parameters: int, length: int, speed: float, track: str = "tuned", peak: float | None = 1e12
) -> dict[str, Any]:
    return {
        "config": {"model": {"name": model}, "workload": {"seq_len": length}, "track": {"name": track}},
        "model": {"parameters": parameters},
        "timing": {"tokens_per_second": speed},
        "world_size": 1,
        "utilization": {"measured_peak_flops": peak, "flops_per_token": 6.0 * parameters},
    }


RECORDS = [
    *(record("llama-30m", 30_000_000, length, 4000 - length, track)
      for length in (128, 512, 2048) for track in ("tuned", "portable")),
    record("tiny", 800_000, 512, 50_000.0),
    record("gpt2-124m", 124_000_000, 512, 900.0),
]  # fmt: skip


def described(picture: str) -> str:
    root = ElementTree.fromstring(standalone(picture))
    return next(element.text or "" for element in root if element.tag.endswith("desc"))


def test_each_picture_takes_the_records_that_differ_in_it() -> None:
    pictures = growth.draw_growth(RECORDS)
    assert list(pictures) == ["sequence_length", "model_size"]
    lengths, sizes = (described(picture) for picture in pictures.values())
    assert "track=tuned: 128: 3,872 tokens/s, 512: 3,488 tokens/s, 2048: 1,952 tokens/s" in lengths
    assert "track=portable: 128" in lengths
    assert "track=tuned: 0.8 M: 50,000 tokens/s, 30 M: 3,488 tokens/s, 124 M: 900 tokens/s" in sizes


def test_the_ceiling_is_the_peak_over_the_arithmetic_of_a_token() -> None:
    [_, small, *_] = sorted(RECORDS, key=lambda each: each["model"]["parameters"])
    assert growth.ceiling(small) == pytest.approx(1e12 / (6 * 30_000_000))
    assert growth.ceiling({**small, "world_size": 4}) == pytest.approx(4e12 / (6 * 30_000_000))
    assert "measured peak: 128: 5,556 tokens/s" in described(growth.draw_growth(RECORDS)["sequence_length"])


def test_without_a_peak_none_is_drawn() -> None:
    bare = [record("tiny", 800_000, length, 100.0, peak=None) for length in (128, 256)]
    picture = growth.draw_growth(bare)["sequence_length"]
    assert "measured peak" not in picture
    assert growth.ceiling({**bare[0], "utilization": None}) is None


def test_one_point_makes_no_picture() -> None:
    assert growth.draw_growth(RECORDS[:1]) == {}
    assert growth.draw_growth([]) == {}
