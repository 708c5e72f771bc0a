"""The one training loop. It does not know which device it drives."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from harness.backends.step import StepOutput, TrainStep
from harness.config import Config, WorkloadConfig
from harness.errors import RunFailed
from harness.records.steps import NoWriter, StepsWriter
from harness.training.distributed.collectives import Ranks
from harness.training.history import TrainingHistory
from harness.training.monitoring.progress import IntervalReport, MetricsLogger
from harness.training.prefetch import Prefetcher
from harness.training.timing import StepClock, TimedInterval
from harness.workload.data import Dataset
from harness.workload.optimizer import learning_rate

PHASES = ("first", "warmup", "measured", "resumed")
# Steps whose median a spike is measured against.
SPIKE_WINDOW = 50


def plan_intervals(work: WorkloadConfig, done: int = 0, checkpoint_every: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield (phase, first step, last step) of what is left after `done` steps: where the loop synchronises.

    Blocks end after the very first step, at the end of the warm-up, every `interval_steps` of the measured window,
    and wherever an evaluation or a checkpoint is due, so that no interval holds one. A run that is resumed from a
    checkpoint warms up again: as many steps as at its beginning are left out of the timing.
    """
    again = done + work.timing_warmup_steps if done else 0
    step = done + 1
    while step <= work.steps:
        if step <= again:
            phase, limit = "resumed", min(again, work.steps)
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


class LoopObserver(Protocol):
    """Looks on from outside the timed stretch of each interval."""

    def interval_begins(self, phase: str) -> None: ...

    def interval_ended(self) -> None: ...


class LoopObservers:
    """Several of them as one."""

    def __init__(self, *watches: LoopObserver) -> None:
        self._watches = watches

    def interval_begins(self, phase: str) -> None:
        for watch in self._watches:
            watch.interval_begins(phase)

    def interval_ended(self) -> None:
        for watch in self._watches:
            watch.interval_ended()


class Loop:
    """Drives a TrainStep through the workload's steps, interval by interval."""

    def __init__(
        self,
        config: Config,
        train_step: TrainStep,
        prefetcher: Prefetcher,
        dataset: Dataset,
        step_clock: StepClock,
        writer: StepsWriter | NoWriter,
        progress: MetricsLogger,
        *,
        stop_requested: Callable[[], bool],
        ranks: Ranks | None = None,
        done: TrainingHistory | None = None,
        save: Callable[[int, TrainingHistory], None] | None = None,
        communication: Callable[[], tuple[int, float | None]] | None = None,
        heartbeat: Callable[[], None] = lambda: None,
        watch: LoopObserver | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._work = config.workload
        self._train_step = train_step
        self._prefetcher = prefetcher
        self._dataset = dataset
        self._step_clock = step_clock
        self._writer = writer
        self._progress = progress
        self._stop_requested = stop_requested
        self._ranks = ranks or Ranks()
        self._communication = communication
        self._heartbeat = heartbeat
        self._watch = watch
        self._clock = clock
        self._held_out: list[tuple[torch.Tensor, int]] = []
        self._save_checkpoint = save
        self._checkpoint_every = config.checkpoint.every
        self.result = done or TrainingHistory()

    def run(self) -> None:
        """Train until the steps are done, the target is reached, or a stop is requested.

        Results are in `result`, also after an exception.

        Raises:
            RunFailed: the loss or a gradient is no longer finite, or a file cannot be written.
        """
        began = self._clock()
        done = self.result.steps_done
        # An interrupted run is saved before the evaluation that was due.
        if done and self._evaluation_due(done) and done not in [point["step"] for point in self.result.evaluations]:
            self._evaluate(done)
        for phase, first, last in plan_intervals(self._work, done, self._checkpoint_every):
            self._run_interval(phase, first, last)
            if self._stop_requested():
                self._save(self.result.steps_done)
                return
            if self._evaluation_due(last):
                loss = self._evaluate(last)
                target = self._config.target_loss
                if target is not None and loss <= target:
                    self.result.target_step = last
                    self.result.target_training_seconds = self.result.training_seconds
                    self.result.target_wall_seconds = self._clock() - began
                    self._save(last)
                    return
            if self._checkpoint_every and (last % self._checkpoint_every == 0 or last == self._work.steps):
                self._save(last)

    def _save(self, step: int) -> None:
        if not self._checkpoint_every or self._save_checkpoint is None:
            return
        began = self._clock()
        self._save_checkpoint(step, self.result)
        self._heartbeat()
        self.result.checkpoint_seconds += self._clock() - began

    def _run_interval(self, phase: str, first: int, last: int) -> None:
        outputs: list[StepOutput] = []
        rates: list[float] = []
        if self._communication is not None:
            # What an evaluation exchanged is no part of the interval.
            self._communication()
        if self._watch is not None:
            self._watch.interval_begins(phase)
        self._step_clock.begin(first)
        for step in range(first, last + 1):
            asked = self._clock()
            micro_batches = self._prefetcher.next()
            self._step_clock.waited(self._clock() - asked)
            rates.append(learning_rate(step, self._work))
            outputs.append(self._train_step(micro_batches, rates[-1]))
            self._step_clock.step_done()
            self._heartbeat()
            if self._stop_requested():
                break
        interval = self._step_clock.end(first + len(outputs) - 1)
        if self._watch is not None:
            self._watch.interval_ended()
        if self._communication is not None:
            self.result.exchanges.append(self._communication())
        # From here to the next `begin` the clock stands still.
        self._log_interval(phase, interval, outputs, rates)

    def _log_interval(self, phase: str, interval: TimedInterval, outputs: list[StepOutput], rates: list[float]) -> None:
        # Each rank has the mean over its own share of the batch; shares are equal.
        losses = self._ranks.mean(torch.stack([output.loss for output in outputs]).tolist())
        norms = torch.stack([output.gradient_norm for output in outputs]).tolist()
        self.result.intervals.append((phase, interval))
        self.result.losses += losses
        self.result.gradient_norms += norms
        tokens = self._work.global_batch_size * self._work.seq_len
        self._writer.append(
            {
                "step": interval.first_step + index,
                "phase": phase,
                "loss": loss,
                "gradient_norm": norms[index],
                "learning_rate": rates[index],
                "tokens": tokens,
                "seconds": interval.step_seconds[index],
            }
            for index, loss in enumerate(losses)
        )
        self._progress.interval_done(
            IntervalReport(
                phase,
                interval.first_step,
                interval.last_step,
                self._work.steps,
                losses,
                norms,
                rates,
                interval.steps * tokens,
                interval.seconds,
            )
        )
        self._check_finite(interval.first_step, losses, norms)
        self._check_loss_spike(interval.first_step, losses)

    def _check_finite(self, first_step: int, losses: list[float], norms: list[float]) -> None:
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first_step):
            # With fp16 an overflowing gradient is everyday business for the loss scaler: it skips that update.
            if math.isfinite(loss) and (math.isfinite(norm) or self._config.precision == "fp16"):
                continue
            what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
            batch = self._work.global_batch_size
            samples = {"first_sample": (step - 1) * batch, "samples": batch}
            self.result.nonfinite.append({"step": step, "what": what, "value": str(value), **samples})
            skipped = len(self.result.nonfinite)
            if self._config.on_nonfinite == "skip" and skipped <= self._config.nonfinite_limit:
                continue
            said = f"the {what} became {value} at step {step} (samples {(step - 1) * batch} to {step * batch - 1})"
            if self._config.on_nonfinite == "skip":
                said += f", after {skipped - 1} updates had been skipped (nonfinite_limit)"
            raise RunFailed(
                f"{said}; lower workload.learning_rate, lengthen workload.lr_warmup_steps, or use precision=fp32",
                status="diverged",
                shared=True,
            )

    def _check_loss_spike(self, first_step: int, losses: list[float]) -> None:
        factor = self._config.loss_spike_factor
        if factor is None:
            return
        for step, loss in enumerate(losses, first_step):
            before = self.result.losses[max(0, step - 1 - SPIKE_WINDOW) : step - 1]
            if len(before) < SPIKE_WINDOW or not loss > factor * statistics.median(before):
                continue
            batch = self._work.global_batch_size
            raise RunFailed(
                f"the loss jumped to {loss:.4f} at step {step} (samples {(step - 1) * batch} to {step * batch - 1}), "
                f"{loss / statistics.median(before):.2f} times the median of the {SPIKE_WINDOW} steps before; look at "
                f"these samples, lower workload.learning_rate, or raise loss_spike_factor (now {factor:g})",
                status="loss_spike",
                shared=True,
            )

    def _evaluation_due(self, step: int) -> bool:
        every = self._work.eval_every
        return every > 0 and (step % every == 0 or step == self._work.steps)

    def _evaluate(self, step: int) -> float:
        began = self._clock()
        if not self._held_out:
            self._held_out = self._eval_shard()
        losses = torch.stack([self._train_step.evaluate(part) for part, _ in self._held_out]).tolist()
        self._heartbeat()
        counted = [(loss, count) for loss, (_, count) in zip(losses, self._held_out, strict=True) if count]
        everyone = [pair for part in self._ranks.gather(counted) for pair in part]
        loss = math.fsum(loss * count for loss, count in everyone) / sum(count for _, count in everyone)
        self.result.evaluation_seconds += self._clock() - began
        self.result.evaluations.append(
            {
                "step": step,
                "loss": loss,
                "training_seconds": self.result.training_seconds,
                # Runs that stop at a target stop at different steps: their batches are compared at a common one.
                "batches": self._ranks.combined_digest(self._prefetcher.digest),
            }
        )
        self._progress.evaluated(step, loss)
        if not math.isfinite(loss):
            raise RunFailed(f"the evaluation loss became {loss} at step {step}", status="diverged", shared=True)
        return loss

    def _eval_shard(self) -> list[tuple[torch.Tensor, int]]:
        """Return this rank's held-out sequences in parts, and how many of each count.

        All ranks get as many parts, since a sharded model is put together part by part: one that has too few
        evaluates a sequence that does not count.
        """
        size, most = self._work.eval_sequences, self._work.micro_batch_size
        each = math.ceil(size / self._ranks.size)
        first = min(self._ranks.rank * each, size)
        own = min(each, size - first)
        parts: list[tuple[torch.Tensor, int]] = []
        if own:
            sequences = self._dataset.held_out(first, own)
            if not self.result.evaluations:
                # Once; a run that was resumed after an evaluation has them in its digest already.
                self._prefetcher.digest.add("held out", first, sequences)
            parts = [(part, len(part)) for part in torch.from_numpy(sequences).split(most)]
        while len(parts) < math.ceil(each / most):
            parts.append((torch.from_numpy(self._dataset.held_out(0, 1)), 0))
        return parts
