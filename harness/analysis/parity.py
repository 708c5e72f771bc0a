"""Tests for the same computation: numerical fingerprints, curves, evaluations and weights, against measured limits.

Every limit is a multiple of the largest difference measured between honest runs (calibration.py). Every test is
two-sided: a loss that is too low fails like one that is too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from harness.analysis import fingerprint
from harness.analysis.calibration import Calibration, segment_length, segment_of, segments
from harness.config import product_format
from harness.records.load import LoadedRecord, get_path

Record = Mapping[str, Any]
# A single step's difference is judged against those of as many steps before and after it.
SPIKE_NEIGHBORS = 10
SPIKE_SHARE = 0.05
MAX_WINDOWS = 1 << 16
# The differences that rounding makes in the first 60 steps of a training that amplifies little.
SPIKE_FLOOR = {
    "train": {"fp32": 3e-7, "bf16": 5e-5, "fp16": 1e-5},
    "gradient_norm": {"fp32": 1e-6, "bf16": 1e-3, "fp16": 2e-4},
}


@dataclass(frozen=True)
class Difference:
    """One measured difference of two runs."""

    value: float | None
    """Positive means above the reference, in a test with a sign. NaN if one run has a value that is not finite; None if
    a run lacks evidence that the other may have: the test is not passed without it."""
    segment: int = 0
    where: str = ""
    """The steps, or the parameter, as in "steps 21 to 60"."""


@dataclass(frozen=True)
class ParityTest:
    """One test: its quantity, how it is measured, and why it is there."""

    key: str
    measures: str
    differences: Callable[[Record, Record], Iterable[Difference]]
    detects: str
    multiple: float = 10.0
    """The limit, as a multiple of the largest honest difference."""
    unit: Callable[[Record, Record], float] = lambda reference, other: 1.0
    """Unit of the honest differences, by the two runs' own fingerprints."""
    signed: bool = False
    by_segment: bool = False
    """True if differences belong to segments of the training."""


@dataclass(frozen=True)
class ParityResult:
    """Outcome of one test: the worst of all runs and segments, as a share of its limit."""

    key: str
    measures: str
    limit: float
    value: float | None
    """None where a record lacks the data."""
    where: str
    passed: bool | None
    signed: bool = False
    share: float = 0.0
    """The difference as a share of the limit."""

    @property
    def text(self) -> str:
        if self.value is None:
            return f"{self.measures}: not in all records"
        sense = ""
        if self.passed is False and self.signed:
            sense = ", too high" if self.value > 0 else ", too low for the same work"
        return f"{self.measures}: {abs(self.value):.2g} of {self.limit:.2g} allowed{sense}{self.where}"


Memo = MutableMapping[tuple[str, int], tuple[list[Difference], float]]
"""Differences of runs to one reference run, with their unit, by test and run: of those that are compared again."""


def compare_computation(
    reference: LoadedRecord,
    others: Iterable[LoadedRecord],
    precision: str,
    calibration: Calibration,
    memo: Memo | None = None,
) -> list[ParityResult]:
    """Return the result of every test: the worst over `others`, each against the reference run.

    A value that is not finite (null in the record) fails every test that it is part of, unless both runs have it.

    Args:
        memo: of the same reference run and of runs that live longer than it.
    """
    runs, known = list(others), {} if memo is None else memo
    return [_judge(test, reference, runs, precision, calibration, known) for test in TESTS]


def _judge(
    test: ParityTest,
    reference: LoadedRecord,
    runs: Sequence[LoadedRecord],
    precision: str,
    calibration: Calibration,
    memo: Memo,
) -> ParityResult:
    worst: tuple[float, Difference, float, LoadedRecord] | None = None
    unchecked = False
    for run in runs:
        if (test.key, id(run)) not in memo:
            differences = list(test.differences(reference.record, run.record))
            memo[test.key, id(run)] = differences, test.unit(reference.record, run.record)
        differences, unit = memo[test.key, id(run)]
        unchecked |= not differences or any(difference.value is None for difference in differences)
        for difference in differences:
            if difference.value is None:
                continue
            limit = unit * test.multiple * calibration.honest(test.key, precision, difference.segment)
            share = abs(difference.value) / limit if limit else math.inf if difference.value else 0.0
            # A NaN is worse than any number.
            if worst is None or not share <= worst[0]:
                worst = (math.inf if math.isnan(share) else share, difference, limit, run)
    if worst is None or (unchecked and worst[0] <= 1.0):
        limit = test.multiple * calibration.honest(test.key, precision)
        return ParityResult(test.key, test.measures, limit, None, "", None, test.signed)
    share, difference, limit, run = worst
    passed = share <= 1.0
    where = [difference.where] if difference.where else []
    where += [] if passed else [str(run.path.parent)]
    shown = f" ({', '.join(where)})" if where else ""
    return ParityResult(test.key, test.measures, limit, difference.value, shown, passed, test.signed, share)


def _relative(reference: Record, other: Record, curve: str) -> np.ndarray:
    """Return the relative differences of two curves over their common steps.

    Values that neither run has (null, as the norm of an overflowed gradient) are equal; one that only one has is NaN.
    """
    x, y = (
        np.array([math.nan if value is None else value for value in get_path(record, "losses", curve) or []], float)
        for record in (reference, other)
    )
    steps = min(len(x), len(y))
    x, y = x[:steps], y[:steps]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = y / x - 1
    found[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
    return found


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _largest(curve: str) -> Callable[[Record, Record], Iterator[Difference]]:
    def differences(reference: Record, other: Record) -> Iterator[Difference]:
        found = _relative(reference, other, curve)
        for number, first, last in segments(len(found)):
            part = found[first - 1 : last]
            at = int(np.argmax(np.where(np.isnan(part), math.inf, np.abs(part))))
            yield Difference(float(part[at]), number, _steps(first + at, first + at))

    return differences


def _typical(curve: str) -> Callable[[Record, Record], Iterator[Difference]]:
    def differences(reference: Record, other: Record) -> Iterator[Difference]:
        found = _relative(reference, other, curve)
        for number, first, last in segments(len(found)):
            if number:
                part = found[first - 1 : last]
                yield Difference(float(np.sqrt(np.mean(np.square(part)))), number, _steps(first, last))

    return differences


def _bias(curve: str) -> Callable[[Record, Record], Iterator[Difference]]:
    def differences(reference: Record, other: Record) -> Iterator[Difference]:
        found = _relative(reference, other, curve)
        for number, first, last in segments(len(found)):
            # The mean of a few steps is as noisy as one of them.
            if number and 2 * (last - first + 1) >= segment_length(number):
                yield Difference(float(found[first - 1 : last].mean()), number, _steps(first, last))

    return differences


def _common_evaluations(reference: Record, other: Record) -> list[int]:
    """Return the steps after which both runs evaluated."""
    one, two = ({point["step"] for point in record["eval"]["points"]} for record in (reference, other))
    return sorted(one & two)


def _evaluations(reference: Record, other: Record) -> Iterator[Difference]:
    points = [{point["step"]: point["loss"] for point in record["eval"]["points"]} for record in (reference, other)]
    for step in _common_evaluations(reference, other):
        before, after = (found[step] for found in points)
        value = math.nan if before is None or after is None else after / before - 1
        yield Difference(value, segment_of(step), _steps(step, step))


def _evaluation_spikes(reference: Record, other: Record) -> Iterator[Difference]:
    """Yield each evaluation's difference, relative to the median difference of the training losses around it."""
    size, floor = np.abs(_relative(reference, other, "train")), _spike_floor("train", reference)
    for difference, step in zip(_evaluations(reference, other), _common_evaluations(reference, other), strict=True):
        around = size[max(0, step - SPIKE_NEIGHBORS) : step + SPIKE_NEIGHBORS]
        if len(around) and difference.value is not None:
            yield Difference(difference.value / max(float(np.median(around)), floor), 0, difference.where)


def _spike_floor(curve: str, reference: Record) -> float:
    return SPIKE_FLOOR[curve][product_format(reference["config"]["precision"])]


def _weights(reference: Record, other: Record) -> Iterator[Difference]:
    x, y = (get_path(record, "weights", "final_norms") or {} for record in (reference, other))
    steps = len(get_path(reference, "losses", "train"))
    if steps == 0 or steps != len(get_path(other, "losses", "train")):
        return
    for name in sorted(x.keys() | y.keys()):
        before, after = x.get(name), y.get(name)
        if before is None or after is None:
            value = math.nan
        else:
            value = 0.0 if before == after else (after / before - 1 if before else math.inf)
        yield Difference(value, segment_of(steps), name)


def _spikes(curve: str, share: float = 0.0) -> Callable[[Record, Record], Iterator[Difference]]:
    """Return the largest of the steps' differences, each relative to the median of its neighbors', or the mean of the
    largest `share` of them.
    """

    def differences(reference: Record, other: Record) -> Iterator[Difference]:
        found = _relative(reference, other, curve)
        if len(found) <= SPIKE_NEIGHBORS:
            return
        size, floor = np.abs(found), _spike_floor(curve, reference)
        typical = medians_of_neighbors(size)
        # Values that are not finite belong to the other tests.
        spikes = np.nan_to_num(size / np.maximum(typical, floor), nan=0.0, posinf=0.0)
        largest = np.argsort(spikes)[-max(1, round(share * len(spikes))) :]
        where = _steps(int(largest[-1]) + 1, int(largest[-1]) + 1) if share == 0.0 else ""
        yield Difference(float(spikes[largest].mean()), 0, where)

    return differences


def _median(values: np.ndarray) -> float:
    """Return np.median(values), ten times as fast for a few of them."""
    ordered = np.sort(values)
    # NaN is last, and then the median.
    if len(ordered) == 0 or np.isnan(ordered[-1]):
        return math.nan
    middle = len(ordered) // 2
    return float(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def medians_of_neighbors(values: np.ndarray) -> np.ndarray:
    """Return for each value the median of up to SPIKE_NEIGHBORS values before it and as many after it."""
    steps, reach = len(values), SPIKE_NEIGHBORS
    found = np.empty(steps)
    for step in (*range(min(reach, steps)), *range(max(reach, steps - reach), steps)):
        first = max(0, step - reach)
        found[step] = _median(np.concatenate([values[first:step], values[step + 1 : step + reach + 1]]))
    # The others have all their neighbors. In parts, whose copies fit into the memory however long a training is.
    for first in range(reach, steps - reach, MAX_WINDOWS):
        last = min(first + MAX_WINDOWS, steps - reach)
        windows = np.lib.stride_tricks.sliding_window_view(values[first - reach : last + reach], 2 * reach + 1)
        found[first:last] = np.median(np.delete(windows, reach, axis=1), axis=1)
    return found


def _each(measure: Callable[[Record, Record], Iterable[tuple[float, str]]]) -> Any:
    """Return the differences of two records' fingerprints; none if one of them has no fingerprint."""

    def differences(reference: Record, other: Record) -> Iterator[Difference]:
        for value, where in measure(reference, other):
            yield Difference(value, 0, where)

    return differences


def _own(name: str) -> Callable[[Record, Record], Iterator[Difference]]:
    """Return the differences of each of two records from what it should be by itself."""

    def differences(reference: Record, other: Record) -> Iterator[Difference]:
        for record in (reference, other):
            for value, where in fingerprint.OWN_TESTS[name](record):
                yield Difference(value, 0, where)

    return differences


def _amplification(curve: str) -> Callable[[Record, Record], float]:
    return partial(fingerprint.amplification, curve=curve)


# The distances of a number format and the rounding of one update are bounded, so that a smaller multiple is as safe.
TESTS: tuple[ParityTest, ...] = (
    ParityTest(
        "fp32_activations",
        "output of a block in float32, before the training",
        _each(fingerprint.fp32_activations),
        "another forward pass: mask, positions, norms, activation",
    ),
    ParityTest(
        "fp32_gradients",
        "gradient of a parameter in float32, before the training",
        _each(fingerprint.fp32_gradients),
        "another loss, backward pass, clipping or division of the batch",
    ),
    ParityTest(
        "short_training",
        "short training in float32 from the initial weights: losses and gradient norms",
        _each(fingerprint.short_training),
        "faults that need several steps: updates that are lost, weights that are stale",
    ),
    ParityTest(
        "number_format",
        "distance of the gradients from those in float32, logarithm of the ratio",
        _each(fingerprint.number_format),
        "another number format than the precision names",
        multiple=4.0,
    ),
    ParityTest(
        "number_format_layer",
        "distance of one parameter or block from float32, logarithm of the ratio",
        _each(fingerprint.number_format_layer),
        "another number format in one layer",
        multiple=3.0,
    ),
    ParityTest(
        "first_gradients",
        "gradients of the first step, median of the parameters, against the number format's rounding",
        _each(fingerprint.first_gradients),
        "a training that is not what was shown before it",
        multiple=3.0,
    ),
    ParityTest(
        "first_gradient",
        "gradient of a parameter in the first step, against the number format's rounding",
        _each(fingerprint.first_gradient),
        "the same in one layer",
        multiple=3.0,
    ),
    ParityTest(
        "update",
        "updates of the first step and of the short training against AdamW's formula, units in the last place",
        _own("update"),
        "weight decay, epsilon, learning rate; weights that are rounded",
        multiple=3.0,
    ),
    ParityTest(
        "moments",
        "second moments of the first update against AdamW's formula",
        _own("moments"),
        "other betas",
    ),
    ParityTest(
        "learning_rate",
        "learning rates against the schedule",
        _own("learning_rate"),
        "another learning rate in any step",
    ),
    ParityTest(
        "optimizer_steps",
        "updates of a parameter, difference from the number of steps",
        _own("optimizer_steps"),
        "updates that were skipped, or done twice",
    ),
    ParityTest(
        "repeated_step",
        "first step, repeated after the training",
        _own("repeated_step"),
        "a program that changed during the training",
    ),
    ParityTest(
        "loss_spike",
        "loss of a step, in differences of the steps around it",
        _spikes("train"),
        "single steps on other data or without an update, however much a training amplifies rounding",
        multiple=2.0,
    ),
    ParityTest(
        "loss_spikes",
        "losses of steps, in differences of the steps around them, mean of the largest twentieth",
        _spikes("train", SPIKE_SHARE),
        "the same in every k-th step",
        multiple=1.5,
    ),
    ParityTest(
        "gradient_spike",
        "gradient norm of a step, in differences of the steps around it",
        _spikes("gradient_norm"),
        "single backward passes that were skipped, repeated or scaled",
        multiple=2.0,
    ),
    ParityTest(
        "gradient_spikes",
        "gradient norms of steps, in differences of the steps around them, mean of the largest twentieth",
        _spikes("gradient_norm", SPIKE_SHARE),
        "the same in every k-th step",
        multiple=1.5,
    ),
    ParityTest(
        "loss_step",
        "loss of a single step",
        _largest("train"),
        "single steps that are far off",
        signed=True,
        multiple=4.0,
        unit=_amplification("losses"),
        by_segment=True,
    ),
    ParityTest(
        "loss_curve",
        "losses, root mean square",
        _typical("train"),
        "another computation in all steps",
        multiple=4.0,
        unit=_amplification("losses"),
        by_segment=True,
    ),
    ParityTest(
        "loss_bias",
        "losses, mean",
        _bias("train"),
        "rounding errs in both directions; a curve on one side learns faster or slower",
        signed=True,
        multiple=4.0,
        unit=_amplification("losses"),
        by_segment=True,
    ),
    ParityTest(
        "gradient_step",
        "gradient norm of a single step",
        _largest("gradient_norm"),
        "backward passes that were skipped or repeated",
        signed=True,
        multiple=4.0,
        unit=_amplification("gradient_norms"),
        by_segment=True,
    ),
    ParityTest(
        "gradient_curve",
        "gradient norms, root mean square",
        _typical("gradient_norm"),
        "layers without a gradient; masks and scalings that hardly change the loss",
        multiple=4.0,
        unit=_amplification("gradient_norms"),
        by_segment=True,
    ),
    ParityTest(
        "evaluation",
        "loss of an evaluation",
        _evaluations,
        "another result on held-out data",
        signed=True,
        multiple=4.0,
        unit=_amplification("losses"),
        by_segment=True,
    ),
    ParityTest(
        "evaluation_spike",
        "loss of an evaluation, in differences of the training losses around it",
        _evaluation_spikes,
        "another evaluation than of the weights that were trained",
        multiple=3.0,
        signed=True,
    ),
    ParityTest(
        "weights",
        "2-norm of a parameter after the training",
        _weights,
        "decay or updates of single parameters",
        multiple=5.0,
        by_segment=True,
    ),
)
