"""CheckpointManager: saves checkpoints while a run trains, and restores one when it is resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.backends.step import TrainStep
from harness.config import Config, workload_id
from harness.errors import CheckpointError, RunFailed
from harness.records.steps import STEPS_FILE, steps_digest
from harness.training.checkpoint import CheckpointStore
from harness.training.distributed.collectives import Ranks
from harness.training.distributed.process_group import RunProcesses
from harness.training.history import TrainingHistory
from harness.training.prepare import PreparedTraining
from harness.workload.data import Dataset
from harness.workload.digest import BatchDigest


@dataclass
class TrainingState:
    """The tensors of a checkpoint: model and optimizer."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return this rank's tensors, sharded ones as DTensors, by names that do not depend on the number of ranks."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters():
            found[f"model.{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                found[f"optimizer.{name}.{key}"] = value
        return found

    def initialize_optimizer_state(self) -> None:
        """Make the optimizer create its state, which it does in its first step, as it is before that.

        That step does not change the weights: gradients and learning rate, and with it the weight decay, are zero.
        """
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@dataclass(frozen=True)
class CheckpointManager:
    """Saves and restores everything that a run needs to resume.

    There is no random generator state: weights and batches are functions of seed, name and number, so that model,
    optimizer, loss scale and step are sufficient.
    """

    folder: Path
    """Of the run."""
    checkpoints: CheckpointStore
    state: TrainingState
    step: TrainStep
    dataset: Dataset
    batch_digest: BatchDigest
    """Of the batches that this rank has trained on; the combined digest of all ranks is saved."""
    ranks: Ranks
    global_batch_size: int
    heartbeat: Callable[[], None]
    """Called after each save."""
    fixed: dict[str, Any]
    """Must be the same when the run is resumed: `init`, the digest of the initial weights, and `data`."""

    def save(self, at_step: int, done: TrainingHistory) -> None:
        """Write the checkpoint of the last step, or with `checkpoint.asynchronous` begin to. Collective.

        Raises:
            RunFailed: the disk is full or not writable.
        """
        self.finish(done)
        self.dataset.check_unchanged()
        progress = {
            "loop": done.to_json(),
            "batches": self.ranks.combined_digest(self.batch_digest),
            "step": self.step.state(),
            **self.fixed,
            "samples": self._samples(at_step),
            "steps": self.ranks.broadcast_from_main(lambda: self._steps_digest(at_step)),
        }
        if not self.state.optimizer.state:
            # Every step so far was skipped, as those that overflow in fp16. A checkpoint has the state all the same.
            self.state.initialize_optimizer_state()
        done.checkpoint_staging_seconds += self.checkpoints.save(at_step, self.state.tensors(), progress)
        self.heartbeat()

    def is_writing(self, done: TrainingHistory) -> bool:
        """Return whether a checkpoint is being written in the background: the same answer on every rank. Collective.

        Raises:
            RunFailed: it cannot be written.
        """
        if self.checkpoints.is_writing():
            return True
        self.finish(done)
        return False

    def finish(self, done: TrainingHistory) -> None:
        """Wait for the checkpoint that is being written, if one is. Collective.

        Raises:
            RunFailed: it cannot be written.
        """
        done.checkpoint_writing_seconds += self.checkpoints.finish()

    def resume(self, from_step: int) -> TrainingHistory:
        """Restore model, optimizer and step from a checkpoint, and return its history. Collective.

        Raises:
            CheckpointError: the checkpoint cannot be used, or the initial weights or the data have changed.
            RunFailed: steps.jsonl has changed.
        """
        self.state.initialize_optimizer_state()
        progress = self.checkpoints.load(from_step, self.state.tensors())
        for what, key, now in (
            ("the initial weights", "init", self.fixed["init"]),
            ("the data", "data", self.fixed["data"]),
            ("samples of the data", "samples", self._samples(from_step)),
        ):
            if progress.get(key) != now:
                raise CheckpointError(
                    f"resume: {what} are not what the run began with: found {now}, expected {progress.get(key)}; "
                    "restore them, or start again in another out=DIR"
                )
        steps = self.ranks.broadcast_from_main(lambda: self._steps_digest(from_step))
        if steps is None or steps != progress.get("steps"):
            raise RunFailed(
                f"{self.folder / STEPS_FILE}: does not hold the steps 1 to {from_step} as they were written before the "
                "checkpoint; restore the file, or start again in another out=DIR",
                shared=True,
            )
        try:
            history = TrainingHistory.from_json(progress["loop"], from_step)
            self.step.restore(progress["step"])
            if self.ranks.share == 0:
                # The saved digest is of all ranks, whatever their number was.
                self.batch_digest.merge(progress["batches"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"resume: the checkpoint of step {from_step} has no usable progress ({type(error).__name__}: {error}); "
                "delete its folder to resume from an earlier one"
            ) from error
        return history

    def _steps_digest(self, step: int) -> str | None:
        """Return the digest of the rows in steps.jsonl, on rank 0, which writes them; None if they are not there."""
        try:
            return steps_digest(self.folder, step)
        except OSError:
            return None

    def _samples(self, step: int) -> str:
        """Return a digest of the first sequence and of a step's first one: reading all of the data would take long."""
        digest = BatchDigest()
        for sample in (0, (step - 1) * self.global_batch_size):
            digest.add("train", sample, self.dataset.train(sample, 1))
        return digest.hexdigest()


def make_checkpoint_manager(
    folder: Path,
    config: Config,
    prepared: PreparedTraining,
    dataset: Dataset,
    batch_digest: BatchDigest,
    processes: RunProcesses,
    *,
    data: dict[str, Any],
) -> CheckpointManager:
    """Return the checkpoint manager of a run. Collective.

    Args:
        data: the description of the dataset, which must not change between attempts.
    """
    ranks = processes.ranks
    return CheckpointManager(
        folder=folder,
        checkpoints=CheckpointStore(
            folder,
            ranks,
            workload_id=workload_id(config),
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            heartbeat=processes.heartbeat.alive,
        ),
        state=TrainingState(prepared.model, prepared.optimizer),
        step=prepared.step,
        dataset=dataset,
        batch_digest=batch_digest,
        ranks=ranks,
        global_batch_size=config.workload.global_batch_size,
        fixed={"init": prepared.init_digest, "data": data},
        heartbeat=processes.heartbeat.beat,
    )
