"""Differences of the numerical fingerprints of two records (harness/training/fingerprint.py makes them).

Every function yields (difference, where), and nothing if a record lacks what is needed. Those that judge a single
record against itself yield None in place of a difference for each thing that it lacks.
"""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any

import numpy as np

from harness.config import WorkloadConfig
from harness.records.load import get_path
from harness.schedule import learning_rate
from harness.text import counted

Record = Mapping[str, Any]
Sketch = Mapping[str, Any]
"""`norm`, and `projections` as float32 in base 64 (harness/workload/sketch.py)."""
Own = tuple[float | None, str]
"""A record's difference from what it should be, None if it lacks what is needed; and where."""
# Looks with the first update of a parameter, and with any.
FIRST_UPDATES = (("first_step",), ("repeated_step",))
UPDATES = (*FIRST_UPDATES, ("short_training", "fp32"), ("short_training", "own"))
# Less is never measured in bf16 or fp16. A run without a fingerprint may have a high learning rate.
MIN_AMPLIFICATION = 1e-7
UNKNOWN_AMPLIFICATION = {"losses": 5e-4, "gradient_norms": 2.5e-2}


def distance(reference: Sketch | None, other: Sketch | None) -> float:
    """Return the estimated distance of two tensors, relative to the reference's norm; NaN if one is missing."""
    if reference is None or other is None:
        return math.nan
    if reference["norm"] is None or other["norm"] is None:
        return math.nan
    difference = math.sqrt(float(np.mean(np.square(_projections(reference) - _projections(other)))))
    if difference == 0.0:
        return 0.0
    return difference / reference["norm"] if reference["norm"] else math.inf


def _projections(sketch: Sketch) -> np.ndarray:
    return np.frombuffer(base64.b64decode(sketch["projections"]), dtype="<f4").astype(np.float64)


def fp32_activations(reference: Record, other: Record) -> Iterator[tuple[float, str]]:
    """Relative distances of each block's output, and of the last norm's, in float32 from the initial weights."""
    x, y = (get_path(record, "fingerprint", "fp32", "activations") for record in (reference, other))
    if x is None or y is None:
        return
    for index in range(max(len(x), len(y))):
        found = distance(*(sketches[index] if index < len(sketches) else None for sketches in (x, y)))
        yield found, f"block {index}" if index < len(x) - 1 else "last norm"


def fp32_gradients(reference: Record, other: Record) -> Iterator[tuple[float, str]]:
    """Relative distances of each parameter's gradient in float32 from the initial weights."""
    yield from _gradient_distances(reference, other, "fp32")


def first_gradient(reference: Record, other: Record) -> Iterator[tuple[float, str]]:
    """Distances of each parameter's gradient in the first step, in multiples of what the run's precision explains.

    That is the mean of both runs' own median distances from float32, which grows with the depth of a model as rounding
    does. Runs in float32 have no such distance: theirs are relative to the gradient's norm.
    """
    unit = _rounding(reference, other)
    for value, name in _gradient_distances(reference, other, "first_step"):
        yield value / unit, name


def first_gradients(reference: Record, other: Record) -> Iterator[tuple[float, str]]:
    """The median of `first_gradient` over all parameters."""
    found = [value for value, _ in first_gradient(reference, other)]
    if found:
        yield math.nan if any(map(math.isnan, found)) else statistics.median(found), ""


def _rounding(reference: Record, other: Record) -> float:
    own = [get_path(record, "fingerprint", "distances_to_fp32", "gradients") for record in (reference, other)]
    medians = [_median(distances.values()) for distances in own if distances]
    known = [median for median in medians if median]
    return statistics.mean(known) if known else 1.0


def _gradient_distances(reference: Record, other: Record, look: str) -> Iterator[tuple[float, str]]:
    x, y = (get_path(record, "fingerprint", look, "gradients") for record in (reference, other))
    if x is None or y is None:
        return
    for name in sorted(x.keys() | y.keys()):
        yield distance(x.get(name), y.get(name)), name


def number_format(reference: Record, other: Record) -> Iterator[tuple[float, str]]:
    """Logarithm of the ratio of the median distances between the gradients in the run's precision and in float32."""
    x, y = (get_path(record, "fingerprint", "distances_to_fp32", "gradients") for record in (reference, other))
    if x and y:
        yield _log_ratio(_median(x.values()), _median(y.values())), ""


def number_format_layer(reference: Record, other: Record) -> Iterator[tuple[float, str]]:
    """The same for every parameter's gradient, and for every block's output."""
    x, y = (get_path(record, "fingerprint", "distances_to_fp32") for record in (reference, other))
    if x is None or y is None:
        return
    for name in sorted(x["gradients"].keys() | y["gradients"].keys()):
        yield _log_ratio(x["gradients"].get(name), y["gradients"].get(name)), name
    for index, (before, after) in enumerate(zip(x["activations"], y["activations"], strict=False)):
        yield _log_ratio(before, after), f"output of block {index}"


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _log_ratio(before: float | None, after: float | None) -> float:
    if before == after == 0.0:
        return 0.0
    return math.log(after / before) if before and after else math.nan


def update(record: Record) -> Iterator[Own]:
    """The run's own updates against AdamW's formula, units in the last place of the weights."""
    yield from _own_updates(record, "weight_error_ulps", "weight", UPDATES)


def moments(record: Record) -> Iterator[Own]:
    """The run's own second moments against AdamW's formula, relative, where they were zero before."""
    yield from _own_updates(record, "moment_error", "moment", FIRST_UPDATES)


def _own_updates(record: Record, key: str, name: str, looks: Sequence[Sequence[str]]) -> Iterator[Own]:
    for look in looks:
        found = get_path(record, "fingerprint", *look, "update")
        if found is not None:
            yield _number(found[key]), found[name]
        elif not _may_lack_update(record, look):
            yield None, ""


def _may_lack_update(record: Record, look: Sequence[str]) -> bool:
    """Return whether an honest run has no update there: fp16 skips its first ones, float32 is not repeated."""
    return get_path(record, "config", "precision") == ("fp32" if look[-1] == "own" else "fp16")


def repeated_step(record: Record) -> Iterator[Own]:
    """The run's own first step against its repetition after the training: loss, gradient norm, gradients."""
    first, again = (get_path(record, "fingerprint", look) for look in ("first_step", "repeated_step"))
    if first is None or again is None:
        yield None, ""
        return
    for key, where in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        yield _relative_difference(first[key], again[key]), where
    if again["distance"] is not None:
        yield _number(again["distance"]), again["gradient"]


def optimizer_steps(record: Record) -> Iterator[Own]:
    """The run's own number of updates, by the optimizer's count, against its steps that were not skipped."""
    counts, skipped = get_path(record, "fingerprint", "optimizer_steps"), get_path(record, "losses", "skipped_steps")
    if counts is None or skipped is None:
        yield None, ""
        return
    expected = len(record["losses"]["train"]) - skipped
    where = f"{counted(counts[0], 'update')} in {counted(expected, 'step')}"
    yield float(max(abs(count - expected) for count in counts)), where


def learning_rates(record: Record) -> Iterator[Own]:
    """The run's own learning rates against the schedule of its config, relative to the peak rate."""
    rates = get_path(record, "losses", "learning_rate")
    if not rates or len(rates) != len(record["losses"]["train"]):
        yield None, ""
        return
    settings = record["config"]["workload"]
    work = WorkloadConfig(**{item.name: settings.get(item.name) for item in fields(WorkloadConfig)})
    # The last one may be zero.
    found = [(_number(rate) - learning_rate(step, work)) / work.learning_rate for step, rate in enumerate(rates, 1)]
    at = max(range(len(found)), key=lambda index: abs(found[index]))
    yield abs(found[at]), f"step {at + 1}"


OWN_TESTS: dict[str, Callable[[Record], Iterator[Own]]] = {
    "update": update, "moments": moments, "learning_rate": learning_rates, "optimizer_steps": optimizer_steps,
    "repeated_step": repeated_step,
}  # fmt: skip


def missing_evidence(record: Record) -> list[str]:
    """Return the tests of a record against itself that it lacks something for. Every run of this harness has it all."""
    return [name for name, test in OWN_TESTS.items() if any(value is None for value, _ in test(record))]


def _relative_difference(before: float | None, after: float | None) -> float:
    """Return the relative difference; two nulls are equal, since the loss scaler of fp16 may skip the first step."""
    if before == after:
        return 0.0
    return abs(_number(after) / before - 1) if before else math.inf


def short_training(reference: Record, other: Record) -> Iterator[tuple[float, str]]:
    """Relative differences of the losses and gradient norms of the short training in float32."""
    curves = [get_path(record, "fingerprint", "short_training", "fp32") for record in (reference, other)]
    if any(curve is None for curve in curves):
        return
    for key, where in (("losses", "loss"), ("gradient_norms", "gradient norm")):
        for step, (before, after) in enumerate(zip_longest(*(curve[key] for curve in curves)), 1):
            yield _relative_difference(before, after), f"{where} of step {step}"


def amplification(reference: Record, other: Record, curve: str) -> float:
    """Return how far the run's precision lies from float32 in the short training: root mean square over its steps.

    Limits of curves are multiples of it, since rounding grows with the learning rate and with the depth of a model: by
    the smaller one of both runs, so that no run can widen its own limits. 1 in float32, whose limits are narrow anyway.

    Args:
        curve: `losses` or `gradient_norms`.
    """
    if reference["config"]["precision"] == "fp32":
        return 1.0
    found = [_amplification(get_path(record, "fingerprint", "short_training"), curve) for record in (reference, other)]
    return max(MIN_AMPLIFICATION, min(found))


def _amplification(briefly: Record | None, curve: str) -> float:
    if briefly is None or briefly["own"] is None:
        return UNKNOWN_AMPLIFICATION[curve]
    pairs = zip(briefly["fp32"][curve], briefly["own"][curve], strict=False)
    squares = [(own / exact - 1) ** 2 for exact, own in pairs if exact and own is not None]
    return math.sqrt(statistics.fmean(squares)) if squares else UNKNOWN_AMPLIFICATION[curve]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
