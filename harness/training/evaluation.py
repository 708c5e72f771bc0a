"""Evaluator: the loss on held-out data, over all ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from harness.backends.step import TrainStep
from harness.config import WorkloadConfig
from harness.errors import RunFailed
from harness.training.distributed.collectives import Ranks
from harness.training.history import TrainingHistory
from harness.workload.data import Dataset
from harness.workload.digest import BatchDigest


class Evaluator:
    """Evaluates the same held-out sequences each time, split over the ranks."""

    def __init__(
        self,
        work: WorkloadConfig,
        train_step: TrainStep,
        dataset: Dataset,
        batch_digest: BatchDigest,
        ranks: Ranks,
        *,
        heartbeat: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            batch_digest: of the batches that this rank trains on; the held-out sequences are added to it.
            heartbeat: called once per evaluation.
        """
        self._work, self._train_step, self._dataset = work, train_step, dataset
        self._batch_digest, self._ranks = batch_digest, ranks
        self._heartbeat, self._clock = heartbeat, clock
        self._shard: list[tuple[torch.Tensor, int]] = []

    def is_due(self, step: int) -> bool:
        """Return whether the workload evaluates after this step."""
        every = self._work.eval_every
        return every > 0 and (step % every == 0 or step == self._work.steps)

    def evaluate(self, step: int, history: TrainingHistory) -> float:
        """Return the mean loss in nats per token, and add it to the history. Collective.

        Raises:
            RunFailed: the loss is not finite.
        """
        began = self._clock()
        if not self._shard:
            # The digest of a run resumed after an evaluation already includes the sequences.
            self._shard = self._eval_shard(is_first=not history.evaluations)
        losses = torch.stack([self._train_step.evaluate(part) for part, _ in self._shard]).tolist()
        self._heartbeat()
        counted = [(loss, count) for loss, (_, count) in zip(losses, self._shard, strict=True) if count]
        # Ranks of other axes evaluate the same sequences: each counts equally often, which changes no mean.
        everyone = [pair for part in self._ranks.gather(counted) for pair in part]
        loss = math.fsum(loss * count for loss, count in everyone) / sum(count for _, count in everyone)
        history.evaluation_seconds += self._clock() - began
        history.evaluations.append(
            {
                "step": step,
                "loss": loss,
                "training_seconds": history.training_seconds,
                # Runs with a target stop at different steps; their batches are compared at a common one.
                "batches": self._ranks.combined_digest(self._batch_digest),
            }
        )
        return loss

    def check_finite(self, step: int, loss: float) -> None:
        """Raise RunFailed if an evaluation's loss is not finite."""
        if not math.isfinite(loss):
            raise RunFailed(f"the evaluation loss became {loss} at step {step}", status="diverged", shared=True)

    def _eval_shard(self, *, is_first: bool) -> list[tuple[torch.Tensor, int]]:
        """Return this rank's held-out micro-batches, int64 [micro_batch_size, seq_len + 1], and how many count.

        All ranks get the same number of micro-batches, since every forward pass of a sharded model is collective: a
        rank with too few evaluates a sequence that does not count.
        """
        size, micro_batch_size = self._work.eval_sequences, self._work.micro_batch_size
        each = math.ceil(size / self._ranks.layout.shares)
        first = min(self._ranks.share * each, size)
        own = min(each, size - first)
        shard: list[tuple[torch.Tensor, int]] = []
        if own:
            sequences = self._dataset.held_out(first, own)
            if is_first:
                self._batch_digest.add("held out", first, sequences)
            shard = [(part, len(part)) for part in torch.from_numpy(sequences).split(micro_batch_size)]
        while len(shard) < math.ceil(each / micro_batch_size):
            shard.append((torch.from_numpy(self._dataset.held_out(0, 1)), 0))
        return shard
