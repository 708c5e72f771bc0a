"""Kernels in plain PyTorch for track=tuned on several devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

# Memory of the logits that exist at a time, or half of the weight's gradient if that is more, and the number of tokens
# that a chunk is a multiple of. Each chunk adds to the whole gradient, which takes as long as the products of some 20
# tokens.
CHUNK_BYTES = 64 << 20
CHUNK_MULTIPLE = 256
# Matrix products are up to a third slower if the vocabulary is no multiple of this (GPT-2's 50 257 is odd).
ALIGNMENT = 64
# Minimum queries in a block of attention. Compilation takes minutes with more than MAX_QUERY_BLOCKS blocks.
MIN_QUERY_BLOCK = 128
MAX_QUERY_BLOCKS = 16


class ChunkedCrossEntropy:
    """Mean cross-entropy of head(hidden), a float32 scalar, without the full matrix of logits.

    The forward pass computes the gradients too, chunk by chunk while the logits exist (Liger Kernel, Hsu et al. 2024).
    Logits have autocast's dtype of a matrix product; softmax and sums are float32.
    """

    def __init__(self) -> None:
        self._loss_and_gradient = _loss_and_gradient

    def compile(self) -> None:
        """Compile the work on each chunk of logits, for a model that is not compiled as a whole."""
        self._loss_and_gradient = torch.compile(_loss_and_gradient, dynamic=False)

    def __call__(self, head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss. Shapes: head [V, W] without bias, hidden [B, S, W], targets int64 [B, S]."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        with torch.autocast(kind, enabled=False):
            arguments = (hidden.flatten(0, 1), head.weight, targets.flatten(), dtype)
            if torch.is_grad_enabled():
                return _WithGradients.apply(*arguments, self._loss_and_gradient)
            return _forward(*arguments)[0]


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        loss, hidden_grad, weight_grad = _forward(*arguments)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (loss_grad,) = outputs
        hidden_grad, weight_grad = ctx.saved_tensors
        # The gradients are those of the sum of the losses: in 16 bits those of their mean could underflow. In place: no
        # other tensor shares them, and backward runs once.
        scale = loss_grad / len(hidden_grad)
        return hidden_grad.mul_(scale), weight_grad.mul_(scale), None, None, None


LossAndGradient = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def _forward(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype,
             loss_and_gradient: LossAndGradient | None = None) -> tuple[torch.Tensor, Any, Any]:  # fmt: skip
    """Return the mean loss and, with `loss_and_gradient`, the gradients of the sum for hidden [N, W] and weight [V, W].

    Args:
        dtype: of the products.
    """
    count, classes = len(hidden), len(weight)
    rows, narrow = hidden.to(dtype), _aligned(weight, dtype)
    loss = torch.zeros((), device=hidden.device)
    hidden_grad, weight_grad = torch.empty_like(hidden) if loss_and_gradient else None, None
    most_bytes = max(CHUNK_BYTES, weight.numel() * weight.element_size() // 2)
    chunk = max(1, most_bytes // (len(narrow) * dtype.itemsize * CHUNK_MULTIPLE)) * CHUNK_MULTIPLE
    for first in range(0, count, chunk):
        part, wanted = rows[first : first + chunk], targets[first : first + chunk]
        logits = part @ narrow.T
        if loss_and_gradient is None or hidden_grad is None:
            loss += F.cross_entropy(logits[:, :classes].float(), wanted, reduction="sum")
            continue
        part_loss, logits_grad = loss_and_gradient(logits, wanted, classes)
        loss += part_loss
        hidden_grad[first : first + chunk] = logits_grad @ narrow
        part_grad = (logits_grad.T @ part)[:classes]
        weight_grad = part_grad.to(weight.dtype) if weight_grad is None else weight_grad.add_(part_grad)
    return loss / count, hidden_grad, weight_grad


def _aligned(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight in another dtype, padded with rows of zeros to a multiple of ALIGNMENT."""
    rows = -len(weight) % ALIGNMENT
    return F.pad(weight.to(dtype), (0, 0, 0, rows)) if rows else weight.to(dtype)


def _loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of the first `classes` columns of logits [N, V+], and the gradient in their dtype."""
    columns = torch.arange(logits.shape[1], device=logits.device)[None]
    wide = logits.float()
    if logits.shape[1] > classes:
        wide = torch.where(columns < classes, wide, -math.inf)
    logarithms = F.log_softmax(wide, dim=-1)
    loss = F.nll_loss(logarithms, targets, reduction="sum")
    ones = columns == targets[:, None]
    return loss, (torch.exp(logarithms) - ones.float()).to(logits.dtype)


def blocked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention as matrix products of one block of queries at a time with the keys visible to it.

    For devices whose matrix products are much faster than their attention kernel. Scores have the operands' dtype, the
    softmax is float32. Shapes as in `causal_attention`: q [B, H, S, D], k and v [B, K, S, D] -> [B, H, S, D].
    """
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    length, scale = q.shape[2], 1.0 / math.sqrt(q.shape[3])
    block = max(MIN_QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    outputs = []
    for first in range(0, length, block):
        last = min(first + block, length)
        scores = (q[:, :, first:last] @ k[:, :, :last].transpose(-1, -2)).float() * scale
        rows = torch.arange(first, last, device=q.device)[:, None]
        scores = torch.where(torch.arange(last, device=q.device)[None] <= rows, scores, -math.inf)
        outputs.append(torch.softmax(scores, dim=-1).to(v.dtype) @ v[:, :, :last])
    return torch.cat(outputs, dim=2)
