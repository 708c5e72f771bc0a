"""The loop: where it synchronizes, that timed intervals hold nothing but work, and when it stops."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from harness.backends.step import PhaseContext, StepOutput
from harness.composition import load
from harness.config import Config, WorkloadConfig
from harness.errors import Interrupted, RunFailed
from harness.text import layered_settings
from harness.training.distributed.collectives import Ranks
from harness.training.evaluation import Evaluator
from harness.training.history import TrainingHistory
from harness.training.loop import Loop, plan_intervals
from harness.training.loss_checks import SPIKE_WINDOW
from harness.training.monitoring.loggers import StepsLogger
from harness.training.observer import IntervalReport, LoopObserver, LoopObservers
from harness.training.timing import StepClock
from harness.workload.data import Dataset
from harness.workload.digest import BatchDigest
from tests.tiny import TINY


def config_of(*overrides: str) -> Config:
    return load(layered_settings(TINY, [*overrides]))


class TestPlan:
    def test_example(self) -> None:
        work = config_of(
            "workload.steps=25", "workload.timing_warmup_steps=6", "workload.interval_steps=5", "workload.eval_every=8"
        ).workload
        assert list(plan_intervals(work)) == [
            ("first", 1, 1),
            ("warmup", 2, 6),
            ("measured", 7, 8),
            ("measured", 9, 13),
            ("measured", 14, 16),
            ("measured", 17, 21),
            ("measured", 22, 24),
            ("measured", 25, 25),
        ]

    @pytest.mark.parametrize("steps", [2, 7, 30])
    @pytest.mark.parametrize("timing_warmup_steps", [1, 6])
    @pytest.mark.parametrize("interval_steps", [1, 4, 100])
    @pytest.mark.parametrize("eval_every", [0, 1, 3, 50])
    def test_every_step_once_and_no_interval_holds_an_evaluation(
        self, steps: int, timing_warmup_steps: int, interval_steps: int, eval_every: int
    ) -> None:
        timing_warmup_steps = min(timing_warmup_steps, steps - 1)
        work = WorkloadConfig(
            steps=steps, timing_warmup_steps=timing_warmup_steps, interval_steps=interval_steps, eval_every=eval_every,
            seq_len=1, global_batch_size=1, micro_batch_size=1, learning_rate=1.0,
        )  # fmt: skip
        intervals = list(plan_intervals(work))
        covered = [step for _, first, last in intervals for step in range(first, last + 1)]
        assert covered == list(range(1, steps + 1))
        for phase, first, last in intervals:
            assert last - first + 1 <= interval_steps
            assert phase == ("first" if first == 1 else "warmup" if last <= timing_warmup_steps else "measured")
            if eval_every:
                assert not any(step % eval_every == 0 for step in range(first, last))

    def test_a_resumed_run_warms_up_again_and_saves_between_intervals(self) -> None:
        work = config_of("workload.steps=20", "workload.timing_warmup_steps=3", "workload.interval_steps=4",
                         "workload.eval_every=0").workload  # fmt: skip
        assert list(plan_intervals(work, 0, 5)) == [
            ("first", 1, 1), ("warmup", 2, 3), ("measured", 4, 5), ("measured", 6, 9), ("measured", 10, 10),
            ("measured", 11, 14), ("measured", 15, 15), ("measured", 16, 19), ("measured", 20, 20),
        ]  # fmt: skip
        assert list(plan_intervals(work, 10, 5)) == [
            ("resumed", 11, 13), ("measured", 14, 15), ("measured", 16, 19), ("measured", 20, 20),
        ]  # fmt: skip
        # Interrupted in its warm-up, it repeats the entire warm-up.
        assert list(plan_intervals(work, 2, 5))[:2] == [("resumed", 3, 5), ("measured", 6, 9)]
        assert list(plan_intervals(work, 19, 5)) == [("resumed", 20, 20)]
        assert list(plan_intervals(work, 20, 5)) == []


class FakeDataset(Dataset):
    def train(self, first_sample: int, count: int) -> np.ndarray:
        raise NotImplementedError

    def held_out(self, first_sample: int, count: int) -> np.ndarray:
        return np.arange(first_sample, first_sample + count)[:, None]

    def describe(self) -> dict[str, Any]:
        return {}


class OnDevice(torch.Tensor):
    """A scalar that logs every use, as a stand-in for one on a device."""

    uses: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = args[0] if isinstance(args[0], (list, tuple)) else args
        for operand in operands:
            if isinstance(operand, cls) and hasattr(operand, "uses"):
                operand.uses.append("read")
        return super().__torch_function__(func, types, args, kwargs or {})


def on_device(value: float, log: list[str]) -> torch.Tensor:
    scalar = torch.tensor(value).as_subclass(OnDevice)
    scalar.uses = log
    return scalar


class Display(LoopObserver):
    """Logs every update of a display."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def interval_done(self, report: IntervalReport) -> None:
        self._log.append("show")

    def evaluated(self, step: int, loss: float) -> None:
        self._log.append("show")


class FakeRun:
    """A loop with fakes that log, in order, everything it does."""

    def __init__(self, config: Config, losses: Sequence[float] = (), norms: Sequence[float] = (),
                 stop_after_step: int | None = None, done: TrainingHistory | None = None) -> None:  # fmt: skip
        self.saved: list[int] = []
        self.intervals_of_a_write = self.written_in = 0
        self.log: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.digest = BatchDigest()
        self.steps = 0
        self._losses, self._norms, self._stop_after_step = losses, norms, stop_after_step
        self._ticks = map(float, count())
        self.history = done or TrainingHistory()
        clock = self._ticks.__next__
        self.loop = Loop(
            config,
            self,
            self,  # type: ignore[arg-type]
            StepClock(lambda: self.log.append("sync"), None, asynchronous=True, clock=clock),
            Evaluator(config.workload, self, FakeDataset(), self.digest, Ranks(), heartbeat=lambda: None, clock=clock),
            Ranks(),
            LoopObservers(StepsLogger(self), Display(self.log)),  # type: ignore[arg-type]
            stop_requested=lambda: self._stop_after_step is not None and self.steps >= self._stop_after_step,
            checkpoints=self if config.checkpoint.every else None,
        )

    def run(self) -> None:
        self.loop.run(self.history)

    # Prefetcher
    def next(self) -> tuple[torch.Tensor, ...]:
        self.log.append("data")
        return (torch.zeros(1, 2),)

    # TrainStep
    def __call__(self, micro_batches: Sequence[torch.Tensor], learning_rate: float) -> StepOutput:
        self.log.append("step")
        self.steps += 1
        loss = self._losses[self.steps - 1] if self._losses else 5.0 / self.steps
        norm = self._norms[self.steps - 1] if self._norms else 1.0
        return StepOutput(on_device(loss, self.log), on_device(norm, self.log))

    def evaluate(self, sequences: torch.Tensor) -> torch.Tensor:
        self.log.append("evaluate")
        return sequences.double().mean()

    def skipped_steps(self) -> int:
        return 0

    def record_phases(self, phase: PhaseContext | None) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return None

    # Checkpoints
    def save(self, at_step: int, done: TrainingHistory) -> None:
        self.saved.append(at_step)
        self.written_in = self.intervals_of_a_write

    def is_writing(self, done: TrainingHistory) -> bool:
        self.log.append("poll")
        self.written_in -= 1
        return self.written_in >= 0

    def finish(self, done: TrainingHistory) -> None:
        self.log.append("finish")

    # StepsWriter
    def append(self, rows: Any) -> None:
        self.log.append("write")
        self.rows += rows


class TestLoop:
    def test_only_data_and_steps_between_two_synchronizations(self) -> None:
        fake = FakeRun(config_of())
        fake.run()
        inside, opened = [], False
        for event in fake.log:
            if event == "sync":
                opened = not opened
            elif opened:
                inside.append(event)
            else:
                assert event in {"read", "write", "show", "evaluate"}, f"{event} outside a timed interval"
        assert set(inside) == {"data", "step"}
        assert fake.log.count("read") >= 6
        assert inside.count("step") == inside.count("data") == 6

    def test_rows_are_complete(self) -> None:
        fake = FakeRun(config_of())
        fake.run()
        assert [row["step"] for row in fake.rows] == [1, 2, 3, 4, 5, 6]
        assert [row["loss"] for row in fake.rows] == pytest.approx([5, 5 / 2, 5 / 3, 5 / 4, 1, 5 / 6])
        assert {row["tokens"] for row in fake.rows} == {4 * 32}
        assert fake.history.losses.tolist() == [row["loss"] for row in fake.rows]

    def test_evaluation_weighs_micro_batches_of_unequal_size(self) -> None:
        # Micro-batches of 2, 2 and 1 of five sequences: the mean over sequences is 2, over micro-batches 2.67.
        fake = FakeRun(config_of("workload.eval_sequences=5"))
        fake.run()
        assert [point["loss"] for point in fake.history.evaluations] == [2.0, 2.0]
        assert fake.digest.hexdigest() != BatchDigest().hexdigest()

    def test_evaluation_is_not_training_time(self) -> None:
        with_it, without = FakeRun(config_of()), FakeRun(config_of("workload.eval_every=0"))
        with_it.run()
        without.run()
        intervals = {"first": 1, "warmup": 1, "measured": 3}
        assert len(with_it.history.intervals) == sum(intervals.values())
        # Every reading of the clock is a tick: two around each step's data, one at the end of the interval.
        assert with_it.history.training_seconds == 6 * 2 + 5 * 1
        assert with_it.history.evaluation_seconds == 2
        assert without.history.evaluation_seconds == 0

    def test_the_time_between_intervals_is_told_without_evaluations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]

        def advance(seconds: float) -> Any:
            return lambda *_: now.__setitem__(0, now[0] + seconds)

        monkeypatch.setattr("harness.training.loop.raw_clock", lambda: now[0])
        monkeypatch.setattr(Display, "interval_done", advance(3.0))
        evaluate = FakeRun.evaluate

        def evaluate_for_a_tick(fake: FakeRun, sequences: torch.Tensor) -> torch.Tensor:
            # By the evaluator's own clock, of ticks, an evaluation takes one; it has two parts.
            now[0] += 1.0 / 2
            return evaluate(fake, sequences)

        monkeypatch.setattr(FakeRun, "evaluate", evaluate_for_a_tick)
        for every in (0, 2):
            fake = FakeRun(config_of(f"workload.eval_every={every}"))
            fake.run()
            intervals = [interval for _, interval in fake.history.intervals]
            assert [interval.idle_seconds for interval in intervals] == [None, *[3.0] * (len(intervals) - 1)]
            assert {interval.gap_seconds for interval in intervals[1:]} == {0.0}

    def test_stops_at_the_target_after_the_evaluation_that_meets_it(self) -> None:
        fake = FakeRun(config_of("workload.eval_sequences=5", "target_loss=2.0"))
        fake.run()
        assert fake.steps == 3
        assert fake.history.target_step == 3
        assert fake.history.target_training_seconds == fake.history.training_seconds

    def test_a_stop_request_finishes_the_step_and_keeps_it(self) -> None:
        fake = FakeRun(config_of("workload.steps=100", "workload.interval_steps=50"), stop_after_step=7)
        fake.run()
        assert fake.steps == 7
        assert [row["step"] for row in fake.rows] == list(range(1, 8))
        assert fake.log[-2:] == ["write", "show"]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite_ends_the_run_after_it_is_written(self, bad: float) -> None:
        fake = FakeRun(config_of(), losses=[5.0, 4.0, 3.0, bad, 2.0, 1.0])
        with pytest.raises(RunFailed, match=r"the loss became (nan|inf) at step 4") as caught:
            fake.run()
        assert caught.value.status == "diverged"
        assert [row["step"] for row in fake.rows] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("precision", "advice"),
        [
            ("fp32", "; lower workload.learning_rate or lengthen workload.lr_warmup_steps"),
            ("bf16", "; lower workload.learning_rate, lengthen workload.lr_warmup_steps, or use precision=fp32"),
        ],
    )
    def test_the_advice_is_not_what_is_done_already(self, precision: str, advice: str) -> None:
        with pytest.raises(RunFailed) as caught:
            FakeRun(config_of(f"precision={precision}"), losses=[math.nan] * 6).run()
        assert str(caught.value).endswith(advice)

    def test_a_gradient_that_is_not_finite_ends_the_run_except_under_a_loss_scaler(self) -> None:
        norms = [1.0, 1.0, math.inf, 1.0, 1.0, 1.0]
        with pytest.raises(RunFailed, match="the gradient norm became inf at step 3"):
            FakeRun(config_of(), norms=norms).run()
        FakeRun(config_of("precision=fp16"), norms=norms).run()

    def test_the_samples_of_a_bad_step_are_kept(self) -> None:
        fake = FakeRun(config_of(), losses=[5.0, 4.0, math.nan, 3.0, 2.0, 1.0])
        with pytest.raises(RunFailed, match=r"at step 3 \(samples 8 to 11\)"):
            fake.run()
        assert fake.history.nonfinite == [{"step": 3, "what": "loss", "value": "nan", "first_sample": 8, "samples": 4}]

    def test_bad_steps_may_be_skipped_up_to_a_limit(self) -> None:
        losses = [5.0, math.nan, 3.0, math.inf, 2.0, 1.0]
        fake = FakeRun(config_of("on_nonfinite=skip", "nonfinite_limit=2"), losses=losses)
        fake.run()
        assert [entry["step"] for entry in fake.history.nonfinite] == [2, 4]
        fake = FakeRun(config_of("on_nonfinite=skip", "nonfinite_limit=1"), losses=losses)
        with pytest.raises(RunFailed, match=r"at step 4 .* after 1 skipped update "):
            fake.run()

    def test_a_loss_that_jumps_ends_the_run_if_asked_to(self) -> None:
        losses = [2.0] * SPIKE_WINDOW + [3.1, 2.0]
        overrides = [f"workload.steps={len(losses)}", "workload.eval_every=0"]
        FakeRun(config_of(*overrides), losses=losses).run()
        FakeRun(config_of(*overrides, "loss_spike_factor=1.6"), losses=losses).run()
        with pytest.raises(RunFailed, match=r"the loss jumped to 3.1000 at step 51 \(samples 200 to 203\)") as caught:
            FakeRun(config_of(*overrides, "loss_spike_factor=1.5"), losses=losses).run()
        assert caught.value.status == "loss_spike"

    def test_early_steps_are_no_spikes(self) -> None:
        FakeRun(config_of("loss_spike_factor=1.1"), losses=[1.0, 9.0, 1.0, 9.0, 1.0, 9.0]).run()


class TestCheckpoints:
    def test_are_due_every_few_steps_and_at_the_end(self) -> None:
        fake = FakeRun(config_of("checkpoint.every=4"))
        fake.run()
        assert fake.saved == [4, 6]
        assert FakeRun(config_of()).saved == []

    def test_are_outside_timed_intervals(self) -> None:
        with_them, without = FakeRun(config_of("checkpoint.every=2")), FakeRun(config_of())
        with_them.run()
        without.run()
        assert with_them.history.checkpoint_seconds == 4  # a tick each, and one for the wait at the end
        assert without.history.checkpoint_seconds == 0
        # One interval more, since a save ends one: a tick more.
        intervals = [len(fake.history.intervals) for fake in (with_them, without)]
        assert with_them.history.training_seconds - without.history.training_seconds == intervals[0] - intervals[1]

    def test_steps_during_a_write_are_not_timed(self) -> None:
        fake = FakeRun(config_of("workload.steps=12", "workload.timing_warmup_steps=4", "workload.interval_steps=2",
                                 "workload.eval_every=0", "checkpoint.every=4"))  # fmt: skip
        fake.intervals_of_a_write = 1
        fake.run()
        phases = [(phase, interval.first_step) for phase, interval in fake.history.intervals[-4:]]
        assert phases == [("saving", 5), ("measured", 7), ("saving", 9), ("measured", 11)]
        assert [row["phase"] for row in fake.rows[-4:]] == ["saving"] * 2 + ["measured"] * 2
        assert fake.log[-1] == "finish"

    def test_a_failed_training_completes_its_checkpoint(self) -> None:
        fake = FakeRun(config_of("checkpoint.every=2"), losses=[1.0, 1.0, math.nan])
        with pytest.raises(RunFailed, match="the loss became nan at step 3"):
            fake.run()
        assert fake.log[-1] == "finish"

    def test_so_does_one_that_is_ended_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Otherwise its thread would write, and delete older ones, in a folder that another run may have by then."""
        fake = FakeRun(config_of("checkpoint.every=2"))

        def end_at_once() -> tuple[torch.Tensor, ...]:
            if fake.steps == 3:
                raise Interrupted(15)
            return FakeRun.next(fake)

        monkeypatch.setattr(fake, "next", end_at_once)
        with pytest.raises(Interrupted):
            fake.run()
        assert fake.log[-1] == "finish"

    def test_a_stop_saves_where_it_stops(self) -> None:
        fake = FakeRun(config_of("workload.steps=100", "checkpoint.every=50"), stop_after_step=7)
        fake.run()
        assert fake.saved == [7]

    def test_so_does_a_target(self) -> None:
        fake = FakeRun(config_of("workload.eval_sequences=5", "target_loss=2.0", "checkpoint.every=50"))
        fake.run()
        assert fake.saved == [3]

    def test_a_target_that_was_met_where_the_run_was_stopped_ends_it(self) -> None:
        settings = ("workload.eval_sequences=5", "checkpoint.every=4")
        fake = FakeRun(config_of(*settings), stop_after_step=3)
        fake.run()
        assert fake.history.evaluations == [], "the evaluation was due"
        again = FakeRun(config_of(*settings, "target_loss=2.0"), done=fake.history)
        again.run()
        assert (again.steps, again.history.target_step, again.saved) == (0, 3, [3])
        # Of both attempts.
        assert again.history.target_wall_seconds is not None
        assert again.history.target_wall_seconds > again.history.training_seconds

    def test_a_run_that_was_killed_after_its_target_is_done(self) -> None:
        settings = ("workload.eval_sequences=5", "target_loss=2.0", "checkpoint.every=50")
        fake = FakeRun(config_of(*settings))
        fake.run()
        again = FakeRun(config_of(*settings), done=fake.history)
        again.run()
        assert (again.steps, again.history.target_step, again.saved) == (0, 3, [])
        # With a lower target it goes on.
        lower = FakeRun(config_of(*settings[:1], "target_loss=1e-9", "checkpoint.every=50"), done=fake.history)
        lower.run()
        assert (lower.steps, lower.history.target_step) == (3, None)

    def test_a_resumed_loop_goes_on(self) -> None:
        fake = FakeRun(config_of("checkpoint.every=4"), stop_after_step=3)
        fake.run()
        done = TrainingHistory.from_json(json.loads(json.dumps(fake.history.to_json())), 3)
        assert done == fake.history
        again = FakeRun(config_of("checkpoint.every=4"), done=done)
        again.run()
        assert [row["step"] for row in again.rows] == [4, 5, 6]
        # The evaluation of step 3 was due when the run was stopped: it comes first now.
        assert [point["step"] for point in again.history.evaluations] == [3, 6]
        assert again.history.steps_done == 6
        assert again.saved == [4, 6]
