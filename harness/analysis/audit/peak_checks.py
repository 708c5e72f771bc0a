"""Checks of a published row against the peaks of its chips: precision, MFU and implied FLOP/s."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.analysis.audit.rows import (
    IMPOSSIBLE,
    INCONSISTENT,
    NOTE,
    SIDES,
    SUSPICIOUS,
    UNPROVEN,
    AuditFinding,
    Figure,
    Row,
)
from harness.analysis.chips import PRECISIONS, Chip, find_chip, largest_peak
from harness.analysis.format import tflops
from harness.analysis.named_models import model_preset

# "7B" stands for 6.7 to 7.3 billion parameters.
PARAMETER_SLACK = 1.10
# Ratio of two MFUs, whose FLOPs differ by embeddings, grouped queries and the like. On the log scale.
MFU_TOLERANCE = 0.15
# Within this it follows: what remains are vocabularies and biases that a row does not print.
MFU_ROUNDING = 0.03
# No published dense training reached a larger share of the data sheet's peak.
MAX_CREDIBLE_MFU = 0.75
# Factor by which a peak of grade C may be too small: public figures of one Ascend part differ by as much.
DISPUTED_PEAK = 1.10
# Tools divide by this chip's peak when they do not know the chip.
DEFAULT_CHIP = "NVIDIA A100-SXM4-80GB"


def has_peak(row: Row, side: str) -> bool:
    """Return whether the largest peak of a side's chips is known."""
    return _largest_peak(row, side)[0] is not None


def _peaks(row: Row, side: str) -> list[tuple[float, str]]:
    """Return (FLOP/s, name) of every peak that a side may have: of all precisions if none is printed."""
    precision = row.text("precision")
    return [
        (value, f"{name} {kind} of {chip.name}")
        for chip in row.chips(side)
        for name in ((precision,) if precision is not None else PRECISIONS)
        for value, kind in chip.peaks(name)
    ]


def _largest_peak(row: Row, side: str) -> tuple[float | None, str, float]:
    """Return the largest peak FLOP/s that a side may have, its description, and the factor by which it may be off."""
    chips = row.chips(side)
    precision = row.text("precision")
    if precision is not None:
        best, description = largest_peak(chips, precision), precision
    else:
        peaks = [(value, name) for name in PRECISIONS if (value := largest_peak(chips, name)) is not None]
        best, name = max(peaks, default=(None, ""))
        description = f"{name}, as no precision is printed" if best is not None else "any precision"
    grade = max((chip.confidence for chip in chips), default=None)
    if grade is not None:
        description = f"{description}; grade {grade}"
    return best, description, DISPUTED_PEAK if grade == "C" else 1.0


def check_precision(row: Row) -> Iterator[AuditFinding]:
    """Yield a finding for each side whose chips all lack the printed precision."""
    precision = row.text("precision")
    for side in SIDES:
        chips = row.chips(side)
        if precision is not None and chips and all(precision in chip.lacks for chip in chips):
            yield AuditFinding(
                IMPOSSIBLE,
                "precision",
                f"{precision} on {row.text(side)}",
                f"{' and '.join(chip.name for chip in chips)} has no {precision} arithmetic",
            )


def check_mfu(row: Row) -> Iterator[AuditFinding]:
    """Yield a finding for each side that states an MFU: above one, not of its speed, or by which convention it is."""
    for side in SIDES:
        stated, speed = row.figure(side, "mfu"), row.speed_per_device(side)
        if stated is None:
            continue
        if stated.value > 1:
            what = f"{side}: MFU of {stated.value:.0%}"
            yield AuditFinding(IMPOSSIBLE, "MFU", what, _why_above_one(row, side, stated.value))
        elif speed is not None and row.flops_per_token is not None and (peaks := _peaks(row, side)):
            yield _convention_of_mfu(row, side, stated, speed, peaks)


def _convention_of_mfu(
    row: Row, side: str, stated: Figure, speed: Figure, peaks: Sequence[tuple[float, str]]
) -> AuditFinding:
    """Return the convention by which a stated MFU follows from the speed, or that it follows by none.

    Of all peaks and ways of counting attention, the author of the row meant the pair that fits best.
    """
    candidates = [
        (speed.times(flops / peak), convention, name)
        for convention, flops in row.flops_by_convention.items()
        for peak, name in peaks
    ]
    found, convention, peak = min(candidates, key=lambda each: abs(math.log(each[0].value / stated.value)))
    apart = max(found.low / stated.high, stated.low / found.high)
    if apart <= math.exp(MFU_TOLERANCE):
        follows = "follows from the speed"
        if apart > math.exp(MFU_ROUNDING):
            follows = f"is within {math.ceil(100 * (apart - 1))} % of what the speed gives"
        return AuditFinding(NOTE, "MFU", f"{side}: the MFU {follows}", convention)
    what = f"{side}: MFU of {stated.value:.1%}"
    flops = row.flops_by_convention[convention] * speed.value
    why = f"the printed speed is {tflops(flops)}, {found.value:.1%} of the {peak}"
    most = max(speed.high * row.largest_flops_per_token / peak for peak, _ in peaks)
    if len(row.flops_by_convention) == 1 and found.value < stated.value and stated.low <= most:
        return AuditFinding(UNPROVEN, "MFU", what, f"{why} without attention, which layers, width and seq_len give")
    return AuditFinding(INCONSISTENT, "MFU", what, f"{why} {convention}, the nearest way to count")


def _why_above_one(row: Row, side: str, stated: float) -> str:
    """Return the wrong divisor that explains an MFU above one: the A100's peak, as tools use for unknown chips."""
    default = find_chip(DEFAULT_CHIP)
    assert default is not None
    divisor = default.peak_flops["bf16"]
    assert divisor is not None
    speed, chip = stated * divisor, row.text(side)
    peak = largest_peak(row.chips(side), row.text("precision") or "bf16")
    if peak is None:
        known = f"the peak of {chip!r} is unknown" if chip else "no chip is named"
        return f"no chip exceeds its peak; {known}; if divided by the A100's {tflops(divisor)}, it is {tflops(speed)}"
    if peak > divisor:
        return (
            f"no chip exceeds its peak; if divided by the A100's {tflops(divisor)}, as tools do by default, it is "
            f"{tflops(speed)}, {speed / peak:.0%} of the peak of {chip}"
        )
    return "no chip exceeds its peak"


def check_implied_flops(row: Row) -> Iterator[AuditFinding]:
    """Yield a finding for each side whose FLOP/s are above a peak, near it, or not to be checked."""
    precision = row.text("precision")
    for side in SIDES:
        flops, (peak, description, dispute) = row.flops_per_device(side), _largest_peak(row, side)
        speed = row.speed_per_device(side)
        if flops is None or speed is None:
            continue
        least = flops * speed.low / speed.value
        chips, name, found = row.chips(side), row.text(side), f"{side}: {tflops(flops)} a device"
        if peak is None:
            if not all(precision in chip.lacks for chip in chips):
                reason = f"not checked, since the {precision or 'largest'} peak of {name} is unknown"
                yield AuditFinding(UNPROVEN, "peak", found, reason)
            continue
        slack = dispute * (1.0 if model_preset(row.text("model")) else PARAMETER_SLACK)
        reason = f"the largest peak of {name} is {tflops(peak)} ({description})"
        measured = _best_product(chips, precision)
        if least > slack * peak:
            yield AuditFinding(IMPOSSIBLE, "peak", found, f"{reason}: {flops / peak:.1f} times that peak{_hint(row)}")
        elif least > MAX_CREDIBLE_MFU * peak:
            reason += f"; no published dense training reached {flops / peak:.0%} of it"
            yield AuditFinding(SUSPICIOUS, "peak", found, reason)
        elif measured is not None and least > measured:
            reason = f"matrix products alone were measured at {tflops(measured)} on {name}"
            yield AuditFinding(SUSPICIOUS, "peak", found, reason)


def _hint(row: Row) -> str:
    """Return what would make a row possible, if its name does not rule it out."""
    unknown = model_preset(row.text("model")) is None and row.number("active_parameters") is None
    return "; if it is a mixture of experts, give active_parameters" if unknown else ""


def _best_product(chips: Sequence[Chip], precision: str | None) -> float | None:
    """Return the best measured FLOP/s of matrix products, or None where a chip has no measurement."""
    found = [chip.measured_flops.get(precision or "bf16") for chip in chips]
    return None if not found or None in found else max(value for value in found if value is not None)
