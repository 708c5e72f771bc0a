"""AdamW with the workload's settings, and the learning-rate schedule as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from harness.config import TrackConfig, WorkloadConfig


def build_optimizer(model: nn.Module, work: WorkloadConfig, track: TrackConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) with weight decay on matrices, not on biases and norm weights."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": work.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=work.learning_rate,
        betas=(work.beta1, work.beta2),
        eps=work.epsilon,
        foreach=track.adamw == "foreach",
        fused=track.adamw == "fused",
    )


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
