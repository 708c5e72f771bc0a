"""AdamW with the workload's settings."""

from __future__ import annotations

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
