"""Timing and ranks of a record from raw intervals, with null for unmeasured values."""

from __future__ import annotations

import pytest

from harness.composition import load
from harness.training.history import AxisExchange, TrainingHistory
from harness.training.measurements import Measurements, describe_ranks, pipeline_bubble, rank_timing
from harness.training.run_record import target_section, timing_section
from harness.training.timing import TimedInterval
from tests.tiny import TINY

CONFIG = load([*TINY])  # 4 x 32 = 128 tokens per step


def interval(first: int, last: int, seconds: float, wait: float = 0.0) -> TimedInterval:
    steps = last - first + 1
    return TimedInterval(first, last, seconds, wait, [seconds / steps] * steps, None)


def test_headline_comes_from_the_measured_intervals_alone() -> None:
    done = TrainingHistory(
        intervals=[
            ("first", interval(1, 1, 100.0)),
            ("warmup", interval(2, 5, 40.0)),
            ("measured", interval(6, 9, 8.0, wait=0.5)),
            ("measured", interval(10, 10, 1.0)),
        ],
        evaluation_seconds=3.0,
    )
    found = timing_section(CONFIG, Measurements(setup_seconds=1.5, step_seconds_method="host"), done)
    assert found["first_step_seconds"] == 100.0
    assert found["warmup"] == {"steps": 4, "seconds": 40.0}
    assert found["measured_steps"] == 5
    assert found["measured_seconds"] == 9.0
    # The mean over steps, not over intervals: intervals may differ in length.
    assert found["mean_step_seconds"] == pytest.approx(9.0 / 5)
    assert found["tokens_per_second"] == pytest.approx(5 * 128 / 9.0)
    assert found["data_wait_fraction"] == pytest.approx(0.5 / 9.0)
    assert found["step_seconds"] == [2.0, 2.0, 2.0, 2.0, 1.0]
    assert [entry["seconds"] for entry in found["intervals"]] == [8.0, 1.0]
    assert found["training_seconds"] == pytest.approx(149.0)
    assert found["evaluation_seconds"] == 3.0


def test_unmeasured_values_are_null_not_zero() -> None:
    found = timing_section(CONFIG, Measurements(), TrainingHistory(intervals=[("first", interval(1, 1, 2.0))]))
    for key in ("mean_step_seconds", "tokens_per_second", "data_wait_fraction", "setup_seconds"):
        assert found[key] is None
    assert timing_section(CONFIG, Measurements(), TrainingHistory())["first_step_seconds"] is None


def test_target() -> None:
    assert target_section(CONFIG, TrainingHistory()) is None
    wanted = load([*TINY, "target_loss=2.0"])
    assert target_section(wanted, TrainingHistory()) == {
        "loss": 2.0, "reached": False, "step": None, "training_seconds": None, "wall_seconds": None,
    }  # fmt: skip
    reached = TrainingHistory(target_step=9, target_training_seconds=4.5, target_wall_seconds=6.0)
    assert target_section(wanted, reached) == {
        "loss": 2.0, "reached": True, "step": 9, "training_seconds": 4.5, "wall_seconds": 6.0,
    }  # fmt: skip


def timings_of(*busy_and_waited: tuple[float | None, float | None]) -> list[dict[str, float | None]]:
    return [
        {
            "step_seconds": None if busy is None else busy + (waited or 0.0),
            "payload_bytes_per_step": 100.0,
            "exposed_communication_seconds": waited,
        }
        for busy, waited in busy_and_waited
    ]


class TestRanks:
    def test_the_straggler_is_the_one_that_does_not_wait(self) -> None:
        # All take 0.4 s per step, since each waits for the slowest.
        found = describe_ranks(timings_of((0.3, 0.1), (0.4, 0.0), (0.31, 0.09), (0.29, 0.11)))
        assert [rank["rank"] for rank in found["ranks"]] == [0, 1, 2, 3]
        assert [rank["step_seconds"] for rank in found["ranks"]] == pytest.approx([0.4] * 4)
        assert [rank["busy_seconds_per_step"] for rank in found["ranks"]] == pytest.approx([0.3, 0.4, 0.31, 0.29])
        assert found["stragglers"] == [{"rank": 1, "slowdown": pytest.approx(0.4 / 0.3)}]

    def test_a_few_percent_make_no_straggler(self) -> None:
        assert describe_ranks(timings_of((0.30, 0.0), (0.32, 0.0), (0.33, 0.0)))["stragglers"] == []

    def test_of_two_ranks_the_slower_one(self) -> None:
        assert [rank["rank"] for rank in describe_ranks(timings_of((0.4, 0.0), (0.3, 0.1)))["stragglers"]] == [0]

    def test_unknown_waits_make_no_straggler(self) -> None:
        found = describe_ranks(timings_of((0.3, None), (0.9, None)))
        assert found["stragglers"] == []
        assert [rank["busy_seconds_per_step"] for rank in found["ranks"]] == [None, None]

    def test_the_bubble_is_the_mean_share_of_waits_for_other_stages(self) -> None:
        waits = (0.1, 0.3)
        ranks = [
            {
                "step_seconds": 1.0,
                "axes": {
                    "pipeline": {"exposed_communication_seconds": wait},
                    "tensor": {"exposed_communication_seconds": 0.5},
                },
            }
            for wait in waits
        ]
        assert pipeline_bubble(ranks, 2, 1, 4) == {
            "measured_share": pytest.approx(0.2), "ideal_share": pytest.approx(1 / 5), "micro_batches": 4,
        }  # fmt: skip
        ranks[1]["axes"] = None
        unknown = pipeline_bubble(ranks, 2, 1, 4)
        assert unknown is not None
        assert unknown["measured_share"] is None
        assert pipeline_bubble(ranks, 1, 1, 4) is None

    def test_interleaved_stages_have_a_smaller_bubble(self) -> None:
        found = pipeline_bubble([{"step_seconds": 1.0, "axes": None}] * 2, 2, 2, 4)
        assert found is not None
        assert found["ideal_share"] == 1 / 9

    def test_rank_timing_is_of_the_measured_window(self) -> None:
        done = TrainingHistory(
            intervals=[
                ("first", interval(1, 1, 9.0)),
                ("measured", interval(2, 5, 2.0)),
                ("measured", interval(6, 7, 1.0)),
            ],
            exchanges=[
                {"shard": AxisExchange(999, 5.0)},
                {"shard": AxisExchange(400, 0.6), "tensor": AxisExchange(60, 0.06)},
                {"shard": AxisExchange(200, 0.3), "tensor": AxisExchange(30, 0.03)},
            ],
        )
        assert rank_timing(done) == {
            "step_seconds": pytest.approx(0.5),
            "payload_bytes_per_step": pytest.approx(115.0),
            "exposed_communication_seconds": pytest.approx(0.165),
            "axes": {
                "shard": pytest.approx({"payload_bytes_per_step": 100.0, "exposed_communication_seconds": 0.15}),
                "tensor": pytest.approx({"payload_bytes_per_step": 15.0, "exposed_communication_seconds": 0.015}),
            },
        }

        # Of the attempts before, this rank knows nothing.
        assert rank_timing(done, 2)["payload_bytes_per_step"] == pytest.approx(115.0)
        assert set(rank_timing(done, 3).values()) == {None}

    def test_rank_timing_of_nothing_is_null(self) -> None:
        assert set(rank_timing(TrainingHistory()).values()) == {None}
        unknown = TrainingHistory(
            intervals=[("measured", interval(1, 2, 2.0))], exchanges=[{"shard": AxisExchange(10, None)}]
        )
        assert rank_timing(unknown)["exposed_communication_seconds"] is None
