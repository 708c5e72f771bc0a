"""From raw blocks to the record's timing part: arithmetic, and null for what was not measured."""

from __future__ import annotations

import pytest

from harness.composition import load
from harness.training.loop import Progressed
from harness.training.results import target, timing
from harness.training.timing import Block
from tests.conftest import TINY

CONFIG = load([*TINY])  # 4 x 32 = 128 tokens a step


def block(first: int, last: int, seconds: float, wait: float = 0.0) -> Block:
    steps = last - first + 1
    return Block(first, last, seconds, wait, [seconds / steps] * steps, None)


def test_headline_comes_from_the_measured_blocks_alone() -> None:
    done = Progressed(
        blocks=[
            ("first", block(1, 1, 100.0)),
            ("warmup", block(2, 5, 40.0)),
            ("measured", block(6, 9, 8.0, wait=0.5)),
            ("measured", block(10, 10, 1.0)),
        ],
        evaluation_seconds=3.0,
    )
    found = timing(CONFIG, done, 1.5, "host")
    assert found["first_step_seconds"] == 100.0
    assert found["warmup"] == {"steps": 4, "seconds": 40.0}
    assert found["measured_steps"] == 5
    assert found["measured_seconds"] == 9.0
    # The mean over steps, not over blocks: blocks may differ in length.
    assert found["mean_step_seconds"] == pytest.approx(9.0 / 5)
    assert found["tokens_per_second"] == pytest.approx(5 * 128 / 9.0)
    assert found["data_wait_fraction"] == pytest.approx(0.5 / 9.0)
    assert found["step_seconds"] == [2.0, 2.0, 2.0, 2.0, 1.0]
    assert [entry["seconds"] for entry in found["blocks"]] == [8.0, 1.0]
    assert found["training_seconds"] == pytest.approx(149.0)
    assert found["evaluation_seconds"] == 3.0


def test_what_was_not_measured_is_null_not_zero() -> None:
    found = timing(CONFIG, Progressed(blocks=[("first", block(1, 1, 2.0))]), None, "host")
    for key in ("mean_step_seconds", "tokens_per_second", "data_wait_fraction", "setup_seconds"):
        assert found[key] is None
    assert timing(CONFIG, Progressed(), None, "host")["first_step_seconds"] is None


def test_target() -> None:
    assert target(CONFIG, Progressed()) is None
    wanted = load([*TINY, "target_loss=2.0"])
    assert target(wanted, Progressed()) == {
        "loss": 2.0, "reached": False, "step": None, "training_seconds": None, "wall_seconds": None,
    }  # fmt: skip
    reached = Progressed(target_step=9, target_training_seconds=4.5, target_wall_seconds=6.0)
    assert target(wanted, reached) == {
        "loss": 2.0, "reached": True, "step": 9, "training_seconds": 4.5, "wall_seconds": 6.0,
    }  # fmt: skip
