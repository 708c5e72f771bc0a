"""Verdicts on a published claim from the records of a comparison."""

from __future__ import annotations

from dataclasses import replace

from harness.analysis.chips import find_chip, match_chips
from harness.analysis.claims import ANY_DEVICE, INCONCLUSIVE, NOT_TESTED, Claim, ClaimVerdict, judge_time_ratio
from harness.analysis.ratio_statistics import inverse
from harness.analysis.run_group import RunGroup
from harness.analysis.suite_verdict import SuiteComparison, mean_ratio
from harness.analysis.verdict import Comparison, Pair
from harness.config import product_format
from harness.records.load import get_path
from harness.text import counted


def judge_claim(comparison: Comparison, claim: Claim) -> Comparison:
    """Return the comparison with a verdict on a published claim, whose subject may be either side of a pair."""
    pairs = tuple(replace(pair, claim=judge(claim, pair)) for pair in comparison.pairs)
    return replace(comparison, pairs=pairs, claim=claim)


def judge(claim: Claim, pair: Pair) -> ClaimVerdict:
    """Return the verdict on a claim from one pair; the chips decide which of the two sides is the subject."""
    if obstacle := _not_tested(claim, pair):
        return ClaimVerdict(NOT_TESTED, obstacle)
    assert pair.headline is not None
    ratio = pair.headline.ratio
    if ratio.low is None or ratio.high is None or ratio.single_run:
        return ClaimVerdict(INCONCLUSIVE, "a side has one process: cannot estimate run-to-run variance")
    # The pair's ratio is that of the other's step time to the reference's.
    if _subject(claim, pair) is pair.reference:
        ratio = inverse(ratio)
    assert ratio.low is not None
    assert ratio.high is not None
    return judge_time_ratio(claim, ratio.estimate, ratio.low, ratio.high)


def judge_suite(claim: Claim, found: SuiteComparison) -> ClaimVerdict:
    """Return the verdict on a claim from the mean of those workloads of a suite that it covers."""
    if found.mean is None:
        return ClaimVerdict(NOT_TESTED, f"{found.verdict}: no mean is stated")
    if found.disturbances:
        return ClaimVerdict(INCONCLUSIVE, f"one process a side shows nothing with {' and '.join(found.disturbances)}")
    obstacles = {row.workload.name: _not_tested(claim, row.pair) for row in found.measured if row.pair is not None}
    covered = [row for row in found.measured if obstacles[row.workload.name] is None]
    if not covered:
        return ClaimVerdict(NOT_TESTED, next(reason for reason in obstacles.values() if reason is not None))
    ratios = [row.estimate for row in covered if row.estimate is not None]
    mean = mean_ratio(ratios, [row.workload.weight for row in covered], found.margin)
    of = f"{len(covered)} of {counted(len(found.rows), 'workload')}"
    if mean.low is None or mean.high is None:
        return ClaimVerdict(INCONCLUSIVE, f"it covers {of}, and one workload gives no interval")
    pair = covered[0].pair
    assert pair is not None
    estimate, low, high = mean.estimate, mean.low, mean.high
    if _subject(claim, pair) is pair.reference:
        estimate, low, high = 1 / estimate, 1 / high, 1 / low
    judged = judge_time_ratio(claim, estimate, low, high)
    return replace(judged, reason=f"{judged.reason}; geometric mean over the {of} that it covers, taken as a sample")


def _not_tested(claim: Claim, pair: Pair) -> str | None:
    """Return the reason for which a pair's records do not test the claim, or None if they do."""
    sides = (pair.other, pair.reference)
    if emulated := [side.label for side in sides if side.emulated]:
        return f"emulated device: {' and '.join(emulated)} has no speed"
    if _subject(claim, pair) is None:
        found = " and ".join(f"{_device(side)} ({side.label})" for side in sides)
        return f"wrong chips: the claim compares {claim.subject} with {claim.reference}, the records are of {found}"
    if obstacle := _other_conditions(claim, sides):
        return obstacle
    if pair.headline is None:
        return f"{pair.verdict}: {next((gate.summary for gate in pair.gates if gate.passed is False), pair.summary)}"
    return None


def _subject(claim: Claim, pair: Pair) -> RunGroup | None:
    """Return the side whose chip is the claim's subject, if the other side's chip is its reference."""
    for subject, reference in ((pair.other, pair.reference), (pair.reference, pair.other)):
        if _is_of(subject, claim.subject) and _is_of(reference, claim.reference):
            return subject
    return None


def _is_of(side: RunGroup, name: str) -> bool:
    # By the name under which its peak is looked up, which a slice of a chip does not have.
    chip = find_chip(get_path(side.first, "backend", "peak_lookup_key"))
    return name == ANY_DEVICE or (chip is not None and chip in match_chips(name))


def _device(side: RunGroup) -> str:
    return str(get_path(side.first, "device", "name") or f"an unnamed {get_path(side.first, 'device', 'kind')}")


def _other_conditions(claim: Claim, sides: tuple[RunGroup, RunGroup]) -> str | None:
    """Return the first condition of the claim that the records miss: precision, size, scale, sequence length."""
    for side in sides:
        first = side.first
        precision = first["config"]["precision"]
        if claim.precision not in (None, product_format(precision)):
            return f"other precision: the claim is of {claim.precision}, {side.label} ran in {precision}"
        size = get_path(first, "model", "parameters")
        if not claim.parameters.holds(size):
            found = "of unknown size" if size is None else f"of {size / 1e9:.3g} billion"
            return (
                f"other scale: the claim is of models of {claim.parameters.text(1e9)} billion parameters "
                f"({claim.parameters_reason}), {side.label} trained one {found}"
            )
        devices = first["world_size"]
        if not claim.devices.holds(devices):
            return f"other scale: the claim is of {claim.devices.text()} devices, {side.label} ran on {devices}"
        seq_len = first["config"]["workload"]["seq_len"]
        if claim.seq_len not in (None, seq_len):
            return f"other workload: the claim is of {claim.seq_len} tokens a sequence, {side.label} trained {seq_len}"
    return None
