"""Tables of the rotary positions, with the scalings that published models use for longer contexts."""

from __future__ import annotations

import math

import numpy as np
import torch

from harness.config import RopeScalingConfig


def rotary_tables(
    length: int, size: int, theta: float, scaling: RopeScalingConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, float32 [length, size] each, computed on the CPU so that devices agree.

    Args:
        size: of one head.
    """
    frequencies, factor = rotary_frequencies(scaling or RopeScalingConfig(), size, theta)
    angles = np.outer(np.arange(length, dtype=np.float64), frequencies)
    both_halves = np.concatenate((angles, angles), axis=1)
    cos, sin = (torch.from_numpy((factor * f(both_halves)).astype(np.float32)) for f in (np.cos, np.sin))
    return cos, sin


def rotary_frequencies(scaling: RopeScalingConfig, size: int, theta: float) -> tuple[np.ndarray, float]:
    """Return the angle per position of each pair of a head's elements, float64 [size / 2], and a factor of both tables.

    Args:
        size: of one head.
    """
    plain = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    if scaling.rope_type == "linear":
        return plain / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.rope_type == "yarn":
        factor = scaling.attention_factor
        return _yarn(plain, scaling, theta), 0.1 * math.log(scaling.factor) + 1 if factor is None else factor
    return plain, 1.0


def _llama3(plain: np.ndarray, scaling: RopeScalingConfig) -> np.ndarray:
    """Stretch long wavelengths in full, short ones not at all, and those between in proportion (Meta's Llama 3.1)."""
    assert scaling.original_max_position_embeddings is not None
    turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _yarn(plain: np.ndarray, scaling: RopeScalingConfig, theta: float) -> np.ndarray:
    """Stretch by parts (Peng et al. 2023, section 3.2), between whole pairs of elements as the published code does."""
    assert scaling.original_max_position_embeddings is not None
    size = 2 * len(plain)

    def pair_with(turns: float) -> float:
        """Return the index of the pair, as a real number, that makes this number of turns over the original context."""
        wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)  # type: ignore[operator]
        return size * math.log(wavelength) / (2 * math.log(theta))

    first = max(math.floor(pair_with(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with(scaling.beta_slow)), size - 1)
    # A step in place of a ramp of length zero.
    ramp = np.clip((np.arange(len(plain)) - first) / max(last - first, 1e-3), 0.0, 1.0)
    return (1 - ramp) * plain + ramp * plain / scaling.factor
