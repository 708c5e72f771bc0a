"""From sides to words: first the gates, then the number, then what may be said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.analysis import gates
from harness.analysis.cautions import Caution, cautions_about, interval_step_seconds
from harness.analysis.claims import SUPPORTED, Claim, ClaimVerdict
from harness.analysis.gates import Gate
from harness.analysis.parity import ParityResult
from harness.analysis.ratio_statistics import Ratio, inverse, ratio_of, single_run_ratio_of
from harness.analysis.run_group import RunGroup
from harness.errors import ExitCode
from harness.records.load import get_path

VERDICT_SCHEMA_VERSION = 2
DEFAULT_MARGIN = 0.05

EQUIVALENT, FASTER, SLOWER, INCONCLUSIVE = "equivalent", "faster", "slower", "inconclusive"
NOT_COMPARABLE, DIFFERENT, IMPLAUSIBLE, FAILED = (
    "not comparable", "different computation", "implausible", "failed",
)  # fmt: skip
# What emulated devices can show, and all that they can show.
SAME_COMPUTATION = "same computation"
WORDS = (
    EQUIVALENT, FASTER, SLOWER, INCONCLUSIVE, NOT_COMPARABLE, DIFFERENT, IMPLAUSIBLE, FAILED, SAME_COMPUTATION,
)  # fmt: skip
EXPECTATIONS = ("equivalent", "faster", "not-slower", SUPPORTED)
CLAIM_DOES_NOT_HOLD = 1


@dataclass(frozen=True)
class Quantity:
    """One measured quantity on both sides, a value a process, and the ratio other over reference."""

    key: str
    title: str
    unit: str
    reference: tuple[float, ...]
    other: tuple[float, ...]
    ratio: Ratio


@dataclass(frozen=True)
class Pair:
    """The verdict on one side against the reference."""

    reference: RunGroup
    other: RunGroup
    gates: tuple[Gate, ...]
    findings: tuple[ParityResult, ...]
    cautions: tuple[Caution, ...]
    quantities: tuple[Quantity, ...]
    verdict: str
    summary: str
    claim: ClaimVerdict | None = None
    """What these records say of the claim that was asked about, if one was."""

    @property
    def headline(self) -> Quantity | None:
        """The ratio of step times, or None where no speed may be stated."""
        return self.quantities[0] if self.quantities else None


@dataclass(frozen=True)
class Comparison:
    """All verdicts, each against the first side."""

    reference: RunGroup
    pairs: tuple[Pair, ...]
    margin: float
    claim: Claim | None = None


def compare(sides: Sequence[RunGroup], margin: float = DEFAULT_MARGIN) -> Comparison:
    """Judge every side after the first against the first.

    Args:
        sides: two or more.
        margin: how far apart step times may be and still be called the same, as a fraction.
    """
    return Comparison(sides[0], tuple(_judge(sides[0], other, margin) for other in sides[1:]), margin)


def _judge(reference: RunGroup, other: RunGroup, margin: float) -> Pair:
    passed: list[Gate] = []
    findings: tuple[ParityResult, ...] = ()
    cautions = tuple([*cautions_about(reference), *cautions_about(other)])

    def stop(word: str) -> Pair:
        last = next(gate for gate in passed if gate.passed is False)
        names = f"{other.label} against {reference.label}"
        return Pair(
            reference, other, tuple(passed), findings, cautions, (), word, f"{names}: {word}. {_capital(last.summary)}."
        )

    passed.append(gates.finished([reference, other]))
    if passed[-1].passed is False:
        return stop(FAILED)
    passed.append(gates.comparable(reference, other))
    if passed[-1].passed is False:
        return stop(NOT_COMPARABLE)
    computation = gates.same_computation(reference, other)
    findings = computation.findings
    passed.append(computation.gate)
    if passed[-1].passed is False:
        return stop(DIFFERENT)
    if reference.emulated or other.emulated:
        emulated = " and ".join(side.label for side in (reference, other) if side.emulated)
        sentence = (
            f"{other.label} computes the same as {reference.label}; {emulated} is emulated, so no speed is stated."
        )
        return Pair(reference, other, tuple(passed), findings, cautions, (), SAME_COMPUTATION, sentence)
    passed += [gates.plausible(reference), gates.plausible(other)]
    if any(gate.passed is False for gate in passed):
        return stop(IMPLAUSIBLE)
    quantities = tuple(_quantities(reference, other, margin))
    ratio = quantities[0].ratio
    word = _word(ratio)
    sentence = _sentence(reference.label, other.label, word, ratio, margin) + _named(cautions)
    return Pair(reference, other, tuple(passed), findings, cautions, quantities, word, sentence)


def _word(ratio: Ratio) -> str:
    if ratio.equivalent:
        return EQUIVALENT
    if ratio.differs:
        return FASTER if ratio.estimate < 1 else SLOWER
    return INCONCLUSIVE


QUANTITIES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("step_time", "step time", "s", ("timing", "mean_step_seconds")),
    ("tokens_per_second", "speed", "tokens/s", ("timing", "tokens_per_second")),
    ("time_to_target", "time to target loss", "s", ("target", "training_seconds")),
    ("energy_per_token", "energy", "J/token", ("telemetry", "joules_per_token")),
)


def _quantities(reference: RunGroup, other: RunGroup, margin: float) -> list[Quantity]:
    """Return the ratios of what every process of both sides has; step time first, and always."""
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
    """Return the ratio of step times where a side has one process."""
    one, two = ([interval_step_seconds(run.record) for run in side.runs] for side in (reference, other))
    means = [side.values("timing", "mean_step_seconds") for side in (reference, other)]
    return single_run_ratio_of(one, two, margin, (means[0], means[1]))


def _sentence(reference: str, other: str, word: str, ratio: Ratio, margin: float) -> str:
    interval = "" if ratio.low is None else f", 95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    number = f"step time {ratio.estimate:.3f} times the reference's{interval}"
    repeats = " and ".join(str(count) for count in ratio.repeats)
    evidence = "one process a side" if ratio.repeats == (1, 1) else f"{repeats} processes"
    if ratio.single_run:
        evidence += "; cannot estimate run-to-run variance"
    if word == EQUIVALENT:
        also = f", though {_side_of_one(ratio)} by a measurable amount" if ratio.differs else ""
        return f"{other} takes the same time as {reference} within {100 * margin:.3g} %{also}: {number} ({evidence})."
    if word in (FASTER, SLOWER):
        return f"{other} is {word} than {reference}: {number} ({evidence})."
    return f"{other} against {reference}: inconclusive. {_capital(number)} ({evidence}). {_more(ratio)}"


def _named(cautions: Sequence[Caution]) -> str:
    """Return the cautions by name: a number measured on a shared machine is not to be quoted without them."""
    names = list(dict.fromkeys(caution.name for caution in cautions))
    return f" Caution: {', '.join(names)}." if names else ""


def _side_of_one(ratio: Ratio) -> str:
    return FASTER if ratio.estimate < 1 else SLOWER


def _more(ratio: Ratio) -> str:
    if ratio.repeats_needed is None:
        return "Even 100 repeats a side would probably not decide it: the machines are too noisy for this margin."
    return f"About {ratio.repeats_needed} repeats a side would probably decide it."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def holds(pair: Pair, expectation: str) -> bool:
    """Return whether what was expected of a side is shown by its records; "inconclusive" shows nothing."""
    if expectation == SUPPORTED:
        return pair.claim is not None and pair.claim.verdict == SUPPORTED
    ratio = pair.headline.ratio if pair.headline is not None else None
    if ratio is None or ratio.single_run:
        return expectation == "faster" and pair.verdict == FASTER
    return {
        "equivalent": pair.verdict == EQUIVALENT,
        "faster": pair.verdict == FASTER or (ratio.differs and ratio.estimate < 1),
        "not-slower": ratio.not_slower,
    }[expectation]


def exit_code(comparison: Comparison, expectation: str | None) -> int:
    """Return the command's exit code: the worst of its pairs."""
    words = [pair.verdict for pair in comparison.pairs]
    if FAILED in words:
        return ExitCode.RUN_FAILED
    if any(word in (NOT_COMPARABLE, DIFFERENT, IMPLAUSIBLE) for word in words):
        return ExitCode.NOT_COMPARABLE
    if expectation is not None and not all(holds(pair, expectation) for pair in comparison.pairs):
        return CLAIM_DOES_NOT_HOLD
    return ExitCode.OK


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return what verdict.json holds; harness/schemas/verdict.schema.json describes it."""
    return {
        "schema_version": VERDICT_SCHEMA_VERSION,
        "margin": comparison.margin,
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
