"""`python -m tests.memory_probe NAME OVERRIDES...`: one process of a run, which writes what it held to NAME-RANK.json.

Counted from PyTorch's own objects: parameters, gradients, optimizer state, and the storages that autograd saves.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def local(tensor: Any) -> torch.Tensor:
    """Return the tensor within a DTensor, and within the result of a collective under way."""
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return getattr(tensor, "elem", tensor)


def size(tensors: Iterable[Any]) -> int:
    """Return the bytes of the storages, each once."""
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
                for part in map(local, tensors)}.values())  # fmt: skip


def install(path: Path) -> None:
    from harness.backends.eager import EagerStep
    from harness.workload.model import Transformer

    found: dict[str, int] = {}
    sizes: list[int] = []
    forward, update = Transformer.forward, EagerStep._update

    def counted_forward(self: Any, *inputs: Any, **named: Any) -> Any:
        saved: list[Any] = []

        def keep(tensor: Any) -> Any:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = forward(self, *inputs, **named)
        # What does not come with each micro-batch: weights, rotary tables; and the inputs, which others made.
        others = [*self.parameters(), *(self._rotary or ()), *inputs, *named.values()]
        known = {local(tensor).untyped_storage().data_ptr() for tensor in others}
        # The loss, or what is sent to the next stage, stays until the backward pass too.
        kept = [tensor for tensor in (*saved, output) if local(tensor).untyped_storage().data_ptr() not in known]
        sizes.append(size(kept))
        return output

    def counted_update(self: Any) -> Any:
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        found["parameters"] = sum(local(parameter).numel() for parameter in parameters)
        found["weight_bytes"] = size(parameters)
        found["gradient_bytes"] = size(parameter.grad for parameter in parameters)
        # Of a forward pass: the mean, if a rank has several stages.
        found["activation_bytes"] = sum(sizes) // len(sizes)
        sizes.clear()
        norm = update(self)
        states = self._optimizer.state.values()
        found["moment_bytes"] = size(value for state in states for value in state.values())
        path.write_text(json.dumps(found))
        return norm

    Transformer.forward = counted_forward
    EagerStep._update = counted_update


def main(argv: list[str]) -> int:
    from harness.__main__ import main as harness

    install(Path(f"{argv[0]}-{os.environ.get('RANK', '0')}.json"))
    return harness(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
