"""Accumulation of gradients over micro-batches for track=tuned: bf16 ones are added to float32 sums in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from harness.backends.kernels import add_in_place, compiled_addition


class FusedAccumulation:
    """A context of a step's passes in which the model multiplies by copies of its weights in autocast's dtype.

    Autocast casts each weight for every micro-batch, autograd casts the gradient of the cast to float32, and adds that
    to the sum: 24 bytes of each weight are read and written. Here the weights are cast once a step, and the gradient of
    a copy is added to the float32 sum while it is cast: 10 bytes (the `gradient_accumulation_fusion` of Megatron-LM,
    outside of the product). Products and sums are the same numbers, but for a head with the chunked cross-entropy: its
    gradient is scaled, and summed over chunks, before it is rounded to the copy's dtype. Of an embedding's gradient
    only the rows that occur are added.

    For one process with several micro-batches a step: engines of several processes add up gradients themselves. The
    device's PyTorch needs sparse tensors.
    """

    def __init__(self) -> None:
        self._add = add_in_place
        self._copies: _Copies | None = None

    def compile(self) -> None:
        """Compile the addition, for a model that is compiled."""
        self._add = compiled_addition()

    @contextmanager
    def __call__(self, model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
        """Yield while the model has the copies, with the weights as they are now.

        Args:
            dtype: autocast's, of 16 bits with the exponents of float32.
        """
        assert dtype is not None
        if self._copies is None or self._copies.model is not model:
            self._copies = _Copies(model, dtype, self._add)
        self._copies.install()
        try:
            yield
        finally:
            self._copies.remove()


class _Copies:
    """Copies of a model's matrices, in place of them in its modules from `install` to `remove`."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, add: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        self.model = model
        self._lookups = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        self._uses = [
            (module, name, weight)
            for module in model.modules()
            if not isinstance(module, nn.Embedding)
            for name, weight in module.named_parameters(recurse=False)
            if weight.ndim == 2 and weight.requires_grad
        ]
        self._copies = {weight: nn.Parameter(torch.empty_like(weight, dtype=dtype)) for _, _, weight in self._uses}
        for weight, copy in self._copies.items():
            copy.register_post_accumulate_grad_hook(_adder(weight, add))

    @torch.no_grad()
    def install(self) -> None:
        for weight, copy in self._copies.items():
            copy.copy_(weight)
        for module, name, weight in self._uses:
            setattr(module, name, self._copies[weight])
        for lookup in self._lookups:
            # Autograd adds sparse gradients to a dense sum in place.
            lookup.sparse = True
            if lookup.weight.grad is None:
                lookup.weight.grad = torch.zeros_like(lookup.weight)

    def remove(self) -> None:
        for module, name, weight in self._uses:
            setattr(module, name, weight)
        for lookup in self._lookups:
            lookup.sparse = False


def _adder(weight: nn.Parameter, add: Callable[[torch.Tensor, torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
    """Return a hook that moves the gradient of a copy to the weight's."""

    def move(copy: torch.Tensor) -> None:
        part, copy.grad = copy.grad, None
        assert part is not None
        if weight.grad is None:
            weight.grad = part.to(weight.dtype)
        else:
            add(weight.grad.view(-1), part.view(-1))

    return move
