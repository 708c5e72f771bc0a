"""Fingerprint of a run's computation, beside its curves and outside its timed intervals.

Four looks at the same program, all from the initial weights:

1. before the training, in float32: the gradient of a few sequences, then a short training (short_training.py). Devices
   agree on both to their rounding.
2. the same in the run's precision. Its distance to the first is a property of the number format and of the training.
3. the training's own first step: its gradient, and its update against AdamW's formula.
4. that step again after the training: the program that was timed last is the one that was timed first.

Gradients are kept as norms and sketches (harness/workload/sketch.py), since they cannot leave the device as a whole.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from harness.backends.base import Backend
from harness.backends.step import StepOutput, TrainStep
from harness.config import STOCK, Config
from harness.training.distributed.collectives import Ranks
from harness.training.history import TrainingHistory
from harness.training.observer import IntervalReport, LoopObserver
from harness.training.prepare import PreparedTraining, prepare_step
from harness.training.probe import observe_forward
from harness.training.short_training import MIN_TOKENS as SHORT_MIN_TOKENS
from harness.training.short_training import ShortTraining, part_of_batch, share_of, train_briefly
from harness.training.tuning import force_eager
from harness.training.update_check import UpdateSample, check_update, sample_update
from harness.workload.data import Dataset
from harness.workload.initialization import initialize
from harness.workload.sketch import ZERO, Sketch, sketch_all
from harness.workload.weights import open_weights

Parameters = Mapping[str, torch.nn.Parameter]
# Tokens of the sequences in the gradient of the first two looks, at least: enough for one that is not noise.
MIN_TOKENS = 4096
# A loss scaler halves its scale after each overflow; it begins with 2^16.
MAX_OVERFLOWS = 32
# Projections in a record; a run compares its own with all of them.
RECORDED = 16


def _recorded(sketch: Sketch) -> dict[str, Any]:
    return {"norm": sketch.norm, "projections": sketch.to_text(RECORDED)}


@dataclass(frozen=True)
class Look:
    """Loss, gradient norm and the sketches of all gradients of one step."""

    loss: float
    gradient_norm: float
    gradients: dict[str, Sketch]

    def distances(self, other: Look) -> dict[str, float]:
        """Return the relative distance of each parameter's gradient to that of `other`."""
        names = self.gradients.keys() | other.gradients.keys()
        return {
            name: self.gradients.get(name, ZERO).distance(other.gradients.get(name, ZERO)) for name in sorted(names)
        }

    def to_record(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "gradients": {name: _recorded(sketch) for name, sketch in self.gradients.items()},
        }


@dataclass(frozen=True)
class FirstLook:
    """The first or the second look: the gradient, the outputs of all blocks, and the short training."""

    gradient: Look
    activations: list[Sketch]
    short_training: ShortTraining

    def distances(self, other: FirstLook) -> dict[str, Any]:
        """Return the relative distances of gradients and outputs to those of `other`."""
        # A backend may run the model in a way that calls no hooks in one of the two.
        activations = zip(self.activations, other.activations, strict=False)
        return {
            "gradients": self.gradient.distances(other.gradient),
            "activations": [one.distance(two) for one, two in activations],
        }


class Fingerprint:
    """Takes the four looks of one run. Its methods are collective, and called outside of timed intervals."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        dataset: Dataset,
        ranks: Ranks,
        heartbeat: Callable[[], None],
    ) -> None:
        """
        Args:
            config: with its track resolved.
        """
        self._config, self._backend, self._dataset = config, backend, dataset
        self._ranks, self._heartbeat = ranks, heartbeat
        self._sequences = part_of_batch(config.workload, MIN_TOKENS)
        self._seconds = 0.0

    def look_in_fp32(self) -> FirstLook | None:
        """Take the first look with a model of its own, which is freed again; None if the run itself is in float32."""
        if self._config.precision == "fp32":
            return None
        track = replace(self._config.track, compile="no", gradient_accumulation=STOCK)
        config = replace(self._config, precision="fp32", track=track)
        config = replace(
            config, model=replace(config.model, activation_checkpointing=True, activation_checkpointing_blocks=None)
        )
        began = time.perf_counter()
        whole, _, optimizer, step = prepare_step(config, self._backend, self._ranks, self._heartbeat)
        parameters, first = whole.counted, torch.from_numpy(self._dataset.train(0, 1))
        activations = observe_forward(step, whole, first, "fp32", self._ranks).activations
        gradient = self._look(step, parameters, optimizer)
        look = FirstLook(gradient, activations, self._train_briefly(step, parameters, optimizer))
        del whole, parameters, optimizer, step
        # PyTorch's engines refer to themselves, so that the model would be there still when the run's own is built.
        if self._ranks.world.is_distributed:
            gc.collect()
        self._seconds += time.perf_counter() - began
        return look

    def take_first_looks(
        self, prepared: PreparedTraining, activations: list[Sketch], in_fp32: FirstLook | None
    ) -> dict[str, Any]:
        """Take the second look, and return the fingerprint so far. Weights and state are the initial ones again.

        Args:
            activations: of the first sequence in the run's precision.
            in_fp32: the first look, if it was taken.
        """
        began = time.perf_counter()
        state = prepared.step.state()
        with force_eager(self._config.track):
            gradient = self._look(prepared.step, prepared.parameters, prepared.optimizer)
            briefly = self._train_briefly(prepared.step, prepared.parameters, prepared.optimizer)
        self._begin_again(prepared, state)
        own = FirstLook(gradient, activations, briefly)
        exact = in_fp32 or own
        self._seconds += time.perf_counter() - began
        return {
            "sequences": self._sequences,
            "fp32": {
                **exact.gradient.to_record(),
                "activations": [_recorded(sketch) for sketch in exact.activations],
            },
            "distances_to_fp32": None if in_fp32 is None else own.distances(in_fp32),
            "short_training": {
                "fp32": exact.short_training.to_record(),
                "own": None if in_fp32 is None else briefly.to_record(),
            },
            "first_step": None,
            "repeated_step": None,
            "optimizer_steps": None,
            "seconds": self._seconds,
        }

    def first_step_observer(self, prepared: PreparedTraining, history: TrainingHistory) -> LoopObserver:
        """Return the observer that takes the third look."""
        return _FirstStepObserver(self, prepared, history)

    def note_first_step(
        self, prepared: PreparedTraining, before: UpdateSample, report: IntervalReport, found: dict[str, Any]
    ) -> None:
        """Add the third look to the fingerprint."""
        began = time.perf_counter()
        look = Look(
            report.losses[0], report.gradient_norms[0], self._gradients(prepared.parameters, prepared.optimizer)
        )
        found["first_step"] = {
            **look.to_record(),
            "sketches": {name: sketch.to_text() for name, sketch in look.gradients.items()},
            "update": self._check(prepared, before, report.learning_rates[0]),
        }
        found["seconds"] += time.perf_counter() - began

    def repeat_first_step(self, prepared: PreparedTraining, state: dict[str, Any], found: dict[str, Any]) -> None:
        """Take the fourth look. It replaces the weights by those after the first step.

        The learning rate is the peak, since the update shows the more, the larger it is; nothing else depends on it.

        Args:
            state: of the training step, before the training.
        """
        if found["first_step"] is None:
            return
        began = time.perf_counter()
        found["optimizer_steps"] = self._optimizer_steps(prepared.optimizer)
        self._begin_again(prepared, state)
        before = sample_update(prepared.parameters, prepared.optimizer)
        work = self._config.workload
        share = self._share(work.global_batch_size)
        output = prepared.step(share.split(work.micro_batch_size), work.learning_rate)
        look = self._read(output, prepared.parameters, prepared.optimizer)
        first = found["first_step"]
        earlier = Look(first["loss"], first["gradient_norm"], {
            name: Sketch.from_text(first["gradients"][name]["norm"], text) for name, text in first["sketches"].items()
        })  # fmt: skip
        distances = look.distances(earlier)
        worst = max(distances, key=lambda name: distances[name]) if distances else None
        found["repeated_step"] = {
            "loss": look.loss,
            "gradient_norm": look.gradient_norm,
            "distance": distances[worst] if worst is not None else None,
            "gradient": worst,
            "update": self._check(prepared, before, work.learning_rate),
        }
        found["seconds"] += time.perf_counter() - began

    def _begin_again(self, prepared: PreparedTraining, state: dict[str, Any]) -> None:
        """Give the model its initial weights, and the optimizer and the training step their first state."""
        config = self._config
        initialize(prepared.model, config.model, config.seed, self._heartbeat, open_weights(config))
        prepared.optimizer.state.clear()
        prepared.step.restore(state)

    def _optimizer_steps(self, optimizer: torch.optim.Optimizer) -> list[int] | None:
        """Return the smallest and the largest number of updates of a parameter, by the optimizer's own count."""
        own = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
        counts = [count for rank in self._ranks.gather(own) for count in rank]
        return [min(counts), max(counts)] if counts else None

    def _check(self, prepared: PreparedTraining, before: UpdateSample, rate: float) -> dict[str, Any] | None:
        """Return how far the update lies from the formula; None if the loss scaler skipped it."""
        if not prepared.optimizer.state:
            return None
        after = sample_update(prepared.parameters, prepared.optimizer)
        return check_update(before, after, prepared.parameters, self._config.workload, rate, self._ranks)

    def _look(self, step: TrainStep, parameters: Parameters, optimizer: torch.optim.Optimizer) -> Look:
        """Take one step with a learning rate of zero, which leaves the weights as they are."""
        share = self._share(self._sequences)
        output = step(share.split(1), 0.0)
        for _ in range(MAX_OVERFLOWS):
            if optimizer.state:
                break
            output = step(share.split(1), 0.0)
        look = self._read(output, parameters, optimizer)
        optimizer.state.clear()
        return look

    def _train_briefly(
        self, step: TrainStep, parameters: Parameters, optimizer: torch.optim.Optimizer
    ) -> ShortTraining:
        work = self._config.workload
        count = part_of_batch(work, SHORT_MIN_TOKENS)
        briefly = train_briefly(
            step, parameters, optimizer, work, lambda number: self._share(count, number * count), self._ranks
        )
        self._heartbeat()
        return briefly

    def _read(self, output: StepOutput, parameters: Parameters, optimizer: torch.optim.Optimizer) -> Look:
        loss = self._ranks.mean([output.loss.item()])[0]
        return Look(loss, output.gradient_norm.item(), self._gradients(parameters, optimizer))

    def _gradients(self, parameters: Parameters, optimizer: torch.optim.Optimizer) -> dict[str, Sketch]:
        """Return the sketches of the gradients that AdamW saw in its first step, clipped: its first moment, zero
        before, is (1 - beta1) times the gradient.
        """
        moments = {
            name: optimizer.state[parameter]["exp_avg"]
            for name, parameter in sorted(parameters.items())
            if optimizer.state.get(parameter)
        }
        factor = 1 / (1 - self._config.workload.beta1)
        sketches = sketch_all(moments, self._ranks.gather)
        return {name: sketch.scaled(factor) for name, sketch in sketches.items()}

    def _share(self, sequences: int, first: int = 0) -> torch.Tensor:
        """Return this rank's share of `sequences` sequences of the training: host int64 [count, seq_len + 1]."""
        own = share_of(sequences, self._ranks)
        batch = torch.from_numpy(np.concatenate([self._dataset.train(first + number, 1) for number in own]))
        # As the training's own batches, so that a fault of the device is met and named at the same places.
        return batch.pin_memory() if self._backend.pins_host_memory else batch


class _FirstStepObserver(LoopObserver):
    """Takes the third look when the first interval, the first step alone, is over."""

    def __init__(self, fingerprint: Fingerprint, prepared: PreparedTraining, history: TrainingHistory) -> None:
        self._fingerprint, self._prepared, self._history = fingerprint, prepared, history
        self._before: UpdateSample | None = None

    def interval_begins(self, phase: str) -> None:
        if phase == "first":
            self._before = sample_update(self._prepared.parameters, self._prepared.optimizer)

    def interval_done(self, report: IntervalReport) -> None:
        if report.phase == "first" and self._before is not None and self._history.fingerprint is not None:
            self._fingerprint.note_first_step(self._prepared, self._before, report, self._history.fingerprint)
            self._before = None


def fingerprint_record(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the fingerprint as it stands in a record, without what only the run itself needs."""
    if found is None or found["first_step"] is None:
        return found
    first = {key: value for key, value in found["first_step"].items() if key != "sketches"}
    return {**found, "first_step": first}
