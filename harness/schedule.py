"""The learning-rate schedule, a function of the step: part of the work, used by training and by its checks."""

from __future__ import annotations

import math

from harness.config import WorkloadConfig


def learning_rate(step: int, work: WorkloadConfig) -> float:
    """Return the learning rate of `step`, counted from 1.

    Linear warm-up over `lr_warmup_steps`, then half a cosine (Loshchilov and Hutter 2017) from the peak to
    `min_lr_ratio` of it at the last step.
    """
    warmup = work.lr_warmup_steps
    if step <= warmup:
        return work.learning_rate * step / warmup
    progress = (step - warmup) / max(1, work.steps - warmup)
    final = work.learning_rate * work.min_lr_ratio
    return final + 0.5 * (work.learning_rate - final) * (1.0 + math.cos(math.pi * progress))
