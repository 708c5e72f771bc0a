"""Verdicts of a comparison: first the gates, then the ratio with its interval, then the verdict and its summary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.analysis import gates
from harness.analysis.calibration import Calibration, load_calibration
from harness.analysis.cautions import (
    MOVES_TIMES,
    Caution,
    cautions_about,
    cautions_between,
    interval_step_seconds,
)
from harness.analysis.claims import SUPPORTED, Claim, ClaimVerdict
from harness.analysis.format import ratio_with_interval
from harness.analysis.gates import Gate
from harness.analysis.parity import Memo, ParityResult
from harness.analysis.ratio_statistics import (
    DEFAULT_MARGIN,
    MAX_REPEATS,
    Ratio,
    inverse,
    ratio_of,
    single_run_limit,
    single_run_ratio_of,
)
from harness.analysis.run_group import RunGroup
from harness.analysis.unit import JOULE, Unit
from harness.errors import ExitCode
from harness.records.load import get_path
from harness.text import capitalized, name_in_sentence

VERDICT_SCHEMA_VERSION = 2

EQUIVALENT, FASTER, SLOWER, INCONCLUSIVE = "equivalent", "faster", "slower", "inconclusive"
# In place of faster and slower, where a unit is not time alone.
LESS, MORE = "less", "more"
NOT_COMPARABLE, DIFFERENT, IMPLAUSIBLE, FAILED = (
    "not comparable", "different computation", "implausible", "failed",
)  # fmt: skip
# The only verdict that emulated devices can get beside a failed gate.
SAME_COMPUTATION = "same computation"
EXPECTATIONS = ("equivalent", "faster", "not-slower", SUPPORTED)


@dataclass(frozen=True)
class Quantity:
    """One measured quantity of both sides, a value for each process, and the ratio of the other to the reference."""

    key: str
    title: str
    unit: str
    reference: tuple[float, ...]
    other: tuple[float, ...]
    ratio: Ratio


@dataclass(frozen=True)
class Pair:
    """Verdict on one side against the reference."""

    reference: RunGroup
    other: RunGroup
    gates: tuple[Gate, ...]
    findings: tuple[ParityResult, ...]
    cautions: tuple[Caution, ...]
    quantities: tuple[Quantity, ...]
    verdict: str
    summary: str
    claim: ClaimVerdict | None = None
    """Verdict on the claim of `--claim`, if one was given."""

    @property
    def headline(self) -> Quantity | None:
        """Step time, or None where no speed may be stated."""
        return self.quantities[0] if self.quantities else None


@dataclass(frozen=True)
class Comparison:
    """Verdicts on all sides, each against the first."""

    reference: RunGroup
    pairs: tuple[Pair, ...]
    margin: float
    claim: Claim | None = None
    unit: Unit | None = None
    """Unit that steps are charged in (`--per`); None: the time of a step, on systems of the same size."""

    @property
    def headline_title(self) -> str:
        """Name of the quantity that the ratio of the verdict is of."""
        return "step time" if self.unit is None else self.unit.title


def compare(
    sides: Sequence[RunGroup],
    margin: float = DEFAULT_MARGIN,
    calibrations: Sequence[Path] = (),
    unit: Unit | None = None,
) -> Comparison:
    """Judge every side after the first against the first.

    Args:
        sides: two or more.
        margin: largest relative difference of step times that counts as the same, as a fraction.
        calibrations: files that widen the limits of the same computation.
        unit: what steps are charged in, so that world sizes may differ; None: their time.

    Raises:
        ConfigError: a calibration file cannot be used.
        UserError: a record does not know what a unit needs.
    """
    known = load_calibration(*calibrations)
    widened = [Caution("wider limits", sides[0].label, f"limits also from {path}") for path in calibrations]
    about_reference = [*widened, *cautions_about(sides[0])]
    judge = _Judge(sides[0], margin, known, about_reference, unit)
    pairs = tuple(judge.pair(number, other) for number, other in enumerate(sides[1:], 1))
    return Comparison(sides[0], pairs, margin, unit=unit)


@dataclass(frozen=True)
class _Judge:
    """Judges sides against one reference."""

    reference: RunGroup
    margin: float
    calibration: Calibration
    about_reference: Sequence[Caution]
    unit: Unit | None
    memo: Memo = field(default_factory=dict)

    def pair(self, number: int, other: RunGroup) -> Pair:
        """Return the verdict on a side, of which 0 would be the reference."""
        reference, names = self.reference, self._names(other)
        cautions = (*self.about_reference, *cautions_about(other), *cautions_between(reference, other))
        passed, findings, verdict = self._gates(other)
        if verdict == SAME_COMPUTATION:
            emulated = " and ".join(name_in_sentence(side.label) for side in (reference, other) if side.emulated)
            summary = f"{names[1]} computes the same as {names[0]}; {emulated} is emulated: no speed is stated."
            return Pair(reference, other, passed, findings, cautions, (), verdict, summary)
        if verdict is not None:
            last = next(gate for gate in passed if gate.passed is False)
            summary = f"{names[1]} against {names[0]}: {verdict}. {capitalized(last.summary)}."
            return Pair(reference, other, passed, findings, cautions, (), verdict, summary)
        quantities = tuple(self._quantities(number, other))
        ratio = quantities[0].ratio
        weak = tuple(sorted({caution.name for caution in cautions} & MOVES_TIMES)) if ratio.single_run else ()
        verdict = INCONCLUSIVE if weak else verdict_of(ratio, self.unit)
        rests_on = "" if self.unit is None else f"; {self.unit.describe((reference, other), (0, number))}"
        summary = _summary(*names, verdict, ratio, self.margin, weak, self.unit, rests_on) + caution_names(cautions)
        return Pair(reference, other, passed, findings, cautions, quantities, verdict, summary)

    def _names(self, other: RunGroup) -> tuple[str, str]:
        return name_in_sentence(self.reference.label), name_in_sentence(other.label)

    def _gates(self, other: RunGroup) -> tuple[tuple[Gate, ...], tuple[ParityResult, ...], str | None]:
        """Return the gates up to the first that failed, the tests, and the verdict that they decide, if they do."""
        reference = self.reference
        passed = [gates.finished([reference, other])]
        if passed[-1].passed is False:
            return tuple(passed), (), FAILED
        passed.append(gates.comparable(reference, other, unequal=self.unit is not None))
        if passed[-1].passed is False:
            return tuple(passed), (), NOT_COMPARABLE
        computation = gates.same_computation(reference, other, self.calibration, self.memo)
        passed.append(computation.gate)
        if passed[-1].passed is False:
            return tuple(passed), computation.findings, DIFFERENT
        if reference.emulated or other.emulated:
            return tuple(passed), computation.findings, SAME_COMPUTATION
        passed += [gates.consistent_timing([reference, other]), gates.plausible(reference), gates.plausible(other)]
        failed = any(gate.passed is False for gate in passed)
        return tuple(passed), computation.findings, IMPLAUSIBLE if failed else None

    def _quantities(self, number: int, other: RunGroup) -> list[Quantity]:
        """Return the quantities that every process of both sides has, that of the verdict first and always."""
        found = _quantities(self.reference, other, self.margin)
        if self.unit is None:
            return found
        one, two = self.unit.amounts(self.reference, 0), self.unit.amounts(other, number)
        if min(len(one), len(two)) >= 2:
            ratio = ratio_of(one, two, self.margin)
        else:
            # Of the step times, which what a step takes is a multiple of; energy is not, and has no interval.
            ratio, estimate = found[0].ratio, statistics.geometric_mean(two) / statistics.geometric_mean(one)
            scale = None if self.unit.key == JOULE else estimate / ratio.estimate
            low, high = (None if scale is None or end is None else end * scale for end in (ratio.low, ratio.high))
            limit = single_run_limit(self.margin)
            differs = low is not None and high is not None and (low > limit or high < 1 / limit)
            needed = None if differs else 3
            ratio = replace(ratio, estimate=estimate, low=low, high=high, differs=differs, repeats_needed=needed)
        headline = Quantity(self.unit.key, self.unit.title, self.unit.symbol, tuple(one), tuple(two), ratio)
        return [headline, *found]


def verdict_of(ratio: Ratio, unit: Unit | None = None) -> str:
    """Return the verdict that a ratio gives by itself."""
    if ratio.equivalent:
        return EQUIVALENT
    return _direction(ratio, unit) if ratio.differs else INCONCLUSIVE


def _direction(ratio: Ratio, unit: Unit | None) -> str:
    below, above = (FASTER, SLOWER) if unit is None else (LESS, MORE)
    return below if ratio.estimate < 1 else above


QUANTITIES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("step_time", "step time", "s", ("timing", "mean_step_seconds")),
    ("tokens_per_second", "speed", "tokens/s", ("timing", "tokens_per_second")),
    ("time_to_target", "time to target loss", "s", ("target", "training_seconds")),
    ("energy_per_token", "energy", "J/token", ("telemetry", "joules_per_token")),
)


def _quantities(reference: RunGroup, other: RunGroup, margin: float) -> list[Quantity]:
    """Return the quantities that every process of both sides has, step time first and always."""
    found = []
    for key, title, unit, keys in QUANTITIES:
        one, two = reference.values(*keys), other.values(*keys)
        if any(value is None or not value > 0 for value in (*one, *two)):
            continue
        if min(len(one), len(two)) >= 2:
            ratio = ratio_of(one, two, margin)
        elif key in ("step_time", "tokens_per_second"):
            ratio = _single_run_ratio(reference, other, margin)
            ratio = inverse(ratio) if key == "tokens_per_second" else ratio
        else:
            continue
        found.append(Quantity(key, title, unit, tuple(one), tuple(two), ratio))
    return found


def _single_run_ratio(reference: RunGroup, other: RunGroup, margin: float) -> Ratio:
    """Return the ratio of step times where a side has a single process."""
    one, two = ([interval_step_seconds(run.record) for run in side.runs] for side in (reference, other))
    means = [side.values("timing", "mean_step_seconds") for side in (reference, other)]
    return single_run_ratio_of(one, two, margin, (means[0], means[1]))


def _summary(
    reference: str,
    other: str,
    verdict: str,
    ratio: Ratio,
    margin: float,
    weak: Sequence[str] = (),
    unit: Unit | None = None,
    rests_on: str = "",
) -> str:
    title, noun = ("step time", "time") if unit is None else (unit.title, unit.noun)
    number = f"{title} ratio {ratio_with_interval(ratio.estimate, ratio.low, ratio.high)}"
    repeats = " and ".join(str(count) for count in ratio.repeats)
    evidence = ("one process a side" if ratio.repeats == (1, 1) else f"{repeats} processes") + rests_on
    if ratio.single_run:
        evidence += "; cannot estimate run-to-run variance"
    if verdict == EQUIVALENT:
        also = f", though measurably {_direction(ratio, unit)}" if ratio.differs else ""
        return f"{other} takes the same {noun} as {reference} within {100 * margin:.3g} %{also}: {number} ({evidence})."
    if verdict in (FASTER, SLOWER):
        return f"{other} is {verdict} than {reference}: {number} ({evidence})."
    if verdict in (LESS, MORE):
        return f"{other} takes {verdict} {noun} than {reference}: {number} ({evidence})."
    advice = _repeats_advice(ratio)
    if weak:
        advice = f"One process a side shows nothing with {' and '.join(weak)}: run 3 or more a side."
    return f"{other} against {reference}: {verdict}. {capitalized(number)} ({evidence}). {advice}"


def caution_names(cautions: Sequence[Caution]) -> str:
    """Return the cautions by name: nobody should quote a number that was measured on a shared machine without them."""
    names = list(dict.fromkeys(caution.name for caution in cautions))
    return f" Caution: {', '.join(names)}." if names else ""


def _repeats_advice(ratio: Ratio) -> str:
    if ratio.repeats_needed is None:
        return f"Even {MAX_REPEATS} repeats a side would probably not decide: they vary too much."
    return f"About {ratio.repeats_needed} repeats a side would probably decide."


def holds(pair: Pair, expectation: str) -> bool:
    """Return whether a side's records show what was expected of it; an inconclusive verdict shows nothing."""
    if expectation == SUPPORTED:
        return pair.claim is not None and pair.claim.verdict == SUPPORTED
    ratio = pair.headline.ratio if pair.headline is not None else None
    if ratio is None or ratio.single_run:
        return expectation == "faster" and pair.verdict in (FASTER, LESS)
    return {
        "equivalent": pair.verdict == EQUIVALENT,
        "faster": pair.verdict in (FASTER, LESS) or (ratio.differs and ratio.estimate < 1),
        "not-slower": ratio.not_slower,
    }[expectation]


def expectation_lines(comparison: Comparison, expectation: str) -> Iterator[tuple[bool, str]]:
    """Yield whether the expectation is shown for each side, and the line that says so with the verdict."""
    for pair in comparison.pairs:
        shown = holds(pair, expectation)
        verdict = pair.claim.verdict if expectation == SUPPORTED and pair.claim is not None else pair.verdict
        side = f" of {pair.other.label}" if len(comparison.pairs) > 1 else ""
        yield shown, f"expected {expectation}{side}: {'shown' if shown else 'not shown'} ({verdict})"


def exit_code(comparison: Comparison, expectation: str | None) -> int:
    """Return the exit code of `compare`: the worst of its pairs."""
    verdicts = {pair.verdict for pair in comparison.pairs}
    if FAILED in verdicts:
        return ExitCode.RUN_FAILED
    if verdicts & {NOT_COMPARABLE, DIFFERENT, IMPLAUSIBLE}:
        return ExitCode.NOT_COMPARABLE
    if expectation is not None and not all(holds(pair, expectation) for pair in comparison.pairs):
        return ExitCode.NOT_AS_EXPECTED
    return ExitCode.OK


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the content of verdict.json, as harness/schemas/verdict.schema.json describes it."""
    return {
        "schema_version": VERDICT_SCHEMA_VERSION,
        "margin": comparison.margin,
        "per": None if comparison.unit is None else unit_to_dict(comparison.unit),
        "claim": None if comparison.claim is None else _claim(comparison.claim),
        "reference": _side(comparison.reference),
        "pairs": [
            {
                "other": _side(pair.other),
                "verdict": pair.verdict,
                "summary": pair.summary,
                "claim": None if pair.claim is None else asdict(pair.claim),
                "gates": [
                    {"name": gate.name, "passed": gate.passed, "summary": gate.summary, "details": list(gate.details)}
                    for gate in pair.gates
                ],
                "tests": [
                    {"name": finding.key, "value": _finite(finding.value), "limit": finding.limit,
                     "passed": finding.passed}
                    for finding in pair.findings
                ],
                "cautions": [
                    {"name": caution.name, "side": caution.side, "text": caution.text} for caution in pair.cautions
                ],
                "quantities": [_quantity(quantity) for quantity in pair.quantities],
            }
            for pair in comparison.pairs
        ],
    }  # fmt: skip


def unit_to_dict(unit: Unit) -> dict[str, Any]:
    """Return a unit as JSON values."""
    return {"unit": unit.key, "prices": list(unit.prices), "price_date": unit.price_date or None}


def _claim(claim: Claim) -> dict[str, Any]:
    keys = ("name", "statement", "source", "date", "subject", "reference", "quantity", "stated", "low", "high")
    return {key: getattr(claim, key) for key in keys}


def _side(side: RunGroup) -> dict[str, Any]:
    first = side.first
    return {
        "label": side.label,
        "runs": [{"path": str(run.path), "content_sha256": run.record["content_sha256"]} for run in side.runs],
        "backend": get_path(first, "backend", "name"),
        "device": get_path(first, "device", "name"),
        "emulated": side.emulated,
        "workload_id": first["workload_id"],
        "precision": first["config"]["precision"],
        "track": first["config"]["track"]["name"],
        "world_size": first["world_size"],
    }


def _quantity(quantity: Quantity) -> dict[str, Any]:
    ratio = quantity.ratio
    return {
        "name": quantity.key,
        "unit": quantity.unit,
        "reference": list(quantity.reference),
        "other": list(quantity.other),
        "ratio": ratio.estimate,
        "low": ratio.low,
        "high": ratio.high,
        "equivalent": ratio.equivalent,
        "differs": ratio.differs,
        "single_run": ratio.single_run,
        "repeats_needed": ratio.repeats_needed,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
