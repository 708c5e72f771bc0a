"""Calibration of the tests for the same computation: its file, files of the user, and the segments of a curve."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.analysis.calibration import SEGMENT_ENDS, load_calibration, segment_end, segment_of, segments
from harness.analysis.parity import TESTS
from harness.config import PRECISIONS
from harness.errors import ConfigError

ENTRY = "- source: mine\n  noise:\n    {}\n"


def file(tmp_path: Path, noise: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(ENTRY.format(noise))
    return path


def test_every_test_has_a_limit_in_every_precision_that_it_applies_to() -> None:
    noise = load_calibration().noise
    assert noise.keys() == {test.key for test in TESTS}
    for test, by_precision in noise.items():
        assert by_precision.keys() == set(PRECISIONS), test


def test_a_file_widens_limits_and_never_narrows_them(tmp_path: Path) -> None:
    known = load_calibration()
    wide, narrow = (load_calibration(file(tmp_path / name, f"loss_step: {{bf16: [{values}]}}"))
                    for name, values in (("wide", "1000, 2000"), ("narrow", "0, 0"))
                    if not (tmp_path / name).mkdir())  # fmt: skip
    assert [wide.honest("loss_step", "bf16", segment) for segment in (0, 1)] == [1000, 2000]
    assert wide.honest("loss_step", "bf16", 2) == known.honest("loss_step", "bf16", 2)
    assert narrow == known


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("loss_steps: {bf16: [1.0]}", "noise.loss_steps: no such test, expected one of: "),
        ("loss_step: {fp8: [1.0]}", "noise.loss_step: found {'fp8': [1.0]}, expected values by precision"),
        (
            "loss_step: {bf16: -1}",
            "noise.loss_step.bf16: found -1, expected a number of 0 or more, or a list of up to 5",
        ),
        ("loss_step: {bf16: [1, 1, 1, 1, 1, 1]}", "noise.loss_step.bf16: found [1, 1, 1, 1, 1, 1], expected a number"),
        ("loss_step: {bf16: .inf}", "noise.loss_step.bf16: found inf, expected a number"),
        ("loss_step: 1", "noise.loss_step: found 1, expected values by precision"),
    ],
)
def test_a_wrong_file_is_refused_by_name(noise: str, message: str, tmp_path: Path) -> None:
    path = file(tmp_path, noise)
    with pytest.raises(ConfigError) as caught:
        load_calibration(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "loss_step: 1\n", "- 1\n", "- {noise: {}}\n", "- [\n"])
def test_a_file_without_entries_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*(expected|cannot be read as YAML)"):
        load_calibration(path)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"mine\.yaml: cannot be read as YAML"):
        load_calibration(tmp_path / "mine.yaml")


def test_segments_cover_every_step_once() -> None:
    parts = list(segments(2000))
    assert [step for _, first, last in parts for step in range(first, last + 1)] == list(range(1, 2001))
    assert [last for _, _, last in parts] == [*SEGMENT_ENDS, 1800, 2000]
    assert [segment_of(step) for step in (1, 2, 20, 21, 600, 601, 1801)] == [0, 1, 1, 2, 4, 5, 6]


def test_differences_grow_with_the_steps_beyond_the_measured_segments() -> None:
    calibration = load_calibration()
    last = len(SEGMENT_ENDS) - 1
    growth = segment_end(last + 2) / segment_end(last)
    measured = calibration.honest("loss_step", "bf16", last)
    assert calibration.honest("loss_step", "bf16", last + 2) == pytest.approx(growth * measured)
    assert growth == 9
