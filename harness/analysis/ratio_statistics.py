"""Ratios of positive quantities over repeats, with confidence intervals and equivalence tests, on the log scale.

The unit of evidence is one process: its mean step time is one number. Steps within a process share its memory layout,
clocks and neighbors, so that they cannot show how far apart two processes are. Tests and distributions are SciPy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# Error of the two-sided interval and of "faster" or "slower", and of each one-sided equivalence test.
ALPHA = 0.05
OUTLIER_ALPHA = 0.01
# Power of the number of repeats that is suggested: a decision in four of five attempts (Cohen 1988).
WANTED_POWER = 0.8
MAX_REPEATS = 100
# Points at which the distribution of the standard error is evaluated.
QUANTILES = 200
# Batches of a single process's intervals: fewer give a poor estimate of the variance, more are not independent of each
# other (Schmeiser 1982 recommends 10 to 30).
BATCHES = 10
MAX_TREND_VALUES = 500
# Largest relative difference of step times that counts as the same.
DEFAULT_MARGIN = 0.05
# One process a side cannot estimate run-to-run variance. A difference counts only beyond what machines with several
# per cent of noise between processes show (scripts/bench_verdict.py).
SINGLE_RUN_MARGINS = 4


@dataclass(frozen=True)
class Ratio:
    """One quantity of the other side over the reference's, with its interval and the results of the tests."""

    estimate: float
    low: float | None
    high: float | None
    """95 % confidence interval; None where it cannot be estimated."""
    not_slower: bool
    """The one-sided test puts the ratio below 1 + margin."""
    equivalent: bool
    """Both one-sided tests put the ratio inside the margin."""
    differs: bool
    """The interval excludes 1."""
    single_run: bool
    """One process on a side: the interval leaves out run-to-run variance."""
    repeats: tuple[int, int]
    repeats_needed: int | None
    """Repeats a side that would probably decide; None if decided already, or if more than MAX_REPEATS."""


def ratio_of(
    reference: Sequence[float], other: Sequence[float], margin: float, *, plan: bool = True, alpha: float = ALPHA
) -> Ratio:
    """Return the ratio of geometric means, other over reference, of two samples of two or more processes.

    Interval and tests are Welch's (unequal variances) on logarithms. Equivalence is decided by two one-sided
    tests (Schuirmann 1987) against 1 / (1 + margin) and 1 + margin.

    Args:
        reference, other: one positive number a process, two or more each.
        margin: largest difference that counts as the same, as a fraction: 0.05 for 5 %.
        plan: where nothing is decided, also estimate the repeats that would decide (slow).
        alpha: error of the interval, and of each test.
    """
    # The functions of Student's distribution alone: SciPy's t-test checks its arguments thirty times as long as it
    # computes, and a table has thousands of them.
    from scipy import special

    x, y = np.log(np.asarray(reference, float)), np.log(np.asarray(other, float))
    difference = float(y.mean() - x.mean())
    limit = math.log1p(margin)
    variances = [float(side.var(ddof=1)) / len(side) for side in (x, y)]
    error = math.sqrt(sum(variances))
    if error == 0.0:
        # Scripted clocks, not machines: there is no variance.
        return Ratio(
            math.exp(difference), math.exp(difference), math.exp(difference), difference < limit,
            abs(difference) < limit, difference != 0.0, False, (len(x), len(y)), None,
        )  # fmt: skip
    # Welch (1947), with Satterthwaite's degrees of freedom.
    degrees = error**4 / sum(part**2 / (len(side) - 1) for part, side in zip(variances, (x, y), strict=True))
    half = float(special.stdtrit(degrees, 1 - alpha / 2)) * error
    not_slower = bool(special.stdtr(degrees, (difference - limit) / error) < alpha)
    not_faster = bool(special.stdtr(degrees, -(difference + limit) / error) < alpha)
    equivalent, differs = not_slower and not_faster, abs(difference) > half
    needed = None
    if plan and not equivalent and not differs:
        needed = repeats_needed(difference, math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2), limit)
    return Ratio(
        math.exp(difference), math.exp(difference - half), math.exp(difference + half), not_slower, equivalent,
        differs, False, (len(x), len(y)), needed,
    )  # fmt: skip


def single_run_limit(margin: float) -> float:
    """Return the ratio beyond which one process a side shows a difference: noise between processes is no narrower for
    a narrow margin.
    """
    return 1 + SINGLE_RUN_MARGINS * max(margin, DEFAULT_MARGIN)


def single_run_ratio_of(
    reference: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    margin: float,
    means: tuple[Sequence[float], Sequence[float]],
) -> Ratio:
    """Return the ratio where a side has a single process, with an interval from its timed intervals.

    Each process's timed intervals are joined into BATCHES batches in order of time, which keeps most of their
    autocorrelation inside a batch. The confidence interval leaves out run-to-run variance, so that it never supports
    "equivalent", and "differs" only if all of it lies beyond SINGLE_RUN_MARGINS times the margin.

    Args:
        reference, other: step times of the timed intervals of each process, in order, seconds.
        margin: as in `ratio_of`.
        means: each process's mean step time, seconds. The ratio is taken of these, since intervals differ in length.
    """
    from scipy import stats

    sides = [np.concatenate([_batches(process) for process in side]) for side in (reference, other)]
    difference = float(np.log(means[1]).mean() - np.log(means[0]).mean())
    repeats = (len(reference), len(other))
    if min(len(side) for side in sides) < 2:
        return Ratio(math.exp(difference), None, None, False, False, False, True, repeats, 3)
    error = math.sqrt(sum(side.var(ddof=1) / len(side) for side in sides))
    degrees = min(len(side) for side in sides) - 1
    half = float(stats.t.ppf(1 - ALPHA / 2, degrees)) * error
    low, high = math.exp(difference - half), math.exp(difference + half)
    limit = single_run_limit(margin)
    differs = low > limit or high < 1 / limit
    # Three a side are the fewest that give a useful estimate of the variance.
    return Ratio(math.exp(difference), low, high, False, False, differs, True, repeats, None if differs else 3)


def inverse(ratio: Ratio) -> Ratio:
    """Return the ratio of the inverse quantity: speed, where the ratio is of step times."""
    low = None if ratio.high is None else 1 / ratio.high
    high = None if ratio.low is None else 1 / ratio.low
    return replace(ratio, estimate=1 / ratio.estimate, low=low, high=high)


def repeats_needed(difference: float, deviation: float, limit: float) -> int | None:
    """Return the repeats a side that decide with WANTED_POWER, if difference and deviation stay as estimated now.

    Args:
        difference: of the means of logarithms.
        deviation: of one process's logarithm.
        limit: the margin on the log scale.
    """
    for repeats in range(2, MAX_REPEATS + 1):
        if decision_power(difference, deviation, limit, repeats) >= WANTED_POWER:
            return repeats
    return None


def decision_power(difference: float, deviation: float, limit: float, repeats: int) -> float:
    """Return the probability that `repeats` a side lead to "differs" or to "equivalent".

    Given the standard error that the repeats will show, neither is decided where the observed difference lies within
    the interval's half-width, but not far enough inside the margin: a normal probability, averaged over the
    distribution of the standard error (chi with 2 x (repeats - 1) degrees of freedom).
    """
    from scipy import stats

    degrees, error = 2 * (repeats - 1), deviation * math.sqrt(2 / repeats)
    two_sided, one_sided = (float(stats.t.ppf(1 - alpha, degrees)) for alpha in (ALPHA / 2, ALPHA))
    observed = error * np.sqrt(stats.chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, degrees) / degrees)
    outer, inner = two_sided * observed, np.maximum(0.0, limit - one_sided * observed)

    def within(size: np.ndarray) -> np.ndarray:
        return stats.norm.cdf(size, difference, error) - stats.norm.cdf(-size, difference, error)

    undecided = np.where(outer > inner, within(outer) - within(inner), 0.0)
    return 1.0 - float(undecided.mean())


def trend(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the relative change of values from the first to the last, and a 99 % interval of it.

    By the Theil-Sen slope, which is robust against a few outlying values. Its time grows with the square of their
    number: of many values, means of neighbors are used.
    """
    from scipy import stats

    y = np.asarray(values, float)
    if len(y) > MAX_TREND_VALUES:
        y = np.array([part.mean() for part in np.array_split(y, MAX_TREND_VALUES)])
    found: Any = stats.theilslopes(y, alpha=0.99)
    scale = (len(y) - 1) / float(np.median(y))
    return float(found.slope) * scale, float(found.low_slope) * scale, float(found.high_slope) * scale


def outliers(values: Sequence[float], alpha: float = OUTLIER_ALPHA, share_above: float = 0.5) -> list[int]:
    """Return the positions of outlying values by the generalised ESD test (Rosner 1983), in order.

    Unlike rules on the median absolute deviation it keeps its error with three or five values too. Outliers are shown,
    never dropped.

    Args:
        alpha: probability of any in values without one.
        share_above: the part of alpha, between 0 and 1, that is for large values; the rest is for small ones.
    """
    from scipy import special

    y = np.asarray(values, float)
    left, removed, found = list(range(len(y))), [], 0
    for step in range(1, max(1, len(y) // 3) + 1):
        if len(left) < 3 or y[left].std(ddof=1) == 0.0:
            break
        count, deviations = len(left), (y[left] - y[left].mean()) / y[left].std(ddof=1)
        t = special.stdtrit(count - 2, 1 - alpha * np.array([1 - share_above, share_above]) / count)
        below, above = (count - 1) / math.sqrt(count) * np.sqrt(t * t / (count - 2 + t * t))
        # Over the critical value of its side.
        statistics = np.maximum(deviations / above, -deviations / below)
        farthest = int(statistics.argmax())
        removed.append(left.pop(farthest))
        if statistics[farthest] > 1:
            found = step
    return sorted(removed[:found])


def _batches(intervals: Sequence[float]) -> np.ndarray:
    """Return the logarithms of the means of up to BATCHES batches of a process's timed intervals."""
    return np.log([part.mean() for part in np.array_split(np.asarray(intervals, float), min(BATCHES, len(intervals)))])
