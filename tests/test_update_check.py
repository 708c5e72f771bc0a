"""Check of the first update: every setting of AdamW that differs shows, and rounding does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from harness.composition import load
from harness.config import TrackConfig, WorkloadConfig
from harness.training.distributed.collectives import Ranks
from harness.training.update_check import check_update, sample_update
from harness.workload.optimizer import build_optimizer
from tests.tiny import TINY

RATE = 1e-3
# Rounding of two operations on a weight, and of the quotient where the weight was zero.
ROUNDING_ULPS = 1.6


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20), nn.Linear(20, 40, bias=False))
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.02)
    return model


def work(**changes: Any) -> WorkloadConfig:
    return replace(load([*TINY]).workload, weight_decay=0.1, **changes)


def checked(actual: WorkloadConfig, adamw: str = "foreach", rate: float = RATE,
            sabotage: Callable[[nn.Module], None] | None = None) -> dict[str, Any]:  # fmt: skip
    """Return the check of an update with the settings `actual`, against those of `work()`."""
    model = small_model()
    optimizer = build_optimizer(model, actual, TrackConfig(name="portable", adamw=adamw))
    for group in optimizer.param_groups:
        group["lr"] = rate
    parameters = dict(model.named_parameters())
    before = sample_update(parameters, optimizer)
    model(torch.randn(64, 30)).square().mean().backward()
    optimizer.step()
    if sabotage is not None:
        with torch.no_grad():
            sabotage(model)
    return check_update(before, sample_update(parameters, optimizer), parameters, work(), RATE, Ranks())


@pytest.mark.parametrize("adamw", ["for_loop", "foreach", "fused"])
def test_an_honest_update_differs_by_rounding(adamw: str) -> None:
    found = checked(work(), adamw)
    assert found["weight_error_ulps"] < ROUNDING_ULPS
    assert found["moment_error"] < 1e-6


@pytest.mark.parametrize(
    "changes",
    [{"weight_decay": 0.0}, {"weight_decay": 0.099}, {"epsilon": 1e-6}, {"beta1": 0.899}],
    ids=str,
)
def test_another_setting_shows_in_the_weights(changes: dict[str, float]) -> None:
    assert checked(replace(work(), **changes))["weight_error_ulps"] > 3 * ROUNDING_ULPS


def test_another_second_beta_shows_in_the_moments() -> None:
    assert checked(replace(work(), beta2=0.951))["moment_error"] > 1e-3


def test_another_learning_rate_shows() -> None:
    assert checked(work(), rate=1.001 * RATE)["weight_error_ulps"] > 3 * ROUNDING_ULPS


def round_weights(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16().float())


def decay_norms(model: nn.Module) -> None:
    model[1].weight.mul_(1 - RATE * 0.1)  # pyright: ignore


def freeze_last(model: nn.Module) -> None:
    model[2].weight.copy_(small_model()[2].weight)  # pyright: ignore


@pytest.mark.parametrize(
    ("sabotage", "parameter"), [(round_weights, None), (decay_norms, "1.weight"), (freeze_last, "2.weight")]
)
def test_other_changes_of_weights_show(sabotage: Callable[[nn.Module], None], parameter: str | None) -> None:
    found = checked(work(), sabotage=sabotage)
    assert found["weight_error_ulps"] > 3 * ROUNDING_ULPS
    assert parameter in (None, found["weight"])
