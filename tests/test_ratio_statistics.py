"""Ratios with intervals: known results, single runs, and the number of repeats that decides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.analysis.ratio_statistics import (
    Ratio,
    decision_power,
    inverse,
    outliers,
    ratio_of,
    repeats_needed,
    single_run_ratio_of,
    trend,
)

MARGIN = 0.05
QUIET = (0.990, 1.000, 1.010, 0.995, 1.005)


def times(factor: float, scatter: float = 1.0) -> list[float]:
    """Five processes around `factor` seconds, with a standard deviation of 0.8 % times `scatter`."""
    return [factor * math.exp(scatter * math.log(value)) for value in QUIET]


class TestRatio:
    def test_is_of_geometric_means_with_welchs_interval(self) -> None:
        x, y = [1.0, 1.1, 1.2], [2.0, 2.6, 2.3, 2.2]
        found = ratio_of(x, y, MARGIN)
        assert found.estimate == pytest.approx(stats.gmean(y) / stats.gmean(x))
        # Welch and Satterthwaite by hand.
        a, b = np.log(x), np.log(y)
        va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 4
        degrees = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
        half = stats.t.ppf(0.975, degrees) * math.sqrt(va + vb)
        assert found.low == pytest.approx(found.estimate * math.exp(-half))
        assert found.high == pytest.approx(found.estimate * math.exp(half))

    def test_turning_the_question_round_turns_the_answer_round(self) -> None:
        one, two = ratio_of(times(1), times(1.2), MARGIN), ratio_of(times(1.2), times(1), MARGIN)
        assert one.estimate * two.estimate == pytest.approx(1)
        assert one.low is not None
        assert two.high is not None
        assert one.low * two.high == pytest.approx(1)

    @pytest.mark.parametrize(
        ("factor", "scatter", "equivalent", "differs", "not_slower"),
        [
            (1.00, 1.0, True, False, True),
            (1.03, 1.0, True, True, True),  # measurable, yet inside the margin
            (1.20, 1.0, False, True, False),
            (0.80, 1.0, False, True, True),
            (1.00, 10.0, False, False, False),  # noise of 8 %
            (1.05, 1.0, False, True, False),  # on the margin: not shown to be inside
        ],
    )
    def test_decisions(self, factor: float, scatter: float, equivalent: bool, differs: bool, not_slower: bool) -> None:
        found = ratio_of(times(1, scatter), times(factor, scatter), MARGIN)
        assert (found.equivalent, found.differs, found.not_slower) == (equivalent, differs, not_slower)
        assert not found.single_run

    def test_equivalence_is_two_one_sided_tests_and_so_a_90_percent_interval_inside_the_margin(self) -> None:
        source = np.random.default_rng(1)
        for _ in range(200):
            x, y = np.exp(source.normal(0, 0.02, (2, 5)))
            found = ratio_of(list(x), list(y), MARGIN)
            interval = stats.ttest_ind(np.log(y), np.log(x), equal_var=False).confidence_interval(0.90)
            inside = -math.log(1.05) < interval.low and interval.high < math.log(1.05)
            assert found.equivalent == inside

    def test_interval_and_tests_are_those_of_scipys_t_test(self) -> None:
        source = np.random.default_rng(2)
        for number in range(200):
            x, y = source.normal(0, 0.01, 2 + number % 5), source.normal(0.02, 0.03, 2 + number % 7)
            found = ratio_of(list(np.exp(x)), list(np.exp(y)), MARGIN, plan=False)
            welch: Any = stats.ttest_ind(y, x, equal_var=False)
            interval = welch.confidence_interval(0.95)
            assert found.low is not None
            assert found.high is not None
            assert (math.log(found.low), math.log(found.high)) == pytest.approx((interval.low, interval.high), rel=1e-9)
            assert found.differs == (welch.pvalue < 0.05)
            below: Any = stats.ttest_ind(y - math.log1p(MARGIN), x, equal_var=False, alternative="less")
            assert found.not_slower == (below.pvalue < 0.05)

    def test_without_any_scatter_the_difference_is_what_it_is(self) -> None:
        assert ratio_of([1.0, 1.0], [1.0, 1.0], MARGIN).equivalent
        slower = ratio_of([1.0, 1.0], [1.2, 1.2], MARGIN)
        assert slower.differs
        assert not slower.equivalent


def single_run(x: list[list[float]], y: list[list[float]]) -> Ratio:
    return single_run_ratio_of(x, y, MARGIN, ([float(np.mean(b)) for b in x], [float(np.mean(b)) for b in y]))


class TestOneProcessASide:
    def intervals(self, factor: float, seed: int = 1, noise: float = 0.01) -> list[list[float]]:
        return [list(factor * np.exp(np.random.default_rng(seed).normal(0, noise, 40)))]

    def test_of_single_runs_is_marked_and_never_equivalent(self) -> None:
        found = single_run(self.intervals(1, 1, 1e-4), self.intervals(1, 2, 1e-4))
        assert found.single_run
        assert not found.equivalent
        assert not found.not_slower
        assert not found.differs
        assert found.repeats_needed == 3

    @pytest.mark.parametrize(("factor", "differs"), [(1.10, False), (1.15, False), (1.30, True), (0.70, True)])
    def test_only_a_large_difference_is_believed(self, factor: float, differs: bool) -> None:
        assert single_run(self.intervals(1, 1), self.intervals(factor, 2)).differs is differs

    def test_a_single_block_gives_no_interval(self) -> None:
        found = single_run([[1.0]], [[2.0]])
        assert (found.estimate, found.low, found.high, found.differs) == (2.0, None, None, False)

    def test_slow_waves_widen_the_interval(self) -> None:
        """Autocorrelated intervals hold less information than independent ones of the same scatter."""
        wave = [1 + 0.05 * math.sin(2 * math.pi * step / 40) for step in range(40)]
        mixed = list(np.random.default_rng(3).permutation(wave))
        slow, fast = single_run([wave], [wave]), single_run([mixed], [mixed])
        assert slow.high is not None
        assert fast.high is not None
        assert slow.high - 1 > 1.5 * (fast.high - 1)


class TestPlan:
    def test_power_agrees_with_simulation(self) -> None:
        source = np.random.default_rng(2)
        for difference, deviation, repeats in ((0.03, 0.02, 5), (0.0, 0.02, 6), (0.06, 0.05, 10)):
            pairs = np.exp(source.normal(0, deviation, (800, 2, repeats)) + np.array([0, difference])[:, None])
            found = [ratio_of(list(x), list(y), MARGIN, plan=False) for x, y in pairs]
            share = np.mean([r.differs or r.equivalent for r in found])
            assert decision_power(difference, deviation, math.log1p(MARGIN), repeats) == pytest.approx(share, abs=0.05)

    def test_is_the_smallest_number_with_enough_power(self) -> None:
        limit = math.log1p(MARGIN)
        needed = repeats_needed(0.01, 0.05, limit)
        assert needed is not None
        assert decision_power(0.01, 0.05, limit, needed) >= 0.8
        assert decision_power(0.01, 0.05, limit, needed - 1) < 0.8

    def test_says_when_it_is_hopeless(self) -> None:
        # Exactly on the margin: no number of repeats shows which side of it.
        assert repeats_needed(0.0, 1.0, math.log1p(MARGIN)) is None

    def test_is_made_only_where_nothing_is_decided(self) -> None:
        assert ratio_of(times(1), times(1), MARGIN).repeats_needed is None
        needed = ratio_of(times(1, 10), times(1, 10), MARGIN).repeats_needed
        assert needed is not None
        assert needed > 5


def test_trend_is_the_relative_change_over_the_window_and_ignores_outliers() -> None:
    ramp = list(np.linspace(1.0, 1.1, 21))
    assert trend(ramp)[0] == pytest.approx(0.1 / 1.05, rel=1e-6)
    ramp[3] = 9.0
    change, low, high = trend(ramp)
    assert change == pytest.approx(0.1 / 1.05, rel=0.02)
    assert low <= change <= high


def test_outliers_are_rarely_found_in_pure_noise() -> None:
    source = np.random.default_rng(4)
    for count in (3, 5, 10, 20):
        flagged = np.mean([bool(outliers(list(values))) for values in source.normal(1, 0.01, (2000, count))])
        assert flagged < 0.03, count


def test_a_single_run_ratio_is_of_the_means_and_speed_is_its_inverse() -> None:
    found = single_run_ratio_of([[1.0, 1.0, 9.0]], [[2.0, 2.0, 2.0]], MARGIN, ([1.2], [2.0]))
    assert found.estimate == pytest.approx(2.0 / 1.2)
    turned = inverse(found)
    assert turned.low is not None
    assert found.high is not None
    assert (turned.estimate * found.estimate, turned.low * found.high) == pytest.approx((1, 1))


def test_outliers_are_found_by_their_place() -> None:
    assert outliers([1.0, 1.01, 0.99, 1.005, 1.5]) == [4]
    assert outliers([1.0, 1.01, 0.99]) == []
    # Whatever side most of the error is for finds more.
    values = [1.0, 1.01, 0.99, 1.005, 0.995, 1.002, 0.998, 1.007]
    for share, found in ((0.9, [8]), (0.5, []), (0.1, [])):
        assert outliers([*values, 1.028], 0.05, share) == found
    for share, found in ((0.9, []), (0.5, []), (0.1, [8])):
        assert outliers([*values, 0.974], 0.05, share) == found
    assert outliers([1.0, 2.0]) == []
    assert outliers([1.0, 1.0, 1.0, 1.0]) == []
