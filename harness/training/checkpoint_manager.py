"""Saves a run while it lasts, and puts one that was cut off back to where its checkpoint left it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.backends.base import TrainStep
from harness.config import workload_id
from harness.errors import CheckpointError
from harness.training.checkpoint import Checkpoints, TrainingState
from harness.training.loop import Progressed
from harness.workload.digest import BatchDigest

if TYPE_CHECKING:
    from harness.training.session import Session


class Keeper:
    """The checkpoints of a session. Nothing in a training draws random numbers from a state: weights and batches are
    functions of seed, name and number, so model, optimizer, loss scale and step are all there is to keep.
    """

    def __init__(
        self, session: Session, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: TrainStep
    ) -> None:
        self._session, self._step = session, step
        self._state = TrainingState(model, optimizer)
        config = session.config
        self._checkpoints = Checkpoints(
            session.folder, session.ranks, workload_id=workload_id(config), keep=config.checkpoint.keep
        )

    def save(self, at_step: int) -> None:
        """Write the checkpoint of the step that has just been done. Collective.

        Raises:
            RunFailed: the disk is full or not writable.
        """
        session = self._session
        assert session.result is not None
        session.dataset.refuse_changes()
        progress = {
            "loop": session.result.to_json(),
            "batches": session.ranks.added_digest(session.prefetcher.digest),
            "step": self._step.state(),
            "init": session.facts.init_digest,
            "data": session.facts.data,
            "samples": self._samples(at_step),
        }
        self._checkpoints.save(at_step, self._state.tensors(), progress)

    def resume(self, from_step: int) -> Progressed:
        """Put model, optimizer and step where the checkpoint left them, and return what had been measured. Collective.

        Raises:
            CheckpointError: the checkpoint cannot be used, or weights or data are others now.
        """
        session = self._session
        self._state.make_moments()
        progress = self._checkpoints.load(from_step, self._state.tensors())
        for what, before, now in (
            ("the initial weights", progress["init"], session.facts.init_digest),
            ("the data", progress["data"], session.facts.data),
            ("samples of the data", progress["samples"], self._samples(from_step)),
        ):
            if before != now:
                raise CheckpointError(
                    f"resume: {what} are not what the run began with: found {now}, expected {before}; bring that back, "
                    "or begin anew in another out=DIR"
                )
        self._step.restore(progress["step"])
        if session.ranks.leads:
            # What all ranks had seen together, however many they were.
            session.prefetcher.digest.merge(progress["batches"])
        return Progressed.from_json(progress["loop"])

    def _samples(self, step: int) -> str:
        """Return a digest of the first sequence and of the first one of a step: large data are not read as a whole."""
        digest = BatchDigest()
        for sample in (0, (step - 1) * self._session.config.workload.global_batch_size):
            digest.add("train", sample, self._session.dataset.train(sample, 1))
        return digest.hexdigest()
