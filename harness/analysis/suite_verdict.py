"""Verdict on two runs of a suite: each workload by its own gates, then their mean, as that of a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.analysis.cautions import MOVES_TIMES, Caution
from harness.analysis.claims import SUPPORTED, Claim, ClaimVerdict
from harness.analysis.format import percent, ratio, ratio_with_interval
from harness.analysis.ratio_statistics import ALPHA
from harness.analysis.run_group import load_run_groups
from harness.analysis.unit import Unit
from harness.analysis.verdict import (
    DIFFERENT,
    EQUIVALENT,
    FAILED,
    FASTER,
    IMPLAUSIBLE,
    INCONCLUSIVE,
    LESS,
    MORE,
    NOT_COMPARABLE,
    SAME_COMPUTATION,
    SLOWER,
    Comparison,
    Pair,
    caution_names,
    compare,
    unit_to_dict,
)
from harness.errors import RecordError
from harness.records.suite_folder import NotRun, SuiteFolder
from harness.suites import Suite, Workload
from harness.text import capitalized, counted, name_in_sentence

SCHEMA_VERSION = 1
# From the worst on: a suite has the worst verdict of its workloads, and no mean.
STOPPING = (DIFFERENT, IMPLAUSIBLE, FAILED, NOT_COMPARABLE)
ON_AVERAGE = "on average, but not row by row"


@dataclass(frozen=True)
class Row:
    """One workload of a suite."""

    workload: Workload
    comparison: Comparison | None
    """Of both sides; None where one has no result."""
    not_run: tuple[tuple[str, NotRun], ...] = ()
    """Labels of the sides without a result, and why."""

    @property
    def pair(self) -> Pair | None:
        """The verdict on the workload."""
        return None if self.comparison is None else self.comparison.pairs[0]

    @property
    def estimate(self) -> float | None:
        """The ratio of step times, other over reference; None where no speed may be stated."""
        return None if self.pair is None or self.pair.headline is None else self.pair.headline.ratio.estimate


@dataclass(frozen=True)
class Mean:
    """Geometric mean of ratios over workloads, as an estimate for all work that the suite is a sample of."""

    estimate: float
    low: float | None
    high: float | None
    """95 % interval; None for one workload."""
    equivalent: bool
    """Both one-sided tests put the mean inside the margin."""
    not_slower: bool
    """The one-sided test puts the mean below 1 + margin."""
    spread: float
    """Standard deviation of the logarithms of the ratios; 0 for one workload."""
    count: int

    @property
    def differs(self) -> bool:
        """The interval excludes 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True)
class SuiteComparison:
    """Two runs of a suite, the other's against the reference's."""

    suite: Suite
    reference: str
    other: str
    """Labels."""
    rows: tuple[Row, ...]
    margin: float
    mean: Mean | None
    """None where a workload's gate has failed, or no speed may be stated."""
    verdict: str
    summary: str
    unit: Unit | None = None
    claim: Claim | None = None
    claim_verdict: ClaimVerdict | None = None

    @property
    def title(self) -> str:
        """Name of the quantity that the ratios are of."""
        return "step time" if self.unit is None else self.unit.title

    @property
    def measured(self) -> list[Row]:
        """The workloads with a ratio, fastest first."""
        return sorted((row for row in self.rows if row.estimate is not None), key=lambda row: row.estimate or 0.0)

    @property
    def single_runs(self) -> list[Pair]:
        """The workloads of which a side has a single process."""
        pairs = [row.pair for row in self.measured if row.pair is not None]
        return [pair for pair in pairs if pair.headline is not None and pair.headline.ratio.single_run]

    @property
    def disturbances(self) -> list[str]:
        """Cautions whose cause moves times, about single processes: it may move all workloads alike."""
        return sorted({caution.name for pair in self.single_runs for caution in pair.cautions} & MOVES_TIMES)

    def is_inside(self, row: Row) -> bool:
        """Return whether a workload's ratio lies inside the margin."""
        return row.estimate is not None and abs(math.log(row.estimate)) <= math.log1p(self.margin)


def mean_ratio(ratios: Sequence[float], weights: Sequence[float], margin: float) -> Mean:
    """Return the weighted geometric mean of ratios, with an interval that treats them as a sample.

    The interval is Student's t of the logarithms, whose spread holds the differences between workloads and the noise of
    their measurements. With weights w_i of sum 1 and n ratios of variance s^2, the mean has the variance s^2 sum w_i^2,
    and sum (x_i - mean)^2 the expectation s^2 (n - 2 + n sum w_i^2). Equivalence is decided by two one-sided tests.

    Args:
        ratios: positive, one or more.
        weights: positive, one a ratio.
        margin: as in `compare`.
    """
    from scipy import stats

    x, w = np.log(np.asarray(ratios, float)), np.asarray(weights, float) / np.sum(weights)
    mean, count = float(w @ x), len(x)
    if count < 2:
        return Mean(math.exp(mean), None, None, False, False, 0.0, count)
    squares = float(w @ w)
    variance = float(np.sum((x - mean) ** 2)) / (count - 2 + count * squares)
    error, limit = math.sqrt(variance * squares), math.log1p(margin)
    half, half_of_test = (float(stats.t.ppf(1 - tail, count - 1)) * error for tail in (ALPHA / 2, ALPHA))
    return Mean(
        math.exp(mean), math.exp(mean - half), math.exp(mean + half), abs(mean) + half_of_test < limit,
        mean + half_of_test < limit, math.sqrt(variance), count,
    )  # fmt: skip


def compare_suites(
    sides: Sequence[SuiteFolder],
    labels: Sequence[str],
    margin: float,
    calibrations: Sequence[Path] = (),
    unit: Unit | None = None,
) -> SuiteComparison:
    """Judge every workload of two runs of a suite, and their mean.

    Args:
        sides: the reference, and the other.
        margin, calibrations, unit: as of `compare`.

    Raises:
        RecordError: they are of different suites, one is not complete, or a record cannot be used.
        ConfigError: a calibration file cannot be used.
    """
    reference, other = sides
    if reference.suite.digest != other.suite.digest:
        raise RecordError(
            f"{other.path}: holds suite {other.suite.name} ({other.suite.digest}), {reference.path} holds "
            f"{reference.suite.name} ({reference.suite.digest}); run the same suite, of the same version, on both sides"
        )
    for side in sides:
        if not side.complete:
            raise RecordError(f"{side.path}: its runs are not complete; give the command that began them again")
    rows = []
    for workload in reference.suite.workloads:
        missing = tuple((label, side.not_run[workload.name]) for label, side in zip(labels, sides, strict=True)
                        if workload.name in side.not_run)  # fmt: skip
        if missing:
            rows.append(Row(workload, None, missing))
            continue
        groups = load_run_groups([side.path / workload.name for side in sides], labels)
        rows.append(Row(workload, compare(groups, margin, calibrations, unit)))
    return judge_rows(reference.suite, (labels[0], labels[1]), rows, margin, unit)


def judge_rows(
    suite: Suite, labels: tuple[str, str], rows: Sequence[Row], margin: float, unit: Unit | None = None
) -> SuiteComparison:
    """Return the verdict on a suite from those on its workloads."""
    found = SuiteComparison(suite, *labels, tuple(rows), margin, None, "", "", unit)
    verdicts = [row.pair.verdict for row in rows if row.pair is not None]
    stopping = next((verdict for verdict in STOPPING if verdict in verdicts), None)
    if stopping is not None:
        return replace(found, verdict=stopping, summary=_stopped(found, stopping))
    if SAME_COMPUTATION in verdicts:
        return replace(found, verdict=SAME_COMPUTATION, summary=_emulated(found))
    measured = found.measured
    if not measured:
        names = " and ".join(map(name_in_sentence, labels))
        return replace(found, verdict=INCONCLUSIVE, summary=f"{names} have no workload in common.{_not_run(found)}")
    estimates = [row.estimate or math.nan for row in measured]
    mean = mean_ratio(estimates, [row.workload.weight for row in measured], margin)
    verdict = INCONCLUSIVE if found.disturbances else _verdict(mean, verdicts, unit)
    judged = replace(found, mean=mean, verdict=verdict)
    return replace(judged, summary=_summary(judged))


def _verdict(mean: Mean, verdicts: Sequence[str], unit: Unit | None) -> str:
    """Return the verdict on the mean, and whether it holds for each workload too."""
    if mean.equivalent:
        word = EQUIVALENT
    elif mean.differs:
        below, above = (FASTER, SLOWER) if unit is None else (LESS, MORE)
        word = below if mean.estimate < 1 else above
    else:
        return INCONCLUSIVE
    return word if set(verdicts) == {word} else f"{word} {ON_AVERAGE}"


def _summary(found: SuiteComparison) -> str:
    mean, measured = found.mean, found.measured
    assert mean is not None
    names = {"reference": name_in_sentence(found.reference), "other": name_in_sentence(found.other)}
    number = f"geometric mean of the {found.title} ratios {ratio_with_interval(mean.estimate, mean.low, mean.high)}"
    sample = f"{counted(mean.count, 'workload')} taken as a sample" if mean.count > 1 else "one workload is no sample"
    inside = sum(map(found.is_inside, measured))
    within = percent(found.margin)
    best, worst = measured[0], measured[-1]
    range_of_rows = (
        f"{inside} of {len(measured)} lie within {within}; best {best.workload.name} {ratio(best.estimate or 0)}, "
        f"worst {worst.workload.name} {ratio(worst.estimate or 0)}, spread {percent(round(math.expm1(mean.spread), 3))}"
    )
    lead = f"{names['other']} against {names['reference']}: {found.verdict}. {capitalized(number)} ({sample})."
    alone = ""
    if found.disturbances:
        alone = f" One process a side shows nothing with {' and '.join(found.disturbances)}: run 3 or more a side."
    elif found.single_runs:
        count = counted(len(found.single_runs), "workload")
        alone = f" One process a side in {count}: cannot estimate run-to-run variance."
    rests_on = "" if found.unit is None else f" {capitalized(_rests_on(found, found.unit))}."
    return f"{lead} {capitalized(range_of_rows)}.{alone}{rests_on}{_not_run(found)}{caution_names(_cautions(found))}"


def _rests_on(found: SuiteComparison, unit: Unit) -> str:
    """Return what the figures rest on, each thing once: workloads may be of several sizes."""
    pairs = [row.pair for row in found.measured if row.pair is not None]
    return "; ".join(dict.fromkeys(unit.describe((pair.reference, pair.other), (0, 1)) for pair in pairs))


def _cautions(found: SuiteComparison) -> list[Caution]:
    return [caution for row in found.rows if row.pair is not None for caution in row.pair.cautions]


def _stopped(found: SuiteComparison, verdict: str) -> str:
    stopped = [row for row in found.rows if row.pair is not None and row.pair.verdict in STOPPING]
    named = "; ".join(f"{row.workload.name}: {row.pair.verdict}" for row in stopped if row.pair is not None)
    names = (name_in_sentence(found.other), name_in_sentence(found.reference))
    return (
        f"{names[0]} against {names[1]}: {verdict}. Of {counted(len(found.rows), 'workload')}: {named}. No mean is "
        f"stated, since leaving them out would choose the workloads.{_not_run(found)}"
    )


def _emulated(found: SuiteComparison) -> str:
    count = sum(row.pair is not None and row.pair.verdict == SAME_COMPUTATION for row in found.rows)
    return (
        f"{name_in_sentence(found.other)} computes the same as {name_in_sentence(found.reference)} in {count} of "
        f"{counted(len(found.rows), 'workload')}; a device is emulated: no speed is stated.{_not_run(found)}"
    )


def _not_run(found: SuiteComparison) -> str:
    """Return a sentence for each side about what it could not run."""
    text, total = "", len(found.rows)
    for label in (found.reference, found.other):
        missing: Mapping[str, NotRun] = {
            row.workload.name: reason for row in found.rows for name, reason in row.not_run if name == label
        }
        if missing:
            named = ", ".join(f"{name} ({reason.status})" for name, reason in missing.items())
            text += f" {capitalized(name_in_sentence(label))} could not run {len(missing)} of {total}: {named}."
    return text


def holds(found: SuiteComparison, expectation: str) -> bool:
    """Return whether the mean shows what was expected; nothing does where a side could not run what the other could."""
    if expectation == SUPPORTED:
        return found.claim_verdict is not None and found.claim_verdict.verdict == SUPPORTED
    if found.mean is None or found.disturbances or any(row.not_run for row in found.rows):
        return False
    mean = found.mean
    return {
        "equivalent": mean.equivalent,
        "faster": mean.differs and mean.estimate < 1,
        "not-slower": mean.not_slower,
    }[expectation]


def to_dict(found: SuiteComparison) -> dict[str, Any]:
    """Return the content of a suite's verdict.json, as harness/schemas/suite_verdict.schema.json describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "suite",
        "suite": {"name": found.suite.name, "digest": found.suite.digest},
        "reference": found.reference,
        "other": found.other,
        "margin": found.margin,
        "per": None if found.unit is None else unit_to_dict(found.unit),
        "verdict": found.verdict,
        "summary": found.summary,
        "claim": None if found.claim is None else found.claim.name,
        "claim_verdict": None if found.claim_verdict is None else asdict(found.claim_verdict),
        "mean": None if found.mean is None else asdict(found.mean),
        "workloads": [_row(row) for row in found.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    headline = None if row.pair is None else row.pair.headline
    ratio = None if headline is None else headline.ratio
    return {
        "name": row.workload.name,
        "weight": row.workload.weight,
        "verdict": None if row.pair is None else row.pair.verdict,
        "ratio": None if ratio is None else ratio.estimate,
        "low": None if ratio is None else ratio.low,
        "high": None if ratio is None else ratio.high,
        "cautions": list(dict.fromkeys(caution.name for caution in row.pair.cautions)) if row.pair is not None else [],
        "not_run": [{"side": label, **asdict(reason)} for label, reason in row.not_run],
    }
