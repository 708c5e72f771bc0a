"""Preparation of a training: model, optimizer, training step and evaluator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.backends.base import Backend
from harness.backends.failures import WEIGHTS_REMEDY
from harness.backends.step import TrainStep
from harness.config import Config
from harness.errors import RunFailed
from harness.training.distributed.collectives import Ranks, same_on_all
from harness.training.distributed.communication import CommunicationMeter
from harness.training.distributed.parallel import parallelize_model
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

    model: Transformer
    optimizer: torch.optim.Optimizer
    step: TrainStep
    evaluator: Evaluator
    compilation: Compilation
    init_digest: str


def prepare_training(
    config: Config,
    backend: Backend,
    dataset: Dataset,
    ranks: Ranks,
    meter: CommunicationMeter,
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
    model, compilation, optimizer, step = prepare_step(config, backend, ranks, meter, heartbeat)
    digest = _init_digest(config, model, ranks, heartbeat)
    heartbeat()
    evaluator = Evaluator(config.workload, step, dataset, batch_digest, ranks, heartbeat=heartbeat)
    return PreparedTraining(model, optimizer, step, evaluator, compilation, digest)


def prepare_step(
    config: Config, backend: Backend, ranks: Ranks, meter: CommunicationMeter, heartbeat: Callable[[], None]
) -> tuple[Transformer, Compilation, torch.optim.Optimizer, TrainStep]:
    """Return the model with its initial weights, its compilation, the optimizer and the backend's training step.

    Collective. Arguments as of `prepare_training`.

    Raises:
        ConfigError: the layout does not fit the device or the number of processes.
        RunFailed: the weights do not fit into the device's memory.
    """
    try:
        parallel_model = parallelize_model(config, backend, ranks, meter, heartbeat)
    except Exception as error:
        failure = backend.classify_error(error)
        if failure is None or failure.status != "oom":
            raise
        raise RunFailed(f"{failure.cause}; {WEIGHTS_REMEDY}", failure.status) from error
    model = parallel_model.model
    compilation = apply_track(model, config.track, backend)
    optimizer = build_optimizer(model, config.workload, config.track)
    step = backend.prepare(
        parallel_model.wrapped,
        optimizer,
        precision=config.precision,
        max_grad_norm=config.workload.max_grad_norm,
        grad_sync=parallel_model.grad_sync,
        skip_nonfinite=config.on_nonfinite == "skip",
    )
    return model, compilation, optimizer, step


def observe_training_step(prepared: PreparedTraining, config: Config, dataset: Dataset) -> ForwardObservation:
    """Return what one forward pass of the training step shows, on the first sequence.

    Raises:
        RunFailed: linear layers compute in another precision than the configured one.
    """
    first = torch.from_numpy(dataset.train(0, 1))
    with force_eager(config.track):
        return observe_forward(prepared.step, prepared.model, first, config.precision)


def _init_digest(config: Config, model: torch.nn.Module, ranks: Ranks, heartbeat: Callable[[], None]) -> str:
    """Return the digest of the initial weights, combined over the ranks if they are sharded.

    Raises:
        RunFailed: the ranks do not have the same weights.
    """
    if config.parallel.name == "fsdp":
        parts = ranks.gather(sharded_digests(model, ranks.rank, ranks.size, heartbeat))
        return total_digest({name: digest for part in parts for name, digest in part.items()})
    same_on_all(ranks, "the initial weights", digest := init_digest(model))
    return digest
