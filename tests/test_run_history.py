"""Records over time: steps, what changed at them, and the exit code for CI."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from harness.analysis.run_history import changes_at, make_history
from harness.analysis.step_detection import MIN_SEGMENT, autocorrelation, critical, find_steps
from harness.commands import history as command
from harness.errors import UserError
from harness.records.load import load_tree
from harness.records.record import write_record
from harness.report.history_page import levels_of
from tests.records import A100, make_record, merged

BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def series(*levels: tuple[int, float], noise: float = 0.01, seed: int = 1) -> list[float]:
    """Return measurements: for each level their number and the logarithm of the level."""
    source = np.random.default_rng(seed)
    return np.exp(np.concatenate([source.normal(level, noise, count) for count, level in levels])).tolist()


class TestSteps:
    def test_a_step_is_found_where_it_is(self) -> None:
        [step] = find_steps(series((60, 0.0), (40, math.log(1.03))))
        assert abs(step.place - 60) <= 1
        assert step.ratio == pytest.approx(1.03, abs=0.006)

    def test_several_steps_are_found(self) -> None:
        found = find_steps(series((40, 0.0), (30, 0.05), (30, -0.02)))
        assert [round(step.place, -1) for step in found] == [40, 70]
        assert found[0].ratio > 1 > found[1].ratio

    def test_the_last_five_show_a_step_and_four_are_a_burst(self) -> None:
        assert [step.place for step in find_steps(series((60, 0.0), (MIN_SEGMENT, 0.06), seed=2))] == [60]
        assert find_steps(series((60, 0.0), (MIN_SEGMENT - 2, 0.06), (40, 0.0))) == []

    def test_noise_has_no_steps(self) -> None:
        assert sum(bool(find_steps(series((100, 0.0), seed=seed))) for seed in range(200)) <= 12

    def test_one_value_far_away_changes_nothing(self) -> None:
        values = series((60, 0.0), (40, 0.04))
        values[20] *= 100
        [step] = find_steps(values)
        assert abs(step.place - 60) <= 1

    @pytest.mark.parametrize("values", [[], [1.0], [1.0] * 9, [1.0] * 50])
    def test_too_few_and_equal_values_have_none(self, values: list[float]) -> None:
        assert find_steps(values) == []

    def test_equal_values_on_both_sides_have_one(self) -> None:
        [step] = find_steps([1.0] * 20 + [1.1] * 20)
        assert (step.place, step.ratio) == (20, pytest.approx(1.1))

    def test_the_threshold_is_that_of_shuffles(self) -> None:
        # Of the largest of many standardized differences: above one's 97 % (2.17), and slowly growing.
        assert 2.3 < critical(20) < critical(100) < critical(1000) < 3.8

    def test_autocorrelation_is_found_and_a_step_is_none(self) -> None:
        source = np.random.default_rng(1)
        values = source.normal(0, 1, 2000)
        assert autocorrelation(values) < 0.1
        assert autocorrelation(values + np.repeat([0, 3], 1000)) < 0.1
        for number in range(1, len(values)):
            values[number] = 0.6 * values[number - 1] + 0.8 * values[number]
        assert autocorrelation(values) == pytest.approx(0.6, abs=0.07)

    def test_autocorrelated_noise_has_no_steps(self) -> None:
        source, found = np.random.default_rng(5), 0
        for _ in range(200):
            values = source.normal(0, 0.01, 100)
            for number in range(1, len(values)):
                values[number] = 0.4 * values[number - 1] + 0.92 * values[number]
            found += bool(find_steps(np.exp(values).tolist()))
        assert found <= 14


class TestCauses:
    def test_what_changed_near_the_step_is_named_nearest_first(self) -> None:
        facts = [{"torch": "2" if number >= 20 else "1", "driver": "b" if number >= 22 else "a",
                  "far": "y" if number >= 24 else "x", "noisy": str(number % 2)} for number in range(40)]  # fmt: skip
        found = changes_at(facts, 20, 0, 40)
        assert [(change.what, change.before, change.after, change.offset) for change in found] == [
            ("torch", "1", "2", 0), ("driver", "a", "b", 2),
        ]  # fmt: skip

    def test_what_came_or_went_is_a_change(self) -> None:
        facts = [{}] * 10 + [{"new": "1"}] * 10
        [change] = changes_at(facts, 10, 0, 20)
        assert (change.before, change.after) == ("absent", "1")


@pytest.fixture
def nightly(tmp_path: Path) -> Callable[..., Path]:
    def make(count: int = 40, at: int = 25, ratio: float = 1.04) -> Path:
        for number in range(count):
            new = number >= at
            packages = {"environment": {"packages": {"torch": "2.14.0" if new else "2.13.0"}}}
            seconds = 0.25 * (ratio if new else 1.0)
            record = make_record(on=merged(A100, packages), process=number, step_seconds=seconds)
            folder = tmp_path / "nightly" / f"{number:03}" / "1"
            folder.mkdir(parents=True)
            write_record(folder, {**record, "started_at": (BEGAN + timedelta(days=number)).isoformat()})
        return tmp_path / "nightly"

    return make


class TestHistory:
    def test_a_regression_is_found_explained_and_an_exit_code(
        self, nightly: Callable[..., Path], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = nightly()
        assert command.main([str(folder)]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "40 records from 2026-01-01 to 2026-02-09: 1 step" in shown
        assert "2026-01-26T00:00:00+00:00: 4.0 % slower" in shown
        assert "changed: environment.packages.torch: 2.13.0 -> 2.14.0" in shown
        assert command.main([str(folder), "--expect", "no-regression", "--format", "json"]) == 1
        assert caplog.messages[-1] == "expected no-regression: not shown (1 of 1 series ended slower)"
        [found] = json.loads(capsys.readouterr().out)
        assert found["steps"][0]["place"] == 25
        assert found["regression"] is True

    def test_an_improvement_and_no_step_are_no_regression(self, nightly: Callable[..., Path]) -> None:
        assert command.main([str(nightly(ratio=0.95)), "--expect", "no-regression"]) == 0

    def test_a_short_series_is_not_judged(self, nightly: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
        assert command.main([str(nightly(count=9, at=5, ratio=1.5)), "--expect", "no-regression"]) == 0
        said = "shown (0 of 1 series ended slower; 1 not judged, with fewer than 10 records)"
        assert caplog.messages[-1] == f"expected no-regression: {said}"

    def test_devices_and_works_are_series_of_their_own(self, nightly: Callable[..., Path]) -> None:
        folder = nightly(count=3)
        other = folder / "other"
        other.mkdir()
        write_record(other, make_record(process=99))
        found, left = make_history(load_tree([folder])[0])
        assert [(len(each.runs), each.device) for each in found] == [(3, "NVIDIA A100-SXM4-80GB"), (1, "AMD EPYC")]
        assert left == []

    def test_records_without_a_speed_are_refused(self, tmp_path: Path) -> None:
        write_record(tmp_path, make_record(status="oom", error="no memory", finished_steps=1))
        with pytest.raises(UserError, match="no run has a speed"):
            command.main([str(tmp_path)])


class TestPage:
    def test_shows_each_series_with_its_levels_and_steps(self, tmp_path: Path) -> None:
        save_series(tmp_path / "runs", [0.25] * 20 + [0.3] * 20)
        file = tmp_path / "out" / "history.html"
        assert command.main([str(tmp_path / "runs"), "--out", str(file)]) == 0
        page = file.read_text()
        assert page.count("<svg") == 1
        assert " % slower" in page
        assert "1 series of 1 ended slower" in page
        # Again, as CI does.
        assert command.main([str(tmp_path / "runs"), "--out", str(file)]) == 0

    def test_a_date_that_is_none_breaks_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        write_record(tmp_path / "runs", {**make_record(on=A100), "started_at": "\x1b[31m", "finished_at": "\x1b"})
        assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "h.html")]) == 0
        assert "\x1b" not in (tmp_path / "h.html").read_text()

    def test_levels_are_medians_between_steps(self, tmp_path: Path) -> None:
        save_series(tmp_path, [0.25] * 20 + [0.3] * 20 + [0.26] * 10)
        [found], _ = make_history(load_tree([tmp_path])[0])
        levels = levels_of(found)
        assert [(first, last) for first, last, _ in levels] == [(0, 19), (20, 39), (40, 49)]
        assert [seconds for _, _, seconds in levels] == pytest.approx([0.25, 0.3, 0.26], rel=0.01)

    def test_another_name_is_a_mistake(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"history: --out: found x\.pdf, expected a name that ends in \.html"):
            command.main([str(tmp_path), "--out", "x.pdf"])


def save_series(folder: Path, seconds: list[float]) -> None:
    for number, each in enumerate(seconds):
        (folder / str(number)).mkdir(parents=True)
        record = make_record(on=A100, process=number, step_seconds=each)
        began = (BEGAN + timedelta(days=number)).isoformat()
        write_record(folder / str(number), {**record, "started_at": began, "finished_at": began})
