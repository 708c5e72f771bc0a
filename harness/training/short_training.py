"""Short training: a few small steps from the initial weights, beside the training and outside of its timed intervals.

In float32 two devices agree on it to 1e-6 or so, and a fault that needs several steps (an update that is lost, a weight
that is stale) shows although the run's own precision would hide it. In the run's precision its distance to float32 says
how fast this training amplifies rounding, which limits of curves are multiples of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness.backends.step import TrainStep
from harness.config import WorkloadConfig
from harness.training.distributed.collectives import Ranks
from harness.training.update_check import check_update, sample_update

# The learning rate reaches its peak in step RISING. Of the lengths tried, these predict best how far honest runs of
# other learning rates and depths lie apart later: compare the entries of configs/parity_noise.yaml.
STEPS, RISING = 10, 6
# Tokens of a step, at least.
MIN_TOKENS = 512


def part_of_batch(work: WorkloadConfig, min_tokens: int) -> int:
    """Return the number of sequences in the smallest part of the global batch with `min_tokens`."""
    total = work.global_batch_size
    parts = (count for count in range(1, total + 1) if total % count == 0)
    return next((count for count in parts if count * work.seq_len >= min_tokens), total)


def share_of(sequences: int, ranks: Ranks) -> list[int]:
    """Return the numbers, from 0, of this rank's sequences of a part of the global batch.

    All ranks get the same number of them, some more than once if they are no multiple of the shares: the mean over all
    ranks is that over the part, however many ranks there are.
    """
    shares = ranks.layout.shares
    each = math.lcm(sequences, shares) // shares
    return [(ranks.share * each + number) % sequences for number in range(each)]


@dataclass(frozen=True)
class ShortTraining:
    """Losses and gradient norms of the steps, and the last update against AdamW's formula, None if it was skipped."""

    losses: list[float]
    gradient_norms: list[float]
    update: dict[str, Any] | None

    def to_record(self) -> dict[str, Any]:
        return {"losses": self.losses, "gradient_norms": self.gradient_norms, "update": self.update}


def train_briefly(
    step: TrainStep,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    work: WorkloadConfig,
    share: Callable[[int], torch.Tensor],
    ranks: Ranks,
) -> ShortTraining:
    """Train STEPS steps from a small learning rate to the peak. Collective. It changes weights and state.

    Args:
        parameters: by name, with their initial values; of copies on several ranks, those of one. The optimizer has no
            state.
        share: returns this rank's sequences of step 0, 1, ...: host int64 [sequences, seq_len + 1].
    """
    losses, norms, update = [], [], None
    for number in range(1, STEPS + 1):
        rate = work.learning_rate * min(1.0, number / RISING)
        before = sample_update(parameters, optimizer) if number == STEPS else None
        # One sequence at a time, so that gradients are accumulated.
        output = step(share(number - 1).split(1), rate)
        losses.append(ranks.mean([output.loss.item()])[0])
        norms.append(output.gradient_norm.item())
        # The loss scaler of fp16 skips an update whose norm is not finite.
        if before is not None and math.isfinite(norms[-1]):
            after = sample_update(parameters, optimizer)
            updates = sum(map(math.isfinite, norms))
            update = check_update(before, after, parameters, work, rate, ranks, number=updates)
    return ShortTraining(losses, norms, update)
