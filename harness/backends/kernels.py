"""Kernels in plain PyTorch for track=tuned on several devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
MAX_QUERY_BLOCKS = 8


class ChunkedCrossEntropy:
    """Mean cross-entropy of head(hidden), a float32 scalar, without the full matrix of logits.

    The forward pass computes the gradients too, chunk by chunk while the logits exist (Liger Kernel, Hsu et al. 2024).
    Logits have autocast's dtype of a matrix product; softmax and sums are float32.
    """

    def __init__(self) -> None:
        self._work = _Work(_loss_and_gradient, add_in_place)

    def compile(self) -> None:
        """Compile the work on each chunk of logits, for a model that is not compiled as a whole."""
        self._work = _Work(torch.compile(_loss_and_gradient, dynamic=False), compiled_addition())

    def __call__(self, head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss. Shapes: head [V, W] without bias, hidden [B, S, W], targets int64 [B, S]."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        with torch.autocast(kind, enabled=False):
            arguments = (hidden.flatten(0, 1), head.weight, targets.flatten(), dtype)
            if torch.is_grad_enabled():
                return _WithGradients.apply(*arguments, self._work)
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


class _Work(NamedTuple):
    """Functions of each chunk, compiled or not."""

    loss_and_gradient: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
    add: Callable[[torch.Tensor, torch.Tensor], None]


def _forward(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype,
             work: _Work | None = None) -> tuple[torch.Tensor, Any, Any]:  # fmt: skip
    """Return the mean loss and, with `work`, the gradients of the sum for hidden [N, W] and weight [V, W].

    Args:
        dtype: of the products.
    """
    count, classes = len(hidden), len(weight)
    rows, narrow = hidden.to(dtype), _aligned(weight, dtype)
    loss = torch.zeros((), device=hidden.device)
    hidden_grad, weight_grad = torch.empty_like(hidden) if work else None, None
    most_bytes = max(CHUNK_BYTES, weight.numel() * torch.float32.itemsize // 2)
    chunk = max(1, most_bytes // (len(narrow) * dtype.itemsize * CHUNK_MULTIPLE)) * CHUNK_MULTIPLE
    for first in range(0, count, chunk):
        part, wanted = rows[first : first + chunk], targets[first : first + chunk]
        logits = part @ narrow.T
        if work is None or hidden_grad is None:
            loss += F.cross_entropy(logits[:, :classes].float(), wanted, reduction="sum")
            continue
        part_loss, logits_grad = work.loss_and_gradient(logits, wanted, classes)
        loss += part_loss
        hidden_grad[first : first + chunk] = logits_grad @ narrow
        part_grad = (logits_grad.T @ part)[:classes]
        if weight_grad is None:
            # The sum of several parts is in float32, a single one in the weight's dtype.
            weight_grad = part_grad.to(weight.dtype if chunk >= count else torch.float32)
        else:
            work.add(weight_grad.view(-1), part_grad.view(-1))
    return loss / count, hidden_grad, weight_grad


def add_in_place(total: torch.Tensor, part: torch.Tensor) -> None:
    """Add to a vector one of another dtype."""
    total.add_(part)


def compiled_addition() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return `add_in_place` in one pass: PyTorch's own first makes a copy of the second vector in the sum's dtype."""
    # One program for vectors of all lengths.
    return torch.compile(add_in_place, dynamic=True)


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

    For devices whose matrix products are much faster than their attention kernel. Scores and weights have the operands'
    dtype, the softmax is float32. Weights are divided by their sum after the product with the values, as in
    FlashAttention (Dao et al. 2022), so that the backward pass needs no exponentials.
    Shapes as in `causal_attention`: q [B, H, S, D], k and v [B, K, S, D] -> [B, H, S, D].
    """
    # Keys that queries of several heads share are multiplied by all of them at once.
    queries = q.to(v.dtype).unflatten(1, (k.shape[1], -1))
    return _BlockedAttention.apply(queries, k.to(v.dtype), v).flatten(1, 2)


class _BlockedAttention(torch.autograd.Function):
    """q [B, K, G, S, D], k and v [B, K, S, D] -> [B, K, G, S, D]"""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scale = 1.0 / math.sqrt(q.shape[4])
        outputs, kept = [], []
        for first, last in _query_blocks(q.shape[3]):
            scores = (q[:, :, :, first:last].flatten(2, 3) @ k[:, :, :last].transpose(2, 3)).float()
            # Positions are compared as float32: vectors of int64 are slow.
            rows = torch.arange(first, last, device=q.device, dtype=torch.float32)
            columns = torch.arange(last, device=q.device, dtype=torch.float32)
            scores = torch.where(columns <= rows[:, None], scores.unflatten(2, (q.shape[2], -1)), -math.inf)
            largest = scores.amax(dim=4, keepdim=True)
            # Rounded before they are summed, so that their shares of the sum are exact.
            weights = torch.exp((scores - largest) * scale).to(v.dtype).flatten(2, 3)
            totals = weights.sum(dim=3, keepdim=True, dtype=torch.float32)
            outputs.append(((weights @ v[:, :, :last]) / totals).to(v.dtype).unflatten(2, (q.shape[2], -1)))
            kept += [weights, totals]
        ctx.save_for_backward(q, k, v, *kept)
        return torch.cat(outputs, dim=3)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (output_grad,) = outputs
        q, k, v, *kept = ctx.saved_tensors
        scale, blocks = 1.0 / math.sqrt(q.shape[4]), _query_blocks(q.shape[3])
        q_grads, k_grads, v_grads = [], [], []
        for (first, last), weights, totals in zip(blocks, kept[::2], kept[1::2], strict=True):
            rows = q[:, :, :, first:last].flatten(2, 3)
            shares = (output_grad[:, :, :, first:last].flatten(2, 3) / totals).to(v.dtype)
            weights_grad = (shares @ v[:, :, :last].transpose(2, 3)).float()
            # A weight also has a part in the sum that all are divided by.
            by_sum = (weights * weights_grad).sum(dim=3, keepdim=True) / totals
            scores_grad = (weights * (weights_grad - by_sum) * scale).to(v.dtype)
            q_grads.append((scores_grad @ k[:, :, :last]).unflatten(2, (q.shape[2], -1)))
            k_grads.append(scores_grad.transpose(2, 3) @ rows)
            v_grads.append(weights.transpose(2, 3) @ shares)
        return torch.cat(q_grads, dim=3), _sum_of_blocks(k_grads, blocks), _sum_of_blocks(v_grads, blocks)


def _query_blocks(length: int) -> list[tuple[int, int]]:
    """Return the first and last + 1 of the positions of each block of queries."""
    block = max(MIN_QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    return [(first, min(first + block, length)) for first in range(0, length, block)]


def _sum_of_blocks(grads: Sequence[torch.Tensor], blocks: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return the sum of the gradients of each block of queries for the keys or values visible to it, in float32."""
    sums = []
    for number, (first, last) in enumerate(blocks):
        parts = [grad[:, :, first:last].float() for grad in grads[number:]]
        sums.append(sum(parts[1:], start=parts[0]).to(grads[0].dtype))
    return torch.cat(sums, dim=2)
