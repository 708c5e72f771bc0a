"""The one training loop. It does not know which device it drives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch

from harness.backends.step import StepOutput, TrainStep
from harness.config import Config, WorkloadConfig
from harness.errors import RunFailed
from harness.schedule import learning_rate
from harness.training.distributed.collectives import Ranks
from harness.training.evaluation import Evaluator
from harness.training.history import TrainingHistory
from harness.training.loss_checks import check_losses
from harness.training.observer import IntervalReport, LoopObserver
from harness.training.prefetch import Prefetcher
from harness.training.timing import StepClock, TimedInterval, raw_clock

# A step is `saving` if a checkpoint is being written in the background meanwhile: it is not counted in the timing.
PHASES = ("first", "warmup", "measured", "resumed", "saving")


def plan_intervals(work: WorkloadConfig, done: int = 0, checkpoint_every: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield (phase, first step, last step) of the intervals after `done` steps: the loop synchronizes at their ends.

    Intervals end after the first step, at the end of the warm-up, every `interval_steps` of the measured window, and
    wherever an evaluation or a checkpoint is due, so that none lies within an interval. A run that is resumed from a
    checkpoint warms up again: `timing_warmup_steps` steps are left out of the timing.
    """
    rewarmed = done + work.timing_warmup_steps if done else 0
    step = done + 1
    while step <= work.steps:
        if step <= rewarmed:
            phase, limit = "resumed", min(rewarmed, work.steps)
        elif step == 1:
            phase, limit = "first", 1
        elif step <= work.timing_warmup_steps:
            phase, limit = "warmup", work.timing_warmup_steps
        else:
            phase, limit = "measured", work.steps
        last = min(step + work.interval_steps - 1, limit)
        for every in filter(None, (work.eval_every, checkpoint_every)):
            last = min(last, math.ceil(step / every) * every)
        yield phase, step, last
        step = last + 1


class CheckpointWriter(Protocol):
    """Checkpoints as the loop needs them; `CheckpointManager` describes the methods."""

    def save(self, at_step: int, done: TrainingHistory) -> None: ...
    def is_writing(self, done: TrainingHistory) -> bool: ...
    def finish(self, done: TrainingHistory) -> None: ...


class GapMeter:
    """Measures the time between two intervals that no evaluation, checkpoint, observer or exchange between ranks took.

    Only the reading of losses from the device is left of it, so that a long gap means work outside of the intervals.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._accounted_seconds = 0.0

    def begin(self) -> None:
        """Note that an interval has ended."""
        self._began, self._accounted_seconds = raw_clock(), 0.0

    @contextmanager
    def accounted(self) -> Iterator[None]:
        """Return a context whose time is accounted for."""
        began = raw_clock()
        try:
            yield
        finally:
            self._accounted_seconds += raw_clock() - began

    def pop(self) -> tuple[float, float] | None:
        """Return the seconds since the last interval, and those of them that nothing accounts for; None before the
        first one.
        """
        if self._began is None:
            return None
        seconds = raw_clock() - self._began
        return seconds, max(0.0, seconds - self._accounted_seconds)


class Loop:
    """Drives a TrainStep through the workload's steps, interval by interval."""

    def __init__(
        self,
        config: Config,
        train_step: TrainStep,
        prefetcher: Prefetcher,
        step_clock: StepClock,
        evaluator: Evaluator,
        ranks: Ranks,
        observer: LoopObserver,
        *,
        stop_requested: Callable[[], bool],
        checkpoints: CheckpointWriter | None = None,
    ) -> None:
        """
        Args:
            stop_requested: called after every step and every interval; the same answer on all ranks.
            checkpoints: None for a run without.
        """
        self._config, self._work = config, config.workload
        self._train_step, self._prefetcher, self._step_clock = train_step, prefetcher, step_clock
        self._evaluator, self._ranks, self._observer = evaluator, ranks, observer
        self._stop_requested, self._checkpoints = stop_requested, checkpoints
        self._gap = GapMeter()
        self._began = self._evaluated_seconds = 0.0

    def run(self, history: TrainingHistory) -> None:
        """Train until the steps are done, the target is reached, or a stop is requested.

        Args:
            history: of the steps done before, if any; it is extended in place, also before an exception.

        Raises:
            RunFailed: a loss or a gradient is not finite, or a file cannot be written.
        """
        # As if earlier attempts, up to their last checkpoints, had ended just now.
        self._began = self._step_clock.now() - history.wall_seconds
        try:
            self._run(history)
        except BaseException as error:
            # Where all ranks are here, the checkpoint being written is completed, while the folder is locked.
            if self._ranks.size == 1 or (isinstance(error, RunFailed) and error.shared):
                with suppress(RunFailed):
                    self._finish_checkpoint(history)
            raise
        self._finish_checkpoint(history)

    def _run(self, history: TrainingHistory) -> None:
        done = history.steps_done
        if history.target_step is not None:
            if self._is_target(history.evaluations[-1]["loss"]):
                # The process ended between the last checkpoint and the record.
                return
            # The target is another one now.
            history.target_step = history.target_training_seconds = history.target_wall_seconds = None
        # An interrupted run was saved before the evaluation that was due.
        is_left = self._evaluator.is_due(done) and done not in [point["step"] for point in history.evaluations]
        if done and is_left and self._ends_at_target(done, history):
            return
        if not done and self._work.eval_first:
            self._evaluate(0, history)
        every = self._config.checkpoint.every
        for phase, first, last in plan_intervals(self._work, done, every):
            saving = phase == "measured" and self._is_writing(history)
            self._run_interval("saving" if saving else phase, first, last, history)
            with self._gap.accounted():
                stopping = self._stop_requested()
            if stopping:
                self._save(history)
                return
            if self._evaluator.is_due(last) and self._ends_at_target(last, history):
                return
            if every and (last % every == 0 or last == self._work.steps):
                self._save(history)

    def _run_interval(self, phase: str, first: int, last: int, history: TrainingHistory) -> None:
        outputs: list[StepOutput] = []
        rates: list[float] = []
        with self._gap.accounted():
            self._observer.interval_begins(phase)
        gap, evaluated, self._evaluated_seconds = self._gap.pop(), self._evaluated_seconds, 0.0
        raw_began = raw_clock()
        self._step_clock.begin(first)
        for step in range(first, last + 1):
            wait_began = self._step_clock.now()
            micro_batches = self._prefetcher.next()
            self._step_clock.waited(self._step_clock.now() - wait_began)
            rates.append(learning_rate(step, self._work))
            outputs.append(self._train_step(micro_batches, rates[-1]))
            self._step_clock.step_done()
            if self._stop_requested():
                break
        interval = self._step_clock.end(first + len(outputs) - 1)
        interval.raw_seconds = raw_clock() - raw_began
        if gap is not None:
            interval.idle_seconds, interval.gap_seconds = max(0.0, gap[0] - evaluated), gap[1]
        self._gap.begin()
        # No time is counted from here to the next `begin`.
        with self._gap.accounted():
            self._observer.interval_ended()
        self._log_interval(phase, interval, outputs, rates, history)

    def _log_interval(self, phase: str, interval: TimedInterval, outputs: list[StepOutput], rates: list[float],
                      history: TrainingHistory) -> None:  # fmt: skip
        # Each rank has the mean over its share of the batch; shares are equal.
        own_losses = torch.stack([output.loss for output in outputs]).tolist()
        norms = torch.stack([output.gradient_norm for output in outputs]).tolist()
        with self._gap.accounted():
            losses = self._ranks.mean(own_losses)
        history.intervals.append((phase, interval))
        history.losses.extend(losses)
        history.gradient_norms.extend(norms)
        history.learning_rates.extend(rates)
        with self._gap.accounted():
            self._observer.interval_done(
                IntervalReport(
                    phase=phase,
                    first_step=interval.first_step,
                    last_step=interval.last_step,
                    steps_planned=self._work.steps,
                    losses=losses,
                    gradient_norms=norms,
                    learning_rates=rates,
                    step_seconds=interval.step_seconds,
                    tokens=interval.steps * self._work.global_batch_size * self._work.seq_len,
                    seconds=interval.seconds,
                )
            )
        check_losses(self._config, history, interval.first_step, losses, norms)

    def _evaluate(self, step: int, history: TrainingHistory) -> float:
        with self._gap.accounted():
            began = history.evaluation_seconds
            loss = self._evaluator.evaluate(step, history)
            self._evaluated_seconds += history.evaluation_seconds - began
            self._observer.evaluated(step, loss)
        self._evaluator.check_finite(step, loss)
        return loss

    def _ends_at_target(self, step: int, history: TrainingHistory) -> bool:
        """Evaluate, and return whether that ends the run: its loss is the target or less, which is then saved."""
        if not self._is_target(self._evaluate(step, history)):
            return False
        history.target_step = step
        history.target_training_seconds = history.training_seconds
        history.target_wall_seconds = self._step_clock.now() - self._began
        self._save(history)
        return True

    def _is_target(self, loss: float) -> bool:
        return self._config.target_loss is not None and loss <= self._config.target_loss

    def _save(self, history: TrainingHistory) -> None:
        if self._checkpoints is None:
            return
        began = self._step_clock.now()
        history.wall_seconds = began - self._began
        with self._gap.accounted():
            self._checkpoints.save(history.steps_done, history)
        history.checkpoint_seconds += self._step_clock.now() - began

    def _is_writing(self, history: TrainingHistory) -> bool:
        """Return whether a checkpoint is being written: the next interval would share the machine with that."""
        if self._checkpoints is None:
            return False
        with self._gap.accounted():
            return self._checkpoints.is_writing(history)

    def _finish_checkpoint(self, history: TrainingHistory) -> None:
        if self._checkpoints is None:
            return
        began = self._step_clock.now()
        self._checkpoints.finish(history)
        history.checkpoint_seconds += self._step_clock.now() - began
