"""Check of an optimizer update: a sample of weights and moments, before and after, against AdamW's formula.

It needs neither hooks nor the gradient: the second moment follows from the first, and the weight from both. The formula
is computed in float64 on the host from the workload's settings, never from those of the optimizer that is checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.config import WorkloadConfig
from harness.training.distributed.collectives import Ranks
from harness.workload.initialization import own_part
from harness.workload.philox import stream_key, words

# Elements of a parameter that are compared.
SAMPLES = 64
# Below this a squared gradient loses digits, or is flushed to zero.
MIN_GRADIENT = 1e-15


@dataclass(frozen=True)
class UpdateSample:
    """Some elements of every parameter and of its moments, on the host: float64 [elements] by parameter's name."""

    weights: Mapping[str, np.ndarray]
    first_moments: Mapping[str, np.ndarray]
    second_moments: Mapping[str, np.ndarray]


def sample_update(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> UpdateSample:
    """Read this rank's share of the sampled elements. Moments that do not exist yet are zero."""
    found: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        weights = _sampled(name, parameter)
        found[0][name] = weights
        for values, key in zip(found[1:], ("exp_avg", "exp_avg_sq"), strict=True):
            values[name] = _sampled(name, state[key]) if key in state else np.zeros_like(weights)
    return UpdateSample(*found)


def check_update(before: UpdateSample, after: UpdateSample, parameters: Mapping[str, nn.Parameter],
                 work: WorkloadConfig, rate: float, ranks: Ranks, *, number: int = 1) -> dict[str, Any]:  # fmt: skip
    """Return how far an update lies from AdamW's formula (Loshchilov and Hutter 2019). Collective.

    Args:
        parameters: by name; of copies on several ranks, those of one.
        rate: learning rate of this update.
        number: of the update, from 1.

    Returns:
        `weight_error_ulps`, the root mean square over a parameter's elements of the weight's difference in units in
        the last place of float32, and `moment_error`, the relative difference of the second moment; each of the worst
        parameter, with its name.
    """
    own = {}
    for name, parameter in parameters.items():
        decay = work.weight_decay if parameter.dim() >= 2 else 0.0
        own[name] = _errors(_elements(before, name), _elements(after, name), work, decay, rate, number)
    total: dict[str, np.ndarray] = {}
    for rank in ranks.gather(own):
        for name, errors in rank.items():
            total[name] = total.get(name, np.zeros(4)) + errors
    weights = {name: math.sqrt(errors[0] / max(1.0, errors[1])) for name, errors in total.items()}
    moments = {name: math.sqrt(errors[2] / errors[3]) if errors[3] else 0.0 for name, errors in total.items()}
    worst, worst_moment = (max(found, key=lambda name: found[name]) for found in (weights, moments))
    return {
        "weight_error_ulps": weights[worst],
        "weight": worst,
        "moment_error": moments[worst_moment],
        "moment": worst_moment,
    }


_Elements = tuple[np.ndarray, np.ndarray, np.ndarray]


def _elements(sample: UpdateSample, name: str) -> _Elements:
    return sample.weights[name], sample.first_moments[name], sample.second_moments[name]


def _errors(before: _Elements, after: _Elements, work: WorkloadConfig, decay: float, rate: float,
            number: int) -> np.ndarray:  # fmt: skip
    """Return sums over elements: squared weight errors, their count, squared moment errors, squared moments."""
    (old, old_first, old_second), (weight, first, second) = before, after
    gradient = (first - work.beta1 * old_first) / (1 - work.beta1)
    expected_second = work.beta2 * old_second + (1 - work.beta2) * gradient**2
    usual = np.abs(gradient) > MIN_GRADIENT
    moment_error = np.square((second - expected_second)[usual]).sum()
    denominator = np.sqrt(second / (1 - work.beta2**number)) + work.epsilon
    expected = old * (1 - rate * decay) - rate / (1 - work.beta1**number) * first / denominator
    ulps = (weight - expected) / np.spacing(np.maximum(np.abs(old), np.abs(weight)).astype(np.float32))
    return np.array([np.square(ulps).sum(), len(ulps), moment_error, np.square(expected_second[usual]).sum()])


def _sampled(name: str, tensor: torch.Tensor) -> np.ndarray:
    """Return this rank's share of the tensor's sampled elements: float64 on the host."""
    local, rows, columns = own_part(tensor.detach())
    width = tensor.numel() // tensor.shape[0]
    picked = words(stream_key("update sample", name), 0, SAMPLES) % np.uint64(tensor.numel())
    places = [divmod(int(index), width) for index in picked]
    own = [(row - rows.start) * len(columns) + column - columns.start for row, column in places
           if row in rows and column in columns]  # fmt: skip
    flat = local.flatten()
    return flat[torch.tensor(own, dtype=torch.int64, device=flat.device)].cpu().double().numpy()
