"""Preparation of a training: model, optimizer, training step and evaluator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from harness.backends.base import Backend
from harness.backends.failures import WEIGHTS_REMEDY
from harness.backends.step import TrainStep, autocast_dtype
from harness.config import Config
from harness.errors import RunFailed
from harness.training.distributed.collectives import Ranks, same_on_all
from harness.training.distributed.parallel import ParallelModel, parallelize_model, uses_mesh
from harness.training.evaluation import Evaluator
from harness.training.probe import ForwardObservation, observe_forward
from harness.training.tuning import Compilation, apply_track, force_eager
from harness.workload.data import Dataset
from harness.workload.digest import BatchDigest, init_digest, sharded_digests, total_digest
from harness.workload.model import Transformer
from harness.workload.optimizer import build_optimizer


@dataclass(frozen=True)
class PreparedTraining:
    """Model, optimizer, step and evaluator, ready for the first step."""

    parallel_model: ParallelModel
    optimizer: torch.optim.Optimizer
    step: TrainStep
    evaluator: Evaluator
    compilation: Compilation
    init_digest: str

    @property
    def model(self) -> Transformer:
        return self.parallel_model.model

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those that this rank counts."""
        return self.parallel_model.counted


def prepare_training(
    config: Config,
    backend: Backend,
    dataset: Dataset,
    ranks: Ranks,
    batch_digest: BatchDigest,
    heartbeat: Callable[[], None],
) -> PreparedTraining:
    """Build the model with its initial weights, the optimizer, the backend's training step, the evaluator. Collective.

    Args:
        config: with its track resolved.
        batch_digest: of this rank's batches; evaluations add the held-out sequences to it.
        heartbeat: called for every parameter.

    Raises:
        ConfigError: the layout does not fit the device or the number of processes.
        RunFailed: the ranks do not have the same initial weights.
    """
    parallel_model, compilation, optimizer, step = prepare_step(config, backend, ranks, heartbeat)
    digest = _init_digest(config, parallel_model.model, ranks, heartbeat)
    heartbeat()
    evaluator = Evaluator(config.workload, step, dataset, batch_digest, ranks, heartbeat=heartbeat)
    return PreparedTraining(parallel_model, optimizer, step, evaluator, compilation, digest)


def prepare_step(
    config: Config, backend: Backend, ranks: Ranks, heartbeat: Callable[[], None]
) -> tuple[ParallelModel, Compilation, torch.optim.Optimizer, TrainStep]:
    """Return the model with its initial weights, its compilation, the optimizer and the backend's training step.

    Collective. Arguments as of `prepare_training`.

    Raises:
        ConfigError: the layout does not fit the device or the number of processes.
        RunFailed: the weights do not fit into the device's memory.
    """
    try:
        parallel_model = parallelize_model(config, backend, ranks, heartbeat)
    except Exception as error:
        failure = backend.classify_error(error)
        if failure is None or failure.status != "oom":
            raise
        raise RunFailed(f"{failure.cause}; {WEIGHTS_REMEDY}", failure.status) from error
    model = parallel_model.model
    compilation = apply_track(model, config.track, backend, ranks.layout, sharded=uses_mesh(config, ranks))
    optimizer = build_optimizer(model, config.workload, config.track)
    passes = partial(model.gradient_accumulation, model, autocast_dtype(config.precision))
    step = backend.prepare(
        parallel_model.wrapped,
        optimizer,
        precision=config.precision,
        max_grad_norm=config.workload.max_grad_norm,
        grad_sync=replace(parallel_model.grad_sync, passes=passes),
        skip_nonfinite=config.on_nonfinite == "skip",
    )
    return parallel_model, compilation, optimizer, step


def observe_training_step(
    prepared: PreparedTraining, config: Config, dataset: Dataset, ranks: Ranks
) -> ForwardObservation:
    """Return what one forward pass of the training step shows, on the first sequence.

    Raises:
        RunFailed: linear layers compute in another precision than the configured one.
    """
    first = torch.from_numpy(dataset.train(0, 1))
    with force_eager(config.track):
        return observe_forward(prepared.step, prepared.parallel_model, first, config.precision, ranks)


def _init_digest(config: Config, model: torch.nn.Module, ranks: Ranks, heartbeat: Callable[[], None]) -> str:
    """Return the digest of the initial weights, combined over the ranks if they are sharded.

    Raises:
        RunFailed: the ranks do not have the same weights.
    """
    if uses_mesh(config, ranks):
        # The ranks of a replica's stage share its parameters, and each replica has all of them.
        each = ranks.size // ranks.layout.pipeline // ranks.layout.data
        parts = ranks.gather(sharded_digests(model, ranks.rank % each, each, heartbeat))
        digests: dict[str, bytes] = {}
        for rank, (name, digest) in ((rank, item) for rank, part in enumerate(parts) for item in part.items()):
            if digests.setdefault(name, digest) != digest:
                first = next(other for other, part in enumerate(parts) if name in part)
                raise RunFailed(
                    f"rank {rank}, or one that shares its parameters, differs from rank {first} in the initial value "
                    f"of {name}; install the same software on every host",
                    status="rank_mismatch",
                    shared=True,
                )
        return total_digest(digests)
    same_on_all(ranks, "the initial weights", digest := init_digest(model))
    return digest
