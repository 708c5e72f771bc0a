"""Tests for the same computation: loss and gradient curves, evaluations and final weights, against tolerances.

Every test is two-sided: a loss that is too low fails like one that is too high.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.records.load import LoadedRecord, get_path

# In the first steps rounding differences are still small, so that a wrong learning rate, mask or target shows far above
# them. Afterwards training amplifies every difference.
EARLY_STEPS = 20
# The final loss is the mean over this share of the steps, since single losses are noisy.
FINAL_SHARE = 0.1


@dataclass(frozen=True)
class Tolerance:
    """One test: its quantity, its limit for each precision, and the reason for the limit."""

    key: str
    measures: str
    limits: Mapping[str, float]
    reason: str


TOLERANCES: tuple[Tolerance, ...] = (
    Tolerance(
        "first_loss",
        "relative difference of the first step's loss",
        {"fp32": 2e-5, "bf16": 5e-4, "fp16": 2e-4},
        "one forward pass from equal weights on an equal batch: nothing but rounding",
    ),
    Tolerance(
        "early_loss",
        f"mean relative difference of losses, steps 2 to {EARLY_STEPS}",
        {"fp32": 2e-4, "bf16": 2e-3, "fp16": 1e-3},
        "a few updates: rounding has not grown yet, a wrong update has",
    ),
    Tolerance(
        "loss_curve",
        f"mean relative difference of losses after step {EARLY_STEPS}",
        {"fp32": 0.02, "bf16": 0.02, "fp16": 0.02},
        "the usual limit in the field; training amplifies rounding, so precision no longer matters",
    ),
    Tolerance(
        "loss_bias",
        f"mean signed relative difference of losses after step {EARLY_STEPS}",
        {"fp32": 0.005, "bf16": 0.005, "fp16": 0.005},
        "rounding errs in both directions; a curve that lies on one side learns faster or slower",
    ),
    Tolerance(
        "final_loss",
        "relative difference of the mean loss of the last tenth of the steps",
        {"fp32": 0.01, "bf16": 0.02, "fp16": 0.02},
        "the result of the training",
    ),
    Tolerance(
        "final_eval",
        "relative difference of the last evaluation's loss",
        {"fp32": 0.01, "bf16": 0.02, "fp16": 0.02},
        "the result of the training, on held-out data",
    ),
    Tolerance(
        "first_gradient",
        "relative difference of the first step's gradient norm",
        {"fp32": 1e-4, "bf16": 0.01, "fp16": 5e-3},
        "one backward pass from equal weights: nothing but rounding",
    ),
    Tolerance(
        "early_gradient",
        f"mean relative difference of gradient norms, steps 2 to {EARLY_STEPS}",
        {"fp32": 5e-3, "bf16": 0.03, "fp16": 0.02},
        "detects layers without a gradient, and masks and scalings that hardly change the loss",
    ),
    Tolerance(
        "gradient_curve",
        f"relative difference of the mean gradient norm after step {EARLY_STEPS}",
        {"fp32": 0.05, "bf16": 0.10, "fp16": 0.10},
        "single norms are chaotic by then, their mean is not",
    ),
    Tolerance(
        "weights",
        "largest relative difference of a parameter's final 2-norm",
        {"fp32": 2e-3, "bf16": 0.05, "fp16": 0.05},
        "detects decay or updates of single parameters that no loss shows; some gradients (those of key biases) are "
        "rounding alone, which AdamW magnifies in reduced precision",
    ),
)


@dataclass(frozen=True)
class ParityResult:
    """Outcome of one test: the worst of all runs."""

    key: str
    measures: str
    limit: float
    value: float | None
    """Positive means above the reference. None where one of the records lacks the data."""
    where: str
    passed: bool | None

    @property
    def text(self) -> str:
        if self.value is None:
            return f"{self.measures}: not in both records"
        sense = ""
        if not self.passed and self.key in ("first_loss", "loss_bias", "final_loss", "final_eval"):
            sense = ", too high" if self.value > 0 else ", too low for the same work"
        return f"{self.measures}: {abs(self.value):.2g} of {self.limit:.2g} allowed{sense}{self.where}"


def compare_computation(reference: LoadedRecord, others: Iterable[LoadedRecord], precision: str) -> list[ParityResult]:
    """Return the result of every test: the worst over `others`, each against the reference run.

    A loss that is not finite (null in the record) fails every test that it is part of.
    """
    runs = list(others)
    findings = []
    for tolerance in TOLERANCES:
        limit = tolerance.limits[precision]
        worst: float | None = None
        where = ""
        for run in runs:
            value = measure(tolerance.key, reference.record, run.record)
            if value is not None and (worst is None or not abs(value) <= abs(worst)):
                worst = value
                where = _where(tolerance.key, reference, run)
        passed = None if worst is None else bool(abs(worst) <= limit)
        findings.append(
            ParityResult(tolerance.key, tolerance.measures, limit, worst, "" if passed is not False else where, passed)
        )
    return findings


def measure(key: str, reference: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Return one test's quantity, or None where a record lacks it or the runs are too short for it."""
    if key == "final_eval":
        return _final_eval(reference, other)
    if key == "weights":
        found = _weight_differences(reference, other)
        return max(found.values(), key=abs) if found else None
    name = "gradient_norm" if "gradient" in key else "train"
    x, y = _curves(get_path(reference, "losses", name), get_path(other, "losses", name))
    if key.startswith("first"):
        x, y = x[:1], y[:1]
    elif key.startswith("early"):
        x, y = x[1:EARLY_STEPS], y[1:EARLY_STEPS]
    elif key == "final_loss":
        count = max(1, round(len(x) * FINAL_SHARE))
        x, y = x[-count:], y[-count:]
    else:
        x, y = x[EARLY_STEPS:], y[EARLY_STEPS:]
    if len(x) == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        if key in ("final_loss", "gradient_curve"):
            return float(y.mean() / x.mean() - 1)
        signed = y / x - 1
        value = float(signed.mean() if key in ("loss_bias", "first_loss", "first_gradient") else np.abs(signed).mean())
    # 0 / 0: two curves of zeros are equal.
    return 0.0 if np.isnan(value) and np.array_equal(x, y) else value


def _curves(reference: Sequence[float | None] | None, other: Sequence[float | None] | None) -> tuple[Any, Any]:
    """Return both curves over their common steps; null becomes NaN."""
    x, y = (np.array(curve or [], dtype=float) for curve in (reference, other))
    steps = min(len(x), len(y))
    return x[:steps], y[:steps]


def _final_eval(reference: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    points = [{point["step"]: point["loss"] for point in record["eval"]["points"]} for record in (reference, other)]
    common = points[0].keys() & points[1].keys()
    if not common:
        return None
    before, after = (found[max(common)] for found in points)
    return float("nan") if before is None or after is None else after / before - 1


def _weight_differences(reference: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    x, y = (get_path(record, "weights", "final_norms") or {} for record in (reference, other))
    if len(get_path(reference, "losses", "train")) != len(get_path(other, "losses", "train")):
        return {}
    nan = float("nan")
    found = {}
    for name in sorted(x.keys() | y.keys()):
        before, after = x.get(name), y.get(name)
        if before is None or after is None:
            found[name] = nan
        else:
            found[name] = 0.0 if before == after else (after / before - 1 if before else float("inf"))
    # max() must not pass over a NaN.
    return {name: value for name, value in found.items() if np.isnan(value)} or found


def _where(key: str, reference: LoadedRecord, run: LoadedRecord) -> str:
    if key == "weights":
        found = _weight_differences(reference.record, run.record)
        return f" ({max(found, key=lambda name: abs(found[name]))}, {run.path.parent})"
    return f" ({run.path.parent})"
