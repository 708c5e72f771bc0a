"""Timing that contradicts itself: each check of the gate *timing*, and the records that are refused when read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.gates import consistent_timing
from harness.analysis.run_group import load_run_groups
from harness.analysis.timing_evidence import timing_problems
from harness.errors import RecordError
from tests.records import make_record, make_side, write_runs

Change = Callable[[dict[str, Any]], object]


def intervals(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda timing: [change(interval) for interval in timing["intervals"]]


def steps(place: int, factor: float) -> Change:
    """Scale one step of every interval of ten."""

    def change(timing: dict[str, Any]) -> None:
        for first in range(0, len(timing["step_seconds"]), 10):
            timing["step_seconds"][first + place] *= factor

    return change


def problems(*changes: Change) -> list[str]:
    record = make_record()
    for change in changes:
        change(record["timing"])
    return list(timing_problems(record))


def test_an_honest_record_has_none() -> None:
    assert problems() == []
    assert problems(intervals(lambda i: i.update(device_seconds=0.99 * i["seconds"])),
                    lambda t: t.update(step_seconds_method="interval_mean")) == []  # fmt: skip


@pytest.mark.parametrize(
    ("change", "summary"),
    [
        ({"raw_seconds": None}, "not checked: no second clock in 1 of 2 runs"),
        ({"gap_seconds": None}, "not checked: no gaps between intervals in 1 of 2 runs"),
    ],
    ids=str,
)
def test_without_evidence_the_gate_is_not_passed(change: dict[str, Any], summary: str) -> None:
    bare = make_record()
    bare["timing"]["intervals"][3] |= change
    gate = consistent_timing([make_side("one", [bare, make_record(process=2)])])
    assert (gate.passed, gate.summary) == (None, summary)
    # Nothing comes before the first interval after a resume.
    bare["attempts"] = [{"from_step": bare["timing"]["intervals"][3]["first_step"] - 1}]
    assert consistent_timing([make_side("one", [bare])]).passed is (None if "raw_seconds" in change else True)


def test_a_clock_is_checked_in_a_single_interval_too() -> None:
    def alone(raw: float) -> list[str]:
        record = make_record()
        del record["timing"]["intervals"][1:]
        record["timing"]["intervals"][0]["raw_seconds"] = raw * record["timing"]["intervals"][0]["seconds"]
        return list(timing_problems(record))

    assert alone(1.0) == alone(1.005) == []
    assert alone(1.111) == ["a second clock measures 1.111 times an interval's seconds: a clock is wrong"]


def test_of_two_intervals_little_is_checked() -> None:
    short = make_record()
    short["timing"]["intervals"] = short["timing"]["intervals"][:2]
    sides = [make_side("one", [make_record()]), make_side("two", [short, make_record(process=2)])]
    assert consistent_timing(sides[:1]).passed is True
    gate = consistent_timing(sides)
    assert gate.passed is None
    assert gate.summary == "not checked: fewer than 3 intervals in 1 of 3 runs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (intervals(lambda i: i.update(raw_seconds=2 * i["seconds"])), "a second clock measures 2.000 times"),
        (intervals(lambda i: i.update(raw_seconds=1.01 * i["seconds"])), "a second clock measures 1.010 times"),
        (intervals(lambda i: i.update(raw_seconds=0.98 * i["seconds"])), "a second clock measures 0.980 times"),
        (intervals(lambda i: i.update(gap_seconds=0.1 * i["seconds"])), "10.0% of it) are unaccounted for"),
        (intervals(lambda i: i.update(device_seconds=1.2 * i["seconds"])), "the device's events cover 1.200"),
        (intervals(lambda i: i.update(device_seconds=0.8 * i["seconds"])), "the device's events cover 0.800"),
        (steps(0, 0.001), "the first step of an interval takes 0.001 times as long"),
        (steps(-1, 0.001), "the last step of an interval takes 0.001 times as long"),
        (steps(3, 3.0), "the steps' own seconds make up 1.2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_contradiction_is_named(change: Change, message: str) -> None:
    assert any(message in problem for problem in problems(change)), problems(change)


def test_one_disturbed_interval_accuses_nobody_and_two_do() -> None:
    def disturb(count: int, factor: float) -> Change:
        return lambda t: [i.update(raw_seconds=factor * i["seconds"]) for i in t["intervals"][:count]]

    assert problems(disturb(1, 1.5)) == []
    assert problems(disturb(2, 1.5)) == ["a second clock disagrees with the seconds of 2 of 18 intervals"]
    # A busy host makes some differ a little.
    assert problems(disturb(4, 1.01)) == []


def drop_interval(record: dict[str, Any]) -> None:
    timing = record["timing"]
    gone = timing["intervals"].pop(5)
    timing["measured_steps"] -= 10
    timing["measured_seconds"] -= gone["seconds"]
    del timing["step_seconds"][50:60]
    timing["mean_step_seconds"] = timing["measured_seconds"] / timing["measured_steps"]
    timing["tokens_per_second"] = timing["tokens_per_step"] / timing["mean_step_seconds"]


def attempt(from_step: int) -> dict[str, Any]:
    return {"started_at": "2026-11-25T10:00:00+00:00", "finished_at": None, "status": None, "from_step": from_step,
            "to_step": None, "world_size": 1, "host": None}  # fmt: skip


def left_out(phase: str, **changes: Any) -> Change:
    """Leave an interval out, as if a run had resumed, or a checkpoint had been written."""

    def change(record: dict[str, Any]) -> None:
        drop_interval(record)
        record["timing"][phase] = {"steps": 10, "seconds": 9.0}
        record["config"]["checkpoint"] |= changes.get("checkpoint", {})
        record["attempts"] = [attempt(start) for start in changes["starts"]] if "starts" in changes else None

    return change


def left_out_at_once(record: dict[str, Any]) -> None:
    """As `left_out`, of the first interval: a checkpoint of the warm-up was still being written."""
    timing = record["timing"]
    gone = timing["intervals"].pop(0)
    timing["measured_steps"] -= 10
    timing["measured_seconds"] -= gone["seconds"]
    del timing["step_seconds"][:10]
    timing["mean_step_seconds"] = timing["measured_seconds"] / timing["measured_steps"]
    timing["tokens_per_second"] = timing["tokens_per_step"] / timing["mean_step_seconds"]
    timing["saving"] = {"steps": 10, "seconds": 9.0}
    record["config"]["checkpoint"] |= {"every": 8, "asynchronous": True}


ASYNCHRONOUS = {"checkpoint": {"every": 35, "asynchronous": True}}


@pytest.mark.parametrize(
    "change",
    [
        left_out("saving", **ASYNCHRONOUS),
        left_out_at_once,
        left_out("resumed", starts=(0, 70)),
        left_out("resumed", starts=(0, 65)),
    ],
    ids=["saving", "saving since the warm-up", "resumed", "resumed earlier"],
)
def test_steps_may_be_left_out_where_a_run_leaves_them_out(change: Change, tmp_path: Path) -> None:
    record = make_record()
    change(record)
    assert load_run_groups([write_runs(tmp_path / "run", [record])])


@pytest.mark.parametrize(
    "change",
    [
        left_out("saving"),
        left_out("saving", checkpoint={"every": 35}),
        left_out("saving", checkpoint={"every": 40, "asynchronous": True}),
        left_out("resumed"),
        left_out("resumed", starts=(0, 20)),
        left_out("saving", starts=(0, 70)),
    ],
    ids=["no checkpoint", "no write", "no write then", "no attempts", "resumed before", "another phase"],
)
def test_slow_steps_cannot_be_left_out(change: Change, tmp_path: Path) -> None:
    record = make_record()
    change(record)
    with pytest.raises(RecordError, match="where one from step 71 on is due; it was edited"):
        load_run_groups([write_runs(tmp_path / "run", [record])])


def overlap(record: dict[str, Any]) -> None:
    for interval in record["timing"]["intervals"][6:]:
        interval["first_step"] -= 1
        interval["last_step"] -= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_interval, "has an interval of steps 81 to 90 where one from step 71 on is due"),
        (overlap, "has an interval of steps 80 to 89 where one from step 81 on is due"),
        (lambda r: r["losses"]["gradient_norm"].pop(), "has 199 gradient norms for 200 steps"),
        (lambda r: r["losses"]["learning_rate"].pop(), "has 199 learning rates for 200 steps"),
        (lambda r: r["timing"]["step_seconds"].pop(), "has not as many step times as measured steps"),
        (lambda r: r.update(workload_id="0" * 16), "states a workload_id that does not follow from its config"),
    ],
    ids=["dropped", "overlapping", "norms", "rates", "step times", "workload_id"],
)
def test_a_record_that_contradicts_itself_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    record = make_record()
    change(record)
    with pytest.raises(RecordError, match=message):
        load_run_groups([write_runs(tmp_path / "run", [record])])


def test_the_same_measurement_is_no_second_repeat(tmp_path: Path) -> None:
    """The content differs, and so does the checksum; the times of two processes never agree to the last digit."""
    one, two = make_record(), make_record()
    two["started_at"] = "2026-11-25T10:00:00+00:00"
    with pytest.raises(RecordError, match="has the same times as"):
        load_run_groups(
            [write_runs(tmp_path / "run", [one, two]), write_runs(tmp_path / "b", [make_record(process=9)])]
        )
