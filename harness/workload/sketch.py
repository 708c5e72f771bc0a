"""Sketches of tensors: random projections, from which the distance of two tensors on two machines follows.

With a and b vectors of random signs, (a^T X b)^2 has the mean |X|^2 (Alon, Matias and Szegedy 1996, for one vector),
so that the mean of (a^T X b - a^T Y b)^2 over several pairs estimates |X - Y|^2: with 64 pairs to about a fifth. The
signs come from Philox and depend on the tensor's name alone; a rank with some rows of a tensor computes its part of
the sums.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.workload.initialization import own_part
from harness.workload.model import compared_name
from harness.workload.philox import stream_key, words

SIGNS = 8
SKETCH_SIZE = SIGNS * SIGNS
_BYTES_PER_WORD = 8
# Projection (i, j) uses the i-th row vector and the j-th column vector. In order of diagonals, so that the first few
# projections already use many different vectors.
_ORDER = [SIGNS * i + (i + diagonal) % SIGNS for diagonal in range(SIGNS) for i in range(SIGNS)]


@dataclass(frozen=True)
class Sketch:
    """Norm and projections of one tensor, over all ranks."""

    norm: float
    values: np.ndarray
    """float64 [SKETCH_SIZE], rounded to float32, so that a text holds them exactly."""

    def distance(self, other: Sketch) -> float:
        """Return the estimate of |self - other| / |other|; infinity if only `other` is zero."""
        difference = math.sqrt(float(np.mean(np.square(self.values - other.values))))
        return difference / other.norm if other.norm else 0.0 if difference == 0.0 else math.inf

    def scaled(self, factor: float) -> Sketch:
        return Sketch(self.norm * factor, _rounded(self.values * factor))

    def to_text(self, count: int = SKETCH_SIZE) -> str:
        """Return the first `count` projections: float32, little-endian, in base 64."""
        return base64.b64encode(self.values[:count].astype("<f4").tobytes()).decode()

    @classmethod
    def from_text(cls, norm: float, text: str) -> Sketch:
        return cls(norm, np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64))


ZERO = Sketch(0.0, np.zeros(SKETCH_SIZE))


def sketch_all(tensors: Mapping[str, torch.Tensor], gather: Callable[[Any], list[Any]]) -> dict[str, Sketch]:
    """Return the sketch of every tensor, by `compared_name`. Collective; synchronizes once.

    Args:
        tensors: float32, by parameter's name, whole or distributed (DTensors); of copies, those of one rank.
        gather: returns every rank's value, on every rank.
    """
    parts = {name: own_sums(name, tensor) for name, tensor in tensors.items()}
    own: dict[str, list[float]] = {}
    if parts:
        own = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
    found: dict[str, np.ndarray] = {}
    for rank in gather(own):
        for name, values in rank.items():
            found[compared_name(name)] = found.get(compared_name(name), np.zeros(SKETCH_SIZE + 1)) + values
    return {name: Sketch(math.sqrt(values[0]), _rounded(values[1:])) for name, values in found.items()}


def own_sums(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor's squared norm and projections: float32 [1 + SKETCH_SIZE], on the device."""
    local, rows, columns = own_part(tensor)
    if not local.numel():
        return torch.zeros(1 + SKETCH_SIZE, device=local.device)
    matrix = local.detach().float().reshape(len(rows), -1)
    if tensor.dim() == 1:
        projections = (_signs(name, "elements", rows, SKETCH_SIZE).to(matrix.device).T @ matrix).flatten()
    else:
        left = _signs(name, "rows", rows, SIGNS).to(matrix.device)
        right = _signs(name, "columns", columns, SIGNS).to(matrix.device)
        projections = (left.T @ matrix @ right).flatten()[_ORDER]
    return torch.cat((matrix.square().sum().view(1), projections))


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)


def _signs(name: str, axis: str, indices: range, count: int) -> torch.Tensor:
    """Return `count` random signs for each index: float32 [indices, count]; `count` is a multiple of 8."""
    width = count // 8
    first, last = indices.start * width, indices.stop * width
    start = first // _BYTES_PER_WORD
    raw = words(stream_key("sketch", name, axis), start, max(0, -(-last // _BYTES_PER_WORD) - start))
    octets = raw.astype("<u8").view(np.uint8)[first - start * _BYTES_PER_WORD :][: last - first]
    bits = np.unpackbits(octets).reshape(len(indices), count)
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)
