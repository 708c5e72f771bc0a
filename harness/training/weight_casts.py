"""Weights of linear layers in autocast's dtype, cast once a step: track.weight_casts=each_step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Elements that are added up at a time: they stay in the cache while PyTorch casts and adds them.
PIECE = 1 << 17


class CastLinear(nn.Linear):
    """A linear layer that multiplies by a copy of its weight, of which `cast_weights` keeps the values equal.

    Autocast casts a weight in each forward pass, and in each backward pass its gradient back: of short micro-batches,
    that is a third of the memory that a step reads and writes.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.__dict__["cast"], self.bias)


def cast_weights(model: nn.Module, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Let the linear layers within `layers` use casts of their weights, renewed before a forward pass of the model.

    Gradients are those that autocast would give: of the dtype, and added up in float32 in the weight's own `grad`.
    For weights that one process has whole, since others' hooks wait for a gradient of the weight itself.
    """
    linear = [module for layer in layers for module in layer.modules() if type(module) is nn.Linear]
    renewed: dict[nn.Linear, int] = {}
    for module in linear:
        module.__class__ = CastLinear
        cast = torch.empty_like(module.weight, dtype=dtype).requires_grad_()
        cast.register_post_accumulate_grad_hook(_adder(module.weight))
        module.__dict__["cast"] = cast

    @torch.no_grad()
    def renew(*_: Any) -> None:
        for module in linear:
            if renewed.get(module) != module.weight._version:
                module.__dict__["cast"].copy_(module.weight)
                renewed[module] = module.weight._version

    model.register_forward_pre_hook(renew)


def _adder(weight: nn.Parameter) -> Any:
    """Return a hook that adds the gradient of a cast to that of the weight."""

    @torch.no_grad()
    def add(cast: torch.Tensor) -> None:
        part, cast.grad = cast.grad, None
        assert part is not None
        if weight.grad is None:
            weight.grad = part.to(weight.dtype)
        else:
            for whole, piece in zip(weight.grad.view(-1).split(PIECE), part.view(-1).split(PIECE), strict=True):
                whole += piece

    return add
