"""A mixture of experts (Shazeer et al. 2017) in place of a block's feed-forward part: each token uses a few of many.

Shapes: B sequences, S positions, W hidden size, T = B x S tokens, E experts, N experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from harness.config import ModelConfig, intermediate_size


class ExpertWeights(nn.Module):
    """A matrix of each expert, in one parameter [E x outputs, inputs]: one after another, as rows of one layer."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts * outputs, inputs))
        self.outputs = outputs

    def forward(self) -> torch.Tensor:
        """Return the matrices, [E, outputs, inputs]; with tensor parallelism those of this rank's experts."""
        return self.weight.unflatten(0, (-1, self.outputs))


class Experts(nn.Module):
    """A mixture of SwiGLU or GELU experts (Shazeer et al. 2017; Jiang et al. 2024), which drops no token.

    A token's output is the sum of its experts' outputs, weighted by the softmax of the router's logits over all experts
    in float32; with `norm_topk_prob` the weights of a token's experts are divided by their sum. There is no loss that
    balances the experts, as in transformers by default.
    """

    kernels = ("swiglu",)

    def __init__(
        self,
        config: ModelConfig,
        swiglu: Callable[..., torch.Tensor],
        activate: Callable[[torch.Tensor, str], torch.Tensor],
    ) -> None:
        """
        Args:
            swiglu, activate: those of the model's dense feed-forward block.
        """
        super().__init__()
        assert config.num_experts is not None
        self.num_experts, self.per_token = config.num_experts, config.num_experts_per_tok
        self.normalizes = config.norm_topk_prob
        self.activation, self.activate = config.activation, activate
        width, size = config.hidden_size, intermediate_size(config)
        self.router = ExpertWeights(config.num_experts, width, 1)
        self.gate = ExpertWeights(config.num_experts, width, size) if config.activation == "swiglu" else None
        self.up = ExpertWeights(config.num_experts, width, size)
        self.down = ExpertWeights(config.num_experts, size, width)
        self.swiglu = swiglu
        self.own = range(config.num_experts)
        """Numbers of the experts that this rank computes: with tensor parallelism each has some, whole."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[..., W] -> [..., E]"""
        return F.linear(x, self.router().flatten(0, 1))

    def weighted_sum(self, outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the tokens' outputs: those of their experts [..., N, W], weights float32 [..., N] -> [..., W]."""
        weighted = outputs * weights.to(outputs.dtype).unsqueeze(-1)
        # Without a dtype autocast takes the sum in float32 on CUDA and NPU, and not on the CPU.
        return weighted.sum(-2, dtype=weighted.dtype)

    def activated(self, gate: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
        return self.activate(value, self.activation) if gate is None else self.swiglu(gate, value)


class RoundRobinExperts(Experts):
    """Experts that take turns: choice j of the token at position s is expert (N x s + j) modulo E.

    Each expert so has as many tokens of each sequence as any other, whatever the router has learned, and every device
    computes the same products. The router's probabilities weigh the outputs, and are trained. It is the routing that
    benchmarks force, such as torchtitan's `debug_force_load_balance`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, W] -> [B, S, W]"""
        sequences, length, width = x.shape
        rounds = length * self.per_token // self.num_experts
        turns = torch.arange(self.num_experts, device=x.device).expand(rounds, -1).reshape(length, self.per_token)
        turns = turns.expand(sequences, -1, -1)
        logits = self.logits(x)
        if self.normalizes:
            # Of the chosen alone, which is the same but where all of them have next to no probability.
            weights = logits.gather(-1, turns).softmax(-1, dtype=torch.float32)
        else:
            weights = logits.softmax(-1, dtype=torch.float32).gather(-1, turns)
        copies = x.unsqueeze(2).expand(-1, -1, self.per_token, -1)
        # Choices in the order of positions, of which every E-th is the same expert's: [E, B x S x N / E, W].
        by_expert = copies.reshape(sequences, -1, self.num_experts, width).permute(2, 0, 1, 3).flatten(1, 2)
        outputs = self.outputs(by_expert[self.own.start : self.own.stop])
        if len(self.own) < self.num_experts:
            outputs = F.pad(outputs, (0, 0, 0, 0, self.own.start, self.num_experts - self.own.stop))
        by_token = outputs.unflatten(1, (sequences, -1)).permute(1, 2, 0, 3).reshape(*copies.shape)
        return self.weighted_sum(by_token, weights)

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the own experts make of as many tokens each: [experts, tokens, W] -> [experts, tokens, W]."""
        gate = None if self.gate is None else torch.bmm(x, self.gate().transpose(1, 2))
        hidden = self.activated(gate, torch.bmm(x, self.up().transpose(1, 2)))
        return torch.bmm(hidden, self.down().transpose(1, 2))


class LearnedExperts(Experts):
    """Experts of which each token uses those with the largest probabilities.

    The shapes of the products depend on the values, which the host has to know: it waits for the device in each block,
    and torch.compile compiles none of it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, W] -> [B, S, W]"""
        tokens = x.flatten(0, 1)
        weights, experts = self.logits(tokens).softmax(-1, dtype=torch.float32).topk(self.per_token)
        if self.normalizes:
            weights = weights / weights.sum(-1, keepdim=True)
        # Choices, T x N, ordered by expert, and of one expert by token. Integers sort slowly on NPU.
        order = experts.flatten().float().argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=x.device)
        token = torch.arange(tokens.shape[0], device=x.device).unsqueeze(1).expand_as(experts).flatten()
        counts = (experts.flatten().unsqueeze(1) == torch.arange(self.num_experts, device=x.device)).sum(0).tolist()
        outputs = self.outputs(tokens.index_select(0, token.index_select(0, order)), counts)
        by_token = outputs.index_select(0, place).unflatten(0, (-1, self.per_token))
        return self.weighted_sum(by_token, weights).view(*x.shape[:2], -1)

    def outputs(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return what the own experts make of the choices, ordered by expert: [T x N, W] -> [T x N, W]; zeros for the
        others' choices.

        Args:
            counts: choices of each expert.
        """
        gates = None if self.gate is None else self.gate()
        ups, downs = self.up(), self.down()
        found = []
        for own, part in enumerate(x.split(list(counts))[self.own.start : self.own.stop]):
            gate = None if gates is None else F.linear(part, gates[own])
            found.append(F.linear(self.activated(gate, F.linear(part, ups[own])), downs[own]))
        outputs = torch.cat(found)
        if len(self.own) < self.num_experts:
            outputs = F.pad(outputs, (0, 0, sum(counts[: self.own.start]), sum(counts[self.own.stop :])))
        return outputs
